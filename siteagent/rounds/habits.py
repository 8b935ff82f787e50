"""How a provider was seen to behave: how long it takes to call, and how long it pauses between its sessions. Pure.

A provider that always connected within two seconds need not be waited for two minutes on a paid line. The waits shrink
towards what was seen, with room to spare, and never go beyond the configured ones; until enough was seen those count.
One late call widens the wait again at once, also one that came after the round had given up.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from siteagent.config.sections import Provider

REMEMBERED = 20
# Fewer calls than that are no habit.
ENOUGH = 5
# A provider is slower on a bad day, and its queue longer.
ROOM = 4.0
LEAST_FIRST_CONNECTION_SECONDS, LEAST_QUIET_SECONDS = 15.0, 5.0


@dataclass(frozen=True, slots=True)
class Habits:
    """The latest calls (seconds from the ask to the first connection) and pauses (from session to session)."""

    calls: tuple[float, ...] = ()
    pauses: tuple[float, ...] = ()

    @classmethod
    def from_calls(cls, seconds: Iterable[float | None]) -> Habits:
        """What a journal tells, oldest first; None where nobody called."""
        return cls(tuple(each for each in seconds if each is not None)[-REMEMBERED:])

    def called(self, seconds: float, *, limit: float) -> Habits:
        """The first connection after an ask. One that came later than `limit` was not caused by it."""
        if seconds > limit:
            return self
        return replace(self, calls=(*self.calls, seconds)[-REMEMBERED:])

    def paused(self, seconds: float) -> Habits:
        """A session followed so long after the one before it."""
        return replace(self, pauses=(*self.pauses, seconds)[-REMEMBERED:])

    def first_connection_seconds(self, provider: Provider) -> float:
        """How long to wait for the first connection."""
        return _within(self.calls, LEAST_FIRST_CONNECTION_SECONDS, provider.first_connection_seconds)

    def quiet_seconds(self, provider: Provider) -> float:
        """How long nothing must have come for all to be there. Without a pause ever seen: as configured."""
        return _within(self.pauses, LEAST_QUIET_SECONDS, provider.quiet_seconds)


def _within(seen: tuple[float, ...], least: float, configured: float) -> float:
    if len(seen) < ENOUGH:
        return configured
    return min(configured, max(least, ROOM * max(seen)))
