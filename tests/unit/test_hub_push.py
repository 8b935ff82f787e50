"""Releasing: to whom, what counts as sent, what stays."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from siteagent.config.convert import changed
from siteagent.config.sections import Limits, Undeliverable
from tests.fakes import FakeSpool
from tests.hub import Running, hub, node, site

MAIL = b"Subject: hi\r\n\r\nhello\r\n"
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def odd_site(talk: Talk) -> AsyncIterator[str]:
    """A server that does what `talk` does with each connection; its address."""

    async def guarded(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await talk(reader, writer)
        writer.close()

    server = await asyncio.start_server(guarded, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


def smtp(
    *,
    keywords: tuple[str, ...] = (),
    rcpt: Callable[[str], str] = lambda address: "250 ok",
    end: Callable[[bytes], str] = lambda content: "250 ok",
    heard: list[str] | None = None,
    contents: list[bytes] | None = None,
) -> Talk:
    """A plain SMTP server in twenty lines, written apart from ours."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def say(*lines: str) -> None:
            writer.write("".join(f"{line}\r\n" for line in lines).encode())

        say("220 odd.example")
        while line := (await reader.readuntil(b"\r\n")).decode().rstrip("\r\n"):
            if heard is not None:
                heard.append(line)
            verb, _, rest = line.partition(" ")
            if verb == "EHLO":
                lines = ["odd.example", *keywords]
                say(*[f"250{'-' if n < len(lines) - 1 else ' '}{word}" for n, word in enumerate(lines)])
            elif verb == "RCPT":
                say(rcpt(rest))
            elif verb == "DATA":
                say("354 go on")
                content = await reader.readuntil(b"\r\n.\r\n")
                if contents is not None:
                    contents.append(content)
                answer = end(content)
                if not answer:
                    return
                say(answer)
            elif verb == "QUIT":
                say("221 bye")
                return
            else:
                say("250 ok")

    return talk


def released(
    tmp_path: Path,
    talk: Talk,
    contents: list[bytes],
    *,
    to: tuple[str, ...] = ("alice@office.example",),
    times: int = 1,
    limits: Limits | None = None,
    notices: list[bytes] | None = None,
    sender: str = "friend@far.example",
    seconds: float = 0.02,
    **options: Any,
) -> Running:
    """Fill, ETRN `times` times, one after the other; what happened. `notices`: what a relay takes, if there is one."""

    async def run() -> Running:
        async with odd_site(talk) as address, odd_site(smtp(contents=notices)) as relay:
            nodes = [node(deliver_to=address, etrn_without_auth=True, **options)]
            async with hub(tmp_path, nodes, limits=limits, relay=None if notices is None else relay) as running:
                await running.fill(contents, to=to, sender=sender)
                for count in range(1, times + 1):
                    peer = await running.peer()
                    assert await peer.code("ETRN office.example") == 250
                    await running.released(count)
                    await peer.close()
                    # What was tried is written down with the next transaction, a tenth of a second later.
                    await asyncio.sleep(0.2 if count < times else seconds)
                return running

    return asyncio.run(run())


# --- whom -------------------------------------------------------------------------------------------------------------


def test_s60_a_push_goes_to_the_configured_address_and_never_to_the_asker(tmp_path: Path) -> None:
    contents: list[bytes] = []
    asked_back: list[str] = []

    async def run() -> None:
        async with (
            odd_site(smtp(contents=contents)) as configured,
            odd_site(smtp(heard=asked_back)),
            hub(tmp_path, [node(deliver_to=configured, etrn_without_auth=True)]) as running,
        ):
            await running.fill([MAIL])
            peer = await running.peer()
            assert await peer.code("ETRN office.example") == 250
            await running.released()
            await peer.close()

    asyncio.run(run())
    assert len(contents) == 1
    assert asked_back == []


def test_s60_a_name_that_leads_to_ourselves_is_not_pushed_to(tmp_path: Path) -> None:
    async def run() -> Any:
        nodes = [node(deliver_to="office.test:25", etrn_without_auth=True)]
        async with hub(tmp_path, nodes) as running:
            running.hub._pusher._resolve = loopback
            await running.fill([MAIL])
            peer = await running.peer()
            await peer.code("ETRN office.example")
            ended = await running.released()
            await peer.close()
            return ended

    async def loopback(host: str) -> tuple[str, ...]:
        return ("127.0.0.1",)

    ended = asyncio.run(run())
    assert (ended.connections, ended.left) == (0, 1)


def test_etrn_is_answered_before_the_push_gets_anywhere(tmp_path: Path) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(30)

    async def run() -> None:
        async with (
            odd_site(silent) as address,
            hub(tmp_path, [node(deliver_to=address, etrn_without_auth=True)]) as running,
        ):
            await running.fill([MAIL])
            peer = await running.peer()
            async with asyncio.timeout(2):
                assert await peer.code("ETRN office.example") == 250
            assert running.of("push.ended") == []
            await peer.close()

    asyncio.run(run())


def test_s58_one_push_a_node_at_a_time_and_another_behind_it(tmp_path: Path) -> None:
    open_now, most = 0, 0
    gate = asyncio.Event

    async def run() -> Running:
        nonlocal open_now, most
        go = gate()

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal open_now, most
            open_now += 1
            most = max(most, open_now)
            await go.wait()
            await smtp()(reader, writer)
            open_now -= 1

        async with odd_site(talk) as address:
            nodes = [node(deliver_to=address, etrn_without_auth=True, max_connections=1)]
            async with hub(tmp_path, nodes) as running:
                await running.fill([MAIL])
                peer = await running.peer()
                for _ in range(5):
                    assert await peer.code("ETRN office.example") == 250
                await running.fill([b"Subject: another\r\n\r\n"])
                go.set()
                await running.until(lambda: running.hub.queue.count("office.example") == 0)
                await peer.close()
                return running

    running = asyncio.run(run())
    assert most == 1
    assert len(running.of("message.sent")) == 2


# --- what counts as sent ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keywords", [(), ("PIPELINING",), ("PIPELINING", "SIZE", "8BITMIME"), ("CHUNKING",)])
def test_every_kind_of_server_gets_every_octet(tmp_path: Path, keywords: tuple[str, ...]) -> None:
    contents: list[bytes] = []
    mail = [b"Subject: %d\r\n\r\n.dots\r\n..two\r\nlast line\r\n" % n for n in range(5)]
    running = released(tmp_path, smtp(keywords=keywords, contents=contents), mail, max_connections=1)
    assert running.of("push.ended")[0].messages == 5
    sent = [content.partition(b"Subject:")[2] for content in contents]
    assert sent == [
        m.partition(b"Subject:")[2].replace(b"\r\n.", b"\r\n..").replace(b"\r\n...two", b"\r\n...two") + b".\r\n"
        for m in mail
    ]


def test_ours_as_the_site_gets_every_octet_in_one_burst(tmp_path: Path) -> None:
    spool = FakeSpool()
    mail = [b"Subject: %d\r\n\r\n" % n + b"x" * (n * 1000) + b"\r\n" for n in range(300)]

    async def run() -> Running:
        async with site(spool) as server:
            nodes = [node(deliver_to=server.addresses[0], etrn_without_auth=True, max_connections=1)]
            async with hub(tmp_path, nodes) as running:
                await running.fill(mail)
                peer = await running.peer()
                await peer.code("ETRN office.example")
                await running.released()
                await peer.close()
                return running

    running = asyncio.run(run())
    got = [content[content.index(b"Subject:") :] for content in spool.contents]
    assert got == [m.replace(b"\r\n", b"\n") for m in mail]
    assert running.of("push.ended")[0].left == 0


def test_a_big_message_is_streamed_and_arrives_whole(tmp_path: Path) -> None:
    spool = FakeSpool()
    big = b"Subject: big\r\n\r\n" + b"0123456789abcdef\r\n" * 200_000

    async def run() -> None:
        async with site(spool) as server:
            nodes = [node(deliver_to=server.addresses[0], etrn_without_auth=True)]
            async with hub(tmp_path, nodes) as running:
                await running.fill([big, MAIL])
                peer = await running.peer()
                await peer.code("ETRN office.example")
                await running.released()
                await peer.close()
                assert list((tmp_path / "state" / "bodies").iterdir()) == [] or await gone(running)

    async def gone(running: Running) -> bool:
        await running.until(lambda: not list((tmp_path / "state" / "bodies").iterdir()))
        return True

    asyncio.run(run())
    assert sorted(content[content.index(b"Subject:") :] for content in spool.contents) == sorted(
        m.replace(b"\r\n", b"\n") for m in (big, MAIL)
    )


# --- what stays -------------------------------------------------------------------------------------------------------


def test_recipients_fare_each_for_themselves_and_only_who_is_left_is_tried_again(tmp_path: Path) -> None:
    heard: list[str] = []
    tries = {"bob": 0}

    def rcpt(rest: str) -> str:
        if "bob" in rest:
            tries["bob"] += 1
            return "450 4.2.0 later" if tries["bob"] == 1 else "250 ok"
        return "250 ok"

    to = ("alice@office.example", "bob@office.example", "carol@office.example")
    running = released(tmp_path, smtp(rcpt=rcpt, heard=heard), [MAIL], to=to, times=2)
    assert [event.recipients for event in running.of("message.sent")] == [
        ("alice@office.example", "carol@office.example"),
        ("bob@office.example",),
    ]
    (held,) = running.of("message.held")
    assert (held.recipients, held.code) == (("bob@office.example",), 450)
    assert sum("RCPT TO:<alice" in line for line in heard) == 1
    assert running.hub.queue.totals() == (0, 0)


def test_who_is_left_stands_in_the_spool_over_a_restart(tmp_path: Path) -> None:
    to = ("alice@office.example", "bob@office.example")
    released(tmp_path, smtp(rcpt=lambda rest: "450 no" if "bob" in rest else "250 ok"), [MAIL], to=to)
    heard: list[str] = []
    running = released(tmp_path, smtp(heard=heard), [])
    assert [line for line in heard if line.startswith("RCPT")] == ["RCPT TO:<bob@office.example>"]
    assert running.hub.queue.totals() == (0, 0)


@pytest.mark.parametrize("keywords", [(), ("PIPELINING",)])
def test_s61_a_site_that_never_answers_the_final_dot_gets_it_again_and_nobody_hears_of_it(
    tmp_path: Path, keywords: tuple[str, ...]
) -> None:
    contents: list[bytes] = []
    notices: list[bytes] = []
    talk = smtp(keywords=keywords, contents=contents, end=lambda content: "")
    running = released(tmp_path, talk, [MAIL], times=3, undeliverable=Undeliverable.BOUNCE, notices=notices)
    assert len(contents) == 3
    assert [event.left for event in running.of("push.ended")] == [1, 1, 1]
    assert notices == running.of("message.returned") == []


def test_a_5yz_is_held_and_named_where_the_node_has_it_so(tmp_path: Path) -> None:
    running = released(tmp_path, smtp(rcpt=lambda rest: "550 5.1.1 no such user"), [MAIL], times=2)
    assert [(event.code, event.tries) for event in running.of("message.held")] == [(550, 1), (550, 2)]
    assert running.hub.queue.count("office.example") == 1


@pytest.mark.parametrize("notices", [None, []], ids=["no relay", "a relay"])
def test_s61_a_5yz_that_is_looked_into_is_not_sent_again_in_the_same_release(
    tmp_path: Path, notices: list[bytes] | None
) -> None:
    heard: list[str] = []
    talk = smtp(rcpt=lambda rest: "550 5.1.1 no such user", heard=heard)
    mail = [b"Subject: %d\r\n\r\nx\r\n" % n for n in range(30)]
    running = released(
        tmp_path, talk, mail, max_connections=1, undeliverable=Undeliverable.BOUNCE, notices=notices, seconds=1
    )
    assert len([line for line in heard if line.startswith("RCPT")]) == 30
    assert running.hub.queue.count("office.example") == (30 if notices is None else 0)


def test_one_refused_message_does_not_stop_the_others(tmp_path: Path) -> None:
    talk = smtp(keywords=("PIPELINING",), end=lambda c: "554 no" if b"Subject: 2" in c else "250 ok")
    mail = [b"Subject: %d\r\n\r\nx\r\n" % n for n in range(5)]
    running = released(tmp_path, talk, mail, max_connections=1)
    assert (running.of("push.ended")[0].messages, running.of("push.ended")[0].left) == (4, 1)


def test_a_421_ends_the_connection_and_loses_nothing(tmp_path: Path) -> None:
    talk = smtp(end=lambda c: "421 going down" if b"Subject: 1" in c else "250 ok")
    mail = [b"Subject: %d\r\n\r\nx\r\n" % n for n in range(3)]
    running = released(tmp_path, talk, mail, max_connections=1)
    ended = running.of("push.ended")[0]
    assert (ended.messages, ended.left) == (1, 2)
    assert "421" in ended.reason


def test_a_message_above_the_sites_size_is_not_sent_and_counts_as_refused(tmp_path: Path) -> None:
    heard: list[str] = []
    mail = [b"Subject: big\r\n\r\n" + b"x\r\n" * 1000, MAIL]
    running = released(tmp_path, smtp(keywords=("SIZE 2000",), heard=heard), mail, max_connections=1)
    assert sum(line.startswith("MAIL") for line in heard) == 1
    assert running.of("message.held")[0].code == 552


def test_a_site_that_cannot_be_reached_keeps_everything(tmp_path: Path) -> None:
    async def run() -> Any:
        async with hub(tmp_path, [node(deliver_to="127.0.0.1:1", etrn_without_auth=True)]) as running:
            await running.fill([MAIL] * 3)
            peer = await running.peer()
            await peer.code("ETRN office.example")
            ended = await running.released()
            await peer.close()
            return ended

    ended = asyncio.run(run())
    assert (ended.messages, ended.left) == (0, 3)
    assert ended.reason


# --- giving up --------------------------------------------------------------------------------------------------------


def bounced(
    tmp_path: Path,
    *,
    sender: str = "friend@far.example",
    with_relay: bool = True,
    refusal: str = "550 5.1.1 no such user",
) -> tuple[Running, list[bytes]]:
    notices: list[bytes] = []

    async def run() -> Running:
        async with (
            odd_site(smtp(contents=notices)) as relay,
            odd_site(smtp(rcpt=lambda rest: refusal if "bob" in rest else "250 ok")) as address,
        ):
            nodes = [node(deliver_to=address, etrn_without_auth=True, undeliverable=Undeliverable.BOUNCE)]
            async with hub(tmp_path, nodes, relay=relay if with_relay else None) as running:
                await running.fill([MAIL], to=("alice@office.example", "bob@office.example"), sender=sender)
                peer = await running.peer()
                await peer.code("ETRN office.example")
                await running.released()
                done = "message.returned" if with_relay and refusal.startswith("5") else "message.held"
                await running.until(lambda: running.of(done))
                await asyncio.sleep(0.02)
                await peer.close()
                return running

    return asyncio.run(run()), notices


def test_a_5yz_goes_back_to_the_sender_where_the_node_has_it_so(tmp_path: Path) -> None:
    running, notices = bounced(tmp_path)
    assert len(notices) == 1
    assert b"To: <friend@far.example>" in notices[0]
    assert b"Status: 5.1.1" in notices[0]
    assert b"alice@office.example" not in notices[0]
    assert running.of("message.returned")[0].notice
    assert running.hub.queue.totals() == (0, 0)


def test_s61_a_4yz_never_goes_back_to_the_sender(tmp_path: Path) -> None:
    running, notices = bounced(tmp_path, refusal="450 4.2.1 not now")
    assert [(event.code, event.recipients) for event in running.of("message.held")] == [(450, ("bob@office.example",))]
    assert notices == running.of("message.returned") == []
    assert running.hub.queue.count("office.example") == 1


def test_nobody_is_told_of_a_message_from_the_null_sender(tmp_path: Path) -> None:
    running, notices = bounced(tmp_path, sender="")
    assert notices == []
    assert not running.of("message.returned")[0].notice
    assert running.hub.queue.totals() == (0, 0)


def test_without_a_relay_nothing_is_given_up(tmp_path: Path) -> None:
    running, notices = bounced(tmp_path, with_relay=False)
    assert notices == []
    assert running.hub.queue.count("office.example") == 1


@pytest.mark.parametrize("gone", [True, False])
def test_an_ask_that_waits_behind_a_push_goes_by_the_configuration_of_then(tmp_path: Path, gone: bool) -> None:
    """While a push runs its node is taken out, or put elsewhere; the next one goes there, or nowhere."""
    first, second = asyncio.Event(), asyncio.Event()
    may_end = asyncio.Event()
    taken: list[bytes] = []

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert not first.is_set(), "nobody comes here a second time"
        first.set()
        await may_end.wait()

    async def new(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        second.set()
        await smtp(contents=taken)(reader, writer)

    async def run() -> None:
        async with odd_site(slow) as before, odd_site(new) as after, hub(tmp_path, office(before)) as running:
            await running.fill([MAIL])
            for _ in range(2):
                running.hub.front.release("office.example", account=None, peer="p")
            await first.wait()
            other = changed(running.hub.configuration, node=() if gone else tuple(office(after)))
            await running.hub.apply(other)
            may_end.set()
            await running.released(1 if gone else 2)
            await running.until(lambda: not running.hub._pusher.running("office.example"))
            assert (running.hub.queue.count("office.example"), len(taken)) == ((1, 0) if gone else (0, 1))
            assert running.notes == []

    def office(address: str) -> list[Any]:
        return [node(deliver_to=address, etrn_without_auth=True)]

    asyncio.run(run())


def test_an_ask_while_a_push_runs_is_not_forgotten(tmp_path: Path) -> None:
    """What the site puts off in a running push is tried again for an ask that came meanwhile, with nobody asking."""

    async def run() -> Running:
        came, go = asyncio.Event(), asyncio.Event()
        answers = ["450 4.2.0 not yet", "250 ok"]

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            came.set()
            await go.wait()
            await smtp(rcpt=lambda rest: answers.pop(0))(reader, writer)

        async with (
            odd_site(talk) as address,
            hub(tmp_path, [node(deliver_to=address, etrn_without_auth=True)]) as running,
        ):
            await running.fill([MAIL])
            peer = await running.peer()
            await peer.code("ETRN office.example")
            await came.wait()
            await peer.code("ETRN office.example")
            go.set()
            await running.released(2)
            await peer.close()
            return running

    assert [event.messages for event in asyncio.run(run()).of("push.ended")] == [0, 1]
