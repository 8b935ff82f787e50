"""The listener over real TCP: crowds that nobody meant, on loopback, from another thread.

What they say is what `test_sessions` says; here it travels, and they stop reading, hang up by halves, reset, knock by
the hundred and come when the process has no descriptor left. Each session keeps what it heard and said, to be compared
octet by octet with what its far end said and heard.

Three seconds, sixty with ``--long``. How to play longer, or one again: `tests.fuzz.sessions`. What one seed names is a
crowd; the kernel and the threads do not play it twice alike, so one that is given is played until the time is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import random
import re
import select
import socket
import struct
import sys
import time
from collections import Counter
from enum import Enum, auto
from typing import Any, ClassVar

import pytest
from siteagent.errors import CannotCreate
from siteagent.events import Event
from siteagent.inbound import says
from siteagent.inbound.listener import Listener
from siteagent.inbound.reception import Owner
from siteagent.inbound.smtp import Dialect
from siteagent.store.spool import SpoolFailed
from siteagent.wire.reply import Reply
from tests.fakes import Peer, events_of, few_descriptors, reception
from tests.fuzz.sessions import MOST_GROWTH_BYTES, FickleSpool, Run, fuzz, judge, mutated, split

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="plain sockets elsewhere, and /proc tells what a process holds"),
    pytest.mark.filterwarnings("error"),
]

_SHORT_SECONDS, _LONG_SECONDS = 3.0, 60.0
_WARM_SECONDS = 60.0  # until the largest crowds of every kind have been there
_PATIENCE_SECONDS = 15.0
_MOST_PARTS = 200
_ANSWER = re.compile(rb"^[0-9]{3} ", re.MULTILINE)
_URGENT = b"\x01"  # TCP may put one of them aside, or not: where they are sent they are not compared
_PROVIDER, _UNKNOWN, _REFUSED = "127.1", "127.2", "127.3"
_ASKS_AGAIN_SECONDS = 1.0  # asyncio, behind an accept that had no descriptor
_NO_BIND_PORT = 24  # IP_BIND_ADDRESS_NO_PORT, <linux/in.h>
_RESET = struct.pack("ii", 1, 0)


class Kind(Enum):
    CROWD = auto()
    DROPPED = auto()  # hundreds, gone again at once
    EXHAUSTED = auto()  # no descriptors for some of them
    CLOSING = auto()  # the listener is closed meanwhile
    EXHAUSTED_AND_CLOSING = auto()


_KINDS = (Kind.CROWD, Kind.DROPPED, Kind.CLOSING, Kind.EXHAUSTED) * 5 + (Kind.EXHAUSTED_AND_CLOSING,)


class Watched(Dialect):
    """A session that keeps what it heard and said."""

    of: ClassVar[dict[str, Watched]] = {}  # by the far end's address: no two clients of a round have the same

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self.octets_heard = bytearray()
        self.octets_said = bytearray()
        self.heard_the_end = False
        self.given_up = False  # what we said may be lost, and that is meant
        self.lost = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.of[transport.get_extra_info("peername")[0]] = self
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        assert not self.heard_the_end
        self.octets_heard += data
        super().data_received(data)

    def eof_received(self) -> bool:
        self.heard_the_end = True
        goes_on = super().eof_received()
        self.given_up = self.given_up or not goes_on  # it never waited for its greeting
        return goes_on

    def connection_lost(self, error: Exception | None) -> None:
        self.lost += 1
        super().connection_lost(error)

    def stop(self) -> None:
        self.given_up = True
        super().stop()

    def _queue(self, octets: bytes) -> None:
        self.octets_said += octets
        super()._queue(octets)

    def _tick(self) -> None:
        before = self.transport
        super()._tick()
        self.given_up = self.given_up or (before is not None and before.is_closing())


class End(Enum):
    SHUT = auto()  # the half of it, and the rest is read
    CLOSE = auto()
    RESET = auto()
    STAY = auto()  # silent, then closed


class Client:
    """One far end. All that it will do is known before it begins; only the moments are the machine's."""

    def __init__(self, host: str, chance: random.Random, *, drops: bool) -> None:
        self.host = host
        self.drops = drops
        self.chance = chance
        # Refusals by policy are answered in full and counted by nobody: replies pile up.
        self.piles = piles = chance.random() < 0.2
        if piles:
            refused = [b"RCPT TO:<x@elsewhere.example>\r\n"] * chance.choice((500, 4000))
            parts = [b"EHLO isp.example\r\nMAIL FROM:<a@b.example>\r\n", *refused, b"NOOP\r\n"]
        else:
            parts = split(mutated(chance), chance)
        if chance.random() < 0.8:
            self.parts = [*parts[:_MOST_PARTS], b"".join(parts[_MOST_PARTS:])]
        else:
            self.parts = [b"".join(parts)]
        ends = (End.CLOSE, End.RESET) if drops else (End.SHUT, End.SHUT, End.CLOSE, End.RESET, End.STAY)
        self.end = chance.choice((*ends, *[End.STAY] * 3) if piles and not drops else ends)
        if chance.random() < 0.5:
            del self.parts[chance.randrange(len(self.parts) + 1) :]
        if drops:
            del self.parts[chance.randrange(3) :]
        self.reads_first = chance.random() > (0.6 if piles else 0.2)
        self.pauses = chance.choice((0.05, 0.2, 1))
        self.most_read = chance.choice((1 << 16, 1 << 16, 300, 7))
        self.reads_slowly = chance.random() < 0.2
        self.comes_after = chance.choice((0, chance.random() / 4))
        self.waits_for_greeting = chance.random() < (0.3 if host.startswith(_PROVIDER) else 0.8)
        self.urgent_at = {chance.randrange(len(self.parts) + 1) for _ in range(chance.choice((0,) * 9 + (1, 5)))}
        self.own = socket.socket()
        self.own.setblocking(False)
        if (room := chance.choice((0, 4096) if piles else (0, 0, 4096, 20_000))) != 0:
            self.own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
            self.own.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)  # or the window would be silly
        self.own.setsockopt(socket.IPPROTO_IP, _NO_BIND_PORT, 1)
        self.own.bind((host, 0))
        # What became of it.
        self.octets_said = bytearray()
        self.octets_heard = bytearray()
        self.said_all = True  # of `octets_said`
        self.ended_ours = False  # a FIN may have been sent
        self.heard_the_end = False
        self.was_reset = False
        self.waited_in_vain = False

    async def play(self, port: int) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self.comes_after)
        try:
            if self.drops:
                self.own.connect_ex(("127.0.0.1", port))
                await asyncio.sleep(self.chance.choice((0, 0, 0.001, 0.01, 0.03)))
            else:
                await asyncio.wait_for(loop.sock_connect(self.own, ("127.0.0.1", port)), _PATIENCE_SECONDS)
        except (ConnectionError, TimeoutError):  # the listener is closed
            self.own.close()
            return
        reader = loop.create_task(self._read()) if self.reads_first and not self.drops else None
        if self.waits_for_greeting and reader is not None:
            until = time.monotonic() + 0.5
            while not self.octets_heard and not reader.done() and time.monotonic() < until:
                await asyncio.sleep(0.002)
        for number, part in enumerate(self.parts):
            if number in self.urgent_at:
                with contextlib.suppress(OSError):
                    self.own.send(_URGENT, socket.MSG_OOB)
            if not await self._say(part):
                break
            if self.chance.random() < self.pauses:
                await asyncio.sleep(self.chance.choice((0, 0, 0, 0, 0.0005, 0.02 * self.chance.random())))
        await self._leave(reader)

    async def _say(self, part: bytes) -> bool:
        """False: no more of it, the far end is gone or takes nothing."""
        loop = asyncio.get_running_loop()
        place, until = 0, time.monotonic() + (0 if self.drops else 1)
        while place < len(part):
            try:
                sent = self.own.send(part[place:])
                self.octets_said += part[place : place + sent]
                place += sent
            except BlockingIOError:
                if time.monotonic() >= until:
                    return False
                writable = loop.create_future()
                loop.add_writer(self.own, _done, writable)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(writable, 0.05)
                loop.remove_writer(self.own)
            except OSError:  # reset, or never connected
                self.was_reset = True
                self.said_all = False
                return False
        return True

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while octets := await loop.sock_recv(self.own, self.most_read):
                self.octets_heard += octets
                if self.reads_slowly and self.chance.random() < 0.05:
                    await asyncio.sleep(0.002)
                if len(self.octets_heard) > 2000:
                    self.most_read = 1 << 16
        except ConnectionError:
            self.was_reset = True
        else:
            self.heard_the_end = True

    async def _leave(self, reader: asyncio.Task[None] | None) -> None:
        loop = asyncio.get_running_loop()
        if self.end is End.SHUT:
            self.ended_ours = True
            try:
                self.own.shutdown(socket.SHUT_WR)
            except OSError:
                self.was_reset = True
            if reader is None:
                await asyncio.sleep(self.chance.choice((0, 0.05, 0.2)))
                reader = loop.create_task(self._read())
            await asyncio.wait([reader], timeout=_PATIENCE_SECONDS)
            self.waited_in_vain = not reader.done()
        elif self.end is End.STAY and self.piles and not self.drops:
            # One answer to each line, though nothing follows that would remind of them.
            reader = reader or loop.create_task(self._read())
            until = time.monotonic() + _PATIENCE_SECONDS
            while not reader.done() and len(_ANSWER.findall(self.octets_heard)) <= self.octets_said.count(b"\r\n"):
                if time.monotonic() > until:
                    self.waited_in_vain = True
                    break
                await asyncio.sleep(0.01)
        elif self.end is End.STAY:
            await asyncio.wait([reader or loop.create_task(asyncio.sleep(1))], timeout=self.chance.random() / 2)
        if reader is not None:
            reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reader
        if self.end is End.RESET:
            self.own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        else:
            self.ended_ours = True
        self.own.close()


def _done(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)


class Crowd:
    """The clients of one round, in a loop of their own."""

    def __init__(self, clients: list[Client], chance: random.Random, *, exhausts: bool) -> None:
        self.clients = clients
        self.exhausted_seconds = 0.0
        self._exhausts = exhausts
        self._chance = chance

    async def play(self, port: int) -> None:
        if not self._exhausts:
            await asyncio.gather(*(client.play(port) for client in self.clients))
            return
        half = len(self.clients) // 2
        early = [asyncio.ensure_future(client.play(port)) for client in self.clients[:half]]
        await asyncio.sleep(self._chance.choice((0, 0.01, 0.05)))
        began = time.monotonic()
        with few_descriptors(self._chance.choice((0, 0, 1, 5))):
            late = [asyncio.ensure_future(client.play(port)) for client in self.clients[half:]]
            await asyncio.sleep(self._chance.choice((0.1, 0.3)))
            self.exhausted_seconds = time.monotonic() - began
        await asyncio.gather(*early, *late)


class _Log(logging.Handler):
    """Everything that is logged is a trouble."""

    def __init__(self, troubles: list[dict[str, Any]]) -> None:
        super().__init__(logging.WARNING)
        self._troubles = troubles

    def emit(self, record: logging.LogRecord) -> None:
        self._troubles.append({"message": record.getMessage(), "exception": record.exc_info})


class Play:
    """Rounds, one after another; `played` sessions so far."""

    def __init__(self) -> None:
        self.troubles: list[dict[str, Any]] = []
        self.played = 0
        self.connections = 0
        self.refused_accepts = 0
        self.kinds: Counter[Kind] = Counter()

    async def round(self, seed: int) -> None:
        """Raises AssertionError where anything is not as it should be afterwards."""
        chance = random.Random(seed)
        kind = _KINDS[seed % len(_KINDS)]
        self.kinds[kind] += 1
        before = _descriptors()
        sys.setswitchinterval(chance.choice((0.0001, 0.005)))
        events: list[Event] = []
        Watched.of.clear()
        spool = FickleSpool(chance)
        given, listener = _listener(chance, spool, events)
        clients = _clients(chance, dropped=kind is Kind.DROPPED)
        exhausts = kind in (Kind.EXHAUSTED, Kind.EXHAUSTED_AND_CLOSING)
        crowd = Crowd(clients, chance, exhausts=exhausts)
        await listener.open()
        opened = 1
        port = int(listener.addresses[0].rpartition(":")[2])
        playing = asyncio.ensure_future(asyncio.to_thread(asyncio.run, crowd.play(port)))
        if kind in (Kind.CLOSING, Kind.EXHAUSTED_AND_CLOSING):
            for _ in range(chance.choice((1, 3, 6))):
                await asyncio.sleep(chance.choice((0, 0.002, 0.02, 0.1)))
                await _knock(listener, turns=chance.randrange(3))
                await _close(listener, chance.choice((0, 0.05, 1)))
                await _open(listener)
                opened += 1
        await playing
        await _until(lambda: not listener._sessions, f"sessions never end: {listener._sessions}")
        self._judge(
            clients,
            events,
            exhausts=exhausts,
            most_refusals=opened + int(crowd.exhausted_seconds / _ASKS_AGAIN_SECONDS),
        )
        assert listener._house.lingering == 0
        assert listener._house.places._count == listener._house.places.waiting == 0

        spool.fickle = False
        if kind is Kind.EXHAUSTED_AND_CLOSING:
            await asyncio.sleep(_ASKS_AGAIN_SECONDS)  # what asyncio has planned happens
        await _ordinary(listener)
        await _until(lambda: not listener._sessions, "the ordinary session never ends")
        await _close(listener, 1)
        if given is not None:
            given.close()
        await _until(lambda: _descriptors() == before, f"descriptors: {before}, and then {_descriptors()}")
        assert not self.troubles, self.troubles
        _each_once(events)

    def _judge(self, clients: list[Client], events: list[Event], *, exhausts: bool, most_refusals: int) -> None:
        self._judge_troubles(most_refusals, exhausts=exhausts)
        for client in clients:
            session = Watched.of.get(client.host)
            try:
                _compare(client, session)
            except AssertionError as problem:
                problem.add_note(f"{vars(client)}\n{session and vars(session)}"[:4000])
                raise
        self.connections += len(clients)
        self.played += len(events_of(events, "session.opened"))

    def _judge_troubles(self, most_refusals: int, *, exhausts: bool) -> None:
        unknown, refused = [], 0
        for trouble in self.troubles:
            error = trouble.get("exception")
            if isinstance(error, SpoolFailed):
                continue  # planted
            if exhausts and isinstance(error, OSError) and error.errno == errno.EMFILE:
                refused += 1
            else:
                unknown.append(trouble)
        self.troubles.clear()
        assert not unknown, unknown
        assert refused <= most_refusals, "said for each place of the backlog"
        self.refused_accepts += refused


def _compare(client: Client, session: Watched | None) -> None:
    assert not client.waited_in_vain, "no end to an end, or no answer to a line"
    heard = bytes(client.octets_heard)
    if session is None:
        assert heard == b"", "a connection without a session"
        return
    said = bytes(session.octets_said)
    judge(said)
    assert session.lost == 1, "told of its end not once"
    assert said.startswith(heard), f"heard what was not said, from octet {_first_difference(said, heard)} on"
    if client.heard_the_end and not session.given_up:
        assert heard == said, f"{len(said) - len(heard)} octets got lost on the way out"
    known, arrived = bytes(client.octets_said), bytes(session.octets_heard)
    if client.urgent_at:
        known, arrived = known.replace(_URGENT, b""), arrived.replace(_URGENT, b"")
    assert known.startswith(arrived), f"taken for said, from octet {_first_difference(known, arrived)} on"
    if session.heard_the_end:
        assert client.ended_ours, "an end that nobody sent"
        if client.said_all:
            assert arrived == known, f"{len(known) - len(arrived)} octets got lost on the way in"


def _first_difference(one: bytes, other: bytes) -> int:
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _each_once(events: list[Event]) -> None:
    opened = Counter(event.session for event in events_of(events, "session.opened"))
    closed = Counter(event.session for event in events_of(events, "session.closed"))
    assert opened == closed
    assert set(opened.values()) == {1}


def _listener(chance: random.Random, spool: FickleSpool, events: list[Event]) -> tuple[socket.socket | None, Listener]:
    """With a socket that was made elsewhere, or one of its own."""

    def admit(peer: str) -> Reply | None:
        return says.STRANGER_BUSY if peer.startswith(_REFUSED) else None

    def owner(peer: str) -> Owner:
        return Owner(provider=None if peer.startswith(_UNKNOWN) else "isp", round=None)

    options = {
        "max_recipients": chance.choice((100, 1000)),
        "max_message_bytes": chance.choice((0, 0, 300)),
        "max_connections": chance.choice((30, 100, 1000)),
        "max_connections_per_peer": chance.choice((5, 20, 1000)),
    }
    limits = {"command_seconds": chance.choice((0.1, 300, 300)), "silence_seconds": chance.choice((0.1, 180, 180))}
    made = reception(spool, events, listener=options, limits=limits, admit=admit, owner=owner)
    if chance.random() < 0.3:
        return None, Listener(made, dialect=Watched)
    given = socket.create_server(("127.0.0.1", 0), backlog=chance.choice((5, 128)))
    # Every connection inherits them: most of what is sent goes in parts, and piles up.
    given.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, chance.choice((1, 10_000)))
    given.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, chance.choice((4096, 20_000, 200_000)))
    given.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
    return given, Listener(made, dialect=Watched, sockets=[given])


def _clients(chance: random.Random, *, dropped: bool) -> list[Client]:
    number = chance.choice((200, 400)) if dropped else chance.choice((20, 40, 60))
    made: list[Client] = []
    for n in range(number):
        net = chance.choices((_PROVIDER, _UNKNOWN, _REFUSED), (8, 2, 1))[0]
        host = f"{net}.{chance.randrange(1, 250)}.{n % 250 + 1}"
        if all(client.host != host for client in made):
            drops = chance.random() < (0.95 if dropped else 0.05)
            made.append(Client(host, random.Random(chance.random()), drops=drops))
    return made


async def _ordinary(listener: Listener) -> None:
    peer = await (await Peer.connect(listener)).hello()
    await peer.data()
    assert await peer.code("Subject: as usual\r\n\r\ntext\r\n.") == 250
    assert await peer.code("QUIT") == 221
    assert await peer.rest() == b""
    await peer.close()


async def _close(listener: Listener, seconds: float) -> None:
    """`seconds` for those who talk still; to end the rest of them must not take as long as a commit may."""
    await asyncio.wait_for(listener.close(seconds=seconds), seconds + 5)
    assert not listener._sessions


async def _knock(listener: Listener, *, turns: int) -> None:
    """Waits for a connection that is not accepted yet, or a little while, and then a few turns of the loop."""
    until = time.monotonic() + 0.2
    while not select.select([each._own for each in listener._acceptors], (), (), 0)[0] and time.monotonic() < until:
        await asyncio.sleep(0)
    for _ in range(turns):
        await asyncio.sleep(0)


async def _open(listener: Listener) -> None:
    """As soon as there are descriptors for it."""
    while True:
        try:
            await listener.open()
        except (OSError, CannotCreate):
            await asyncio.sleep(0.05)
        else:
            return


async def _until(reached: Any, otherwise: str) -> None:
    until = time.monotonic() + _PATIENCE_SECONDS
    while not reached():
        assert time.monotonic() < until, otherwise
        await asyncio.sleep(0.002)


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def _fuzz(run: Run, play: Play) -> tuple[int, int]:
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: play.troubles.append(context))
    await asyncio.to_thread(lambda: None)  # the thread stays, and what the loop opens for it
    return await fuzz(play.round, run, again=True, warm_seconds=_WARM_SECONDS)


@pytest.mark.timeout(1200)
def test_no_crowd_makes_an_exception_a_lost_octet_or_a_leak(request: pytest.FixtureRequest) -> None:
    run = Run.asked(request, short_seconds=_SHORT_SECONDS, long_seconds=_LONG_SECONDS)
    play = Play()
    log, interval = _Log(play.troubles), sys.getswitchinterval()
    logging.getLogger().addHandler(log)
    try:
        rounds, growth = asyncio.run(_fuzz(run, play))
    finally:
        logging.getLogger().removeHandler(log)
        sys.setswitchinterval(interval)
    print(
        f"{rounds} rounds, {play.connections} connections, {play.played} sessions, "
        f"{play.refused_accepts} times out of descriptors, memory grew by {growth / 2**20:.1f} MiB"
    )
    assert growth < MOST_GROWTH_BYTES
