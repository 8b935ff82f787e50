"""`status` and `queue` (and `history`, by import): what people look at, while the agent runs and when it does not.

Nothing here talks to the agent, except that `queue retry` leaves a request for it. Whether it lives is told by its
lock; ``status.json`` tells what it saw, and its last word may be older than its death.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from siteagent.cli.context import Context
from siteagent.cli.history import history, local_now, table
from siteagent.errors import ExitCode, PermissionProblem, SiteAgentError, StorageError, TemporaryError
from siteagent.status import (
    Document,
    ListenerView,
    Mood,
    ProviderView,
    QueueView,
    StatusFold,
    amount,
    moment,
    render,
    timestamp,
    verdict,
)
from siteagent.store import requests
from siteagent.store.journal import FILE as JOURNAL
from siteagent.store.journal import JournalReader
from siteagent.store.lock import lock_holder

__all__ = ["history", "pictures", "queue", "retry_queue", "snapshot", "status"]

NOT_RUNNING = 3  # as init scripts say it (LSB): the program is not running
WARNED = 1

STATUS_FILE = "status.json"
TAKEN_SECONDS = 5.0
WATCH_SECONDS = 0.5

_PAINT = {Mood.FLOWS: "green", Mood.UNKNOWN: "cyan", Mood.WAITS: "cyan", Mood.LOOK: "yellow", Mood.STOPPED: "red"}


# --- status -----------------------------------------------------------------------------------------------------------


@click.command("status")
@click.option("--json", "as_json", is_flag=True, help="The snapshot as one JSON document.")
@click.option("--watch", is_flag=True, help="Show it again whenever it changes; with --json one document a line.")
@click.option("--check", is_flag=True, help="Exit 1 while a warning stands.")
@click.pass_obj
def status(context: Context, as_json: bool, watch: bool, check: bool) -> int:
    """Does mail flow? The first line answers; the rest is one screen.

    Exit code 0 while the agent runs, 3 while it does not, 1 with --check while a warning stands.
    """
    state_directory = context.state_directory()
    if watch:
        return _watch(context, state_directory, as_json=as_json)
    document, running = snapshot(state_directory)
    context.out(json.dumps(document) if as_json else _screen(context, document, running=running))
    return status_code(document, running=running, check=check)


def status_code(document: Document, *, running: bool, check: bool) -> int:
    if not running:
        return NOT_RUNNING
    return WARNED if check and document["warnings"] else int(ExitCode.DONE)


def snapshot(state_directory: Path) -> tuple[Document, bool]:
    """The document to show, and whether an agent lives.

    Where the file is missing the journal tells what was last; where no agent lives the file is corrected to say so.
    """
    holder = lock_holder(state_directory)
    running = holder is not None
    document = _read_status(state_directory / STATUS_FILE)
    if document is None or (running and holder and document.get("pid") != holder):
        # A new agent that has not written yet: the file, if there is one, is about the one before it.
        document = _remembered(state_directory, document, holder)
    if not running:
        document |= {"state": "stopped", "sessions_open": []}
        document["listener"] = {**document["listener"], "open": False}
        document["queue"] = _queue_left(state_directory, document.get("queue"))
    return document, running


def _read_status(path: Path) -> Document | None:
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except PermissionError as error:
        fix = f"run it as the owner of {path.parent}, or as root"
        raise PermissionProblem(f"cannot read {path}", error.strerror or str(error), fix=fix) from error
    except (OSError, ValueError) as error:
        raise StorageError(f"cannot read {path}", str(error), fix="start the agent again: it writes it anew") from error
    whole = isinstance(document, dict) and {"state", "listener", "providers", "warnings"} <= document.keys()
    if not whole:
        raise StorageError(f"cannot read {path}", "it is no status of siteagent", fix="start the agent again")
    return dict(document)


def _queue_left(state_directory: Path, known: Any) -> Any:
    """What waits while nobody files it, from the spool itself; `known` where it is not ours to read."""
    from siteagent.store.spool import SpoolReader

    try:
        waiting = SpoolReader(state_directory).waiting()
    except (SiteAgentError, OSError):
        return known
    oldest = waiting[0] if waiting else None
    return {
        "messages": len({each.message for each in waiting}),
        "oldest": timestamp(oldest.accepted) if oldest else None,
        "reason": oldest.reason if oldest else None,
    }


def _remembered(state_directory: Path, old: Document | None, holder: int | None) -> Document:
    """A document from the journal alone."""
    fold = StatusFold()
    restored = JournalReader(state_directory / JOURNAL).restore()
    fold.restore(restored.past, rounds=restored.rounds, messages=restored.messages, bytes=restored.bytes)
    names = dict.fromkeys(row["provider"] for row in fold.ledger())
    return fold.document(
        state="stopped" if holder is None else "starting",
        pid=holder or (old or {}).get("pid") or 0,
        since=None,
        listener=ListenerView(),
        sessions=(),
        queue=QueueView(),
        providers=[ProviderView(name, "down") for name in names],
    )


def _screen(context: Context, document: Document, *, running: bool) -> str:
    now = local_now()
    first, _, rest = render(document, now=now, running=running).partition("\n")
    mood = verdict(document, now=now, running=running).mood
    return f"{click.style(first, fg=_PAINT[mood], bold=True)}\n{rest.rstrip()}"


def _watch(context: Context, state_directory: Path, *, as_json: bool) -> int:
    """Until Ctrl-C. A terminal is cleared for each picture; a pipe gets them one below the other."""
    for document, running in pictures(state_directory, pause=lambda: time.sleep(WATCH_SECONDS)):
        if as_json:
            context.out(json.dumps(document))
            continue
        if context.colored():
            click.clear()
        context.out(_screen(context, document, running=running))
    return int(ExitCode.DONE)


def pictures(state_directory: Path, *, pause: Callable[[], None]) -> Iterator[tuple[Document, bool]]:
    """Each snapshot that differs from the one before it, without end."""
    last: tuple[Document, bool] | None = None
    while True:
        now = snapshot(state_directory)
        if now != last:
            last = now
            yield now
        pause()


# --- queue ------------------------------------------------------------------------------------------------------------


@click.group("queue", invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="As one JSON document.")
@click.pass_context
def queue(ctx: click.Context, as_json: bool) -> int | None:
    """What was accepted and waits to be filed, with the reason and the next try."""
    if ctx.invoked_subcommand is not None:
        return None
    from siteagent.store.spool import SpoolReader  # brings asyncio, which `status` has no use for

    context: Context = ctx.obj
    waiting = SpoolReader(context.state_directory()).waiting()
    if as_json:
        context.out(json.dumps({"version": 1, "messages": [_waiting_document(each) for each in waiting]}))
        return int(ExitCode.DONE)
    if not waiting:
        context.talk("nothing waits to be filed")
        return int(ExitCode.DONE)
    now = local_now()
    rows = [
        (
            moment(each.accepted, now),
            each.mailbox,
            amount(each.bytes),
            each.sender or "<>",
            moment(each.next_try, now) if each.next_try else "now",
            each.reason or "",
        )
        for each in waiting
    ]
    context.out(table(("accepted", "mailbox", "size", "from", "next try", "reason"), rows, right={2}))
    return int(ExitCode.DONE)


def _waiting_document(each: Any) -> Document:
    return {
        "message": each.message,
        "mailbox": each.mailbox,
        "sender": each.sender,
        "bytes": each.bytes,
        "accepted": timestamp(each.accepted),
        "reason": each.reason,
        "tries": each.tries,
        "next_try": timestamp(each.next_try),
    }


@queue.command("retry")
@click.pass_obj
def retry(context: Context) -> int:
    """Try everything that waits again now."""
    retry_queue(context.state_directory())
    context.talk("everything that waits is being tried again; `siteagent queue` shows what is left")
    return int(ExitCode.DONE)


def retry_queue(state_directory: Path, *, seconds: float = TAKEN_SECONDS) -> None:
    """Leave the request and see it taken.

    Raises TemporaryError where no agent runs, or none takes it within `seconds`; what `requests.leave` raises.
    """
    if lock_holder(state_directory) is None:
        raise TemporaryError(
            "cannot try the waiting mail again",
            "the agent is not running",
            fix="start it: it tries everything that waits as soon as it runs",
        )
    request = requests.Request(id=requests.new_id(), kind=requests.RETRY_QUEUE)
    requests.leave(state_directory, request)
    left = state_directory / requests.FOLDER / f"{request.id}.json"
    until = time.monotonic() + seconds
    while left.exists() and time.monotonic() < until:
        time.sleep(0.05)
    if requests.withdraw(state_directory, request):
        raise TemporaryError(
            "cannot try the waiting mail again",
            f"the agent did not take the request within {seconds:g} s",
            fix="run `siteagent status`, and look into the agent's log",
        )
