"""A transaction is durable or was never there, whatever the disk does and however the last process ended."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from siteagent.errors import ExitCode, StorageError
from siteagent.store import memory, tables
from siteagent.store.database import Database
from siteagent.store.durable import Disk
from tests.faulty import FaultyDatabase

NOW = datetime(2026, 11, 22, 8, tzinfo=UTC)


class Bench:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.connect = FaultyDatabase()
        self.database = self.fresh()
        self.database.open()

    def fresh(self) -> Database:
        calendar = memory.Calendar(wall=lambda: NOW, monotonic=time.monotonic)
        return Database(self.directory, connect=self.connect, disk=Disk(), calendar=calendar)

    def write(self) -> int:
        with self.database.transaction() as connection:
            identity = self.database.new_id(100)
            connection.execute("INSERT INTO seen VALUES (?,'s',?,'n',1)", (b"%d" % identity, identity))
        return identity

    def ids(self) -> list[int]:
        """As another process reads them."""
        with closing(sqlite3.connect(self.directory / tables.FILE)) as connection:
            return [identity for (identity,) in connection.execute("SELECT message FROM seen ORDER BY message")]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.connect.heal()
    made.database.close()


def test_what_was_done_in_the_block_is_there_behind_it(bench: Bench) -> None:
    assert bench.ids() == []
    identity = bench.write()
    assert bench.ids() == [identity]


def test_a_block_that_raises_did_nothing(bench: Bench) -> None:
    with pytest.raises(KeyError), bench.database.transaction() as connection:
        connection.execute("INSERT INTO seen VALUES (x'00','s',1,'n',1)")
        raise KeyError
    assert bench.ids() == []
    bench.write()


@pytest.mark.parametrize("late", [False, True])
def test_s28_a_commit_that_failed_is_not_there_after_the_next_one(bench: Bench, late: bool) -> None:
    bench.connect.fail("COMMIT", late=late)
    with pytest.raises(sqlite3.OperationalError):
        bench.write()
    second = bench.write()
    assert bench.ids() == [second]


def test_s28_an_id_is_never_given_twice(bench: Bench) -> None:
    first = bench.write()
    bench.connect.fail("COMMIT", late=True)
    with pytest.raises(sqlite3.OperationalError):
        bench.write()
    assert bench.write() > first + 1
    bench.database.close()
    highest = max(bench.ids())
    bench.database = bench.fresh()
    bench.database.open()
    assert bench.write() > highest


def test_s28_the_file_is_opened_anew_after_an_error_of_the_disk(bench: Bench) -> None:
    bench.connect.fail("COMMIT")
    with pytest.raises(sqlite3.OperationalError):
        bench.write()
    bench.write()
    assert bench.connect.opened == 2


def test_s29_a_full_disk_costs_no_opening_and_the_log_is_begun_anew(bench: Bench) -> None:
    bench.connect.fail("COMMIT", code=sqlite3.SQLITE_FULL)
    with pytest.raises(sqlite3.OperationalError):
        bench.write()
    bench.connect.statements.clear()
    bench.database.checkpoint(idle=False)
    assert bench.connect.statements == ["PRAGMA wal_checkpoint(PASSIVE)"]
    assert bench.connect.opened == 1


def test_the_log_is_left_alone_while_it_is_short(bench: Bench) -> None:
    bench.write()
    bench.connect.statements.clear()
    for idle in (False, True):
        bench.database.checkpoint(idle=idle)
    assert bench.connect.statements == []


def test_a_checkpoint_that_fails_costs_nothing(bench: Bench) -> None:
    bench.database.new_id(100_000_000)
    bench.connect.fail("PRAGMA wal_checkpoint")
    bench.database.checkpoint(idle=True)
    bench.write()


@pytest.mark.parametrize("statement", ["BEGIN", "UPDATE numbers", "INSERT OR REPLACE INTO calendar", "COMMIT"])
def test_a_start_on_a_disk_that_does_not_write_says_so(tmp_path: Path, statement: str) -> None:
    tables.connect(tmp_path).close()
    connect = FaultyDatabase()
    connect.fail(statement, code=sqlite3.SQLITE_FULL)
    calendar = memory.Calendar(wall=lambda: NOW, monotonic=time.monotonic)
    with pytest.raises(StorageError) as caught:
        Database(tmp_path, connect=connect, disk=Disk(), calendar=calendar).open()
    assert caught.value.exit_code == ExitCode.IO


def test_s27_a_whole_transaction_that_a_killed_process_left_counts_and_is_synced_first(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    identity = bench.write()
    copy = tmp_path / "copy"  # as kill -9 leaves it: the log is not moved into the file
    copy.mkdir()
    for path in tmp_path.glob(f"{tables.FILE}*"):
        (copy / path.name).write_bytes(path.read_bytes())
    bench.database.close()
    again = Bench(copy)
    assert again.connect.statements.index("COMMIT") > 0
    assert again.ids() == [identity]
    assert (copy / f"{tables.FILE}-wal").stat().st_size == 0
    again.database.close()


# --- numbers, and what opening costs ----------------------------------------------------------------------------------


def test_no_number_is_given_twice_though_nothing_of_the_message_is_left(bench: Bench, tmp_path: Path) -> None:
    """Its memory may be forgotten too; a row that comes back must never be taken for another message's."""
    given = [bench.write() for _ in range(3)]
    for crash in (False, True):
        with bench.database.transaction() as connection:
            connection.execute("DELETE FROM seen")
        if not crash:
            bench.database.close()
        bench.database = bench.fresh()
        bench.database.open()
        given.append(bench.write())
    assert given == sorted(set(given))


def test_numbers_go_on_beyond_what_was_reserved_also_after_a_failure_there(bench: Bench) -> None:
    with bench.database.transaction():
        given = [bench.database.new_id(0) for _ in range(10_000)]
    bench.connect.fail("COMMIT", code=sqlite3.SQLITE_FULL)
    with pytest.raises(sqlite3.OperationalError):
        given.append(bench.write())
    given.append(bench.write())
    bench.database = bench.fresh()  # as after a kill
    bench.database.open()
    assert bench.write() > max(given)


def test_an_older_spool_is_taken_over_with_its_numbers(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / tables.FILE, isolation_level=None)) as old:
        old.executescript(tables._STEPS[0] + "PRAGMA user_version=1;")
        old.execute("INSERT INTO seen VALUES (x'00','s',41,'n',0)")
    taken_over = Bench(tmp_path)
    assert taken_over.write() == 42
    taken_over.database.close()


def test_opening_costs_the_same_after_many_messages_as_after_few(tmp_path: Path) -> None:
    steps = {}
    for count in (10, 50_000):
        directory = tmp_path / str(count)
        directory.mkdir()
        bench = Bench(directory)
        with bench.database.transaction() as connection:
            rows = ((b"%016d" % n, "s", bench.database.new_id(0), "n", 0) for n in range(count))
            connection.executemany("INSERT INTO seen VALUES (?,?,?,?,?)", rows)
        bench.database.close()
        steps[count] = 0

        def counting(directory: Path, *, of: int = count, **options: Any) -> sqlite3.Connection:
            connection = tables.connect(directory, **options)

            def step() -> None:
                steps[of] += 100

            connection.set_progress_handler(step, 100)
            return connection

        bench.connect = counting  # type: ignore[assignment]
        bench.database = bench.fresh()
        bench.database.open()
        bench.database.close()
    assert steps[50_000] <= steps[10] + 1_000, steps
