"""A site that takes everything and keeps nothing, as fast as it can: a process of its own, `site.py`.

Says ``ready PORT``, and on each connection, at its first recipient, ``first SECONDS ADDRESS`` by the monotonic clock,
which is one for all processes of a machine. Ends when its input does. Offers PIPELINING, SIZE, 8BITMIME and CHUNKING.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path

_OFFERS = (b"PIPELINING", b"SIZE", b"8BITMIME", b"CHUNKING")


class Session(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._buffer = bytearray()
        self._skip = 0
        self._known = self._over = False
        transport.write(b"220 site.example\r\n")

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        answers = []
        while True:
            if self._skip:
                taken = min(self._skip, len(self._buffer))
                del self._buffer[:taken]
                self._skip -= taken
                if self._skip:
                    break
                answers.append(b"250 ok\r\n")
            end = self._buffer.find(b"\r\n")
            if end < 0:
                break
            line = bytes(self._buffer[:end])
            del self._buffer[: end + 2]
            answers.append(self._answer(line))
        self._transport.write(b"".join(answers))
        if self._over:
            self._transport.close()

    def _answer(self, line: bytes) -> bytes:
        verb, _, rest = line.partition(b" ")
        match verb.upper():
            case b"EHLO":
                return b"250-site.example\r\n" + b"".join(b"250-%b\r\n" % word for word in _OFFERS) + b"250 OK\r\n"
            case b"RCPT" if not self._known:
                self._known = True
                print(f"first {time.monotonic():.6f} {rest.decode()}", flush=True)
            case b"BDAT":
                self._skip = int(rest.split()[0])
                return b"" if self._skip else b"250 ok\r\n"
            case b"QUIT":
                self._over = True
                return b"221 bye\r\n"
        return b"250 ok\r\n"


class Site:
    """The process, seen from the benchmark."""

    def __enter__(self) -> Site:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__))], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.lines = self._process.stdout
        self.port = int(self.lines.readline().split()[1])
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)
        self.lines.close()


async def serve() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Session, "127.0.0.1", 0)
    print("ready", server.sockets[0].getsockname()[1], flush=True)
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()


if __name__ == "__main__":
    asyncio.run(serve())
