"""The lab in its short form: chance chooses moments and shapes, the seed is printed. `--help` of each command has more.

Every loop has its control: the same with a sync taken away from outside must go wrong.
"""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path

import pytest
from tests.faults import errors, kills, order, powercut
from tests.faults.lies import LIES
from tests.faults.mail import SHAPES

pytestmark = pytest.mark.timeout(300)

CUTS = pytest.mark.tools("xfs_io", "mkfs.ext4", "mount", "losetup")
STRACE = pytest.mark.tools("strace")
GCC = pytest.mark.tools("gcc")


@pytest.fixture
def seed() -> str:
    chosen = os.environ.get("SITEAGENT_SEED") or f"{random.SystemRandom().randrange(1_000_000):06}"
    print(f"SITEAGENT_SEED={chosen}")
    return chosen


@pytest.mark.mounts
@CUTS
@pytest.mark.parametrize(("program", "cycles"), [("agent", 7), ("hub", 3)])
def test_s25_what_was_acknowledged_survives_the_loss_of_power(
    tmp_path: Path, seed: str, program: str, cycles: int
) -> None:
    row = powercut.cut(tmp_path, program, seed, cycles)
    print(f"{row.cuts} cuts, {row.acknowledged} acknowledged")
    assert row.verdict.sentences == []
    assert row.acknowledged > 0


@pytest.mark.mounts
@CUTS
@GCC
@pytest.mark.parametrize(("program", "lie"), powercut.CONTROLS)
def test_s25_the_loop_sees_what_is_left_out(tmp_path: Path, seed: str, program: str, lie: str) -> None:
    """Without the spool's sync, a file's or a directory's, mail is lost within ten cuts: so the loop above means it."""
    assert powercut.cut(tmp_path, program, seed, 10, lie=lie, until_red=True).red


@STRACE
def test_s26_what_is_promised_published_or_done_with_was_synced_before(tmp_path: Path, seed: str) -> None:
    watched = asyncio.run(order.watch(tmp_path, seed, 3 * len(SHAPES)))
    assert watched.violations == []
    assert watched.verdict.sentences == []


@STRACE
@GCC
@pytest.mark.parametrize("lie", LIES)
def test_s26_the_log_shows_what_is_left_out(tmp_path: Path, seed: str, lie: str) -> None:
    assert asyncio.run(order.watch(tmp_path, seed, len(SHAPES), lies=[lie])).violations


@STRACE
def test_s27_killed_at_a_system_call_nothing_is_lost_doubled_or_half(tmp_path: Path, seed: str) -> None:
    points = random.Random(seed).sample(kills.points(seed), 6)
    killed = kills.run(tmp_path, seed, points)
    assert [sentence for one in killed for sentence in one.verdict.sentences] == []
    assert any(one.reached for one in killed)


@STRACE
def test_s28_s29_s31_a_call_that_fails_costs_no_mail_and_not_the_next(tmp_path: Path, seed: str) -> None:
    points = random.Random(seed).sample(errors.points(), 12)
    failed = errors.run(tmp_path, seed, points)
    assert [sentence for one in failed for sentence in one.verdict.sentences] == []
    assert any(one.struck for one in failed)
