"""What is owed: accepted messages that some mailbox (or node) still has to get, as values, in rows, and for people."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from siteagent.store import tables
from siteagent.store.body import Body, Envelope

_SMTPUTF8, _EIGHT_BIT = 1, 2
_ROWS_AT_ONCE = 16  # contents of up to 256 KiB are among their values
_COLUMNS = """message.id, name, target, addresses, session, provider, round, sender, received, flags, accepted, size,
    bare, file, head, tries"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filing:
    """One delivery that is owed: a message and the target that has to get it.

    The content is `data`, or stands in `file` behind `head` octets of header lines of ours, or, where both are None,
    is to be had from `Spool.load`. `recovered`: it was owed before this start, so a file may have been published.
    """

    id: int
    message: str
    target: str
    addresses: tuple[str, ...]
    session: str
    provider: str | None
    round: str | None
    sender: str
    received: bytes
    smtputf8: bool
    eight_bit: bool
    accepted: datetime
    size: int
    bare: int
    data: bytes | None
    file: Path | None
    head: int
    tries: int = 0
    recovered: bool = False


@dataclass(frozen=True, slots=True)
class Owed:
    """What `siteagent queue` shows of one delivery."""

    message: str
    mailbox: str
    sender: str
    bytes: int
    accepted: datetime
    reason: str | None
    tries: int
    next_try: datetime | None


class SpoolReader:
    """The spool seen from another process: what `siteagent queue` and `status` look at. Reads only."""

    def __init__(self, state_directory: Path) -> None:
        self._directory = state_directory

    def waiting(self) -> list[Owed]:
        """Everything owed, oldest first; nothing where there is no spool yet. Raises StorageError."""
        if not (self._directory / tables.FILE).exists():
            return []
        with contextlib.closing(tables.connect(self._directory, read_only=True)) as connection:
            rows = connection.execute(
                "SELECT name, target, sender, size, accepted, reason, tries, next_try"
                " FROM message JOIN delivery ON delivery.message = message.id ORDER BY message.id"
            )
            return [
                Owed(name, target, sender, size, moment(accepted), reason, tries, moment(due) if due else None)
                for name, target, sender, size, accepted, reason, tries, due in rows
            ]


@dataclass(frozen=True, slots=True)
class Message:
    """What is written of one message: `addresses` by target."""

    id: int
    envelope: Envelope
    body: Body
    accepted: datetime
    addresses: dict[str, list[str]]

    def row(self) -> tuple[object, ...]:
        envelope, body = self.envelope, self.body
        return (
            self.id,
            envelope.message,
            microseconds(self.accepted),
            envelope.session,
            envelope.provider,
            envelope.round,
            envelope.sender,
            envelope.received,
            (_SMTPUTF8 if envelope.smtputf8 else 0) | (_EIGHT_BIT if envelope.eight_bit else 0),
            body.size,
            body.bare,
            str(body.file) if body.file else None,
            body.head,
            body.data,
        )

    def filings(self) -> list[Filing]:
        envelope, body = self.envelope, self.body
        return [
            Filing(
                id=self.id,
                message=envelope.message,
                target=target,
                addresses=tuple(given),
                session=envelope.session,
                provider=envelope.provider,
                round=envelope.round,
                sender=envelope.sender,
                received=envelope.received,
                smtputf8=envelope.smtputf8,
                eight_bit=envelope.eight_bit,
                accepted=self.accepted,
                size=body.size,
                bare=body.bare,
                data=body.data,
                file=body.file,
                head=body.head,
            )
            for target, given in self.addresses.items()
        ]


def insert(
    connection: sqlite3.Connection,
    identity: int,
    *,
    envelope: Envelope,
    body: Body,
    accepted: datetime,
    addresses: dict[str, list[str]],
) -> list[Filing]:
    """Writes the rows of one message, `addresses` by target, and returns what is owed by it."""
    message = Message(identity, envelope, body, accepted, addresses)
    insert_all(connection, [message])
    return message.filings()


def insert_all(connection: sqlite3.Connection, messages: Sequence[Message]) -> None:
    """Many rows a statement: after each one, this thread has to ask for the interpreter again."""
    deliveries = [
        (message.id, target, "\n".join(given)) for message in messages for target, given in message.addresses.items()
    ]
    for statement, columns, rows in (
        ("INSERT INTO message VALUES ", 14, [message.row() for message in messages]),
        ("INSERT INTO delivery (message, target, addresses) VALUES ", 3, deliveries),
    ):
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            part = rows[start : start + _ROWS_AT_ONCE]
            values = [value for row in part for value in row]
            connection.execute(tables.rows_of(statement, columns, len(part)), values)


def owed_from_before(connection: sqlite3.Connection) -> list[Filing]:
    """Everything that a former run left, oldest first, content aside."""
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM message JOIN delivery ON delivery.message = message.id ORDER BY message.id"  # noqa: S608
    )
    return [_from_row(row) for row in rows]


def settle(connection: sqlite3.Connection, deliveries: Sequence[tuple[int, str]]) -> list[Path]:
    """Takes (message, target) rows away, and the messages that nobody is owed any more. Returns their files."""
    files: list[Path] = []
    for start in range(0, len(deliveries), _ROWS_AT_ONCE):
        part = deliveries[start : start + _ROWS_AT_ONCE]
        ids = list({identity for identity, _ in part})
        pairs = tables.rows_of("(message, target) IN (VALUES ", 2, len(part)) + ")"
        theirs = tables.rows_of("IN ", len(ids), 1)  # beside the pairs, for which alone the whole table would be read
        connection.execute(
            f"DELETE FROM delivery WHERE message {theirs} AND {pairs}",  # noqa: S608
            [*ids, *(value for row in part for value in row)],
        )
        done = f"id {theirs} AND NOT EXISTS (SELECT 1 FROM delivery WHERE message = id)"  # noqa: S608
        named = connection.execute(f"SELECT file FROM message WHERE file IS NOT NULL AND {done}", ids)  # noqa: S608
        files += [Path(file) for (file,) in named]
        connection.execute(f"DELETE FROM message WHERE {done}", ids)  # noqa: S608
    return files


def microseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1_000_000)


def moment(microseconds: int) -> datetime:
    return datetime.fromtimestamp(microseconds / 1_000_000, UTC)


def _from_row(row: tuple[Any, ...]) -> Filing:
    return Filing(
        id=row[0],
        message=row[1],
        target=row[2],
        addresses=tuple(row[3].split("\n")),
        session=row[4],
        provider=row[5],
        round=row[6],
        sender=row[7],
        received=row[8],
        smtputf8=bool(row[9] & _SMTPUTF8),
        eight_bit=bool(row[9] & _EIGHT_BIT),
        accepted=moment(row[10]),
        size=row[11],
        bare=row[12],
        data=None,
        file=Path(row[13]) if row[13] else None,
        head=row[14],
        tries=row[15],
        recovered=True,
    )
