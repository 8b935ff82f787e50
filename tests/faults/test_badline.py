"""A sample of the bad line: two of its cuts. `python tests/faults/badline.py` goes through all rows."""

from __future__ import annotations

import os
import random

import pytest
from tests.faults import badline

pytestmark = [pytest.mark.netns, pytest.mark.postfix]


def all_is_well(rows: list[badline.Row]) -> None:
    for row in rows:
        assert (row.lost, row.doubled, row.problems) == (0, 0, ()), row


def test_s46_cut_at_any_point_of_a_session_nothing_is_lost_and_nothing_doubled() -> None:
    seed = int(os.environ.get("SITEAGENT_SEED", random.SystemRandom().randrange(1_000_000)))
    print(f"SITEAGENT_SEED={seed}")
    cuts = {name: row for name, row in badline.rows(seed).items() if row[0] == "pipelining"}
    names = random.Random(seed).sample(list(cuts), 2)
    all_is_well(badline.run({name: cuts[name] for name in names}))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_s46_every_row_of_the_bad_line_loses_and_doubles_nothing() -> None:
    all_is_well(badline.run(badline.rows(seed=1)))
