"""The soak for a few cycles: whether descriptors and mail add up. An hour of it is run by hand."""

from __future__ import annotations

import os
import random

import pytest
from tests.faults import soak
from tests.faults.growth import MOST_GROWTH, Report, Sample, tell


def growing(**last: float) -> Report:
    """A report of an hour in which the hub's last samples are so many times the first ones."""
    report = Report(seed=0, seconds=3600.0)
    for who, samples in report.samples.items():
        for second in range(0, 3600, 10):
            times = {name: factor for name, factor in last.items() if who == "hub" and second > 3000}
            values = {"descriptors": 20, "threads": 10, "resident": 40 << 20}
            samples.append(Sample(second, **{name: round(v * times.get(name, 1)) for name, v in values.items()}))
    return report


def test_s65_what_stays_within_five_percent_is_no_growth() -> None:
    within = 1 + MOST_GROWTH
    assert growing(resident=within).growth() == [] and growing(descriptors=1.0).growth() == []


@pytest.mark.parametrize(("name", "told"), [("descriptors", "descriptors"), ("resident", "memory"), ("threads", "thr")])
def test_s65_what_grows_by_more_than_five_percent_is_told(name: str, told: str) -> None:
    (grown,) = growing(**{name: 1.06 if name == "resident" else 1.4}).growth()
    assert grown.startswith("hub: ") and told in grown


@pytest.mark.netns
@pytest.mark.postfix
@pytest.mark.mounts
def test_s65_flaps_kills_cuts_and_full_disks_lose_nothing_and_leave_no_descriptor_open() -> None:
    seed = int(os.environ.get("SITEAGENT_SEED", random.SystemRandom().randrange(1_000_000)))
    print(f"SITEAGENT_SEED={seed}")
    report = soak.soak(seed=seed, minutes=None, cycles=2)
    tell(report)
    assert report.problems == [] and report.filed > 0
