"""Sessions that nobody wrote, for every fuzzer of the listener: what a client says, what may be answered, how long.

A failure prints its seed, and ``SITEAGENT_FUZZ_SEED=...`` plays that again and nothing else;
``SITEAGENT_FUZZ_SECONDS=900`` plays for a quarter of an hour.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import re
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from siteagent.host import allocator
from siteagent.store.spool import Body, Committed, Envelope, SpoolFailed, SpoolFull
from tests.fakes import FakeSpool

MOST_GROWTH_BYTES = 8 * 1024 * 1024
_MOST_OCTETS = 200_000

_REPLY = re.compile(
    rb"(?:(?P<code>[2-5][0-5][0-9])-[\x20-\x7e]*\r\n(?:(?P=code)-[\x20-\x7e]*\r\n)*(?P=code) [\x20-\x7e]*\r\n"
    rb"|[2-5][0-5][0-9] [\x20-\x7e]*\r\n)"
)
_ENHANCED = re.compile(rb"([0-9]{3})[ -]([245])\.[0-9]{1,3}\.[0-9]{1,3} ")

_ALICE = b"RCPT TO:<alice@office.example>\r\n"
_LINES = (
    b"EHLO isp.example\r\n",
    b"HELO isp.example\r\n",
    b"MAIL FROM:<a@b.example>\r\n",
    b"MAIL FROM:<>\r\n",
    b"MAIL FROM:<a@b.example> SIZE=100 BODY=8BITMIME\r\n",
    b"MAIL FROM:<\xc3\xbc@b.example> SMTPUTF8 AUTH=<>\r\n",
    b"MAIL FROM:<@hop.example,@hip.example:a@b.example> SIZE=99999999999999999999\r\n",
    _ALICE,
    b'RCPT TO:<"al ice\\""@office.example>\r\n',
    b"RCPT TO:<postmaster>\r\n",
    b"RCPT TO:<alice@[192.0.2.1]> NOTIFY=NEVER\r\n",
    b"RCPT TO:<bob@office.example>\r\n",
    b"RCPT TO:<x@elsewhere.example>\r\n",
    b"DATA\r\n",
    b"Subject: a message\r\nReceived: by somebody\r\n\r\n..dots\r\n.dot\r\ntext\r\n.\r\n",
    b"bare\nline\rends\x00\r\n.\n\r\n.\r\n",
    b"\r\n.\r\n",
    b".\r\n",
    b"BDAT 5\r\nab\r\nc",
    b"BDAT 12 LAST\r\nMAIL FROM:<>\r\n",
    b"BDAT 0 LAST\r\n",
    b"BDAT 99999999999\r\n",
    b"BDAT\r\n",
    b"RSET\r\n",
    b"NOOP words\r\n",
    b"VRFY alice\r\n",
    b"EXPN all\r\n",
    b"HELP\r\n",
    b"HELP MAIL\r\n",
    b"STARTTLS\r\n",
    b"AUTH PLAIN AGFsaWNlAHNlY3JldA==\r\n",
    b"ETRN office.example\r\n",
    b"ATRN\r\n",
    b"BURL imap://x LAST\r\n",
    b"XCLIENT NAME=x\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"QUIT\r\n",
    b"\r\n",
)
_SEEDS = (
    (_LINES[0], _LINES[2], _ALICE, _LINES[13], _LINES[14], _LINES[2], _ALICE, _LINES[13], _LINES[15], b"QUIT\r\n"),
    (_LINES[0], _LINES[3], _ALICE, _LINES[18], _LINES[19], _LINES[4], _ALICE, _LINES[20], b"QUIT\r\n"),
    (_LINES[1], _LINES[2], _ALICE, _LINES[10], b"RSET\r\n", _LINES[2], _ALICE, _LINES[13], _LINES[16], b"NOOP\r\n"),
    (_LINES[0], _LINES[5], _LINES[8], _LINES[9], _LINES[11], _LINES[13], _LINES[14] * 40, b"QUIT\r\n"),
)
_OCTETS = (b"\r", b"\n", b"\r\n", b"\x00", b"<", b">", b'"', b"\\", b"@", b":", b" ", b"\t", b"(", b"[", b"\xff", b".")


class FickleSpool(FakeSpool):
    """Keeps nothing, takes its time, and now and then cannot."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__(keep=False)
        self.fickle = True
        self._chance = chance

    def room(self, bytes_wanted: int, *, keep_free: int) -> bool:
        return bytes_wanted < 10**12 and (not self.fickle or self._chance.random() > 0.01)

    async def commit(self, envelope: Envelope, body: Body) -> Committed:
        for _ in range(self._chance.randrange(4)):
            await asyncio.sleep(0)
        fate = self._chance.random()
        if self.fickle and fate < 0.02:
            raise SpoolFull("cannot keep a message", "no room")
        if self.fickle and fate < 0.04:
            raise SpoolFailed("cannot keep a message", "a disk\r\n250 that fails")
        return await super().commit(envelope, body)


def mutated(chance: random.Random) -> bytes:
    """What one client says from the first octet to the last."""
    lines = list(chance.choice(_SEEDS))
    for _ in range(chance.choice((0, 1, 1, 2, 3, 5, 8, 30))):
        at = chance.randrange(len(lines) + 1)
        match chance.randrange(8):
            case 0:
                lines.insert(at, chance.choice(_LINES))
            case 1 if len(lines) > 1:
                del lines[at - 1]
            case 2:
                lines[at:at] = lines[at - 2 : at]
            case 3:
                lines.insert(at, chance.choice(_LINES) * chance.choice((2, 10, 100)))
            case 4:
                lines.insert(at, chance.randbytes(chance.choice((1, 3, 80, 600, 3000))))
            case 5:
                lines.insert(
                    at, chance.choice((b"A", b"MAIL FROM:<", b"NOOP ", b"(")) * chance.choice((100, 700, 3000))
                )
            case _:
                line = lines[at - 1]
                for _ in range(chance.choice((1, 1, 2, 6))):
                    place = chance.randrange(len(line) + 1)
                    end = place + chance.choice((0, 0, 1, 2, len(line)))
                    line = line[:place] + chance.choice((b"", *_OCTETS)) + line[end:]
                lines[at - 1] = line
    return b"".join(lines)[:_MOST_OCTETS]


def split(octets: bytes, chance: random.Random) -> list[bytes]:
    """In segments as a network makes them: one, one for each octet, or anything between."""
    most = chance.choice((1, 2, 7, 60, 1500, len(octets) + 1))
    if most == 1 and len(octets) > 3000:
        most = 60
    parts, start = [], 0
    while start < len(octets):
        end = start + chance.randint(1, most)
        parts.append(octets[start:end])
        start = end
    return parts


def judge(sent: bytes) -> None:
    """Whole, well-formed replies and nothing else (RFC 5321 §4.2, §4.5.3.1.5)."""
    place = 0
    while place < len(sent):
        match = _REPLY.match(sent, place)
        assert match is not None, f"no reply: {sent[place : place + 200]!r}"
        for line in match[0].splitlines(keepends=True):
            assert len(line) <= 512, f"too long: {line!r}"
            enhanced = _ENHANCED.match(line)
            assert enhanced is None or enhanced[1][:1] == enhanced[2], f"two classes: {line!r}"
        place = match.end()


def _resident() -> int:
    gc.collect()
    allocator.give_back()  # what is free, and kept for the next time, is no leak
    if sys.platform != "linux":
        return 0
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Run:
    """What is to be played, and how long. `only`: this seed and no other."""

    seed: int
    seconds: float
    only: bool

    @classmethod
    def asked(cls, request: pytest.FixtureRequest, *, short_seconds: float, long_seconds: float) -> Run:
        given = os.environ.get("SITEAGENT_FUZZ_SEED", "")
        seed = int(given) if given else random.SystemRandom().randrange(10**12)
        usual = long_seconds if request.config.getoption("--long") else short_seconds
        run = cls(seed, float(os.environ.get("SITEAGENT_FUZZ_SECONDS") or usual), bool(given))
        print(f"SITEAGENT_FUZZ_SEED={run.seed}, {run.seconds:.0f} s")
        return run


async def fuzz(
    play: Callable[[int], Awaitable[None]], run: Run, *, again: bool = False, warm_seconds: float = 2.0
) -> tuple[int, int]:
    """(how often `play` was called, octets of memory grown after the first `warm_seconds`).

    `again`: one seed alone is played until the time is over, for what it does is not the same each time.
    """
    began, warm, played = time.monotonic(), 0, 0
    while True:
        seed = run.seed if run.only else run.seed + played
        try:
            await play(seed)
        except BaseException as problem:
            problem.add_note(f"SITEAGENT_FUZZ_SEED={seed} plays this again")
            raise
        played += 1
        passed = time.monotonic() - began
        if not warm and passed > min(warm_seconds, run.seconds / 2):
            warm = _resident()
        if (run.only and not again) or passed > run.seconds:
            return played, max(0, _resident() - warm) if warm else 0
