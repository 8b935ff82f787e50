"""The Python sides of the benchmark, each a process of its own: `serve.py ours|nothing|stock DIRECTORY [OPTIONS]`.

OPTIONS are lines of TOML for the table `listener` of ours.

Says ``ready PORT`` when it listens. Then takes orders from its standard input: ``watch`` begins to look for stalls of
the event loop, ``longest`` ends that and says the longest one in milliseconds, the end of the input ends the process.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

DOMAIN = "bench.example"
_TICK_SECONDS = 0.001


class Stalls:
    """How late a timer of a millisecond rings: for so long nobody else was served.

    The time that the loop's thread could have run and was given no processor is taken off: on a busy machine that is
    the others' doing.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waited_file = os.open("/proc/thread-self/schedstat", os.O_RDONLY) if sys.platform == "linux" else -1
        self._waited = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self.longest = 0.0

    def watch(self) -> None:
        self.longest = 0.0
        self._again()

    def end(self) -> float:
        if self._timer is not None:
            self._look()
            self._timer.cancel()
        return self.longest

    def _again(self) -> None:
        self._waited = self._waited_so_far()
        self._due = self._loop.time() + _TICK_SECONDS
        self._timer = self._loop.call_at(self._due, self._tick)

    def _look(self) -> None:
        late = self._loop.time() - self._due
        self.longest = max(self.longest, late - (self._waited_so_far() - self._waited))

    def _waited_so_far(self) -> float:
        """Seconds that this thread has stood in a run queue (proc_pid_schedstat(5))."""
        return 0.0 if self._waited_file < 0 else int(os.pread(self._waited_file, 100, 0).split()[1]) / 1e9

    def _tick(self) -> None:
        self._look()
        self._again()


async def orders() -> None:
    """Obeys until the input ends."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    stalls = Stalls()
    while line := await reader.readline():
        match line.strip():
            case b"watch":
                stalls.watch()
                print("watching", flush=True)
            case b"longest":
                print(f"{stalls.end() * 1000:.1f}", flush=True)


# --- ours: the whole agent, as `siteagent run` runs it ----------------------------------------------------------------


class _NoLine:
    """Nobody is asked for mail: it comes by itself."""

    def lines(self, addresses: Sequence[str]) -> tuple[Any, ...]:
        return ()


def configuration(directory: Path, options: str) -> Path:
    """Written with every option at its default but `options` and those that the load itself needs."""
    path = directory / "siteagent.toml"
    path.write_text(
        f"""
hostname = "mail.{DOMAIN}"
state_directory = "{directory}/state"
[[provider]]
name = "bench"
host = "127.0.0.1"
nodes = ["{DOMAIN}"]
peers = ["127.0.0.1"]
[listener]
listen = ["127.0.0.1:0"]
{options or "max_connections_per_peer = 100"}
[[mailbox]]
name = "box"
addresses = ["@{DOMAIN}"]
maildir = "{directory}/box"
"""
    )
    return path


async def ours(directory: Path, options: str) -> None:
    from siteagent.agent.parts import Agent
    from siteagent.config import files
    from siteagent.config.sections import Configuration
    from siteagent.events import AgentReady, Event
    from siteagent.host import allocator
    from siteagent.logs import LogWriter

    allocator.settle()

    def observe(event: Event) -> None:
        if isinstance(event, AgentReady):
            print("ready", event.listening[0].rpartition(":")[2], flush=True)

    loaded = cast(Configuration, files.load(configuration(directory, options)))
    with (directory / "agent.log").open("a") as log:
        agent = Agent(loaded, log=LogWriter(log), oracle=_NoLine(), observe=observe)
        running = asyncio.create_task(agent.run())
        await asyncio.wait({running, asyncio.create_task(orders())}, return_when=asyncio.FIRST_COMPLETED)
        agent.stop("the benchmark is over")
        await running


# --- our dialect, storing nothing -------------------------------------------------------------------------------------


class _Nowhere:
    """A spool and its writer: everything is taken, nothing is kept."""

    size = 0
    backlog = 0
    on_drained: Callable[[], None] | None = None

    def body(self, envelope: object) -> _Nowhere:
        return _Nowhere()

    def write(self, data: bytes) -> None:
        self.size += len(data)

    def in_memory(self) -> Any:
        from siteagent.store.spool import Body

        return Body(self.size, 0, b"", b"")

    def discard(self) -> None:
        pass

    def room(self, bytes_wanted: int, *, keep_free: int) -> bool:
        return True

    def hand_in(self, envelope: object, body: object, then: Callable[[Any], None]) -> None:
        from siteagent.store.spool import Committed

        asyncio.get_running_loop().call_soon(then, Committed((), None))


async def nothing(directory: Path, options: str) -> None:
    from siteagent.config import sections
    from siteagent.host import allocator
    from siteagent.inbound.listener import Listener
    from siteagent.inbound.reception import Owner, Reception

    allocator.settle()
    numbers = itertools.count(1)
    reception = Reception(
        hostname=f"mail.{DOMAIN}",
        listener=sections.Listener(listen=(sections.Endpoint("127.0.0.1", 0),), max_connections_per_peer=100),
        limits=sections.Limits(),
        admit=lambda peer: None,
        owner=lambda peer: Owner(provider="bench", round=None),
        route=lambda address: "box",
        spool=cast(Any, _Nowhere()),
        emit=lambda event: None,
        tls=lambda: None,
        new_id=lambda: f"{next(numbers)}.{hashlib.sha256().hexdigest()[:8]}",
        defer_above=lambda provider: 0,
    )
    listener = Listener(reception)
    await listener.open()
    print("ready", listener.addresses[0].rpartition(":")[2], flush=True)
    await orders()
    await listener.close(seconds=1)


# --- aiosmtpd as it comes ---------------------------------------------------------------------------------------------


async def stock(directory: Path, options: str) -> None:
    import logging

    from aiosmtpd.handlers import Mailbox
    from aiosmtpd.smtp import SMTP

    logging.getLogger("mail.log").setLevel(logging.ERROR)
    loop = asyncio.get_running_loop()
    handler = Mailbox(str(directory / "box"))
    server = await loop.create_server(lambda: SMTP(handler, hostname=f"mail.{DOMAIN}", loop=loop), "127.0.0.1", 0)
    print("ready", server.sockets[0].getsockname()[1], flush=True)
    await orders()
    server.close()


def main() -> None:
    side, directory, options = sys.argv[1], Path(sys.argv[2]), "".join(sys.argv[3:])
    asyncio.run({"ours": ours, "nothing": nothing, "stock": stock}[side](directory, options))


if __name__ == "__main__":
    main()
