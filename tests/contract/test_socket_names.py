"""What `inbound.sockets` leans on in CPython's socket and asyncio modules, private or undocumented."""

from __future__ import annotations

import asyncio
import errno
import inspect
import socket
import sys
from asyncio import selector_events

import pytest
from siteagent.inbound import sockets

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="the sockets are plain ones elsewhere")


@linux_only
def test_accept_gives_a_descriptor_that_nobody_owns_yet_and_the_peers_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as own, socket.create_connection(own.getsockname()) as client:
        handle, address = own._accept()  # type: ignore[attr-defined]
        assert isinstance(handle, int) and address == client.getsockname()
        socket.socket(fileno=handle).close()


@linux_only
def test_asyncio_sends_receives_and_closes_by_the_methods_that_are_ours() -> None:
    called: list[str] = []

    class Watched(sockets.Taken):
        def send(self, *arguments: object) -> int:
            called.append("send")
            return super().send(*arguments)  # type: ignore[arg-type]

        def recv_into(self, *arguments: object) -> int:
            called.append("recv_into")
            return super().recv_into(*arguments)  # type: ignore[arg-type]

        def close(self) -> None:
            called.append("close")
            super().close()

    class Echo(asyncio.BufferedProtocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            self.transport = transport
            self.buffer = bytearray(100)

        def get_buffer(self, sizehint: int) -> memoryview:
            return memoryview(self.buffer)

        def buffer_updated(self, nbytes: int) -> None:
            self.transport.write(bytes(self.buffer[:nbytes]))
            self.transport.close()

    async def run() -> None:
        near, far = socket.socketpair()
        watched = Watched(near.family, near.type, near.proto, fileno=near.detach())
        watched.setblocking(False)
        far.sendall(b"hello")
        await asyncio.get_running_loop().connect_accepted_socket(Echo, watched)
        far.settimeout(10)
        assert await asyncio.to_thread(far.recv, 100) == b"hello"
        far.close()
        async with asyncio.timeout(10):
            while "close" not in called:
                await asyncio.sleep(0.01)

    asyncio.run(run())
    assert called == ["recv_into", "send", "close"]


@linux_only
def test_asyncio_goes_on_accepting_where_nobody_waits_and_stops_where_descriptors_are_out() -> None:
    source = inspect.getsource(selector_events.BaseSelectorEventLoop._accept_connection)
    for name in ("BlockingIOError", "EMFILE", "ENFILE", "ENOBUFS", "ENOMEM"):
        assert name in source


def test_an_error_made_from_its_number_is_of_the_kind_that_asyncio_looks_for() -> None:
    assert isinstance(OSError(errno.EAGAIN, "try again"), BlockingIOError)
    assert isinstance(OSError(errno.ECONNRESET, "gone"), ConnectionResetError)
