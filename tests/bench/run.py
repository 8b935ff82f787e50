"""Every figure in one table: receiving, pushing, asking, starting, resting, and what the past costs.

    python tests/bench/run.py                       # about three quarters of an hour; nothing else should run
    python tests/bench/run.py --parts start past    # some of it
    python tests/bench/run.py --write               # also into docs/performance.md, with machine, date and command;
                                                    # with --parts these sections alone, the others stay
    python tests/bench/run.py --short               # each thing once and small: whether it runs, not how fast

The parts are commands of their own, beside this one, and each says in its --help how it measures: receive.py, push.py,
hub_queue.py, asking.py, startup.py, growth.py. Here they run one after another, and what they found goes into one
table: ours, what it is compared with in the same run, and the ratio, ours to theirs. Absolute figures depend on the
machine; ratios do so less. Needs what the parts need: root, Debian's postfix, a C compiler.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "docs" / "performance.md"
BEGIN, END = "<!-- figures: printed by tests/bench/run.py --write -->", "<!-- end of figures -->"
HEAD = ("", "siteagent", "compared with", "", "ratio")


@dataclass(frozen=True, slots=True)
class Row:
    """One figure: ours, whose it is compared with, and theirs. Without `theirs` it stands for itself."""

    what: str
    ours: float
    beside: str = ""
    theirs: float | None = None

    def cells(self) -> tuple[str, ...]:
        if self.theirs is None:
            return (self.what, number(self.ours), "", "", "")
        ratio = f"{self.ours / self.theirs:.2f}" if self.theirs else "-"
        return (self.what, number(self.ours), self.beside, number(self.theirs), ratio)


@dataclass(frozen=True, slots=True)
class Part:
    """Commands beside this one, in full and in short, and what their output says. `json`: they write a document."""

    title: str
    commands: tuple[str, ...]
    tell: Callable[[Any], Iterator[Row]]
    short: tuple[str, ...] = ()
    json: bool = True


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


# --- what the parts found ---------------------------------------------------------------------------------------------


def receive(found: dict[str, Any]) -> Iterator[Row]:
    """`taken` has for "CELL, SIDE" one [promised, filed, cpu, memory] a round; the loads of a cell are the same."""
    taken: dict[str, dict[str, list[list[float]]]] = {}
    for key, values in found["taken"].items():
        cell, _, side = key.rpartition(", ")
        taken.setdefault(cell, {})[side] = values
    for cell, sides in taken.items():
        ours = sides.pop("ours")
        for side, beside in (("postfix", "Postfix"), ("stock", "plain aiosmtpd"), ("nothing", "ours, keeping nothing")):
            if side in sides:
                yield Row(f"{cell}: until all is filed, s", _median(ours, 1), beside, _median(sides[side], 1))
        if "postfix" in sides:
            yield Row(f"{cell}: until the last 250, s", _median(ours, 0), "Postfix", _median(sides["postfix"], 0))
            yield Row(f"{cell}: CPU, s", _median(ours, 2), "Postfix", _median(sides["postfix"], 2))


def _median(rounds: Sequence[Sequence[float]], column: int) -> float:
    return median(one[column] for one in rounds)


def push(found: list[dict[str, Any]]) -> Iterator[Row]:
    for connections in sorted({one["connections"] for one in found}):
        rates: dict[str, float] = {}
        for side in ("hub", "postfix"):
            own = [one for one in found if (one["side"], one["connections"]) == (side, connections)]
            if own:
                rates[side] = median(one["messages"] / one["filed"] for one in own)
        yield Row(
            f"pushed into a site by {connections} connections, messages/s",
            rates["hub"],
            "Postfix",
            rates.get("postfix"),
        )


def hub_queue(found: list[dict[str, Any]]) -> Iterator[Row]:
    least = min(found, key=lambda cost: cost["messages"])
    for cost in found:
        held = f"{cost['messages']:,} held for {cost['nodes']:,} nodes"
        beside = f"{least['messages']:,} held"
        for what, value in (
            ("start to listening, s", lambda c: c["start"]),
            ("memory (RSS), MB", lambda c: c["memory"] / 1e6),
            ("ETRN answer, median, ms", lambda c: median(c["answers"]) * 1000),
            ("push begins after it, median, ms", lambda c: median(c["pushes"]) * 1000),
        ):
            theirs = None if cost is least else value(least)
            yield Row(f"{held}: {what}", value(cost), beside if theirs is not None else "", theirs)


def asking(said: str) -> Iterator[Row]:
    latency = re.search(r"link-up to ETRN.*median (\S+) ms, p95 (\S+) ms", said)
    drain = re.search(r"siteagent (\S+) s, bare sink (\S+) s", said)
    if latency:
        yield Row("link-up to ETRN on the wire, settle time taken off, median, ms", float(latency[1]))
        yield Row("the same, p95, ms", float(latency[2]))
    if drain:
        yield Row(
            "line up to all of fifty messages filed, s", float(drain[1]), "a sink that keeps nothing", float(drain[2])
        )


def startup(found: dict[str, dict[str, float]]) -> Iterator[Row]:
    theirs = found.get("postfix", {})
    bare = found["libraries"]
    for side in ("agent", "hub"):
        for what, value in found[side].items():
            yield Row(f"{side}: {what}", value, "Postfix", theirs.get(what))
            if bare.get(what) and not what.startswith("idle"):
                yield Row(f"{side}: {what}", value, "the bare libraries", bare[what])


def growth(found: dict[str, dict[str, dict[str, float]]]) -> Iterator[Row]:
    units = {"history": "messages behind it", "maildir": "files in new/", "nodes": "nodes of a provider"}
    for kind, figures in found.items():
        for what, values in figures.items():
            counts = sorted(values, key=int)
            for count in counts[1:]:
                beside = f"with {int(counts[0]):,}"
                yield Row(f"{int(count):,} {units[kind]}: {what}", values[count], beside, values[counts[0]])


PARTS = {
    "receive": Part(
        "Receiving into Maildirs (tests/bench/receive.py)",
        ("receive.py --rounds 5",),
        receive,
        ("receive.py --short",),
    ),
    "push": Part("The hub pushes (tests/bench/push.py)", ("push.py --rounds 3",), push, ("push.py --short",)),
    "queue": Part(
        "The hub holds (tests/bench/hub_queue.py)",
        ("hub_queue.py --messages 1000 100000",),
        hub_queue,
        ("hub_queue.py --short",),
    ),
    "ask": Part(
        "Asking (tests/bench/asking.py)",
        ("asking.py latency --times 30", "asking.py drain --times 3"),
        asking,
        ("asking.py latency --times 2",),
        json=False,
    ),
    "start": Part("Starting and resting (tests/bench/startup.py)", ("startup.py",), startup, ("startup.py --short",)),
    "past": Part(
        "What the past costs (tests/bench/growth.py history)",
        ("growth.py history",),
        growth,
        ("growth.py history --short",),
    ),
    "mailboxes": Part(
        "What full mailboxes cost (tests/bench/growth.py maildir)",
        ("growth.py maildir",),
        growth,
        ("growth.py maildir --short",),
    ),
    "nodes": Part(
        "What many nodes cost (tests/bench/growth.py nodes)", ("growth.py nodes",), growth, ("growth.py nodes --short",)
    ),
}


def measure(part: Part, *, short: bool) -> list[Row]:
    """Runs the part's commands. Raises RuntimeError where one fails."""
    rows: list[Row] = []
    for command in part.short if short else part.commands:
        name, *arguments = command.split()
        _say(f"{command} ...")
        with tempfile.TemporaryDirectory(prefix="siteagent-bench-") as place:
            document = Path(place) / "document"
            more = ["--json", str(document)] if part.json else []
            argv = [sys.executable, str(HERE / name), *arguments, *more]
            done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True)
            if done.returncode != 0:
                raise RuntimeError(f"{command}: exit code {done.returncode}: {done.stderr.strip()[-500:]}")
            rows += part.tell(json.loads(document.read_text()) if part.json else done.stdout)
    return rows


# --- telling ----------------------------------------------------------------------------------------------------------


def machine() -> str:
    """What it was measured on, without a name."""
    processor = re.search(r"^model name\s*:\s*(.+)$", _text("/proc/cpuinfo"), re.MULTILINE)
    memory = re.search(r"^MemTotal:\s*(\d+)", _text("/proc/meminfo"), re.MULTILINE)
    parts = [
        f"{os.cpu_count()} cores of {processor[1].strip() if processor else platform.machine()}",
        f"{int(memory[1]) / 1e6:.0f} GB of memory" if memory else "",
        f"{platform.system()} {platform.release().split('-')[0]}",
        f"Python {platform.python_version()}",
    ]
    return ", ".join(part for part in parts if part)


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def printed(found: dict[str, list[Row]]) -> str:
    """The table for a terminal."""
    lines = [HEAD, *(row.cells() for rows in found.values() for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]
    text = ""
    for name, rows in found.items():
        text += f"\n{PARTS[name].title}\n"
        for line in (HEAD, *(row.cells() for row in rows)):
            what, ours, beside, theirs, ratio = (cell.ljust(w) for cell, w in zip(line, widths, strict=True))
            text += (
                f"  {what}  {ours.strip():>{widths[1]}}  {beside}  {theirs.strip():>{widths[3]}}  {ratio}".rstrip()
                + "\n"
            )
    return text


def sections(found: dict[str, list[Row]], *, day: str, load: float) -> dict[str, str]:
    """The same as Markdown, by title, each with what was run, when, on what, and how busy that was with other work."""
    made = {}
    for name, rows in found.items():
        text = f"`python tests/bench/run.py --parts {name}`, {day}, {machine()}, load {load:.1f} before it began.\n\n"
        text += f"| {' | '.join(HEAD)} |\n|---|---:|---|---:|---:|\n"
        made[PARTS[name].title] = text + "".join(f"| {' | '.join(row.cells())} |\n" for row in rows)
    return made


def write(made: dict[str, str], path: Path = PAGE) -> None:
    """Puts the sections between their marks; others that are there, and what is written by hand, stay."""
    before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    kept, mark, after = rest.partition(END)
    if not mark:
        raise RuntimeError(f"{path.name} has no place for the figures: {BEGIN}")
    there = {title: body.strip() + "\n" for title, body in re.findall(r"^## (.+)\n([^#]+)", kept, re.MULTILINE)}
    there |= made
    titles = [part.title for part in PARTS.values() if part.title in there]
    text = "\n".join(f"## {title}\n\n{there[title]}" for title in titles)
    path.write_text(f"{before}{BEGIN}\n{text}{END}{after}", encoding="utf-8")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="default: all of them")
    parser.add_argument("--short", action="store_true", help="each thing once and small")
    parser.add_argument("--write", action="store_true", help="also into docs/performance.md")
    options = parser.parse_args(argv)
    if options.short and options.write:
        parser.error("--short measures nothing that could be written down")
    load = os.getloadavg()[0]
    found: dict[str, list[Row]] = {}
    failed = False
    for name in options.parts:
        try:
            found[name] = measure(PARTS[name], short=options.short)
        except RuntimeError as problem:
            failed = True
            print(f"error: {problem}", file=sys.stderr)
    print(printed(found))
    if options.write:
        write(sections(found, day=f"{datetime.now(UTC):%Y-%m-%d}", load=load))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
