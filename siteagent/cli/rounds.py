"""One round on demand, whoever does it: a running agent that is asked, or an agent of our own for just this round.

`ask` and `test` differ in what they make of it. What is told of a round has the shape of ``last_round`` in
``status.json`` wherever it comes from.
"""

from __future__ import annotations

import asyncio
import io
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from siteagent.cli.context import Context
from siteagent.cli.running import become_owner, imports_as_owner, log_writer, signals
from siteagent.cli.status import snapshot
from siteagent.config.sections import Configuration
from siteagent.errors import CannotCreate, ConfigurationError, ExitCode, TemporaryError
from siteagent.events import AskAnswered, AskFailed, Event, MessageAccepted, RoundStarted, SessionOpened, SessionRefused
from siteagent.host import systemd
from siteagent.status import amount, counted
from siteagent.store import lock, requests

Round = dict[str, Any]
Hear = Callable[[str], None]
"""Told at once when a provider has ``answered`` and when it ``connected``."""

_TAKEN_SECONDS = 5.0
_BEHIND_SECONDS = 15.0
_SERVICE_SECONDS = 10.0
_LOOK_SECONDS = 0.1
_AT_WORK = ("asking", "receiving")
_WAIT_FOR_LOCK_SECONDS = 0.25

EXIT_CODES = {
    "drained": ExitCode.DONE,
    "nothing": ExitCode.DONE,
    "silent": ExitCode.DONE,
    "asked": ExitCode.DONE,
    "incomplete": ExitCode.TEMPORARY,
    "failed": ExitCode.TEMPORARY,
    "link-lost": ExitCode.TEMPORARY,
    "refused": ExitCode.UNAVAILABLE,
}


@dataclass(slots=True)
class Asked:
    """What a round on demand brought. `rounds` by provider; `document`: the snapshot at its end.

    `stopped`: a signal ended it early, with all that had arrived filed; asking again is not wanted.
    """

    rounds: dict[str, Round] = field(default_factory=dict)
    document: dict[str, Any] = field(default_factory=dict)
    stopped: bool = False


@dataclass(frozen=True, slots=True)
class Wanted:
    """`providers` by name, at least one; `nodes` empty: all of each."""

    providers: tuple[str, ...]
    nodes: tuple[str, ...] = ()
    timeout_seconds: float | None = None


def ask(
    context: Context,
    configuration: Configuration,
    wanted: Wanted,
    *,
    sockets: Sequence[socket.socket] | None = None,
    hear: Hear = lambda what: None,
) -> Asked:
    """Asks now and waits for the end of it. Raises SiteAgentError; KeyboardInterrupt withdraws the request.

    `sockets`: bound by a caller who gave root up already; None: this is the place to do so.
    """
    state_directory = configuration.state_directory
    assert state_directory is not None, "config.files fills it in"
    began = time.monotonic()
    told = False
    while True:
        holder = lock.lock_holder(state_directory)
        if holder is not None and lock.holder_work(state_directory) == lock.RUN:
            for own in sockets or ():
                own.close()  # the agent has begun meanwhile: the ports are its own
            return _follow(context, state_directory, wanted, hear)
        if holder is None:
            try:
                if sockets is None:
                    sockets = become_owner(configuration)  # once: who gave root up cannot bind the ports again
                return _alone(context, configuration, wanted, sockets, hear=hear)
            except CannotCreate as error:
                if lock.lock_holder(state_directory) is None and not _service_began(context, state_directory, error):
                    raise  # not the lock: a taken port, or a directory that cannot be made
                continue
        if not told:
            told = True
            context.talk(f"another `siteagent ask` (process {holder}) is at work; waiting for it")
        if wanted.timeout_seconds is not None and time.monotonic() - began > wanted.timeout_seconds:
            raise TemporaryError("cannot ask", f"process {holder} is asking still", fix="try again when it is done")
        time.sleep(_WAIT_FOR_LOCK_SECONDS)


def _service_began(context: Context, state_directory: Path, error: CannotCreate) -> bool:
    """The port is held by ``siteagent.socket``: starts its service. False: it is not so, or not about this state."""
    if not error.what.startswith("cannot listen on") or not systemd.start_socket_service():
        return False
    context.talk("siteagent.socket holds the port; its service was started")
    until = time.monotonic() + _SERVICE_SECONDS
    while lock.lock_holder(state_directory) is None:
        if time.monotonic() > until:
            return False
        time.sleep(_LOOK_SECONDS)
    return True


# --- by a running agent -----------------------------------------------------------------------------------------------


def _follow(context: Context, state_directory: Path, wanted: Wanted, hear: Hear) -> Asked:
    request = requests.Request(
        id=requests.new_id(),
        providers=wanted.providers,
        nodes=wanted.nodes,
        timeout_seconds=wanted.timeout_seconds,
    )
    requests.leave(state_directory, request)
    try:
        return _followed(state_directory, wanted, request, _Progress(context.talk, hear))
    except BaseException:
        requests.withdraw(state_directory, request)
        raise


def _followed(state_directory: Path, wanted: Wanted, request: requests.Request, progress: _Progress) -> Asked:
    asked = Asked()
    began = last_sign = time.monotonic()
    seen: set[str] = set()
    while True:
        document, running = snapshot(state_directory)
        asked.document = document
        views = {view["name"]: view for view in document["providers"]}
        for name in wanted.providers:
            latest = _round_for(request, views.get(name))
            if latest is not None:
                seen.add(name)
                progress.show(name, latest)
                if latest["ended"] is not None:
                    asked.rounds[name] = latest
        if len(asked.rounds) == len(wanted.providers):
            return asked
        if not running:
            raise TemporaryError("cannot ask", "the agent ended meanwhile", fix="start it again, or ask again")
        now = time.monotonic()
        missing = [name for name in wanted.providers if name not in seen]
        unknown = [name for name in missing if name not in views]
        # Not seen while its provider is at work: it stands in line behind another round.
        if not missing or any(views[name]["state"] in _AT_WORK for name in missing if name in views):
            last_sign = now
        if now - last_sign > _TAKEN_SECONDS:
            raise _not_taken_up(document, unknown, waits=requests.withdraw(state_directory, request))
        if wanted.timeout_seconds is not None and now - began > wanted.timeout_seconds + _BEHIND_SECONDS:
            raise TemporaryError(
                "cannot wait any longer", "the round goes on", fix="`siteagent status` shows how it goes on"
            )
        time.sleep(_LOOK_SECONDS)


def _round_for(request: requests.Request, view: dict[str, Any] | None) -> Round | None:
    """The round that answers `request`: the latest, or one that another has followed since we looked."""
    for each in (view["last_round"], *view.get("earlier_rounds", ())) if view is not None else ():
        if each is not None and request.id in each["requests"]:
            return dict(each)
    return None


def _not_taken_up(document: dict[str, Any], unknown: list[str], *, waits: bool) -> TemporaryError | ConfigurationError:
    """`waits`: the request stands there still; else the agent took it and made nothing of it."""
    agent = f"the running agent (process {document['pid']})"
    if not waits and unknown:
        return ConfigurationError(
            "cannot ask",
            f"{agent} does not know {', '.join(unknown)}",
            fix="its log says why it rejected the configuration (config.rejected)",
        )
    return TemporaryError(
        "cannot ask",
        f"{agent} did not take the request up in {_TAKEN_SECONDS:.0f} s",
        fix="look at `siteagent status` and at the log",
    )


class _Progress:
    """Says what is new in a round, line by line."""

    def __init__(self, say: Callable[[str], None], hear: Hear) -> None:
        self._say, self._hear = say, hear
        self._said: set[str] = set()

    def show(self, provider: str, latest: Round) -> None:
        for node in latest["nodes"]:
            self._hear("answered")
            self._once(answer_line(provider, node["node"], node["outcome"], node["code"], node["text"]))
        if latest["sessions"]:
            self._hear("connected")
            self._once(f"{provider}: connected")

    def _once(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self._say(line)


# --- alone ------------------------------------------------------------------------------------------------------------


def _alone(
    context: Context,
    configuration: Configuration,
    wanted: Wanted,
    sockets: Sequence[socket.socket],
    *,
    hear: Hear,
) -> Asked:
    with imports_as_owner():
        from siteagent.agent.desk import Once
        from siteagent.agent.parts import Agent

    once = Once(requests.new_id(), wanted.providers, wanted.nodes, wanted.timeout_seconds)
    asked = Asked()
    stopped_by: list[str] = []

    async def work() -> None:
        # The events are told in words; a log is written where the operator wants one in a file, or asked for it.
        quiet_log = not (configuration.log.file or context.verbose or context.log_format)
        log = log_writer(context, configuration, stream=io.StringIO() if quiet_log else None)
        agent = Agent(
            configuration,
            log=log,
            once=once,
            sockets=sockets,
            observe=_told(context.talk, hear),
            transcript=context.detail if context.verbose else None,
        )

        def stop(reason: str) -> None:
            stopped_by.append(reason)
            agent.stop(reason)

        with signals(stop=stop):
            await agent.run()
        log.close()
        asked.document = agent.last_document
        asked.rounds = {
            view["name"]: view["last_round"]
            for view in asked.document["providers"]
            if view["last_round"] is not None and view["name"] in agent.rounds
        }

    asyncio.run(work())
    asked.stopped = bool(stopped_by)
    if not asked.rounds:
        raise KeyboardInterrupt
    return asked


def _told(say: Callable[[str], None], hear: Hear) -> Callable[[Event], None]:
    def tell(event: Event) -> None:
        match event:
            case RoundStarted():
                say(f"{event.provider}: asking over {event.interface}")
            case AskAnswered():
                hear("answered")
                say(answer_line(event.provider, event.node, event.outcome.value, event.code, event.text))
            case AskFailed():
                say(f"{event.provider}: {event.reason}" + (f"\n  fix: {event.fix}" if event.fix else ""))
            case SessionOpened():
                hear("connected")
                say(f"{event.provider or 'somebody'}: connected from {event.peer}")
            case SessionRefused() if event.expected:
                say(f"refused a connection from {event.peer}: {event.reason}")
            case MessageAccepted():
                say(f"{event.provider or 'somebody'}: a message of {amount(event.bytes)} from <{event.sender}>")

    return tell


# --- words ------------------------------------------------------------------------------------------------------------


def answer_line(provider: str, node: str, outcome: str, code: int | None, text: str) -> str:
    """One answer: ``isp: office.example: started (250 Queuing started)``."""
    said = f"{code} {text}".strip() if code is not None else text
    return f"{provider}: {node}: {outcome}" + (f" ({said})" if said else "")


def summary(name: str, latest: Round) -> str:
    """One round in a line."""
    if latest["outcome"] == "asked":
        return f"{name}: asked; what it holds comes to the mail server that receives here"
    brought = f"{counted(latest['messages'], 'message')}, {amount(latest['bytes'])}"
    line = f"{name}: {latest['outcome']}, {brought}"
    return f"{line} ({latest['reason']})" if latest.get("reason") else line
