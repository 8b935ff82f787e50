"""The Windows source, with other calls in place of iphlpapi's."""

from __future__ import annotations

import asyncio
import queue
import sys

import pytest
from siteagent.link.backend import Unavailable
from siteagent.link.windows import WindowsSource


class FakeApi:
    """Each call waits for the next value of its queue and returns it."""

    def __init__(self) -> None:
        self.addresses: queue.Queue[int] = queue.Queue()
        self.routes: queue.Queue[int] = queue.Queue()

    def address_change(self) -> int:
        return self.addresses.get()

    def route_change(self) -> int:
        return self.routes.get()

    def end(self) -> None:
        self.addresses.put(0)
        self.routes.put(0)


async def _poked(pokes: list[str], count: int) -> None:
    async with asyncio.timeout(5):
        while len(pokes) < count:
            await asyncio.sleep(0.005)


def test_each_change_of_an_address_or_a_route_pokes_after_the_first_poke() -> None:
    api, pokes = FakeApi(), list[str]()

    async def work() -> None:
        running = asyncio.ensure_future(WindowsSource(api).run(pokes.append))
        await _poked(pokes, 1)
        api.addresses.put(0)
        await _poked(pokes, 2)
        api.routes.put(0)
        await _poked(pokes, 3)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        api.end()

    asyncio.run(work())
    assert pokes == ["windows"] * 3


def test_nothing_pokes_once_it_is_cancelled() -> None:
    api, pokes = FakeApi(), list[str]()

    async def work() -> None:
        running = asyncio.ensure_future(WindowsSource(api).run(pokes.append))
        await _poked(pokes, 1)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        api.end()
        await asyncio.sleep(0.05)

    asyncio.run(work())
    assert pokes == ["windows"]


def test_an_error_of_windows_makes_the_source_unavailable_and_not_a_busy_loop() -> None:
    api = FakeApi()

    async def work() -> None:
        running = asyncio.ensure_future(WindowsSource(api).run(lambda cause: None))
        api.routes.put(5)
        with pytest.raises(Unavailable, match="iphlpapi answers 5"):
            async with asyncio.timeout(5):
                await running
        api.end()

    asyncio.run(work())


@pytest.mark.skipif(sys.platform == "win32", reason="what other systems say")
def test_elsewhere_it_is_unavailable() -> None:
    with pytest.raises(Unavailable):
        asyncio.run(WindowsSource().run(lambda cause: None))
