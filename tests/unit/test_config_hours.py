"""`config.hours`: when the agent may ask by itself."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from siteagent.config.hours import closed_for, is_window, parse

SUNDAY = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


def wait(now: datetime, *windows: str) -> float:
    return closed_for([parse(window) for window in windows], now)


@pytest.mark.parametrize(
    ("windows", "hour", "hours"),
    [
        ((), 12, 0),
        (("08:00-18:00",), 12, 0),
        (("08:00-18:00",), 7, 1),
        (("08:00-18:00",), 18, 14),
        (("22:00-06:00",), 5, 0),
        (("22:00-06:00",), 6, 16),
        (("22:00-06:00",), 23, 0),
        (("Mon-Fri 08:00-18:00",), 12, 20),
        (("Mon-Fri 08:00-18:00", "Sun 13:00-14:00"), 12, 1),
        (("Sat 22:00-06:00",), 5, 0),  # begins on Saturday, and is still open on Sunday morning
        (("Sun 22:00-06:00",), 5, 17),
        (("Fri-Mon 00:00-24:00",), 12, 0),
        (("00:00-24:00",), 23, 0),
    ],
)
def test_how_long_it_is_until_asking_is_allowed(windows: tuple[str, ...], hour: int, hours: float) -> None:
    assert wait(SUNDAY.replace(hour=hour), *windows) == hours * 3600


@pytest.mark.parametrize(
    "text", ["", "8-18", "08:00", "25:00-26:00", "08:60-09:00", "Xyz 08:00-09:00", "Mon- 08:00-09:00"]
)
def test_what_is_no_window(text: str) -> None:
    assert not is_window(text)


@given(st.datetimes(timezones=st.just(UTC), min_value=datetime(2000, 1, 1), max_value=datetime(2100, 1, 1)))
def test_when_the_wait_is_over_it_is_open(now: datetime) -> None:
    from datetime import timedelta

    windows = [parse("Tue 22:30-04:15"), parse("Sat,Sun 10:00-12:00")]
    assert closed_for(windows, now + timedelta(seconds=closed_for(windows, now))) == 0
