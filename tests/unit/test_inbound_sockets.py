"""Sockets that keep the interpreter: to asyncio they are sockets like any others."""

from __future__ import annotations

import asyncio
import ctypes
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from siteagent.inbound import sockets
from siteagent.inbound.sockets import listening

linux = pytest.mark.skipif(sys.platform != "linux", reason="plain sockets elsewhere")


@pytest.fixture(params=["127.0.0.1", "::1", "a door that blocks"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Ours, not blocking, and a plain one at the far end."""
    host = request.param if ":" in request.param else "127.0.0.1"
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with listening(socket.create_server((host, 0), family=family)) as door:
        door.setblocking(request.param == "a door that blocks")
        far = socket.create_connection(door.getsockname()[:2])
        own, address = door.accept()
        own.setblocking(False)
        with own, far:
            assert address == far.getsockname() == own.getpeername()
            assert own.getsockname() == far.getpeername()
            yield own, far


@linux
def test_what_is_accepted_is_ours_not_blocking_and_not_inherited(pair: tuple[socket.socket, socket.socket]) -> None:
    own, far = pair
    assert isinstance(own, sockets.Taken)
    assert (own.family, own.type, own.gettimeout()) == (far.family, socket.SOCK_STREAM, 0)
    assert not os.get_blocking(own.fileno())
    assert not os.get_inheritable(own.fileno())


def test_nobody_at_the_door_would_block() -> None:
    with listening(socket.create_server(("127.0.0.1", 0))) as door:
        door.setblocking(False)
        with pytest.raises(BlockingIOError):
            door.accept()


@linux
def test_the_scope_of_a_link_local_address_is_told() -> None:
    room = struct.pack("=H", socket.AF_INET6) + struct.pack("!HI", 2525, 7)
    room += socket.inet_pton(socket.AF_INET6, "fe80::1") + struct.pack("=I", 3)
    assert sockets._address(room) == ("fe80::1", 2525, 7, 3)


def patiently(own: socket.socket, buffer: memoryview) -> int:
    until = time.monotonic() + 5
    while time.monotonic() < until:
        try:
            return own.recv_into(buffer)
        except BlockingIOError:
            time.sleep(0.001)
    raise TimeoutError


def test_octets_arrive_as_they_were_sent(pair: tuple[socket.socket, socket.socket]) -> None:
    own, far = pair
    said = bytes(range(256)) * 4
    assert own.send(said) == len(said)
    assert far.recv(4096) == said
    far.sendall(said)
    buffer = bytearray(4096)
    assert patiently(own, memoryview(buffer)) == len(said)
    assert bytes(buffer[: len(said)]) == said


def test_no_more_is_received_than_there_is_room_for(pair: tuple[socket.socket, socket.socket]) -> None:
    own, far = pair
    far.sendall(b"x" * 100)
    buffer = bytearray(b"." * 20)
    assert patiently(own, memoryview(buffer)[5:15]) == 10
    assert bytes(buffer) == b"....." + b"x" * 10 + b"....."


def test_nothing_there_yet_would_block(pair: tuple[socket.socket, socket.socket]) -> None:
    with pytest.raises(BlockingIOError):
        pair[0].recv_into(memoryview(bytearray(10)))


def test_the_far_end_hung_up_is_no_octets(pair: tuple[socket.socket, socket.socket]) -> None:
    own, far = pair
    far.close()
    assert patiently(own, memoryview(bytearray(10))) == 0


def test_a_peer_that_reads_no_more_would_block_and_takes_a_part(pair: tuple[socket.socket, socket.socket]) -> None:
    own, _ = pair
    block, sent = b"x" * (1 << 20), 0
    with pytest.raises(BlockingIOError):
        for _ in range(1000):
            sent += own.send(block)
    assert 0 < sent < 1000 << 20


def test_a_peer_that_is_gone_is_a_connection_error(pair: tuple[socket.socket, socket.socket]) -> None:
    own, far = pair
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    far.close()
    with pytest.raises(ConnectionError):
        patiently(own, memoryview(bytearray(10)))
    with pytest.raises(ConnectionError):  # and no signal
        for _ in range(3):
            own.send(b"x")


def test_a_closed_socket_is_an_error(pair: tuple[socket.socket, socket.socket]) -> None:
    own, _ = pair
    own.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        own.send(b"x")
    with pytest.raises(OSError, match="Bad file descriptor"):
        own.recv_into(memoryview(bytearray(10)))


def test_one_that_blocks_waits_as_ever(pair: tuple[socket.socket, socket.socket]) -> None:
    own, far = pair
    own.settimeout(5)
    threading.Timer(0.05, far.sendall, (b"late",)).start()
    buffer = bytearray(10)
    assert own.recv_into(memoryview(buffer)) == 4 and own.send(b"x") == 1


@pytest.mark.parametrize("data", [bytearray(b"abc"), memoryview(b"abc"), b""])
def test_any_kind_of_octets_can_be_sent(pair: tuple[socket.socket, socket.socket], data: bytes) -> None:
    assert pair[0].send(data) == len(data)


@linux
def test_the_interpreter_is_kept() -> None:
    """Asked of CPython itself, through the library that sends and receives; then as everybody calls a library."""
    assert sockets._LIBRARY.PyGILState_Check() == 1
    assert ctypes.CDLL(None).PyGILState_Check() == 0


def test_asyncio_serves_through_them() -> None:
    async def talk() -> bytes:
        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
            writer.close()

        own = listening(socket.create_server(("127.0.0.1", 0)))
        own.setblocking(False)
        async with await asyncio.start_server(echo, sock=own) as server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(said)
            writer.write_eof()
            heard = await reader.read(-1)
            writer.close()
        return heard

    said = bytes(range(256)) * 20_000
    assert asyncio.run(asyncio.wait_for(talk(), 20)) == said
