"""The tick: look again every so often, whatever the other sources say, and notice that the host slept.

asyncio's timers run on CLOCK_MONOTONIC, which stands still while the host sleeps: after a wake-up every pending
pause is late by the sleep, so somebody must be told. Wall clocks are not asked: they jump for other reasons (S62).
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from typing import Final

from siteagent.link.backend import POLL, WAKE, Poke

SLEEP_SECONDS: Final = 2.0
"""A gap shorter than this is not a sleep."""


class SleepMeter:
    """Notices that the host slept, by a clock that counts sleep running away from one that does not."""

    def __init__(self, asleep: Callable[[], float] | None = None) -> None:
        """`asleep`: seconds this host ever slept, monotonic; by default from the clocks of this system."""
        self._asleep = asleep or asleep_clock()
        self._seen = self._asleep()

    def slept(self) -> bool:
        """Whether it slept since the last call; also true once for each sleep, however often it is asked."""
        now = self._asleep()
        gap = now - self._seen
        self._seen = now
        return gap > SLEEP_SECONDS


def asleep_clock() -> Callable[[], float]:
    """Seconds slept since boot: Linux and macOS have a pair of clocks for it, elsewhere 0 (a late tick tells)."""
    if sys.platform == "win32":
        return lambda: 0.0
    if hasattr(time, "CLOCK_BOOTTIME"):
        return lambda: time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)
    counts_sleep, stands_still = getattr(time, "CLOCK_MONOTONIC_RAW", None), getattr(time, "CLOCK_UPTIME_RAW", None)
    if counts_sleep is not None and stands_still is not None:  # macOS
        return lambda: time.clock_gettime(counts_sleep) - time.clock_gettime(stands_still)
    return lambda: 0.0


class Tick:
    """Pokes every `seconds`. A tick late by more than half of that is a wake-up: the host slept, or we were."""

    name = POLL
    nudges = False

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    async def run(self, poke: Poke) -> None:
        """See `Source.run`."""
        loop = asyncio.get_running_loop()
        late_seconds = max(self._seconds / 2, SLEEP_SECONDS)
        while True:
            began = loop.time()
            await asyncio.sleep(self._seconds)
            late = loop.time() - began - self._seconds
            poke(WAKE if late > late_seconds else POLL)
