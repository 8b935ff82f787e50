"""Cuts the power under the agent and under the hub, and counts what they had acknowledged and have lost.

Every cut has fresh file systems. The agent's state and its Maildirs are on one in every other cut, on one each in the
others; there the mail comes in bursts, so that no later sync covers for one that is missing. After the cut no Maildir
may hold a file that is not whole; after the next start, and a provider that sends again what it heard no 250 for,
everything must be there once.

The controls are the same loop on a program whose syncs are taken away from outside: what they lose says that the loop
would see it.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults import hub, table
from tests.faults.agent import AgentProcess
from tests.faults.disk import Ext4, disks
from tests.faults.lies import LIES
from tests.faults.mail import SHAPES, Letter, Verdict, judge, letters, look
from tests.faults.provider import Provider

_LETTERS = 1500  # more than come in before any cut
_CONNECTIONS = 5
_BURST, _QUIET_SECONDS = 24, 0.6
# Most are small, as in life.
_SHAPES = (*(3 * [shape for shape in SHAPES if not shape.large]), *(shape for shape in SHAPES if shape.large))


class Bursts:
    """Rests behind every so many messages, all connections together."""

    def __init__(self) -> None:
        self._sent = 0
        self._until = 0.0

    def __call__(self) -> float:
        self._sent += 1
        if self._sent % _BURST == 0:
            self._until = time.monotonic() + _QUIET_SECONDS
        return max(0.0, self._until - time.monotonic())

    @property
    def resting(self) -> bool:
        return time.monotonic() < self._until


async def cut_agent(place: Path, seed: str, *, apart: bool, lies: Sequence[str] = ()) -> tuple[int, Verdict]:
    """One cut; how many messages were acknowledged before it, and what became of them. `apart`: on two disks."""
    place.mkdir()
    try:
        with disks(place, 2 if apart else 1) as made:
            sent = letters(seed, _LETTERS, shapes=_SHAPES)
            provider, bursts = Provider(sent, connections=_CONNECTIONS), Bursts() if apart else None
            provider.pace = bursts or float
            async with provider.open():
                state, mail = made[0].path / "state", made[-1].path
                agent = AgentProcess(place / "site", provider, state=state, mail=mail, lies=lies)
                try:
                    promised = await _cut_under_load(agent, provider, made, bursts, random.Random(seed))
                    for disk in made:
                        disk.restore()
                    return len(promised), await _recovered(agent, provider, sent, promised)
                finally:
                    agent.kill()
    finally:
        shutil.rmtree(place, ignore_errors=True)


async def _cut_under_load(
    agent: AgentProcess, provider: Provider, made: Sequence[Ext4], bursts: Bursts | None, chance: random.Random
) -> set[int]:
    """At any moment; with bursts mostly while they rest, when the spool is done with what the Maildirs have."""
    await agent.start()
    await agent.until(lambda: provider.acknowledged, "a first 250")
    if bursts is not None and chance.random() < 0.75:
        await agent.until(lambda: bursts.resting, "a rest")
        await asyncio.sleep(chance.uniform(0.05, 0.55))
    else:
        await asyncio.sleep(chance.uniform(0.05, 0.9))
    # What was said while the cut ran left no house. It may also be wrong: in that instant ext4 lets some fdatasync
    # succeed whose data is gone (seen with a bare loop of write and fdatasync, in 8 of 240 cuts).
    promised = set(provider.acknowledged)
    for disk in reversed(made):
        disk.cut()
    agent.kill()
    while provider.at_work:
        await asyncio.sleep(0.01)
    return promised


async def _recovered(agent: AgentProcess, provider: Provider, sent: Sequence[Letter], promised: set[int]) -> Verdict:
    by_number = {letter.number: letter for letter in sent}
    verdict = Verdict(partial=[f"before the start: {one}" for one in look(agent.mail, by_number).partial])
    unheard = set(provider.acknowledged) - promised
    unheard |= {letter.number for letter, _ in provider.deferred}
    unheard |= {letter.number for letter in list(provider.waiting)[:3]}
    provider.waiting.clear()
    provider.deferred = [(by_number[number], "") for number in sorted(unheard)]
    provider.acknowledged = {number: reply for number, reply in provider.acknowledged.items() if number in promised}
    due = promised | unheard
    try:
        await agent.start()
        await agent.until(lambda: due <= set(provider.acknowledged), "every 250")
        await agent.filed()
        if await agent.terminate() != 0:
            verdict.wrong.append("the agent did not end well")
    except AssertionError as error:
        verdict.wrong.append(str(error))
    verdict.take(judge(agent.mail, sent, [by_number[number] for number in due]))
    verdict.wrong += [*provider.bounced, *(f"{name} was left behind" for name in agent.left_behind())]
    return verdict


# --- the loop and its table -------------------------------------------------------------------------------------------

Loop = Callable[[Path, str, int, Sequence[str]], Coroutine[Any, Any, tuple[int, Verdict]]]


async def _agent(place: Path, seed: str, number: int, lies: Sequence[str]) -> tuple[int, Verdict]:
    return await cut_agent(place, seed, apart=bool(lies) or number % 2 == 1, lies=lies)


async def _hub(place: Path, seed: str, number: int, lies: Sequence[str]) -> tuple[int, Verdict]:
    return await hub.power_cut(place, seed, lies=lies)


PROGRAMS: dict[str, Loop] = {"agent": _agent, "hub": _hub}
# Any sync on the same file system covers for one of a directory, and the hub has all it keeps on one: not to be seen.
CONTROLS = [*(("agent", lie) for lie in LIES), ("hub", "spool"), ("hub", "file")]


@dataclass
class Row:
    """What so many cuts of one program came to."""

    program: str
    lie: str = ""
    cuts: int = 0
    red: int = 0
    acknowledged: int = 0
    verdict: Verdict = field(default_factory=Verdict)

    def cells(self) -> list[object]:
        found = self.verdict
        figures = [self.cuts, self.acknowledged, self.red, len(found.lost), len(found.partial), len(found.doubled)]
        return [self.program, LIES[self.lie] if self.lie else "as it is", *figures, len(found.wrong)]


HEAD = ("program", "syncs", "cuts", "acknowledged", "cuts gone wrong", "lost", "partial", "doubled", "otherwise wrong")


def cut(place: Path, program: str, seed: str, cycles: int, *, lie: str = "", until_red: bool = False) -> Row:
    """The loop, `cycles` times, until ctrl-c, or until something was lost. Each cut has a seed of its own."""
    row = Row(program, lie)
    for number in range(cycles):
        mark = f"{program}{seed}x{number}{lie}"
        try:
            promised, verdict = asyncio.run(PROGRAMS[program](place / mark, mark, number, [lie] if lie else []))
        except KeyboardInterrupt:
            print("ended early", flush=True)
            break
        row.cuts += 1
        row.acknowledged += promised
        row.red += bool(verdict)
        row.verdict.take(verdict, mark=f"{mark}: ")
        if until_red and row.red:
            break
        if (number + 1) % 10 == 0 and not lie:
            print(f"{program}: {number + 1} cuts, {row.acknowledged} acknowledged, {row.red} wrong", flush=True)
    return row


def main(arguments: Sequence[str] | None = None) -> int:
    parser = table.parser(__doc__.split("\n\n", 1)[0])
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    parser.add_argument("--cycles", type=int, default=10, help="cuts of each program")
    parser.add_argument("--program", nargs="+", choices=sorted(PROGRAMS), default=sorted(PROGRAMS))
    parser.add_argument("--controls", type=int, default=0, metavar="CYCLES", help="cuts of each control; 0: none")
    options = parser.parse_args(arguments)
    seed, begun = table.begin(options), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="siteagent-cuts-") as place:
        rows = [cut(Path(place), program, seed, options.cycles) for program in options.program if options.cycles]
        controls = [
            cut(Path(place), program, seed, options.controls, lie=lie)
            for program, lie in CONTROLS
            if program in options.program and options.controls
        ]
    table.show(HEAD, [row.cells() for row in [*rows, *controls]])
    blind = [f"the loop does not see {LIES[row.lie]} of the {row.program}" for row in controls if not row.red]
    verdict = Verdict(wrong=blind)
    for row in rows:
        verdict.take(row.verdict)
        if row.cuts < options.cycles:
            verdict.wrong.append(f"only {row.cuts} of {options.cycles} cuts of the {row.program}")
    return table.end(verdict, begun)


if __name__ == "__main__":
    sys.exit(main())
