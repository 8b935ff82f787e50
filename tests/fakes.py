"""Stand-ins for the parts around the listener: a spool in memory, a transport that records, a peer that talks raw.

They pass the same API as the real ones; nothing of ours is patched, they are handed in.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, cast

from siteagent.config import sections
from siteagent.events import Event
from siteagent.inbound.listener import Listener
from siteagent.inbound.reception import Owner, Reception
from siteagent.inbound.smtp import Dialect
from siteagent.store.spool import Body, Committed, Envelope, Spool
from siteagent.wire.reply import Reply


class FakeWriter:
    """`store.body.BodyWriter` that keeps everything, or (`keep` False) counts only."""

    def __init__(self, spool: FakeSpool) -> None:
        self._spool = spool
        self._parts: list[bytes] = []
        self.size = 0
        self.backlog = 0
        self.on_drained: Callable[[], None] | None = None
        self.discarded = False

    def write(self, data: bytes) -> None:
        if self._spool.write_error is not None:
            raise self._spool.write_error
        self.size += len(data)
        if self._spool.keep:
            self._parts.append(data)

    def in_memory(self) -> Body | None:
        if self._spool.finish_error is not None:
            return None  # only a file can fail
        data = b"".join(self._parts)
        return Body(self.size, 0, hashlib.sha256(data).digest(), data)

    async def finish(self) -> Body:
        assert self._spool.finish_error is not None
        raise self._spool.finish_error

    def discard(self) -> None:
        self.discarded = True
        self._parts.clear()


class FakeSpool:
    """`store.spool.Spool` in memory. `gate`: commits wait for it. `stored`: (envelope, content), in order."""

    def __init__(self, *, keep: bool = True) -> None:
        self.keep = keep
        self.stored: list[tuple[Envelope, bytes]] = []
        self.writers: list[FakeWriter] = []
        self.write_error: Exception | None = None
        self.finish_error: Exception | None = None
        self.commit_error: Exception | None = None
        self.has_room = True
        self.gate: asyncio.Event | None = None
        self.committing = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self.known: set[tuple[str, str, bytes]] = set()

    def body(self, envelope: Envelope) -> FakeWriter:
        writer = FakeWriter(self)
        if self.keep:
            self.writers.append(writer)
        return writer

    def room(self, bytes_wanted: int, *, keep_free: int) -> bool:
        return self.has_room

    def hand_in(self, envelope: Envelope, body: Body, then: Callable[[Committed | Exception], None]) -> None:
        async def work() -> None:
            try:
                outcome: Committed | Exception = await self.commit(envelope, body)
            except Exception as error:
                outcome = error
            then(outcome)

        task = asyncio.get_running_loop().create_task(work())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def commit(self, envelope: Envelope, body: Body) -> Committed:
        self.committing += 1
        if self.gate is not None:
            await asyncio.shield(self.gate.wait())
        if self.commit_error is not None:
            raise self.commit_error
        if self.keep:
            self.stored.append((envelope, body.data or b""))
        twice = tuple(r for r, _ in envelope.recipients if (envelope.sender, r, body.digest) in self.known)
        return Committed(twice, "first-id" if twice else None)

    @property
    def contents(self) -> list[bytes]:
        return [content for _, content in self.stored]


def route_office(address: str) -> str | Reply:
    """office.example is ours, alice and postmaster live there."""
    local, _, domain = address.rpartition("@")
    if address.lower() == "postmaster":
        return "alice"
    if domain.lower() != "office.example" or any(c in local for c in "%!@"):
        return Reply(550, "5.7.1", "we do not relay to other domains")
    if local.lower() in ("alice", "postmaster", "bob") or local.startswith("u"):
        return "bob" if local.lower() == "bob" else "alice"
    return Reply(550, "5.1.1", "there is no such mailbox here")


def reception(
    spool: FakeSpool | Spool,
    events: list[Event],
    *,
    listener: dict[str, Any] | None = None,
    limits: dict[str, Any] | None = None,
    provider: str | None = "isp",
    tls: ssl.SSLContext | None = None,
    **changes: Any,
) -> Reception:
    """A reception that welcomes everybody for `provider`, unless `changes` says otherwise."""
    numbers = itertools.count(1)
    endpoints = (sections.Endpoint("127.0.0.1", 0),)
    values: dict[str, Any] = {
        "hostname": "mail.office.example",
        "listener": sections.Listener(**{"listen": endpoints, **(listener or {})}),
        "limits": sections.Limits(**(limits or {})),
        "admit": lambda peer: None,
        "owner": lambda peer: Owner(provider=provider, round="round-1" if provider else None),
        "route": route_office,
        "spool": cast(Spool, spool),
        "emit": events.append,
        "tls": lambda: tls,
        "new_id": lambda: f"id-{next(numbers)}",
        "defer_above": lambda provider: 0,
    }
    return Reception(**{**values, **changes})


class FakeTransport(asyncio.Transport):
    """Records each write as one segment. `eof` and `closed` are what the session did to it."""

    def __init__(self, *, peer: str = "192.0.2.9") -> None:
        super().__init__({"peername": (peer, 40000)})
        self.segments: list[bytes] = []
        self.eof = False
        self.closed = False
        self.reading = True
        self.protocol: Any = None

    def write(self, data: Any) -> None:
        self.segments.append(bytes(data))

    def write_eof(self) -> None:
        self.eof = True

    def can_write_eof(self) -> bool:
        return True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    abort = close

    @property
    def sent(self) -> bytes:
        return b"".join(self.segments)


def session(made: Reception, *, dialect: type[Dialect] = Dialect, **options: Any) -> tuple[Dialect, FakeTransport]:
    """A greeted session on a `FakeTransport`; the greeting is taken off. To be called inside a loop."""
    protocol = dialect(made, **options)
    transport = FakeTransport()
    transport.protocol = protocol
    protocol.connection_made(transport)
    assert transport.segments.pop(0).startswith(b"220 ")
    return protocol, transport


async def settle(protocol: Dialect) -> None:
    """Until nothing of ours is under way."""
    for _ in range(10_000):
        await asyncio.sleep(0)
        if protocol.work is None and not protocol._turn:
            return


class Peer:
    """A raw SMTP client on loopback."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, listener: Listener, *, source: str = "127.0.0.1") -> Peer:
        host, _, port = listener.addresses[0].rpartition(":")
        reader, writer = await asyncio.open_connection(host.strip("[]"), int(port), local_addr=(source, 0))
        return cls(reader, writer)

    def send(self, octets: bytes) -> None:
        self.writer.write(octets)

    async def reply(self) -> str:
        """One whole reply, its lines by LF; "" at the end of the connection."""
        lines = []
        while True:
            line = await asyncio.wait_for(self.reader.readline(), 20)
            lines.append(line.decode("utf-8").rstrip("\r\n"))
            if line[3:4] != b"-":
                return "\n".join(lines)

    async def say(self, line: str | bytes) -> str:
        self.send((line if isinstance(line, bytes) else line.encode()) + b"\r\n")
        return await self.reply()

    async def code(self, line: str | bytes) -> int:
        return int((await self.say(line))[:3])

    async def hello(self) -> Peer:
        assert (await self.reply())[:4] == "220 "
        assert (await self.say("EHLO isp.example"))[:4] == "250-"
        return self

    async def envelope(self, recipient: str = "alice@office.example") -> None:
        assert await self.code("MAIL FROM:<a@b.example>") == 250
        assert await self.code(f"RCPT TO:<{recipient}>") == 250

    async def data(self) -> None:
        await self.envelope()
        assert await self.code("DATA") == 354

    async def rest(self) -> bytes:
        """Everything until the connection ends; a reset counts as its end."""
        octets = bytearray()
        with suppress(ConnectionError):
            while block := await asyncio.wait_for(self.reader.read(65536), 20):
                octets += block
        return bytes(octets)

    async def close(self) -> None:
        self.writer.close()
        with suppress(OSError):
            await self.writer.wait_closed()


@asynccontextmanager
async def listening(made: Reception, *, dialect: type[Dialect] = Dialect) -> AsyncIterator[Listener]:
    listener = Listener(made, dialect=dialect)
    await listener.open()
    try:
        yield listener
    finally:
        await listener.close(seconds=2)


@contextmanager
def few_descriptors(spare: int) -> Iterator[None]:
    """The process can open `spare` files more. POSIX only."""
    import resource

    usual = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + spare, usual[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, usual)


def events_of(events: list[Event], name: str) -> list[Any]:
    return [event for event in events if event.name == name]
