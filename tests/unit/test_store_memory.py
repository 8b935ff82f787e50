"""Who got what, for a week of days that passed, whatever the clock says."""

import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from siteagent.store import memory, tables

START = datetime(2026, 11, 22, 8, tzinfo=UTC)
YEARS = timedelta(days=20 * 365)


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    opened = tables.connect(tmp_path)
    yield opened
    opened.close()


class Host:
    """A host whose wall clock and monotonic clock are set by hand, and that may be restarted."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.wall = START
        self.monotonic = 0.0
        self.boot()

    def boot(self) -> None:
        self.monotonic = 5.0
        self.calendar = memory.Calendar(wall=lambda: self.wall, monotonic=lambda: self.monotonic)
        self.calendar.open(self.connection)

    def run(self, time: timedelta) -> None:
        for _ in range(int(time.total_seconds()) // 1800):
            self.monotonic += 1800
            self.wall += timedelta(seconds=1800)
            self.calendar.keep(self.connection)

    def off(self, time: timedelta) -> None:
        self.wall += time
        self.boot()

    def get(self, session: str, *, content: bytes = b"digest", address: str = "a@x") -> str | None:
        key = memory.key_of("s@x", address, content)
        return memory.known_as(
            self.connection, key, session=session, message=1, name=f"of {session}", day=self.calendar.day
        )


@pytest.fixture
def host(connection: sqlite3.Connection) -> Host:
    return Host(connection)


def test_s33_another_session_has_it_already(host: Host) -> None:
    assert host.get("1") is None
    assert host.get("2") == "of 1"


def test_twice_within_one_session_is_twice(host: Host) -> None:
    assert host.get("1") is None
    assert host.get("1") is None


def test_other_content_or_another_recipient_is_another_message(host: Host) -> None:
    assert host.get("1") is None
    assert host.get("2", content=b"other") is None
    assert host.get("2", address="b@x") is None


def test_case_of_an_address_makes_no_second_recipient(host: Host) -> None:
    assert host.get("1", address="Alice@Office.Example") is None
    assert host.get("2", address="alice@office.example") == "of 1"


def test_s33_the_same_from_two_sessions_in_one_transaction_is_kept_once(host: Host) -> None:
    key, other = memory.key_of("s@x", "a@x", b"digest"), memory.key_of("s@x", "b@x", b"digest")
    rows = [(key, "1", 1, "first", 0), (key, "2", 2, "second", 0), (key, "1", 3, "third", 0), (other, "2", 4, "4", 0)]
    assert memory.remember(host.connection, rows) == [None, "first", None, None]


def test_more_recipients_than_fit_into_one_statement_are_all_remembered(host: Host) -> None:
    rows = [(memory.key_of("s@x", f"u{n}@x", b"digest"), "1", 1, "first", 0) for n in range(1001)]
    assert memory.remember(host.connection, rows) == [None] * 1001
    again = [(key, "2", 2, "second", 0) for key, *_ in rows]
    assert memory.remember(host.connection, again) == ["first"] * 1001


def test_parts_of_a_key_do_not_run_into_each_other() -> None:
    assert memory.key_of("a", "bc", b"d") != memory.key_of("ab", "c", b"d")


def test_it_is_remembered_for_seven_days(host: Host) -> None:
    host.get("1")
    host.run(timedelta(days=7))
    assert host.get("2") == "of 1"


def test_it_is_forgotten_after_that_without_a_restart(host: Host) -> None:
    host.get("1")
    host.run(timedelta(days=8, hours=2))
    assert host.connection.execute("SELECT count(*) FROM seen").fetchone() == (0,)


def test_days_that_the_host_was_off_count_as_one_at_most(host: Host) -> None:
    host.get("1")
    host.off(timedelta(days=6))
    host.off(timedelta(days=6))
    assert host.get("2") == "of 1"


@pytest.mark.parametrize("jump", [YEARS, -YEARS])
def test_s62_a_jump_of_twenty_years_while_running_forgets_nothing(host: Host, jump: timedelta) -> None:
    host.get("1")
    host.wall += jump
    host.run(timedelta(hours=3))
    host.get("other")
    assert host.get("2") == "of 1"


@pytest.mark.parametrize("jump", [YEARS, -YEARS])
def test_s62_a_jump_between_two_runs_forgets_nothing(host: Host, jump: timedelta) -> None:
    host.get("1")
    host.off(jump)
    host.get("other")
    host.off(timedelta(minutes=1))
    assert host.get("2") == "of 1"


def test_s62_a_host_that_starts_in_1970_each_time_forgets_nothing(host: Host) -> None:
    host.get("1")
    for _ in range(30):
        host.wall = datetime(1970, 1, 1, tzinfo=UTC)
        host.boot()
        host.wall = START + timedelta(hours=1)
        host.run(timedelta(hours=1))
    assert host.get("2") == "of 1"


def test_the_count_survives_a_restart(host: Host) -> None:
    host.run(timedelta(days=3))
    host.off(timedelta(seconds=1))
    assert host.calendar.day == 3
