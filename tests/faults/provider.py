"""A provider for the lab: holds letters, hands them over when it is asked, and remembers which it heard a 250 for.

It asks for nothing that RFC 5321 does not give it: what was answered 4yz, or not at all, it sends again when it is
next asked, in a session of its own; what was answered 250 it forgets; a 5yz would be a bounce.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

from tests.e2e.trust import Trust
from tests.fakes import Peer
from tests.faults.mail import DOMAIN, Letter

METHODS = ("etrn", "atrn")
_NOT_HEARD = ""


@cache
def trust() -> Trust:
    """Whom a site trusts that asks by ATRN: it sends no password where it knows nobody. Made once a process."""
    place = tempfile.TemporaryDirectory(prefix="siteagent-faults-")
    made = Trust(Path(place.name))
    made.kept = place  # type: ignore[attr-defined]
    return made


class Provider:
    """`letters` wait. By ETRN it hands over in so many `connections` at a time, by ATRN in the one it was asked on.

    While `gate` is closed nobody who asks is greeted; `visited` says that somebody came. While `hatch` is closed the
    sessions that hand over wait behind their EHLO; `arrived` says that one does. Before each message it rests for the
    seconds that `pace` says.
    """

    def __init__(self, letters: Iterable[Letter] = (), *, method: str = "etrn", connections: int = 1) -> None:
        self.method = method
        self.waiting = deque(letters)
        self.deferred: list[tuple[Letter, str]] = []
        self.acknowledged: dict[int, str] = {}
        self.bounced: list[str] = []
        self.gate, self.visited = asyncio.Event(), asyncio.Event()
        self.hatch, self.arrived = asyncio.Event(), asyncio.Event()
        self.gate.set()
        self.hatch.set()
        self.site: Callable[[], str] = str
        self.pace: Callable[[], float] = float
        self.port = 0
        self._connections = connections
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Provider]:
        tls: ssl.SSLContext | None = None
        if self.method == "atrn":
            tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            tls.load_cert_chain(*trust().certificate("127.0.0.1"))
        server = await asyncio.start_server(self._asked, "127.0.0.1", 0, ssl=tls)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def at_work(self) -> bool:
        """Whether it hands something over now."""
        return any(not task.done() for task in self._tasks)

    async def push(self, letter: Letter) -> str:
        """Hands over one letter, unasked. Returns the reply, "" where the connection ended before there was one."""
        self.waiting.append(letter)
        await self._connect()
        found = [reply for deferred, reply in self.deferred if deferred is letter]
        return self.acknowledged.get(letter.number) or (found[-1] if found else "bounced")

    # --- asked --------------------------------------------------------------------------------------------------------

    async def _asked(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.visited.set()
        await self.gate.wait()
        peer = Peer(reader, writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            peer.send(b"220 mx.isp.example ESMTP\r\n")
            while verb := (await reader.readuntil(b"\r\n")).decode().upper().split()[0]:
                await self._answer(verb, peer)
                if verb in ("QUIT", "ATRN"):
                    break
        writer.close()

    async def _answer(self, verb: str, peer: Peer) -> None:
        match verb:
            case "EHLO":
                peer.send(b"250-mx.isp.example\r\n250-ETRN\r\n250-ATRN\r\n250 AUTH PLAIN\r\n")
            case "AUTH":
                peer.send(b"235 welcome\r\n")
            case "ETRN":
                self._take_up()
                peer.send(b"250 queuing started\r\n")
                for _ in range(self._connections):
                    self._begin(self._connect())
            case "ATRN":
                self._take_up()
                peer.send(b"250 now reversing\r\n")
                self._begin(self._hand_over(peer))
                await asyncio.gather(*self._tasks, return_exceptions=True)
            case _:
                peer.send(b"221 bye\r\n" if verb == "QUIT" else b"250 ok\r\n")

    def _take_up(self) -> None:
        self.waiting.extend(letter for letter, _ in self.deferred)
        self.deferred.clear()

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- handing over -------------------------------------------------------------------------------------------------

    async def _connect(self) -> None:
        host, _, port = self.site().rpartition(":")
        with contextlib.suppress(ConnectionError):
            await self._hand_over(Peer(*await asyncio.open_connection(host, int(port), limit=2**20)))

    async def _hand_over(self, peer: Peer) -> None:
        with contextlib.suppress(ConnectionError, AssertionError):  # no greeting: it comes again when asked again
            await peer.hello()
            self.arrived.set()
            await self.hatch.wait()
            while self.waiting:
                await asyncio.sleep(self.pace())
                if not self.waiting:
                    break
                letter = self.waiting.popleft()
                reply = _NOT_HEARD
                try:
                    reply = await transaction(peer, letter)
                except (ConnectionError, asyncio.IncompleteReadError):
                    return
                finally:
                    self._heard(letter, reply)
                if reply[:3] in (_NOT_HEARD, "421"):
                    return
            await peer.say("QUIT")
        await peer.close()

    def _heard(self, letter: Letter, reply: str) -> None:
        if reply[:1] == "2":
            self.acknowledged[letter.number] = reply
        elif reply[:1] == "5":
            self.bounced.append(f"{letter.number}: {reply}")
        else:
            self.deferred.append((letter, reply))


async def transaction(peer: Peer, letter: Letter) -> str:
    """One message; the reply that decided over it, "" where the connection ended before."""
    wire = letter.content.replace(b"\n", b"\r\n")
    said = await peer.say(f"MAIL FROM:<author@{letter.seed}.example> SIZE={len(wire)}")
    for box in letter.boxes:
        said = await peer.say(f"RCPT TO:<{box}@{DOMAIN}>") if said[:1] == "2" else said
    if said[:1] == "2" and letter.shape.chunked:
        half = len(wire) // 2
        peer.send(b"BDAT %d\r\n" % half + wire[:half])
        if (said := await peer.reply())[:1] == "2":
            peer.send(b"BDAT %d LAST\r\n" % (len(wire) - half) + wire[half:])
            said = await peer.reply()
    elif said[:1] == "2" and (said := await peer.say("DATA"))[:1] == "3":
        peer.send(wire + b".\r\n")
        said = await peer.reply()
    if said[:1] == "4" and said[:3] != "421":
        await peer.say("RSET")
    return said
