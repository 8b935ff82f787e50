"""How long a message has been held at least, by time that really passed: the wall clock is not believed (S62).

Once a day the highest message number is noted with the seconds that had passed since the hub was set up: while it runs
by the monotonic clock, between two runs by the wall clock, a day at most. So a clock that jumps ages what is held by a
day at most for each start, and nobody's mail expires because a battery was flat. Losing the file makes mail younger.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from siteagent.store.durable import replace_file

FILE = "days.json"
_DAY = 86_400.0


class Days:
    """`wall` in seconds since 1970, `monotonic` in seconds. `open` and `save` block."""

    def __init__(self, path: Path, *, wall: Callable[[], float], monotonic: Callable[[], float]) -> None:
        self._path = path
        self._wall = wall
        self._monotonic = monotonic
        self._base = -monotonic()
        self._marks: list[tuple[float, int]] = []

    def open(self) -> None:
        """Takes up the count where the last run left it; a file that cannot be read is begun anew."""
        try:
            document = json.loads(self._path.read_bytes())
            passed, wall = float(document["passed"]), float(document["wall"])
            self._marks = [(float(at), int(highest)) for at, highest in document["marks"]]
        except (OSError, ValueError, TypeError, KeyError):
            return
        away = min(max(self._wall() - wall, 0.0), _DAY)
        self._base = passed + away - self._monotonic()

    def mark(self, highest: int) -> None:
        """Messages up to number `highest` are here now. Counts once a day."""
        if not self._marks or self._passed() - self._marks[-1][0] >= _DAY:
            self._marks.append((self._passed(), highest))

    def held_for(self, days: int) -> int:
        """Messages up to this number have been held for `days` at least; 0: none."""
        before = self._passed() - days * _DAY
        return max((highest for at, highest in self._marks if at <= before), default=0)

    def save(self, *, longest_days: int) -> None:
        """Writes it down, without what is older than anybody asks for. Raises OSError."""
        before = self._passed() - longest_days * _DAY
        old = [mark for mark in self._marks if mark[0] <= before]
        self._marks = [*old[-1:], *(mark for mark in self._marks if mark[0] > before)]
        document = {"version": 1, "passed": self._passed(), "wall": self._wall(), "marks": self._marks}
        replace_file(self._path, json.dumps(document).encode(), mode=0o600, durable=True)

    def _passed(self) -> float:
        return self._base + self._monotonic()
