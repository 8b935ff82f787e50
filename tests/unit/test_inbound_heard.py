"""A 250 counts as heard once the peer's host has acknowledged it, and a session whose last one was not is unclean."""

from __future__ import annotations

import asyncio
import socket
import sys
from asyncio import sslproto
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from siteagent.events import Event
from siteagent.inbound.heard import gone, heard, unacknowledged
from siteagent.inbound.smtp import Dialect
from tests.fakes import FakeSpool, FakeTransport, events_of, reception, session, settle

LINES = b"EHLO isp.example\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<alice@office.example>\r\nDATA\r\n"
CONTENT = b"hello\r\n.\r\n"
NOT_HEARD = "gone before our last answer was heard"
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what was acknowledged")


class FarDialect(Dialect):
    """Its peer is far away: what we say arrives when the test says so."""

    arrived = 0

    def unacknowledged(self) -> int:
        return self.sent - self.arrived

    def hears(self) -> None:
        self.arrived = self.sent


class Far:
    def __init__(self, **limits: float) -> None:
        self.events: list[Event] = []
        self.protocol, self.transport = session(reception(FakeSpool(), self.events, limits=limits), dialect=FarDialect)

    async def say(self, *chunks: bytes) -> None:
        for chunk in chunks:
            self.protocol.data_received(chunk)
            await settle(self.protocol)

    def hears(self) -> None:
        assert isinstance(self.protocol, FarDialect)
        self.protocol.hears()

    @property
    def closed(self) -> list[Any]:
        return events_of(self.events, "session.closed")

    async def ended(self) -> tuple[bool, str]:
        async with asyncio.timeout(5):
            while not self.closed:
                await asyncio.sleep(0.001)
        return self.closed[0].clean, self.closed[0].reason


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(test())  # type: ignore[arg-type]


def test_behind_quit_the_connection_stays_until_the_250_was_heard() -> None:
    async def test() -> None:
        far = Far()
        await far.say(LINES, CONTENT + b"QUIT\r\n")
        await asyncio.sleep(0.02)
        assert not far.transport.closed and not far.closed
        far.hears()
        assert await far.ended() == (True, "quit")

    run(test)


@pytest.mark.parametrize("last", [b"", b"QUIT\r\n"])
def test_a_peer_that_goes_before_it_heard_our_250_leaves_an_unclean_session(last: bytes) -> None:
    async def test() -> None:
        far = Far()
        await far.say(LINES, CONTENT + last)
        far.protocol.connection_lost(None)
        assert await far.ended() == (False, NOT_HEARD)

    run(test)


def test_the_answer_to_quit_need_not_be_heard() -> None:
    async def test() -> None:
        far = Far()
        await far.say(LINES, CONTENT)
        far.hears()
        await far.say(b"QUIT\r\n")
        assert await far.ended() == (True, "quit")

    run(test)


def test_without_a_message_nothing_need_be_heard() -> None:
    async def test() -> None:
        far = Far()
        await far.say(b"EHLO isp.example\r\nQUIT\r\n")
        assert await far.ended() == (True, "quit")

    run(test)


def test_a_peer_that_never_hears_is_waited_for_no_longer_than_for_a_command() -> None:
    async def test() -> None:
        far = Far(command_seconds=0.05)
        await far.say(LINES, CONTENT + b"QUIT\r\n")
        assert await far.ended() == (False, NOT_HEARD)

    run(test)


def test_of_what_was_said_behind_the_promise_nothing_need_have_arrived() -> None:
    assert heard(20, said_since=20, tls=False)
    assert not heard(21, said_since=20, tls=False)
    assert heard(60, said_since=20, tls=True), "the octets around a record of TLS"
    assert not heard(20, said_since=0, tls=True)


@linux
def test_the_kernel_tells_what_nobody_has_taken_and_a_reset() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as ours:
        theirs, _ = server.accept()
        transport = FakeTransport()
        transport._extra["socket"] = ours
        transport.get_write_buffer_size = lambda: 5  # type: ignore[method-assign]
        assert unacknowledged(transport) == 5, "what lies in our own buffer counts too"
        ours.setblocking(False)
        while True:
            try:
                ours.send(b"x" * 65536)
            except BlockingIOError:
                break
        assert (unacknowledged(transport) or 0) > 65536
        assert not gone(transport)
        theirs.close()  # with all of it unread: a reset
        assert gone(transport)
    assert unacknowledged(transport) is None and gone(transport), "closed"


@linux
def test_a_closed_transport_of_tls_cannot_tell() -> None:
    closed = sslproto._SSLProtocolTransport(asyncio.new_event_loop(), None)  # what is left of one
    closed._closed = True
    assert unacknowledged(closed) is None
    assert not gone(closed)


@linux
def test_a_transport_without_a_socket_cannot_tell() -> None:
    assert unacknowledged(FakeTransport()) is None
    assert not gone(FakeTransport())
