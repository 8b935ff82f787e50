"""What the servers are measured with: smtp-source, the disk's own speed, and a line with a delay."""

from __future__ import annotations

import collections
import contextlib
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.bench.sides import DOMAIN, Side, Trouble, put_aside

_DISK_SOURCE = Path(__file__).with_name("disk.c")
_PATIENCE_SECONDS = 120.0
_LOOK_SECONDS = 0.005
_SAMPLE_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class Cell:
    """One load. `open`: connections are kept open from message to message."""

    bytes: int
    sessions: int
    open: bool
    messages: int

    @property
    def name(self) -> str:
        size = f"{self.bytes >> 20} MB" if self.bytes >= 1 << 20 else f"{self.bytes >> 10} kB"
        return f"{size} / {self.sessions}{' open' if self.open else ''}"


@dataclass(frozen=True, slots=True)
class Taken:
    """What one load cost a server: seconds until the last 250 and until the last file, CPU seconds, octets."""

    promised: float
    filed: float
    cpu: float
    memory: int


def smtp_source() -> str | None:
    return shutil.which("smtp-source", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def load(side: Side, cell: Cell) -> Taken:
    """Sends the cell's messages and waits until they are filed. Raises Trouble where some never are."""
    side.empty()
    os.sync()
    before = side.cpu_seconds()
    argv = [
        smtp_source() or "smtp-source",
        *("-m", str(cell.messages), "-s", str(cell.sessions), "-l", str(cell.bytes)),
        *(["-d"] if cell.open else []),
        *("-f", "sender@elsewhere.example", "-t", f"box@{DOMAIN}", f"127.0.0.1:{side.port}"),
    ]
    with _Memory(side) as memory:
        began = time.perf_counter()
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        promised = filed = time.perf_counter() - began
    if done.returncode != 0:
        raise Trouble(f"smtp-source to {side.name}, {cell.name}: {done.stderr[:500]}")
    while side.keeps and side.filed() < cell.messages:
        filed = time.perf_counter() - began
        if filed > promised + _PATIENCE_SECONDS:
            raise Trouble(f"{side.name}, {cell.name}: {side.filed()} of {cell.messages} are filed")
        time.sleep(_LOOK_SECONDS)
    time.sleep(0.3)  # what follows a filed message is part of its price
    return Taken(promised, filed, side.cpu_seconds() - before, memory.most)


class _Memory:
    """Looks now and then at what a server holds."""

    def __init__(self, side: Side) -> None:
        self.most = 0
        self._side = side
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> _Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self.most = max(self.most, self._side.memory_bytes())

    def _look(self) -> None:
        while not self._over.wait(_SAMPLE_SECONDS):
            self.most = max(self.most, self._side.memory_bytes())


# --- the disk ---------------------------------------------------------------------------------------------------------


class Disk:
    """The small C program, compiled in `directory`, which is also where it writes."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._program = directory / "disk"
        for name in ("tmp", "new"):
            (directory / name).mkdir(parents=True)
        done = subprocess.run(
            ["cc", "-O2", "-pthread", "-o", str(self._program), str(_DISK_SOURCE)], capture_output=True, text=True
        )
        if done.returncode != 0:
            raise Trouble(f"cc: {done.stderr[:500]}")

    def files_a_second(self, cell: Cell, threads: int) -> float:
        argv = [self._program, self._directory, str(threads), str(cell.messages), str(cell.bytes)]
        os.sync()
        done = subprocess.run(list(map(str, argv)), capture_output=True, text=True, check=True)
        put_aside(self._directory / "new")
        return cell.messages / float(done.stdout)


def touch(directory: Path, octets: int) -> None:
    """Writes and deletes `octets`: a virtual machine backs memory and disk when they are first used."""
    block = os.urandom(1 << 20)
    path = directory / "touched"
    with path.open("wb") as file:
        for _ in range(octets >> 20):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    path.unlink()
    os.sync()


# --- a line with a delay ----------------------------------------------------------------------------------------------


class DelayedLine:
    """Takes connections on `listening` and passes everything on, each way `delay_seconds` later, at full width.

    `connect` makes the connection onward. `turns`: how often the client spoke after the server had, so the number of
    round trips that it waited for. `connections`: how many came.
    """

    def __init__(self, listening: socket.socket, connect: Callable[[], socket.socket], *, delay_seconds: float) -> None:
        self.port = int(listening.getsockname()[1])
        self.turns = 0
        self.connections = 0
        self._listening = listening
        self._connect = connect
        self._delay = delay_seconds
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    @classmethod
    def to(cls, port: int, *, delay_seconds: float) -> DelayedLine:
        """From a free port of loopback to `port` there."""
        listening = socket.create_server(("127.0.0.1", 0))
        return cls(listening, lambda: socket.create_connection(("127.0.0.1", port)), delay_seconds=delay_seconds)

    def __enter__(self) -> DelayedLine:
        return self

    def __exit__(self, *_: object) -> None:
        for own in (self._listening, *self._open):
            with contextlib.suppress(OSError):
                own.shutdown(socket.SHUT_RDWR)
            own.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                self.connections += 1
                server = self._connect()
                for own in (client, server):
                    own.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._open += [client, server]
                spoke = [server]  # who spoke last
                for source, target in ((client, server), (server, client)):
                    waiting: collections.deque[tuple[float, bytes]] = collections.deque()
                    there = threading.Semaphore(0)
                    threading.Thread(
                        target=self._take, args=(source, source is client, spoke, waiting, there), daemon=True
                    ).start()
                    threading.Thread(target=self._give, args=(target, waiting, there), daemon=True).start()

    def _take(
        self,
        source: socket.socket,
        client: bool,
        spoke: list[socket.socket],
        waiting: collections.deque[tuple[float, bytes]],
        there: threading.Semaphore,
    ) -> None:
        data = b"."
        while data:
            try:
                data = source.recv(1 << 18)
            except OSError:
                data = b""
            if client and data and spoke[0] is not source:
                self.turns += 1
            if data:
                spoke[0] = source
            waiting.append((time.monotonic() + self._delay, data))
            there.release()

    def _give(
        self, target: socket.socket, waiting: collections.deque[tuple[float, bytes]], there: threading.Semaphore
    ) -> None:
        with contextlib.suppress(OSError):
            while True:
                there.acquire()
                due, data = waiting.popleft()
                time.sleep(max(0.0, due - time.monotonic()))
                if not data:
                    target.shutdown(socket.SHUT_WR)
                    return
                target.sendall(data)


class Client:
    """A client that does not wait where the server said it need not: PIPELINING, and CHUNKING where `bdat`."""

    def __init__(self, port: int, *, bdat: bool = False) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self._socket.makefile("rb")
        self._expect(b"220")
        offered = self._say(b"EHLO client.example\r\n", b"250")
        self.pipelining = b"PIPELINING" in offered
        self.chunking = bdat and b"CHUNKING" in offered

    def send(self, content: bytes) -> None:
        """`content`: CRLF line ends, no line begins with a dot."""
        envelope = [b"MAIL FROM:<sender@elsewhere.example>\r\n", f"RCPT TO:<box@{DOMAIN}>\r\n".encode()]
        if self.chunking:
            self._group([*envelope, b"BDAT %d LAST\r\n%b" % (len(content), content)], [b"250", b"250", b"250"])
            return
        self._group([*envelope, b"DATA\r\n"], [b"250", b"250", b"354"])
        self._say(content + b".\r\n", b"250")

    def close(self) -> None:
        self._say(b"QUIT\r\n", b"221")
        self._file.close()
        self._socket.close()

    def _group(self, commands: list[bytes], codes: list[bytes]) -> None:
        if self.pipelining:
            self._socket.sendall(b"".join(commands))
            for code in codes:
                self._expect(code)
        else:
            for command, code in zip(commands, codes, strict=True):
                self._say(command, code)

    def _say(self, words: bytes, code: bytes) -> bytes:
        self._socket.sendall(words)
        return self._expect(code)

    def _expect(self, code: bytes) -> bytes:
        said = b""
        while True:
            line = self._file.readline()
            said += line
            if line[3:4] != b"-":
                break
        if not said.startswith(code):
            raise Trouble(f"expected {code.decode()}, was told {said.decode(errors='replace').strip()!r}")
        return said


def round_trips(side: Side, *, delay_seconds: float, messages: int, bdat: bool = False) -> float | None:
    """Round trips a message of several on one connection; None where `bdat` is asked for and not offered."""
    content = b"Subject: a message of the benchmark\r\n\r\n" + b"x" * 70 + b"\r\n"
    with DelayedLine.to(side.port, delay_seconds=delay_seconds) as line:
        client = Client(line.port, bdat=bdat)
        if bdat and not client.chunking:
            client.close()
            return None
        began = time.monotonic()
        for number in range(messages):
            client.send(b"X-Number: %d of %d\r\n%b" % (number, time.time_ns(), content))
        seconds = time.monotonic() - began
        client.close()
    return seconds / messages / (2 * delay_seconds)
