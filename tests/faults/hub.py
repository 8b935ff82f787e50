"""The hub's promise over power cuts: what it answered 250 for is held afterwards, or was handed to its site before.

`siteagent hub run` as a process, its state on a file system of its own whose power is cut while several senders bring
mail for two nodes and one of the nodes is being pushed to. After the cut it starts on what reached the platters, and
pushes everything: every message that was promised must come, byte for byte.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fakes import Peer
from tests.faults.disk import Ext4, disks
from tests.faults.lies import ROOT, environment, program
from tests.faults.mail import Verdict
from tests.letters import content, left_behind

OFFICE, BRANCH = "office.example", "branch.example"
SMALL, LARGE = 400, 12
TOTAL = SMALL + LARGE
SENDERS = 5


def message(seed: str, number: int) -> bytes:
    """The content of message `number`, LF line ends. Large ones get a file of their own, and so a sync of their own."""
    large = number < TOTAL and number % (TOTAL // LARGE) == 17
    return content(300_000 + number if large else 1000 + number, f"{seed}-{number}")


def nodes_of(number: int) -> tuple[str, ...]:
    return ((OFFICE,), (BRANCH,), (OFFICE, BRANCH))[number % 3]


@dataclass
class Site:
    """Both nodes' server, which takes everything. `taken`: what it answered 250 for, as (number, node)."""

    seed: str
    taken: Counter[tuple[int, str]] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    address: str = ""

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[Site]:
        server = await asyncio.start_server(self._talk, "127.0.0.1", 0, limit=2**21)
        self.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            writer.write(b"220 site.example\r\n")
            recipients: list[str] = []
            while verb := (await reader.readuntil(b"\r\n")).decode().upper().strip():
                answer = "250 ok"
                if verb.startswith("EHLO"):
                    answer = "250-site.example\r\n250-8BITMIME\r\n250 PIPELINING"
                elif verb.startswith("RCPT"):
                    recipients.append(verb.partition("@")[2].partition(">")[0].lower())
                elif verb == "DATA":
                    writer.write(b"354 go on\r\n")
                    self._take(await reader.readuntil(b"\r\n.\r\n"), recipients)
                    recipients = []
                writer.write(f"{answer}\r\n".encode())
        writer.close()

    def _take(self, wire: bytes, recipients: Iterable[str]) -> None:
        text = wire.removesuffix(b".\r\n").replace(b"\r\n", b"\n")
        found = re.search(rb"^Subject: %b-(\d+)\n" % self.seed.encode(), text, re.MULTILINE)
        if found is None or text[found.start() :] != message(self.seed, int(found[1])):
            self.broken.append(f"a broken message of {len(text)} octets came to {' and '.join(recipients)}")
            return
        self.taken.update((int(found[1]), node) for node in recipients)


class HubProcess:
    """The hub under test: its state on `disk`, its log and configuration elsewhere."""

    def __init__(self, place: Path, disk: Ext4, site: Site, *, lies: Sequence[str]) -> None:
        self.state = disk.path / "state"
        self._toml, self._log = place / "hub.toml", place / "hub.log"
        self._environment = environment(lies)
        text = f'hostname = "hub.example"\nstate_directory = "{self.state}"\n'
        text += '[listener]\nlisten = ["127.0.0.1:0"]\nmin_free_bytes = 0\n[log]\nformat = "json"\n'
        for node in (OFFICE, BRANCH):
            text += f'[[node]]\nname = "{node}"\ndomains = ["{node}"]\n'
            text += f'deliver_to = "{site.address}"\netrn_without_auth = true\n'
        self._toml.write_text(text)

    async def start(self) -> None:
        with self._log.open("wb") as log:
            words = program("--config", self._toml, "hub", "run")
            self._process = subprocess.Popen(words, cwd=ROOT, stderr=log, env=self._environment, start_new_session=True)
        (ready,) = await self.heard("hub.ready")
        self._port = int(ready["listening"][0].rpartition(":")[2])

    async def heard(self, event: str, *, count: int = 1, **values: Any) -> list[dict[str, Any]]:
        """The first `count` lines of the log about `event`, with these values in it. Waits for them."""
        async with asyncio.timeout(30):
            while True:
                lines = [line for line in self._log.read_text().splitlines(keepends=True) if line.endswith("}\n")]
                found = [entry for entry in map(json.loads, lines) if entry.get("event") == event]
                found = [entry for entry in found if values.items() <= entry.items()]
                if len(found) >= count:
                    return found[:count]
                assert self._process.poll() is None, self._log.read_text()
                await asyncio.sleep(0.02)

    async def peer(self) -> Peer:
        return await Peer(*await asyncio.open_connection("127.0.0.1", self._port)).hello()

    def kill(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(20)

    async def end(self) -> int:
        self._process.terminate()
        return await asyncio.to_thread(self._process.wait, 30)


async def bring(
    hub: HubProcess, seed: str, numbers: Iterable[int], acknowledged: set[int], *, ask_every: int = 0
) -> None:
    """One sender, message after message; `numbers` may be shared. Ends with the connection.

    With `ask_every` it starts the office's queue behind so many messages: the hub takes ten asks a minute.
    """
    with contextlib.suppress(ConnectionError, ValueError):  # an empty reply is a lost connection
        peer = await hub.peer()
        for number in numbers:
            assert await peer.code(f"MAIL FROM:<{seed}@far.example>") == 250
            for node in nodes_of(number):
                assert await peer.code(f"RCPT TO:<alice@{node}>") == 250
            assert await peer.code("DATA") == 354
            peer.send(message(seed, number).replace(b"\n", b"\r\n") + b".\r\n")
            if (answer := await peer.reply())[:3] == "250":
                acknowledged.add(number)
            assert answer[:3] in ("250", "451", ""), answer
            if ask_every and number % ask_every == 0:
                assert await peer.code(f"ETRN {OFFICE}") == 250
        await peer.close()


async def cut_under_load(hub: HubProcess, disk: Ext4, seed: str) -> set[int]:
    """What was acknowledged before the power went, at a moment that `seed` chooses."""
    chance = random.Random(seed)
    numbers, acknowledged = iter(range(TOTAL)), set[int]()
    senders = [asyncio.create_task(bring(hub, seed, numbers, acknowledged, ask_every=60)) for _ in range(SENDERS)]
    try:
        enough = chance.randint(20, TOTAL)
        async with asyncio.timeout(30):
            while len(acknowledged) < enough:
                await asyncio.sleep(0.001)
        await asyncio.sleep(chance.uniform(0, 0.02))
        promised = set(acknowledged)  # nothing is read while the cut runs: what is said in it was promised to nobody
        disk.cut()
        hub.kill()
    finally:
        for sender in senders:
            sender.cancel()
        over = await asyncio.gather(*senders, return_exceptions=True)
    assert [error for error in over if isinstance(error, AssertionError)] == []
    return promised


async def power_cut(place: Path, seed: str, *, lies: Sequence[str] = ()) -> tuple[int, Verdict]:
    """One cut on a fresh file system: how much was promised, and what the hub made of it afterwards."""
    place.mkdir()
    try:
        with disks(place, 1) as (disk,):
            async with Site(seed).open() as site:
                hub = HubProcess(place, disk, site, lies=lies)
                try:
                    await hub.start()
                    promised = await cut_under_load(hub, disk, seed)
                    disk.restore()
                    return len(promised), await recovered(hub, site, promised)
                finally:
                    hub.kill()
    finally:
        shutil.rmtree(place, ignore_errors=True)


async def recovered(hub: HubProcess, site: Site, promised: set[int]) -> Verdict:
    """The senders bring what they heard no 250 for, and some more; then both nodes are pushed to until all is gone."""
    found = Verdict()
    again, acknowledged = {number for number in range(TOTAL + 3) if number not in promised}, set[int]()
    try:
        await hub.start()
        numbers = iter(sorted(again))
        await asyncio.gather(*(bring(hub, site.seed, numbers, acknowledged) for _ in range(SENDERS)))
        if acknowledged != again:
            found.wrong.append("not everything is accepted after the start")
        await push_everything(hub)
        if await hub.end() != 0:
            found.wrong.append("the hub did not end well")
    except AssertionError as error:
        found.wrong.append(str(error) or "an answer that no hub gives")
    missing = [(n, node) for n in range(TOTAL + 3) for node in nodes_of(n) if not site.taken[n, node]]
    found.lost += [f"{number} for {node}" for number, node in missing if number in promised]
    found.wrong += [f"{number} for {node} did not come" for number, node in missing if number not in promised]
    found.wrong += [f"{name} was left behind" for name in left_behind(hub.state)]
    found.partial += site.broken
    return found


async def push_everything(hub: HubProcess) -> None:
    peer = await hub.peer()
    for node in (OFFICE, BRANCH):
        assert await peer.code(f"ETRN {node}") == 250
        await hub.heard("push.ended", node=node, left=0)
    await peer.close()
