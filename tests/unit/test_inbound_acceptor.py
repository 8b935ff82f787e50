"""`inbound.acceptor`: connections become sessions, and what happens where they cannot."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from siteagent.inbound.acceptor import Acceptor
from siteagent.inbound.sockets import listening


class Session(asyncio.BufferedProtocol):
    """Greets, and tells what it was told."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.peer = transport.get_extra_info("peername")
        transport.write(b"220 hello\r\n")
        transport.close()

    def get_buffer(self, sizehint: int) -> memoryview:
        return memoryview(bytearray(100))


class Moody(socket.socket):
    """A listening socket that fails as it is told to, before anybody is accepted."""

    errors: list[int]

    def accept(self) -> tuple[socket.socket, Any]:
        if self.errors:
            number = self.errors.pop(0)
            raise OSError(number, os.strerror(number))
        return super().accept()


class Door:
    def __init__(self, own: socket.socket) -> None:
        own.setblocking(False)
        self.address = own.getsockname()
        self.sessions: list[Session] = []
        self.failed: list[Session] = []
        self.told: list[str] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(
            lambda loop, context: self.told.append(f"{context['message']}: {context['exception']}")
        )
        self.acceptor = Acceptor(own, self._begin, failed=self.failed.append)

    def _begin(self) -> Session:
        self.sessions.append(Session())
        return self.sessions[-1]

    async def knock(self, *, seconds: float = 5) -> bytes:
        async with asyncio.timeout(seconds):
            reader, writer = await asyncio.open_connection(*self.address[:2])
            heard = await reader.read()
            writer.close()
            return heard


def at(scene: Callable[[Door], Awaitable[None]], *, errors: list[int] | None = None) -> Door:
    async def run() -> Door:
        own = socket.create_server(("127.0.0.1", 0))
        if errors is None:
            door = Door(listening(own))
        else:
            moody = Moody(own.family, own.type, own.proto, fileno=own.detach())
            moody.errors = errors
            door = Door(moody)
        await door.acceptor.open()
        await scene(door)
        return door

    return asyncio.run(run())


def test_everybody_who_comes_is_a_session_that_knows_its_peer() -> None:
    async def scene(door: Door) -> None:
        assert await asyncio.gather(*[door.knock() for _ in range(200)]) == [b"220 hello\r\n"] * 200
        door.acceptor.close()

    door = at(scene)
    assert len({session.peer for session in door.sessions}) == 200
    assert {host for host, _ in (session.peer for session in door.sessions)} == {"127.0.0.1"}
    assert not door.told


def test_who_is_in_stays_when_the_door_is_closed_and_nobody_else_comes_in() -> None:
    async def scene(door: Door) -> None:
        reader, writer = await asyncio.open_connection(*door.address)
        while not door.sessions:
            await asyncio.sleep(0.001)
        door.acceptor.close()
        assert await reader.read() == b"220 hello\r\n"
        writer.close()
        with pytest.raises(ConnectionRefusedError):
            await door.knock()

    assert not at(scene).told


@pytest.mark.parametrize("number", [errno.ECONNABORTED, errno.EPROTO, errno.EHOSTUNREACH])
def test_the_trouble_of_one_connection_keeps_nobody_out(number: int) -> None:
    async def scene(door: Door) -> None:
        assert await door.knock(seconds=0.9) == b"220 hello\r\n"
        door.acceptor.close()

    assert not at(scene, errors=[number, number]).told


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EINVAL])
def test_s30_where_nobody_can_be_accepted_it_is_told_once_and_tried_again_after_a_second(number: int) -> None:
    async def scene(door: Door) -> None:
        began = asyncio.get_running_loop().time()
        assert await door.knock() == b"220 hello\r\n"
        assert 1.9 < asyncio.get_running_loop().time() - began < 4
        assert len(door.told) == 1
        errors.append(number)
        assert await door.knock() == b"220 hello\r\n"
        door.acceptor.close()

    errors = [number, number]
    door = at(scene, errors=errors)
    assert door.told == [f"nobody can be accepted just now: [Errno {number}] {os.strerror(number)}"] * 2


def test_a_door_that_is_closed_while_nobody_can_be_accepted_stays_closed() -> None:
    async def scene(door: Door) -> None:
        with pytest.raises(TimeoutError):
            await door.knock(seconds=0.1)
        door.acceptor.close()
        await asyncio.sleep(1.2)

    door = at(scene, errors=[errno.EMFILE])
    assert not door.sessions and len(door.told) == 1


def test_a_session_that_gets_no_connection_is_given_back() -> None:
    class Refusing(asyncio.SelectorEventLoop):
        def _make_socket_transport(self, *_: object, **__: object) -> object:
            raise RuntimeError("the fault that was planted")

    async def run() -> Door:
        door = Door(listening(socket.create_server(("127.0.0.1", 0))))
        await door.acceptor.open()
        heard = await asyncio.to_thread(_knock, door.address)
        assert heard == b""
        door.acceptor.close()
        return door

    with asyncio.Runner(loop_factory=Refusing) as runner:
        door = runner.run(run())
    assert door.failed == door.sessions and len(door.failed) == 1
    assert door.told == ["a connection could not be begun: the fault that was planted"]


def _knock(address: tuple[str, int]) -> bytes:
    with socket.create_connection(address, timeout=5) as own:
        return own.recv(100)


def test_a_loop_that_watches_no_sockets_has_asyncios_server() -> None:
    class Other(asyncio.SelectorEventLoop):
        _make_socket_transport = None  # type: ignore[assignment]

    async def run() -> asyncio.Server | None:
        door = Door(listening(socket.create_server(("127.0.0.1", 0))))
        watched: list[object] = []
        door.acceptor._loop.create_server = _recorded(watched)  # type: ignore[method-assign]
        await door.acceptor.open()
        assert len(watched) == 1
        door.acceptor.close()
        return door.acceptor._server

    with asyncio.Runner(loop_factory=Other) as runner:
        assert runner.run(run()) is not None


def _recorded(calls: list[object]) -> Callable[..., Awaitable[object]]:
    class Server:
        def close(self) -> None:
            calls.append("closed")

    async def create_server(*arguments: object, **options: object) -> Server:
        calls.append(options)
        return Server()

    return create_server
