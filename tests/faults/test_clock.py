"""A wall clock that leaps, and a process that stands still, seen from outside."""

from __future__ import annotations

import pytest
from tests.faults import clock

pytestmark = [pytest.mark.netns, pytest.mark.postfix]


@pytest.fixture
def libfaketime() -> None:
    if clock.library() is None:
        pytest.skip("libfaketime missing: python3 tests/check.py --system-packages")


@pytest.mark.usefixtures("libfaketime")
def test_s62_a_leap_of_twenty_years_either_way_expires_nothing_and_changes_no_timer() -> None:
    assert clock.leap((20, -20)) == []


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("libfaketime")
def test_s62_a_hub_whose_clock_leaps_twenty_years_gives_nothing_up() -> None:
    assert clock.leap_of_the_hub() == []


def test_s63_stopped_in_mid_message_and_continued_sessions_end_and_nothing_is_lost() -> None:
    assert clock.stop(6, short=True) == []


@pytest.mark.slow
@pytest.mark.timeout(2000)
def test_s63_stopped_for_ten_minutes_and_continued_sessions_end_and_nothing_is_lost() -> None:
    assert clock.stop(600, short=False) == []
