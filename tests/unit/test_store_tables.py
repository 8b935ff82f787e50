"""The spool's file: private, of one schema, made where it is missing and missed where it should be there."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from siteagent.errors import ConfigurationError, ExitCode, PermissionProblem, StorageError
from siteagent.store import tables


@pytest.mark.skipif(os.name != "posix", reason="POSIX")
def test_mail_in_the_spool_is_for_nobody_elses_eyes(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with closing(tables.connect(tmp_path)) as connection:
            connection.execute("INSERT INTO seen VALUES (x'00','s',1,'n',1)")
            modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    finally:
        os.umask(before)
    assert set(modes) == {"spool.sqlite", "spool.sqlite-wal", "spool.sqlite-shm"}
    assert set(modes.values()) == {0o600}


def test_a_commit_is_synced_before_it_returns(tmp_path: Path) -> None:
    with closing(tables.connect(tmp_path)) as connection:
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_what_was_written_is_there_the_next_time(tmp_path: Path) -> None:
    for expected in (0, 1):
        with closing(tables.connect(tmp_path)) as connection:
            assert connection.execute("SELECT count(*) FROM calendar").fetchone() == (expected,)
            connection.execute("INSERT OR IGNORE INTO calendar VALUES (1, 0, 0)")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="root becomes another user for a moment")
def test_who_may_not_read_it_is_told_so_and_not_that_the_file_is_bad(tmp_path: Path) -> None:
    tables.connect(tmp_path).close()
    os.seteuid(65534)
    try:
        with pytest.raises(PermissionProblem, match="permission denied"):
            tables.connect(tmp_path, read_only=True)
    finally:
        os.seteuid(0)


def test_a_newer_schema_is_refused_and_untouched(tmp_path: Path) -> None:
    with closing(tables.connect(tmp_path)) as connection:
        connection.execute("PRAGMA user_version=99")
    for options in ({}, {"read_only": True}, {"make": False}):
        with pytest.raises(ConfigurationError, match="newer siteagent") as caught:
            tables.connect(tmp_path, **options)
        assert caught.value.exit_code == ExitCode.CONFIGURATION
    with closing(sqlite3.connect(tmp_path / tables.FILE)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (99,)


def test_s31_an_empty_directory_in_the_place_of_the_spool_gets_no_new_one(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        tables.connect(tmp_path, make=False)
    assert list(tmp_path.iterdir()) == []


def test_s31_an_empty_file_in_the_place_of_the_spool_is_not_used(tmp_path: Path) -> None:
    (tmp_path / tables.FILE).touch()
    with pytest.raises(StorageError, match="empty"):
        tables.connect(tmp_path, make=False)


def test_a_damaged_file_is_a_storage_error_and_says_which(tmp_path: Path) -> None:
    (tmp_path / tables.FILE).write_bytes(b"this is not a database, whatever its name says" * 100)
    with pytest.raises(StorageError, match=r"spool\.sqlite") as caught:
        tables.connect(tmp_path)
    assert caught.value.exit_code == ExitCode.IO


@pytest.mark.parametrize("name", ["a%20b", "what?", "hash#1", "sp ace", "ü"])
def test_any_directory_name_will_do(tmp_path: Path, name: str) -> None:
    directory = tmp_path / name
    directory.mkdir()
    tables.connect(directory).close()
    tables.connect(directory, read_only=True).close()
    assert (directory / tables.FILE).exists()


def test_a_reader_cannot_write(tmp_path: Path) -> None:
    tables.connect(tmp_path).close()
    with closing(tables.connect(tmp_path, read_only=True)) as connection, pytest.raises(sqlite3.OperationalError):
        connection.execute("DELETE FROM message")


def test_the_content_stands_last_so_that_no_column_is_read_through_it(tmp_path: Path) -> None:
    with closing(tables.connect(tmp_path)) as connection:
        columns = [row[1] for row in connection.execute("PRAGMA table_info(message)")]
    assert columns[-1] == "body"
