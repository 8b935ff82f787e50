"""The scripted provider: a server on loopback that plays any SMTP dialogue, byte for byte.

For tests, and for an operator who wants to rehearse what siteagent does with a certain server's answers:

    python3 tests/scripted.py --port 2525 DIALOGUE [DIALOGUE...]

and then `host = "127.0.0.1"`, `port = 2525`, `tls = "off"` in the configuration (docs/providers.md has a whole one). A
dialogue is a file, or one of the ready-made ones of tests/reference, which `--list` names. Each connection plays the
next one, the last one again and again. With `--deliver` a ready-made server that agreed connects in and brings mail.

A dialogue is text, one step a line:

    S: 220 mx.isp.example ESMTP       say this line, CRLF added; \\r \\n \\t \\0 \\\\ and \\xNN are escapes
    S= 250 half a                     say this, nothing added
    C: EHLO *                         expect a command; * and ? and [...] as in shell patterns, case does not matter
    ! wait 0.5                        seconds of silence
    ! drip 0.02 250 OK\\r\\n            say these bytes one by one, so many seconds apart
    ! endless 1000000 250-more\\r\\n    say this again and again, in all at least so many bytes
    ! starttls                        the TLS handshake (the server needs a context)
    ! silent                          never say anything again, read what comes until the peer leaves
    ! close                           end the connection in order
    ! drop                            reset it
    ! deliver 127.0.0.1:25 alice@office.example 3 2 pipelined
                                      from now on, beside all else: connect in and hand over 3 messages for that
                                      address in 2 connections at a time, as a server does whose queue was started;
                                      "pipelined": MAIL, RCPT and DATA at once, QUIT together with the last dot

Blank lines and lines that begin with # mean nothing. Behind `! close` and `! drop` only `! wait` and `! deliver` are
played. Behind the last step a QUIT is answered 221, anything else 421.
A command that is not the expected one is answered `500 unexpected`, noted in `problems`, and the step waits on; so a
test that ends with `assert not provider.problems` has seen exactly the dialogue it wrote.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fnmatch
import socket
import ssl
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any


@dataclass(frozen=True, slots=True)
class Say:
    data: bytes


@dataclass(frozen=True, slots=True)
class Expect:
    pattern: str


@dataclass(frozen=True, slots=True)
class Wait:
    seconds: float


@dataclass(frozen=True, slots=True)
class Drip:
    seconds: float
    data: bytes


@dataclass(frozen=True, slots=True)
class Endless:
    at_least: int
    data: bytes


@dataclass(frozen=True, slots=True)
class StartTls:
    pass


@dataclass(frozen=True, slots=True)
class Silent:
    pass


@dataclass(frozen=True, slots=True)
class Close:
    pass


@dataclass(frozen=True, slots=True)
class Drop:
    pass


@dataclass(frozen=True, slots=True)
class Deliver:
    host: str
    port: int
    recipient: str
    messages: int
    connections: int
    pipelined: bool = False


Step = Deliver | Say | Expect | Wait | Drip | Endless | StartTls | Silent | Close | Drop
Dialogue = tuple[Step, ...]


def dialogue(text: str) -> Dialogue:
    """`text` in the form above, as steps. Raises ValueError, naming the line that is not one."""
    steps: list[Step] = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip(" \t")
        if not line or line.startswith("#"):
            continue
        kind, rest = line[:2], line[2:].removeprefix(" ")
        if kind == "S:":
            steps.append(Say(_bytes(rest) + b"\r\n"))
        elif kind == "S=":
            steps.append(Say(_bytes(rest)))
        elif kind == "C:":
            steps.append(Expect(rest.strip()))
        elif kind == "! ":
            steps.append(_order(rest, number))
        else:
            raise ValueError(f"line {number}: {line!r} is no step")
    return tuple(steps)


def _order(text: str, number: int) -> Step:
    word, _, rest = text.partition(" ")
    first, _, second = rest.partition(" ")
    match word:
        case "wait":
            return Wait(float(first))
        case "drip":
            return Drip(float(first), _bytes(second))
        case "endless":
            return Endless(int(first), _bytes(second))
        case "starttls":
            return StartTls()
        case "silent":
            return Silent()
        case "close":
            return Close()
        case "drop":
            return Drop()
        case "deliver":
            words = rest.split()
            pipelined = words[-1] == "pipelined"
            where, recipient, messages, connections = [*words[: len(words) - pipelined], "1", "1"][:4]
            host, _, port = where.rpartition(":")
            return Deliver(host, int(port), recipient, int(messages), int(connections), pipelined)
    raise ValueError(f"line {number}: {word!r} is no order")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8").decode("unicode_escape").encode("latin-1") if "\\" in text else text.encode("utf-8")


@dataclass(slots=True)
class Heard:
    """One connection: who it came from, every line the client sent, whether it ended in order, bytes said."""

    peer: str
    lines: list[str] = field(default_factory=list)
    encrypted: bool = False
    said: int = 0


class Provider:
    """The server. ``async with Provider(dialogue, ...) as provider: ... provider.port``.

    `dialogues` are steps or text. `tls` is the context of ``! starttls``; with `implicit` of every connection. What the
    clients sent lies in `heard`, one for each connection; what was not in the script in `problems`.
    """

    def __init__(
        self,
        *dialogues: Dialogue | str,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: ssl.SSLContext | None = None,
        implicit: bool = False,
    ) -> None:
        assert dialogues, "a provider without a dialogue has nothing to say"
        self._dialogues = [dialogue(item) if isinstance(item, str) else item for item in dialogues]
        self._host, self._port = host, port
        self._tls, self._implicit = tls, implicit
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.heard: list[Heard] = []
        self.problems: list[str] = []
        self.delivered: list[str] = []  # what was answered to each message that was handed over

    @property
    def port(self) -> int:
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    @property
    def commands(self) -> list[str]:
        """Every line of every connection, in order."""
        return [line for heard in self.heard for line in heard.lines]

    async def __aenter__(self) -> Provider:
        context = self._tls if self._implicit else None
        self._server = await asyncio.start_server(self._play, self._host, self._port, ssl=context, limit=1 << 20)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def settled(self) -> None:
        """Returns when every connection so far has ended."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _play(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        number = len(self.heard)
        heard = Heard(writer.get_extra_info("peername")[0], encrypted=self._implicit)
        self.heard.append(heard)
        steps = self._dialogues[min(number, len(self._dialogues) - 1)]
        try:
            hung_up = False
            for step in steps:
                if hung_up and not isinstance(step, Deliver | Wait):
                    continue
                if not await self._step(step, reader, writer, heard):
                    hung_up = isinstance(step, Close | Drop)
                    if not hung_up:
                        return
                    writer.transport.abort()
            if not hung_up:
                await self._end(reader, writer, heard)
        except (ConnectionError, ssl.SSLError, asyncio.IncompleteReadError, asyncio.CancelledError):
            return
        finally:
            writer.transport.abort()

    async def _step(self, step: Step, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, heard: Heard) -> bool:
        """Plays one step; False where the dialogue is over."""
        match step:
            case Say(data):
                await self._say(writer, heard, data)
            case Expect(pattern):
                return await self._expect(pattern, reader, writer, heard)
            case Wait(seconds):
                await asyncio.sleep(seconds)
            case Drip(seconds, data):
                for i in range(len(data)):
                    await self._say(writer, heard, data[i : i + 1])
                    await asyncio.sleep(seconds)
            case Endless(at_least, data):
                chunk = data * max(1, 65536 // len(data))
                begin = heard.said
                while heard.said - begin < at_least:
                    await self._say(writer, heard, chunk)
            case StartTls():
                assert self._tls is not None, "! starttls needs a context"
                await writer.start_tls(self._tls)
                heard.encrypted = True
            case Silent():
                while await reader.read(65536):
                    pass
                return False
            case Close():
                writer.close()
                with contextlib.suppress(ConnectionError, ssl.SSLError):
                    await writer.wait_closed()
                return False
            case Deliver():
                for number in range(step.connections):
                    task = asyncio.ensure_future(self._deliver(step, range(number, step.messages, step.connections)))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
            case Drop():
                ours = writer.get_extra_info("socket")
                ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return False
        return True

    async def _deliver(self, order: Deliver, numbers: range) -> None:
        """One connection to the site, with the messages of these numbers."""
        try:
            reader, writer = await asyncio.open_connection(order.host, order.port)
        except OSError as error:
            self.delivered.append(f"no connection: {error}")
            return

        async def answer() -> str:
            while True:
                line = (await reader.readline()).decode("latin-1").rstrip("\r\n")
                if line[3:4] != "-":
                    return line or "no answer"

        async def say(*commands: str) -> str:
            """Together; the answer that tells most: the first that is no yes, or the last."""
            writer.write("".join(f"{command}\r\n" for command in commands).encode())
            answers = [await answer() for _ in commands]
            return next((each for each in answers if each[0] not in "23"), answers[-1])

        try:
            if (greeting := await answer())[:3] != "220":
                self.delivered.append(greeting)
                return
            await say("EHLO scripted.example")
            quitted = False
            for number in numbers:
                envelope = ("MAIL FROM:<author@world.example>", f"RCPT TO:<{order.recipient}>", "DATA")
                said = "250"
                for commands in (envelope,) if order.pipelined else [(command,) for command in envelope]:
                    said = await say(*commands) if said[0] == "2" else said
                if said[0] == "3":
                    quitted = order.pipelined and number == numbers[-1]
                    head = f"Message-ID: <{number}.{id(order)}@world.example>\r\nSubject: message {number}"
                    writer.write(f"{head}\r\n\r\nHello.\r\n.\r\n".encode() + b"QUIT\r\n" * quitted)
                    said = await answer()
                self.delivered.append(said)
            await (answer() if quitted else say("QUIT"))
        except (ConnectionError, IndexError) as error:
            self.delivered.append(f"broken off: {error}")
        finally:
            writer.close()

    async def _say(self, writer: asyncio.StreamWriter, heard: Heard, data: bytes) -> None:
        writer.write(data)
        heard.said += len(data)
        await writer.drain()

    async def _expect(
        self, pattern: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, heard: Heard
    ) -> bool:
        while True:
            line = await self._hear(reader, heard)
            if line is None:
                self.problems.append(f"expected {pattern!r}, the client left")
                return False
            if fnmatch.fnmatchcase(line.upper(), pattern.upper()):
                return True
            self.problems.append(f"expected {pattern!r}, heard {line!r}")
            await self._say(writer, heard, b"500 unexpected\r\n")

    async def _end(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, heard: Heard) -> None:
        while (line := await self._hear(reader, heard)) is not None:
            if line.upper() == "QUIT":
                await self._say(writer, heard, b"221 bye\r\n")
                continue
            self.problems.append(f"after the last step: {line!r}")
            await self._say(writer, heard, b"421 the script is over\r\n")

    async def _hear(self, reader: asyncio.StreamReader, heard: Heard) -> str | None:
        raw = await reader.readline()
        if not raw:
            return None
        line = raw.rstrip(b"\r\n").decode("latin-1")
        heard.lines.append(line)
        return line


def for_nodes(text: str, nodes: Sequence[str]) -> str:
    """`text`, a ready-made dialogue, about other names: `nodes` are one or two. With one the other's exchange goes."""
    rows, kept, names = text.split("\n"), list[str](), dict(zip(_NODES, nodes, strict=False))
    foreign = False
    for row in rows:
        if row.startswith("C:"):
            foreign = any(name in row and name not in names for name in _NODES)
        if not foreign:
            kept.append(row)
    text = "\n".join(kept)
    for ready, wanted in names.items():
        text = text.replace(ready, wanted)
    return text


_NODES = ("office.example", "branch.example")


def _ready_made() -> dict[str, Any]:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from tests.reference.odd_dialogues import ODD
    from tests.reference.provider_dialogues import DIALOGUES

    return {**DIALOGUES, **ODD}


def _texts(names: Sequence[str], nodes: Sequence[str], delivery: str) -> list[str]:
    """Each name's dialogues; where the server agrees, `delivery` follows the last of them."""
    texts: list[str] = []
    ready = _ready_made()
    for name in names:
        if name not in ready:
            texts.append(Path(name).read_text("utf-8"))
            continue
        entry = ready[name]
        own = [for_nodes(text, nodes) if nodes else text for text in (entry.text, *entry.connections)]
        if entry.agrees and delivery:
            own[-1] += f"\n{delivery} {entry.calls}"
        texts += own
    return texts


async def _rehearse(texts: Sequence[str], host: str, port: int) -> None:
    async with Provider(*texts, host=host, port=port) as provider:
        print(f"listening on {host} port {provider.port}; ctrl-c ends it", flush=True)
        shown: dict[int, int] = {}
        problems = delivered = 0
        while True:
            await asyncio.sleep(0.2)
            for number, heard in enumerate(provider.heard):
                for line in heard.lines[shown.get(number, 0) :]:
                    print(f"{number}: {line}", flush=True)
                shown[number] = len(heard.lines)
            for problem in provider.problems[problems:]:
                print(f"not in the dialogue: {problem}", flush=True)
            problems = len(provider.problems)
            for answer in provider.delivered[delivered:]:
                print(f"a message was handed over, and answered: {answer}", flush=True)
            delivered = len(provider.delivered)


def main() -> None:
    parser = argparse.ArgumentParser(description="plays SMTP dialogues to whoever connects")
    parser.add_argument("dialogues", nargs="*", metavar="DIALOGUE", help="a file, or a ready-made name")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--list", action="store_true", help="name the ready-made dialogues")
    parser.add_argument("--node", action="append", default=[], help="whom they are about; once or twice")
    parser.add_argument("--deliver", metavar="HOST:PORT", help="where to bring mail once a queue was started")
    parser.add_argument("--to", metavar="ADDRESS", default="alice@office.example", help="for whom (%(default)s)")
    parser.add_argument("--messages", type=int, default=2, help="how many (%(default)s)")
    options = parser.parse_args()
    if options.list or not options.dialogues:
        for name, entry in _ready_made().items():
            print(f"{name:<32}{entry.source}")
        return
    delivery = f"! deliver {options.deliver} {options.to} {options.messages}"
    texts = _texts(options.dialogues, options.node, delivery if options.deliver else "")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_rehearse(texts, options.host, options.port))


if __name__ == "__main__":
    main()
