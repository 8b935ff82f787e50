"""The hook directory: NetworkManager, pppd and others leave a file here, and we look at the network again.

A file is a hint, never an order. Its name is the interface, its change is the message; nothing is opened, followed,
deleted or believed. watchdog only makes it quick: the directory itself is looked at on every tick, since inotify
may overflow, find the directory exchanged, or not be there. A directory that others can write to is refused (S53):
they could wake us, and fill it. watchdog is imported when the source starts.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from siteagent.errors import CannotCreate, PermissionProblem, UsageError
from siteagent.link.backend import Note, Poke, Unavailable

if TYPE_CHECKING:
    from watchdog.observers.api import BaseObserver

MAX_ENTRIES: Final = 512
"""Entries looked at in one scan. A host has a handful of interfaces; more than this is somebody's mistake or malice."""

PAUSE_SECONDS: Final = 0.02
"""Scans are at least so far apart, whatever rings."""

ANY: Final = "any"
"""The file's name where a hint is about no interface."""

_NAME: Final = re.compile(r"[A-Za-z0-9_:@-][A-Za-z0-9._:@-]{0,63}")

Stamp = tuple[int, int]


def leave_hint(directory: Path, interface: str, cause: str) -> None:
    """Tell a running agent to look again: a file named for `interface` ("" for none) appears in one step.

    Raises UsageError for an interface that cannot be one, PermissionProblem, and CannotCreate where `directory` is
    missing.
    """
    name = interface or ANY
    what = f"cannot leave a hint in {directory}"
    if _NAME.fullmatch(name) is None:
        raise UsageError(what, f"{interface!r} is no name of an interface")
    temporary = directory / f".{name}.{os.getpid()}"
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o644)
        try:
            os.write(descriptor, cause.encode("utf-8", "replace")[:256] + b"\n")
        finally:
            os.close(descriptor)
        temporary.replace(directory / name)
    except PermissionError as error:
        _forget(temporary)
        raise PermissionProblem(
            what, "not allowed to write there", fix="run it as root or as the agent's user"
        ) from error
    except FileNotFoundError as error:
        raise CannotCreate(what, "there is no such directory", fix="start the agent, which makes it") from error
    except OSError as error:
        _forget(temporary)
        raise CannotCreate(what, error.strerror or str(error)) from error


def _forget(temporary: Path) -> None:
    with contextlib.suppress(OSError):
        temporary.unlink()


@contextlib.contextmanager
def opened(directory: Path) -> Iterator[int | Path]:
    """`directory`, looked at through a descriptor, after it proved to be safe; made, where that is ours to do.

    A missing one is made (0755) only where its parent is ours and nobody else can write there: our own state
    directory, or /run for root. Raises `Unavailable` where it is missing, no directory, a symlink, or not safe.
    """
    what = f"cannot watch {directory}"
    try:
        _make(directory)
        if sys.platform == "win32":
            yield directory
            return
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        # O_NOFOLLOW with O_DIRECTORY says ENOTDIR of a symlink too.
        raise Unavailable(what, error.strerror or str(error), fix="hints of hooks are not heard") from error
    try:
        found = os.fstat(descriptor)
        if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise Unavailable(what, "others can write to it", fix=f"run `chmod go-w {directory}`")
        if found.st_uid not in (0, os.geteuid()):
            raise Unavailable(what, "it belongs to another user", fix=f"run `chown root {directory}`")
        yield descriptor
    finally:
        os.close(descriptor)


def _make(directory: Path) -> None:
    if os.path.lexists(directory):
        return
    if sys.platform != "win32":
        parent = directory.parent.stat()
        if parent.st_uid != os.geteuid() or parent.st_mode & stat.S_IWOTH:
            return
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o755)
        directory.chmod(0o755)  # an agent's umask is 077, and the hooks and the agent may be two users


class HookDirectory:
    """Pokes with ``hook:INTERFACE`` for each hint. Trouble is said once and looked at again on every tick."""

    name = "hook"
    nudges = True

    def __init__(self, directory: Path, *, rescan_seconds: float, note: Note) -> None:
        """`note` is called at every tick while there is trouble, with the same words: the watch says it once."""
        self._directory = directory
        self._rescan_seconds = rescan_seconds
        self._note = note
        self._seen: dict[str, Stamp] | None = None
        self._changed_at: int | None = None
        self._identity: tuple[int, int] | None = None
        self._observer: BaseObserver | None = None

    async def run(self, poke: Poke) -> None:
        """See `Source.run`. Files that are there already at the start are no hints."""
        bell = asyncio.Event()
        try:
            while True:
                await self._keep_watching(bell)
                bell.clear()
                try:
                    hints = self.scan()
                except Unavailable as error:
                    self._note(f"{error.what}: {error.why}; {error.fix}")
                    hints = []
                for name in hints:
                    poke(f"{self.name}:{name}")
                await asyncio.sleep(PAUSE_SECONDS)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._rescan_seconds):
                        await bell.wait()
        finally:
            await self._stop_watching()

    def scan(self) -> list[str]:
        """The interfaces hinted at since the last scan, in no order. Bounded whatever the directory holds.

        Raises `Unavailable` as `opened` does.
        """
        with opened(self._directory) as place:
            found = _status(place)
            stamps = _stamps(place)
        if stamps is None:
            self._note(f"{self._directory} holds more than {MAX_ENTRIES} files: empty it; its hints lose their names")
            changed = self._changed_at not in (None, found.st_mtime_ns)
            self._seen, self._changed_at = None, found.st_mtime_ns
            return [ANY] if changed else []
        before, self._seen, self._changed_at = self._seen, stamps, found.st_mtime_ns
        return [] if before is None else [name for name, stamp in stamps.items() if before.get(name) != stamp]

    async def _keep_watching(self, bell: asyncio.Event) -> None:
        """Have watchdog on the directory that is there now: it does not notice that it was exchanged for another."""
        try:
            with opened(self._directory) as place:
                found = _status(place)
        except Unavailable:
            await self._stop_watching()
            return
        identity = (found.st_dev, found.st_ino)
        if self._observer is not None and identity == self._identity and _alive(self._observer):
            return
        await self._stop_watching()
        loop = asyncio.get_running_loop()

        def ring() -> None:
            with contextlib.suppress(RuntimeError):  # The loop is closed already.
                loop.call_soon_threadsafe(bell.set)

        starting = asyncio.ensure_future(asyncio.to_thread(_observer, self._directory, ring))
        try:
            self._observer, self._identity = await asyncio.shield(starting), identity
        except asyncio.CancelledError:
            with contextlib.suppress(Exception):
                self._observer = await starting
            raise
        except Exception as error:  # watchdog's own, and OSError where inotify has no watch left.
            self._note(f"cannot watch {self._directory} ({error}): reading it every {self._rescan_seconds:g} s")

    async def _stop_watching(self) -> None:
        observer, self._observer = self._observer, None
        if observer is not None:
            await asyncio.shield(asyncio.to_thread(_stop, observer))


def _status(place: int | Path) -> os.stat_result:
    return os.fstat(place) if isinstance(place, int) else place.stat()


def _stamps(place: int | Path) -> dict[str, Stamp] | None:
    """Name to (inode, time of change) of the plain files there; None where there are too many to look at."""
    stamps: dict[str, Stamp] = {}
    with os.scandir(place) as entries:
        for number, entry in enumerate(entries):
            if number >= MAX_ENTRIES:
                return None
            if _NAME.fullmatch(entry.name) is None:
                continue
            with contextlib.suppress(OSError):  # It went away meanwhile.
                found = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(found.st_mode):
                    stamps[entry.name] = (found.st_ino, found.st_mtime_ns)
    return stamps


# --- watchdog ---------------------------------------------------------------------------------------------------------


def _observer(directory: Path, ring: Callable[[], None]) -> BaseObserver:
    """A running observer that rings for everything that happens in `directory`. Blocks: imports, starts threads."""
    from watchdog import events
    from watchdog.observers import Observer

    class Bell(events.FileSystemEventHandler):
        # An exception here would end the observer's thread without a word; `ring` raises none.
        def on_any_event(self, event: events.FileSystemEvent) -> None:
            ring()

    observer = Observer()
    # Never FileOpened: whoever reads a hint would ring. A touch tells itself by Closed alone.
    observer.schedule(
        Bell(),
        str(directory),
        event_filter=[
            events.FileCreatedEvent,
            events.FileMovedEvent,
            events.FileClosedEvent,
            events.FileDeletedEvent,
            events.DirDeletedEvent,
        ],
    )
    observer.daemon = True
    observer.start()
    return observer


def _alive(observer: BaseObserver) -> bool:
    return observer.is_alive() and all(emitter.is_alive() for emitter in observer.emitters)


def _stop(observer: BaseObserver) -> None:
    observer.stop()
    observer.join(5)
