"""The spool's tables, and opening the file that they stand in.

`message` holds what was accepted and is not everywhere filed yet; `delivery` one row for each mailbox (or node) that
still has to get it; `seen` and `calendar` are the memory against doubles, and `numbers` spares a start reading all of
it for the highest id. A row of `delivery` goes when its file is
published and the directory synced, the last one takes its `message` with it: what the tables hold is what is owed.

SQLite in WAL mode, ``synchronous=FULL``: a commit is one append to the log and one sync of it (sqlite.org/wal.html).
A log may be read back whole although the sync at its end failed or never came: whoever opens the spool writes to it
before believing it (`database`), which syncs the log or overwrites its end.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from functools import lru_cache
from pathlib import Path

from siteagent.errors import PermissionProblem, StorageError
from siteagent.store import schema

FILE = "spool.sqlite"

_TABLES = """
CREATE TABLE message (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL,           -- unique part of the Maildir file name
    accepted INTEGER NOT NULL,    -- microseconds since 1970, UTC
    session TEXT NOT NULL,
    provider TEXT,
    round TEXT,
    sender TEXT NOT NULL,
    received BLOB NOT NULL,       -- our Received field
    flags INTEGER NOT NULL,       -- 1: SMTPUTF8, 2: 8BITMIME
    size INTEGER NOT NULL,        -- octets of the content, LF line ends
    bare INTEGER NOT NULL,        -- how many of its LF are not preceded by CR
    file TEXT,                    -- the file that the content stands in, if it does
    head INTEGER NOT NULL,        -- how many octets of header lines of ours stand in front of it there
    body BLOB                     -- else the content; last, so that nothing else is read through it
);
CREATE TABLE delivery (
    message INTEGER NOT NULL,
    target TEXT NOT NULL,
    addresses TEXT NOT NULL,      -- those of the envelope that lead to this target, by LF
    tries INTEGER NOT NULL DEFAULT 0,
    next_try INTEGER NOT NULL DEFAULT 0,
    reason TEXT,
    PRIMARY KEY (message, target)
) WITHOUT ROWID;
CREATE TABLE seen (
    key BLOB PRIMARY KEY,         -- digest of sender, recipient and content
    session TEXT NOT NULL,
    message INTEGER NOT NULL,
    name TEXT NOT NULL,
    day INTEGER NOT NULL          -- of the calendar below
) WITHOUT ROWID;
CREATE TABLE calendar (           -- one row
    id INTEGER PRIMARY KEY CHECK (id = 1),
    passed INTEGER NOT NULL,      -- seconds that really passed since the spool was made
    wall INTEGER NOT NULL         -- what the clock said then, seconds since 1970
);
"""
_NUMBERS = """
CREATE TABLE numbers (            -- one row
    id INTEGER PRIMARY KEY CHECK (id = 1),
    reserved INTEGER NOT NULL     -- every id of a message below it may have been given
);
INSERT INTO numbers
    SELECT 1, 1 + max((SELECT coalesce(max(id), 0) FROM message), (SELECT coalesce(max(message), 0) FROM seen));
"""
_STEPS = (_TABLES, _NUMBERS)


def connect(directory: Path, *, make: bool = True, read_only: bool = False) -> sqlite3.Connection:
    """Opens the spool of `directory`; where there is none, it is made, or with `make` False missed.

    Raises StorageError where the file cannot be opened or is damaged, PermissionProblem where it is not ours to open,
    ConfigurationError where a newer siteagent wrote it.
    """
    path = (directory / FILE).absolute()
    connection: sqlite3.Connection | None = None
    try:
        if make and not read_only:
            _make_private(path)
        uri = f"{path.as_uri()}?mode={'ro' if read_only else 'rw'}"
        connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=5)
        if read_only:
            schema.refuse_newer(schema.version(connection), path, known=len(_STEPS))
            return connection
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA fullfsync=ON")  # macOS, where a plain fsync leaves it in the drive's cache
        connection.execute("PRAGMA wal_autocheckpoint=0")  # `database` does it when nobody waits
        connection.execute("PRAGMA journal_size_limit=16777216")
        connection.execute("PRAGMA temp_store=MEMORY")
        connection.execute("PRAGMA cache_size=-1024")  # KiB: a batch fits, and what it once filled it keeps
        if not make and schema.version(connection) == 0:
            raise sqlite3.DatabaseError("the file is empty now")
        schema.upgrade(connection, path, _STEPS)
    except (sqlite3.Error, OSError) as error:
        _close_quietly(connection)
        if schema.is_shut(path):
            fix = f"run it as the owner of {directory}, or as root"
            raise PermissionProblem(f"cannot open the spool {path}", "permission denied", fix=fix) from error
        raise StorageError(f"cannot open the spool {path}", str(error), fix="run `siteagent doctor`") from error
    except BaseException:
        _close_quietly(connection)
        raise
    return connection


@lru_cache(maxsize=256)
def rows_of(beginning: str, columns: int, rows: int) -> str:
    """The statement that begins so and goes on with `rows` rows of `columns` parameters."""
    return beginning + ",".join(["(" + ",".join("?" * columns) + ")"] * rows)


def _make_private(path: Path) -> None:
    """The content of mail is in it, and the directory is open to all for `status`. Its -wal and -shm take its mode."""
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o600))


def _close_quietly(connection: sqlite3.Connection | None) -> None:
    if connection is not None:
        with contextlib.suppress(sqlite3.Error):
            connection.close()
