"""An error in place of a system call of the agent, and what became of the mail.

One letter comes in while a call fails the first time, the second, or always. It must be answered 4yz and have left
nothing, or 250 and be filed, or wait in the spool. When the fault is over the next letter must be taken and filed, what
waits is filed, and what was answered 4yz is taken when it comes again, once each.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.faults import strace, table
from tests.faults.agent import AgentProcess
from tests.faults.mail import BOXES, Letter, Shape, Verdict, judge, look
from tests.faults.provider import Provider

_TRIES = 4
_LEFT_SECONDS = 5
ERRORS = ("EIO", "ENOSPC", "EDQUOT", "EROFS", "EMFILE", "EACCES", "ENOMEM")
TIMES: Mapping[str, str] = {"first": "1", "second": "2", "always": "1+"}
_SMALL, _LARGE, _LARGE_TO_ALL = Shape(False, 1, False), Shape(True, 1, True), Shape(True, 3, False)
_SMALL_TO_ALL = Shape(False, 3, True)


@dataclass(frozen=True, slots=True)
class Spot:
    """A place where a call may fail: which call, on which paths below the site (none: any), for a letter of a shape."""

    name: str
    call: str
    where: tuple[str, ...]
    shape: Shape


SPOTS = (
    Spot("spool: write its log", "pwrite64", ("state/spool.sqlite-wal",), _SMALL),
    Spot("spool: sync its log", "fdatasync", ("state/spool.sqlite-wal",), _SMALL_TO_ALL),
    Spot("spool: write its log, a large one", "pwrite64", ("state/spool.sqlite-wal",), _LARGE_TO_ALL),
    Spot("spool: sync its log, a large one", "fdatasync", ("state/spool.sqlite-wal",), _LARGE),
    Spot("spool: open a large one's file", "openat", ("state/bodies",), _LARGE_TO_ALL),
    Spot("spool: open it in the Maildir", "openat", ("mail/alice/tmp",), _LARGE),
    Spot("spool: write a large one's file", "writev", (), _LARGE_TO_ALL),
    Spot("spool: sync a large one's file", "fsync", (), _LARGE),
    Spot("spool: sync its directory", "fsync", ("state/bodies",), _LARGE_TO_ALL),
    Spot("spool: sync the Maildir's tmp/", "fsync", ("mail/alice/tmp",), _LARGE),
    Spot("filing: open in tmp/", "openat", ("mail/alice/tmp",), _SMALL),
    Spot("filing: write in tmp/", "writev", (), _SMALL_TO_ALL),
    Spot("filing: sync the file", "fsync", (), _SMALL),
    Spot("filing: rename into new/", "rename", ("mail/alice/new",), _SMALL_TO_ALL),
    Spot("filing: rename a large one", "rename", ("mail/alice/new",), _LARGE),
    Spot("filing: sync new/", "fsync", ("mail/alice/new",), _SMALL),
)


@dataclass(frozen=True, slots=True)
class Fault:
    spot: Spot
    error: str
    times: str

    def __str__(self) -> str:
        return f"{self.spot.name}, {self.error} {self.times}"


@dataclass(frozen=True, slots=True)
class Failed:
    """`struck`: calls that failed. `reply` to the letter; `fate` of it while the fault lasted."""

    struck: int
    reply: str
    fate: str
    verdict: Verdict


def points() -> list[Fault]:
    return [Fault(*parts) for parts in itertools.product(SPOTS, ERRORS, TIMES)]


class Bench:
    """One agent that lives through fault after fault."""

    def __init__(self, place: Path, seed: str) -> None:
        self._place, self._seed = place, seed
        self._numbers = itertools.count()
        self._sent: list[Letter] = []
        self._left: set[str] = set()
        self.provider = Provider()
        self.agent: AgentProcess

    async def run(self, points: Sequence[Fault]) -> list[Failed]:
        async with self.provider.open():
            self.agent = AgentProcess(self._place, self.provider)
            try:
                await self.agent.start()
                await self.agent.until(lambda: self.agent.events("round.ended"), "the first round")
                results = [await self._fail(point) for point in points]
                if await self.agent.terminate() != 0:
                    results[-1].verdict.wrong.append("the agent did not end well")
                return results
            finally:
                self.agent.kill()

    def _letter(self, shape: Shape) -> Letter:
        self._sent.append(Letter(self._seed, next(self._numbers), shape))
        return self._sent[-1]

    async def _fail(self, point: Fault) -> Failed:
        """Letters come in until the fault has struck one of them: the second call may be in the second one."""
        log = self._place / "strace.log"
        paths = [self._place / part for part in point.spot.where]
        options = strace.injection(point.spot.call, f"error={point.error}", TIMES[point.times], paths)
        verdict, fate, reply, struck = Verdict(), "?", "?", 0
        replies: dict[Letter, str] = {}
        try:
            async with strace.attached(self.agent.pid, log, *options):
                while len(replies) < _TRIES and not struck:
                    letter = self._letter(point.spot.shape)
                    replies[letter] = reply = await self.provider.push(letter)
                    fate = await self._fate(letter, reply, verdict)
                    struck = strace.struck(log)
            await self._heal(replies, verdict)
        except AssertionError as error:
            verdict.wrong.append(str(error))
        marked = Verdict()
        marked.take(verdict, mark=f"{point}: ")
        return Failed(struck, reply[:3] or "closed", fate, marked)

    async def _fate(self, letter: Letter, reply: str, verdict: Verdict) -> str:
        """What became of it so far. After a 250 it is in every mailbox, or waits for a reason that was told."""
        if reply[:1] != "2":
            if reply[:1] == "5":
                verdict.wrong.append(f"answered {reply}")
            return "refused"
        ident = _ident(reply)

        def settled() -> bool:
            told = {entry["mailbox"] for entry in self.agent.events("filing.failed") if entry["message"] == ident}
            told |= {entry["mailbox"] for entry in self.agent.events("message.stored") if entry["message"] == ident}
            return told >= set(letter.boxes)

        await self.agent.until(settled, "every mailbox's filing")
        found = look(self.agent.mail, self._known())
        verdict.partial += found.partial
        there = [box for box in letter.boxes if found.copies[letter.number, box]]
        await self.agent.until(lambda: "?" not in self.agent.owed(), "a look into the spool")
        half = [
            name for name in set(self.agent.left_behind()) - self._left if ",S=" in name
        ]  # without it: the spool's own, which waits
        verdict.wrong += [f"{name} is left while its mail waits" for name in half]
        if len(there) < len(letter.boxes) and ident not in self.agent.owed():
            verdict.lost.append("it is neither in every mailbox nor in the spool")
        return "filed" if len(there) == len(letter.boxes) else "waits"

    async def _heal(self, replies: Mapping[Letter, str], verdict: Verdict) -> None:
        """The fault is over: the next letter is taken, what waits is filed, what was refused has left nothing.

        Until the next transaction a refused one may still stand in the spool's log, whose sync failed.
        """
        refused = [letter for letter, reply in replies.items() if reply[:1] != "2"]
        following = self._letter(Shape(False, 3, False))
        self.provider.deferred.clear()
        await self._taken(following, verdict)
        found = look(self.agent.mail, self._known()).copies
        there = [one.number for one in refused if any(found[one.number, box] for box in BOXES)]
        verdict.wrong += [f"{number} was refused, and is there" for number in there]
        left = await self._left_behind()
        verdict.wrong += [f"{name} was left behind" for name in left]
        for letter in refused:
            await self._taken(letter, verdict)
        verdict.take(judge(self.agent.mail, self._sent, [*replies, following]))
        verdict.wrong += self.provider.bounced
        self.provider.bounced.clear()
        for box in BOXES:  # seen; the next look is at what comes then
            for path in (self.agent.mail / box / "new").iterdir():
                path.unlink()

    async def _left_behind(self) -> set[str]:
        """What nobody needs and is there after a while. Said once: it is not the next fault's."""
        deadline = time.monotonic() + _LEFT_SECONDS
        while (left := set(self.agent.left_behind()) - self._left) and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        self._left |= left
        return left

    async def _taken(self, letter: Letter, verdict: Verdict) -> None:
        """Pushed, and filed with all else that waits."""
        if (answer := await self.provider.push(letter))[:3] != "250":
            verdict.wrong.append(f"afterwards {letter.number} was answered {answer}")
        deadline = time.monotonic() + 20
        while self.agent.owed() and time.monotonic() < deadline:
            self.agent.retry()
            await asyncio.sleep(0.05)

    def _known(self) -> dict[int, Letter]:
        return {letter.number: letter for letter in self._sent}


def _ident(reply: str) -> str:
    found = re.search(r"kept as (\S+)", reply)
    assert found is not None, reply
    return found[1]


# --- the loop and its table -------------------------------------------------------------------------------------------


def run(place: Path, seed: str, points: Sequence[Fault]) -> list[Failed]:
    if not points:
        return []
    return asyncio.run(Bench(place / "errors", f"e{seed}").run(points))


def show(points: Sequence[Fault], results: Sequence[Failed]) -> None:
    if not points:
        return
    rows = []
    for name in dict.fromkeys(point.spot.name for point in points):
        mine = [result for point, result in zip(points, results, strict=True) if point.spot.name == name]
        replies = Counter(result.reply for result in mine)
        fates = Counter(result.fate for result in mine)
        said = ", ".join(f"{count} x {reply}" for reply, count in sorted(replies.items()))
        fate = ", ".join(f"{count} {what}" for what, count in sorted(fates.items()))
        wrong = sum(bool(result.verdict) for result in mine)
        rows.append([name, len(mine), sum(result.struck > 0 for result in mine), said, fate, wrong])
    table.show(("fails", "points", "struck", "answered", "the letter then", "wrong"), rows)
