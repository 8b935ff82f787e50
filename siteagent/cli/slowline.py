"""A simulated slow line: what goes through it takes its time, in both directions together.

For the demo. The rate is that of a modem: so many bits a second for everybody on the line.
"""

from __future__ import annotations

import asyncio
import contextlib

# Small enough that a slow line looks slow, large enough that a fast one is not held up by timers.
_PIECE_SECONDS = 0.05


class SlowLine:
    """Takes connections on a loopback port and passes them on, no faster than `bits_per_second`; None: as they come."""

    def __init__(self, bits_per_second: int | None) -> None:
        self._bytes_per_second = bits_per_second / 8 if bits_per_second else None
        self._turn = asyncio.Lock()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.carried = 0

    async def open(self, port: int) -> int:
        """Begins to pass on to `port`; returns the port to connect to."""
        self._server = await asyncio.start_server(lambda r, w: self._pass(r, w, port), "127.0.0.1", 0)
        found: int = self._server.sockets[0].getsockname()[1]
        return found

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            writer.transport.abort()  # nobody there: the near end must not wait for a greeting
            return
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._carry(reader, far_writer))
                group.create_task(self._carry(far_reader, writer))
        finally:
            for each in (writer, far_writer):
                each.close()
                with contextlib.suppress(OSError):
                    await each.wait_closed()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        rate = self._bytes_per_second
        piece = max(int(rate * _PIECE_SECONDS), 1) if rate else 65_536
        with contextlib.suppress(OSError):
            while data := await reader.read(piece):
                if rate:
                    async with self._turn:
                        await asyncio.sleep(len(data) / rate)
                self.carried += len(data)
                writer.write(data)
                await writer.drain()
            writer.write_eof()
