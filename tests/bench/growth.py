"""What the past costs: an agent with a long history, with full mailboxes, with many nodes, against one that is new.

    python tests/bench/growth.py                          # all three; about four minutes
    python tests/bench/growth.py history --messages 1000000
    python tests/bench/growth.py maildir --files 10 10000 100000
    python tests/bench/growth.py nodes --nodes 1 10 100
    python tests/bench/growth.py --short                  # small and once: whether it runs, not what it costs

The past is not lived through but written, by SQL, through the product's own schema, before the agent starts: a spool
whose memory against doubles holds every message (as if all had come within a week), and a journal with the messages,
their files, and a round for every hundred of them, over the last eighty days. Mailboxes are filled with small files in
``new/``. "take" is 4 kB messages of one open connection, until the last is filed; the sides take turns, figures are
medians of the rounds, and only ratios of one run mean anything. Nodes are asked for over a line of 20 ms each way by an
agent whose provider answers at once. Nothing else should run meanwhile. Needs smtp-source (Debian's postfix).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import sqlite3
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from siteagent.store import ledger, schema, tables
from tests.bench.loads import Cell, DelayedLine, load
from tests.bench.program import Agent
from tests.bench.sides import Trouble
from tests.e2e.net import wait_for

MESSAGES, FILES, NODES = (0, 1_000_000), (10, 10_000, 100_000), (1, 10, 100)
MESSAGES_A_ROUND = 100
ONE_WAY_SECONDS = 0.02
_DAYS = 80
_NUMBERS = "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < :count) "
_AT = "strftime('%Y-%m-%dT%H:%M:%f', :begin + i * :step, 'unixepoch') || '000Z'"

Figures = dict[str, dict[int, float]]
"""By what was measured and by how much there was."""


# --- a past -----------------------------------------------------------------------------------------------------------


def write_past(state: Path, messages: int) -> None:
    """The spool and the journal of an agent that has taken so many messages and filed them all."""
    write_memory(state, messages)
    _write_journal(state / "journal.sqlite", messages)
    os.sync()


def write_memory(state: Path, messages: int) -> None:
    """A spool that remembers so many messages of this week, and owes none."""
    state.mkdir(parents=True, exist_ok=True)
    spool = tables.connect(state)
    spool.execute("PRAGMA synchronous=OFF")
    spool.execute("BEGIN")
    spool.execute("INSERT INTO calendar VALUES (1, 0, ?)", (int(time.time()),))
    spool.execute("UPDATE numbers SET reserved = ?", (messages + 1,))
    if messages:
        rows = f"SELECT randomblob(16), 's' || (i / 10), i + 1, {_name()}, 0 FROM n"
        spool.execute(f"{_NUMBERS} INSERT INTO seen {rows}", {"count": messages})
    spool.execute("COMMIT")
    spool.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    spool.close()


def _write_journal(path: Path, messages: int) -> None:
    journal = sqlite3.connect(path, isolation_level=None)
    journal.execute("PRAGMA journal_mode=WAL")
    journal.execute("PRAGMA synchronous=OFF")
    schema.upgrade(journal, path, ledger.STEPS)
    if messages:
        begin = datetime.now(UTC) - timedelta(days=_DAYS)
        span = _DAYS * 86_400 - 3_600
        values = {"count": messages, "begin": begin.timestamp(), "step": span / messages, "each": MESSAGES_A_ROUND}
        rounds = {**values, "count": messages // MESSAGES_A_ROUND, "step": span / messages * MESSAGES_A_ROUND}
        journal.execute("BEGIN")
        for statement, given in (*((each, values) for each in _MESSAGES), *((each, rounds) for each in _ROUNDS)):
            journal.execute(_NUMBERS + statement, given)
        journal.execute(
            "UPDATE totals SET rounds = ?, messages = ?, bytes = ?", (rounds["count"], messages, messages * 4096)
        )
        journal.execute("COMMIT")
    journal.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    journal.close()


def _name() -> str:
    return "(1790000000 + i) || '.M000001P1Q' || i || 'R01234567.mail.bench.example'"


_MESSAGES = (
    "INSERT INTO messages (at, kind, message, session, provider, round, sender, recipients, bytes, wire_bytes)"
    f" SELECT {_AT}, 'accepted', {_name()}, 's' || (i / 10), 'isp', 'r' || (i / :each), 'sender@elsewhere.example',"
    " '[\"box@bench.example\"]', 4096, 4200 FROM n",
    f"INSERT INTO files SELECT {_AT}, {_name()}, 'box', {_name()} || ',S=4400,W=4500', 4400 FROM n",
)
_ROUNDS = (
    "INSERT INTO rounds (id, provider, cause, method, interface, nodes, requests, started, asked, code,"
    " first_connection, ended, outcome, sessions, messages, files, bytes, wire_bytes, seconds)"
    f" SELECT 'r' || i, 'isp', 'link', 'etrn', 'ppp0', '[\"bench.example\"]', '[]', {_AT}, {_AT}, 250, {_AT}, {_AT},"
    " 'drained', 10, :each, :each, :each * 4096, :each * 4200, 30.0 FROM n",
    f"INSERT INTO answers SELECT 'r' || i, {_AT}, 'bench.example', 'started', 250, 'queuing started', NULL, 0.1 FROM n",
    f"INSERT OR IGNORE INTO usage SELECT substr({_AT}, 1, 10), 'ppp0', 3600.0, 1000000 FROM n",
)


def history(place: Path, lengths: Sequence[int], *, rounds: int, messages: int) -> Figures:
    """Start, taking, memory and commands of an agent with so long a past."""
    figures: Figures = defaultdict(dict)
    agents = {length: Agent(place / f"history{length}") for length in lengths}
    for length, agent in agents.items():
        write_past(agent.state, length)
        size = sum(path.stat().st_size for path in agent.state.glob("*.sqlite"))
        figures["state on disk, MB"][length] = size / 1e6
    starts: dict[int, list[float]] = defaultdict(list)
    takes: dict[int, list[float]] = defaultdict(list)
    cell = Cell(4096, 1, True, messages)
    for turn in range(rounds):
        for length in lengths if turn % 2 == 0 else lengths[::-1]:
            agent = agents[length]
            agent.start()
            starts[length].append(agent.start_seconds)
            takes[length].append(cell.messages / load(agent, cell).filed)
            figures["memory (PSS), MB"][length] = agent.memory_bytes() / 1e6
            for words in ("status", "history --rounds 10", "history --messages --rounds 1", "history --cost", "queue"):
                took = agent.command(*words.split())
                before = figures[f"`siteagent {words}`, s"].get(length, took)
                figures[f"`siteagent {words}`, s"][length] = min(took, before)
            agent.stop()
    for length in lengths:
        figures["start to listening, s"][length] = median(starts[length])
        figures["take, messages/s"][length] = median(takes[length])
    return figures


# --- full mailboxes ---------------------------------------------------------------------------------------------------


def maildir(place: Path, counts: Sequence[int], *, rounds: int, messages: int) -> Figures:
    """Start and filing where so many files stand in ``new/`` already."""
    figures: Figures = defaultdict(dict)
    agents = {count: Agent(place / f"maildir{count}") for count in counts}
    for count, agent in agents.items():
        _fill(agent.directory / "box", count)
    os.sync()
    starts: dict[int, list[float]] = defaultdict(list)
    takes: dict[int, list[float]] = defaultdict(list)
    cell = Cell(4096, 1, True, messages)
    for turn in range(rounds):
        for count in counts if turn % 2 == 0 else counts[::-1]:
            agent = agents[count]
            agent.start()
            starts[count].append(agent.start_seconds)
            takes[count].append(cell.messages / load(agent, cell).filed)
            agent.stop()
    for count in counts:
        figures["start to listening, s"][count] = median(starts[count])
        figures["take, messages/s"][count] = median(takes[count])
    return figures


def _fill(box: Path, count: int) -> None:
    for name in ("tmp", "new", "cur"):
        (box / name).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (box / "new" / f"{1_790_000_000 + number}.M000001P1Q{number}R01234567.host.example,S=12,W=13").write_bytes(
            b"Subject: x\n\n"
        )


# --- many nodes -------------------------------------------------------------------------------------------------------


class Answering:
    """A provider that says yes to every ETRN, and never connects."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._socket.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as lines:
            connection.sendall(b"220 mx.isp.example ESMTP\r\n")
            for line in lines:
                verb = line[:4].upper()
                if verb == b"EHLO":
                    connection.sendall(b"250-mx.isp.example\r\n250-PIPELINING\r\n250 ETRN\r\n")
                elif verb == b"QUIT":
                    connection.sendall(b"221 bye\r\n")
                    return
                else:
                    connection.sendall(b"250 queuing started\r\n")


def nodes(place: Path, counts: Sequence[int], *, rounds: int) -> Figures:
    """From connecting to the last answer, for so many nodes of one provider."""
    figures: Figures = defaultdict(dict)
    provider = Answering()
    for count in counts:
        took, turns = [], []
        for turn in range(rounds):
            with DelayedLine.to(provider.port, delay_seconds=ONE_WAY_SECONDS) as line:
                names = [f"n{number}.bench.example" for number in range(count)]
                agent = Agent(place / f"nodes{count}-{turn}", provider_port=line.port, nodes=names)
                agent.start()
                wait_for(lambda a=agent: a.events("round.ended"), "the round", seconds=120, every=0.01)
                answers = agent.events("ask.answered")
                if len(answers) != count:
                    raise Trouble(f"{len(answers)} answers for {count} nodes")
                begin, end = (
                    datetime.fromisoformat(e["time"]) for e in (agent.events("round.started")[0], answers[-1])
                )
                took.append((end - begin).total_seconds())
                turns.append(line.turns)
                figures["start to listening, s"][count] = agent.start_seconds
                agent.stop()
        figures["ask to last answer, s"][count] = median(took)
        figures["round trips"][count] = median(turns)
    provider.close()
    return figures


# --- telling ----------------------------------------------------------------------------------------------------------


def table(of: str, figures: Figures) -> list[tuple[str, ...]]:
    """Its head first; the last column is the ratio of the most to the least."""
    counts = list(next(iter(figures.values())))
    head = (of, *(f"{count:,}" for count in counts), "ratio")
    return [
        head,
        *((what, *(_number(values[c]) for c in counts), _ratio(values, counts)) for what, values in figures.items()),
    ]


def _ratio(values: dict[int, float], counts: Sequence[int]) -> str:
    return f"{values[counts[-1]] / values[counts[0]]:.2f}" if values[counts[0]] else "-"


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def measure(what: Sequence[str], options: argparse.Namespace) -> dict[str, Figures]:
    """The chosen kinds of growth, in a directory that is gone afterwards."""
    place = Path(tempfile.mkdtemp(prefix="siteagent-bench-", dir=options.directory or "/var/tmp"))
    kinds: dict[str, Callable[[], Figures]] = {
        "history": lambda: history(place, options.messages, rounds=options.rounds, messages=options.take),
        "maildir": lambda: maildir(place, options.files, rounds=options.rounds, messages=options.take),
        "nodes": lambda: nodes(place, options.nodes, rounds=options.rounds),
    }
    try:
        return {kind: kinds[kind]() for kind in what}
    finally:
        shutil.rmtree(place, ignore_errors=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    heads = {"history": "messages behind it", "maildir": "files in new/", "nodes": "nodes of a provider"}
    parser.add_argument("what", nargs="*", choices=[*heads, []], help="default: all of them")
    parser.add_argument("--messages", type=int, nargs="+", default=list(MESSAGES), metavar="N", help="history")
    parser.add_argument("--files", type=int, nargs="+", default=list(FILES), metavar="N", help="maildir")
    parser.add_argument("--nodes", type=int, nargs="+", default=list(NODES), metavar="N", help="nodes")
    parser.add_argument("--take", type=int, default=500, metavar="N", help="messages taken each time; default: 500")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="default: 3")
    parser.add_argument("--short", action="store_true", help="small and once")
    parser.add_argument("--directory", type=Path, metavar="DIR", help="on the disk to be used; default: /var/tmp")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    options = parser.parse_args(argv)
    if options.short:
        options.messages, options.files, options.nodes = [0, 1_000], [10, 100], [1, 3]
        options.take, options.rounds = 4, 1
    try:
        measured = measure(options.what or list(heads), options)
    except Trouble as trouble:
        print(f"error: {trouble}", file=sys.stderr)
        return 1
    for kind, figures in measured.items():
        rows = table(heads[kind], figures)
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        print()
        for first, *others in rows:
            cells = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
            print(first.ljust(widths[0]), *cells, sep="  ")
    if options.json:
        options.json.write_text(json.dumps(measured, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
