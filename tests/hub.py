"""A hub for tests: on loopback, in a directory of its own, its events in a list; and sites for it to push to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from siteagent.config.sections import Endpoint, HubConfiguration, Limits, Listener, Node, Notices, Odmr
from siteagent.events import Event
from siteagent.hub.server import Hub
from siteagent.inbound.listener import Listener as Server
from tests.fakes import FakeSpool, Peer, events_of, listening, reception

LOOPBACK = Endpoint("127.0.0.1", 0)


class Running:
    """An open hub, and what it said."""

    def __init__(self, hub: Hub, events: list[Event], notes: list[str]) -> None:
        self.hub = hub
        self.events = events
        self.notes = notes

    def of(self, name: str) -> list[Any]:
        return events_of(self.events, name)

    async def until(self, condition: Callable[[], object], *, seconds: float = 10) -> None:
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.005)

    async def released(self, count: int = 1) -> Any:
        """The push.ended with that number."""
        await self.until(lambda: len(self.of("push.ended")) >= count)
        return self.of("push.ended")[count - 1]

    async def peer(self, address: str | None = None) -> Peer:
        """A client of the hub's, greeted and introduced."""
        host, _, port = (address or self.hub.addresses[0]).rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        return await Peer(reader, writer).hello()

    async def fill(
        self,
        contents: Sequence[bytes],
        *,
        to: Sequence[str] = ("alice@office.example",),
        sender: str = "friend@far.example",
    ) -> None:
        """Mail for a node, brought by SMTP; CRLF line ends."""
        before = len(self.of("message.accepted"))
        peer = await self.peer()
        for content in contents:
            assert await peer.code(f"MAIL FROM:<{sender}>") == 250
            for address in to:
                assert await peer.code(f"RCPT TO:<{address}>") == 250
            peer.send(b"BDAT %d LAST\r\n" % len(content) + content)
            assert (await peer.reply())[:3] == "250"
        await peer.close()
        await self.until(lambda: len(self.of("message.accepted")) >= before + len(contents))


def node(name: str = "office.example", **options: Any) -> Node:
    return Node(name=name, **{"domains": (name,), **options})


def password_of(tmp_path: Path, account: str, secret: str = "sesame") -> Path:
    path = tmp_path / f"{account}.password"
    path.touch(mode=0o600)
    path.write_text(secret + "\n")
    return path


@asynccontextmanager
async def hub(
    tmp_path: Path,
    nodes: Sequence[Node],
    *,
    odmr: bool = False,
    odmr_tls: bool = False,
    relay: str | None = None,
    limits: Limits | None = None,
    listener: dict[str, Any] | None = None,
    **options: Any,
) -> AsyncIterator[Running]:
    events: list[Event] = []
    notes: list[str] = []
    configuration = HubConfiguration(
        hostname="hub.example",
        state_directory=tmp_path / "state",
        listener=Listener(**{"listen": (LOOPBACK,), **(listener or {})}),
        odmr=Odmr(listen=(LOOPBACK,) if odmr else (), listen_tls=(LOOPBACK,) if odmr_tls else ()),
        node=tuple(nodes),
        notices=Notices(relay=relay),
        limits=limits or Limits(),
    )
    async with Hub(configuration, emit=events.append, note=notes.append, **options) as made:
        yield Running(made, events, notes)


@asynccontextmanager
async def site(spool: FakeSpool, events: list[Event] | None = None, **options: Any) -> AsyncIterator[Server]:
    """A site that takes everything for office.example into `spool`."""
    async with listening(reception(spool, [] if events is None else events, **options)) as server:
        yield server
