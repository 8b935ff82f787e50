"""What every command of the lab shares: its seed, its table, and the exit code that says whether anything is wrong."""

from __future__ import annotations

import argparse
import random
import signal
import time
from collections.abc import Iterable, Sequence

from tests.faults.mail import Verdict


def parser(description: str) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=description, epilog="exit: 0 where nothing is wrong, 1 where something is, 2 for usage"
    )
    made.add_argument("--seed", default=None, help="the moments and shapes that chance chooses; printed")
    return made


def begin(options: argparse.Namespace) -> str:
    """The seed given, or a fresh one; printed, so that the run can be had again.

    From here on SIGTERM ends the run as ctrl-c does: what it has mounted and started goes with it.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    seed = options.seed if options.seed is not None else f"{random.SystemRandom().randrange(1_000_000):06}"
    print(f"seed {seed}", flush=True)
    return str(seed)


def show(head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    texts = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    for row in texts:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip(), flush=True)


def end(verdict: Verdict, begun: float) -> int:
    """Says what was found, and returns the exit code."""
    for sentence in verdict.sentences[:50]:
        print(sentence)
    print(
        f"{len(verdict.lost)} lost, {len(verdict.partial)} partial, {len(verdict.doubled)} doubled, "
        f"{len(verdict.wrong)} otherwise wrong; {time.monotonic() - begun:.0f} s",
        flush=True,
    )
    return 1 if verdict else 0
