"""`uplink.protocol`: what it leans on in aiosmtplib is there, and does what we think."""

from __future__ import annotations

import asyncio
import inspect

from aiosmtplib.protocol import SMTPProtocol
from siteagent.uplink.protocol import Protocol


class Wire(asyncio.Transport):
    """A transport that goes nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True


def test_the_private_names_that_we_lean_on_are_there() -> None:
    source = inspect.getsource(SMTPProtocol)
    for name in ("_response_waiter", "_response_pending", "_set_response_exception", "_over_ssl", "_loop"):
        assert f"self.{name}" in source or f"def {name}" in source, f"aiosmtplib no longer has {name}"


def test_bytes_that_nobody_asked_for_are_kept_and_bounded() -> None:
    async def scene() -> None:
        protocol = Protocol(asyncio.get_running_loop())
        protocol.connection_made(Wire())
        protocol.data_received(b"220 mx\r\n")
        await protocol.read_response(1)
        assert protocol.stray == b""
        for _ in range(100):
            protocol.data_received(b"250 stray" * 1000)
        assert protocol.stray.startswith(b"250 stray")
        assert len(protocol.stray) == 4096

    asyncio.run(scene())


def test_a_reply_in_the_segment_of_another_is_stray() -> None:
    async def scene() -> None:
        protocol = Protocol(asyncio.get_running_loop())
        protocol.connection_made(Wire())
        protocol.data_received(b"220 mx\r\n250 stray\r\n")
        assert (await protocol.read_response(1)).code == 220
        assert protocol.stray == b"250 stray\r\n"

    asyncio.run(scene())


def test_what_is_no_reply_aborts_the_connection() -> None:
    async def scene() -> bool:
        wire = Wire()
        protocol = Protocol(asyncio.get_running_loop())
        protocol.connection_made(wire)
        protocol.data_received(b"hello\r\n")
        return wire.aborted

    assert asyncio.run(scene())
