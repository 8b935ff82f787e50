"""What long-living processes take, looked at again and again: did it grow?"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

MOST_GROWTH = 0.05
MOST_THREADS_MORE = 2  # pools make a thread when all of theirs are at work, up to a bound
LONG_ENOUGH_SECONDS = 600  # below it, caches that fill and threads that are made at need outweigh what leaks


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at a process at rest."""

    at: float
    descriptors: int
    threads: int
    resident: int

    @classmethod
    def of(cls, pid: int, at: float) -> Sample:
        status = Path(f"/proc/{pid}/status").read_text()

        def field_of(name: str) -> int:
            return int(status.partition(f"\n{name}:")[2].split()[0])

        return cls(at, len(os.listdir(f"/proc/{pid}/fd")), field_of("Threads"), field_of("VmRSS") * 1024)


@dataclass
class Report:
    """What the run was, and what it saw."""

    seed: int
    seconds: float = 0.0
    cycles: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)
    samples: dict[str, list[Sample]] = field(default_factory=lambda: {"steady agent": [], "hub": []})
    problems: list[str] = field(default_factory=list)
    sent: int = 0
    filed: int = 0

    def document(self) -> dict[str, Any]:
        """For JSON. (`dataclasses.asdict` makes no Counter out of a Counter.)"""
        samples = {who: [asdict(one) for one in those] for who, those in self.samples.items()}
        counted = {name: dict(getattr(self, name)) for name in ("cycles", "outcomes", "events")}
        return {**vars(self), **counted, "samples": samples}

    def windows(self, who: str) -> list[tuple[str, float, float, float]]:
        """(when, descriptors, threads, octets) at the start, in the middle and at the end."""
        found = []
        for when, begin, end in (("start", 0.05, 0.15), ("middle", 0.45, 0.55), ("end", 0.90, 1.01)):
            inside = [one for one in self.samples[who] if begin <= one.at / self.seconds < end] or self.samples[who]
            columns = ([getattr(one, name) for one in inside] for name in ("descriptors", "threads", "resident"))
            descriptors, threads, octets = (median(column or [0]) for column in map(list, columns))
            found.append((when, descriptors, threads, octets))
        return found

    def growth(self) -> list[str]:
        """What grew by more than may be."""
        grown = []
        for who in self.samples:
            start, _, end = self.windows(who)
            looked_at = {"descriptors": 1}
            if self.seconds >= LONG_ENOUGH_SECONDS:
                looked_at |= {"threads": 2, "memory": 3}
            for what, column in looked_at.items():
                some = MOST_THREADS_MORE if what == "threads" else 0
                if end[column] > start[column] * (1 + MOST_GROWTH) + some:
                    grown.append(f"{who}: {what} grew from {start[column]:.0f} to {end[column]:.0f}")
        return grown


def tell(report: Report) -> None:
    total = sum(report.cycles.values())
    print(f"\nseed {report.seed}; {report.seconds / 60:.1f} minutes, {total} cycles: {_list(report.cycles)}")
    print(f"rounds: {_list(report.outcomes)}")
    print(
        f"{report.sent} messages sent, {report.filed} files; {report.events['message.duplicate']} came twice and were"
    )
    print(f"filed once; {report.events['filing.failed']} times a mailbox could not be written\n")
    print(f"{'':14}{'':8}{'descriptors':>12}{'threads':>9}{'memory':>11}")
    for who in report.samples:
        for when, descriptors, threads, octets in report.windows(who):
            print(f"{who:14}{when:8}{descriptors:12.0f}{threads:9.0f}{octets / (1 << 20):7.1f} MiB")
    print()
    for problem in report.problems:
        print(f"PROBLEM {problem}")
    print(f"{len(report.problems)} problems")


def _list(counted: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counted.most_common())
