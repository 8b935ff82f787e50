"""`host.folders`: a change in a folder rings, whether watchdog helps or not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from siteagent.host.folders import FolderBell


class Deaf(FolderBell):
    """As where there are no inotify instances left."""

    def _observe(self, loop: asyncio.AbstractEventLoop, changed: asyncio.Event) -> None:
        return None


class Rings:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1

    async def until(self, count: int) -> None:
        async with asyncio.timeout(5):
            while self.count < count:
                await asyncio.sleep(0.005)


def watch(
    folder: Path,
    scene: Callable[[Rings], Awaitable[None]],
    *,
    kind: type[FolderBell] = FolderBell,
    rescan_seconds: float = 30.0,
) -> Rings:
    rings = Rings()

    async def work() -> None:
        task = asyncio.ensure_future(kind([folder, folder], ring=rings, rescan_seconds=rescan_seconds).run())
        try:
            await rings.until(1)
            await scene(rings)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()

    asyncio.run(work())
    return rings


async def nothing(rings: Rings) -> None:
    await asyncio.sleep(0.15)


@pytest.mark.parametrize("kind", [FolderBell, Deaf])
def test_it_rings_once_when_it_begins_to_watch(tmp_path: Path, kind: type[FolderBell]) -> None:
    """What was left between the last look and the first watch would be lost else."""
    assert watch(tmp_path, nothing, kind=kind).count == 1


def test_a_new_file_rings_long_before_the_next_look(tmp_path: Path) -> None:
    async def scene(rings: Rings) -> None:
        (tmp_path / "x").write_text("")
        await rings.until(2)

    watch(tmp_path, scene)


def test_a_file_written_in_place_rings(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("old")

    async def scene(rings: Rings) -> None:
        (tmp_path / "x").write_text("new")
        await rings.until(2)

    watch(tmp_path, scene)


def test_a_burst_is_one_ring_or_two(tmp_path: Path) -> None:
    async def scene(rings: Rings) -> None:
        for n in range(50):
            (tmp_path / str(n)).write_text("")
        await rings.until(2)
        await asyncio.sleep(0.2)

    assert watch(tmp_path, scene).count <= 3


def test_reading_does_not_ring(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("old")

    async def scene(rings: Rings) -> None:
        (tmp_path / "x").read_text()
        list(tmp_path.iterdir())
        await asyncio.sleep(0.15)

    assert watch(tmp_path, scene).count == 1


def test_without_watchdog_a_look_finds_it(tmp_path: Path) -> None:
    async def scene(rings: Rings) -> None:
        (tmp_path / "x").write_text("")
        await rings.until(2)

    watch(tmp_path, scene, kind=Deaf, rescan_seconds=0.02)


def test_a_folder_that_comes_later_and_one_that_was_exchanged_ring(tmp_path: Path) -> None:
    folder = tmp_path / "later"

    async def scene(rings: Rings) -> None:
        folder.mkdir()
        await rings.until(2)
        folder.rename(tmp_path / "old")
        folder.mkdir()
        await rings.until(3)

    watch(folder, scene, rescan_seconds=0.02)
