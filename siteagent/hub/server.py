"""The hub: a listener that takes mail for its nodes, the spool that holds it, ETRN and ATRN that release it.

The same dialect, limits and spool as the agent's. There is no stranger here: whoever may reach the port may bring mail
for a node, and nothing else. What is held is in the spool alone; everything in memory is made from it at the start, so
that a kill at any moment loses nothing that was acknowledged.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import secrets
import socket
import ssl
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

from siteagent.config.convert import changed
from siteagent.config.sections import Endpoint, HubConfiguration, Listener, Node
from siteagent.errors import CannotCreate
from siteagent.events import Emit, Event, HubReady, SpoolDamaged, Stamped
from siteagent.host import allocator, systemd
from siteagent.host.tls import ServerContext
from siteagent.hub import recipients, report
from siteagent.hub.clock import Clock
from siteagent.hub.days import FILE as DAYS
from siteagent.hub.days import Days
from siteagent.hub.dialect import HubDialect, HubReception, ImplicitDialect, OdmrDialect
from siteagent.hub.expiry import Expiry
from siteagent.hub.front import Front
from siteagent.hub.guard import Guard
from siteagent.hub.login import Logins
from siteagent.hub.nodes import NodeTable
from siteagent.hub.orders import Orders
from siteagent.hub.outbox import Desk
from siteagent.hub.push import Pusher
from siteagent.hub.queue import Queue
from siteagent.hub.returns import Returns
from siteagent.inbound import listener as inbound
from siteagent.inbound.reception import Owner
from siteagent.names import Resolver
from siteagent.store import held, lock, requests
from siteagent.store.snapshot import Snapshot
from siteagent.store.spool import Filing, Spool
from siteagent.wire.reply import Reply

_FULL = Reply(452, "4.2.2", "too much waits for this site, try again later")
_GRACE_SECONDS = 30.0
_CALM_SECONDS = 0.5
_STATUS_RETRY_SECONDS = 15.0
_LOOK_SECONDS = 30.0


class Hub:
    """`async with Hub(...)`: open while the block runs. On the loop's thread."""

    def __init__(
        self,
        configuration: HubConfiguration,
        *,
        emit: Emit,
        note: Callable[[str], None] = lambda text: None,
        sockets: Mapping[str, Sequence[socket.socket]] | None = None,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`emit` sees every event; `note` is told what is worth a line of the log and is no event.

        `sockets`: bound already, for ``mail``, ``odmr`` and ``odmr_tls``.
        """
        self._sockets = sockets
        assert configuration.state_directory is not None, "config.files fills it in"
        self.configuration = configuration
        self.state_directory = configuration.state_directory
        self.queue = Queue()
        self.table = NodeTable(configuration.node)
        self.fold = report.Fold()
        self._collect = emit
        self._note = note
        self._wall = wall
        self._monotonic = monotonic
        self._guard = Guard(monotonic)
        self._clock = Clock(monotonic)
        self._stack = contextlib.AsyncExitStack()
        self._memory = allocator.Returner()
        self._stack.callback(self._memory.close)
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._highest = 0
        self._state = "starting"
        self._since = datetime.now(UTC)
        self._ids = 0
        self._run_id = secrets.token_hex(4)

    # --- life ---------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Hub:
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *error: object) -> None:
        self._state = "stopping"
        systemd.notify("STOPPING=1")
        await self._stack.aclose()

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where mail and ETRN are taken."""
        return self._listener.addresses

    @property
    def odmr_addresses(self) -> tuple[str, ...]:
        """Where ATRN is taken, those with TLS from the first octet last."""
        return tuple(address for one in self._odmr for address in one.addresses)

    async def _start(self) -> None:
        began = self._monotonic()
        self._make_state_directory()
        self._stack.callback(lock.acquire(self.state_directory, purpose="run the hub").release)
        await self._open_spool()
        self._resolver = Resolver(self.state_directory / "names.json", note=self._note)
        self._stack.push_async_callback(self._resolver.close)
        days = Days(self.state_directory / DAYS, wall=self._wall, monotonic=self._monotonic)
        await asyncio.to_thread(days.open)
        self._build(self.configuration, days)
        await asyncio.to_thread(self._mark_day)
        self._listed, self.table = await asyncio.to_thread(recipients.table, self.configuration.node, self._note)
        self._seen = self._listed
        self._context = ServerContext(self.configuration.listener)
        await asyncio.to_thread(self._context.load)
        self._certificates = await asyncio.to_thread(recipients.certificates, self.configuration.node)
        self._trust_clients()
        self._snapshot = Snapshot(self.state_directory, note=self._note)
        self._stack.push_async_callback(self._last_words)
        self._stack.push_async_callback(self._end_tasks)
        self._stack.push_async_callback(self._pusher.close)
        await self._open_listeners()
        self._state = "running"
        await self._write_status()
        pushing = self._clock.run(lambda: list(self.table.nodes.values()), self._push_unasked)
        expiring = self.expiry.run(lambda: self._highest, self._changed.set)
        for work in (self._keep_status(), self._look_around(), expiring, pushing):
            self.background(work)
        messages, octets = self.queue.totals()
        self.emit(
            HubReady(
                hostname=self.configuration.hostname,
                listening=(*self.addresses, *self.odmr_addresses),
                nodes=len(self.configuration.node),
                messages=messages,
                bytes=octets,
                seconds=round(self._monotonic() - began, 3),
            )
        )
        systemd.notify(f"READY=1\nMAINPID={os.getpid()}")

    def _make_state_directory(self) -> None:
        try:
            if not self.state_directory.is_dir():
                self.state_directory.mkdir(parents=True)
                self.state_directory.chmod(0o755)  # `hub status` is for everybody; mail in it is 0600
            requests.make_folder(self.state_directory)
        except OSError as error:
            raise CannotCreate(
                f"cannot make the state directory {self.state_directory}",
                error.strerror or str(error),
                fix="make it, owned by the user that runs siteagent, or set state_directory",
            ) from error

    async def _open_spool(self) -> None:
        index = held.Index()
        self.spool = Spool(self.state_directory, recall=index)
        self.spool.on_committed = partial(_on_loop, asyncio.get_running_loop(), self._accept)
        await asyncio.to_thread(self.spool.open)
        self._stack.push_async_callback(self.spool.close)
        for node, waiting in index.held.items():
            self.queue.load(node, waiting)
        self._highest = index.highest
        for damage in index.damaged:
            self.emit(SpoolDamaged(what=damage.what, reason=damage.reason))

    def _build(self, configuration: HubConfiguration, days: Days) -> None:
        """What is made anew by nothing but a restart."""
        self._returns = Returns(
            hostname=configuration.hostname,
            relay=configuration.notices.relay,
            limits=configuration.limits,
            resolve=self._resolver.resolve,
            emit=self.emit,
            note=self._note,
        )
        desk = Desk(
            spool=self.spool,
            queue=self.queue,
            returns=self._returns,
            bodies=self.state_directory / "bodies",
            emit=self.emit,
            background=self.background,
        )
        self._pusher = Pusher(
            desk,
            hostname=configuration.hostname,
            limits=configuration.limits,
            resolve=self._resolver.resolve,
            emit=self.emit,
            node=self._node,
        )
        self.expiry = Expiry(
            desk,
            days,
            table=lambda: self.table,
            releasing=self._pusher.running,
            note=self._note,
            place=self.state_directory / DAYS,
        )
        self._orders = Orders(desk, self._pusher, table=lambda: self.table, answer=self._answer)
        self.front = Front(
            lambda: self.table,
            queue=self.queue,
            pusher=self._pusher,
            guard=self._guard,
            logins=Logins(lambda: self.table, hostname=configuration.hostname),
            emit=self.emit,
        )

    # --- listening ----------------------------------------------------------------------------------------------------

    async def _open_listeners(self) -> None:
        odmr = self.configuration.odmr
        self._odmr: list[inbound.Listener] = []
        self._listener = self._listener_for("mail", self.configuration.listener.listen, HubDialect)
        for name, endpoints, dialect in (
            ("odmr", odmr.listen, OdmrDialect),
            ("odmr_tls", odmr.listen_tls, ImplicitDialect),
        ):
            if endpoints:
                self._odmr.append(self._listener_for(name, endpoints, dialect))
        for listener in (self._listener, *self._odmr):
            await listener.open()
            self._stack.push_async_callback(listener.close, seconds=_GRACE_SECONDS)

    def _listener_for(self, name: str, endpoints: Sequence[Endpoint], dialect: type[HubDialect]) -> inbound.Listener:
        bound = self._sockets.get(name) if self._sockets is not None else None
        return inbound.Listener(self._reception(endpoints), dialect=dialect, sockets=bound)

    def _reception(self, endpoints: Sequence[Endpoint]) -> HubReception:
        configuration = self.configuration
        return HubReception(
            hostname=configuration.hostname,
            listener=_listening_on(configuration.listener, endpoints),
            limits=configuration.limits,
            admit=self._guard.admit,
            owner=lambda peer: Owner(provider=None, round=None),
            route=self._route,
            spool=self.spool,
            emit=self.emit,
            tls=lambda: self._context.current,
            new_id=self._new_id,
            defer_above=lambda provider: 0,
            front=self.front,
            offers_auth=self.table.has_accounts,
            offers_atrn=bool(configuration.odmr.listen or configuration.odmr.listen_tls),
            certificate_accounts=self._accounts_of,
        )

    def _route(self, address: str) -> str | Reply:
        found = self.table.route(address)
        if isinstance(found, str) and self.queue.bytes(found) >= self.table.nodes[found].max_queue_bytes:
            return _FULL
        return found

    def _node(self, name: str) -> Node | None:
        return self.table.nodes.get(name)

    def _new_id(self) -> str:
        self._ids += 1
        return f"{time.time_ns() // 1000}P{os.getpid()}Q{self._ids}R{self._run_id}"

    def _trust_clients(self) -> None:
        """Sites that log in by certificate: each pinned one is trusted, and nothing that it signed."""
        context = self._context.current
        if context is None or not self._certificates:
            return
        context.verify_mode = ssl.CERT_OPTIONAL
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        for certificate in self._certificates:
            context.load_verify_locations(cadata=certificate)

    def _accounts_of(self, certificate: bytes) -> tuple[str, ...]:
        digest = hashlib.sha256(certificate).digest()
        found = [names for known, names in self._certificates.items() if hashlib.sha256(known).digest() == digest]
        return tuple(name for names in found for name in names)

    # --- what happens -------------------------------------------------------------------------------------------------

    def emit(self, event: Event) -> None:
        """Every event of the hub, on its way to whoever collects them."""
        self._memory.worked()
        self.fold.fold(Stamped(datetime.now(UTC), event))
        self._changed.set()
        self._collect(event)

    def _accept(self, filings: list[Filing]) -> None:
        self.queue.accept(filings)
        self._highest = max(self._highest, *(filing.id for filing in filings))
        self._changed.set()

    def background(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs `work` beside everything else, until it ends or the hub does. What goes wrong in it is told."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._background_done)

    def _background_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._note(f"a part of the hub failed: {type(error).__name__}: {error}")

    async def _end_tasks(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- requests and reload ------------------------------------------------------------------------------------------

    def look_at_requests(self) -> None:
        """Takes what people left in the state directory (`hub release`, `hub drop`)."""
        self._orders.take(self.state_directory)

    def _answer(self, request: str, text: str, done: bool) -> None:
        self.fold.answer(request, text, done=done)
        self._changed.set()

    async def apply(self, configuration: HubConfiguration) -> None:
        """Takes another configuration in: nodes, certificates, limits and notices; counts from the next session on.

        Raises ConfigurationError for a bad certificate. Where it listens and keeps its state does not change.
        """
        context = ServerContext(configuration.listener)
        await asyncio.to_thread(context.load)
        certificates = await asyncio.to_thread(recipients.certificates, configuration.node)
        self._listed, self.table = await asyncio.to_thread(recipients.table, configuration.node, self._note)
        self._context, self._certificates, self.configuration = context, certificates, configuration
        self._trust_clients()
        self._returns.relay = configuration.notices.relay
        for listener, endpoints in zip(
            (self._listener, *self._odmr),
            [configuration.listener.listen, *filter(None, (configuration.odmr.listen, configuration.odmr.listen_tls))],
            strict=False,
        ):
            listener.reconfigure(self._reception(endpoints))
        self._clock.changed()
        self._changed.set()

    # --- what runs beside ---------------------------------------------------------------------------------------------

    async def _look_around(self) -> None:
        """Lists of recipients and certificates that changed on disk, and requests that no bell told of."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            trouble = await asyncio.to_thread(self._context.refresh)
            if trouble:
                self._note(trouble)
            self._trust_clients()
            await self.look_at_lists()

    async def look_at_lists(self) -> None:
        """Takes in a list of recipients that changed, once it stayed the same from one look to the next.

        Half a list would refuse for good whom the other half has.
        """
        seen = await asyncio.to_thread(recipients.stamps, self.configuration.node)
        settled, self._seen = seen == self._seen, seen
        if settled and seen != self._listed:
            self._listed, self.table = await asyncio.to_thread(recipients.table, self.configuration.node, self._note)

    def _push_unasked(self, node: Node) -> None:
        waits = self.queue.count(node.name) and not self._pusher.running(node.name)
        if waits and self._state == "running":
            self._pusher.start(node)

    def _mark_day(self) -> None:
        self.expiry.mark(self._highest)

    # --- status -------------------------------------------------------------------------------------------------------

    def document(self) -> report.Document:
        """What `hub status` shows."""
        known = self.table.nodes
        unknown = [name for name in self.queue.nodes() if name not in known]
        views = [self._view(node) for node in known.values()]
        # A node that was taken out of the configuration: its mail is held all the same.
        views += [self._view(Node(name=name, domains=(name,))) for name in unknown]
        return report.document(
            self.fold,
            state=self._state,
            pid=os.getpid(),
            since=self._since,
            listening=self.addresses,
            odmr=self.odmr_addresses,
            sessions=[view for one in (self._listener, *self._odmr) for view in one.sessions()],
            nodes=views,
            relay=self._returns.relay,
        )

    def _view(self, node: Node) -> report.NodeView:
        return report.NodeView(
            node=node,
            messages=self.queue.count(node.name),
            bytes=self.queue.bytes(node.name),
            oldest=self.queue.oldest(node.name),
            expired=self.expiry.left.get(node.name, 0),
            releasing=self._pusher.running(node.name),
        )

    async def _keep_status(self) -> None:
        while True:
            await self._changed.wait()
            written = await self._write_status()
            await asyncio.sleep(_CALM_SECONDS if written else _STATUS_RETRY_SECONDS)

    async def _write_status(self) -> bool:
        self._changed.clear()
        written = await self._snapshot.write(self.document())
        if not written:
            self._changed.set()
        return written

    async def _last_words(self) -> None:
        self._state = "stopped"
        await asyncio.to_thread(self._mark_day)
        await self._write_status()
        self._snapshot.close()


def _listening_on(section: Listener, endpoints: Sequence[Endpoint]) -> Listener:
    return changed(section, listen=tuple(endpoints))


def _on_loop(loop: asyncio.AbstractEventLoop, take: Callable[[list[Filing]], None], filings: list[Filing]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: the next start hands them out again
        loop.call_soon_threadsafe(take, filings)
