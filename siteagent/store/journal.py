"""The history of rounds and messages: written by a thread of its own, in batches, while the agent runs.

Its law: the loop never waits for the journal, and the journal never stops the mail. `record` puts an event into a
bounded queue; the thread gathers what comes within `GATHER_SECONDS` into one transaction. A disk that refuses makes
the thread hold on to the batch and try again with growing pauses; what no longer fits is dropped, counted and told.
A damaged file is set aside and a new one begun: it is history, not mail.

WAL with ``synchronous=NORMAL``: a power cut may cost the last moments of history, never the file.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from siteagent.errors import PermissionProblem, StorageError
from siteagent.events import Stamped
from siteagent.store import ledger, schema
from siteagent.store.crowd import Crowd
from siteagent.store.history import AnswerEntry, JournalReader, MessageEntry, Restored, RoundEntry

__all__ = ["FILE", "AnswerEntry", "Journal", "JournalReader", "MessageEntry", "Restored", "RoundEntry"]

FILE = "journal.sqlite"
GATHER_SECONDS = 0.2
BATCH = 1000
QUEUED = 20_000
HELD = 5 * BATCH
PRUNE_SECONDS = 86_400.0
_PAUSES = (1.0, 5.0, 15.0, 60.0)


class _Flush:
    """Put into the queue to learn when everything before it is written; `last` ends the thread."""

    def __init__(self, *, last: bool = False) -> None:
        self.done = threading.Event()
        self.last = last


class Journal:
    """One writer of one file. `open`, then `record` from the event loop's thread, then `close`."""

    def __init__(
        self,
        path: Path,
        *,
        keep_days: int,
        now: Callable[[], datetime],
        report: Callable[[str], None] = lambda text: None,
        steps: Sequence[str] = ledger.STEPS,
        pauses: Sequence[float] = _PAUSES,
    ) -> None:
        """`report` is told in one sentence what went wrong, on the journal's thread."""
        self._path = path
        self._keep_days = keep_days
        self._now = now
        self._report = report
        self._steps = steps
        self._pauses = pauses
        self._queue: queue.SimpleQueue[Stamped | _Flush] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._hurry = threading.Event()
        self._pruned = float("-inf")
        self.dropped = 0

    def open(self) -> None:
        """Open or make the file, migrate it where it is older, start the thread. Blocks.

        Raises ConfigurationError where a newer siteagent wrote it, PermissionProblem or StorageError where it cannot
        be opened.
        """
        try:
            db = self._connected()
        except (sqlite3.OperationalError, OSError) as error:
            raise self._unusable(error) from error
        except sqlite3.DatabaseError as error:
            aside = self._path.with_name(f"{self._path.name}.damaged")
            self._set_aside(aside)
            self._report(f"the journal was damaged ({error}); it is kept as {aside}, and a new one begins")
            try:
                db = self._connected()
            except (sqlite3.Error, OSError) as again:
                raise self._unusable(again) from again
        self._thread = threading.Thread(target=self._run, args=(db,), name="journal", daemon=True)
        self._thread.start()

    def close(self, *, seconds: float = 10.0) -> None:
        """Write what waits, then stop. Blocks, at most for about `seconds`."""
        if self._thread is None:
            return
        self._closing.set()
        self._hurry.set()
        self._queue.put(_Flush(last=True))
        self._thread.join(seconds)
        self._thread = None

    def record(self, stamped: Stamped) -> None:
        """Take an event in; what the journal does not keep is passed over. Never blocks."""
        if type(stamped.event) not in ledger.KEPT:
            return
        if self._queue.qsize() < QUEUED:
            self._queue.put(stamped)
        else:
            self.dropped += 1

    def flush(self, *, seconds: float = 10.0) -> bool:
        """Wait until everything recorded so far is written, or was tried. Blocks; False where it took too long."""
        marker = _Flush()
        self._hurry.set()
        self._queue.put(marker)
        return marker.done.wait(seconds)

    # --- opening --------------------------------------------------------------------------------------------------

    def _connected(self) -> sqlite3.Connection:
        # Addresses are in it: its owner and the owner's group. The log and the index beside it take its mode.
        os.close(os.open(self._path, os.O_CREAT | os.O_RDWR | getattr(os, "O_CLOEXEC", 0), 0o640))
        db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=5)
        try:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=NORMAL")
            db.execute("PRAGMA cache_size=-256")  # KiB: it writes at the end, and what it fills it keeps
            kept = schema.upgrade(db, self._path, self._steps)
            # What an agent that died left open will never end.
            db.execute(
                "UPDATE rounds SET reason = 'the agent ended before the round did' WHERE ended IS NULL AND reason = ''"
            )
        except BaseException:
            db.close()
            raise
        if kept is not None:
            self._report(f"the journal was migrated to schema {len(self._steps)}; a copy is kept as {kept}")
        return db

    def _unusable(self, error: Exception) -> StorageError | PermissionProblem:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        if isinstance(error, PermissionError):
            fix = f"run it as the owner of {self._path.parent}"
            return PermissionProblem(f"cannot open the journal {self._path}", why, fix=fix)
        return StorageError(f"cannot open the journal {self._path}", why, fix="run `siteagent doctor`")

    def _set_aside(self, aside: Path) -> None:
        self._path.replace(aside)
        for suffix in ("-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                self._path.with_name(self._path.name + suffix).unlink()

    # --- the thread -----------------------------------------------------------------------------------------------

    def _run(self, db: sqlite3.Connection) -> None:
        failures = 0
        held: list[Stamped] = []
        while True:
            batch, markers = self._gather(wait=not held) if len(held) < HELD else ([], [])
            held += batch
            try:
                self._commit(db, held)
                failures, held = 0, []
            except sqlite3.Error as error:
                if failures == 0:
                    self._report(f"the journal cannot be written ({error}); it is tried again")
                failures += 1
            for marker in markers:
                marker.done.set()
            if any(marker.last for marker in markers) or (held and self._closing.is_set()):
                break
            if held:
                self._closing.wait(self._pauses[min(failures, len(self._pauses)) - 1])
        if held:
            self._report(f"the journal lost {len(held) + self._queue.qsize()} events")
        db.close()

    def _gather(self, *, wait: bool) -> tuple[list[Stamped], list[_Flush]]:
        """What comes within a moment of the first event; at once, with what is there, when a marker is met.

        Without `wait` (a batch is held back already) what is there is taken, as far as the bound goes.
        """
        batch: list[Stamped] = []
        markers: list[_Flush] = []
        until = time.monotonic() + PRUNE_SECONDS if wait else 0.0
        while len(batch) < BATCH:
            try:
                left = until - time.monotonic()
                item = self._queue.get(timeout=left) if left > 0 else self._queue.get_nowait()
            except queue.Empty:
                break
            if isinstance(item, _Flush):
                self._hurry.clear()
                markers.append(item)
                break
            batch.append(item)
            if wait and len(batch) == 1:
                # Not asleep in the queue: each event would wake this thread, and that costs the sessions more than it.
                self._hurry.wait(GATHER_SECONDS)
                until = 0.0
        return batch, markers

    def _write_together(self, db: sqlite3.Connection, batch: Sequence[Stamped]) -> bool:
        """False: some event cannot be taken, and nothing was written."""
        db.execute("SAVEPOINT crowd")
        try:
            crowd = Crowd(db)
            for stamped in batch:
                if not crowd.take(stamped.at, stamped.event):
                    crowd.flush()
                    ledger.write(db, stamped.at, stamped.event)
            crowd.flush()
        except Exception as error:
            if _is_of_the_disk(error):
                raise
            db.execute("ROLLBACK TO crowd")
            return False
        db.execute("RELEASE crowd")
        return True

    def _write_alone(self, db: sqlite3.Connection, batch: Sequence[Stamped]) -> None:
        for stamped in batch:
            try:
                ledger.write(db, stamped.at, stamped.event)
            except Exception as error:
                if _is_of_the_disk(error):
                    raise
                self._report(f"the journal cannot keep {stamped.event.name}: {type(error).__name__}: {error}")

    def _commit(self, db: sqlite3.Connection, batch: Sequence[Stamped]) -> None:
        """One transaction. An event that SQLite cannot take is left out and told: a bug of ours, not the disk's."""
        if self.dropped:
            self._report(f"the journal lost {self.dropped} events: it could not keep up")
            self.dropped = 0
        db.execute("BEGIN IMMEDIATE")
        try:
            if not self._write_together(db, batch):
                self._write_alone(db, batch)
            if time.monotonic() - self._pruned >= PRUNE_SECONDS:
                ledger.prune(db, self._now(), keep_days=self._keep_days)
            db.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                db.execute("ROLLBACK")
            raise
        if time.monotonic() - self._pruned >= PRUNE_SECONDS:
            self._pruned = time.monotonic()


def _is_of_the_disk(error: Exception) -> bool:
    """Not of what was to be written."""
    return isinstance(error, sqlite3.OperationalError | sqlite3.InternalError) or type(error) is sqlite3.DatabaseError
