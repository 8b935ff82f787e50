"""The parts list: builds every part from the configuration, connects them, starts and stops them.

Order of start: lock, journal, spool, filer, listener, then the line is watched; of stop: the tasks and rounds, the
listener (what arrives is finished), the spool's committer last of all. Every long task is supervised: one that falls
over is told, and started again with growing pauses; it never takes another with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from siteagent import silence, spf
from siteagent.agent.alarms import Alarms
from siteagent.agent.desk import Desk, Once
from siteagent.agent.gate import Gate
from siteagent.agent.heartbeat import FILE as HEARTBEAT
from siteagent.agent.heartbeat import Beats
from siteagent.agent.meter import Meter
from siteagent.agent.notes import Notes
from siteagent.agent.peering import Peering
from siteagent.agent.shutter import Shutter
from siteagent.agent.telling import Teller
from siteagent.config.sections import Configuration, Open, Provider
from siteagent.delivery.filer import Filer
from siteagent.delivery.maildir import Maildir
from siteagent.delivery.routing import Routing
from siteagent.errors import CannotCreate, PermissionProblem
from siteagent.events import (
    AgentReady,
    AgentStopping,
    Event,
    LinkChanged,
    LinkUp,
    PartFailed,
    RoundEnded,
    Severity,
    WarningCleared,
    WarningRaised,
    hears,
)
from siteagent.hooks import Hooks
from siteagent.host import allocator, systemd
from siteagent.host.folders import FolderBell
from siteagent.host.tls import ServerContext
from siteagent.inbound.listener import Listener
from siteagent.inbound.reception import Owner, Reception
from siteagent.inbound.smtp import Dialect
from siteagent.link.backend import Oracle
from siteagent.link.watch import Watch
from siteagent.logs import LogWriter
from siteagent.names import Resolver
from siteagent.status import Document, ListenerView, QueueView
from siteagent.store import journal as journals
from siteagent.store import lock, requests
from siteagent.store.forms import FILE as FORMS
from siteagent.store.forms import NameForms
from siteagent.store.spool import Spool

_REFRESH_SECONDS = 300.0
_FIRST_REFRESH_SECONDS = 15.0
_TICKS_BETWEEN_LOOKS = 30
_GRACE_SECONDS = 30.0
_RESTART_SECONDS = (1.0, 5.0, 15.0, 60.0)
_HEALTHY_SECONDS = 600.0
_HOST_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_")


class Agent:
    """`run` lives until `stop`, with `once` until that round is over; then `rounds` and `last_document` tell of it."""

    def __init__(
        self,
        configuration: Configuration,
        *,
        log: LogWriter,
        once: Once | None = None,
        sockets: Sequence[socket.socket] = (),
        observe: Callable[[Event], None] | None = None,
        transcript: Callable[[str], None] | None = None,
        oracle: Oracle | None = None,
    ) -> None:
        """`observe` sees every event; `transcript` hears the conversations with providers, secrets masked.

        `oracle` tells whether there is a line, instead of the operating system.
        """
        assert configuration.state_directory is not None, "config.files fills it in"
        self.configuration = configuration
        self.state_directory = configuration.state_directory
        self.rounds: dict[str, RoundEnded] = {}
        self.last_document: Document = {}
        self.ready = asyncio.Event()
        self.on_folder_changed: Callable[[], None] = lambda: None
        self.watched_folders = [self.state_directory / requests.FOLDER]
        self._log = log
        self._once = once
        self._sockets = list(sockets)
        self._observe = observe
        self._transcript = transcript
        self._oracle = oracle
        self._state = "starting"
        self._since = datetime.now(UTC)
        self._began = time.monotonic()
        self._stop = asyncio.Event()
        self._reason = ""
        self._watch_anew = asyncio.Event()
        self._shutter: Shutter | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._ids = 0
        self._run_id = secrets.token_hex(4)
        self._host = "".join(c if c in _HOST_CHARACTERS else "_" for c in configuration.hostname.strip("[]"))[:40]

    # --- life ---------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Runs until `stop`. Raises SiteAgentError if it cannot start."""
        self._make_state_directory()
        held = (
            lock.acquire(self.state_directory, purpose="run the agent")
            if self._once is None
            else lock.acquire(self.state_directory, purpose="ask", work=lock.ASK)
        )
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(held.release)
            await self._start(stack)
            try:
                await self._stop.wait()
            finally:
                self._state = "stopping"
                systemd.notify("STOPPING=1")
                self.teller.emit(AgentStopping(reason=self._reason or "interrupted"))

    def stop(self, reason: str) -> None:
        """Asks it to end: no new session, running ones finished within half a minute. Any number of times."""
        self._reason = self._reason or reason
        self._stop.set()

    async def _start(self, stack: contextlib.AsyncExitStack) -> None:
        self._log.gather(asyncio.get_running_loop().call_later)
        stack.callback(self._log.gather, None)
        await self._open_journal(stack)
        asyncio.get_running_loop().set_exception_handler(self._loop_error)
        await self._open_spool(stack)
        self._build_edges(stack)
        self.teller.be_patient(asyncio.get_running_loop().call_later)
        stack.callback(self.teller.be_patient, None)
        await self._open_listener(stack)
        stack.push_async_callback(self._end_tasks)
        self.meter = Meter(self.teller.emit, monotonic=time.monotonic, wall=lambda: datetime.now(UTC))
        stack.callback(self.meter.close)
        self._memory = allocator.Returner()
        stack.callback(self._memory.close)
        self.explainer = self._new_explainer()
        self.teller.observers += [self._on_event, self.meter.observe, self.explainer.observe, self.gate.check]
        self._build_alarms()
        self.teller.observers += [self.alarms.observe, self._note_down, self.beats.observe]
        self.teller.observers += [self._observe] if self._observe else []
        for provider in self.configuration.provider:
            wanted = self._once.share(provider) if self._once else provider
            if wanted is not None:
                self.desk.add(wanted)
        if self._once:
            self.desk.ask_once(self._once)
        self._state = "running"
        self.teller.only_about({provider.name for provider in self.configuration.provider})
        folders = FolderBell(self.watched_folders, ring=self._rung)
        if self._shutter is not None:
            self.teller.observers.append(self._shutter.observe)
            self._supervise("shutter", self._shutter.run)
        self._supervise("status", self.teller.run)
        self._supervise("link", self._watch)
        self._supervise("names", self._keep_names)
        self._supervise("folders", folders.run)
        self._supervise("clock", self._tick)
        self._supervise("alarms", self.alarms.run)
        if self._once is None:
            self._supervise("heartbeat", self.beats.run)
        self._supervise("watchdog", self._feed_watchdog)
        await self._tell_ready()

    async def _tell_ready(self) -> None:
        listening = self.listener.addresses if self.listener else ()
        seconds = round(time.monotonic() - self._began, 3)
        self.teller.emit(
            AgentReady(
                hostname=self.configuration.hostname,
                listening=listening,
                providers=tuple(self.desk.runners),
                seconds=seconds,
            )
        )
        await self.teller.write()
        systemd.notify(f"READY=1\nMAINPID={os.getpid()}")
        self.ready.set()
        self._rung()

    def _make_state_directory(self) -> None:
        try:
            if not self.state_directory.is_dir():
                self.state_directory.mkdir(parents=True)
                self.state_directory.chmod(0o755)  # `status` is for everybody; mail in it is 0600
            requests.make_folder(self.state_directory)
        except PermissionError as error:
            raise PermissionProblem(
                f"cannot use the state directory {self.state_directory}",
                f"{error.filename or self.state_directory}: {error.strerror}",
                fix=f"run it as the owner of {self.state_directory}, or as root",
            ) from error
        except OSError as error:
            raise CannotCreate(
                f"cannot make the state directory {self.state_directory}",
                error.strerror or str(error),
                fix="make it, owned by the user that runs siteagent, or set state_directory",
            ) from error

    # --- building -----------------------------------------------------------------------------------------------------

    async def _open_journal(self, stack: contextlib.AsyncExitStack) -> None:
        path = self.state_directory / journals.FILE
        self.journal = journals.Journal(
            path,
            keep_days=self.configuration.journal.keep_days,
            now=lambda: datetime.now(UTC),
            report=partial(_from_a_thread, asyncio.get_running_loop(), self._note_error),
        )
        self.teller = Teller(self.state_directory, log=self._log, record=self.journal.record)
        self.teller.metrics = self.configuration.metrics.file
        await asyncio.to_thread(self.journal.open)
        stack.push_async_callback(asyncio.to_thread, self.journal.close)
        past = await asyncio.to_thread(journals.JournalReader(path).restore)
        self.teller.fold.restore(past.past, rounds=past.rounds, messages=past.messages, bytes=past.bytes)
        self.teller.warnings.restore(past.past)
        self._past = silence.remembered(past.past)
        self._stood = tuple(past.past)
        note = partial(_from_a_thread, asyncio.get_running_loop(), self._note_error)
        self.forms = await asyncio.to_thread(partial(NameForms, self.state_directory / FORMS, note=note))

    async def _open_spool(self, stack: contextlib.AsyncExitStack) -> None:
        targets = self._targets()
        self.spool = Spool(self.state_directory)
        self.filer = Filer(self.spool, targets, emit=self.teller.emit)
        self.spool.on_committed, self.spool.place = self.filer.accept, self.filer.place
        owed = await asyncio.to_thread(self.spool.open)
        stack.push_async_callback(self.spool.close)
        stack.push_async_callback(self._last_words)
        stack.push_async_callback(self.filer.close)
        keep = {filing.message for filing in owed}
        for trouble in await asyncio.to_thread(self._prepare_maildirs, list(targets.values()), keep):
            self._note_error(trouble)
        self.filer.accept(owed)

    async def _last_words(self) -> None:
        if self._state != "starting":  # a start that failed leaves what the agent before it said
            self._state = "stopped"
            self.last_document = self._document()
            await self.teller.write()
        self.teller.close()

    def _targets(self) -> dict[str, Maildir]:
        return {mailbox.name: Maildir(mailbox) for mailbox in self.configuration.mailbox}

    def _prepare_maildirs(self, maildirs: Sequence[Maildir], keep: set[str]) -> list[str]:
        """Makes them, and takes away what dead processes left in their tmp/. Trouble with one is only said."""
        troubles: list[str] = []
        for maildir in maildirs:
            try:
                maildir.prepare()
            except OSError as error:
                troubles.append(f"cannot use the Maildir {maildir.path}: {error.strerror or error}")
            maildir.sweep(keep=keep, alive=_is_alive, host=self._host, run=self._run_id)
        return troubles

    def _build_edges(self, stack: contextlib.AsyncExitStack) -> None:
        configuration = self.configuration
        self.resolver = Resolver(self.state_directory / "names.json", note=self.teller.note)
        stack.push_async_callback(self.resolver.close)
        self.peering = Peering(
            configuration.provider,
            resolve=self.resolver.resolve,
            known=self.resolver.known,
            spf=spf.networks,
            note=self.teller.note,
        )
        self.hooks = Hooks(configuration.hooks, self.teller.emit, note=self.teller.note)
        stack.push_async_callback(self.hooks.close)
        self.desk = Desk(
            configuration,
            teller=self.teller,
            filer=self.filer,
            resolver=self.resolver,
            peering=self.peering,
            receives=bool(self._sockets or configuration.listener.listen),
            background=self.background,
            transcript=self._transcript,
            forms=self.forms,
            before=self.hooks.first,
            on_request_only=self._once is not None,
            adopt=None if configuration.ask_only and not self._sockets else self._adopt,
        )
        self.gate = Gate(self.hooks.observe, busy=self.desk.busy_on)
        self.teller.hooks = self.gate.observe
        stack.callback(self.gate.release)
        self.routing = Routing(configuration.delivery, configuration.mailbox, hostname=configuration.hostname)
        self.context = ServerContext(configuration.listener)
        self.watch = self._new_watch()
        self.listener: Listener | None = None
        self.teller.document = self._document

    async def _open_listener(self, stack: contextlib.AsyncExitStack) -> None:
        if self.configuration.ask_only and not self._sockets:
            return
        await asyncio.to_thread(self.context.load)
        listener = self.listener = Listener(self._reception(), sockets=self._sockets or None)
        stack.push_async_callback(listener.close, seconds=_GRACE_SECONDS)
        if self.configuration.listener.open is Open.ALWAYS or not self.configuration.listener.listen:
            await listener.open()
        else:
            self._shutter = Shutter(
                listener,
                expecting=lambda: any(runner.expecting for runner in self.desk.runners.values()),
                changed=lambda: self.teller.changed(now=True),
                grace_seconds=_GRACE_SECONDS,
            )

    def _adopt(self, owner: Owner) -> Dialect:
        assert self.listener is not None, "no ask before the listener is there"
        return self.listener.adopt(owner)

    def _build_alarms(self) -> None:
        wall = partial(datetime.now, UTC)
        self.alarms = Alarms(
            configuration=self.configuration,
            warnings=self.teller.warnings,
            emit=self.teller.emit,
            document=self._document,
            monotonic=time.monotonic,
            wall=wall,
        )
        self.notes = Notes(self.configuration, self.spool, new_id=self._new_id, wall=wall, say=self._note_error)
        self.beats = Beats(
            configuration=self.configuration,
            warnings=self.teller.warnings,
            emit=self.teller.emit,
            send=self._send_beat,
            ask=lambda name: self.desk.take(requests.Request(id=requests.new_id(), providers=(name,))),
            line_up=lambda name: bool(self.desk.source(name)),
            wall=wall,
            background=self._in_background,
            file=self.state_directory / HEARTBEAT,
        )
        self.alarms.restore(self._stood)
        self.notes.restore(self._stood)

    def _in_background(self, work: Awaitable[None]) -> None:
        async def done() -> None:
            await work

        self.background(done())

    async def _send_beat(self, provider: Provider, address: str, mark: str) -> None:
        from siteagent.uplink import trial  # once a day

        hostname = self.configuration.hostname
        why = "This message was sent by siteagent's heartbeat, and is taken away when it arrives."
        await trial.hand_over(
            provider,
            line=self.watch.line(provider.name),
            addresses=await self.resolver.resolve(provider.host),
            hostname=hostname,
            limits=self.configuration.limits,
            tls=None,
            sender="",
            recipient=address,
            message=trial.marked(hostname=hostname, address=address, mark=mark, at=datetime.now(UTC), why=why),
        )

    @hears(WarningRaised, WarningCleared)
    def _note_down(self, event: Event) -> None:
        """A new warning, as a note for the postmaster."""
        warning = self.notes.wanted(event)
        if warning is not None:
            self.background(self.notes.write(warning))

    def _reception(self) -> Reception:
        return Reception(
            hostname=self.configuration.hostname,
            listener=self.configuration.listener,
            limits=self.configuration.limits,
            admit=self.peering.admit,
            owner=self.desk.owner,
            route=self.routing.route,
            spool=self.spool,
            emit=self.teller.emit,
            tls=lambda: self.context.current,
            new_id=self._new_id,
            defer_above=self.desk.defer_above,
            expected=self.desk.expected,
        )

    def _new_id(self) -> str:
        """The unique part of a Maildir name (cr.yp.to/proto/maildir.html): also over restarts and a clock set back."""
        self._ids += 1
        microseconds = time.time_ns() // 1000
        return (
            f"{microseconds // 1_000_000}.M{microseconds % 1_000_000:06d}"
            f"P{os.getpid()}Q{self._ids}R{self._run_id}.{self._host}"
        )

    async def apply(self, configuration: Configuration) -> None:
        """Takes another configuration in; see ``agent.reload``. Raises ConfigurationError for a bad certificate."""
        context = ServerContext(configuration.listener)
        await asyncio.to_thread(context.load)
        new_link = configuration.link != self.configuration.link
        self.context, self.configuration = context, configuration
        self.routing = Routing(configuration.delivery, configuration.mailbox, hostname=configuration.hostname)
        self.filer.reconfigure(self._targets())
        self.hooks.reconfigure(configuration.hooks)
        self._log.reconfigure(format=configuration.log.format, level=configuration.log.level)
        self.desk.reconfigure(configuration)
        self.teller.metrics = configuration.metrics.file
        self.alarms.configuration = self.notes.configuration = self.beats.configuration = configuration
        self.teller.only_about({provider.name for provider in configuration.provider})
        if self.listener is not None:
            self.listener.reconfigure(self._reception())
        if new_link:
            before, self.watch = self.watch, self._new_watch()
            self.watch.take_over(before)
            self._watch_anew.set()
        self.watch.poke("reload")
        self.background(self._refresh_peers())

    def _new_explainer(self) -> silence.Explainer:
        explainer = silence.Explainer(
            silence.Around(
                provider=self.desk.provider,
                source=self.desk.source,
                resolve=self.resolver.resolve,
                port=self._listening_port,
                at=self.peering.candidates,
                wall=lambda: datetime.now(UTC),
                raise_=self.teller.warnings.raise_,
                clear=self.teller.warnings.clear,
                emit=self.teller.emit,
            ),
            background=self.background,
        )
        explainer.restore(*self._past)
        return explainer

    def _listening_port(self) -> int | None:
        """Where a provider would find us, as far as we know it."""
        addresses = self.listener.addresses if self.listener is not None else ()
        return int(addresses[0].rpartition(":")[2]) if addresses else None

    # --- events -------------------------------------------------------------------------------------------------------

    def _on_event(self, event: Event) -> None:
        self._memory.worked()
        self.desk.observe(event)
        match event:
            case LinkUp() | LinkChanged():
                self.background(self._refresh_peers())
            case RoundEnded() if self._once is None or event.provider not in self.rounds:
                self.rounds[event.provider] = event
                if self._once is None:
                    return
                # One round each: the next try of one must not be cut short by the end of another's.
                self.background(self.desk.finish(event.provider))
                if all(name in self.rounds for name in self.desk.runners):
                    self.stop("the round is over")

    def _rung(self) -> None:
        if self._once is not None:
            return  # who asks meanwhile waits for our end, and then asks
        for request in requests.take(self.state_directory):
            if request.kind == requests.RETRY_QUEUE:
                self.filer.retry_now()
            elif request.kind == requests.ASK:
                self.desk.take(request)
            self.teller.changed(now=True)
        self.on_folder_changed()

    # --- tasks --------------------------------------------------------------------------------------------------------

    def _new_watch(self) -> Watch:
        hook_directory = self.configuration.link.hook_directory
        assert hook_directory is not None, "config.files fills it in"
        watch = Watch(
            self.configuration.link,
            targets=self.desk.targets,
            emit=self.teller.emit,
            hook_directory=hook_directory,
            note=self.teller.note,
            oracle=self._oracle,
        )
        watch.on_wake, watch.on_nudge = self.desk.woke, self.desk.nudged
        return watch

    async def _watch(self) -> None:
        """Runs the watch of the configuration in force: a reload of [link] puts a new one in its place."""
        while True:
            self._watch_anew.clear()
            running = asyncio.ensure_future(self.watch.run())
            anew = asyncio.ensure_future(self._watch_anew.wait())
            try:
                await asyncio.wait({running, anew}, return_when=asyncio.FIRST_COMPLETED)
                if running.done():
                    return running.result()
            finally:
                running.cancel()
                anew.cancel()
                await asyncio.gather(running, anew, return_exceptions=True)

    async def _keep_names(self) -> None:
        """Names again soon, since DNS may come later than the line; then every five minutes."""
        pause = _FIRST_REFRESH_SECONDS
        while True:
            await self._refresh_peers()
            await asyncio.sleep(pause)
            pause = _REFRESH_SECONDS

    async def _refresh_peers(self) -> None:
        if await self.peering.refresh():
            self.watch.poke("names")

    async def _tick(self) -> None:
        """What changes without an event: messages that arrive, certificates on disk."""
        ticks = 0
        while True:
            await asyncio.sleep(1.0)
            ticks += 1
            if self.listener is not None and self.listener.sessions():
                self.teller.changed()
            if ticks % _TICKS_BETWEEN_LOOKS == 0:
                self.meter.tick()
                self.on_folder_changed()  # a file written in place, where no event tells of it
                trouble = await asyncio.to_thread(self.context.refresh)
                if trouble:
                    self._note_error(trouble)

    async def _feed_watchdog(self) -> None:
        """Proves to systemd that the loop lives."""
        seconds = systemd.watchdog_seconds()
        while True:
            await asyncio.sleep(seconds or 3600.0)
            if seconds:
                systemd.notify("WATCHDOG=1")

    def _supervise(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        self.background(self._kept_running(name, run))

    async def _kept_running(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        failures = 0
        while True:
            began = time.monotonic()
            try:
                await run()
                why = "it ended by itself"
            except Exception as error:  # a part's bug must not end the others
                why = f"{type(error).__name__}: {error}"
            failures = 1 if time.monotonic() - began > _HEALTHY_SECONDS else failures + 1
            pause = _RESTART_SECONDS[min(failures, len(_RESTART_SECONDS)) - 1]
            self.teller.emit(PartFailed(part=name, reason=why, seconds=pause))
            await asyncio.sleep(pause)

    def background(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs `work` beside everything else, until it ends or the agent does."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._background_done)

    def _background_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._note_error(f"{type(error).__name__}: {error}")

    async def _end_tasks(self) -> None:
        await self.desk.stop()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- telling ------------------------------------------------------------------------------------------------------

    def _document(self) -> Document:
        queue = self.filer.view()
        listening = self.listener.addresses if self.listener else ()
        return self.teller.fold.document(
            state=self._state,
            pid=os.getpid(),
            since=self._since,
            listener=ListenerView(addresses=listening, open=bool(listening and self._state == "running")),
            sessions=self.listener.sessions() if self.listener else [],
            queue=QueueView(queue.messages, queue.oldest, queue.reason),
            providers=self.desk.views(),
        )

    def _loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self._note_error(_told_error(context))

    def _note_error(self, text: str) -> None:
        self.teller.note(text, severity=Severity.ERROR)


def _told_error(context: dict[str, Any]) -> str:
    """What asyncio, or a session of the listener, has to say of an error, on one line."""
    error = context.get("exception")
    words = str(context.get("message") or "an error outside of any part")
    if not isinstance(error, BaseException):
        return words
    where = traceback.extract_tb(error.__traceback__)[-1:]
    place = f" ({Path(where[0].filename).name}:{where[0].lineno})" if where else ""
    return f"{words}: {type(error).__name__}: {error}{place}"


def _from_a_thread(loop: asyncio.AbstractEventLoop, tell: Callable[[str], None], text: str) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody reads the log any more
        loop.call_soon_threadsafe(tell, text)


def _is_alive(pid: int) -> bool:
    if sys.platform == "win32":
        return True  # there, asking a process by a signal would be Ctrl-C for it; files go by their age
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
