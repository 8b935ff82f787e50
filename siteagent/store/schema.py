"""A schema number on a SQLite file: older is migrated, newer is refused; and whether we may read the file at all.

The number is ``PRAGMA user_version``. `steps` is the whole history of a schema: ``steps[n]`` takes a file from number
n to n + 1, and the first makes an empty file into number 1. Migrating is one transaction, behind a copy of the file
that is kept (``NAME.schema-N``); a crash leaves the old file or the new one.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from siteagent.errors import ConfigurationError


def is_shut(path: Path) -> bool:
    """Whether it is there and not for us to read; SQLite does not say.

    Never by opening it: a close drops all POSIX locks that this process has on the file, SQLite's own among them
    (sqlite.org/howtocorrupt.html §2.2).
    """
    try:
        path.stat()
    except OSError as error:
        return isinstance(error, PermissionError)
    return not os.access(path, os.R_OK, effective_ids=os.access in os.supports_effective_ids)


def version(connection: sqlite3.Connection) -> int:
    """The schema number of an open file, 0 for an empty one."""
    number: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return number


def refuse_newer(number: int, path: Path, *, known: int) -> None:
    """Raises ConfigurationError where `number` is beyond what this siteagent knows."""
    if number > known:
        raise ConfigurationError(
            f"cannot use {path}",
            f"a newer siteagent wrote it (schema {number}, this one knows {known})",
            fix="install that siteagent again, or give this one a state_directory of its own",
        )


def upgrade(connection: sqlite3.Connection, path: Path, steps: Sequence[str]) -> Path | None:
    """Bring an open file (``isolation_level=None``) to ``len(steps)``. Returns where the copy of an older one is kept.

    Raises ConfigurationError for a newer one, sqlite3.Error or OSError where the disk does; the file is then as before.
    """
    number = version(connection)
    refuse_newer(number, path, known=len(steps))
    if number == len(steps):
        return None
    kept = _keep_copy(connection, path, number) if number else None
    script = "".join(step.rstrip().rstrip(";") + ";\n" for step in steps[number:])
    try:
        connection.executescript(f"BEGIN IMMEDIATE;\n{script}PRAGMA user_version={len(steps)};\nCOMMIT;")
    except sqlite3.Error:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise
    return kept


def _keep_copy(connection: sqlite3.Connection, path: Path, number: int) -> Path:
    """A whole copy with what is still in the write-ahead log, synced before the first byte of the original changes."""
    kept = path.with_name(f"{path.name}.schema-{number}")
    os.close(os.open(kept, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600))
    with contextlib.closing(sqlite3.connect(kept)) as copy:
        connection.backup(copy)
    handle = os.open(kept, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    return kept
