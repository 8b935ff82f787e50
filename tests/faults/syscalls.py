"""Ends the agent at a system call, or makes one fail, and looks at what became of the mail: `kills` and `errors`."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.faults import errors, kills, table
from tests.faults.mail import Verdict


def main(arguments: Sequence[str] | None = None) -> int:
    parser = table.parser(f"{kills.__doc__}\n{errors.__doc__}")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--passes", type=int, default=1, help="how often each call and moment, in other shapes (1)")
    parser.add_argument("--calls", nargs="+", choices=kills.CALLS, default=kills.CALLS, help="of the kills")
    parser.add_argument("--only", choices=("kills", "errors"))
    parser.add_argument("--sample", type=int, default=0, metavar="N", help="so many of each, by chance; 0: all")
    options = parser.parse_args(arguments)
    seed, begun = table.begin(options), time.monotonic()
    chance, verdict = random.Random(seed), Verdict()
    deaths = kills.points(seed, calls=options.calls, passes=options.passes) if options.only != "errors" else []
    failures = errors.points() if options.only != "kills" else []
    if options.sample:
        deaths = chance.sample(deaths, min(options.sample, len(deaths)))
        failures = chance.sample(failures, min(options.sample, len(failures)))
    with tempfile.TemporaryDirectory(prefix="siteagent-calls-") as place:
        killed = kills.run(Path(place), seed, deaths)
        failed = errors.run(Path(place), seed, failures)
    kills.show(deaths[: len(killed)], killed)
    errors.show(failures, failed)
    for found in [*(one.verdict for one in killed), *(one.verdict for one in failed)]:
        verdict.take(found)
    if len(killed) < len(deaths):
        verdict.wrong.append(f"only {len(killed)} of {len(deaths)} kills")
    return table.end(verdict, begun)


if __name__ == "__main__":
    sys.exit(main())
