"""`rounds.habits`: waits shrink to what the provider was seen to do, within what is configured."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from siteagent.config.sections import Provider
from siteagent.rounds.habits import ENOUGH, LEAST_FIRST_CONNECTION_SECONDS, REMEMBERED, Habits

ISP = Provider(host="mx.isp.example", nodes=("office.example",))


def called(*seconds: float) -> Habits:
    habits = Habits()
    for each in seconds:
        habits = habits.called(each, limit=120)
    return habits


def test_until_enough_was_seen_the_configured_wait_counts() -> None:
    assert called(*[1.0] * (ENOUGH - 1)).first_connection_seconds(ISP) == 120


def test_a_provider_that_always_calls_at_once_is_not_waited_for_long() -> None:
    assert called(*[0.5] * ENOUGH).first_connection_seconds(ISP) == LEAST_FIRST_CONNECTION_SECONDS
    assert called(*[0.5] * ENOUGH, 10).first_connection_seconds(ISP) == 40


def test_one_late_call_widens_the_wait_at_once() -> None:
    assert called(*[0.5] * 30, 100).first_connection_seconds(ISP) == 120


def test_a_call_later_than_the_configured_wait_was_not_caused_by_the_ask() -> None:
    assert called(121).calls == ()


def test_a_late_call_is_forgotten_in_time() -> None:
    assert called(100, *[0.5] * REMEMBERED).first_connection_seconds(ISP) == LEAST_FIRST_CONNECTION_SECONDS


def test_pauses_between_sessions_shorten_the_quiet() -> None:
    habits = Habits()
    for _ in range(ENOUGH):
        habits = habits.paused(0.2)
    assert (Habits().quiet_seconds(ISP), habits.quiet_seconds(ISP)) == (15, 5)


@given(st.lists(st.floats(0, 1e6), max_size=50), st.floats(1, 1000))
def test_no_wait_is_ever_longer_than_configured(seconds: list[float], configured: float) -> None:
    provider = Provider(host="h", nodes=("n",), first_connection_seconds=configured, quiet_seconds=configured)
    habits = Habits.from_calls(seconds)
    assert habits.first_connection_seconds(provider) <= configured
    for each in seconds:
        habits = habits.paused(each)
    assert habits.quiet_seconds(provider) <= configured
