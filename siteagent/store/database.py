"""The spool's database as its one thread uses it: a transaction is durable or was never there, whatever the disk does.

The trap: a transaction whose sync failed, or whose process was killed before it, may stand whole in the log, and be
there again when the log is next read. So whoever opens the file takes such rows out, or makes them durable, by a
transaction of its own (`_take_up`), and the file of a large message goes only when its row is sure not to come back.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

from siteagent.errors import StorageError
from siteagent.store import memory, tables
from siteagent.store.durable import Disk, no_room, remove_quietly

# The log's length is reckoned, since a log that was moved into the file keeps its size.
_PAGES_OF_A_TRANSACTION_BYTES = 16_384
_CHECKPOINT_IDLE_BYTES = 1024 * 1024
_CHECKPOINT_BYTES = 8 * 1024 * 1024
_PROBE_BYTES = 65_536
_RESERVED_AT_ONCE = 10_000
# After these the mark that ends a transaction was not written whole: it cannot come back.
_NOT_IN_THE_LOG = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE)
# These blame what was to be written, not the disk.
_OURS = (sqlite3.DataError, sqlite3.IntegrityError, sqlite3.InterfaceError, sqlite3.ProgrammingError)

Connect = Callable[..., sqlite3.Connection]


class Database:
    """Opened anew after an error of the disk; `open` first, `close` last."""

    def __init__(self, directory: Path, *, connect: Connect, disk: Disk, calendar: memory.Calendar) -> None:
        self._directory = directory
        self._connect = connect
        self._disk = disk
        self._calendar = calendar
        self._connection: sqlite3.Connection | None = None
        self._next_id = 1
        self._reserved = 0  # in the file: ids below it may have been given, whatever is left of them
        self._safe_id = 1  # ids below it are committed or gone
        self._doubt = False  # whether rows from `_safe_id` on may come back
        self._doubtful: list[Path] = []
        self._log_bytes = 0

    def open(self) -> None:
        """Opens or makes the file, and makes what its log says true. Blocks. Raises StorageError."""
        connection = self._connect(self._directory)
        highest = "SELECT max((SELECT coalesce(max(id), 0) + 1 FROM message), (SELECT reserved FROM numbers))"
        try:
            self._next_id = self._safe_id = connection.execute(highest).fetchone()[0]
            self._take_up(connection, self._calendar.open)  # all that is there is from before, and becomes true
        except sqlite3.Error as error:
            connection.close()
            raise StorageError(f"cannot use the spool {self._directory / tables.FILE}", str(error)) from error
        self._connection = connection

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        with contextlib.suppress(sqlite3.Error):
            self._calendar.save(connection)
            self._reserve(connection, 0)
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        with contextlib.suppress(sqlite3.Error):
            connection.close()

    def connected(self) -> sqlite3.Connection:
        """The open database, outside any transaction. Raises StorageError, sqlite3.Error."""
        if self._connection is None:
            connection = self._connect(self._directory, make=False)  # an empty mount point is no spool
            try:
                self._take_up(connection, self._take_back)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """What is done in the block is durable behind it, all of it; or the block raises, and nothing was done."""
        try:
            connection = self.connected()
            connection.execute("BEGIN IMMEDIATE")
            self._calendar.keep(connection)
            yield connection
            if self._next_id > self._reserved:
                self._reserve(connection, _RESERVED_AT_ONCE)
            self._commit(connection)
        except Exception as error:
            self._abandon(error)
            raise
        self._log_bytes += _PAGES_OF_A_TRANSACTION_BYTES

    def new_id(self, inside: int) -> int:
        """The id of a message of which `inside` octets go into the file; never given before, nor to be given again."""
        self._log_bytes += inside
        self._next_id += 1
        return self._next_id - 1

    def give_up(self, file: Path) -> None:
        """The message of `file` was not committed: it goes, at once or when its row is sure not to come back."""
        if self._doubt:
            self._doubtful.append(file)
        else:
            remove_quietly(file)

    def is_full(self, error: Exception, size: int) -> bool:
        """Whether a message of `size` octets was refused by `error` for want of room."""
        return _is_full(error) or self._probe_is_full(size)

    def checkpoint(self, *, idle: bool) -> None:
        """Moves the log into the file when nobody waits, or when the log has grown too long to wait any more."""
        if self._connection is None or self._log_bytes < (_CHECKPOINT_IDLE_BYTES if idle else _CHECKPOINT_BYTES):
            return
        self._log_bytes = 0
        with contextlib.suppress(sqlite3.Error):
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def _commit(self, connection: sqlite3.Connection) -> None:
        try:
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._doubt = self._doubt or _code(error) not in _NOT_IN_THE_LOG
            raise
        self._safe_id = self._next_id
        self._doubt = False
        while self._doubtful:
            remove_quietly(self._doubtful.pop())

    def _take_up(self, connection: sqlite3.Connection, write: Callable[[sqlite3.Connection], None]) -> None:
        """Makes what the log says true or undone, by a transaction that always writes, and empties the log."""
        connection.execute("BEGIN IMMEDIATE")
        write(connection)
        self._reserve(connection, _RESERVED_AT_ONCE)
        self._commit(connection)
        with contextlib.suppress(sqlite3.Error):
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _take_back(self, connection: sqlite3.Connection) -> None:
        """Removes what may have come back of transactions that were told to have failed. Reads all of the memory."""
        connection.execute("DELETE FROM message WHERE id >= ?", (self._safe_id,))
        connection.execute("DELETE FROM delivery WHERE message >= ?", (self._safe_id,))
        connection.execute("DELETE FROM seen WHERE message >= ?", (self._safe_id,))
        self._calendar.save(connection)

    def _reserve(self, connection: sqlite3.Connection, more: int) -> None:
        """From here on a start begins behind the ids given so far and `more` to come, without looking for them."""
        self._reserved = self._next_id + more
        connection.execute("UPDATE numbers SET reserved = ?", (self._reserved,))

    def _abandon(self, error: Exception) -> None:
        """Back to the last commit. After an error of the disk the file is opened anew: its state is not known."""
        self._reserved = 0  # perhaps not in the file after all
        connection = self._connection
        if connection is None:
            return
        known = _is_full(error) or not isinstance(error, sqlite3.Error) or isinstance(error, _OURS)
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error:
            known = False
        if not known:
            self._connection = None
            with contextlib.suppress(sqlite3.Error):
                connection.close()
        elif _is_full(error):
            self._log_bytes = _CHECKPOINT_BYTES  # a log that was moved into the file is begun anew and need not grow

    def _probe_is_full(self, size: int) -> bool:
        """SQLite says "disk I/O error" for an exceeded quota or file size too; a file of our own tells which.

        `size`: of the message, by which the log would have grown.
        """
        name = f".probe{os.getpid()}"
        try:
            folder = self._disk.open_folder(self._directory)
        except OSError:
            return False
        try:
            handle = self._disk.create(folder, name, 0o600)
            try:
                os.lseek(handle, self._log_size() + size, os.SEEK_SET)
                self._disk.write(handle, [bytes(_PROBE_BYTES)])
            finally:
                self._disk.remove(folder, name)
                self._disk.close(handle)
        except OSError as error:
            return no_room(error)
        finally:
            self._disk.close_folder(folder)
        return False

    def _log_size(self) -> int:
        try:
            return (self._directory / f"{tables.FILE}-wal").stat().st_size
        except OSError:
            return 0


def _code(error: Exception) -> int:
    """SQLite's extended result code, 0 for other errors."""
    return getattr(error, "sqlite_errorcode", 0)


def _is_full(error: Exception) -> bool:
    return _code(error) & 0xFF == sqlite3.SQLITE_FULL
