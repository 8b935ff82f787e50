"""Hours of the week, as ``[windows]`` has them: when the agent asks by itself. Pure; times are local ones.

``08:00-18:00`` is every day, ``Mon-Fri 08:00-18:00`` and ``Sat,Sun 10:00-12:00`` some of them, ``22:00-06:00`` goes
over midnight and belongs to the day it begins on. Without any window the agent may always ask. A request
(`siteagent ask`) is never held back.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_FORM = re.compile(
    r"(?:(?P<days>[A-Za-z]{3}(?:[-,][A-Za-z]{3})*)\s+)?(?P<from>\d{1,2}:\d{2})\s*-\s*(?P<to>\d{1,2}:\d{2})"
)
_DAY_MINUTES = 24 * 60


@dataclass(frozen=True, slots=True)
class Window:
    """From `begin` on for `minutes`, on `days` (0: Monday)."""

    days: frozenset[int]
    begin: int
    minutes: int

    def opens(self, now: datetime) -> datetime | None:
        """The moment at `now` or later from which this window is open; None if it has no day."""
        midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
        for back in range(-1, 8):
            day = midnight + timedelta(days=back)
            if day.weekday() not in self.days:
                continue
            begin = day + timedelta(minutes=self.begin)
            if now < begin + timedelta(minutes=self.minutes):
                return max(now, begin)
        return None


def parse(text: str) -> Window:
    """Raises ValueError for what is no window."""
    match = _FORM.fullmatch(text.strip())
    if match is None:
        raise ValueError(text)
    begin, end = _minutes(match["from"]), _minutes(match["to"])
    minutes = (end - begin) % _DAY_MINUTES or _DAY_MINUTES
    return Window(_days(match["days"]), begin % _DAY_MINUTES, minutes)


def _minutes(text: str) -> int:
    hours, minutes = (int(part) for part in text.split(":"))
    if hours > 24 or minutes > 59 or (hours == 24 and minutes):
        raise ValueError(text)
    return hours * 60 + minutes


def _days(text: str | None) -> frozenset[int]:
    if text is None:
        return frozenset(range(7))
    found: set[int] = set()
    for part in text.lower().split(","):
        first, _, last = part.partition("-")
        begin, end = _DAYS.index(first), _DAYS.index(last or first)
        found |= {day % 7 for day in range(begin, end + 1 if end >= begin else end + 8)}
    return frozenset(found)


def is_window(text: str) -> bool:
    try:
        parse(text)
    except ValueError:
        return False
    return True


def closed_for(windows: Sequence[Window], now: datetime) -> float:
    """Seconds until asking is allowed, 0 where it is now. `now` has the zone of the place."""
    if not windows:
        return 0.0
    opening = [moment for window in windows if (moment := window.opens(now)) is not None]
    return max(0.0, (min(opening) - now).total_seconds()) if opening else 0.0
