"""The journal as others read it: the command line while the agent runs or not, and the agent itself at its start.

Reads only, and leaves nothing behind. The trap: a SQLite file in WAL mode that nobody has open can only be read where
``-wal`` and ``-shm`` may be made beside it. A reader that may not write there reads the file as unchangeable, or, where
an agent that died left a log, a copy of both.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from siteagent.errors import ConfigurationError, PermissionProblem, StorageError
from siteagent.events import (
    AskAnswered,
    Event,
    MessageRefused,
    NodeOutcome,
    Outcome,
    RoundEnded,
    RoundStarted,
    SessionOpened,
    Stamped,
    WarningRaised,
)
from siteagent.store import ledger, schema

RESTORED_ROUNDS = 24
_RESTORED_REFUSALS = 100


@dataclass(frozen=True, slots=True)
class AnswerEntry:
    """One answer for one node."""

    at: datetime
    node: str
    outcome: str
    code: int | None
    text: str
    promised: int | None
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundEntry:
    """One round. `ended` and `outcome` are None while it runs, and for ever where the agent died in it."""

    id: str
    provider: str
    cause: str
    method: str
    interface: str
    nodes: tuple[str, ...]
    requests: tuple[str, ...]
    started: datetime
    asked: datetime | None
    code: int | None
    first_connection: datetime | None
    ended: datetime | None
    outcome: str | None
    reason: str
    sessions: int
    messages: int
    files: int
    duplicates: int
    refused: int
    bytes: int
    wire_bytes: int
    seconds: float | None
    answers: tuple[AnswerEntry, ...]

    @property
    def first_connection_seconds(self) -> float | None:
        """From asking (or, where no answer came, from the start of the round) to the provider's first connection."""
        if self.first_connection is None:
            return None
        return max(0.0, (self.first_connection - (self.asked or self.started)).total_seconds())


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageEntry:
    """What happened to one message. `kind`: accepted, stored (accepted, and filed as `files`), duplicate, refused."""

    at: datetime
    kind: str
    message: str | None
    session: str
    provider: str | None
    round: str | None
    sender: str
    recipients: tuple[str, ...]
    bytes: int
    wire_bytes: int
    code: int | None
    reason: str | None
    first: str | None
    files: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class UsageEntry:
    """What a line was used for on one day (UTC): seconds up, octets of mail and asking; and the rounds on it."""

    day: str
    interface: str
    seconds: float
    wire_bytes: int
    rounds: int
    messages: int


@dataclass(frozen=True, slots=True)
class Restored:
    """What an earlier run of the agent saw, for `StatusFold.restore` and `Warnings.restore`."""

    past: tuple[Stamped, ...]
    rounds: int
    messages: int
    bytes: int


class JournalReader:
    """Opens the file anew for each question, so that nothing of it is held while people look at the answer."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def rounds(
        self, limit: int | None = None, since: datetime | None = None, *, provider: str | None = None
    ) -> list[RoundEntry]:
        """The last `limit` rounds that began at `since` or later, oldest first.

        Raises StorageError, PermissionProblem, or ConfigurationError for a file of another release.
        """
        with self._opened() as db:
            return [] if db is None else _rounds(db, limit, since, provider=provider)

    def round_of_request(self, request: str) -> RoundEntry | None:
        """The latest round that a request (of `siteagent ask`) is part of: `status.json` may have moved on."""
        with self._opened() as db:
            if db is None:
                return None
            row = db.execute(
                "SELECT rounds.* FROM rounds, json_each(rounds.requests) WHERE json_each.value = ?"
                " ORDER BY number DESC LIMIT 1",
                (request,),
            ).fetchone()
            return None if row is None else _round_entry(db, row)

    def messages(
        self, limit: int | None = None, since: datetime | None = None, *, unasked: bool = False
    ) -> list[MessageEntry]:
        """What happened to the last `limit` messages, oldest first; `unasked`: only what came outside any round."""
        with self._opened() as db:
            return [] if db is None else _messages(db, limit, since, unasked=unasked)

    def usage(self, since: datetime | None = None) -> list[UsageEntry]:
        """Each line's days, oldest first, from the day of `since` on."""
        with self._opened() as db:
            if db is None:
                return []
            rows = db.execute(
                "SELECT usage.*, coalesce(counted.rounds, 0) AS rounds, coalesce(counted.messages, 0) AS messages"
                " FROM usage LEFT JOIN (SELECT substr(started, 1, 10) AS day, interface, count(*) AS rounds,"
                " sum(messages) AS messages FROM rounds WHERE started >= :day GROUP BY 1, 2) AS counted"
                " USING (day, interface) WHERE day >= :day ORDER BY day, interface",
                {"day": "" if since is None else ledger.stored_time(since)[:10]},
            )
            return [UsageEntry(**dict(row)) for row in rows]

    def restore(self) -> Restored:
        """The last rounds that ended and the standing warnings, as events, and the totals of all time."""
        with self._opened() as db:
            if db is None:
                return Restored((), 0, 0, 0)
            totals = db.execute("SELECT rounds, messages, bytes FROM totals").fetchone()
            past: list[Stamped] = []
            for entry in _last_ended(db):
                past += _replayed(db, entry)
            for row in db.execute("SELECT * FROM warnings WHERE cleared IS NULL ORDER BY since"):
                event = WarningRaised(warning=row["warning"], subject=row["subject"], text=row["text"], fix=row["fix"])
                past.append(Stamped(datetime.fromisoformat(row["since"]), event))
            return Restored(tuple(past), totals["rounds"], totals["messages"], totals["bytes"])

    # --- opening --------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection | None]:
        """None where there is no journal yet."""
        try:
            if not self._path.exists():
                yield None
                return
            with contextlib.ExitStack() as stack:
                db = self._connect(stack)
                db.row_factory = sqlite3.Row
                number = schema.version(db)
                schema.refuse_newer(number, self._path, known=len(ledger.STEPS))
                if 0 < number < len(ledger.STEPS):
                    raise ConfigurationError(
                        f"cannot read {self._path}",
                        f"an older siteagent wrote it (schema {number}, this one reads {len(ledger.STEPS)})",
                        fix="start the agent once: it migrates the file and keeps a copy",
                    )
                yield db if number else None
        except PermissionError as error:
            raise PermissionProblem(
                f"cannot read the journal {self._path}",
                error.strerror or str(error),
                fix=f"run it as the owner of {self._path.parent}, or as root",
            ) from error
        except (sqlite3.Error, OSError) as error:
            raise StorageError(
                f"cannot read the journal {self._path}", str(error), fix="run `siteagent doctor`"
            ) from error

    def _connect(self, stack: contextlib.ExitStack) -> sqlite3.Connection:
        if schema.is_shut(self._path):  # says more than SQLite's "unable to open database file"
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self._path))
        try:
            return self._readable(self._path, "mode=ro", stack)
        except sqlite3.OperationalError:
            log = self._path.with_name(self._path.name + "-wal")
            if not log.exists() or not log.stat().st_size:
                return self._readable(self._path, "immutable=1", stack)
            import shutil
            import tempfile

            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="siteagent-")))
            for source in (self._path, log):
                shutil.copyfile(source, directory / source.name)
            return self._readable(directory / self._path.name, "mode=rw", stack)

    @staticmethod
    def _readable(path: Path, how: str, stack: contextlib.ExitStack) -> sqlite3.Connection:
        db = sqlite3.connect(f"{path.absolute().as_uri()}?{how}", uri=True, isolation_level=None, timeout=5)
        try:
            schema.version(db)
        except BaseException:
            db.close()
            raise
        stack.callback(db.close)
        return db


# --- rows to entries --------------------------------------------------------------------------------------------------


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _rounds(
    db: sqlite3.Connection, limit: int | None, since: datetime | None, *, provider: str | None
) -> list[RoundEntry]:
    rows = db.execute(
        "SELECT * FROM rounds WHERE started >= ? AND (? IS NULL OR provider = ?) ORDER BY number DESC LIMIT ?",
        ("" if since is None else ledger.stored_time(since), provider, provider, -1 if limit is None else limit),
    ).fetchall()
    return [_round_entry(db, row) for row in reversed(rows)]


def _round_entry(db: sqlite3.Connection, row: sqlite3.Row) -> RoundEntry:
    answers = db.execute("SELECT * FROM answers WHERE round = ? ORDER BY rowid", (row["id"],))
    values: dict[str, Any] = {name: row[name] for name in row.keys() if name != "number"}  # noqa: SIM118 - a Row
    for name in ("nodes", "requests"):
        values[name] = tuple(json.loads(values[name]))
    for name in ("started", "asked", "first_connection", "ended"):
        values[name] = _time(values[name])
    return RoundEntry(
        **values,
        answers=tuple(
            AnswerEntry(
                datetime.fromisoformat(each["at"]),
                each["node"],
                each["outcome"],
                each["code"],
                each["text"],
                each["promised"],
                each["seconds"],
            )
            for each in answers
        ),
    )


def _messages(
    db: sqlite3.Connection, limit: int | None, since: datetime | None, *, unasked: bool
) -> list[MessageEntry]:
    # Only what is asked for, and "+number" where the times alone find the rows: else all of the history is read.
    which = ["at >= :since"] if since is not None else []
    if unasked:
        which.append("+round IS NULL" if since is not None else "round IS NULL")
    where = f"WHERE {' AND '.join(which)}" if which else ""
    order = "+number" if since is not None and limit is None else "number"
    rows = db.execute(
        f"SELECT * FROM messages {where} ORDER BY {order} DESC LIMIT :limit",  # noqa: S608
        {"since": since and ledger.stored_time(since), "limit": -1 if limit is None else limit},
    ).fetchall()
    return [_message_entry(db, row) for row in reversed(rows)]


def _message_entry(db: sqlite3.Connection, row: sqlite3.Row) -> MessageEntry:
    files: tuple[tuple[str, str], ...] = ()
    if row["kind"] == "accepted":
        found = db.execute("SELECT mailbox, file FROM files WHERE message = ? ORDER BY rowid", (row["message"],))
        files = tuple((each["mailbox"], each["file"]) for each in found)
    values: dict[str, Any] = {name: row[name] for name in row.keys() if name != "number"}  # noqa: SIM118 - a Row
    values["at"] = datetime.fromisoformat(row["at"])
    values["recipients"] = tuple(json.loads(row["recipients"]))
    if files:
        values["kind"] = "stored"
    return MessageEntry(**values, files=files)


# --- the past as events -----------------------------------------------------------------------------------------------


def _last_ended(db: sqlite3.Connection) -> list[RoundEntry]:
    """The last rounds of all, and the last of each provider however long ago, in the order of their beginning."""
    rows = db.execute(
        "SELECT * FROM rounds WHERE ended IS NOT NULL AND (number IN"
        " (SELECT number FROM rounds WHERE ended IS NOT NULL ORDER BY number DESC LIMIT ?)"
        " OR number IN (SELECT max(number) FROM rounds WHERE ended IS NOT NULL GROUP BY provider)) ORDER BY number",
        (RESTORED_ROUNDS,),
    ).fetchall()
    return [_round_entry(db, row) for row in rows]


def _replayed(db: sqlite3.Connection, entry: RoundEntry) -> list[Stamped]:
    assert entry.ended is not None and entry.outcome is not None
    past: list[tuple[datetime, Event]] = [(entry.started, _started(entry))]
    past += [(answer.at, _answered(entry, answer)) for answer in entry.answers]
    if entry.first_connection is not None:
        opened = SessionOpened(session="", provider=entry.provider, round=entry.id, peer="")
        past.append((entry.first_connection, opened))
    refused = db.execute(
        "SELECT * FROM messages WHERE round = ? AND kind = 'refused' AND code < 500 ORDER BY number LIMIT ?",
        (entry.id, _RESTORED_REFUSALS),
    )
    past += [(datetime.fromisoformat(row["at"]), _refused(row)) for row in refused]
    past.append((entry.ended, _ended(entry)))
    return [Stamped(at, event) for at, event in past]


def _started(entry: RoundEntry) -> RoundStarted:
    return RoundStarted(
        round=entry.id,
        provider=entry.provider,
        cause=entry.cause,
        method=entry.method,
        nodes=entry.nodes,
        interface=entry.interface,
        requests=entry.requests,
    )


def _answered(entry: RoundEntry, answer: AnswerEntry) -> AskAnswered:
    return AskAnswered(
        round=entry.id,
        provider=entry.provider,
        node=answer.node,
        outcome=NodeOutcome(answer.outcome),
        code=answer.code,
        text=answer.text,
        promised=answer.promised,
        seconds=answer.seconds,
    )


def _refused(row: sqlite3.Row) -> MessageRefused:
    recipients = json.loads(row["recipients"])
    return MessageRefused(
        session=row["session"],
        provider=row["provider"],
        round=row["round"],
        sender=row["sender"],
        recipient=recipients[0] if recipients else "",
        code=row["code"],
        reason=row["reason"],
        bytes=row["bytes"],
    )


def _ended(entry: RoundEntry) -> RoundEnded:
    assert entry.outcome is not None
    return RoundEnded(
        round=entry.id,
        provider=entry.provider,
        outcome=Outcome(entry.outcome),
        sessions=entry.sessions,
        messages=entry.messages,
        files=entry.files,
        duplicates=entry.duplicates,
        refused=entry.refused,
        bytes=entry.bytes,
        wire_bytes=entry.wire_bytes,
        seconds=entry.seconds or 0.0,
        link_interface=entry.interface,
        reason=entry.reason,
    )
