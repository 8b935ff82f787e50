"""When a change of the line counts (pure: time comes in as an argument).

The law: what was reported last equals what is seen, once it was quiet for `seconds`. A change counts when nothing
has contradicted it for `seconds`; if the line stays unsettled, what holds after `CAP` times that counts, so a line
that flaps for ever is still told of. The very first look counts at once: there is nothing that it could contradict.
"""

from __future__ import annotations

from typing import Final

from siteagent.events import Line

CAP: Final = 6


def same_way(one: Line | None, other: Line | None) -> bool:
    """Whether two lines are one way out: by interface and our address. The next hop may change (router failover)."""
    if one is None or other is None:
        return one is other
    return one.interface == other.interface and one.source == other.source


class Settle:
    """One provider's line. `reported` is what counts now."""

    __slots__ = ("_begun", "_candidate", "_fresh", "_seconds", "_since", "cause", "reported")

    def __init__(self, seconds: float, before: Settle | None = None) -> None:
        """`before`: what counted in a watch that this one replaces; without, the first look counts at once."""
        reported = None if before is None else before.reported
        self._seconds = seconds
        self._fresh = before is None
        self._candidate: Line | None = reported
        self._since = 0.0
        self._begun: float | None = None
        self.reported: Line | None = reported
        self.cause = ""
        """What made us look when the line first differed from `reported`."""

    @property
    def due(self) -> float | None:
        """When to look again though nobody says so; None while the line is settled."""
        if self._begun is None:
            return None
        return min(self._since + self._seconds, self._begun + CAP * self._seconds)

    def prefers(self, lines: tuple[Line, ...]) -> Line | None:
        """Of several ways the one that counts already or is about to: a second address coming up changes nothing."""
        for wanted in (self.reported, self._candidate):
            for line in lines:
                if wanted is not None and same_way(line, wanted):
                    return line
        return lines[0] if lines else None

    def seen(self, line: Line | None, now: float, cause: str) -> bool:
        """Take note of one look at `now` (seconds, monotonic). True: `reported` is a new one from here on."""
        if self._fresh:
            self._fresh = False
            self.cause = cause
            self._candidate = self.reported = line
            return line is not None
        if not same_way(line, self._candidate):
            self._candidate, self._since = line, now
        if self._begun is None:
            if same_way(line, self.reported):
                self.reported = line
                return False
            self._begun, self.cause = now, cause
        due = self.due
        assert due is not None
        if now < due:
            return False
        self._begun = None
        changed = not same_way(line, self.reported)
        self.reported = line
        return changed
