"""Disks and databases that fail where a test chooses, and remember the order of what was done.

`FaultyDisk` is the real disk in all else: files are real, so what is left behind can be looked at.
"""

from __future__ import annotations

import errno as errors
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siteagent.store import tables
from siteagent.store.durable import Disk, Folder


@dataclass
class _Fault:
    operation: str
    where: str
    at: int
    times: int
    errno: int
    seen: int = 0

    def strikes(self, operation: str, place: str) -> bool:
        if operation != self.operation or self.where not in place:
            return False
        self.seen += 1
        return self.at <= self.seen < self.at + self.times


class FaultyDisk(Disk):
    """`effects` lists (operation, place) in the order they were begun, failed ones too; `place` is a path's end."""

    def __init__(self) -> None:
        self.effects: list[tuple[str, str]] = []
        self.before: Callable[[str, str], None] = lambda operation, place: None
        self._faults: list[_Fault] = []
        self._places: dict[int, str] = {}
        self._guard = threading.Lock()

    def fail(
        self, operation: str, *, at: int = 1, times: int = 1, errno: int = errors.EIO, where: str = ""
    ) -> FaultyDisk:
        """From the `at`-th call of `operation` on a place with `where` in it, `times` calls raise `errno`."""
        self._faults.append(_Fault(operation, where, at, times, errno))
        return self

    def heal(self) -> None:
        self._faults.clear()

    def of(self, *operations: str) -> list[tuple[str, str]]:
        return [effect for effect in self.effects if effect[0] in operations]

    def _enter(self, operation: str, place: str) -> None:
        """Raises the OSError that was ordered."""
        self.before(operation, place)
        with self._guard:
            self.effects.append((operation, place))
            for fault in self._faults:
                if fault.strikes(operation, place):
                    raise OSError(fault.errno, os.strerror(fault.errno), place)

    def open_folder(self, path: Path, *, owners: Iterable[int] | None = None) -> Folder:
        self._enter("open_folder", str(path))
        return super().open_folder(path, owners=owners)

    def create(self, folder: Folder, name: str, mode: int) -> int:
        self._enter("create", f"{folder.path}/{name}")
        handle = super().create(folder, name, mode)
        self._places[handle] = f"{folder.path}/{name}"
        return handle

    def write(self, handle: int, buffers: Sequence[bytes]) -> None:
        self._enter("write", self._places.get(handle, "?"))
        super().write(handle, buffers)

    def sync_file(self, handle: int) -> None:
        self._enter("sync_file", self._places.get(handle, "?"))
        super().sync_file(handle)

    def close(self, handle: int) -> None:
        self._enter("close", self._places.pop(handle, "?"))
        super().close(handle)

    def publish(self, source: Folder, name: str, target: Folder, new_name: str) -> None:
        self._enter("publish", f"{target.path}/{new_name}")
        super().publish(source, name, target, new_name)

    def touch(self, folder: Folder, name: str) -> None:
        self._enter("touch", f"{folder.path}/{name}")
        super().touch(folder, name)

    def sync_folder(self, folder: Folder) -> None:
        self._enter("sync_folder", str(folder.path))
        super().sync_folder(folder)

    def remove(self, folder: Folder, name: str) -> None:
        self._enter("remove", f"{folder.path}/{name}")
        super().remove(folder, name)

    def names(self, folder: Folder) -> list[str]:
        self._enter("names", str(folder.path))
        return super().names(folder)

    def free_bytes(self, path: Path) -> int:
        self._enter("free_bytes", str(path))
        return super().free_bytes(path)


class FaultyDatabase:
    """A `connect` for the spool. Each statement that begins with `statement` raises while `times` is not used up.

    `late`: the statement is done first, as a commit whose sync fails may stand in the log.
    """

    def __init__(self) -> None:
        self.opened = 0
        self.statements: list[str] = []
        self.before: Callable[[str], None] = lambda statement: None
        self._statement = ""
        self._at = self._times = 0
        self._error: Callable[[], Exception] = AssertionError
        self._late = False

    def fail(
        self, statement: str, *, at: int = 1, times: int = 1, code: int = sqlite3.SQLITE_IOERR_FSYNC, late: bool = False
    ) -> None:
        def error() -> Exception:
            made = sqlite3.OperationalError("planted")
            made.sqlite_errorcode = code
            return made

        self._statement, self._at, self._times, self._error, self._late = statement, at, times, error, late

    def heal(self) -> None:
        self._times = 0

    def __call__(self, directory: Path, **options: Any) -> sqlite3.Connection:
        self.opened += 1
        connection = tables.connect(directory, **options)
        return _Wrapped(connection, self)  # type: ignore[return-value]

    def run(self, connection: sqlite3.Connection, sql: str, *arguments: Any) -> sqlite3.Cursor:
        self.before(sql)
        self.statements.append(sql)
        if self._times and sql.startswith(self._statement):
            self._at -= 1
            if self._at < 1:
                self._times -= 1
                if self._late:
                    connection.execute(sql, *arguments)
                raise self._error()
        return connection.execute(sql, *arguments)


class _Wrapped:
    """What the spool uses of a connection."""

    def __init__(self, connection: sqlite3.Connection, owner: FaultyDatabase) -> None:
        self._connection = connection
        self._owner = owner

    def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
        return self._owner.run(self._connection, sql, *arguments)

    def executemany(self, sql: str, arguments: Any) -> sqlite3.Cursor:
        return self._connection.executemany(sql, arguments)

    @property
    def in_transaction(self) -> bool:
        return self._connection.in_transaction

    def close(self) -> None:
        self._connection.close()
