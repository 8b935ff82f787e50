"""Reads from a log of system calls in which order the agent made its promises true.

Messages of all shapes come in over several connections while strace looks on. The spool's log is written anew from
what was written to it, so that for every transaction it is known which messages it made and which it was done with.
For every message, and every mailbox that it is for:

  250          its transaction was synced before the 250 was said, and the file that it names before the transaction,
               with the directory that the file stands in
  publish      its file was synced, after the last write to it, before it was renamed into new/
  row          new/ was synced, after that, before the transaction that is done with the mailbox
"""

from __future__ import annotations

import argparse
import asyncio
import re
import shutil
import sqlite3
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults import strace, table
from tests.faults.agent import AgentProcess
from tests.faults.lies import LIES
from tests.faults.mail import SHAPES, Verdict, judge, letters
from tests.faults.provider import Provider
from tests.faults.strace import Call, paths_in

_TRACED = "openat,write,writev,pwrite64,fsync,fdatasync,rename,renameat,renameat2,sendto,sendmsg"
_FRAME, _PAGE = 24, 4096
_SAID = re.compile(r"250 2\.0\.0 ok, kept as ([A-Za-z0-9.-]+)")
_CONNECTIONS = 4

Owed = frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Commit:
    """A transaction in the spool's log: the place of its last write, and (message, mailbox) owed from it on."""

    written: int
    owed: Owed


class Replay:
    """The spool's database, rebuilt from the frames that were written to its log (sqlite.org/fileformat2.html §4)."""

    def __init__(self, state: Path) -> None:
        """From a quiet spool: a copy with its log moved into it."""
        with tempfile.TemporaryDirectory() as place:
            for name in ("spool.sqlite", "spool.sqlite-wal"):
                if (state / name).exists():
                    shutil.copy(state / name, place)
            copy = sqlite3.connect(Path(place) / "spool.sqlite")
            copy.execute("PRAGMA journal_mode=DELETE")
            copy.close()
            image = (Path(place) / "spool.sqlite").read_bytes()
        assert struct.unpack(">H", image[16:18])[0] == _PAGE
        self._pages = {at // _PAGE + 1: image[at : at + _PAGE] for at in range(0, len(image), _PAGE)}

    def commits(self, calls: Sequence[Call]) -> Iterator[Commit]:
        number = size = 0
        fresh: dict[int, bytes] = {}
        for call in calls:
            if call.name != "pwrite64" or not any(
                path.endswith("/spool.sqlite-wal") for path in paths_in(call.arguments)
            ):
                continue
            data, octets = _written(call.arguments)
            if octets == _FRAME:
                number, size = struct.unpack(">II", data[:8])
            elif octets == _PAGE:
                fresh[number] = data
                if size:  # the frame that ends a transaction
                    self._pages |= fresh
                    fresh = {}
                    yield Commit(call.begun, self._owed(size))

    def _owed(self, size: int) -> Owed:
        first = bytearray(self._pages[1])
        first[18:20] = b"\x01\x01"  # not in WAL mode: a database in memory has no log
        image = bytes(first) + b"".join(self._pages.get(number, bytes(_PAGE)) for number in range(2, size + 1))
        with sqlite3.connect(":memory:") as database:
            database.deserialize(image)
            query = "SELECT name, target FROM message JOIN delivery ON delivery.message = message.id"
            return frozenset(database.execute(query).fetchall())


def _written(arguments: str) -> tuple[bytes, int]:
    """The octets and the count of a pwrite64."""
    _, _, rest = arguments.partition(', "')
    text, _, numbers = rest.rpartition('", ')
    return text.encode("latin-1"), int(numbers.split(",")[0])


@dataclass
class Order:
    """The log's calls by what they were done to, and the laws."""

    calls: Sequence[Call]
    commits: Sequence[Commit]
    violations: list[str] = field(default_factory=list)
    checked: Counter[str] = field(default_factory=Counter)
    _syncs: dict[str, list[Call]] = field(default_factory=dict)
    _writes: dict[str, list[Call]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for call in self.calls:
            path = next(paths_in(call.arguments), "")
            if call.name in ("fsync", "fdatasync") and not call.failed:
                self._syncs.setdefault(path, []).append(call)
            elif call.name in ("writev", "pwrite64", "write"):
                self._writes.setdefault(path, []).append(call)

    def judge(self) -> None:
        made, done = _lives(self.commits)
        for call in self.calls:
            if call.name in ("sendto", "sendmsg"):
                for message in _SAID.findall(call.arguments):
                    self._promise(message, call, made)
            elif call.name.startswith("rename") and not call.failed:
                self._publication(call, done)

    def _promise(self, message: str, said: Call, made: Mapping[str, int]) -> None:
        commit = made.get(message)
        if commit is None:
            self.violations.append(f"250 for {message}, which no transaction made")
            return
        wal = next(path for path in self._writes if path.endswith("/spool.sqlite-wal"))
        self._law("250", self._synced(wal, commit, said.begun), f"250 for {message} before its transaction was synced")
        for path, written in self._writes.items():
            if path.endswith(f"/{message}"):  # without ,S=: the file of a large one, which the transaction names
                last = max(call.done for call in written if call.begun < commit)
                self._law(
                    "250", self._synced(path, last, commit), f"{message}: its file was not synced before its row was"
                )
                folder = path.rpartition("/")[0]
                first = min(call.begun for call in written)
                self._law("250", self._synced(folder, first, commit), f"{message}: its file's directory was not synced")

    def _publication(self, rename: Call, done: Mapping[tuple[str, str], int]) -> None:
        source, target = _moved(rename)
        folder = target.rpartition("/")[0]
        if not folder.endswith("/new"):
            return
        message, mailbox = target.rpartition("/")[2].partition(",")[0], folder.split("/")[-2]
        written = self._writes.get(source, [])
        last = max((call.done for call in written), default=-1)
        synced = bool(written) and self._synced(source, last, rename.begun)
        self._law("publish", synced, f"{message} was published for {mailbox} before its file was synced")
        end = done.get((message, mailbox))
        if end is None:
            self.violations.append(f"{message} for {mailbox} was never done with")
        else:
            what = f"the spool was done with {message} for {mailbox} before new/ was synced"
            self._law("row", self._synced(folder, rename.done, end), what)

    def _synced(self, path: str, after: int, before: int) -> bool:
        """Whether a sync of `path` was begun behind the one place in the log and had ended before the other."""
        return any(after < call.begun and call.done < before for call in self._syncs.get(path, []))

    def _law(self, name: str, holds: bool, what: str) -> None:
        self.checked[name] += 1
        if not holds:
            self.violations.append(what)


def _lives(commits: Sequence[Commit]) -> tuple[dict[str, int], dict[tuple[str, str], int]]:
    """The place where each message was first owed, and where each of its mailboxes was no longer."""
    made: dict[str, int] = {}
    done: dict[tuple[str, str], int] = {}
    before: Owed = frozenset()
    for commit in commits:
        for message, _ in commit.owed - before:
            made.setdefault(message, commit.written)
        done |= dict.fromkeys(before - commit.owed, commit.written)
        before = commit.owed
    return made, done


def _moved(rename: Call) -> tuple[str, str]:
    """Whole paths of a renameat's two names."""
    names = re.findall(r'"([^"]*)"', rename.arguments)
    if folders := [*paths_in(rename.arguments)]:
        names = [f"{folder}/{name}" for folder, name in zip(folders, names, strict=True)]
    source, target = names
    return source, target


@dataclass(frozen=True)
class Watched:
    messages: int
    checked: Counter[str]
    violations: list[str]
    verdict: Verdict


async def watch(place: Path, seed: str, count: int, *, lies: Sequence[str] = ()) -> Watched:
    """`count` messages in all shapes under strace, and what its log says."""
    sent = letters(seed, count)
    provider = Provider(sent, connections=_CONNECTIONS)
    provider.gate.clear()
    log = place / "strace.log"
    async with provider.open():
        agent = AgentProcess(place / "site", provider, lies=lies)
        try:
            await agent.start()
            await provider.visited.wait()
            replay = Replay(agent.state)
            options = ("-xx", "-s", str(_PAGE + 100), "-e", f"trace={_TRACED}")
            async with strace.attached(agent.pid, log, *options):
                provider.gate.set()
                await agent.until(lambda: len(provider.acknowledged) == count, "every 250", seconds=120)
                await agent.filed()
            verdict = judge(agent.mail, sent, sent)
        finally:
            agent.kill()
    calls = strace.calls(log)
    log.unlink()
    order = Order(calls, [*replay.commits(calls)])
    order.judge()
    wanted = {
        "250": sum(3 if letter.shape.large else 1 for letter in sent),
        "publish": sum(len(letter.boxes) for letter in sent),
        "row": sum(len(letter.boxes) for letter in sent),
    }
    if order.checked != wanted:
        verdict.wrong.append(f"the log shows {dict(order.checked)} of {wanted}")
    return Watched(count, order.checked, order.violations, verdict)


HEAD = ("messages", "syncs", "before the 250", "before publishing", "before the row is done", "violations")


def cells(watched: Watched, lie: str = "") -> list[object]:
    checked = watched.checked
    figures = [checked["250"], checked["publish"], checked["row"], len(watched.violations)]
    return [watched.messages, LIES[lie] if lie else "as it is", *figures]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = table.parser(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--messages", type=int, default=200, help=f"in {len(SHAPES)} shapes (200)")
    parser.add_argument("--controls", type=int, default=16, metavar="MESSAGES", help="of each control; 0: none (16)")
    options = parser.parse_args(arguments)
    seed, begun = table.begin(options), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="siteagent-order-") as place:
        honest = asyncio.run(watch(Path(place), seed, options.messages))
        controls = {
            lie: asyncio.run(watch(Path(place), f"{seed}{lie}", options.controls, lies=[lie]))
            for lie in LIES
            if options.controls
        }
    table.show(HEAD, [cells(honest), *(cells(watched, lie) for lie, watched in controls.items())])
    honest.verdict.wrong += honest.violations
    honest.verdict.wrong += [f"{LIES[lie]} is not seen" for lie, watched in controls.items() if not watched.violations]
    return table.end(honest.verdict, begun)


if __name__ == "__main__":
    sys.exit(main())
