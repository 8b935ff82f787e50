"""A site for tests: one configuration on loopback, an agent of it in this process, and providers that a script plays.

Nothing waits for real: windows are fractions of a second, and the line is a switch.
"""

from __future__ import annotations

import asyncio
import io
import smtplib
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from siteagent.agent.parts import Agent
from siteagent.config import files
from siteagent.config.sections import Configuration, LogLevel
from siteagent.events import Event, Line
from siteagent.logs import LogWriter
from tests import scripted

NODE = "office.example"
ALICE = f"alice@{NODE}"
LO = Line("demo0", "127.0.0.1")


def conversation(*replies: tuple[str, str]) -> str:
    """A session of a provider: greeting, EHLO, then (command, reply) in turn; QUIT is understood."""
    lines = ["S: 220 mx.isp.example ESMTP", "C: EHLO *", "S: 250-mx.isp.example", "S: 250-ETRN", "S: 250 8BITMIME"]
    for command, reply in replies:
        lines += [f"C: {command}", f"S: {reply}"]
    return "\n".join(lines)


STARTED = conversation(("ETRN *", "250 Queuing started"))
NOTHING = conversation(("ETRN *", "251 no messages waiting"))
REFUSED = conversation(("ETRN *", "459 node not allowed: authenticate first"))
FAILED = "S: 421 too busy\n! close"


def free_port() -> int:
    """A port that nobody has at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        port: int = held.getsockname()[1]
        return port


def _value(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(_value(item) for item in value)}]"
    return f'"{value}"' if isinstance(value, str | Path) else str(value)


def _table(head: str, values: Mapping[str, object]) -> str:
    return "\n".join([head, *(f"{key} = {_value(value)}" for key, value in values.items())])


def provider(name: str = "isp", **options: object) -> dict[str, object]:
    """A table of [[provider]]; `port` is wanted. It asks when it is told to, and never by itself a second time."""
    return {
        "name": name,
        "host": "127.0.0.1",
        "nodes": [NODE],
        "tls": "off",
        "first_connection_seconds": 0.2,
        "quiet_seconds": 0.15,
        "ask_every_seconds": 0,
        "retry_seconds": [0, 300],
        **options,
    }


def write(
    directory: Path,
    *providers: Mapping[str, object],
    listen: Sequence[str] = ("127.0.0.1:0",),
    top: Mapping[str, object] | None = None,
    listener: Mapping[str, object] | None = None,
    link: Mapping[str, object] | None = None,
    more: str = "",
    mailbox: bool = True,
) -> Path:
    """The configuration file of the site in `directory`, written in one step."""
    (directory / "mail").mkdir(exist_ok=True)
    parts = [
        _table("", {"hostname": "mail.office.example", "state_directory": "state", **(top or {})}),
        _table("[link]", {"settle_seconds": 0, "backend": "poll", "hook_directory": "hints", **(link or {})}),
        *(_table("[[provider]]", one) for one in providers),
        _table("[listener]", {"listen": list(listen), **(listener or {})}),
        more,
    ]
    if mailbox:
        parts.append(_table("[[mailbox]]", {"name": "alice", "addresses": [ALICE], "maildir": "mail/alice"}))
    path = directory / "siteagent.toml"
    fresh = directory / ".siteagent.toml.new"
    fresh.write_text("\n".join(parts) + "\n")
    fresh.replace(path)
    return path


class Switch:
    """The line, as the agent's oracle."""

    def __init__(self, *, up: bool = True) -> None:
        self.up = up

    def lines(self, addresses: Sequence[str]) -> tuple[Line, ...]:
        return (LO,) if self.up else ()


class Site:
    """A running agent, and what it said."""

    def __init__(self, agent: Agent, events: list[Event], log: io.StringIO, writer: LogWriter, switch: Switch) -> None:
        self.agent = agent
        self.events = events
        self._log = log
        self._writer = writer
        self.switch = switch

    @property
    def log(self) -> str:
        self.agent.teller.tell()
        self._writer.flush()
        return self._log.getvalue()

    @property
    def port(self) -> int:
        assert self.agent.listener is not None
        return int(self.agent.listener.addresses[0].rpartition(":")[2])

    def of(self, name: str) -> list[Any]:
        self.agent.teller.tell()  # what happened just now may wait for more
        return [event for event in self.events if event.name == name]

    async def until(self, condition: Callable[[], object], *, seconds: float = 10) -> None:
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.005)

    async def ended(self, count: int = 1) -> Any:
        """The round.ended with that number."""
        await self.until(lambda: len(self.of("round.ended")) >= count)
        return self.of("round.ended")[count - 1]

    async def bring(self, *subjects: str, to: str = ALICE) -> None:
        """Mail for the site, as a provider brings it: one connection."""
        await asyncio.to_thread(bring, self.port, *subjects, to=to)

    def filed(self) -> list[bytes]:
        return filed(self.agent.configuration)


def filed(configuration: Configuration) -> list[bytes]:
    """What lies in the first Maildir."""
    return [path.read_bytes() for path in sorted((configuration.mailbox[0].maildir / "new").glob("*"))]


def bring(port: int, *subjects: str, to: str = ALICE) -> None:
    with smtplib.SMTP("127.0.0.1", port, local_hostname="mx.isp.example", timeout=10) as client:
        for subject in subjects:
            client.sendmail("friend@far.example", [to], f"Subject: {subject}\r\n\r\nHello.\r\n")


@asynccontextmanager
async def site(path: Path, *, up: bool = True, **options: Any) -> AsyncIterator[Site]:
    """The agent of the configuration at `path`, ready; ended when the block is."""
    log, events, switch = io.StringIO(), [], Switch(up=up)
    writer = LogWriter(log, level=LogLevel.DEBUG)
    agent = Agent(
        files.load(path),
        log=writer,
        observe=events.append,
        oracle=switch,
        **options,
    )
    made = Site(agent, events, log, writer, switch)
    running = asyncio.ensure_future(agent.run())
    ready = asyncio.ensure_future(agent.ready.wait())
    await asyncio.wait({running, ready}, return_when=asyncio.FIRST_COMPLETED, timeout=20)
    ready.cancel()
    if running.done():
        running.result()
    try:
        yield made
    finally:
        agent.stop("the test is over")
        await asyncio.wait_for(running, 60)


def at(path: Path, scene: Callable[[Site], Awaitable[None]], **options: Any) -> None:
    """Runs `scene` with the agent of the configuration at `path`."""

    async def work() -> None:
        async with site(path, **options) as made:
            await scene(made)

    asyncio.run(work())


class Played:
    """A provider in a thread of its own, for commands that block. `heard`: what it was told."""

    def __init__(self, server: scripted.Provider) -> None:
        self._server = server
        self.port = server.port
        self.trouble: list[BaseException] = []

    @property
    def heard(self) -> list[str]:
        return self._server.commands

    @property
    def connections(self) -> int:
        return len(self._server.heard)


@contextmanager
def played(*dialogues: str, then: Callable[[], None] | None = None) -> Iterator[Played]:
    """`then` runs in a thread once the provider was asked: it may bring mail."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server = scripted.Provider(*dialogues)
    asyncio.run_coroutine_threadsafe(server.__aenter__(), loop).result(10)
    made = Played(server)
    over = threading.Event()

    def follow() -> None:
        while not over.wait(0.01):
            if any(line.startswith("ETRN") for line in server.commands):
                time.sleep(0.03)  # the answer is out by then
                try:
                    assert then is not None
                    then()
                except BaseException as error:
                    made.trouble.append(error)
                return

    follower = threading.Thread(target=follow, daemon=True)
    if then is not None:
        follower.start()
    try:
        yield made
    finally:
        over.set()
        if then is not None:
            follower.join(10)
        asyncio.run_coroutine_threadsafe(server.__aexit__(None, None, None), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
    if made.trouble:
        raise made.trouble[0]


class Background:
    """An agent that runs while the test calls commands: its own thread, its own loop."""

    def __init__(self) -> None:
        self.site: Site | None = None

    def call(self, work: Callable[[Site], Any]) -> Any:
        """Runs `work` on the agent's loop."""

        async def there() -> Any:
            assert self.site is not None
            return work(self.site)

        return asyncio.run_coroutine_threadsafe(there(), self.loop).result(10)

    loop: asyncio.AbstractEventLoop


@contextmanager
def running(path: Path, **options: Any) -> Iterator[Background]:
    """The agent of the configuration at `path` in a thread."""
    made = Background()
    begun, over = threading.Event(), threading.Event()
    trouble: list[BaseException] = []

    async def life() -> None:
        made.loop = asyncio.get_running_loop()
        ending = asyncio.Event()
        made.end = lambda: made.loop.call_soon_threadsafe(ending.set)  # type: ignore[attr-defined]
        async with site(path, **options) as one:
            made.site = one
            begun.set()
            await ending.wait()

    def work() -> None:
        try:
            asyncio.run(life())
        except BaseException as error:
            trouble.append(error)
        finally:
            begun.set()
            over.set()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert begun.wait(20)
    if trouble:
        raise trouble[0]
    try:
        yield made
    finally:
        made.end()  # type: ignore[attr-defined]
        assert over.wait(60)
        thread.join(5)
    if trouble:
        raise trouble[0]
