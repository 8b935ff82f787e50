"""The memory against doubles: who got which content in which session (RFC 1047), kept for a week of days that passed.

A provider that did not hear our 250 sends the message again, perhaps with its recipients in other groups: so there is
one key for each recipient. The wall clock is not believed for forgetting: hosts without a battery start in 1970, others
jump. `Calendar` counts what passed.

Everything here runs in the thread, and inside the transaction, of its caller.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Sequence
from datetime import datetime

from siteagent.store import tables

KEPT_DAYS = 7
_ROWS_AT_ONCE = 100
_DAY = 86_400
_SAVE_SECONDS = 3_600


class Calendar:
    """Days that passed: while we run by the monotonic clock, between two runs by the wall clock, a day at most.

    So a clock that jumps, either way and by any amount, ages the memory by a day at most for each start.
    """

    def __init__(self, *, wall: Callable[[], datetime], monotonic: Callable[[], float]) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._base = 0.0
        self._saved = 0.0
        self._forgot = 0  # on which day

    def open(self, connection: sqlite3.Connection) -> None:
        """Takes up the count where the last run left it, and writes: a write always happens."""
        row = connection.execute("SELECT passed, wall FROM calendar").fetchone()
        passed, wall = row or (0, self._now())
        self._forgot = passed // _DAY
        away = min(max(self._now() - wall, 0), _DAY)
        self._base = passed + away - self._monotonic()
        self.save(connection)

    @property
    def day(self) -> int:
        return int(self._passed() // _DAY)

    def keep(self, connection: sqlite3.Connection) -> None:
        """Saves the count once an hour."""
        if self._passed() - self._saved >= _SAVE_SECONDS:
            self.save(connection)

    def save(self, connection: sqlite3.Connection) -> None:
        """Saves the count; on a new day it forgets what is too old, for which all of the memory is read."""
        self._saved = self._passed()
        connection.execute("INSERT OR REPLACE INTO calendar VALUES (1,?,?)", (int(self._saved), self._now()))
        if self.day > self._forgot:
            connection.execute("DELETE FROM seen WHERE day < ?", (self.day - KEPT_DAYS,))
            self._forgot = self.day

    def _passed(self) -> float:
        return self._base + self._monotonic()

    def _now(self) -> int:
        return int(self._wall().timestamp())


def known_as(
    connection: sqlite3.Connection, key: bytes, *, session: str, message: int, name: str, day: int
) -> str | None:
    """The id that the owner of `key` has this content as, from another session; else remembers it, and None."""
    return remember(connection, [(key, session, message, name, day)])[0]


def remember(connection: sqlite3.Connection, rows: Sequence[tuple[bytes, str, int, str, int]]) -> list[str | None]:
    """Remembers `rows` (key, session, message, name, day) and says of each as what its owner had it already, if so.

    Twice within one session is twice: a sender's wish, not a repeated transaction. Rows are written many at a time,
    since this thread has to ask for the interpreter again after each statement.
    """
    written = 0
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        part = rows[start : start + _ROWS_AT_ONCE]
        statement = tables.rows_of("INSERT OR IGNORE INTO seen VALUES ", 5, len(part))
        written += connection.execute(statement, [value for row in part for value in row]).rowcount
    if written == len(rows):
        return [None] * len(rows)
    return [_known(connection, key, session) for key, session, *_ in rows]


def _known(connection: sqlite3.Connection, key: bytes, session: str) -> str | None:
    first: tuple[str, str] = connection.execute("SELECT session, name FROM seen WHERE key=?", (key,)).fetchone()
    return None if first[0] == session else first[1]


def key_of(sender: str, address: str, digest: bytes) -> bytes:
    """The key of one recipient of one content. Case says nothing: neither that of a domain nor how we route."""
    parts = (sender.encode("utf-8", "surrogatepass"), address.casefold().encode("utf-8", "surrogatepass"), digest)
    return hashlib.sha256(b"\0".join(parts)).digest()[:16]
