"""How fast mail is taken in: ours against Postfix, stock aiosmtpd, our dialect storing nothing, and the bare disk.

    python tests/bench/receive.py                 # everything, five rounds: about a quarter of an hour
    python tests/bench/receive.py --cells 4k      # the cells whose name begins so
    python tests/bench/receive.py --short         # each thing once and small: whether it runs, not how fast

All sides run at once and are loaded one after another, in another order each round; every figure is the median of the
rounds, and only ratios of one run mean anything. "promised" is the time until the last 250, "filed" until the last file
stands in ``new/``. The disk (tmp write, fsync, rename, directory fsync, by a C program) is measured before and after
each load of ours. Nothing else should run meanwhile. Needs smtp-source and, for the side of that name, Postfix, which
needs root, and for the disk a C compiler.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.bench.loads import Cell, Disk, Taken, load, round_trips, smtp_source, touch
from tests.bench.sides import Postfix, Served, Side, Trouble, running

_KB, _MB = 1 << 10, 1 << 20
_SIDES = ("ours", "postfix", "stock", "nothing")
CELLS = tuple(
    Cell(size, sessions, is_open, messages)
    for size, sessions, messages in (
        (4 * _KB, 1, 300),
        (4 * _KB, 10, 1000),
        (4 * _KB, 40, 1000),
        (_MB, 4, 80),
        (10 * _MB, 2, 12),
    )
    for is_open in (False, True)
)
_SHORT_MESSAGES = 4
_MOST_TOUCHED = 12 << 30


@dataclass
class Figures:
    """What was seen, by (cell, side): one value a round each."""

    taken: dict[tuple[str, str], list[Taken]] = field(default_factory=lambda: defaultdict(list))
    disk: dict[tuple[str, int], list[float]] = field(default_factory=lambda: defaultdict(list))
    stalls: dict[str, float] = field(default_factory=dict)
    trips: dict[str, float | None] = field(default_factory=dict)

    def rate(self, cell: Cell, side: str, what: str = "filed") -> float | None:
        """Messages a second."""
        taken = self.taken.get((cell.name, side))
        return cell.messages / median(getattr(one, what) for one in taken) if taken else None

    def cpu(self, cell: Cell, side: str) -> float | None:
        """CPU seconds per 1,000 messages."""
        taken = self.taken.get((cell.name, side))
        return median(one.cpu for one in taken) / cell.messages * 1000 if taken else None

    def memory(self, side: str) -> int:
        return max(
            (one.memory for (_, name), all_of in self.taken.items() if name == side for one in all_of), default=0
        )

    def disk_rate(self, cell: Cell, threads: int) -> float | None:
        rates = self.disk.get((cell.name, threads))
        return median(rates) if rates else None


def measure(options: argparse.Namespace, sides: Sequence[Side], cells: Sequence[Cell], place: Path) -> Figures:
    figures = Figures()
    disk = None if shutil.which("cc") is None else Disk(place / "disk")
    if disk is None:
        _say("without the disk: there is no C compiler (cc)")
    for number in range(options.rounds):
        for cell in cells:
            turn = number % len(sides)
            for side in [*sides[turn:], *sides[:turn]]:
                ours = side.name == "ours"
                if ours:
                    _measure_disk(figures, disk, cell)
                figures.taken[cell.name, side.name].append(load(side, cell))
                if ours:
                    _measure_disk(figures, disk, cell)
            _say(f"round {number + 1} of {options.rounds}: {cell.name}")
    for side in sides:
        _say(f"stalls and round trips of {side.name}")
        _measure_manners(figures, side, cells, options)
    return figures


def _measure_disk(figures: Figures, disk: Disk | None, cell: Cell) -> None:
    for threads in (1, 10) if disk is not None else ():
        figures.disk[cell.name, threads].append(disk.files_a_second(cell, threads))


def _measure_manners(figures: Figures, side: Side, cells: Sequence[Cell], options: argparse.Namespace) -> None:
    """The longest stall over one more load of each kind, and what a message costs on a line with a delay."""
    if isinstance(side, Served):
        side.watch()
        for cell in cells:
            load(side, cell)
        figures.stalls[side.name] = side.longest_stall()
    for bdat in (False, True):
        figures.trips[f"{side.name}{' BDAT' if bdat else ''}"] = round_trips(
            side, delay_seconds=options.delay / 1000, messages=_SHORT_MESSAGES, bdat=bdat
        )


# --- tables -----------------------------------------------------------------------------------------------------------


def tell(figures: Figures, sides: Sequence[Side], cells: Sequence[Cell]) -> None:
    names = [side.name for side in sides]
    print("\nmessages a second (size / sessions, open: connections kept open)")
    _table(
        ["", "ours promised", *(f"{name} filed" for name in names), "disk 1", "disk 10"],
        (
            [
                cell.name,
                _number(figures.rate(cell, "ours", "promised")),
                *(_number(figures.rate(cell, name)) for name in names),
                *(_number(figures.disk_rate(cell, threads)) for threads in (1, 10)),
            ]
            for cell in cells
        ),
    )
    print("\nours as a multiple of (the limit: storing nothing or the disk, whichever is lower)")
    _table(
        ["", "postfix", "stock", "the limit", "promised: postfix", "promised: stock"],
        (
            [
                cell.name,
                *(_ratio(figures.rate(cell, "ours"), figures.rate(cell, name)) for name in ("postfix", "stock")),
                _ratio(figures.rate(cell, "ours"), _limit(figures, cell)),
                *(
                    _ratio(figures.rate(cell, "ours", "promised"), figures.rate(cell, name))
                    for name in ("postfix", "stock")
                ),
            ]
            for cell in cells
        ),
    )
    print("\nCPU seconds per 1,000 messages, all processes of a side")
    _table(
        ["", *names, "ours / postfix"],
        (
            [
                cell.name,
                *(_number(figures.cpu(cell, name)) for name in names),
                _ratio(figures.cpu(cell, "ours"), figures.cpu(cell, "postfix")),
            ]
            for cell in cells
        ),
    )
    print("\nmost memory, longest stall of the event loop, round trips a message on one connection")
    _table(
        ["", "memory", "stall", "round trips", "with BDAT"],
        (
            [
                name,
                f"{figures.memory(name) / _MB:.0f} MiB",
                f"{figures.stalls[name]:.0f} ms" if name in figures.stalls else "-",
                _number(figures.trips.get(name)),
                _number(figures.trips.get(f"{name} BDAT")),
            ]
            for name in names
        ),
    )


def _limit(figures: Figures, cell: Cell) -> float | None:
    disk = [rate for threads in (1, 10) if (rate := figures.disk_rate(cell, threads)) is not None]
    nothing = figures.rate(cell, "nothing")
    return min(max(disk), nothing) if disk and nothing else None


def _ratio(ours: float | None, theirs: float | None) -> str:
    return f"{ours / theirs:.2f}" if ours and theirs else "-"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    for line in lines:
        first, *rest = line
        print(
            first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)), sep="  "
        )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# --- the command line -------------------------------------------------------------------------------------------------


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--short", action="store_true", help="each thing once and small")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="default: 5")
    parser.add_argument("--cells", default="", metavar="NAME", help='beginning of the names, such as "4 kB / 10"')
    parser.add_argument("--sides", default=",".join(_SIDES), metavar="A,B", help=f"default: {','.join(_SIDES)}")
    parser.add_argument("--delay", type=float, default=300, metavar="MS", help="one way, for round trips; default: 300")
    parser.add_argument("--directory", type=Path, metavar="DIR", help="on the disk to be measured; default: /var/tmp")
    parser.add_argument("--no-touch", action="store_true", help="do not use memory and disk once before measuring")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every single value there")
    return parser.parse_args(argv)


def _chosen(options: argparse.Namespace, place: Path) -> list[Side]:
    sides: list[Side] = []
    for name in options.sides.split(","):
        if name not in _SIDES:
            raise Trouble(f"there is no side {name}")
        if name != "postfix":
            sides.append(Served(name, place / name))
        elif reason := Postfix.missing():
            _say(f"without Postfix: {reason}")
        else:
            sides.append(Postfix(place / name))
    return sides


def _write(path: Path, figures: Figures) -> None:
    document = {
        "taken": {
            f"{cell}, {side}": [[one.promised, one.filed, one.cpu, one.memory] for one in taken]
            for (cell, side), taken in figures.taken.items()
        },
        "disk": {f"{cell}, {threads}": rates for (cell, threads), rates in figures.disk.items()},
        "stalls": figures.stalls,
        "trips": figures.trips,
    }
    path.write_text(json.dumps(document, indent=1))


def main(argv: Sequence[str] | None = None) -> int:
    options = _options(argv)
    cells = [cell for cell in CELLS if cell.name.replace(" ", "").startswith(options.cells.replace(" ", ""))]
    if options.short:
        options.rounds, options.delay, options.no_touch = 1, 5, True
        cells = [Cell(cell.bytes, min(cell.sessions, 2), cell.open, _SHORT_MESSAGES) for cell in (cells[1], cells[6])]
    if smtp_source() is None:
        print("needs smtp-source (Debian's package postfix)", file=sys.stderr)
        return 78
    place = Path(tempfile.mkdtemp(prefix="siteagent-bench-", dir=options.directory or "/var/tmp"))
    place.chmod(0o755)  # Postfix gives up its rights and must still get here
    try:
        if not options.no_touch:
            written = sum(cell.bytes * cell.messages for cell in cells) * options.rounds * 8
            free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
            octets = min(written, free * 6 // 10, shutil.disk_usage(place).free // 2, _MOST_TOUCHED)
            _say(f"touching {octets >> 20} MiB of memory and disk")
            touch(place, octets)
        sides = _chosen(options, place)
        with running(*sides):
            figures = measure(options, sides, cells, place)
        tell(figures, sides, cells)
        if options.json:
            _write(options.json, figures)
    except Trouble as trouble:
        print(f"error: {trouble}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
