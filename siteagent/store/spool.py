"""Accepted mail: the promise behind every 250.

A message is owed until each of its deliveries is reported `filed`. What was committed is handed to `on_committed` at
once, content in memory, so that the usual way to a mailbox never reads the database; a restart hands out again what
is still owed. A commit that has begun runs to its end, whoever stops waiting for it.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import functools
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from siteagent.store import memory, tables
from siteagent.store.body import Body, BodyWriter, Envelope, Placement, SpoolFailed, SpoolFull
from siteagent.store.committer import Call, Commit, Committed, Committer, Filed, Postponed
from siteagent.store.database import Connect
from siteagent.store.durable import Disk, make_directories, remove_quietly
from siteagent.store.owed import Filing, Owed, SpoolReader, owed_from_before

__all__ = [
    "Body",
    "BodyWriter",
    "Committed",
    "Envelope",
    "Filing",
    "Owed",
    "Placement",
    "Spool",
    "SpoolFailed",
    "SpoolFull",
    "SpoolReader",
]

_BODIES = "bodies"
_LOOK_AGAIN_SECONDS = 1.0
_T = TypeVar("_T")


class Spool:
    """The spool of one state directory. `open` before anything else, `close` last of all parts."""

    def __init__(
        self,
        directory: Path,
        *,
        disk: Disk | None = None,
        connect: Connect = tables.connect,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
        on_committed: Callable[[list[Filing]], None] = lambda filings: None,
        place: Callable[[Envelope], Placement | None] = lambda envelope: None,
        recall: Callable[[sqlite3.Connection], list[Filing]] = owed_from_before,
    ) -> None:
        """`on_committed` (fixed by `open`) is called in the spool's thread. `place` says where a large message goes.

        `recall` reads what is owed from before; what stands in files must be among what it returns.
        """
        self._recall = recall
        self._directory = directory
        self._bodies = directory / _BODIES
        self._disk = disk or Disk()
        self._connect = connect
        self._wall = wall
        self._monotonic = monotonic
        self.on_committed = on_committed
        self.place = place
        self._opened: Committer | None = None
        self._writers = ThreadPoolExecutor(2, thread_name_prefix="spool-file")
        self._looked: float | None = None
        self._free = 0
        self._answers: collections.deque[tuple[Callable[[Committed | SpoolFailed], None], Committed | SpoolFailed]]
        self._answers = collections.deque()
        self._waking = False

    # --- life ---------------------------------------------------------------------------------------------------------

    def open(self) -> list[Filing]:
        """Opens or makes the spool and returns what is owed from before. Blocks. Raises StorageError, OSError."""
        make_directories(self._bodies, mode=0o700, disk=self._disk)
        committer = Committer(
            self._directory,
            connect=self._connect,
            disk=self._disk,
            calendar=memory.Calendar(wall=self._wall, monotonic=self._monotonic),
            on_committed=self.on_committed,
            recall=self._recall,
        )
        waiting = committer.start()
        self._opened = committer
        self._sync_place(self._directory)
        with contextlib.suppress(PermissionError):
            self._sync_place(self._directory.parent)
        self._remove_orphans({filing.file.name for filing in waiting if filing.file is not None})
        return [self._found(filing) for filing in waiting]

    async def close(self) -> None:
        """Commits everything that was handed in, then stops."""
        await asyncio.to_thread(self.close_now)

    def close_now(self) -> None:
        """`close` for callers without a loop. Blocks."""
        self._writers.shutdown(wait=True)
        if self._opened is not None:
            self._opened.stop()

    @property
    def _committer(self) -> Committer:
        assert self._opened is not None, "the spool is not open"
        return self._opened

    # --- taking in ----------------------------------------------------------------------------------------------------

    def body(self, envelope: Envelope) -> BodyWriter:
        """A writer for the content of the message that `envelope` describes."""
        beside = Placement(self._bodies, b"", 0o600)

        def placements() -> Sequence[Placement]:
            chosen = self.place(envelope) if len(envelope.targets) == 1 else None
            return [beside] if chosen is None else [chosen, beside]

        return BodyWriter(disk=self._disk, executor=self._writers, name=envelope.message, placements=placements)

    def room(self, bytes_wanted: int, *, keep_free: int) -> bool:
        """Whether `bytes_wanted` more would leave `keep_free` octets. Looks at the disk once a second at most."""
        now = self._monotonic()
        if self._looked is None or now - self._looked > _LOOK_AGAIN_SECONDS:
            try:
                self._free = self._disk.free_bytes(self._directory)
            except OSError:
                return False
            self._looked = now
        return self._free - bytes_wanted >= keep_free

    def hand_in(self, envelope: Envelope, body: Body, then: Callable[[Committed | SpoolFailed], None]) -> None:
        """Begins a commit, which nothing stops. `then` is called on the loop when it is durable, or when it failed.

        Without a task or a future of asyncio's: each would cost the sessions another turn of the loop. Raises
        SpoolFailed where the spool is closed.
        """
        answer = functools.partial(self._answer, asyncio.get_running_loop(), then)
        self._committer.put(Commit(envelope, body, self._wall(), answer))

    async def commit(self, envelope: Envelope, body: Body) -> Committed:
        """Durable when it returns. Whoever stops waiting does not stop it. Raises SpoolFull, SpoolFailed."""
        heard: asyncio.Future[Committed] = asyncio.get_running_loop().create_future()

        def hear(outcome: Committed | SpoolFailed) -> None:
            if heard.done():
                return  # whoever waited has been cancelled
            if isinstance(outcome, SpoolFailed):
                heard.set_exception(outcome)
            else:
                heard.set_result(outcome)

        self.hand_in(envelope, body, hear)
        return await heard

    def _answer(
        self,
        loop: asyncio.AbstractEventLoop,
        then: Callable[[Committed | SpoolFailed], None],
        outcome: Committed | SpoolFailed,
    ) -> None:
        """In the spool's thread: the answers of one transaction wake the loop together."""
        self._answers.append((then, outcome))
        if not self._waking:
            self._waking = True
            try:
                loop.call_soon_threadsafe(self._hand_out, loop)
            except RuntimeError:  # the loop is closed: nobody waits any more
                self._waking = False

    def _hand_out(self, loop: asyncio.AbstractEventLoop) -> None:
        self._waking = False
        while self._answers:
            then, outcome = self._answers.popleft()
            try:
                then(outcome)
            except Exception as error:  # one session's trouble must not cost the others their answers
                loop.call_exception_handler({"message": "an answer of the spool", "exception": error})

    # --- giving out ---------------------------------------------------------------------------------------------------

    def filed(self, deliveries: Sequence[tuple[int, str]]) -> None:
        """These stand in their mailboxes, published and synced. Any thread; recorded with the next transaction."""
        self._committer.put(Filed(deliveries))

    def postponed(self, filing: Filing, *, tries: int, next_try: float, reason: str) -> None:
        """That one could not be filed; kept for people and for a restart. `next_try` in seconds since 1970."""
        plain = reason.encode("utf-8", "replace").decode()  # a file's name need not be text
        self._committer.put(Postponed(filing.id, filing.target, tries, next_try, plain))

    def load(self, filing: Filing) -> bytes:
        """The content of a delivery that carries none. Blocks; not for the loop's thread. Raises SpoolFailed."""

        def read(connection: sqlite3.Connection) -> bytes:
            row = connection.execute("SELECT body FROM message WHERE id=?", (filing.id,)).fetchone()
            if row is None or row[0] is None:
                raise SpoolFailed("cannot read a message of the spool", f"{filing.message} has no content")
            return bytes(row[0])

        try:
            return self._call(read).result()
        except sqlite3.Error as error:
            raise SpoolFailed("cannot read a message of the spool", f"{filing.message}: {error}") from error

    async def ask(self, run: Callable[[sqlite3.Connection], _T]) -> _T:
        """Runs `run` with the database in the spool's thread, outside any transaction."""
        return await asyncio.wrap_future(self._call(run))

    def _call(self, run: Callable[[sqlite3.Connection], _T]) -> Future[_T]:
        done: Future[_T] = Future()
        self._committer.put(Call(run, done))
        return done

    def _sync_place(self, path: Path) -> None:
        """Whoever made what stands in `path` may have died before its own sync."""
        folder = self._disk.open_folder(path.resolve())
        try:
            self._disk.sync_folder(folder)
        finally:
            self._disk.close_folder(folder)

    def _found(self, filing: Filing) -> Filing:
        """With its file where that is now: the state directory may have been moved since."""
        here = self._bodies / filing.file.name if filing.file is not None else None
        return dataclasses.replace(filing, file=here) if here is not None and here.exists() else filing

    def _remove_orphans(self, known: set[str]) -> None:
        """Files of messages whose transaction never came. Those in a Maildir's tmp/ are `delivery.maildir`'s."""
        for path in self._bodies.iterdir():
            if path.name not in known:
                remove_quietly(path)
