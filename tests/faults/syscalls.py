"""Ends the agent at a system call, or makes one fail, and looks at what became of the mail.

A kill: SIGKILL in place of the k-th call of its kind after the provider was found, while letters of one shape come in
by ETRN or ATRN. What was answered 250 must be whole in the Maildirs or in the spool, no file may be there in part, and
after the next start and the provider's retry everything must be there once.

An error: one letter comes in while a call fails the first time, the second, or always. It must be answered 4yz and
have left nothing, or 250 and be filed, or wait in the spool; the next letter must be taken and filed; and when the
fault is over, what waits is filed and what was answered 4yz is taken, once each.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.faults import strace, table
from tests.faults.agent import AgentProcess
from tests.faults.mail import BOXES, SHAPES, Letter, Shape, Verdict, judge, letters, look
from tests.faults.provider import METHODS, Provider

CALLS = ("openat", "write", "writev", "pwrite64", "fsync", "fdatasync", "rename", "unlink", "sendto", "close")
MOMENTS = range(1, 13)
MODES = tuple(itertools.product(SHAPES, METHODS))
_TRIES = 4
_LETTERS = 14  # enough for the twelfth of most calls

# --- kills ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Kill:
    call: str
    moment: int
    shape: Shape
    method: str

    def __str__(self) -> str:
        return f"{self.call} {self.moment}, {self.shape}, {self.method}"


@dataclass(frozen=True, slots=True)
class Killed:
    """`reached`: the call came; else the agent was killed when all was done, which says little."""

    reached: bool
    acknowledged: int
    verdict: Verdict


def kills(seed: str, *, calls: Iterable[str] = CALLS, passes: int = 1) -> list[Kill]:
    """Every call and moment, `passes` times, each time with another shape and method."""
    chance = random.Random(seed)
    found = []
    for call in calls:
        for moment in MOMENTS:
            # Only these files are taken away again: those beside the spool, for several mailboxes.
            modes = [(s, m) for s, m in MODES if call != "unlink" or (s.large and s.recipients > 1)]
            found += [Kill(call, moment, *mode) for mode in chance.sample(modes, min(passes, len(modes)))]
    return found


async def kill(place: Path, point: Kill, seed: str) -> Killed:
    sent = letters(seed, _LETTERS, shapes=[point.shape])
    provider = Provider(sent, method=point.method)
    provider.gate.clear()
    async with provider.open():
        agent = AgentProcess(place, provider)
        try:
            reached = await _killed(agent, provider, point, place / "strace.log")
            before = set(provider.acknowledged)
            found = look(agent.mail, {letter.number: letter for letter in sent})
            verdict = Verdict(partial=[f"{point}: before the start: {one}" for one in found.partial])
            verdict.take(await _again(agent, provider, sent), mark=f"{point}: ")
        finally:
            agent.kill()
            shutil.rmtree(place, ignore_errors=True)
    return Killed(reached, len(before), verdict)


async def _killed(agent: AgentProcess, provider: Provider, point: Kill, log: Path) -> bool:
    """Whether it was the call that ended it."""
    await agent.start()
    await provider.visited.wait()
    options = strace.injection(point.call, "signal=SIGKILL", str(point.moment))
    async with strace.attached(agent.pid, log, *options):
        provider.gate.set()
        deadline = time.monotonic() + 15
        while agent.ended is None and time.monotonic() < deadline:
            if len(provider.acknowledged) == _LETTERS and not agent.owed():
                break
            await asyncio.sleep(0.01)
        reached = agent.ended is not None
        agent.kill()
    while provider.at_work:
        await asyncio.sleep(0.01)
    return reached


async def _again(agent: AgentProcess, provider: Provider, sent: Sequence[Letter]) -> Verdict:
    wrong = []
    promised = [letter for letter in sent if letter.number in provider.acknowledged]
    # What is promised must come from what was kept alone: the provider sends nothing yet.
    provider.gate.clear()
    try:
        await agent.start()
        await agent.filed()
        verdict = judge(agent.mail, sent, promised)
        provider.gate.set()
        await agent.until(lambda: len(provider.acknowledged) == len(sent), "every 250")
        await agent.filed()
        if await agent.terminate() != 0:
            wrong.append("it did not end well")
    except AssertionError as error:
        verdict, wrong = Verdict(), [str(error)]
    verdict.take(judge(agent.mail, sent, sent))
    wrong += [*provider.bounced, *(f"{name} was left behind" for name in agent.left_behind())]
    verdict.wrong += wrong
    return verdict


# --- errors -----------------------------------------------------------------------------------------------------------

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


def faults() -> list[Fault]:
    return [Fault(*parts) for parts in itertools.product(SPOTS, ERRORS, TIMES)]


class Bench:
    """One agent that lives through fault after fault."""

    def __init__(self, place: Path, seed: str) -> None:
        self._place, self._seed = place, seed
        self._numbers = itertools.count()
        self._sent: list[Letter] = []
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
            copies = sum(look(self.agent.mail, self._known()).copies[letter.number, box] for box in BOXES)
            owed = self.agent.owed() - {"?"}
            if copies or owed or self.agent.left_behind():
                verdict.wrong.append(f"refused, and kept: {copies} files, {owed}, {self.agent.left_behind()}")
            return "refused"
        ident = _ident(reply)

        def settled() -> bool:
            told = {entry["mailbox"] for entry in self.agent.events("filing.failed") if entry["message"] == ident}
            told |= {entry["mailbox"] for entry in self.agent.events("message.stored") if entry["message"] == ident}
            return told >= set(letter.boxes)

        await self.agent.until(settled, "every mailbox's filing")
        copies = look(self.agent.mail, self._known())
        verdict.partial += copies.partial
        there = [box for box in letter.boxes if copies.copies[letter.number, box]]
        await self.agent.until(lambda: "?" not in self.agent.owed(), "a look into the spool")
        if len(there) < len(letter.boxes) and ident not in self.agent.owed():
            verdict.lost.append("it is neither in every mailbox nor in the spool")
        return "filed" if len(there) == len(letter.boxes) else "waits"

    async def _heal(self, replies: Mapping[Letter, str], verdict: Verdict) -> None:
        """The fault is over: the next letter, then what waits, then what was refused, once more."""
        following = self._letter(Shape(False, 3, False))
        self.provider.deferred.clear()
        for one in (following, *(letter for letter, reply in replies.items() if reply[:1] != "2")):
            if (answer := await self.provider.push(one))[:3] != "250":
                verdict.wrong.append(f"afterwards {one.number} was answered {answer}")
        deadline = time.monotonic() + 20
        while self.agent.owed() and time.monotonic() < deadline:
            self.agent.retry()
            await asyncio.sleep(0.05)
        verdict.take(judge(self.agent.mail, self._sent, [*replies, following]))
        verdict.wrong += self.provider.bounced
        self.provider.bounced.clear()
        await self.agent.until(lambda: not self.agent.left_behind(), "an empty tmp/", seconds=5)
        for box in BOXES:  # seen; the next look is at what comes then
            for path in (self.agent.mail / box / "new").iterdir():
                path.unlink()

    def _known(self) -> dict[int, Letter]:
        return {letter.number: letter for letter in self._sent}


def _ident(reply: str) -> str:
    found = re.search(r"kept as (\S+)", reply)
    assert found is not None, reply
    return found[1]


# --- the tables -------------------------------------------------------------------------------------------------------


def run_kills(place: Path, seed: str, points: Sequence[Kill]) -> list[Killed]:
    results = []
    for number, point in enumerate(points):
        results.append(asyncio.run(kill(place / f"kill{number}", point, f"k{seed}x{number}")))
        if (number + 1) % 20 == 0:
            print(f"{number + 1} kills, {sum(bool(result.verdict) for result in results)} wrong", flush=True)
    return results


def run_errors(place: Path, seed: str, points: Sequence[Fault]) -> list[Failed]:
    return asyncio.run(Bench(place / "errors", f"e{seed}").run(points))


def show_kills(points: Sequence[Kill], results: Sequence[Killed]) -> None:
    rows = []
    for call in dict.fromkeys(point.call for point in points):
        mine = [result for point, result in zip(points, results, strict=True) if point.call == call]
        found = Verdict()
        for result in mine:
            found.take(result.verdict)
        told = sum(result.acknowledged for result in mine)
        figures = [len(mine), sum(result.reached for result in mine), told]
        rows.append([call, *figures, len(found.lost), len(found.partial), len(found.doubled), len(found.wrong)])
    head = ("killed at", "points", "reached", "acknowledged", "lost", "partial", "doubled", "otherwise wrong")
    table.show(head, rows)


def show_errors(points: Sequence[Fault], results: Sequence[Failed]) -> None:
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


def main(arguments: Sequence[str] | None = None) -> int:
    parser = table.parser(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--passes", type=int, default=1, help="how often each call and moment, in other shapes (1)")
    parser.add_argument("--calls", nargs="+", choices=CALLS, default=CALLS, help="of the kills")
    parser.add_argument("--only", choices=("kills", "errors"))
    parser.add_argument("--sample", type=int, default=0, metavar="N", help="so many of each, by chance; 0: all")
    options = parser.parse_args(arguments)
    seed, begun = table.seed_of(options), time.monotonic()
    chance, verdict = random.Random(seed), Verdict()
    deaths = kills(seed, calls=options.calls, passes=options.passes) if options.only != "errors" else []
    failures = faults() if options.only != "kills" else []
    if options.sample:
        deaths, failures = (chance.sample(all_, min(options.sample, len(all_))) for all_ in (deaths, failures))
    with tempfile.TemporaryDirectory(prefix="siteagent-calls-") as place:
        killed = run_kills(Path(place), seed, deaths)
        failed = run_errors(Path(place), seed, failures) if failures else []
    if deaths:
        show_kills(deaths, killed)
    if failures:
        show_errors(failures, failed)
    for result in (*killed, *failed):
        verdict.take(result.verdict)
    return table.end(verdict, begun)


if __name__ == "__main__":
    sys.exit(main())
