"""The content of one message on its way into the spool: in memory while it is small, in a file past that.

`BodyWriter` is fed on the event loop and never waits: what goes to a file goes there from a thread, in order, one
job at a time. A file is synced, and the directory that it stands in, before `finish` returns; where any of that fails
the file is removed, and is not synced again.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

from siteagent.errors import SiteAgentError
from siteagent.store.durable import Disk, Folder, no_room, remove_quietly

IN_MEMORY_BYTES = 262_144
_WRITE_BYTES = 262_144
_PART_BYTES = 16_384
# From 2,048 octets on `hashlib` gives the interpreter away, and getting it back takes longer than hashing 16 KiB.
_KEPT_BYTES = 2_047
_LONG_BYTES = 16_384
_RESUME_BELOW_BYTES = 262_144


class SpoolFailed(SiteAgentError):
    """Our own disk or code failed: nothing was kept, the provider is asked to come again (451)."""

    temporary = True


class SpoolFull(SpoolFailed):
    """There is no room: nothing was kept, the provider is asked to come again (452)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """What is known of a message when its content begins. `recipients`: (address, target), in order, at least one."""

    message: str
    session: str
    provider: str | None
    round: str | None
    sender: str
    recipients: tuple[tuple[str, str], ...]
    received: bytes
    smtputf8: bool
    eight_bit: bool

    @property
    def targets(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(target for _, target in self.recipients))


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the file of a large message is written: a directory, the header lines in front, the file's mode."""

    directory: Path
    head: bytes
    mode: int


@dataclass(frozen=True, slots=True)
class Body:
    """Content that is durable if it is in a file: `data` or `file` (with `head` octets of ours in front of it).

    `bare`: how many of its LF no CR precedes, which is what a Maildir's ``,W=`` needs. `digest`: SHA-256.
    """

    size: int
    bare: int
    digest: bytes
    data: bytes | None
    file: Path | None = None
    head: int = 0


class _Spill:
    """The file of one large message: in the first of `placements` that takes it.

    Its methods run in threads, one at a time by the guard, in any order: after `remove` nothing is written any more.
    """

    def __init__(self, disk: Disk, placements: Sequence[Placement], name: str) -> None:
        self._disk = disk
        self._place, *self._others = placements
        self._name = name
        self._handle = -1
        self._folder: Folder | None = None
        self._written = 0
        self._finished = False
        self._guard = threading.Lock()
        self.error: Exception | None = None

    @property
    def path(self) -> Path:
        return self._place.directory / self._name

    @property
    def head(self) -> int:
        return len(self._place.head)

    def write(self, parts: Sequence[bytes]) -> None:
        """Raises nothing: the first error stands in `error`, and `finish` tells it."""
        with self._guard:
            if self.error is not None:
                return
            try:
                self._write(parts)
            except Exception as error:
                self.error = error

    def _write(self, parts: Sequence[bytes]) -> None:
        try:
            if self._handle < 0:
                self._open()
            self._disk.write(self._handle, parts)
            self._disk.start_write_back(self._handle)
        except OSError:
            if not self._others:
                raise
            self._move()
            self._write(parts)
        else:
            self._written += sum(map(len, parts))

    def _open(self) -> None:
        self._folder = self._disk.open_folder(self._place.directory)
        self._handle = self._disk.create(self._folder, self._name, self._place.mode)
        self._disk.write(self._handle, [self._place.head])

    def _move(self) -> None:
        """Goes on in the next place: that a mailbox's disk is full or gone is no reason to refuse its mail."""
        handle, folder, path, head, written = self._handle, self._folder, self.path, self.head, self._written
        self._handle, self._folder, self._written = -1, None, 0
        self._place, *self._others = self._others
        try:
            if not written:
                return
            with path.open("rb") as source:
                source.seek(head)
                while self._written < written:
                    part = source.read(min(_WRITE_BYTES, written - self._written))
                    if not part:
                        raise OSError(errno.EIO, "it is shorter than what was written", str(path))
                    self._write([part])
        finally:
            self._drop(handle, folder, remove=True)

    def finish(self) -> None:
        """Synced, with its directory entry. Raises the first error there was, the file removed."""
        with self._guard:
            if self.error is None and self._folder is not None:
                try:
                    self._disk.sync_file(self._handle)
                    self._disk.sync_folder(self._folder)
                except Exception as error:
                    self.error = error
            self._drop(self._handle, self._folder, remove=self.error is not None)
            self._handle, self._folder = -1, None
            if self.error is not None:
                raise self.error
            self._finished = True

    def remove(self) -> None:
        """Forgets it, finished or not."""
        with self._guard:
            self.error = self.error or OSError(errno.ECANCELED, "it was given up")
            if self._finished:
                remove_quietly(self.path)
            self._drop(self._handle, self._folder, remove=True)
            self._handle, self._folder = -1, None

    def _drop(self, handle: int, folder: Folder | None, *, remove: bool) -> None:
        if folder is None:
            return
        if handle >= 0:
            if remove:
                with contextlib.suppress(OSError):
                    self._disk.remove(folder, self._name)
            with contextlib.suppress(OSError):
                self._disk.close(handle)
        with contextlib.suppress(OSError):
            self._disk.close_folder(folder)


class BodyWriter:
    """Takes the content of one message: LF line ends, dots unstuffed. Used on the event loop's thread.

    `size` counts the octets so far; `backlog` those of them that are not on disk yet, once they go there: the reader
    pauses above 512 KiB and is told by `on_drained` when to go on.
    """

    def __init__(
        self, *, disk: Disk, executor: Executor, name: str, placements: Callable[[], Sequence[Placement]]
    ) -> None:
        self._disk = disk
        self._executor = executor
        self._name = name
        self._placements = placements
        self._waiting: list[bytes] = []
        self._held = 0
        self._spill: _Spill | None = None
        self._job: asyncio.Future[None] | None = None
        self._digest = hashlib.sha256()
        self._bare = 0
        self._last = b""
        self._given_up = False
        self._handed_over = False
        self.size = 0
        self.on_drained: Callable[[], None] | None = None

    @property
    def backlog(self) -> int:
        return self._held if self._spill is not None else 0

    def write(self, data: bytes) -> None:
        if self._given_up:
            return
        self.size += len(data)
        self._held += len(data)
        if self._waiting and len(self._waiting[-1]) + len(data) <= _PART_BYTES:
            self._waiting[-1] += data  # what trickles in must not cost an object for each octet
        else:
            self._waiting.append(data)
        if self._spill is None and self._held > IN_MEMORY_BYTES:
            self._spill = _Spill(self._disk, self._placements(), self._name)
        if self._spill is not None and self._job is None and self._held >= _WRITE_BYTES:
            self._start_job(self._spill)

    def in_memory(self) -> Body | None:
        """The whole content, once; None where it goes to a file, and `finish` has to be waited for."""
        if self._spill is not None:
            return None
        data = b"".join(self._waiting)
        self._waiting.clear()
        self._account(data)
        return Body(self.size, self._bare, self._digest.digest(), data)

    async def finish(self) -> Body:
        """The whole content, durable where it went to a file. Raises SpoolFull, SpoolFailed.

        From its return on a file is the spool's, and `discard` leaves it alone; cancelled, it is `discard`'s.
        """
        if self._spill is None:
            whole = self.in_memory()
            assert whole is not None
            return whole
        while (job := self._job) is not None:
            await asyncio.shield(job)
            if self._job is job:
                await asyncio.sleep(0)  # it was done before: its callback waits for the loop, which waits for us
        rest, self._waiting = self._waiting, []
        loop = asyncio.get_running_loop()
        try:
            await asyncio.shield(loop.run_in_executor(self._executor, self._finish_file, self._spill, rest))
        except Exception as error:
            kind = SpoolFull if isinstance(error, OSError) and no_room(error) else SpoolFailed
            why = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise kind("cannot keep a message", f"{self._spill.path}: {why}") from error
        self._handed_over = True
        return Body(self.size, self._bare, self._digest.digest(), None, self._spill.path, self._spill.head)

    def discard(self) -> None:
        """Forgets it all; a file is removed in the thread. Idempotent."""
        if self._given_up:
            return
        self._given_up = True
        self._waiting.clear()
        self._held = 0
        if self._spill is not None and not self._handed_over:
            with contextlib.suppress(RuntimeError):  # the spool is closed: an orphan, which the next start removes
                self._executor.submit(self._spill.remove)

    def _finish_file(self, spill: _Spill, rest: Sequence[bytes]) -> None:
        self._write_out(spill, rest)
        spill.finish()

    def _start_job(self, spill: _Spill) -> None:
        parts, self._waiting = self._waiting, []
        octets = sum(map(len, parts))
        self._job = asyncio.get_running_loop().run_in_executor(self._executor, self._write_out, spill, parts)
        self._job.add_done_callback(lambda job: self._job_done(spill, octets))

    def _write_out(self, spill: _Spill, parts: Sequence[bytes]) -> None:
        for part in parts:
            self._account(part)
        if parts:
            spill.write(parts)

    def _job_done(self, spill: _Spill, taken: int) -> None:
        before = self._held
        self._job = None
        if self._given_up:
            return
        self._held -= taken
        if self._held >= _WRITE_BYTES:
            self._start_job(spill)
        if before >= _RESUME_BELOW_BYTES > self._held and self.on_drained is not None:
            self.on_drained()

    def _account(self, data: bytes) -> None:
        """Digest and line ends. A CR LF may be split between two parts."""
        if len(data) > _LONG_BYTES:
            self._digest.update(data)
        else:
            view = memoryview(data)
            for start in range(0, len(data), _KEPT_BYTES):
                self._digest.update(view[start : start + _KEPT_BYTES])
        self._bare += len(data) - len(data.replace(b"\n", b""))  # three times as fast as counting them
        if b"\r" in data:
            self._bare -= data.count(b"\r\n")
        if self._last == b"\r" and data[:1] == b"\n":
            self._bare -= 1
        self._last = data[-1:]
