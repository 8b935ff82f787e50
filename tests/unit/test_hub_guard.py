"""Who asks too often, and who guesses passwords (S58)."""

from __future__ import annotations

from siteagent.hub.guard import BLOCKED, Guard


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_s58_three_failed_logins_turn_an_address_away_for_a_quarter_of_an_hour() -> None:
    clock = Clock()
    guard = Guard(clock)
    assert [guard.failed("192.0.2.1") for _ in range(2)] == [False, False]
    assert guard.admit("192.0.2.1") is None
    assert guard.failed("192.0.2.1")
    assert guard.admit("192.0.2.1") is BLOCKED
    assert guard.admit("192.0.2.2") is None
    clock.now += 899
    assert guard.admit("192.0.2.1") is BLOCKED
    clock.now += 2
    assert guard.admit("192.0.2.1") is None


def test_failures_that_are_far_apart_do_not_add_up() -> None:
    clock = Clock()
    guard = Guard(clock)
    for _ in range(5):
        blocked = guard.failed("192.0.2.1")
        clock.now += 800
    assert not blocked


def test_a_login_that_succeeds_forgives_what_failed_before() -> None:
    guard = Guard(Clock())
    guard.failed("192.0.2.1")
    guard.failed("192.0.2.1")
    guard.passed("192.0.2.1")
    assert not guard.failed("192.0.2.1")


def test_an_ipv6_peer_counts_by_its_network() -> None:
    guard = Guard(Clock())
    for last in range(3):
        guard.failed(f"2001:db8::{last + 1}")
    assert guard.admit("2001:db8::ffff") is BLOCKED
    assert guard.admit("2001:db8:0:1::1") is None


def test_s58_ten_asks_a_minute_and_no_more() -> None:
    clock = Clock()
    guard = Guard(clock)
    assert [guard.may_ask("192.0.2.1") for _ in range(12)] == [True] * 10 + [False] * 2
    assert guard.may_ask("192.0.2.2")
    clock.now += 61
    assert guard.may_ask("192.0.2.1")


def test_an_ask_that_is_not_counted_after_all_leaves_room_for_another() -> None:
    guard = Guard(Clock())
    guard.not_asked("office")
    for _ in range(9):
        assert guard.may_ask("office")
    for _ in range(5):
        assert guard.may_ask("office")
        guard.not_asked("office")
    assert [guard.may_ask("office") for _ in range(2)] == [True, False]


def test_an_account_of_many_nodes_may_ask_for_each_of_them() -> None:
    guard = Guard(Clock())
    assert [guard.may_ask("office", nodes=30) for _ in range(61)].count(True) == 60


def test_what_is_remembered_is_bounded() -> None:
    guard = Guard(Clock())
    for n in range(30_000):
        guard.may_ask(str(n))
        guard.failed(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}")
    assert len(guard._asks) <= 10_000
    assert len(guard._failures) <= 10_000
