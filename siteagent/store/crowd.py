"""What a crowd of messages leaves in the journal: rows by the dozen, sums once.

After every statement the journal's thread has to ask for the interpreter again, and so have the sessions that it took
it from: with some ten statements a message that was a fifth of all time while mail came in.

Law: the tables look afterwards as if `ledger.write` had been given each event alone, in the same order.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from siteagent.events import Event, MessageAccepted, MessageStored, SessionOpened
from siteagent.store.ledger import listed, stored_time, text
from siteagent.store.tables import rows_of

_AT_ONCE = 64  # rows: nine columns of them stay below the 999 parameters of an old SQLite
_ACCEPTED = (
    "INSERT INTO messages (kind, at, message, session, provider, round, sender, recipients, bytes, wire_bytes) VALUES "
)
_FILED = "INSERT INTO files VALUES "


class Crowd:
    """The events of mail that comes, until `flush` writes them; inside the caller's transaction."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._clear()

    def _clear(self) -> None:
        self._accepted: list[tuple[str, MessageAccepted]] = []
        self._filed: list[tuple[Any, ...]] = []
        self._files: Counter[str] = Counter()  # by round
        self._sessions: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def take(self, at: datetime, event: Event) -> bool:
        """False: it is of another kind, and must be written alone, behind a `flush`."""
        match event:
            case MessageAccepted():
                self._accepted.append((stored_time(at), event))
            case MessageStored():
                self._filed.append((stored_time(at), event.message, event.mailbox, text(event.file), event.bytes))
                if event.round is not None:
                    self._files[event.round] += 1
            case SessionOpened():
                if event.round is not None:
                    self._sessions[event.round] += 1
                    self._first.setdefault(event.round, stored_time(at))
            case _:
                return False
        return True

    def flush(self) -> None:
        """Writes what was taken. Raises sqlite3.Error."""
        if self._accepted:
            self._write_accepted()
        for part in _parts(self._filed):
            self._db.execute(rows_of(_FILED, 5, len(part)), [value for row in part for value in row])
        for round_id, count in self._files.items():
            self._db.execute("UPDATE rounds SET files = files + ? WHERE id = ?", (count, round_id))
        for round_id, count in self._sessions.items():
            self._db.execute(
                "UPDATE rounds SET sessions = sessions + ?, first_connection = coalesce(first_connection, ?)"
                " WHERE id = ? AND ended IS NULL",
                (count, self._first[round_id], round_id),
            )
        self._clear()

    def _write_accepted(self) -> None:
        # One transaction may be told twice: some of its recipients had the message already, and some are new.
        known = set(self._known([event.message for _, event in self._accepted]))
        messages: Counter[str | None] = Counter()
        octets: Counter[str | None] = Counter()
        wire: Counter[str | None] = Counter()
        for _, event in self._accepted:
            messages[event.round] += event.message not in known
            known.add(event.message)
            octets[event.round] += event.bytes
            wire[event.round] += event.wire_bytes
        for part in _parts(self._accepted):
            values = [value for at, event in part for value in _row(at, event)]
            self._db.execute(rows_of(_ACCEPTED, 10, len(part)), values)
        self._db.execute(
            "UPDATE totals SET messages = messages + ?, bytes = bytes + ?", (messages.total(), octets.total())
        )
        for round_id in octets.keys() - {None}:
            self._db.execute(
                "UPDATE rounds SET messages = messages + ?, bytes = bytes + ?, wire_bytes = wire_bytes + ?"
                " WHERE id = ? AND ended IS NULL",
                (messages[round_id], octets[round_id], wire[round_id], round_id),
            )

    def _known(self, names: Sequence[str]) -> Iterator[str]:
        for part in _parts(names):
            rows = self._db.execute(rows_of("SELECT message FROM messages WHERE message IN ", len(part), 1), part)
            yield from (name for (name,) in rows)


def _row(at: str, event: MessageAccepted) -> tuple[Any, ...]:
    return (
        "accepted",
        at,
        event.message,
        event.session,
        event.provider,
        event.round,
        text(event.sender),
        listed(event.recipients),
        event.bytes,
        event.wire_bytes,
    )


def _parts(rows: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(rows), _AT_ONCE):
        yield rows[start : start + _AT_ONCE]
