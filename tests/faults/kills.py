"""SIGKILL in place of a system call of the agent, and what became of the mail.

The call is the k-th of its kind, counted from when the provider was found, from when the first message begins, or in
the start after a kill that left work (there on the spool and the Maildirs alone, where the call has a path). Letters of
one shape come in by ETRN or ATRN. No file may be there in part, and at every other moment a reader takes what is there.
After the next start what was promised is filed from what was kept alone; and after the provider's retry everything is
there once.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tests.faults import strace, table
from tests.faults.agent import AgentProcess
from tests.faults.mail import SHAPES, Letter, Shape, Verdict, judge, letters, look, read
from tests.faults.provider import METHODS, Provider

CALLS = ("openat", "write", "writev", "pwrite64", "fsync", "fdatasync", "rename", "unlink", "sendto", "close")
MOMENTS = range(1, 13)
ORIGINS = ("asking", "message", "start")
MODES = tuple(itertools.product(SHAPES, METHODS, ORIGINS))
_MOMENTS_OF_A_START = 4
_WITHOUT_PATH = ("write", "writev", "sendto")
_LETTERS = 14  # enough for the twelfth of most calls


@dataclass(frozen=True, slots=True)
class Kill:
    call: str
    moment: int
    shape: Shape
    method: str
    origin: str

    def __str__(self) -> str:
        return f"{self.call} {self.moment} from the {self.origin}, {self.shape}, {self.method}"


@dataclass(frozen=True, slots=True)
class Killed:
    """`reached`: the call came; else the agent was killed when all was done, which says little."""

    reached: bool
    acknowledged: int
    verdict: Verdict


def points(seed: str, *, calls: Iterable[str] = CALLS, passes: int = 1) -> list[Kill]:
    """Every call and moment, `passes` times, each time with another shape and method."""
    chance = random.Random(seed)
    found = []
    for call, moment in itertools.product(calls, MOMENTS):
        modes = [mode for mode in MODES if _makes_sense(call, moment, *mode)]
        found += [Kill(call, moment, *mode) for mode in chance.sample(modes, min(passes, len(modes)))]
    return found


def _makes_sense(call: str, moment: int, shape: Shape, method: str, origin: str) -> bool:
    """Only a large one for several mailboxes has a file that is taken away again, and a start is short."""
    beside = shape.large and shape.recipients > 1
    return (call != "unlink" or beside) and (origin != "start" or moment <= _MOMENTS_OF_A_START)


async def one(place: Path, point: Kill, seed: str) -> Killed:
    sent = letters(seed, _LETTERS, shapes=[point.shape])
    provider = Provider(sent, method=point.method)
    async with provider.open():
        agent = AgentProcess(place, provider)
        try:
            reached = await _killed(agent, provider, point, place / "strace.log")
            before = set(provider.acknowledged)
            found = look(agent.mail, {letter.number: letter for letter in sent})
            verdict = Verdict(partial=[f"{point}: before the start: {one}" for one in found.partial])
            if point.moment % 2:
                read(agent.mail)
            verdict.take(await _again(agent, provider, sent), mark=f"{point}: ")
        finally:
            agent.kill()
            shutil.rmtree(place, ignore_errors=True)
    return Killed(reached, len(before), verdict)


async def _killed(agent: AgentProcess, provider: Provider, point: Kill, log: Path) -> bool:
    """Whether it was the call that ended it."""
    if point.origin == "start":
        await _killed(agent, provider, replace(point, call="rename", moment=3, origin="message"), log)
        return await _killed_in_its_start(agent, provider, point, log)
    asking = point.origin == "asking"
    closed, reached = (provider.gate, provider.visited) if asking else (provider.hatch, provider.arrived)
    closed.clear()
    await agent.start()
    await agent.until(reached.is_set, f"the {point.origin}")
    options = strace.injection(point.call, "signal=SIGKILL", str(point.moment))
    async with strace.attached(agent.pid, log, *options):
        closed.set()
        await _end(agent, lambda: len(provider.acknowledged) == _LETTERS and not agent.owed())
        struck = _struck(agent)
        agent.kill()
    while provider.at_work:
        await asyncio.sleep(0.01)
    return struck


async def _killed_in_its_start(agent: AgentProcess, provider: Provider, point: Kill, log: Path) -> bool:
    provider.gate.clear()
    paths = [] if point.call in _WITHOUT_PATH else agent.places
    options = strace.injection(point.call, "signal=SIGKILL", str(point.moment), paths)
    agent.launch(["strace", "-f", "-o", str(log), *options])
    await _end(agent, lambda: not agent.owed())
    struck = _struck(agent)
    agent.kill()
    return struck


def _struck(agent: AgentProcess) -> bool:
    """Whether it was killed, while nobody but strace did so."""
    assert agent.ended in (None, -signal.SIGKILL), f"it ended by itself, with {agent.ended}\n{agent.log_end()}"
    return agent.ended is not None


async def _end(agent: AgentProcess, over: Callable[[], bool]) -> None:
    """Until it has ended, or all is `over` and it will not."""
    deadline = time.monotonic() + 15
    while agent.ended is None and time.monotonic() < deadline and not over():
        await asyncio.sleep(0.01)


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


# --- the loop and its table -------------------------------------------------------------------------------------------


def run(place: Path, seed: str, points: Sequence[Kill]) -> list[Killed]:
    """One after the other, until ctrl-c."""
    results: list[Killed] = []
    for number, point in enumerate(points):
        try:
            results.append(asyncio.run(one(place / f"kill{number}", point, f"k{seed}x{number}")))
        except KeyboardInterrupt:
            print("ended early", flush=True)
            break
        if (number + 1) % 20 == 0:
            print(f"{number + 1} kills, {sum(bool(result.verdict) for result in results)} wrong", flush=True)
    return results


def show(points: Sequence[Kill], results: Sequence[Killed]) -> None:
    if not points:
        return
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
