"""`traffic`: octets that a TCP connection carried, counted by its host."""

from __future__ import annotations

import asyncio
import sys
from typing import Any, cast

import pytest
from siteagent.traffic import carried, unanswered

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells (struct tcp_info)")


@linux
def test_both_directions_count_and_nothing_else() -> None:
    async def scene() -> int | None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"x" * 1000)
            await reader.readexactly(300)
            writer.write(b".")
            await reader.read()
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"y" * 300)
        await reader.readexactly(1001)  # its answer acknowledges what we sent
        found = carried(writer.transport)
        writer.close()
        server.close()
        return found

    # Linux counts the SYN of each side.
    assert 1301 <= (asyncio.run(scene()) or 0) <= 1303


def test_a_transport_without_a_socket_tells_nothing() -> None:
    class Closed(asyncio.BaseTransport):
        def get_extra_info(self, name: str, default: Any = None) -> Any:
            raise AttributeError

    assert carried(Closed()) is None
    assert carried(asyncio.BaseTransport()) is None
    assert not unanswered(Closed())
    assert not unanswered(asyncio.BaseTransport())


@linux
def test_a_closed_connection_tells_nothing() -> None:
    async def scene() -> int | None:
        server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        transport = cast(asyncio.BaseTransport, writer.transport)
        writer.transport.abort()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        server.close()
        return carried(transport)

    assert asyncio.run(scene()) is None
