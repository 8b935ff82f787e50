"""Releasing a node's mail: pushed over new connections after ETRN, or over the connection that ATRN turned round.

Never to the asker (S60): a push goes where the configuration says that the node is, and a name that leads to ourselves
is refused unless it was configured so. One release a node at a time; an ask that comes meanwhile is remembered, and
one that finds a release in which nothing moves any more breaks it off: a dead line must not hold a live site up.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from siteagent.config.sections import Limits, Node, Provider, Tls
from siteagent.errors import SiteAgentError
from siteagent.events import Emit, PushEnded
from siteagent.hub.outbox import Desk, Outbox
from siteagent.hub.pipe import Lost, Pipe
from siteagent.hub.sender import Sender
from siteagent.uplink.connection import Route, client_context, session
from siteagent.uplink.turn import take_transport
from siteagent.wire.reply import Reply

_STUCK_SECONDS = 60.0
_LOST_SECONDS = 5.0


@dataclass(slots=True)
class Release:
    """One node's mail on its way. `moved`: when octets last went or came, by the loop's clock."""

    node: Node
    method: str
    begun: float
    task: asyncio.Task[None] | None = None
    pipes: list[Pipe] = field(default_factory=list)
    connections: int = 0
    again: bool = False
    reason: str = ""

    @property
    def moved(self) -> float:
        return max((pipe.moved for pipe in self.pipes), default=self.begun)

    @property
    def unanswered(self) -> bool:
        """On each of its connections TCP repeats itself and hears nothing."""
        return bool(self.pipes) and all(pipe.unanswered for pipe in self.pipes)


class Pusher:
    """The releases of one hub. `start` and `turned` return at once."""

    def __init__(
        self,
        desk: Desk,
        *,
        hostname: str,
        limits: Limits,
        resolve: Callable[[str], Awaitable[tuple[str, ...]]],
        emit: Emit,
        node: Callable[[str], Node | None],
    ) -> None:
        """`node`: one of the configuration as it is now, by its name."""
        self._node = node
        self._desk = desk
        self._hostname = hostname
        self._limits = limits
        self._resolve = resolve
        self._emit = emit
        self._context: ssl.SSLContext | None = None
        self._running: dict[str, Release] = {}
        self.last: dict[str, PushEnded] = {}

    def running(self, node: str) -> bool:
        return node in self._running

    def start(self, node: Node) -> None:
        """Begins to push what is held for `node`; where that is under way, once more behind it."""
        release = self._running.get(node.name)
        if release is None:
            self._begin(node, "etrn", self._push)
            return
        release.again = True
        if self._stuck(release) and release.task is not None:
            release.reason = "nothing moved any more when the site asked again"
            release.task.cancel()

    def turned(self, nodes: list[Node], transport: asyncio.Transport, early: bytes) -> None:
        """Sends what is held for `nodes` over a connection on which the site is the server now."""
        pipe = Pipe()
        greeting = pipe.reply_to_come()  # the site's 220 is the first thing that it says
        pipe.take_over(transport, early)
        releases = [Release(node, "atrn", self._now(), pipes=[pipe], connections=1) for node in nodes]
        task = asyncio.get_running_loop().create_task(self._reversed(releases, pipe, greeting))
        for release in releases:
            release.task = task
            self._running[release.node.name] = release

    def make_way(self, node: str) -> bool:
        """Before a connection is turned: ends a release in which nothing moves. False: one is at work.

        A site that asks anew has most likely lost the connection before: that is believed sooner than TCP finds out.
        """
        release = self._running.get(node)
        if release is None:
            return True
        patience = _LOST_SECONDS if release.method == "atrn" else _STUCK_SECONDS
        if self._now() - release.moved <= patience and not release.unanswered:
            return False
        if release.task is not None:
            release.task.cancel()
        return True

    async def close(self) -> None:
        """Breaks off what runs; what was not answered stays held."""
        tasks = [release.task for release in self._running.values() if release.task is not None]
        for release in self._running.values():
            release.again = False
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- one release --------------------------------------------------------------------------------------------------

    def _begin(self, node: Node, method: str, work: Callable[[Release], Awaitable[None]]) -> None:
        release = Release(node, method, self._now())
        self._running[node.name] = release
        release.task = asyncio.get_running_loop().create_task(self._run(release, work))

    async def _run(self, release: Release, work: Callable[[Release], Awaitable[None]]) -> None:
        try:
            await work(release)
        finally:
            for pipe in release.pipes:
                pipe.close()
            self._over(release)

    def _over(self, release: Release) -> None:
        name = release.node.name
        if self._running.get(name) is not release:
            return
        del self._running[name]
        node = self._node(name)  # it may have gone, or be elsewhere, since this release began
        if release.again and node is not None and node.deliver_to is not None and self._desk.queue.count(name):
            self._begin(node, "etrn", self._push)

    async def _push(self, release: Release) -> None:
        outbox = Outbox(self._desk, release.node)
        try:
            site, route = await self._way(release.node)
            wanted = max(1, min(release.node.max_connections, self._desk.queue.count(release.node.name)))
            async with asyncio.TaskGroup() as group:
                for _ in range(wanted):
                    group.create_task(self._session(release, site, route, outbox))
        except SiteAgentError as error:
            release.reason = release.reason or error.why
        finally:
            self._end(release, outbox)

    async def _way(self, node: Node) -> tuple[Provider, Route]:
        assert node.deliver_to is not None, "a node without deliver_to is fetched from, not pushed to"
        host, _, port = node.deliver_to.rpartition(":")
        host = host.strip("[]")
        site = Provider(host=host, nodes=(node.name,), name=node.name, port=int(port), tls=Tls.OPPORTUNISTIC)
        if self._context is None:
            self._context = await asyncio.to_thread(client_context, site)
        addresses = await self._resolve(host)
        route = Route(line=None, addresses=addresses, hostname=self._hostname, limits=self._limits, tls=self._context)
        return site, route

    async def _session(self, release: Release, site: Provider, route: Route, outbox: Outbox) -> None:
        """One connection, until nothing is left or it breaks. Never raises for what the site does."""
        try:
            async with session(site, route) as connection:
                release.connections += 1
                pipe = Pipe()
                features = dict(connection.features)
                pipe.take_over(*take_transport(connection))
                release.pipes.append(pipe)
                sender = Sender(pipe, features, self._limits)
                await sender.send(outbox.next, outbox.tell)
                await sender.bye()
        except Lost as error:
            release.reason = release.reason or error.why
        except SiteAgentError as error:
            release.reason = release.reason or error.why

    async def _reversed(self, releases: list[Release], pipe: Pipe, greeting: asyncio.Future[Reply]) -> None:
        outboxes = [Outbox(self._desk, release.node) for release in releases]
        reason = ""
        try:
            features = await self._introduce(pipe, greeting)
            sender = Sender(pipe, features, self._limits)
            for outbox in outboxes:
                await sender.send(outbox.next, outbox.tell, last=outbox is outboxes[-1])
            await sender.bye()
        except Lost as error:
            reason = error.why
        finally:
            pipe.close()
            for release, outbox in zip(releases, outboxes, strict=True):
                release.reason = release.reason or reason
                self._end(release, outbox)
                self._over(release)

    async def _introduce(self, pipe: Pipe, greeting: asyncio.Future[Reply]) -> dict[str, str]:
        """RFC 2645 §5.3: the site's 220, our EHLO."""
        welcome = await pipe.heard(greeting, self._limits.command_seconds)
        if welcome.code != 220:
            raise Lost(f'it greeted with "{welcome}"')
        waiting = pipe.reply_to_come()
        pipe.write(f"EHLO {self._hostname}\r\n".encode())
        reply = await pipe.heard(waiting, self._limits.command_seconds)
        if reply.code == 250:
            words = (line.partition(" ") for line in reply.text.split("\n")[1:])
            return {keyword.lower(): parameters for keyword, _, parameters in words}
        waiting = pipe.reply_to_come()
        pipe.write(f"HELO {self._hostname}\r\n".encode())
        reply = await pipe.heard(waiting, self._limits.command_seconds)
        if reply.code != 250:
            raise Lost(f'it answered "{reply}" to HELO')
        return {}

    def _end(self, release: Release, outbox: Outbox) -> None:
        outbox.close()
        node = release.node.name
        ended = PushEnded(
            node=node,
            method=release.method,
            connections=release.connections,
            messages=outbox.messages,
            bytes=outbox.bytes,
            left=self._desk.queue.count(node),
            seconds=round(self._now() - release.begun, 3),
            reason="; ".join([*([release.reason] if release.reason else []), *list(outbox.reasons)[:3]]),
        )
        self.last[node] = ended
        self._emit(ended)

    def _stuck(self, release: Release) -> bool:
        return release.unanswered or self._now() - release.moved > _STUCK_SECONDS

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
