"""How soon it listens, and what it takes when nothing happens: agent, hub and Postfix, on loopback, in one run.

Beside them a bare interpreter that has imported asyncio, aiosmtpd and aiosmtplib.

    python tests/bench/startup.py                # ten starts each, and half a minute of rest
    python tests/bench/startup.py --short        # each once: whether it runs, not how fast

"start" is from the order to start until the port answers. Memory is taken after one message, with every process of a
side counted: RSS of each, and PSS, which divides what they share among them. "idle" is the share of one core over the
rest. The sides take turns; figures are medians. Nothing else should run meanwhile. Needs smtp-source, and Postfix (and
root) for the side of that name.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.bench.loads import Cell, load
from tests.bench.program import Agent, Hub, Libraries
from tests.bench.sides import Postfix, Side, Trouble

ONE = Cell(4096, 1, False, 1)


def resident_bytes(side: Side) -> int:
    """RSS of all its processes together; what they share is counted for each."""
    texts = [Path(f"/proc/{pid}/status").read_text() for pid in side.pids()]
    return sum(int(text.partition("VmRSS:")[2].split()[0]) * 1024 for text in texts)


def measure(place: Path, *, starts: int, seconds: float) -> dict[str, dict[str, float]]:
    """By side and by figure."""
    kinds: dict[str, type[Side]] = {"agent": Agent, "hub": Hub, "libraries": Libraries}
    if (reason := Postfix.missing()) is None:
        kinds["postfix"] = Postfix
    else:
        print(f"without Postfix: {reason}", file=sys.stderr)
    took: dict[str, list[float]] = defaultdict(list)
    for turn in range(starts):
        for name, kind in list(kinds.items())[:: 1 if turn % 2 == 0 else -1]:
            side = kind(place / f"{name}{turn}")
            began = time.perf_counter()
            side.start()
            took[name].append(time.perf_counter() - began)
            side.stop()
    return {
        name: {"start, s": median(took[name]), **_at_rest(kind(place / name), seconds)} for name, kind in kinds.items()
    }


def _at_rest(side: Side, seconds: float) -> dict[str, float]:
    side.start()
    try:
        if side.port:
            load(side, ONE)
        time.sleep(min(2.0, seconds))  # what follows a message is not rest
        before = _on_a_core(side)
        time.sleep(seconds)
        idle = (_on_a_core(side) - before) / seconds
        return {
            "memory (RSS), MB": resident_bytes(side) / 1e6,
            "memory (PSS), MB": side.memory_bytes() / 1e6,
            "idle, % of a core": idle * 100,
        }
    finally:
        side.stop()


def _on_a_core(side: Side) -> float:
    """Seconds that the threads of all its processes were running, to the nanosecond (proc(5), schedstat)."""
    files = [path for pid in side.pids() for path in Path(f"/proc/{pid}/task").glob("*/schedstat")]
    return sum(int(path.read_text().split()[0]) for path in files) / 1e9


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--starts", type=int, default=10, metavar="N", help="default: 10")
    parser.add_argument("--seconds", type=float, default=30, metavar="N", help="of rest; default: 30")
    parser.add_argument("--short", action="store_true", help="each once")
    parser.add_argument("--directory", type=Path, metavar="DIR", help="on the disk to be used; default: /var/tmp")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    options = parser.parse_args(argv)
    if options.short:
        options.starts, options.seconds = 1, 0.5
    place = Path(tempfile.mkdtemp(prefix="siteagent-bench-", dir=options.directory or "/var/tmp"))
    place.chmod(0o755)  # Postfix gives up its rights and must still get here
    try:
        measured = measure(place, starts=options.starts, seconds=options.seconds)
    except Trouble as trouble:
        print(f"error: {trouble}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(place, ignore_errors=True)
    print(f"{'':20}" + "".join(f"{name:>10}" for name in measured))
    for figure in next(iter(measured.values())):
        print(f"{figure:20}" + "".join(f"{values[figure]:10.2f}" for values in measured.values()))
    if options.json:
        options.json.write_text(json.dumps(measured, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
