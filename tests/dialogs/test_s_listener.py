"""What the whole Internet can do to port 25, sentence by sentence of the threat model (S1 to S24, S30, S36).

Real sockets on loopback, a fake spool. `Peer` talks raw: what is sent is what stands here.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import socket
import ssl
import struct
import sys
import time
import tracemalloc
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trustme
from siteagent.config.sections import BareNewline
from siteagent.events import Event
from siteagent.inbound.admission import PeerTable
from siteagent.inbound.channel import Channel
from siteagent.inbound.connection import Phase
from siteagent.inbound.listener import Listener
from siteagent.inbound.places import House
from siteagent.inbound.reception import Owner
from siteagent.inbound.smtp import Dialect
from siteagent.store.spool import SpoolFailed, SpoolFull
from siteagent.traffic import carried
from siteagent.wire.reply import Reply
from tests.fakes import FakeSpool, Peer, events_of, listening, reception, route_office, session, settle

STRANGER = Reply(421, "4.7.1", "mail is only taken from our provider")


class Bench:
    """One listener, its spool and its events."""

    def __init__(self, **changes: Any) -> None:
        self.dialect = changes.pop("dialect", Dialect)
        self.spool = FakeSpool(keep=changes.pop("keep", True))
        self.events: list[Event] = []
        self.reception = reception(self.spool, self.events, **changes)
        self.troubles: list[dict[str, Any]] = []
        self.listener: Listener

    def run(self, test: Callable[[Bench], Awaitable[None]]) -> Bench:
        async def main() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda loop, context: self.troubles.append(context))
            async with listening(self.reception, dialect=self.dialect) as self.listener:
                async with asyncio.timeout(60):
                    try:
                        await test(self)
                    except BaseException:
                        for trouble in self.troubles:
                            print(trouble["message"], repr(trouble.get("exception")))
                        raise

        asyncio.run(main())
        return self

    async def peer(self, **options: Any) -> Peer:
        return await Peer.connect(self.listener, **options)

    async def friend(self) -> Peer:
        return await (await self.peer()).hello()

    def told(self, name: str) -> list[Any]:
        return events_of(self.events, name)


def loop_seconds() -> float:
    return asyncio.get_running_loop().time()


# --- S1, S2, S3: who may come, and for whom ---------------------------------------------------------------------------


def test_s01_a_stranger_gets_421_as_its_first_line_and_is_closed() -> None:
    async def talk(bench: Bench) -> None:
        began = loop_seconds()
        peer = await bench.peer()
        peer.send(b"EHLO stranger.example\r\nMAIL FROM:<a@b.example>\r\n")
        assert await peer.rest() == bytes(STRANGER)
        assert loop_seconds() - began < 10

    bench = Bench(admit=lambda peer: STRANGER, expected=lambda peer: ("isp",)).run(talk)
    (refused,) = bench.told("session.refused")
    assert (refused.peer, refused.code, refused.expected) == ("127.0.0.1", 421, ("isp",))
    assert not bench.spool.stored
    assert not bench.told("session.opened")


def test_s01_a_stranger_that_talks_without_listening_still_finds_its_421() -> None:
    def shout(address: str) -> bytes:
        host, _, port = address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=10) as own:
            for _ in range(10):
                own.sendall(b"EHLO stranger.example\r\n" * 500)
                time.sleep(0.02)
            return own.recv(1000)

    async def talk(bench: Bench) -> None:
        # Closed over unread input, the connection would be reset, and the answer thrown away with it.
        assert await asyncio.to_thread(shout, bench.listener.addresses[0]) == bytes(STRANGER)

    Bench(admit=lambda peer: STRANGER).run(talk)


def test_s01_a_stranger_that_never_closes_is_gone_soon() -> None:
    async def talk(bench: Bench) -> None:
        peer = await bench.peer()
        await peer.reply()
        began = loop_seconds()
        while bench.listener._sessions:
            await asyncio.sleep(0.01)
        assert loop_seconds() - began < 10
        await peer.close()

    Bench(admit=lambda peer: STRANGER).run(talk)


def test_s01_a_flood_of_strangers_is_reported_at_most_twenty_times_a_minute() -> None:
    async def talk(bench: Bench) -> None:
        for _ in range(60):
            assert await (await bench.peer()).rest() == bytes(STRANGER)

    assert len(Bench(admit=lambda peer: STRANGER).run(talk).told("session.refused")) == 20


def test_s02_the_address_decides_and_never_the_name_said_in_ehlo() -> None:
    from ipaddress import ip_network

    table = PeerTable({"isp": [ip_network("127.0.0.2/32")]})

    async def talk(bench: Bench) -> None:
        friend = await bench.peer(source="127.0.0.2")
        assert (await friend.reply()).startswith("220 ")
        stranger = await bench.peer(source="127.0.0.3")
        assert (await stranger.reply()).startswith("421 4.7.1")

    Bench(admit=lambda peer: None if table.candidates(peer) else STRANGER).run(talk)


@pytest.mark.parametrize(
    "spelling",
    [
        "x@elsewhere.example",
        "x%elsewhere.example@office.example",
        "@office.example:x@elsewhere.example",
        '"x@elsewhere.example"@office.example',
        "elsewhere.example!x@office.example",
        '"x@elsewhere.example"',
        "x@[127.0.0.1]",
    ],
)
def test_s03_nothing_is_relayed_whatever_the_spelling(spelling: str) -> None:
    async def talk(bench: Bench) -> None:
        peer = await bench.friend()
        await peer.say("MAIL FROM:<a@b.example>")
        assert (await peer.say(f"RCPT TO:<{spelling}>")).startswith("550 5.7.1")
        assert (await peer.say("DATA")).startswith("554")

    bench = Bench().run(talk)
    assert not bench.spool.stored
    assert [event.code for event in bench.told("message.refused")] == [550]


# --- S4 to S7: how many, how long, how often --------------------------------------------------------------------------


def test_s04_above_its_places_a_provider_waits_for_its_greeting_in_order() -> None:
    async def talk(bench: Bench) -> None:
        seated = [await bench.friend() for _ in range(3)]
        first, second = await bench.peer(), await bench.peer()
        await asyncio.sleep(0.05)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(first.reader.readline(), 0.05)
        await seated[0].say("QUIT")
        assert (await first.reply()).startswith("220 ")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(second.reader.readline(), 0.05)
        await seated[1].say("QUIT")
        assert (await second.reply()).startswith("220 ")

    bench = Bench(listener={"max_connections_per_peer": 3}).run(talk)
    assert not bench.told("session.refused")


def test_s04_one_that_gave_up_waiting_is_passed_over() -> None:
    async def talk(bench: Bench) -> None:
        seated = await bench.friend()
        gone, patient = await bench.peer(), await bench.peer()
        await asyncio.sleep(0.02)
        await gone.close()
        await asyncio.sleep(0.02)
        await seated.say("QUIT")
        assert (await patient.reply()).startswith("220 ")

    Bench(listener={"max_connections_per_peer": 1}).run(talk)


def test_s04_one_connection_above_all_is_asked_to_come_again() -> None:
    async def talk(bench: Bench) -> None:
        _held = [await bench.friend() for _ in range(4)]
        assert (await (await bench.peer()).reply()).startswith("421 4.3.2")

    bench = Bench(listener={"max_connections": 4}).run(talk)
    assert bench.told("session.refused")[0].code == 421


def test_s04_strangers_take_no_place() -> None:
    async def talk(bench: Bench) -> None:
        strangers = [await bench.peer(source="127.0.0.9") for _ in range(10)]
        await (await bench.friend()).data()
        for stranger in strangers:
            assert (await stranger.reply()).startswith("421 4.7.1")

    Bench(listener={"max_connections": 1}, admit=lambda peer: STRANGER if peer == "127.0.0.9" else None).run(talk)


def test_s04_who_waited_too_long_gets_421(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("siteagent.inbound.door.WAIT_SECONDS", 0.1)

    async def talk(bench: Bench) -> None:
        _seated = await bench.friend()
        assert (await (await bench.peer()).reply()).startswith("421 4.3.2")

    Bench(listener={"max_connections_per_peer": 1}).run(talk)


def test_s05_no_complete_command_ends_the_session_though_octets_trickle() -> None:
    async def talk(bench: Bench) -> None:
        peer = await bench.friend()

        async def trickle() -> None:
            with contextlib.suppress(ConnectionError):
                while True:
                    peer.send(b"N")
                    await asyncio.sleep(0.05)

        task = asyncio.create_task(trickle())
        assert (await peer.reply()).startswith("421 4.4.2")
        task.cancel()

    bench = Bench(limits={"command_seconds": 0.3}).run(talk)
    (closed,) = bench.told("session.closed")
    assert (closed.clean, closed.reason) == (False, "silent between commands")


def test_s05_a_command_starts_the_clock_anew() -> None:
    async def talk(bench: Bench) -> None:
        peer = await bench.friend()
        for _ in range(6):
            await asyncio.sleep(0.2)
            assert await peer.code("NOOP") == 250

    Bench(limits={"command_seconds": 0.6}).run(talk)


def test_s06_silence_in_a_message_ends_it_and_a_trickle_does_not() -> None:
    async def talk(bench: Bench) -> None:
        peer = await bench.friend()
        await peer.data()
        for _ in range(8):
            peer.send(b"a line of text\r\n")
            await asyncio.sleep(0.1)
        assert await peer.code(".") == 250
        await peer.data()
        assert (await peer.reply()).startswith("421 4.4.2")

    bench = Bench(limits={"command_seconds": 0.4, "silence_seconds": 0.4}).run(talk)
    assert len(bench.spool.stored) == 1


class Hasty(Dialect):
    RATE_WINDOW_SECONDS = 0.5


def test_s06_slower_than_the_floor_over_the_window_ends_it() -> None:
    async def talk(bench: Bench) -> None:
        peer = await bench.friend()
        await peer.data()

        async def trickle() -> None:
            with contextlib.suppress(ConnectionError):
                while True:
                    peer.send(b"x")
                    await asyncio.sleep(0.02)

        task = asyncio.create_task(trickle())
        assert (await peer.reply()).startswith("421 4.4.2 too slow")
        task.cancel()

    Bench(limits={"minimum_bytes_per_second": 1000}, dialect=Hasty).run(talk)


def test_s06_twenty_slow_sessions_of_one_peer_count_together() -> None:
    async def talk(bench: Bench) -> None:
        peers = [await bench.friend() for _ in range(20)]
        for peer in peers:
            await peer.data()

        # Each alone is far below the floor of 1000 B/s, all together are above.
        for _ in range(20):
            for peer in peers:
                peer.send(b"0123456789" * 2)
            await asyncio.sleep(0.1)
        for peer in peers:
            assert await peer.code("\r\n.") == 250

    bench = Bench(limits={"minimum_bytes_per_second": 1000}, dialect=Hasty).run(talk)
    assert len(bench.spool.stored) == 20


class LeapingLoop(asyncio.SelectorEventLoop):
    """Nobody waits: where nothing is to be done, the clock leaps to the next timer."""

    def __init__(self) -> None:
        super().__init__()
        self._leapt = 0.0
        real = self._selector.select  # type: ignore[attr-defined]

        def select(timeout: float | None = None) -> Any:
            self._leapt += timeout or 0.0
            return real(0)

        self._selector.select = select  # type: ignore[attr-defined]

    def time(self) -> float:
        return self._leapt


async def _send_slowly(sessions: int, octets: int, *, seconds: int) -> tuple[FakeSpool, list[bytes]]:
    """Each of `sessions` of one peer, with every limit at its default, gets `octets` of content each second."""
    spool = FakeSpool(keep=False)
    made = reception(spool, [])
    house = House(total=100, each=20)
    opened = []
    for _ in range(sessions):
        protocol, transport = session(made, house=house)
        protocol.data_received(b"EHLO x\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<alice@office.example>\r\nDATA\r\n")
        opened.append((protocol, transport))
    for _ in range(seconds):
        await asyncio.sleep(1)
        for protocol, transport in opened:
            if not transport.closed and not transport.eof:
                protocol.data_received(b"x" * (octets - 2) + b"\r\n")
    for protocol, transport in opened:
        if not transport.closed and not transport.eof:
            protocol.data_received(b".\r\n")
            await settle(protocol)
    return spool, [transport.segments[-1] for _, transport in opened]


@pytest.mark.parametrize(
    ("sessions", "octets", "seconds", "answer"),
    [
        (1, 4200, 2500, b"250 "),  # ten megabytes at 33,600 bit/s: over forty minutes
        (20, 60, 2000, b"250 "),  # twenty sessions that share 9,600 bit/s
        (1, 60, 2000, b"421 4.4.2 too slow"),  # one alone, below 64 octets a second
    ],
)
def test_s06_with_every_limit_at_its_default_a_slow_line_is_no_slow_peer(
    sessions: int, octets: int, seconds: int, answer: bytes
) -> None:
    with asyncio.Runner(loop_factory=LeapingLoop) as runner:
        spool, answers = runner.run(_send_slowly(sessions, octets, seconds=seconds))
    assert all(said.startswith(answer) for said in answers), answers
    assert spool.committing == (sessions if answer == b"250 " else 0)


@pytest.mark.parametrize("verb", ["NOOP", "RSET", "VRFY x"])
def test_s07_a_hundred_idle_verbs_and_then_421(verb: str) -> None:
    async def talk(bench: Bench) -> None:
        peer = await bench.friend()
        for _ in range(100):
            assert await peer.code(verb) in (250, 252)
        assert (await peer.say(verb)).startswith("421 4.7.0")

    Bench().run(talk)


@pytest.mark.parametrize("line", ["BDAT 0", "STARTTLS"])
def test_s07_what_does_nothing_by_another_name_counts_too(line: str) -> None:
    async def talk(bench: Bench) -> None:
        peer = await bench.friend()
        await peer.envelope()
        if line == "STARTTLS":  # which there is none here
            await peer.say("RSET")
        answers = [(await peer.say(line))[:3] for _ in range(101)]
        assert set(answers[:99]) <= {"250", "454"}
        assert answers[-1] in ("421", "")

    Bench().run(talk)


def test_s07_a_message_between_forgives_idle_verbs() -> None:
    async def talk(bench: Bench) -> None:
        peer = await bench.friend()
        for _ in range(3):
            for _ in range(60):
                assert await peer.code("NOOP") == 250
            await peer.data()
            assert await peer.code("hello\r\n.") == 250

    Bench().run(talk)


@pytest.mark.parametrize("wrong", ["FROB", "MAIL FROM:<", "RCPT TO:<alice@office.example>"])
def test_s07_ten_protocol_errors_and_then_421(wrong: str) -> None:
    async def talk(bench: Bench) -> None:
        peer = await bench.friend()
        for _ in range(10):
            assert await peer.code(wrong) // 100 == 5
        assert (await peer.say(wrong)).startswith("421 4.7.0")

    Bench().run(talk)


def test_s07_refusals_by_policy_and_the_data_behind_them_never_count() -> None:
    async def talk(bench: Bench) -> None:
        peer = await bench.friend()
        for _ in range(150):
            peer.send(b"MAIL FROM:<a@b.example>\r\nRCPT TO:<nobody@office.example>\r\nDATA\r\nRSET\r\n")
            codes = [(await peer.reply())[:3] for _ in range(4)]
            assert codes == ["250", "550", "554", "250"]

    Bench().run(talk)


# --- S8 to S13: sizes -------------------------------------------------------------------------------------------------


def test_s08_a_command_line_over_2000_octets_is_500_and_the_session_goes_on() -> None:
    async def talk(bench: Bench) -> None:
        peer = await bench.friend()
        assert (await peer.say("NOOP " + "x" * 2000)).startswith("500 ")
        for _ in range(64):
            peer.send(b"x" * 65536)
            await peer.writer.drain()
        assert all(len(session._inbox) <= 2002 for session in bench.listener._sessions)
        assert (await peer.say("")).startswith("500 ")
        assert await peer.code("NOOP") == 250

    Bench().run(talk)


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="/proc is missing")
def test_s09_data_without_a_line_end_is_refused_in_constant_memory() -> None:
    async def talk(bench: Bench) -> None:
        peer = await bench.friend()
        await peer.data()
        block = b"x" * 1_048_576
        before = 0
        for number in range(1024):  # a gibibyte
            peer.send(block)
            await peer.writer.drain()
            if number == 3:
                before = _resident_bytes()
        grown = _resident_bytes() - before
        assert (await peer.say("\r\n.")).startswith("554 ")
        assert grown < 8 * 1024 * 1024
        assert await peer.code("NOOP") == 250

    assert not Bench(keep=False).run(talk).spool.stored


def test_s10_too_big_by_its_own_word_is_refused_at_mail() -> None:
    async def talk(bench: Bench) -> None:
        peer = await bench.friend()
        assert (await peer.say("MAIL FROM:<a@b.example> SIZE=1001")).startswith("552 5.3.4")
        assert await peer.code("MAIL FROM:<a@b.example> SIZE=1000") == 250

    Bench(listener={"max_message_bytes": 1000}).run(talk)


@pytest.mark.parametrize("over", [0, 1])
def test_s10_a_message_above_the_limit_is_drained_and_answered_once(over: int) -> None:
    async def talk(bench: Bench) -> None:
        peer = await bench.friend()
        await peer.data()
        # Stuffed dots do not count: 1000 octets are what the sender means (RFC 1870 §6.1).
        peer.send(b"..\r\n" * 2 + b"x" * (1000 - 6 - 2 + over) + b"\r\n.\r\n")
        assert (await peer.reply()).startswith("552 5.3.4" if over else "250 ")
        assert await peer.code("NOOP") == 250

    bench = Bench(listener={"max_message_bytes": 1000}).run(talk)
    assert len(bench.spool.stored) == 1 - over


def test_s10_a_message_above_the_threshold_of_its_line_is_deferred() -> None:
    async def talk(bench: Bench) -> None:
        peer = await bench.friend()
        assert (await peer.say("MAIL FROM:<a@b.example> SIZE=101")).startswith("452 4.3.4")
        await peer.data()
        assert (await peer.say("x" * 200 + "\r\n.")).startswith("452 4.3.4")

    bench = Bench(defer_above=lambda provider: 100 if provider == "isp" else 0).run(talk)
    assert [event.bytes for event in bench.told("message.refused")] == [101, 202]
    assert bench.told("session.closed")[0].clean is False


def test_s11_a_mebibyte_of_empty_lines_costs_under_four() -> None:
    async def talk(bench: Bench) -> None:
        peer = await bench.friend()
        await peer.data()
        tracemalloc.start()
        for _ in range(16):
            peer.send(b"\r\n" * 32_768)
            await peer.writer.drain()
        assert await peer.code(".") == 250
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert most < 4 * 1024 * 1024

    Bench(keep=False).run(talk)


def test_s12_a_line_of_100_kb_is_stored_as_it_came() -> None:
    line = b"y" * 100_000

    async def talk(bench: Bench) -> None:
        peer = await bench.friend()
        await peer.data()
        assert await peer.code(line + b"\r\n.") == 250

    assert Bench().run(talk).spool.contents == [line + b"\n"]


def test_s13_one_recipient_too_many_is_452_and_the_others_stay() -> None:
    async def talk(bench: Bench) -> None:
        peer = await bench.friend()
        assert await peer.code("MAIL FROM:<a@b.example>") == 250
        for number in range(100):
            assert await peer.code(f"RCPT TO:<u{number}@office.example>") == 250
        assert (await peer.say("RCPT TO:<bob@office.example>")).startswith("452 4.5.3")
        assert await peer.code("DATA") == 354
        assert await peer.code("hello\r\n.") == 250

    bench = Bench(listener={"max_recipients": 100}).run(talk)
    assert len(bench.spool.stored[0][0].recipients) == 100


def test_s13_refused_recipients_count_and_cannot_fill_the_log() -> None:
    async def talk(bench: Bench) -> None:
        peer = await bench.friend()
        await peer.code("MAIL FROM:<a@b.example>")
        peer.send(b"RCPT TO:<nobody@office.example>\r\n" * 250)
        assert [(await peer.reply())[:3] for _ in range(250)] == ["550"] * 100 + ["452"] * 150

    bench = Bench(listener={"max_recipients": 100}).run(talk)
    assert [event.code for event in bench.told("message.refused")] == [550] * 100 + [452]


def test_s13_a_hundred_thousand_pipelined_recipients_end_in_time() -> None:
    async def talk(bench: Bench) -> None:
        peer = await bench.friend()
        await peer.code("MAIL FROM:<a@b.example>")
        began, before = loop_seconds(), _resident_bytes()

        async def send() -> None:
            for _ in range(1000):
                peer.send(b"RCPT TO:<alice@office.example>\r\n" * 100)
                await peer.writer.drain()

        sending = asyncio.create_task(send())
        codes: dict[str, int] = {}
        for _ in range(100_000):
            code = (await peer.reader.readline())[:3].decode()
            codes[code] = codes.get(code, 0) + 1
        await sending
        assert loop_seconds() - began < 60
        assert _resident_bytes() - before < 8 * 1024 * 1024
        assert codes == {"250": 1000, "452": 99_000}

    assert len(Bench().run(talk).told("message.refused")) == 1


# --- S14 to S17: octets -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("octet", [b"\0", b"\r", b"\n", b"\x7f", b"\x01", b"\x1b", b"\t"])
@pytest.mark.parametrize("command", [b"MAIL FROM:<a%cb@b.example>", b"RCPT TO:<ali%cce@office.example>"])
def test_s14_control_octets_in_an_envelope_are_501(octet: bytes, command: bytes) -> None:
    async def talk(bench: Bench) -> None:
        peer = await bench.friend()
        if command.startswith(b"RCPT"):
            await peer.code("MAIL FROM:<a@b.example>")
        assert (await peer.say(command.replace(b"%c", octet))).startswith("501 ")
        assert await peer.code("NOOP") == 250

    Bench().run(talk)


def test_s14_eight_bit_needs_smtputf8() -> None:
    async def talk(bench: Bench) -> None:
        peer = await bench.friend()
        assert (await peer.say("MAIL FROM:<jörg@b.example>")).startswith("553 ")
        assert (await peer.say("MAIL FROM:<jörg@b.example> SMTPUTF8")).startswith("250 ")
        assert await peer.code("RSET") == 250
        assert await peer.code("MAIL FROM:<a@b.example>") == 250
        assert (await peer.say("RCPT TO:<älice@office.example>")).startswith("553 ")

    Bench().run(talk)


@pytest.mark.parametrize(
    "path",
    [
        b"<",
        b"<a@[>",
        b'<"',
        b"<\xc3",
        b"<\xc3\xa4@x.example>\xc3",
        b'<""@d>',
        b"<a@b.example",
        b"<" + b"(" * 50 + b"x" + b")" * 50 + b"a@b.example>",
        b"<@:a@b.example>",
        b"<a@b.example>SIZE=1",
        b"<a@b.example> SIZE=",
        b"<a@b.example> SIZE=x",
        b"<a@b.example> =",
        b"<" + b"a" * 1500 + b"@b.example>",
        b'<"' + b"\\" * 1000 + b'"@b.example>',
        b"<" + b"@a," * 400 + b"@b:x@c.example>" + b"<",
    ],
)
def test_s15_malformed_paths_are_5yz_at_once_and_no_exception(path: bytes) -> None:
    async def talk(bench: Bench) -> None:
        peer = await bench.friend()
        began = loop_seconds()
        assert (await peer.say(b"MAIL FROM:" + path))[0] == "5"
        assert loop_seconds() - began < 1

    assert not Bench().run(talk).troubles


ENDS = [b".", b"\n.\n", b"\r.\r", b"\n.\r\n", b"\r\n.\n", b"\r\n.\r\r\n", b"\r\r\n.\rx", b"\n\r.\r", b"\r\n.\n\r\n"]


@pytest.mark.parametrize("middle", ENDS)
def test_s16_only_crlf_dot_crlf_ends_data(middle: bytes) -> None:
    async def talk(bench: Bench) -> None:
        peer = await bench.friend()
        await peer.data()
        peer.send(b"before" + middle + b"MAIL FROM:<smuggled@b.example>\r\n.\r\n")
        assert (await peer.reply()).startswith("250 ")
        assert await peer.code("NOOP") == 250

    bench = Bench().run(talk)
    assert len(bench.spool.stored) == 1
    assert b"smuggled" in bench.spool.contents[0]


def test_s17_bare_newlines_are_kept_by_default() -> None:
    async def talk(bench: Bench) -> None:
        peer = await bench.friend()
        await peer.data()
        assert await peer.code(b"one\ntwo\r\n.three\rfour\r\n.") == 250

    assert Bench().run(talk).spool.contents == [b"one\ntwo\nthree\rfour\n"]


def test_s17_bare_newlines_are_550_after_the_dot_where_configured() -> None:
    async def talk(bench: Bench) -> None:
        peer = await bench.friend()
        await peer.data()
        assert (await peer.say(b"one\ntwo\r\n.")).startswith("550 5.5.2")
        await peer.data()
        assert await peer.code(b"one\r\ntwo\r\n.") == 250

    bench = Bench(listener={"bare_newline": BareNewline.REJECT}).run(talk)
    assert bench.spool.contents == [b"one\ntwo\n"]


# --- S18, S19: TLS ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def server_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("mail.office.example").configure_cert(context)
    return context


@pytest.fixture(scope="module")
def client_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


async def secured(peer: Peer, context: ssl.SSLContext) -> None:
    await peer.writer.start_tls(context, server_hostname="mail.office.example")


def test_s18_what_was_said_in_clear_is_forgotten(server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> None:
    async def talk(bench: Bench) -> None:
        peer = await bench.peer()
        await peer.reply()
        assert "250-STARTTLS" in "250-" + (await peer.say("EHLO isp.example")).replace("\n250 ", "\n250-")
        assert (await peer.say("STARTTLS")).startswith("220 ")
        await secured(peer, client_tls)
        assert await peer.code("MAIL FROM:<a@b.example>") == 503
        assert "STARTTLS" not in await peer.say("EHLO isp.example")
        await peer.data()
        assert await peer.code("hello\r\n.") == 250
        assert await peer.code("QUIT") == 221

    bench = Bench(tls=server_tls).run(talk)
    assert b"with ESMTPS id" in bench.spool.stored[0][0].received
    assert bench.told("session.closed")[0].clean is True


def test_s18_octets_behind_starttls_end_the_session(server_tls: ssl.SSLContext) -> None:
    async def talk(bench: Bench) -> None:
        peer = await bench.friend()
        peer.send(b"STARTTLS\r\nMAIL FROM:<injected@b.example>\r\n")
        answer = await peer.rest()
        assert answer.startswith(b"503 ")
        assert answer.count(b"\r\n") == 1

    Bench(tls=server_tls).run(talk)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what TCP carried")
def test_a_session_under_tls_costs_what_tcp_carried_and_not_what_was_said(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    seen: list[int] = []

    async def talk(bench: Bench) -> None:
        peer = await bench.peer()
        await peer.reply()
        await peer.say("EHLO isp.example")
        await peer.say("STARTTLS")
        await secured(peer, client_tls)
        await peer.say("EHLO isp.example")
        await peer.say("NOOP")
        seen.append(carried(peer.writer.transport) or 0)
        await peer.say("QUIT")

    bench = Bench(tls=server_tls).run(talk)
    told = bench.told("session.closed")[0].wire_bytes
    assert seen[0] > 1500, "a handshake is more than that"
    assert abs(told - seen[0]) < 300, "QUIT, its answer and the goodbye of TLS"


def test_s19_starttls_inside_tls_inside_mail_and_with_arguments(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async def talk(bench: Bench) -> None:
        peer = await bench.friend()
        assert await peer.code("STARTTLS now") == 501
        assert await peer.code("MAIL FROM:<a@b.example>") == 250
        assert await peer.code("STARTTLS") == 503
        assert await peer.code("RSET") == 250
        assert await peer.code("STARTTLS") == 220
        await secured(peer, client_tls)
        await peer.say("EHLO isp.example")
        assert await peer.code("STARTTLS") == 503

    Bench(tls=server_tls).run(talk)


def test_s22_an_end_right_behind_the_handshake_is_no_half_close(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    async def talk(bench: Bench) -> None:
        peer = await bench.friend()
        assert await peer.code("STARTTLS") == 220
        hello = ssl.MemoryBIO(), ssl.MemoryBIO()
        shaking = client_tls.wrap_bio(*hello, server_hostname="mail.office.example")
        with contextlib.suppress(ssl.SSLWantReadError):
            shaking.do_handshake()
        peer.send(hello[1].read())
        while True:
            hello[0].write(await peer.reader.read(65536))
            try:
                shaking.do_handshake()
                break
            except ssl.SSLWantReadError:
                continue
        with contextlib.suppress(ssl.SSLWantReadError):
            shaking.unwrap()
        peer.send(hello[1].read())  # the end of the handshake and close_notify, in one segment
        await peer.rest()

    Bench(tls=server_tls).run(talk)
    assert [record.message for record in caplog.records] == []


def test_s19_a_failed_handshake_ends_that_session_alone(server_tls: ssl.SSLContext) -> None:
    async def talk(bench: Bench) -> None:
        peer = await bench.friend()
        assert await peer.code("STARTTLS") == 220
        peer.send(b"this is no ClientHello\r\n" * 10)
        await peer.rest()
        assert await (await bench.friend()).code("NOOP") == 250

    bench = Bench(tls=server_tls).run(talk)
    assert "TLS handshake" in bench.told("session.closed")[0].reason


def test_s19_mail_in_clear_is_refused_where_tls_is_required(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async def talk(bench: Bench) -> None:
        peer = await bench.friend()
        assert (await peer.say("MAIL FROM:<a@b.example>")).startswith("530 5.7.0")
        await peer.say("STARTTLS")
        await secured(peer, client_tls)
        await peer.say("EHLO isp.example")
        await peer.envelope()

    Bench(tls=server_tls, listener={"require_tls": True}).run(talk)


# --- S20 to S24: rubbish, haste, our own faults -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "rubbish",
    [
        b"GET / HTTP/1.1\r\nHost: office.example\r\nAccept: */*\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),
        os.urandom(65536),
        b"A" * 65536,
        (b"A" * 3000 + b"\r\n") * 20,
    ],
    ids=["http", "tls", "random", "letters", "long lines"],
)
def test_s20_what_is_not_smtp_is_closed(rubbish: bytes) -> None:
    async def talk(bench: Bench) -> None:
        peer = await bench.peer()
        await peer.reply()
        peer.send(rubbish)
        answers = (await peer.rest()).decode().splitlines()
        assert 1 <= len(answers) <= 3
        assert answers[-1].startswith("421 4.7.0")

    assert not Bench().run(talk).spool.stored


def test_s21_a_provider_that_talks_before_the_greeting_is_tolerated() -> None:
    async def talk(bench: Bench) -> None:
        peer = await bench.peer()
        peer.send(b"EHLO isp.example\r\n")
        assert (await peer.reply()).startswith("220 ")
        assert (await peer.reply()).startswith("250-")

    Bench().run(talk)


def test_s21_anybody_else_that_talks_before_the_greeting_is_554() -> None:
    async def talk(bench: Bench) -> None:
        # It waits for a place, and talks while it waits.
        seated = await bench.peer()
        await seated.reply()
        hasty = await bench.peer()
        hasty.send(b"EHLO spam.example\r\n")
        await asyncio.sleep(0.05)
        await seated.say("QUIT")
        assert (await hasty.reply()).startswith("554 ")

    Bench(provider=None, listener={"max_connections_per_peer": 1}).run(talk)


def test_s22_every_complete_message_behind_a_half_close_is_stored_and_answered() -> None:
    message = b"MAIL FROM:<a@b.example>\r\nRCPT TO:<alice@office.example>\r\nBDAT 7 LAST\r\nhello\r\n"

    async def talk(bench: Bench) -> None:
        peer = await bench.friend()
        peer.send(message * 5 + message[:-3])
        peer.writer.write_eof()
        answers = (await peer.rest()).decode().splitlines()
        assert len([line for line in answers if "kept as" in line]) == 5

    bench = Bench().run(talk)
    assert bench.spool.contents == [b"hello\n"] * 5
    (closed,) = bench.told("session.closed")
    assert (closed.messages, closed.clean, closed.reason) == (5, False, "hung up in a message")


def test_s22_quit_behind_the_dot_is_answered_after_the_message() -> None:
    async def talk(bench: Bench) -> None:
        peer = await bench.friend()
        await peer.data()
        peer.send(b"hello\r\n.\r\nQUIT\r\n")
        answers = (await peer.rest()).decode().splitlines()
        assert [line[:3] for line in answers] == ["250", "221"]

    bench = Bench().run(talk)
    assert bench.told("session.closed")[0].clean is True


@pytest.mark.parametrize("where", ["write_error", "finish_error", "commit_error"])
def test_s23_an_exception_of_ours_is_451_with_a_fixed_text_and_the_session_goes_on(where: str) -> None:
    async def talk(bench: Bench) -> None:
        peer = await bench.friend()
        setattr(bench.spool, where, RuntimeError("/var/lib/secret\r\n250 forged"))
        await peer.data()
        assert (await peer.say("hello\r\n.")) == "451 4.3.0 something went wrong here, try again later"
        setattr(bench.spool, where, None)
        await peer.data()
        assert await peer.code("hello\r\n.") == 250

    bench = Bench().run(talk)
    assert len(bench.spool.stored) == 1
    assert len(bench.troubles) == 1
    assert bench.told("session.closed")[0].clean is False


def test_s23_a_routing_that_fails_is_451() -> None:
    failing = [True]

    def route(address: str) -> str | Reply:
        if failing[0]:
            raise KeyError("/etc/siteagent")
        return route_office(address)

    async def talk(bench: Bench) -> None:
        peer = await bench.friend()
        await peer.code("MAIL FROM:<a@b.example>")
        assert (await peer.say("RCPT TO:<alice@office.example>")).startswith("451 4.3.0 ")
        failing[0] = False
        await peer.envelope()

    Bench(route=route).run(talk)


@pytest.mark.parametrize(
    ("error", "answer"),
    [(SpoolFull("cannot keep", "/x is full"), "452 4.3.1"), (SpoolFailed("cannot keep", "/x: I/O error"), "451 4.3.0")],
)
def test_s23_a_spool_that_cannot_keep_it_is_4yz(error: Exception, answer: str) -> None:
    async def talk(bench: Bench) -> None:
        bench.spool.commit_error = error
        peer = await bench.friend()
        await peer.data()
        assert (await peer.say("hello\r\n.")).startswith(answer)

    bench = Bench().run(talk)
    assert bench.told("message.refused")[0].code == int(answer[:3])
    assert not bench.told("message.accepted")


def test_s23_who_collects_events_cannot_hurt_a_session() -> None:
    def emit(event: Event) -> None:
        raise OSError("no journal")

    async def talk(bench: Bench) -> None:
        peer = await bench.friend()
        await peer.data()
        assert await peer.code("hello\r\n.") == 250

    assert len(Bench(emit=emit).run(talk).spool.stored) == 1


@pytest.mark.parametrize(("hops", "answer"), [(100, "250 "), (101, "554 5.4.6")])
def test_s24_more_than_a_hundred_received_fields_are_a_loop(hops: int, answer: str) -> None:
    async def talk(bench: Bench) -> None:
        peer = await bench.friend()
        await peer.data()
        body = b"\r\nReceived: quoted\r\n" * 10
        assert (await peer.say(b"RECEIVED: from x\r\n\tby y\r\n" * hops + body + b".")).startswith(answer)

    Bench().run(talk)


# --- S29, S30, S36: what the system does ------------------------------------------------------------------------------


def test_s29_no_room_is_said_before_the_message_travels() -> None:
    async def talk(bench: Bench) -> None:
        bench.spool.has_room = False
        peer = await bench.friend()
        assert (await peer.say("MAIL FROM:<a@b.example>")).startswith("452 4.3.1")
        bench.spool.has_room = True
        await peer.envelope()
        bench.spool.has_room = False
        assert (await peer.say("DATA")).startswith("452 4.3.1")
        bench.spool.has_room = True
        await peer.data()
        assert await peer.code("hello\r\n.") == 250

    Bench().run(talk)


@pytest.mark.parametrize("chunked", [False, True])
def test_s29_room_that_runs_out_while_a_message_travels_is_452_and_the_rest_is_read_over(chunked: bool) -> None:
    block = b"x" * 998 + b"\r\n"

    async def talk(bench: Bench) -> None:
        peer = await bench.friend()
        await peer.envelope()
        if chunked:
            peer.send(b"BDAT %d LAST\r\n" % (2000 * len(block)))
        else:
            assert await peer.code("DATA") == 354
        for number in range(2000):
            peer.send(block)
            await peer.writer.drain()
            if number == 1000:
                while bench.listener.sessions()[0].bytes < 100_000:
                    await asyncio.sleep(0.01)
                bench.spool.has_room = False
        if not chunked:
            peer.send(b".\r\n")
        assert (await peer.reply()).startswith("452 4.3.1")
        bench.spool.has_room = True
        await peer.data()
        assert await peer.code("hello\r\n.") == 250

    bench = Bench().run(talk)
    assert bench.spool.contents == [b"hello\n"]
    assert bench.spool.writers[0].discarded


@pytest.mark.skipif(os.name != "posix", reason="descriptor limits are POSIX")
def test_s30_out_of_descriptors_those_who_wait_are_served_when_there_are_some() -> None:
    async def talk(bench: Bench) -> None:
        peer = await bench.friend()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        patient = await bench.peer()  # needs a descriptor of its own, before the limit
        await patient.reply()
        highest = max(int(name) for name in os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 8, hard))
        try:
            hoard = []
            with contextlib.suppress(OSError):
                while True:
                    hoard.append(os.dup(0))
            os.close(hoard.pop())
            late = asyncio.create_task(bench.peer())
            await asyncio.sleep(0.1)
            began = os.times()
            await peer.data()
            assert await peer.code("hello\r\n.") == 250
            await asyncio.sleep(0.3)
            ended = os.times()
            assert ended.user - began.user < 0.2, "a busy loop"
            for handle in hoard:
                os.close(handle)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert (await (await late).reply()).startswith("220 ")

    bench = Bench().run(talk)
    others = [trouble for trouble in bench.troubles if getattr(trouble.get("exception"), "errno", 0) != errno.EMFILE]
    assert not others, others[0]
    assert 1 <= len(bench.troubles) <= 3, "told once a second, and not for each place of the backlog"


@pytest.mark.parametrize("how", ["hangs up", "resets"])
def test_s36_a_peer_that_drops_while_the_commit_runs_loses_nothing(how: str) -> None:
    async def talk(bench: Bench) -> None:
        bench.spool.gate = asyncio.Event()
        peer = await bench.friend()
        await peer.data()
        peer.send(b"hello\r\n.\r\n")
        while not bench.spool.committing:
            await asyncio.sleep(0.01)
        if how == "resets":
            own = peer.writer.get_extra_info("socket")
            own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        (session,) = bench.listener._sessions
        peer.writer.transport.abort()
        while not (session._eof or session.phase is Phase.GONE):
            await asyncio.sleep(0.01)
        assert (session.phase is Phase.GONE) == (how == "resets")
        assert not bench.told("session.closed")
        bench.spool.gate.set()
        while not bench.told("session.closed"):
            await asyncio.sleep(0.01)

    bench = Bench().run(talk)
    assert bench.spool.contents == [b"hello\n"]
    assert len(bench.told("message.accepted")) == 1
    (closed,) = bench.told("session.closed")
    assert (closed.messages, closed.clean) == (1, False)


def test_s36_a_peer_that_drops_inside_the_message_leaves_nothing() -> None:
    async def talk(bench: Bench) -> None:
        peer = await bench.friend()
        await peer.data()
        peer.send(b"hello\r\n.\r")
        await asyncio.sleep(0.05)
        peer.writer.transport.abort()
        while not bench.told("session.closed"):
            await asyncio.sleep(0.01)

    bench = Bench().run(talk)
    assert not bench.spool.stored
    assert [writer.discarded for writer in bench.spool.writers] == [True]
    assert bench.told("session.closed")[0].clean is False


# --- S44, S64: turned round, and stopped ------------------------------------------------------------------------------


def test_s44_a_reversed_session_offers_neither_tls_nor_auth_nor_etrn(server_tls: ssl.SSLContext) -> None:
    async def talk(bench: Bench) -> None:
        loop = asyncio.get_running_loop()
        ours: list[Channel] = []
        provider: asyncio.Future[Peer] = loop.create_future()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            provider.set_result(Peer(reader, writer))

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        transport, _ = await loop.create_connection(asyncio.Protocol, "127.0.0.1", port)
        turned = Dialect(bench.reception, reversed_session=True, owner=Owner(provider="isp", round="r1"))
        turned.on_end = ours.append
        transport.set_protocol(turned)
        turned.connection_made(transport)
        peer = await provider
        assert (await peer.reply()).startswith("220 ")
        offered = await peer.say("EHLO isp.example")
        assert not any(word in offered for word in ("STARTTLS", "AUTH", "ETRN", "ATRN"))
        for verb in ("STARTTLS", "AUTH PLAIN", "ETRN x.example", "ATRN x.example"):
            assert await peer.code(verb) // 100 == 5
        await peer.data()
        assert await peer.code("hello\r\n.") == 250
        assert await peer.code("QUIT") == 221
        while not ours:
            await asyncio.sleep(0.01)
        server.close()

    bench = Bench(tls=server_tls, admit=lambda peer: STRANGER, listener={"require_tls": True}).run(talk)
    (closed,) = bench.told("session.closed")
    assert (closed.provider, closed.round, closed.messages, closed.clean) == ("isp", "r1", 1, True)


def test_s64_a_stop_finishes_running_data_and_sends_the_others_421() -> None:
    async def talk(bench: Bench) -> None:
        busy, idle = await bench.friend(), await bench.friend()
        await busy.data()
        closing = asyncio.create_task(bench.listener.close(seconds=5))
        assert (await idle.reply()).startswith("421 4.3.2")
        with pytest.raises(OSError):
            await bench.peer()
        busy.send(b"hello\r\n.\r\n")
        assert (await busy.reply()).startswith("250 ")
        assert (await busy.reply()).startswith("421 4.3.2")
        await busy.rest()
        await closing

    assert Bench().run(lambda bench: _and_reopen(bench, talk)).spool.contents == [b"hello\n"]


async def _and_reopen(bench: Bench, talk: Callable[[Bench], Awaitable[None]]) -> None:
    """`peer` needs the old address after the close."""
    listener = bench.listener
    address = listener.addresses

    class Remembered:
        addresses = address
        close = listener.close

    bench.listener = Remembered()  # type: ignore[assignment]
    await talk(bench)


def test_s64_a_message_that_does_not_end_in_time_gets_421() -> None:
    async def talk(bench: Bench) -> None:
        peer = await bench.friend()
        await peer.data()
        await bench.listener.close(seconds=0.1)
        assert (await peer.reply()).startswith("421 4.3.2")

    assert not Bench().run(talk).spool.stored
