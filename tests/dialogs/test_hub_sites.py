"""A hub before sites that go wrong: at each verb, each kind of refusal; whatever they do, nothing is lost.

After the bad push comes a good one: it brings exactly what the site had not answered 250 for.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from siteagent.config.sections import Limits, Undeliverable
from tests.fakes import FakeSpool
from tests.hub import Running, hub, node, site
from tests.unit.test_hub_push import MAIL, odd_site, smtp

VERBS = ("greeting", "EHLO", "MAIL", "RCPT", "DATA", "BDAT", "end")
ANSWERS = {
    "4yz": "451 4.3.0 not now",
    "421": "421 4.3.2 going down",
    "5yz": "554 5.7.1 never",
    "garbage": "what do you want",
    "two": "250 ok\r\n250 and ok again",
    "hang up": "",
    "half a line": "25",
    "8-bit": "550 5.1.1 caf\u00e9 \udce9",
}
KINDS = {"bare": (), "pipelining": ("PIPELINING",), "chunking": ("PIPELINING", "CHUNKING")}


def wicked(verb: str, answer: str, keywords: tuple[str, ...], kept: list[str]):  # type: ignore[no-untyped-def]
    """A site that answers `answer` at `verb`, and well otherwise. An empty answer, or half of one, ends it.

    `kept` grows by one for each content that it answered 250 for, and for its recipients before.
    """
    meant = verb not in ("MAIL", "RCPT") or answer.startswith("250 ")

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def say(at: str, usual: str) -> bool:
            text = answer if at in (verb, "LAST" if verb == "BDAT" else verb) else usual
            whole = text not in ("", "25")
            if meant and at in ("LAST", "end") and text.startswith("250 "):
                kept.append(text)
            writer.write((text + ("\r\n" if whole else "")).encode("utf-8", "surrogateescape"))
            return whole

        if not say("greeting", "220 site.example"):
            return
        lines = ["site.example", *keywords]
        hello = "\r\n".join(f"250{'-' if n < len(lines) - 1 else ' '}{word}" for n, word in enumerate(lines))
        while line := (await reader.readuntil(b"\r\n")).decode():
            word, _, rest = line.strip().partition(" ")
            usual = {"EHLO": hello, "HELO": "250 site", "QUIT": "221 bye", "DATA": "354 go on"}.get(word, "250 ok")
            if word == "BDAT":
                await reader.readexactly(int(rest.split()[0]))
                word = "LAST" if rest.endswith("LAST") else word
            if not say(word, usual):
                return
            if word == "DATA" and (verb != "DATA"):
                while await reader.readuntil(b"\r\n") != b".\r\n":
                    pass
                if not say("end", "250 taken"):
                    return
            if word == "QUIT":
                return

    return talk


async def released(running: Running, count: int):  # type: ignore[no-untyped-def]
    assert running.hub.front.release("office.example", account=None, peer="p").code == 250
    ended = await running.released(count)
    await running.until(lambda: not running.hub._pusher.running("office.example"))
    return ended


def pushed_twice(
    tmp_path: Path, verb: str, answer: str, keywords: tuple[str, ...], *, settled: int = 0, **options: object
) -> Running:
    """Two messages; a push to the wicked site, then one to a good one.

    `settled`: how many refusals are looked into behind the first push; until then those messages are nobody's.
    """

    async def run() -> Running:
        good: list[bytes] = []
        kept: list[str] = []
        sites = [wicked(verb, answer, keywords, kept), smtp(contents=good)]

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await sites[0](reader, writer)

        limits = Limits(command_seconds=5, silence_seconds=5, connect_seconds=5)
        async with odd_site(talk) as address:
            nodes = [node(deliver_to=address, etrn_without_auth=True, max_connections=1, **options)]
            async with hub(tmp_path, nodes, limits=limits) as running:
                await running.fill([MAIL, MAIL])
                ended = await released(running, 1)
                del sites[0]
                await running.until(lambda: len(running.of("message.held")) >= settled)
                left = running.hub.queue.count("office.example")
                assert left == ended.left or settled, "as the push says"
                if left:
                    await released(running, 2)
                assert len(good) == left, "what was not taken comes, and nothing else"
                # In a burst the second of two replies is the next command's, and nobody can tell.
                believed = answer != ANSWERS["two"] or "CHUNKING" not in keywords
                assert not believed or len(kept) == 2 - left, "what the site did not keep is held"
                await running.until(lambda: running.hub.queue.count("office.example") == 0)
                return running

    return asyncio.run(run())


def _hears(kind: str, verb: str) -> bool:
    """Whether a site of that kind ever hears the verb."""
    return verb not in ("BDAT", "DATA", "end") or (verb == "BDAT") == (kind == "chunking")


def _cases() -> Iterator[object]:
    """Each answer at each verb by one kind of site, in turn; by every kind in the long form."""
    for number, verb in enumerate(VERBS):
        kinds = [kind for kind in KINDS if _hears(kind, verb)]
        for turn, what in enumerate(ANSWERS, number):
            for kind in kinds:
                short = kind == kinds[turn % len(kinds)]
                yield pytest.param(verb, what, kind, marks=() if short else pytest.mark.slow)


@pytest.mark.parametrize(("verb", "what", "kind"), list(_cases()))
def test_whatever_a_site_answers_its_mail_is_held_and_comes_with_the_next_push(
    tmp_path: Path, verb: str, what: str, kind: str
) -> None:
    running = pushed_twice(tmp_path, verb, ANSWERS[what], KINDS[kind])
    assert running.notes == [], "nothing of ours failed"
    assert len(running.of("message.sent")) == 2, "each message was taken once"


def test_with_undeliverable_bounce_only_a_5yz_is_given_up_and_nothing_without_a_relay(tmp_path: Path) -> None:
    running = pushed_twice(tmp_path, "RCPT", ANSWERS["5yz"], (), settled=2, undeliverable=Undeliverable.BOUNCE)
    assert running.of("message.returned") == []
    assert len(running.of("message.sent")) == 2


def test_pushes_that_are_broken_off_at_any_moment_leave_every_message_to_be_sent(tmp_path: Path) -> None:
    """A site that asks anew breaks the release before off, wherever it is; large bodies are in files."""
    chance = random.Random(1)
    number = count(1)

    def letters() -> list[bytes]:
        return [b"Subject: %d\r\n\r\n" % next(number) + b"x" * 300_000 + b"\r\n" for _ in range(8)]

    async def run() -> None:
        spool = FakeSpool()
        async with site(spool) as server:
            nodes = [node(deliver_to=server.addresses[0], etrn_without_auth=True, max_connections=2)]
            async with hub(tmp_path, nodes) as running:
                queue, pusher = running.hub.queue, running.hub._pusher
                for _ in range(60):
                    if not queue.count("office.example"):
                        await running.fill(letters())
                    pusher.start(nodes[0])
                    await asyncio.sleep(chance.uniform(0, 0.04))
                    if (release := pusher._running.get("office.example")) is not None and release.task is not None:
                        release.task.cancel()
                    await running.until(lambda: not pusher.running("office.example"))
                for _ in range(3):
                    pusher.start(nodes[0])
                    await running.until(lambda: not pusher.running("office.example"))
                await running.until(lambda: queue.count("office.example") == 0)

    asyncio.run(run())
