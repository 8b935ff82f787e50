"""What `inbound.sockets` and `inbound.acceptor` lean on in CPython's sockets and asyncio, private or undocumented."""

from __future__ import annotations

import asyncio
import errno
import inspect
import socket
import sys

import pytest
from siteagent.inbound import sockets

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="the sockets are plain ones elsewhere")


def test_a_transport_can_be_made_of_a_socket_without_a_task() -> None:
    parameters = inspect.signature(asyncio.SelectorEventLoop._make_socket_transport).parameters  # type: ignore[attr-defined]
    assert list(parameters)[:3] == ["self", "sock", "protocol"]
    assert parameters["extra"].kind is inspect.Parameter.KEYWORD_ONLY
    needed = [p for p in parameters.values() if p.default is inspect.Parameter.empty]
    assert len(needed) == 3


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


def test_an_error_made_from_its_number_is_of_the_kind_that_asyncio_looks_for() -> None:
    assert isinstance(OSError(errno.EAGAIN, "try again"), BlockingIOError)
    assert isinstance(OSError(errno.ECONNRESET, "gone"), ConnectionResetError)
