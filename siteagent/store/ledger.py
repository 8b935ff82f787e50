"""The journal's tables, and the rows that each event writes.

`rounds` is the ledger of a line that may be paid by the minute: asked at, answered with, first connection after, what
came, how it ended. `answers` has a row for each answer for a node. `messages` has one for each thing that happened to a
message (accepted, duplicate, refused); with `round` NULL it came unasked. `files` is what was filed of it. `warnings`
stand while `cleared` is NULL. `usage` has what each line was used for, by days (UTC). `totals` outlives the pruning of
everything else.

Times are ISO 8601 in UTC with microseconds, so that text order is time order; lists are JSON.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from siteagent.events import (
    AskAnswered,
    AskFailed,
    Event,
    LineUsed,
    MessageAccepted,
    MessageDuplicate,
    MessageRefused,
    MessageStored,
    RoundEnded,
    RoundStarted,
    SessionOpened,
    WarningCleared,
    WarningRaised,
)

STEPS: tuple[str, ...] = (
    """
    CREATE TABLE rounds (
        number INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        provider TEXT NOT NULL,
        cause TEXT NOT NULL,
        method TEXT NOT NULL,
        interface TEXT NOT NULL,
        nodes TEXT NOT NULL,
        requests TEXT NOT NULL,
        started TEXT NOT NULL,
        asked TEXT,
        code INTEGER,
        first_connection TEXT,
        ended TEXT,
        outcome TEXT,
        reason TEXT NOT NULL DEFAULT '',
        sessions INTEGER NOT NULL DEFAULT 0,
        messages INTEGER NOT NULL DEFAULT 0,
        files INTEGER NOT NULL DEFAULT 0,
        duplicates INTEGER NOT NULL DEFAULT 0,
        refused INTEGER NOT NULL DEFAULT 0,
        bytes INTEGER NOT NULL DEFAULT 0,
        wire_bytes INTEGER NOT NULL DEFAULT 0,
        seconds REAL
    );
    CREATE INDEX rounds_started ON rounds (started);
    CREATE TABLE answers (
        round TEXT NOT NULL,
        at TEXT NOT NULL,
        node TEXT NOT NULL,
        outcome TEXT NOT NULL,
        code INTEGER,
        text TEXT NOT NULL,
        promised INTEGER,
        seconds REAL NOT NULL
    );
    CREATE INDEX answers_round ON answers (round);
    CREATE TABLE messages (
        number INTEGER PRIMARY KEY,
        at TEXT NOT NULL,
        kind TEXT NOT NULL,
        message TEXT,
        session TEXT NOT NULL,
        provider TEXT,
        round TEXT,
        sender TEXT NOT NULL,
        recipients TEXT NOT NULL,
        bytes INTEGER NOT NULL DEFAULT 0,
        wire_bytes INTEGER NOT NULL DEFAULT 0,
        code INTEGER,
        reason TEXT,
        first TEXT
    );
    CREATE INDEX messages_at ON messages (at);
    CREATE INDEX messages_message ON messages (message);
    CREATE INDEX messages_round ON messages (round);
    CREATE TABLE files (
        at TEXT NOT NULL,
        message TEXT NOT NULL,
        mailbox TEXT NOT NULL,
        file TEXT NOT NULL,
        bytes INTEGER NOT NULL
    );
    CREATE INDEX files_message ON files (message);
    CREATE INDEX files_at ON files (at);
    CREATE TABLE warnings (
        warning TEXT NOT NULL,
        subject TEXT NOT NULL,
        text TEXT NOT NULL,
        fix TEXT NOT NULL,
        since TEXT NOT NULL,
        cleared TEXT
    );
    CREATE UNIQUE INDEX warnings_standing ON warnings (warning, subject) WHERE cleared IS NULL;
    CREATE TABLE totals (
        only INTEGER PRIMARY KEY CHECK (only = 1),
        rounds INTEGER NOT NULL,
        messages INTEGER NOT NULL,
        bytes INTEGER NOT NULL,
        pruned_at TEXT,
        pruned_to TEXT
    );
    INSERT INTO totals VALUES (1, 0, 0, 0, NULL, NULL);
    CREATE TABLE usage (
        day TEXT NOT NULL,
        interface TEXT NOT NULL,
        seconds REAL NOT NULL,
        wire_bytes INTEGER NOT NULL,
        PRIMARY KEY (day, interface)
    );
    """,
)

_PRUNE_STEP = timedelta(days=7)
_PRUNE_EVERY = timedelta(hours=20)


def stored_time(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def write(db: sqlite3.Connection, at: datetime, event: Event) -> None:
    """Write what `event` leaves in the tables. Raises sqlite3.Error; inside the caller's transaction."""
    _WRITERS[type(event)](db, at, event)


def listed(values: tuple[str, ...]) -> str:
    """As lists are kept."""
    return json.dumps(values)


def text(value: str) -> str:
    """SQLite takes no lone surrogate, and a peer's odd byte must not cost the row."""
    return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode()


def _round_started(db: sqlite3.Connection, at: datetime, event: RoundStarted) -> None:
    db.execute(
        "INSERT INTO rounds (id, provider, cause, method, interface, nodes, requests, started)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET requests = excluded.requests",
        (
            event.round,
            event.provider,
            event.cause,
            event.method,
            event.interface,
            listed(event.nodes),
            listed(event.requests),
            stored_time(at),
        ),
    )


def _ask_answered(db: sqlite3.Connection, at: datetime, event: AskAnswered) -> None:
    db.execute(
        "INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            event.round,
            stored_time(at),
            event.node,
            event.outcome.value,
            event.code,
            text(event.text),
            event.promised,
            event.seconds,
        ),
    )
    db.execute(
        "UPDATE rounds SET asked = coalesce(asked, ?), code = coalesce(?, code) WHERE id = ?",
        (stored_time(at - timedelta(seconds=event.seconds)), event.code, event.round),
    )


def _ask_failed(db: sqlite3.Connection, at: datetime, event: AskFailed) -> None:
    db.execute(
        "UPDATE rounds SET code = coalesce(?, code), reason = ? WHERE id = ?",
        (event.code, text(event.reason), event.round),
    )


def _session_opened(db: sqlite3.Connection, at: datetime, event: SessionOpened) -> None:
    db.execute(
        "UPDATE rounds SET sessions = sessions + 1, first_connection = coalesce(first_connection, ?)"
        " WHERE id = ? AND ended IS NULL",
        (stored_time(at), event.round),
    )


def _message_accepted(db: sqlite3.Connection, at: datetime, event: MessageAccepted) -> None:
    new = _transaction_is_new(db, event.message)
    db.execute(
        "INSERT INTO messages (at, kind, message, session, provider, round, sender, recipients, bytes, wire_bytes)"
        " VALUES (?, 'accepted', ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            stored_time(at),
            event.message,
            event.session,
            event.provider,
            event.round,
            text(event.sender),
            listed(event.recipients),
            event.bytes,
            event.wire_bytes,
        ),
    )
    db.execute("UPDATE totals SET messages = messages + ?, bytes = bytes + ?", (new, event.bytes))
    db.execute(
        "UPDATE rounds SET messages = messages + ?, bytes = bytes + ?, wire_bytes = wire_bytes + ?"
        " WHERE id = ? AND ended IS NULL",
        (new, event.bytes, event.wire_bytes, event.round),
    )


def _message_duplicate(db: sqlite3.Connection, at: datetime, event: MessageDuplicate) -> None:
    new = _transaction_is_new(db, event.message)
    db.execute(
        "INSERT INTO messages (at, kind, message, session, provider, round, sender, recipients, first)"
        " VALUES (?, 'duplicate', ?, ?, ?, ?, ?, ?, ?)",
        (
            stored_time(at),
            event.message,
            event.session,
            event.provider,
            event.round,
            text(event.sender),
            listed(event.recipients),
            event.first,
        ),
    )
    db.execute("UPDATE totals SET messages = messages + ?", (new,))
    db.execute(
        "UPDATE rounds SET messages = messages + ?, duplicates = duplicates + 1 WHERE id = ? AND ended IS NULL",
        (new, event.round),
    )


def _transaction_is_new(db: sqlite3.Connection, message: str) -> int:
    """1 for the first event of a transaction answered 250: some recipients may be new and some have it already."""
    return int(db.execute("SELECT 1 FROM messages WHERE message = ? LIMIT 1", (message,)).fetchone() is None)


def _message_stored(db: sqlite3.Connection, at: datetime, event: MessageStored) -> None:
    db.execute(
        "INSERT INTO files VALUES (?, ?, ?, ?, ?)",
        (stored_time(at), event.message, event.mailbox, text(event.file), event.bytes),
    )
    db.execute("UPDATE rounds SET files = files + 1 WHERE id = ?", (event.round,))


def _message_refused(db: sqlite3.Connection, at: datetime, event: MessageRefused) -> None:
    db.execute(
        "INSERT INTO messages (at, kind, session, provider, round, sender, recipients, bytes, code, reason)"
        " VALUES (?, 'refused', ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            stored_time(at),
            event.session,
            event.provider,
            event.round,
            text(event.sender),
            listed((event.recipient,) if event.recipient else ()),
            event.bytes,
            event.code,
            text(event.reason),
        ),
    )
    db.execute("UPDATE rounds SET refused = refused + 1 WHERE id = ? AND ended IS NULL", (event.round,))


def _round_ended(db: sqlite3.Connection, at: datetime, event: RoundEnded) -> None:
    """The runner's figures are the true ones; what was counted until here stands only where the agent died."""
    db.execute(
        "UPDATE rounds SET ended = ?, outcome = ?, reason = ?, sessions = ?, messages = ?, files = ?, duplicates = ?,"
        " refused = ?, bytes = ?, wire_bytes = ?, seconds = ? WHERE id = ?",
        (
            stored_time(at),
            event.outcome.value,
            text(event.reason),
            event.sessions,
            event.messages,
            event.files,
            event.duplicates,
            event.refused,
            event.bytes,
            event.wire_bytes,
            event.seconds,
            event.round,
        ),
    )
    db.execute("UPDATE totals SET rounds = rounds + 1")


def _warning_raised(db: sqlite3.Connection, at: datetime, event: WarningRaised) -> None:
    db.execute(
        "INSERT INTO warnings (warning, subject, text, fix, since) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (warning, subject) WHERE cleared IS NULL DO UPDATE SET text = excluded.text, fix = excluded.fix",
        (event.warning, text(event.subject), text(event.text), text(event.fix), stored_time(at)),
    )


def _warning_cleared(db: sqlite3.Connection, at: datetime, event: WarningCleared) -> None:
    db.execute(
        "UPDATE warnings SET cleared = ? WHERE warning = ? AND subject = ? AND cleared IS NULL",
        (stored_time(at), event.warning, text(event.subject)),
    )


def _line_used(db: sqlite3.Connection, at: datetime, event: LineUsed) -> None:
    db.execute(
        "INSERT INTO usage VALUES (?, ?, ?, ?) ON CONFLICT (day, interface) DO UPDATE SET"
        " seconds = seconds + excluded.seconds, wire_bytes = wire_bytes + excluded.wire_bytes",
        (stored_time(at)[:10], event.interface, event.seconds, event.wire_bytes),
    )


_WRITERS: Mapping[type[Event], Callable[[sqlite3.Connection, datetime, Any], None]] = {
    RoundStarted: _round_started,
    AskAnswered: _ask_answered,
    AskFailed: _ask_failed,
    SessionOpened: _session_opened,
    MessageAccepted: _message_accepted,
    MessageDuplicate: _message_duplicate,
    MessageStored: _message_stored,
    MessageRefused: _message_refused,
    RoundEnded: _round_ended,
    WarningRaised: _warning_raised,
    WarningCleared: _warning_cleared,
    LineUsed: _line_used,
}

KEPT: frozenset[type[Event]] = frozenset(_WRITERS)


def prune(db: sqlite3.Connection, now: datetime, *, keep_days: int) -> None:
    """Drop what is older than `keep_days`; at most a week's worth beyond the last time, and at most once in 20 hours.

    So neither a leap of the clock nor a row of restarts under a wrong one costs the history, and an agent that slept
    for months catches up within days. A standing warning is never too old. Inside the caller's transaction.
    """
    horizon = now - timedelta(days=keep_days)
    at, to = db.execute("SELECT pruned_at, pruned_to FROM totals").fetchone()
    if at is not None:
        if abs(now - datetime.fromisoformat(at)) < _PRUNE_EVERY:
            return
        horizon = min(horizon, datetime.fromisoformat(to) + _PRUNE_STEP)
    edge = stored_time(horizon)
    db.execute("DELETE FROM answers WHERE round IN (SELECT id FROM rounds WHERE started < ?)", (edge,))
    db.execute("DELETE FROM rounds WHERE started < ?", (edge,))
    db.execute("DELETE FROM messages WHERE at < ?", (edge,))
    db.execute("DELETE FROM files WHERE at < ?", (edge,))
    db.execute("DELETE FROM warnings WHERE cleared < ?", (edge,))
    db.execute("DELETE FROM usage WHERE day < ?", (edge[:10],))
    db.execute("UPDATE totals SET pruned_at = ?, pruned_to = ?", (stored_time(now), edge))
