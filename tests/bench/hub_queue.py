"""What a hub costs by what it holds: start-up, memory, and ETRN, for many nodes and a long queue.

    python tests/bench/hub_queue.py                        # 1,000 nodes; 1,000, 10,000 and 100,000 messages of 4 kB
    python tests/bench/hub_queue.py --messages 10000       # one length of the queue
    python tests/bench/hub_queue.py --short                # small and once: whether it runs, not how fast

The queue is made by writing the spool's own rows, 100 messages to a node, before the hub starts: `siteagent hub run`
with its defaults, a process of its own. Then one node after another is asked for by ETRN, each over a connection of
its own from another address of loopback, and its push goes to a site that takes everything. "answer" is from the last
octet of the command to the answer; "push" from there to the first MAIL at the site. In a second pass all the rest of
the nodes is asked for at once, while their pushes run. "idle CPU" is the share of one core over a few seconds in
which nothing happens.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from siteagent.store import owed, tables
from siteagent.store.body import Body, Envelope
from tests.bench.sides import Trouble, environment
from tests.bench.site import Site
from tests.e2e.net import wait_for

ROOT = Path(__file__).resolve().parents[2]
OCTETS = 4096
A_NODE = 100
_TICKS = os.sysconf("SC_CLK_TCK")
_ROWS_A_TRANSACTION = 5_000


@dataclass
class Cost:
    """Of one length of the queue. Seconds and octets; a list has one value an ask."""

    nodes: int
    messages: int
    start: float = 0.0
    start_cpu: float = 0.0
    opened: float = 0.0
    memory: int = 0
    memory_alone: int = 0
    memory_most: int = 0
    idle_cpu: float = 0.0
    answers: list[float] = field(default_factory=list)
    pushes: list[float] = field(default_factory=list)
    busy_answers: list[float] = field(default_factory=list)
    pushed_a_second: float = 0.0


def node_name(number: int) -> str:
    return f"n{number:04}.example"


# --- making a queue ---------------------------------------------------------------------------------------------------


def make_queue(state: Path, messages: int, *, nodes: int, octets: int = OCTETS) -> int:
    """A spool that holds `messages` of `octets`; how many nodes have some: 100 each, as they come in by turns."""
    filled = max(1, min(nodes, messages // A_NODE))
    state.mkdir(parents=True)
    state.chmod(0o755)
    content = b"Subject: held\n\n" + (b"x" * 71 + b"\n") * (octets // 72)
    connection = tables.connect(state)
    try:
        connection.execute("PRAGMA synchronous=OFF")
        for begin in range(0, messages, _ROWS_A_TRANSACTION):
            numbers = range(begin, min(messages, begin + _ROWS_A_TRANSACTION))
            connection.execute("BEGIN IMMEDIATE")
            owed.insert_all(connection, [_message(n, node_name(n % filled), content) for n in numbers])
            connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        connection.close()
    os.sync()
    return filled


def _message(number: int, node: str, content: bytes) -> owed.Message:
    address = f"alice@{node}"
    envelope = Envelope(
        message=f"{1_700_000_000_000_000 + number}P1Q{number}R0",
        session="bench",
        provider=None,
        round=None,
        sender="friend@far.example",
        recipients=((address, node),),
        received=b"Received: from far.example\n\tby hub.example; Sun, 22 Nov 2026 08:00:00 +0000\n",
        smtputf8=False,
        eight_bit=False,
    )
    body = Body(len(content), 0, b"", content)
    return owed.Message(number + 1, envelope, body, datetime.now(UTC), {node: [address]})


# --- a hub ------------------------------------------------------------------------------------------------------------


class Hub:
    """`siteagent hub run` as a process, on the queue that was made."""

    def __init__(self, place: Path, *, nodes: int, site_port: int) -> None:
        self.place = place
        self.log = place / "hub.log"
        text = f'hostname = "hub.example"\nstate_directory = "{place}/state"\n'
        text += '[listener]\nlisten = ["127.0.0.1:0"]\nmax_connections = 2000\n[log]\nformat = "json"\n'
        for number in range(nodes):
            name = node_name(number)
            text += f'[[node]]\nname = "{name}"\ndomains = ["{name}"]\n'
            text += f'deliver_to = "127.0.0.1:{site_port}"\netrn_without_auth = true\nmax_connections = 1\n'
        self.configuration = place / "hub.toml"
        self.configuration.write_text(text)

    def __enter__(self) -> Hub:
        self.began = time.monotonic()
        argv = [sys.executable, "-m", "siteagent", "--config", str(self.configuration), "hub", "run"]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(argv, cwd=ROOT, stderr=log, env=environment())
        (ready,) = wait_for(lambda: self.events("hub.ready"), "hub.ready", seconds=120, every=0.005)
        self.start_seconds = time.monotonic() - self.began
        self.start_cpu_seconds = self.cpu_seconds()
        self.ready = ready
        self.port = int(ready["listening"][0].rpartition(":")[2])
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(60)

    @property
    def pid(self) -> int:
        return self._process.pid

    def events(self, name: str) -> list[dict[str, Any]]:
        lines = self.log.read_bytes().splitlines(keepends=True)
        return [json.loads(line) for line in lines if f'"{name}"'.encode() in line and line.endswith(b"\n")]

    def memory(self) -> tuple[int, int]:
        """What it holds of its own and shared (RSS), now and at most, in octets."""
        text = Path(f"/proc/{self.pid}/status").read_text()
        now, most = (int(text.partition(f"{key}:")[2].split()[0]) * 1024 for key in ("VmRSS", "VmHWM"))
        return now, most

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:13])) / _TICKS


class Asker:
    """One connection to the hub, from an address of its own: ten asks a minute are allowed to each."""

    def __init__(self, port: int, number: int) -> None:
        source = f"127.1.{number // 250}.{number % 250 + 1}"
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=60, source_address=(source, 0))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self._socket.makefile("rb")
        self._file.readline()
        self._socket.sendall(b"EHLO site.example\r\n")
        while self._file.readline()[3:4] == b"-":
            pass

    def etrn(self, node: str) -> tuple[float, float]:
        """Seconds until the answer, and when that was."""
        began = time.monotonic()
        self._socket.sendall(f"ETRN {node}\r\n".encode())
        answer = self._file.readline()
        ended = time.monotonic()
        if not answer.startswith(b"250"):
            raise Trouble(f"ETRN {node}: {answer.decode(errors='replace').strip()}")
        return ended - began, ended

    def close(self) -> None:
        self._file.close()
        self._socket.close()


# --- measuring --------------------------------------------------------------------------------------------------------


def measure(place: Path, *, messages: int, nodes: int, asks: int, idle_seconds: float = 5.0) -> Cost:
    """All figures of one length of the queue. `asks` of the filled nodes one by one, the others at once."""
    cost = Cost(nodes, messages)
    filled = make_queue(place / "state", messages, nodes=nodes)
    with Site() as site, Hub(place, nodes=nodes, site_port=site.port) as hub:
        cost.start, cost.start_cpu, cost.opened = hub.start_seconds, hub.start_cpu_seconds, hub.ready["seconds"]
        if hub.ready["messages"] != messages:
            raise Trouble(f"the hub knows of {hub.ready['messages']} messages and not of {messages}")
        time.sleep(1.0)
        cost.memory, _ = hub.memory()
        before = hub.cpu_seconds()
        time.sleep(idle_seconds)
        cost.idle_cpu = (hub.cpu_seconds() - before) / idle_seconds
        alone = min(asks, filled)
        for number in range(alone):
            _ask_one(hub, site, number, cost)
        _, cost.memory_alone = hub.memory()
        _ask_the_rest(hub, range(alone, filled), cost, messages // filled)
        pushed = sum(event["messages"] for event in hub.events("push.ended"))
        if pushed != messages:
            raise Trouble(f"{pushed} of {messages} messages were pushed")
        _, cost.memory_most = hub.memory()
    return cost


def _ask_one(hub: Hub, site: Site, number: int, cost: Cost) -> None:
    asker = Asker(hub.port, number)
    took, answered = asker.etrn(node_name(number))
    word, at, _ = site.lines.readline().split(None, 2)
    assert word == "first"
    cost.answers.append(took)
    cost.pushes.append(float(at) - answered)
    wait_for(lambda: len(hub.events("push.ended")) > number, "push.ended", seconds=60, every=0.005)
    asker.close()


def _ask_the_rest(hub: Hub, numbers: range, cost: Cost, each: int) -> None:
    if not numbers:
        return
    done = len(hub.events("push.ended")) + len(numbers)
    askers = [Asker(hub.port, number) for number in numbers]
    began = time.monotonic()
    for asker, number in zip(askers, numbers, strict=True):
        cost.busy_answers.append(asker.etrn(node_name(number))[0])
    wait_for(lambda: len(hub.events("push.ended")) >= done, "all pushes", seconds=300, every=0.1)
    cost.pushed_a_second = len(numbers) * each / (time.monotonic() - began)
    for asker in askers:
        asker.close()


# --- telling ----------------------------------------------------------------------------------------------------------


def rows(costs: Sequence[Cost]) -> list[tuple[str, ...]]:
    """The table, its head first: a line a figure, a column a length."""
    head = ("messages held", *(f"{cost.messages:,}" for cost in costs))
    figures = (
        ("start to listening, s", lambda c: f"{c.start:.2f}"),
        ("  of it the hub's own, s", lambda c: f"{c.opened:.2f}"),
        ("  CPU until then, s", lambda c: f"{c.start_cpu:.2f}"),
        ("memory (RSS), MB", lambda c: f"{c.memory / 1e6:.0f}"),
        ("  at most, one push after the other, MB", lambda c: f"{c.memory_alone / 1e6:.0f}"),
        ("  at most, when all had pushed, MB", lambda c: f"{c.memory_most / 1e6:.0f}"),
        ("idle CPU, % of a core", lambda c: f"{c.idle_cpu * 100:.1f}"),
        ("ETRN answer, median, ms", lambda c: _ms(c.answers, 50)),
        ("  p99, ms", lambda c: _ms(c.answers, 99)),
        ("push begins behind it, median, ms", lambda c: _ms(c.pushes, 50)),
        ("  p99, ms", lambda c: _ms(c.pushes, 99)),
        ("ETRN answer while all push, median, ms", lambda c: _ms(c.busy_answers, 50)),
        ("  p99, ms", lambda c: _ms(c.busy_answers, 99)),
        ("pushed meanwhile, messages a second", lambda c: f"{c.pushed_a_second:.0f}" if c.busy_answers else "-"),
    )
    return [head, *((name, *(tell(cost) for cost in costs)) for name, tell in figures)]


def _ms(values: Sequence[float], percent: int) -> str:
    if not values:
        return "-"
    ordered = sorted(values)
    value = median(ordered) if percent == 50 else ordered[-(-len(ordered) * percent // 100) - 1]
    return f"{value * 1000:.1f}"


def run(lengths: Sequence[int], *, nodes: int, asks: int, directory: Path | None = None) -> list[Cost]:
    """Every length, each in a directory of its own that is gone afterwards."""
    costs = []
    for messages in lengths:
        place = Path(tempfile.mkdtemp(prefix="siteagent-bench-", dir=directory or "/var/tmp"))
        try:
            print(f"{messages:,} messages", file=sys.stderr, flush=True)
            costs.append(measure(place, messages=messages, nodes=nodes, asks=asks))
        finally:
            shutil.rmtree(place, ignore_errors=True)
    return costs


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--messages", type=int, nargs="+", default=[1_000, 10_000, 100_000], metavar="N")
    parser.add_argument("--nodes", type=int, default=1_000, metavar="N", help="default: 1000")
    parser.add_argument("--asks", type=int, default=300, metavar="N", help="one by one, at most; default: 300")
    parser.add_argument("--short", action="store_true", help="small and once")
    parser.add_argument("--directory", type=Path, metavar="DIR", help="on the disk to be used; default: /var/tmp")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every single value there")
    options = parser.parse_args(argv)
    if options.short:
        options.messages, options.nodes, options.asks = [500], 20, 2
    try:
        costs = run(options.messages, nodes=options.nodes, asks=options.asks, directory=options.directory)
    except Trouble as trouble:
        print(f"error: {trouble}", file=sys.stderr)
        return 1
    lines = rows(costs)
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    print(f"{options.nodes:,} nodes, messages of {OCTETS:,} octets, {A_NODE} to a node")
    for first, *others in lines:
        cells = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        print(first.ljust(widths[0]), *cells, sep="  ")
    if options.json:
        options.json.write_text(json.dumps([asdict(cost) for cost in costs], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
