"""`history`: the rounds so far and what each brought, from the journal; and mail that came unasked."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta

import click

from siteagent.cli.context import Context
from siteagent.errors import ExitCode, UsageError
from siteagent.status import Document, amount, counted, moment, timestamp
from siteagent.store.journal import FILE as JOURNAL
from siteagent.store.journal import JournalReader, MessageEntry, RoundEntry
from siteagent.store.lock import lock_holder


def local_now() -> datetime:
    """Now, with the zone that people here live in."""
    return datetime.now().astimezone()


@click.command("history")
@click.option("--rounds", type=click.IntRange(min=1), default=None, metavar="N", help="The last N rounds (20).")
@click.option("--messages", "with_messages", is_flag=True, help="Each message, too.")
@click.option("--since", "since_text", metavar="WHEN", help="From 2026-11-22T08:00, from 08:00, or the last 2d.")
@click.option("--cost", is_flag=True, help="Instead: what each line was used for, day by day (UTC).")
@click.option("--json", "as_json", is_flag=True, help="As one JSON document.")
@click.pass_obj
def history(
    context: Context, rounds: int | None, with_messages: bool, since_text: str | None, cost: bool, as_json: bool
) -> int:
    """The rounds, oldest first, and what each brought; then mail that came unasked."""
    since = None if since_text is None else parse_since(since_text, local_now())
    if cost:
        return _cost(context, since, as_json=as_json)
    limit = rounds if rounds is not None or since is not None else 20
    reader = JournalReader(context.state_directory() / JOURNAL)
    entries = reader.rounds(limit, since)
    # Mail belongs to the time that the shown rounds span; without any round all of it is shown.
    begin = since or (entries[0].started if entries else None)
    unasked = [each for each in reader.messages(since=begin, unasked=True) if each.kind != "refused" or with_messages]
    shown = {entry.id for entry in entries}
    messages = [each for each in reader.messages(since=begin) if each.round in shown] if with_messages else []
    if as_json:
        context.out(json.dumps(_history_document(entries, messages, unasked, with_messages=with_messages)))
        return int(ExitCode.DONE)
    if not entries and not unasked:
        context.talk("no round since then" if since else "no round yet")
        return int(ExitCode.DONE)
    running = lock_holder(context.state_directory()) is not None
    context.out("\n".join(_history_lines(entries, messages, unasked, running=running)))
    return int(ExitCode.DONE)


def _cost(context: Context, since: datetime | None, *, as_json: bool) -> int:
    days = JournalReader(context.state_directory() / JOURNAL).usage(since)
    if as_json:
        context.out(json.dumps({"version": 1, "lines": [asdict(day) for day in days]}))
    elif not days:
        context.talk("no line was used since then" if since else "no line was used yet")
    else:
        head = ("day", "line", "connected", "on the wire", "rounds", "messages")
        rows = [
            (
                day.day,
                day.interface or "-",
                span(day.seconds),
                amount(day.wire_bytes),
                str(day.rounds),
                str(day.messages),
            )
            for day in days
        ]
        context.out(table(head, rows, right={2, 3, 4, 5}))
    return int(ExitCode.DONE)


def span(seconds: float) -> str:
    """``4 h 07 min``, ``12 min 30 s``, ``8.5 s``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _history_document(
    entries: list[RoundEntry], messages: list[MessageEntry], unasked: list[MessageEntry], *, with_messages: bool
) -> Document:
    document: Document = {
        "version": 1,
        "rounds": [_round_document(entry) for entry in entries],
        "unasked": [_message_document(each) for each in unasked],
    }
    if with_messages:
        document["messages"] = [_message_document(each) for each in messages]
    return document


def _round_document(entry: RoundEntry) -> Document:
    waited = entry.first_connection_seconds
    return {
        "id": entry.id,
        "provider": entry.provider,
        "cause": entry.cause,
        "method": entry.method,
        "interface": entry.interface,
        "started": timestamp(entry.started),
        "asked": timestamp(entry.asked),
        "code": entry.code,
        "first_connection_seconds": None if waited is None else round(waited, 3),
        "ended": timestamp(entry.ended),
        "outcome": entry.outcome,
        "reason": entry.reason,
        "requests": list(entry.requests),
        "nodes": [
            {
                "node": answer.node,
                "outcome": answer.outcome,
                "code": answer.code,
                "text": answer.text,
                "promised": answer.promised,
                "seconds": answer.seconds,
            }
            for answer in entry.answers
        ],
        "sessions": entry.sessions,
        "messages": entry.messages,
        "files": entry.files,
        "duplicates": entry.duplicates,
        "refused": entry.refused,
        "bytes": entry.bytes,
        "wire_bytes": entry.wire_bytes,
        "seconds": entry.seconds,
    }


def _message_document(each: MessageEntry) -> Document:
    return {
        "at": timestamp(each.at),
        "kind": each.kind,
        "message": each.message,
        "session": each.session,
        "provider": each.provider,
        "round": each.round,
        "sender": each.sender,
        "recipients": list(each.recipients),
        "bytes": each.bytes,
        "wire_bytes": each.wire_bytes,
        "code": each.code,
        "reason": each.reason,
        "first": each.first,
        "files": [{"mailbox": mailbox, "file": file} for mailbox, file in each.files],
    }


def _history_lines(
    entries: list[RoundEntry], messages: list[MessageEntry], unasked: list[MessageEntry], *, running: bool
) -> Iterator[str]:
    now = local_now()
    if entries:
        last = {entry.provider: entry.id for entry in entries}
        rows = [_round_row(entry, now, open=running and last[entry.provider] == entry.id) for entry in entries]
        yield table(("started", "provider", "cause", "what happened"), rows, right=set())
    for title, chosen in (("messages", messages), ("came unasked", unasked)):
        if chosen:
            yield f"\n{title}"
            rows = [
                (moment(each.at, now), each.kind, amount(each.bytes), each.sender or "<>", _whereto(each))
                for each in chosen
            ]
            yield table(("at", "what", "size", "from", "to"), rows, right={2})


def _round_row(entry: RoundEntry, now: datetime, *, open: bool) -> tuple[str, ...]:
    return (moment(entry.started, now), entry.provider, entry.cause, told(entry, now, open=open))


def told(entry: RoundEntry, now: datetime, *, open: bool) -> str:
    """What one round came to, as a sentence: ``asked 09:02:11 (250), first connection after 4.1 s, 3 messages, 1.2 MB

    (1.4 MB on the wire), drained 09:02:30``. `open`: it may be running still.
    """

    def clock(at: datetime) -> str:
        return f"{at.astimezone(now.tzinfo):%H:%M:%S}"

    how = "" if entry.method == "etrn" else f" by {entry.method.upper()}"
    code = f" ({entry.code})" if entry.code is not None else ""
    parts = [f"asked {clock(entry.asked)}{how}{code}" if entry.asked is not None else f"not answered{how}{code}"]
    if entry.first_connection_seconds is not None:
        parts.append(f"first connection after {entry.first_connection_seconds:.1f} s")
    if entry.messages:
        parts += [counted(entry.messages, "message"), f"{amount(entry.bytes)} ({amount(entry.wire_bytes)} on the wire)"]
    elif entry.wire_bytes:
        parts.append(f"{amount(entry.wire_bytes)} on the wire")
    for number, word in ((entry.duplicates, "had before"), (entry.refused, "refused")):
        parts += [f"{number} {word}"] if number else []
    if entry.ended is None:
        parts.append("running" if open else "broken off")
    else:
        parts.append(f"{entry.outcome} {clock(entry.ended)}")
    return ", ".join(parts) + (f": {entry.reason}" if entry.reason else "")


def _whereto(each: MessageEntry) -> str:
    if each.files:
        return ", ".join(mailbox for mailbox, _ in each.files)
    to = ", ".join(each.recipients[:3]) + (f" and {len(each.recipients) - 3} more" if len(each.recipients) > 3 else "")
    return f"{to}: {each.code} {each.reason}" if each.kind == "refused" else to


_AGO = re.compile(r"(\d{1,6})\s*([smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_CLOCK = re.compile(r"(\d{1,2}):(\d{2})")


def parse_since(text: str, now: datetime) -> datetime:
    """``2026-11-22T08:00`` (with its own zone, or in that of `now`), ``08:00`` (the last time it was), ``2d``.

    Raises UsageError for anything else.
    """
    try:
        if ago := _AGO.fullmatch(text.strip()):
            return now - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        if clock := _CLOCK.fullmatch(text.strip()):
            today = now.replace(hour=int(clock[1]), minute=int(clock[2]), second=0, microsecond=0)
            return today if today <= now else today - timedelta(days=1)
        at = datetime.fromisoformat(text.strip())
        return at if at.tzinfo is not None else at.replace(tzinfo=now.tzinfo)
    except (ValueError, OverflowError):
        raise UsageError(
            "cannot look back that far",
            f'"{text}" is no time',
            fix="write it as 2026-11-22T08:00, as 08:00, or as a span such as 30m, 6h, 2d, 1w",
        ) from None


# --- tables -----------------------------------------------------------------------------------------------------------

_UNFIT = re.compile(r"[^\x20-\x7e\xa0-\ud7ff\ue000-\U0010ffff]+")


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]], *, right: set[int]) -> str:
    """Columns by blanks, as good in a pipe as on a terminal; a column without any content is left out."""
    clean = [tuple(_UNFIT.sub(" ", cell) for cell in row) for row in rows]
    kept = [index for index in range(len(head)) if any(row[index] for row in clean)]
    lines = [head, *clean]
    widths = {index: max(len(row[index]) for row in lines) for index in kept}
    return "\n".join(
        "  ".join(
            row[index].rjust(widths[index]) if index in right else row[index].ljust(widths[index]) for index in kept
        ).rstrip()
        for row in lines
    )
