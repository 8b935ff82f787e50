"""The thread that owns the database: batches, failures, and rows that a failed transaction left in the log."""

import asyncio
import hashlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from siteagent.store import memory, tables
from siteagent.store.body import Body, Envelope, SpoolFailed, SpoolFull
from siteagent.store.committer import Call, Commit, Committed, Committer, Filed, Postponed
from siteagent.store.durable import Disk
from siteagent.store.owed import Filing
from tests.faulty import FaultyDatabase
from tests.letters import content, envelope

NOW = datetime(2026, 11, 22, 8, tzinfo=UTC)


class Bench:
    """A committer on a real file, with a database that fails where told."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.database = FaultyDatabase()
        self.owed: list[Filing] = []
        self.listener: Callable[[list[Filing]], None] = self.owed.extend
        self.committer = self.fresh()
        self.before = self.committer.start()

    def fresh(self) -> Committer:
        return Committer(
            self.directory,
            connect=self.database,
            disk=Disk(),
            calendar=memory.Calendar(wall=lambda: NOW, monotonic=time.monotonic),
            on_committed=self._committed,
        )

    def _committed(self, filings: list[Filing]) -> None:
        self.listener(filings)

    def restart(self) -> list[Filing]:
        self.committer.stop()
        self.committer = self.fresh()
        return self.committer.start()

    def put(self, letter: Envelope, data: bytes = b"x\n", file: Path | None = None) -> "Future[Committed]":
        done: Future[Committed] = Future()
        digest = hashlib.sha256(data).digest()
        body = Body(len(data), 1, digest, None if file else data, file)

        def answer(outcome: Committed | SpoolFailed) -> None:
            if isinstance(outcome, SpoolFailed):
                done.set_exception(outcome)
            else:
                done.set_result(outcome)

        self.committer.put(Commit(letter, body, NOW, answer))
        return done

    def commit(self, letter: Envelope, data: bytes = b"x\n", file: Path | None = None) -> Committed:
        return self.put(letter, data, file).result(20)

    def ask(self, sql: str) -> list[Any]:
        done: Future[Any] = Future()
        self.committer.put(Call(lambda connection: connection.execute(sql).fetchall(), done))
        return list(done.result(20))

    def held_up(self) -> threading.Event:
        """The thread stops at its next commit until the event is set."""
        event = threading.Event()
        self.reached = threading.Event()

        def hold(sql: str) -> None:
            if sql == "COMMIT":
                self.reached.set()
                assert event.wait(20)

        self.database.before = hold
        return event


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.database.heal()
    made.committer.stop()


# --- batches ----------------------------------------------------------------------------------------------------------


def test_a_commit_is_on_disk_when_it_is_answered(bench: Bench, tmp_path: Path) -> None:
    letter = envelope()
    bench.commit(letter)
    with closing(sqlite3.connect(tmp_path / tables.FILE)) as reader:
        assert reader.execute("SELECT name FROM message").fetchall() == [(letter.message,)]


def test_what_waits_shares_one_transaction(bench: Bench) -> None:
    gate = bench.held_up()
    first = bench.put(envelope())
    assert bench.reached.wait(20)
    crowd = [bench.put(envelope(), b"%d" % n) for n in range(50)]
    begun = bench.database.statements.count("BEGIN IMMEDIATE")
    gate.set()
    for done in [first, *crowd]:
        done.result(20)
    assert bench.database.statements.count("BEGIN IMMEDIATE") <= begun + 2


def test_ids_go_on_after_a_restart_even_when_everything_was_filed(bench: Bench) -> None:
    bench.commit(envelope())
    bench.committer.put(Filed([(bench.owed[0].id, "alice")]))
    assert bench.restart() == []
    bench.commit(envelope(), b"second")
    assert bench.owed[1].id > bench.owed[0].id


def test_what_is_owed_is_handed_out_before_the_caller_hears(bench: Bench) -> None:
    order: list[str] = []
    bench.listener = lambda filings: order.append("owed")
    done = bench.put(envelope())
    done.add_done_callback(lambda _: order.append("answered"))
    done.result(20)
    bench.ask("SELECT 1")
    assert order == ["owed", "answered"]


def test_reports_of_filing_are_recorded_without_another_commit(bench: Bench, tmp_path: Path) -> None:
    bench.commit(envelope())
    bench.committer.put(Filed([(bench.owed[0].id, "alice")]))
    deadline = time.monotonic() + 10
    with closing(sqlite3.connect(tmp_path / tables.FILE)) as reader:
        while reader.execute("SELECT count(*) FROM message").fetchone() != (0,):
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_a_file_goes_after_the_transaction_that_needs_it_no_more(bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "large"
    file.write_bytes(b"x")
    bench.commit(envelope(), file=file)
    seen: list[bool] = []
    bench.database.before = lambda sql: seen.append(file.exists()) if sql == "COMMIT" else None
    bench.committer.put(Filed([(bench.owed[0].id, "alice")]))
    bench.commit(envelope(), b"next")
    assert seen == [True]
    assert not file.exists()


# --- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "kind"),
    [(sqlite3.SQLITE_FULL, SpoolFull), (sqlite3.SQLITE_IOERR_FSYNC, SpoolFailed),
     (sqlite3.SQLITE_IOERR_WRITE, SpoolFailed), (sqlite3.SQLITE_READONLY, SpoolFailed),
     (sqlite3.SQLITE_CORRUPT, SpoolFailed)],
)  # fmt: skip
@pytest.mark.parametrize("statement", ["BEGIN", "INSERT INTO message", "INSERT INTO delivery", "COMMIT"])
def test_s28_s29_a_failed_commit_says_so_keeps_nothing_and_the_next_works(
    bench: Bench, statement: str, code: int, kind: type[Exception]
) -> None:
    bench.database.fail(statement, code=code)
    with pytest.raises(SpoolFailed) as caught:
        bench.commit(envelope("alice@x"))
    assert type(caught.value) is kind
    assert bench.ask("SELECT * FROM message") == bench.ask("SELECT * FROM seen") == []
    assert bench.owed == []
    assert bench.commit(envelope("alice@x", session="s2")).duplicates == ()
    assert len(bench.owed) == 1


def test_one_bad_message_of_a_batch_costs_the_others_nothing(bench: Bench) -> None:
    gate = bench.held_up()
    held = bench.put(envelope())
    good = [bench.put(envelope(), b"%d" % n) for n in range(5)]
    bad = bench.put(envelope(sender="\ud800@x"), b"bad")
    gate.set()
    held.result(20)
    for done in good:
        done.result(20)
    with pytest.raises(SpoolFailed):
        bad.result(20)
    assert len(bench.owed) == 6


def test_an_error_of_the_message_does_not_cost_the_connection(bench: Bench) -> None:
    with pytest.raises(SpoolFailed):
        bench.commit(envelope(sender="\ud800@x"))
    assert bench.database.opened == 1


@pytest.mark.parametrize("with_file", [False, True])
def test_s28_a_transaction_that_stands_in_the_log_though_its_sync_failed_is_taken_out(
    bench: Bench, tmp_path: Path, with_file: bool
) -> None:
    """The provider was told 451: its retry must be filed, and must not be taken for a double of what never was."""
    file = tmp_path / "large" if with_file else None
    if file:
        file.write_bytes(b"x")
    bench.database.fail("COMMIT", late=True)
    with pytest.raises(SpoolFailed):
        bench.commit(envelope("alice@x", session="s1"), file=file)
    assert bench.ask("SELECT name FROM message") == bench.ask("SELECT name FROM seen") == []
    retry = envelope("alice@x", session="s2")
    assert bench.commit(retry).duplicates == ()
    assert [filing.message for filing in bench.owed] == [retry.message]
    assert [filing.message for filing in bench.restart()] == [retry.message]
    assert file is None or not file.exists()


def test_s27_a_file_whose_row_may_come_back_stays_until_it_cannot(bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "large"
    file.write_bytes(b"x")
    bench.database.fail("COMMIT", late=True, times=2)  # the second: what would have taken the row out
    with pytest.raises(SpoolFailed):
        bench.commit(envelope(), file=file)
    with pytest.raises(SpoolFailed):
        bench.commit(envelope(), b"other")
    assert file.exists()
    bench.commit(envelope(), b"third")
    assert not file.exists()


def test_s29_a_full_disk_frees_the_file_at_once(bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "large"
    file.write_bytes(b"x")
    bench.database.fail("COMMIT", code=sqlite3.SQLITE_FULL)
    with pytest.raises(SpoolFull):
        bench.commit(envelope(), file=file)
    assert not file.exists()


def test_s25_who_opens_the_spool_writes_before_believing_it(tmp_path: Path) -> None:
    """A killed process may leave a whole transaction in the log that was never synced: a double of it is no promise."""
    bench = Bench(tmp_path)
    statements = bench.database.statements
    assert statements.index("BEGIN IMMEDIATE") < statements.index("COMMIT")
    assert statements.index("COMMIT") < next(
        i for i, sql in enumerate(statements) if sql.startswith("SELECT message.id")
    )
    assert any(sql.startswith("INSERT OR REPLACE INTO calendar") for sql in statements)
    bench.committer.stop()


def test_s31_reopening_makes_no_new_spool_where_the_old_one_vanished(bench: Bench, tmp_path: Path) -> None:
    bench.database.fail("COMMIT")
    with pytest.raises(SpoolFailed):
        bench.commit(envelope())
    elsewhere = tmp_path.with_name("elsewhere")
    tmp_path.rename(elsewhere)
    tmp_path.mkdir()
    with pytest.raises(SpoolFailed):
        bench.commit(envelope())
    assert list(tmp_path.iterdir()) == []
    tmp_path.rmdir()
    elsewhere.rename(tmp_path)
    bench.commit(envelope())


def test_reports_of_filing_survive_a_disk_that_fails_for_a_while(bench: Bench, tmp_path: Path) -> None:
    bench.commit(envelope())
    bench.database.fail("COMMIT", times=3)
    bench.committer.put(Filed([(bench.owed[0].id, "alice")]))
    deadline = time.monotonic() + 10
    with closing(sqlite3.connect(tmp_path / tables.FILE)) as reader:
        while reader.execute("SELECT count(*) FROM message").fetchone() != (0,):
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_a_report_that_cannot_be_written_holds_no_commit_up_and_is_given_up(bench: Bench) -> None:
    bench.commit(envelope())
    bench.committer.put(Postponed(bench.owed[0].id, "alice", 1, 0.0, "\ud800"))
    for number in range(3):
        bench.commit(envelope(), b"%d" % number)
    time.sleep(0.2)
    bench.database.statements.clear()
    bench.commit(envelope(), b"after")
    assert bench.database.statements.count("BEGIN IMMEDIATE") == 1


def test_questions_do_not_hold_reports_up(bench: Bench) -> None:
    bench.commit(envelope())
    bench.committer.put(Filed([(bench.owed[0].id, "alice")]))
    deadline = time.monotonic() + 10
    while bench.ask("SELECT count(*) FROM message") != [(0,)]:
        assert time.monotonic() < deadline


# --- the thread lives -------------------------------------------------------------------------------------------------


def test_a_question_that_nobody_waits_for_any_more_costs_nothing(bench: Bench) -> None:
    gate = bench.held_up()
    bench.put(envelope())
    done: Future[Any] = Future()
    bench.committer.put(Call(lambda connection: 1, done))
    assert done.cancel()
    gate.set()
    assert bench.ask("SELECT 1") == [(1,)]


def test_a_question_with_a_bug_is_its_askers(bench: Bench) -> None:
    with pytest.raises(sqlite3.OperationalError):
        bench.ask("SELEKT")
    assert bench.ask("SELECT 1") == [(1,)]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_bug_behind_on_committed_costs_neither_the_promise_nor_the_thread(bench: Bench) -> None:
    def bug(filings: list[Filing]) -> None:
        raise RuntimeError("planted")

    bench.listener = bug
    bench.commit(envelope())
    bench.listener = bench.owed.extend
    bench.commit(envelope(), b"second")
    assert len(bench.restart()) == 2


def test_s36_a_caller_that_went_away_does_not_stop_its_commit(bench: Bench) -> None:
    gate = bench.held_up()
    letter = envelope()

    async def run() -> None:
        future = asyncio.wrap_future(bench.put(letter))
        task = asyncio.ensure_future(asyncio.shield(future))
        await asyncio.sleep(0)
        task.cancel()
        gate.set()
        await future

    asyncio.run(run())
    assert [filing.message for filing in bench.owed] == [letter.message]


def test_stop_does_all_that_was_handed_in(bench: Bench) -> None:
    gate = bench.held_up()
    done = [bench.put(envelope(), b"%d" % n) for n in range(20)]
    threading.Timer(0.05, gate.set).start()
    waiting = bench.restart()
    assert all(future.done() for future in done)
    assert len(waiting) == 20


def test_after_stop_nobody_waits_for_ever(bench: Bench) -> None:
    bench.committer.stop()
    with pytest.raises(SpoolFailed, match="closed"):
        bench.put(envelope())
    bench.committer.put(Filed([(1, "alice")]))
    bench.restart()


def test_the_log_is_moved_into_the_file_and_does_not_grow_for_ever(bench: Bench, tmp_path: Path) -> None:
    data = content(200_000)
    for number in range(150):
        bench.commit(envelope(), data + b"%d" % number)
        bench.committer.put(Filed([(bench.owed[-1].id, "alice")]))
    assert os.stat(tmp_path / f"{tables.FILE}-wal").st_size < 12_000_000


def test_a_lone_message_costs_one_transaction_and_no_more(bench: Bench) -> None:
    bench.commit(envelope())
    bench.database.statements.clear()
    for number in range(20):
        bench.commit(envelope(), b"%d" % number)
    assert bench.database.statements.count("COMMIT") == 20
    assert not [sql for sql in bench.database.statements if "checkpoint" in sql]


@pytest.mark.parametrize("in_a_file", [True, False])
def test_content_that_stands_in_a_file_does_not_count_as_long_in_the_log(
    bench: Bench, tmp_path: Path, in_a_file: bool
) -> None:
    bench.database.statements.clear()
    for number in range(9):
        data = b"%d" % number * 1_200_000
        file = tmp_path / str(number) if in_a_file else None
        if file is not None:
            file.write_bytes(data)
        bench.commit(envelope(), data, file)
    bench.ask("SELECT 1")  # behind what follows the last commit
    moved = [sql for sql in bench.database.statements if "checkpoint" in sql]
    assert bool(moved) != in_a_file
