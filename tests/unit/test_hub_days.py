"""How long a message has been held: by time that passed, not by the wall clock (S62)."""

from __future__ import annotations

from pathlib import Path

from siteagent.hub.days import Days

DAY = 86_400


class Clocks:
    def __init__(self) -> None:
        self.wall = 1_700_000_000.0
        self.ticks = 50.0

    def pass_(self, seconds: float) -> None:
        self.wall += seconds
        self.ticks += seconds


def days(tmp_path: Path, clocks: Clocks) -> Days:
    made = Days(tmp_path / "days.json", wall=lambda: clocks.wall, monotonic=lambda: clocks.ticks)
    made.open()
    return made


def test_what_was_here_thirty_days_ago_has_been_held_for_thirty_days(tmp_path: Path) -> None:
    clocks = Clocks()
    made = days(tmp_path, clocks)
    for day in range(32):
        made.mark(10 * (day + 1))
        clocks.pass_(DAY)
    assert made.held_for(30) == 30
    assert made.held_for(32) == 10
    assert made.held_for(33) == 0


def test_s62_a_clock_that_jumps_twenty_years_expires_nothing(tmp_path: Path) -> None:
    clocks = Clocks()
    made = days(tmp_path, clocks)
    made.mark(7)
    made.save(longest_days=30)
    clocks.wall += 20 * 365 * DAY
    assert made.held_for(1) == 0
    again = days(tmp_path, clocks)
    again.mark(8)
    assert again.held_for(2) == 0, "one start ages it by a day at most"
    clocks.wall -= 40 * 365 * DAY
    again.save(longest_days=30)
    clocks.wall -= 5 * DAY
    assert days(tmp_path, clocks).held_for(2) == 0


def test_time_between_two_runs_counts_a_day_at_most(tmp_path: Path) -> None:
    clocks = Clocks()
    made = days(tmp_path, clocks)
    made.mark(7)
    made.save(longest_days=30)
    clocks.wall += DAY / 2
    clocks.ticks = 3.0
    made = days(tmp_path, clocks)
    clocks.pass_(DAY / 2)
    assert made.held_for(1) == 7


def test_a_file_that_cannot_be_read_makes_mail_younger_and_no_trouble(tmp_path: Path) -> None:
    clocks = Clocks()
    (tmp_path / "days.json").write_text("{half")
    made = days(tmp_path, clocks)
    made.mark(3)
    assert made.held_for(1) == 0


def test_marks_that_nobody_asks_for_any_more_are_dropped(tmp_path: Path) -> None:
    clocks = Clocks()
    made = days(tmp_path, clocks)
    for day in range(100):
        made.mark(day + 1)
        clocks.pass_(DAY)
    made.save(longest_days=10)
    assert len(made._marks) <= 12
    assert made.held_for(10) == 91
