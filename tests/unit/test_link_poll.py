"""The tick, and noticing that the host slept."""

from __future__ import annotations

import asyncio
import selectors
import time
from typing import Any

import pytest
from siteagent.link.backend import POLL, WAKE
from siteagent.link.poll import SleepMeter, Tick, asleep_clock


class Late(asyncio.SelectorEventLoop):
    """A loop whose clock jumps over every wait, and by `late` seconds more the second time."""

    def __init__(self, late: float) -> None:
        self.now = 0.0
        self.waits = 0
        loop = self

        class Jump(selectors.DefaultSelector):
            def select(self, timeout: float | None = None) -> Any:
                found = super().select(0)
                if not found and timeout:
                    loop.waits += 1
                    loop.now += timeout + (late if loop.waits == 2 else 0)
                return found

        super().__init__(Jump())

    def time(self) -> float:
        return self.now


def causes_of(late: float, count: int = 3) -> list[str]:
    async def main() -> list[str]:
        causes: list[str] = []
        done = asyncio.Event()

        def poke(cause: str) -> None:
            causes.append(cause)
            if len(causes) == count:
                done.set()

        task = asyncio.create_task(Tick(15).run(poke))
        await done.wait()
        task.cancel()
        return causes

    with asyncio.Runner(loop_factory=lambda: Late(late)) as runner:
        return runner.run(main())


def test_every_tick_says_look_again() -> None:
    assert causes_of(0) == [POLL] * 3


def test_a_tick_that_is_a_little_late_is_a_tick() -> None:
    assert causes_of(7) == [POLL] * 3


def test_s63_a_tick_ten_minutes_late_is_a_wake_up() -> None:
    assert causes_of(600) == [POLL, WAKE, POLL]


def test_a_sleep_is_told_once() -> None:
    asleep = [100.0]
    meter = SleepMeter(lambda: asleep[0])
    assert not meter.slept()
    asleep[0] += 3600
    assert meter.slept()
    assert not meter.slept()


def test_clocks_that_drift_apart_slowly_are_no_sleep() -> None:
    asleep = [0.0]
    meter = SleepMeter(lambda: asleep[0])
    for _ in range(100):
        asleep[0] += 0.01
        assert not meter.slept()


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="needs CLOCK_BOOTTIME (Linux)")
def test_a_host_that_does_not_sleep_does_not_seem_to() -> None:
    clock = asleep_clock()
    assert abs(clock() - clock()) < 0.1
