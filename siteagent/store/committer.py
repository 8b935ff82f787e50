"""The thread that owns the spool's database: what waits goes into one transaction, and only then is anything promised.

Natural batching: a lone message waits for nothing, a crowd shares one sync. Reports of what was filed are lazy: they
ride along with the next commit, or go alone after a tenth of a second; losing one costs a look into the Maildir after
the next start, no more.
"""

from __future__ import annotations

import collections
import contextlib
import math
import queue
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from siteagent.errors import SiteAgentError
from siteagent.store import memory, owed, tables
from siteagent.store.body import Body, Envelope, SpoolFailed, SpoolFull
from siteagent.store.database import Connect, Database
from siteagent.store.durable import Disk, remove_quietly
from siteagent.store.owed import Filing

_LAZY_SECONDS = 0.1
_MOST_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class Committed:
    """`duplicates`: the recipients who have this content from an earlier session; `first`: the id they have it as."""

    duplicates: tuple[str, ...]
    first: str | None


@dataclass(slots=True)
class Commit:
    """`answer` is called in the committer's thread, once, and raises nothing."""

    envelope: Envelope
    body: Body
    accepted: datetime
    answer: Callable[[Committed | SpoolFailed], None]


@dataclass(slots=True)
class Filed:
    deliveries: Sequence[tuple[int, str]]


@dataclass(slots=True)
class Postponed:
    id: int
    target: str
    tries: int
    next_try: float
    reason: str


@dataclass(slots=True)
class Call:
    run: Callable[[sqlite3.Connection], Any]
    done: Future[Any]


class _Wake:
    """Reports wait, and the thread does not know."""


_WAKE = _Wake()
Job = Commit | Filed | Postponed | Call | _Wake | None


class Committer:
    """Owns the database from `start` to `stop`. `put` takes jobs from any thread.

    `on_committed` is called in this thread with what became owed, after the transaction and before its callers hear.
    """

    def __init__(
        self,
        directory: Path,
        *,
        connect: Connect,
        disk: Disk,
        calendar: memory.Calendar,
        on_committed: Callable[[list[Filing]], None],
        recall: Callable[[sqlite3.Connection], list[Filing]] = owed.owed_from_before,
    ) -> None:
        self._recall = recall
        self._directory = directory
        self._calendar = calendar
        self._database = Database(directory, connect=connect, disk=disk, calendar=calendar)
        self._on_committed = on_committed
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._reports: collections.deque[Filed | Postponed] = collections.deque()
        self._asleep = True  # nothing is expected: a report has to wake the thread
        self._guard = threading.Lock()
        self._stopped = False
        # A daemon: who ends without `stop` ends as by kill -9, which costs nothing, and does not hang at the end.
        self._thread = threading.Thread(target=self._work, name="spool", daemon=True)

    # --- from other threads -------------------------------------------------------------------------------------------

    def start(self) -> list[Filing]:
        """Opens the database, and returns what is owed from before. Blocks. Raises StorageError."""
        self._database.open()
        try:
            waiting = self._recall(self._database.connected())
        except BaseException:
            self._database.close()
            raise
        self._thread.start()
        return waiting

    def put(self, job: Job) -> None:
        """Hands a job in. Raises SpoolFailed after `stop` where somebody would wait for it."""
        with self._guard:
            if not self._stopped:
                if isinstance(job, Filed | Postponed):
                    self._reports.append(job)
                    if not self._asleep:
                        return
                    self._asleep = False
                    job = _WAKE
                self._jobs.put(job)
                return
        if isinstance(job, Commit | Call):
            raise SpoolFailed("cannot use the spool", "it is closed")

    def stop(self) -> None:
        """Does all that was handed in, then ends. Blocks."""
        with self._guard:
            self._stopped = True
            self._jobs.put(None)
        self._thread.join()

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        lazy: list[Filed | Postponed] = []
        look_at = math.inf
        running = True
        while running:
            batch, running = self._next_batch(until=look_at)
            due = [job for job in batch if isinstance(job, Commit)]
            if due or not running or time.monotonic() >= look_at:
                while self._reports:
                    lazy.append(self._reports.popleft())
                if due or lazy:
                    lazy = self._transact(due, lazy)
                    look_at = time.monotonic() + _LAZY_SECONDS
                else:
                    look_at = self._fall_asleep()
            elif look_at == math.inf:
                look_at = time.monotonic() + _LAZY_SECONDS
            for job in batch:
                if isinstance(job, Call):
                    self._run(job)
            self._database.checkpoint(idle=not batch)
        self._database.close()

    def _fall_asleep(self) -> float:
        """From here on the first report wakes this thread. Until when to wait for other jobs."""
        with self._guard:
            self._asleep = not self._reports
            return math.inf if self._asleep else time.monotonic() + _LAZY_SECONDS

    def _next_batch(self, *, until: float) -> tuple[list[Job], bool]:
        """Everything there is, at least one job; nothing when the monotonic clock says `until`."""
        batch: list[Job] = []
        with contextlib.suppress(queue.Empty):
            batch.append(self._jobs.get(timeout=None if until == math.inf else max(0.0, until - time.monotonic())))
            while len(batch) < _MOST_AT_ONCE:
                batch.append(self._jobs.get_nowait())
        running = None not in batch
        return [job for job in batch if job is not None], running

    def _transact(self, commits: list[Commit], lazy: list[Filed | Postponed]) -> list[Filed | Postponed]:
        """One transaction for all; where it fails, the commits once more one by one. Returns what is still to do."""
        try:
            results = self._attempt(commits, lazy)
        except Exception as error:  # the peer is told 451, whatever it was; the thread lives on
            if len(commits) == 1 and not lazy:
                self._fail(commits[0], error)
                return []
            for commit in commits:
                self._transact([commit], [])
            # Reports that are to blame themselves are given up: what they tell is found in the Maildirs too.
            return lazy if commits or isinstance(error, sqlite3.Error | SiteAgentError) else []
        self._announce(commits, results)
        return []

    def _attempt(self, commits: list[Commit], lazy: list[Filed | Postponed]) -> list[tuple[Committed, list[Filing]]]:
        with self._database.transaction() as connection:
            gone = self._settle(connection, lazy)
            results = self._insert(connection, commits)
        for path in gone:
            remove_quietly(path)
        return results

    def _insert(
        self, connection: sqlite3.Connection, commits: Sequence[Commit]
    ) -> list[tuple[Committed, list[Filing]]]:
        ids = [self._database.new_id(len(commit.body.data or b"")) for commit in commits]
        day = self._calendar.day
        keys = [
            (memory.key_of(e.sender, address, commit.body.digest), e.session, identity, e.message, day)
            for identity, commit in zip(ids, commits, strict=True)
            for e in (commit.envelope,)
            for address, _ in e.recipients
        ]
        known = iter(memory.remember(connection, keys))
        results: list[tuple[Committed, list[Filing]]] = []
        fresh: list[owed.Message] = []
        for identity, commit in zip(ids, commits, strict=True):
            addresses: dict[str, list[str]] = {}
            duplicates: list[str] = []
            first: str | None = None
            for address, target in commit.envelope.recipients:
                had = next(known)
                if had is None:
                    addresses.setdefault(target, []).append(address)
                else:
                    duplicates.append(address)
                    first = first or had
            message = owed.Message(identity, commit.envelope, commit.body, commit.accepted, addresses)
            if addresses:
                fresh.append(message)
            results.append((Committed(tuple(duplicates), first), message.filings()))
        owed.insert_all(connection, fresh)
        return results

    def _settle(self, connection: sqlite3.Connection, lazy: list[Filed | Postponed]) -> list[Path]:
        """Returns the files that nobody needs when the transaction stands."""
        filed: list[tuple[int, str]] = []
        for job in lazy:
            if isinstance(job, Filed):
                filed += job.deliveries
            else:
                connection.execute(
                    "UPDATE delivery SET tries=?, next_try=?, reason=? WHERE message=? AND target=?",
                    (job.tries, int(job.next_try * 1e6), job.reason, job.id, job.target),
                )
        return owed.settle(connection, filed)

    def _announce(self, commits: list[Commit], results: list[tuple[Committed, list[Filing]]]) -> None:
        """Hands out what became owed, then lets the callers go on: who is told 250 finds it already counted."""
        filings = [filing for _, mine in results for filing in mine]
        try:
            if filings:
                self._on_committed(filings)
        except Exception:  # a bug of the listener's must not cost the thread; what is owed is found by the next start
            threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread())))
        for commit, (committed, mine) in zip(commits, results, strict=True):
            if not mine and commit.body.file is not None:
                remove_quietly(commit.body.file)  # everybody had it
            commit.answer(committed)

    def _fail(self, commit: Commit, error: Exception) -> None:
        if commit.body.file is not None:
            self._database.give_up(commit.body.file)
        kind = SpoolFull if self._database.is_full(error, commit.body.size) else SpoolFailed
        failure = kind("cannot keep a message", f"{self._directory / tables.FILE}: {error}")
        failure.__cause__ = error
        commit.answer(failure)

    def _run(self, job: Call) -> None:
        if not job.done.set_running_or_notify_cancel():
            return
        try:
            job.done.set_result(job.run(self._database.connected()))
        except Exception as error:  # belongs to whoever asked
            job.done.set_exception(error)
