"""What a hub's spool holds, read lightly: an index of all of it, and the messages of one node when they are to be sent.

A hub may hold a hundred thousand messages for weeks: what stays in memory of each is a number, a size and a date, and
everything else is read when it is sent, a few messages at a time. All functions with a `connection` run in the
spool's thread (`Spool.ask`).

A row that cannot be understood is set aside: it is told, it stays in the file, and it keeps nothing else from going.
"""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from siteagent.store import tables
from siteagent.store.owed import _COLUMNS, Filing, _from_row, moment, settle

_HEAD = "SELECT message.id, target, size, accepted, file"
_JOINED = "FROM message JOIN delivery ON delivery.message = message.id"


class Held(NamedTuple):
    """One delivery that waits. `accepted` in seconds since 1970."""

    id: int
    size: int
    accepted: int


class Damage(NamedTuple):
    """A row that was set aside."""

    what: str
    reason: str


class Index:
    """Handed to `Spool` as its `recall`: what is owed from before goes here and not into memory as a whole."""

    def __init__(self) -> None:
        self.held: dict[str, list[Held]] = {}
        self.highest = 0
        self.damaged: list[Damage] = []

    def __call__(self, connection: sqlite3.Connection) -> list[Filing]:
        """Reads everything that is owed; returns the deliveries whose content stands in a file of its own."""
        in_files: list[Filing] = []
        make, held = tuple.__new__, self.held
        for identity, target, size, accepted, file in connection.execute(f"{_HEAD} {_JOINED} ORDER BY message.id"):
            # Hundreds of thousands of rows, and nobody is served before the last one: hence so bare.
            if not (type(size) is int and type(accepted) is int and type(target) is str):
                self._set_aside(identity, file, "its size, date or target is damaged", in_files)
                continue
            if file is not None:
                try:
                    in_files.append(filing(connection, identity, target))
                except (ValueError, TypeError, AttributeError, OverflowError, LookupError) as error:
                    self._set_aside(identity, file, str(error) or type(error).__name__, in_files)
                    continue
            waiting = held.get(target)
            if waiting is None:
                waiting = held[target] = []
            waiting.append(make(Held, (identity, size, accepted // 1_000_000)))
            self.highest = identity
        return in_files

    def _set_aside(self, identity: int, file: object, reason: str, in_files: list[Filing]) -> None:
        self.damaged.append(Damage(f"message {identity}", reason))
        if isinstance(file, str):
            in_files.append(_named(file))


def filing(connection: sqlite3.Connection, identity: int, target: str) -> Filing:
    """One delivery, without its content. Raises LookupError where it is gone, ValueError or TypeError if damaged."""
    row = connection.execute(
        f"SELECT {_COLUMNS} {_JOINED} WHERE message.id=? AND target=?",
        (identity, target),
    ).fetchone()
    if row is None:
        raise LookupError(f"message {identity} is not held for {target}")
    return _checked(_from_row(row))


def with_content(connection: sqlite3.Connection, identity: int, target: str) -> Filing:
    """As `filing`, with the content where that stands in the table."""
    one = filing(connection, identity, target)
    if one.file is not None:
        return one
    (data,) = connection.execute("SELECT body FROM message WHERE id=?", (identity,)).fetchone()
    if not isinstance(data, bytes) or len(data) != one.size:
        raise ValueError("its content is not whole")
    return dataclasses.replace(one, data=data)


def fetch(
    connection: sqlite3.Connection, target: str, identities: Sequence[int], *, most_bytes: int
) -> tuple[list[Filing], dict[int, str], int]:
    """The deliveries `identities` of `target`, contents with them, until these are `most_bytes` together.

    What is no longer held is left out; what is damaged is the second, with the reason; the third is how many of
    `identities` were looked at, one at least.
    """
    found: list[Filing] = []
    damaged: dict[int, str] = {}
    taken = 0
    for looked, identity in enumerate(identities, 1):
        try:
            one = with_content(connection, identity, target)
        except LookupError:
            continue
        except (ValueError, TypeError, AttributeError, OverflowError) as error:
            damaged[identity] = str(error) or type(error).__name__
            continue
        found.append(one)
        taken += len(one.data or b"")
        if taken > most_bytes:
            return found, damaged, looked
    return found, damaged, len(identities)


def narrow(connection: sqlite3.Connection, identity: int, target: str, addresses: Sequence[str]) -> None:
    """From here on the delivery is owed to these addresses alone, at least one."""
    connection.execute(
        "UPDATE delivery SET addresses=? WHERE message=? AND target=?", ("\n".join(addresses), identity, target)
    )


def named(connection: sqlite3.Connection, message: str) -> list[tuple[int, str]]:
    """The deliveries that are owed of a message, by the name that people are shown."""
    return [
        (int(identity), str(target))
        for identity, target in connection.execute(
            f"SELECT message.id, target {_JOINED} WHERE name=?",
            (message,),
        )
    ]


def drop(connection: sqlite3.Connection, deliveries: Sequence[tuple[int, str]]) -> list[Path]:
    """Takes deliveries away, in one transaction; the files that nobody needs any more."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        files = settle(connection, deliveries)
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
    return files


def summary(state_directory: Path) -> Iterator[tuple[str, int, int, float]]:
    """(node, messages, octets, oldest in seconds since 1970), for who looks at a hub that does not run."""
    if not (state_directory / tables.FILE).exists():
        return
    connection = tables.connect(state_directory, read_only=True)
    try:
        rows = connection.execute(f"SELECT target, count(*), sum(size), min(accepted) {_JOINED} GROUP BY target")
        for target, count, size, accepted in rows:
            yield str(target), int(count), int(size), moment(accepted).timestamp()
    finally:
        connection.close()


def _named(file: str) -> Filing:
    """Stands for a damaged row whose file must not be taken for an orphan's."""
    return Filing(
        id=0,
        message="",
        target="",
        addresses=(),
        session="",
        provider=None,
        round=None,
        sender="",
        received=b"",
        smtputf8=False,
        eight_bit=False,
        accepted=moment(0),
        size=0,
        bare=0,
        data=None,
        file=Path(file),
        head=0,
    )


def _checked(filing: Filing) -> Filing:
    whole = (
        isinstance(filing.message, str)
        and isinstance(filing.sender, str)
        and isinstance(filing.received, bytes)
        and all(isinstance(n, int) for n in (filing.size, filing.bare, filing.head))
        and all(address and not set(address) & set("\r\n\0") for address in (*filing.addresses, filing.sender or "x"))
    )
    if not whole:
        raise ValueError("its envelope is damaged")
    return filing
