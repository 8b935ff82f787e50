"""``siteagent hub``: the provider half. Run it; see, release or remove what it holds; add a site."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from siteagent.cli.context import Context
from siteagent.cli.history import local_now, table
from siteagent.cli.hubsites import add_node, show_node
from siteagent.errors import ExitCode, StorageError, TemporaryError, UsageError
from siteagent.status import amount, counted, moment
from siteagent.store import requests
from siteagent.store.lock import lock_holder
from siteagent.store.snapshot import FILE as STATUS_FILE

if TYPE_CHECKING:
    from siteagent.events import Event

NOT_RUNNING = 3
WARNED = 1
_TAKEN_SECONDS = 5.0
_UMASK = 0o077


@click.group("hub")
def hub() -> None:
    """The provider half: takes mail for sites, holds it, and releases it by ETRN or ATRN."""


# --- run --------------------------------------------------------------------------------------------------------------


@hub.command("run")
@click.pass_obj
def run(context: Context) -> int:
    """Run the hub, in the foreground, until SIGTERM or Ctrl-C. SIGHUP, or a changed hub.toml, reloads."""
    path = context.path(hub=True)
    configuration = context.configuration(hub=True)
    os.umask(_UMASK)
    from siteagent.cli.running import imports_as_owner, log_writer, signals
    from siteagent.host import allocator

    allocator.settle()

    sockets = _become_owner(configuration)
    with imports_as_owner():
        from siteagent.events import Severity, Stamped
        from siteagent.host.folders import FolderBell
        from siteagent.hub.reload import Reloader
        from siteagent.hub.server import Hub

    async def work() -> None:
        log = log_writer(context, configuration)

        def emit(event: Event) -> None:
            log.write(Stamped(datetime.now(UTC), event))

        def note(text: str) -> None:
            log.note(datetime.now(UTC), text, severity=Severity.WARNING)

        def failed(loop: asyncio.AbstractEventLoop, trouble: dict[str, Any]) -> None:
            error = trouble.get("exception")
            note(f"{trouble.get('message')}: {type(error).__name__}: {error}" if error else str(trouble.get("message")))

        loop = asyncio.get_running_loop()
        loop.set_exception_handler(failed)
        log.gather(loop.call_later)
        try:
            await serve(emit, note)
        finally:
            log.close()

    async def serve(emit: Callable[[Event], None], note: Callable[[str], None]) -> None:
        stopped = asyncio.Event()
        async with Hub(configuration, emit=emit, note=note, sockets=sockets) as running:
            reloader = Reloader(running, path)

            def rung() -> None:
                running.look_at_requests()
                reloader.look()

            bell = FolderBell([running.state_directory / requests.FOLDER, path.parent], ring=rung)
            running.background(bell.run())
            rung()
            with signals(stop=lambda reason: stopped.set(), reload=lambda: running.background(reloader.reload())):
                await stopped.wait()

    asyncio.run(work())
    return ExitCode.DONE


def _become_owner(configuration: Any) -> dict[str, list[socket.socket]] | None:
    """As root: binds the ports, then goes on as the owner of the state directory. None: bind them later."""
    from siteagent.host import identity

    owner = identity.owner_to_become(configuration.state_directory)
    if owner is None:
        return None
    from siteagent.inbound.listener import bind

    wanted = {
        "mail": configuration.listener.listen,
        "odmr": configuration.odmr.listen,
        "odmr_tls": configuration.odmr.listen_tls,
    }
    bound = {name: bind(endpoints) for name, endpoints in wanted.items()}
    identity.become(owner)
    return bound


# --- looking ----------------------------------------------------------------------------------------------------------


@hub.command("status")
@click.option("--json", "as_json", is_flag=True, help="The snapshot as one JSON document.")
@click.option("--check", is_flag=True, help="Exit 1 while a warning stands.")
@click.pass_obj
def status(context: Context, as_json: bool, check: bool) -> int:
    """What is held for whom. Exit code 0 while the hub runs, 3 while it does not, 1 with --check while it warns."""
    state_directory = context.state_directory(hub=True)
    document, running = snapshot(state_directory)
    context.out(json.dumps(document) if as_json else _screen(document, running=running))
    if not running:
        return NOT_RUNNING
    return WARNED if check and document["warnings"] else int(ExitCode.DONE)


def snapshot(state_directory: Path) -> tuple[dict[str, Any], bool]:
    """The document to show, and whether a hub lives. Where none does, the spool itself tells what is held."""
    running = lock_holder(state_directory) is not None
    path = state_directory / STATUS_FILE
    document: dict[str, Any] = {"version": 1, "pid": 0, "since": None, "warnings": [], "totals": {}, "requests": {}}
    try:
        document |= json.loads(path.read_bytes())
    except FileNotFoundError:
        running = False
    except (OSError, ValueError) as error:
        raise StorageError(f"cannot read {path}", str(error), fix="start the hub again: it writes it anew") from error
    if not running:
        document |= {"state": "stopped", "sessions_open": [], "listener": {"addresses": [], "odmr": []}}
        document |= _held(state_directory, document.get("nodes", []))
    return document, running


def _held(state_directory: Path, known: list[dict[str, Any]]) -> dict[str, Any]:
    from siteagent.store import held

    rows = {name: (messages, octets, oldest) for name, messages, octets, oldest in held.summary(state_directory)}
    nodes = {name: {"name": name} for name in rows} | {node["name"]: node for node in known}
    names = list(dict.fromkeys([*(node["name"] for node in known), *rows]))
    for name in names:
        messages, octets, oldest = rows.get(name, (0, 0, None))
        when = None if oldest is None else datetime.fromtimestamp(oldest, UTC).isoformat(timespec="seconds")
        nodes[name] = {**nodes[name], "messages": messages, "bytes": octets, "oldest": when, "releasing": False}
    total = {"messages": sum(row[0] for row in rows.values()), "bytes": sum(row[1] for row in rows.values())}
    return {"nodes": [nodes[name] for name in names], "queue": total}


def _screen(document: dict[str, Any], *, running: bool) -> str:
    now = local_now()
    queue = document.get("queue") or {"messages": 0, "bytes": 0}
    held = f"{counted(queue['messages'], 'message')} ({amount(queue['bytes'])}) held"
    lines = [f"the hub {'runs' if running else 'does not run'}: {held}"]
    lines += [f"warning: {warning['text']}\n  fix: {warning['fix']}" for warning in document["warnings"]]
    rows = []
    for node in document.get("nodes", []):
        last = node.get("last_release") or {}
        told = f"{moment(last['ended'], now)} by {last['method']}: {last['messages']} sent" if last else "never"
        told += f", {last['left']} left" if last.get("left") else ""
        oldest = moment(node["oldest"], now) if node.get("oldest") else ""
        row = (node["name"], str(node["messages"]), amount(node["bytes"]), oldest, told, last.get("reason", ""))
        rows.append(row)
    if rows:
        lines.append(table(("node", "held", "size", "oldest", "last release", "why"), rows, right={1, 2}))
    listener = document.get("listener") or {}
    if running:
        lines.append(f"listening on {', '.join([*listener.get('addresses', []), *listener.get('odmr', [])])}")
    return "\n".join(lines)


@hub.command("queue")
@click.argument("node", required=False)
@click.option("--json", "as_json", is_flag=True, help="As one JSON document.")
@click.pass_obj
def queue(context: Context, node: str | None, as_json: bool) -> int:
    """What is held, oldest first; of NODE where one is given. The first column is what `hub drop` wants."""
    from siteagent.store.spool import SpoolReader

    waiting = SpoolReader(context.state_directory(hub=True)).waiting()
    waiting = [each for each in waiting if node in (None, each.mailbox)]
    if as_json:
        rows = [
            {
                "message": each.message,
                "node": each.mailbox,
                "sender": each.sender,
                "bytes": each.bytes,
                "accepted": each.accepted.isoformat(timespec="seconds").replace("+00:00", "Z"),
                "reason": each.reason,
                "tries": each.tries,
            }
            for each in waiting
        ]
        context.out(json.dumps({"version": 1, "messages": rows}))
        return int(ExitCode.DONE)
    if not waiting:
        context.talk("nothing is held" if node is None else f"nothing is held for {node}")
        return int(ExitCode.DONE)
    now = local_now()
    lines = [
        (
            each.message,
            each.mailbox,
            amount(each.bytes),
            moment(each.accepted, now),
            each.sender or "<>",
            str(each.tries or ""),
            each.reason or "",
        )
        for each in waiting
    ]
    head = ("message", "node", "size", "accepted", "from", "tries", "reason")
    context.out(table(head, lines, right={2, 5}))
    return int(ExitCode.DONE)


# --- acting -----------------------------------------------------------------------------------------------------------


@hub.command("release")
@click.argument("nodes", nargs=-1, required=True, metavar="NODE...")
@click.pass_obj
def release(context: Context, nodes: tuple[str, ...]) -> int:
    """Push what is held for NODE now, as its ETRN would."""
    answer = _asked(context.state_directory(hub=True), "release", nodes)
    if not answer["done"]:
        raise UsageError("cannot release", answer["answer"], fix="see `siteagent hub status` for the nodes")
    context.talk(f"released: {answer['answer']}; `siteagent hub status` shows how it went")
    return int(ExitCode.DONE)


@hub.command("drop")
@click.argument("messages", nargs=-1, required=True, metavar="ID...")
@click.pass_obj
def drop(context: Context, messages: tuple[str, ...]) -> int:
    """Remove messages for good, without a notice to anybody. `siteagent hub queue` shows their IDs."""
    state_directory = context.state_directory(hub=True)
    for message in messages:
        if lock_holder(state_directory) is None:
            done, text = _dropped(state_directory, message)
        else:
            answer = _asked(state_directory, "drop", (message,))
            done, text = answer["done"], answer["answer"]
        if not done:
            raise UsageError(f"cannot drop {message}", text, fix="see `siteagent hub queue`")
        context.talk(text)
    return int(ExitCode.DONE)


def _dropped(state_directory: Path, message: str) -> tuple[bool, str]:
    """Without a hub: we are the spool's owner for a moment."""
    if not state_directory.is_dir():
        return False, "nothing is held here: no hub has run yet"
    from siteagent.hub.orders import drop_now

    return drop_now(state_directory, message)


def _asked(state_directory: Path, kind: str, names: Sequence[str]) -> dict[str, Any]:
    """Leaves a request for the running hub and waits for its answer. Raises TemporaryError where none comes."""
    what = f"cannot {kind} {', '.join(names)}"
    if lock_holder(state_directory) is None:
        raise TemporaryError(what, "the hub is not running", fix="start it: `siteagent hub run`")
    request = requests.Request(id=requests.new_id(), kind=kind, nodes=tuple(names))
    requests.leave(state_directory, request)
    until = time.monotonic() + _TAKEN_SECONDS
    while time.monotonic() < until:
        answer = snapshot(state_directory)[0]["requests"].get(request.id)
        if answer is not None:
            return dict(answer)
        time.sleep(0.05)
    requests.withdraw(state_directory, request)
    fix = "run `siteagent hub status`, and look into the hub's log"
    raise TemporaryError(what, f"the hub did not take the request within {_TAKEN_SECONDS:g} s", fix=fix)


hub.add_command(add_node)
hub.add_command(show_node)
