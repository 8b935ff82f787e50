"""Rings when something changed in a folder: for requests, and for a configuration that was edited.

A ring says "look", no more. watchdog makes it quick; a look at the folders' times every few seconds makes it sure,
since watchdog tells nobody of an overflow, an exchanged directory, or its own dead thread.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from watchdog.observers.api import BaseObserver

# A burst of changes (an editor's save) is one ring.
DEBOUNCE_SECONDS = 0.05


class FolderBell:
    """`run` until cancelled; `ring` is called on the loop's thread."""

    def __init__(self, folders: Sequence[Path], *, ring: Callable[[], None], rescan_seconds: float = 2.0) -> None:
        self._folders = tuple(dict.fromkeys(folders))
        self._ring = ring
        self._rescan_seconds = rescan_seconds

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        changed = asyncio.Event()
        observer = await loop.run_in_executor(None, self._observe, loop, changed)
        seen = self._times()
        try:
            self._ring()  # what came before we watched: nobody else would tell of it
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._rescan_seconds):
                        await changed.wait()
                        await asyncio.sleep(DEBOUNCE_SECONDS)
                rung = changed.is_set()
                changed.clear()
                now = self._times()
                if rung or now != seen:
                    seen = now
                    self._ring()
        finally:
            if observer is not None:
                observer.stop()

    def _times(self) -> list[tuple[int, int] | None]:
        times: list[tuple[int, int] | None] = []
        for folder in self._folders:
            try:
                status = folder.stat()
                times.append((status.st_mtime_ns, status.st_ino))
            except OSError:
                times.append(None)
        return times

    def _observe(self, loop: asyncio.AbstractEventLoop, changed: asyncio.Event) -> BaseObserver | None:
        """watchdog on the folders; None where it cannot be had, and the looks must do."""
        from watchdog.events import (
            FileClosedEvent,
            FileCreatedEvent,
            FileDeletedEvent,
            FileMovedEvent,
            FileSystemEvent,
            FileSystemEventHandler,
        )
        from watchdog.observers import Observer

        class Handler(FileSystemEventHandler):
            def on_any_event(self, event: FileSystemEvent) -> None:
                with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
                    loop.call_soon_threadsafe(changed.set)

        # Not "opened" or "closed, not written": our own reading would ring. Not "modified": every write would.
        wanted: list[type[FileSystemEvent]] = [FileCreatedEvent, FileMovedEvent, FileClosedEvent, FileDeletedEvent]
        observer = Observer()
        observer.daemon = True
        try:
            for folder in self._folders:
                observer.schedule(Handler(), str(folder), event_filter=wanted)
            observer.start()
        except (OSError, RuntimeError):
            with contextlib.suppress(OSError, RuntimeError):
                observer.unschedule_all()  # some of its threads may run already
            return None
        return observer
