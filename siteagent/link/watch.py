"""Is there a way to each provider, and by which address? Hints lead to a look, looks are compared, changes settle.

The law: a source says "look again" and is never believed; one oracle looks; what is emitted follows from looks
alone. So a lost, doubled or lying hint costs one look, and the tick mends what all the others missed. The way is
looked up for each provider, since one may be reached by satellite and another by a cable.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from siteagent.config import sections
from siteagent.events import Emit, Line, LinkChanged, LinkDown, LinkUp, PartFailed
from siteagent.link import backend
from siteagent.link.backend import Note, Oracle, Source, Unavailable
from siteagent.link.hookdir import ANY
from siteagent.link.oracle import ANYWHERE, allowed
from siteagent.link.poll import SleepMeter
from siteagent.link.settle import Settle

LOOK_SECONDS: Final = 0.02
"""Looks are at least so far apart: a storm of routes costs 50 looks a second and no more."""

RESTART_SECONDS: Final = (1.0, 2.0, 5.0, 15.0, 60.0, 300.0)
"""Pauses before a source that fell over is started again; the last repeats."""

HEALTHY_SECONDS: Final = 600.0
"""A source that ran so long starts over with the shortest pause."""


@dataclass(frozen=True, slots=True)
class Target:
    """What one provider's way is judged by.

    `addresses`: where it may be; empty: is there a default route. `interfaces`: shell patterns; empty: those of the
    section.
    """

    name: str
    addresses: tuple[str, ...]
    interfaces: tuple[str, ...] = ()


class Watch:
    """Emits link.up, link.changed and link.down for each provider; belongs to the event loop's thread."""

    def __init__(
        self,
        section: sections.Link,
        *,
        targets: Callable[[], Sequence[Target]],
        emit: Emit,
        hook_directory: Path,
        note: Note,
        oracle: Oracle | None = None,
        sources: Sequence[Source] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        slept: Callable[[], bool] | None = None,
    ) -> None:
        """`targets` is asked at every look, so a reload or a newly resolved name counts from the next one.

        `slept` says, once for each time, that the host was asleep. `oracle` and `sources` default to the host's best.
        """
        self._section = section
        self._targets = targets
        self._emit = emit
        self._hook_directory = hook_directory
        self._note = note
        self._told: set[str] = set()
        self._oracle = oracle
        self._sources = sources
        self._monotonic = monotonic
        self._slept = slept or SleepMeter().slept
        self._settling: dict[str, Settle] = {}
        self._poked = asyncio.Event()
        self._cause = backend.START
        self._nudge: tuple[str, float] | None = None
        self._woke_at: float | None = None
        self.on_wake: Callable[[], None] = lambda: None
        """Called once the line has settled after a sleep, behind whatever changed: pending pauses are all late."""
        self.on_nudge: Callable[[str], None] = lambda cause: None
        """Called for a hint that found every way as it was."""

    def take_over(self, before: Watch) -> None:
        """Go on from what counted in a watch that this one replaces: a changed option is no line coming up."""
        for name, settling in before._settling.items():
            self._settling[name] = Settle(self._section.settle_seconds, settling)

    def line(self, provider: str) -> Line | None:
        """The way to `provider` that counts now."""
        settling = self._settling.get(provider)
        return None if settling is None else settling.reported

    def poke(self, cause: str, *, nudge: bool = False) -> None:
        """Look again. `nudge`: somebody means it, so `on_nudge` is called even if the way is found unchanged."""
        # The tick is the least telling of causes: any other that came with it is the one to tell.
        if not self._poked.is_set() or self._cause == backend.POLL:
            self._cause = cause
        settled_at = self._monotonic() + self._section.settle_seconds
        if nudge:
            self._nudge = (cause, settled_at)
        if cause == backend.WAKE:
            self._woke_at = settled_at
        self._poked.set()

    async def run(self) -> None:
        """Watch until cancelled; every source runs supervised and is stopped then."""
        if self._oracle is None:
            self._oracle = backend.standard_oracle(self._tell)
        sources = self._sources
        if sources is None:
            sources = backend.standard_sources(
                self._section.backend,
                poll_seconds=self._section.poll_seconds,
                hook_directory=self._hook_directory,
                note=self._tell,
            )
        self._look(backend.START)
        tasks = [asyncio.create_task(self._supervise(source), name=f"link.{source.name}") for source in sources]
        try:
            await self._watch()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self) -> None:
        looked = self._monotonic()
        while True:
            due = self._due()
            soonest = looked + LOOK_SECONDS
            if due is not None and due <= looked:
                due = soonest  # Still due after the look that was due: the oracle could not tell. Not at once again.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if due is None else max(0.0, due - self._monotonic())):
                    await self._poked.wait()
            # A look that is due is not put off: the settle time is kept to the millisecond.
            pause = (soonest if due is None else min(soonest, due)) - self._monotonic()
            if pause > 0:
                await asyncio.sleep(pause)
            self._poked.clear()
            looked = self._monotonic()
            self._look(self._cause)

    def _due(self) -> float | None:
        """When to look although nobody pokes. Hints wait for the line to settle, whatever their own time says."""
        times = [settling.due for settling in self._settling.values()]
        if all(due is None for due in times):
            times = [self._woke_at, None if self._nudge is None else self._nudge[1]]
        return min((due for due in times if due is not None), default=None)

    def _look(self, cause: str) -> None:
        """One look at every provider's way, and whatever is to be told of it."""
        if self._slept():
            cause = backend.WAKE
            self._woke_at = self._monotonic() + self._section.settle_seconds
        targets = list(self._targets())
        for gone in self._settling.keys() - {target.name for target in targets}:
            del self._settling[gone]
        told = False
        for target in targets:
            try:
                told = self._look_at(target, cause) or told
            except OSError as error:
                # Not knowing is not "down": what counted still counts, and the tick asks again.
                self._tell(f"cannot look up the way to {target.name}: {error}")
        if told:
            self._nudge = None
        if not any(settling.due is not None for settling in self._settling.values()):
            self._pass_on(self._monotonic())

    def _pass_on(self, now: float) -> None:
        """What is not about a change: the line is settled, and whoever waits for that may hear of it."""
        if self._woke_at is not None and now >= self._woke_at:
            self._woke_at = None
            self.on_wake()
        if self._nudge is not None and now >= self._nudge[1]:
            nudge, self._nudge = self._nudge[0], None
            if self._concerns_us(nudge):
                self.on_nudge(nudge)

    def _concerns_us(self, nudge: str) -> bool:
        """A hint of an interface that no provider's way leaves by is no news: containers come and go."""
        interface = nudge.partition(":")[2]
        ways = {settling.reported.interface for settling in self._settling.values() if settling.reported is not None}
        return bool(ways) and (interface in ("", ANY) or interface in ways)

    def _look_at(self, target: Target, cause: str) -> bool:
        assert self._oracle is not None
        settling = self._settling.get(target.name)
        if settling is None:
            settling = self._settling[target.name] = Settle(self._section.settle_seconds)
        patterns = target.interfaces or self._section.interfaces
        lines = tuple(
            line
            for line in self._oracle.lines(target.addresses or ANYWHERE)
            if allowed(line.interface, patterns, self._section.ignore_interfaces)
        )
        before = settling.reported
        if not settling.seen(settling.prefers(lines), self._monotonic(), cause):
            return False
        self._tell_of(target.name, before, settling.reported, settling.cause)
        return True

    def _tell_of(self, provider: str, before: Line | None, now: Line | None, cause: str) -> None:
        if now is None:
            assert before is not None
            self._emit(LinkDown(provider=provider, interface=before.interface, cause=cause))
            return
        kind = LinkUp if before is None else LinkChanged
        self._emit(
            kind(provider=provider, interface=now.interface, source=now.source, gateway=now.gateway, cause=cause)
        )

    def _tell(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._note(text)

    async def _supervise(self, source: Source) -> None:
        """Run one source for ever: what falls over is said, and started again after a growing pause."""
        failures = 0
        while True:
            began = self._monotonic()
            why = "it ended by itself"
            try:
                await source.run(partial(self.poke, nudge=source.nudges))
            except Unavailable as error:
                why = ""
                self._tell(_one_line(error, self._section.poll_seconds))
            except Exception as error:
                why = f"{type(error).__name__}: {error}"
            if self._monotonic() - began > HEALTHY_SECONDS:
                failures = 0
            seconds = RESTART_SECONDS[min(failures, len(RESTART_SECONDS) - 1)]
            failures += 1
            if why:
                self._emit(PartFailed(part=f"link.{source.name}", reason=why, seconds=seconds))
            await asyncio.sleep(seconds)


def _one_line(error: Unavailable, poll_seconds: float) -> str:
    fix = f"; {error.fix}" if error.fix else ""
    return f"{error.what}: {error.why}{fix}; looking every {poll_seconds:g} s instead"
