"""`rounds.policy`: what answers mean together, and when to ask again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from siteagent.config.sections import Provider
from siteagent.events import NodeOutcome, Outcome
from siteagent.rounds.machine import Action, Signal, State
from siteagent.rounds.policy import (
    REASK_SECONDS,
    Memory,
    answered,
    clock_pause,
    covers,
    in_turn,
    jittered,
    merged,
    nudge_counts,
    planned,
    quiet_pause,
    refused_pause,
    retry_pause,
    waited,
)
from siteagent.wire.etrn import AskFailure, NodeAnswer

BROKEN = AskFailure("ask", "connection lost", None, True, None)
BARRED = AskFailure("auth", "the password is wrong", 535, False, None)
S, N, R, T, U = (NodeOutcome(word) for word in ("started", "nothing", "refused", "retry", "unknown"))


def told(*outcomes: NodeOutcome) -> list[NodeAnswer]:
    return [NodeAnswer(f"n{i}", outcome, 250, "text", None, 0.1) for i, outcome in enumerate(outcomes)]


def together(nodes: int, *outcomes: NodeOutcome, failure: AskFailure | None = None):
    return merged([f"n{i}" for i in range(nodes)], told(*outcomes), failure)


# --- what the answers mean together -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcomes", "signal"),
    [
        ((S,), Signal.AGREED),
        ((N,), Signal.NOTHING),
        ((R,), Signal.REFUSED),
        ((T,), Signal.FAILED),
        ((U,), Signal.FAILED),
        ((R, N, T, U, S), Signal.AGREED),
        ((N, T), Signal.FAILED),
        ((R, T), Signal.FAILED),
        ((R, N), Signal.NOTHING),
    ],
)
def test_answers_together(outcomes, signal):
    assert together(len(outcomes), *outcomes).signal is signal


@pytest.mark.parametrize(("outcomes", "troubled"), [((S, N, R), False), ((S, T), True), ((S, U), True)])
def test_a_node_that_is_owed_an_ask_troubles_a_round_that_goes_on(outcomes, troubled):
    assert bool(together(3, *outcomes, *([N] if len(outcomes) == 2 else [])).trouble) is troubled


def test_no_answer_at_all_fails():
    assert together(1).signal is Signal.FAILED
    assert together(1, failure=BROKEN).signal is Signal.FAILED


def test_a_permanent_failure_refuses():
    verdict = together(2, failure=BARRED)
    assert verdict.signal is Signal.REFUSED and "password" in verdict.reason


def test_nodes_not_reached_after_one_that_started_are_trouble():
    verdict = together(2, S, failure=BROKEN)
    assert verdict.signal is Signal.AGREED and "connection lost" in verdict.trouble and "n1" in verdict.trouble


def test_nodes_not_reached_after_a_refusal_that_ends_all_are_refused():
    assert together(2, R).signal is Signal.REFUSED


def test_a_connection_that_broke_after_the_last_answer_changes_nothing():
    assert together(1, R, failure=BROKEN).signal is Signal.REFUSED
    assert together(1, N, failure=BROKEN).signal is Signal.NOTHING
    assert together(1, S, failure=BROKEN).trouble == ""


def test_the_last_answer_for_a_node_counts():
    answers = [*told(T), *told(S)]
    assert merged(["n0"], answers, None).signal is Signal.AGREED


@given(st.lists(st.sampled_from(NodeOutcome), max_size=7), st.sampled_from([None, BROKEN, BARRED]))
def test_started_is_never_said_where_no_node_was(outcomes, failure):
    signal = together(7, *outcomes, failure=failure).signal
    assert (signal is Signal.AGREED) == (S in outcomes)


@given(st.lists(st.sampled_from(NodeOutcome), max_size=7), st.sampled_from([None, BROKEN, BARRED]))
def test_nothing_is_never_said_while_a_node_is_owed_an_ask(outcomes, failure):
    verdict = together(7, *outcomes, failure=failure)
    owed = T in outcomes or U in outcomes
    assert not (owed and verdict.signal in (Signal.NOTHING, Signal.REFUSED))
    assert not (owed and verdict.signal is Signal.AGREED and not verdict.trouble)


def _answered(*outcomes: NodeOutcome, **facts: bool) -> Signal:
    plain = dict.fromkeys(("ask_only", "session_open", "session_came", "troubled", "exhausted"), False)
    return answered(together(len(outcomes), *outcomes), **(plain | facts))


def test_a_session_that_is_open_outweighs_nothing():
    assert _answered(N, session_open=True, session_came=True) is Signal.AGREED_RECEIVING


def test_nothing_with_a_connection_turned_away_is_waited_out():
    assert _answered(N, troubled=True) is Signal.AGREED_RECEIVED


def test_ask_only_with_a_node_to_try_again_is_troubled():
    assert _answered(S, T, ask_only=True, troubled=True) is Signal.TROUBLED


# --- how a wait ends --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "facts", "signal"),
    [
        (State.EXPECTING, {}, Signal.SILENT),
        (State.EXPECTING, {"troubled": True}, Signal.TROUBLED),
        (State.QUIET, {}, Signal.SETTLED),
        (State.QUIET, {"unfiled": True, "troubled": True}, Signal.UNFILED),
        (State.FILING, {"troubled": True}, Signal.TROUBLED),
        (State.FILING, {"troubled": True, "exhausted": True}, Signal.TROUBLED_STILL),
        (State.FILING, {"exhausted": True}, Signal.SETTLED),
    ],
)
def test_the_end_of_a_wait(state, facts, signal):
    assert waited(state, **({"unfiled": False, "troubled": False, "exhausted": False} | facts)) is signal


def test_older_sessions_leave_the_first_connection_its_window():
    assert quiet_pause(quiet=15, first_connection=120, since_ask=20, our_session_came=False) == 100
    assert quiet_pause(quiet=15, first_connection=120, since_ask=20, our_session_came=True) == 15
    assert quiet_pause(quiet=15, first_connection=120, since_ask=500, our_session_came=False) == 15


# --- pauses -----------------------------------------------------------------------------------------------------------


def test_the_last_pause_of_the_schedule_repeats():
    assert [retry_pause((0, 2, 5), n) for n in range(5)] == [0, 2, 5, 5, 5]


def test_s41_an_hour_doubling_to_a_day_however_often():
    assert [refused_pause(n) / 3600 for n in (1, 2, 3, 4, 5, 6, 10_000)] == [1, 2, 4, 8, 16, 24, 24]


def test_a_metered_line_is_never_asked_by_the_clock():
    assert clock_pause("auto", metered=True) is None
    assert clock_pause(60, metered=True) is None
    assert clock_pause(0, metered=False) is None
    assert clock_pause("auto", metered=False) == 900


@given(st.floats(0, 1e6), st.floats(0, 1))
def test_jitter_only_adds_and_at_most_a_tenth(pause, share):
    assert pause <= jittered(pause, share) <= pause * 1.1 + 1e-6
    assert pause >= 60 or jittered(pause, share) == pause


def test_a_nudge_counts_where_something_may_have_been_missed():
    assert nudge_counts(now=100, last_success=None, last_ask=None)
    assert nudge_counts(now=100, last_success=40, last_ask=40)
    assert not nudge_counts(now=100, last_success=41, last_ask=41)
    assert not nudge_counts(now=100, last_success=None, last_ask=95)


# --- what is owed -----------------------------------------------------------------------------------------------------


def test_incomplete_rounds_move_through_the_re_asks_to_their_end():
    memory, pauses = Memory(), []
    for _ in range(4):
        memory = memory.after(Outcome.INCOMPLETE, now=0)
        pauses.append(memory.reask_pause(0))
    assert pauses == [60, 300, 660, None]


def test_exhausted_is_told_before_the_round_that_gets_no_re_ask():
    memory, told_before = Memory(), []
    for _ in range(4):
        told_before.append(memory.exhausted)
        memory = memory.after(Outcome.INCOMPLETE, now=0)
    assert told_before == [False, False, False, True]


def test_a_good_round_leaves_later_re_asks_owed():
    memory = Memory().after(Outcome.INCOMPLETE, now=0).after(Outcome.DRAINED, now=70)
    assert memory.reask_pause(70) == 230


def test_after_the_last_re_ask_a_good_round_clears_all():
    assert Memory().after(Outcome.INCOMPLETE, now=0).after(Outcome.SILENT, now=700) == Memory()


def test_a_new_line_after_hours_owes_nothing_of_old():
    memory = Memory(failures=7, refusals=3, troubled_at=0, reasks=2)
    assert memory.on_new_line(now=7200) == Memory()


def test_a_new_line_at_once_owes_what_a_dead_session_holds():
    memory = Memory(failures=7).after(Outcome.LINK_LOST, now=100, session_lost=True)
    assert memory.on_new_line(now=103) == Memory(troubled_at=100)


@given(st.lists(st.tuples(st.sampled_from(Outcome), st.floats(0, 1000), st.booleans()), max_size=30))
def test_where_the_table_plans_a_re_ask_there_is_one(steps):
    memory, now = Memory(), 0.0
    for outcome, seconds, lost in steps:
        now += seconds
        exhausted = memory.exhausted
        memory = memory.after(outcome, now=now, session_lost=lost)
        if outcome is Outcome.INCOMPLETE:
            assert (memory.reask_pause(now) is None) == exhausted
        assert (memory.reask_pause(now) or 1.0) >= 1.0
        assert memory.reasks <= len(REASK_SECONDS)


@pytest.mark.parametrize(
    ("action", "memory", "metered", "plan"),
    [
        (Action.PLAN_FIRST, Memory(failures=5), False, (0, None)),
        (Action.PLAN_RETRY, Memory(failures=1), True, (2, "retry")),
        (Action.PLAN_LONG, Memory(refusals=2), True, (7200, "retry")),
        (Action.PLAN_REASK, Memory(troubled_at=0), True, (60, "retry")),
        (Action.PLAN_CLOCK, Memory(), False, (900, "clock")),
        (Action.PLAN_CLOCK, Memory(troubled_at=0), False, (60, "retry")),
        (Action.PLAN_CLOCK, Memory(troubled_at=0), True, (60, "retry")),
        (Action.PLAN_CLOCK, Memory(), True, None),
    ],
)
def test_plans(action, memory, metered, plan):
    provider = Provider(host="mx.isp.example", nodes=("a",))
    made = planned(action, provider, memory, metered=metered, now=0)
    assert (made and (made.seconds, made.cause)) == plan


def test_a_round_covers_a_request_for_some_or_all_of_its_nodes():
    assert covers(("a", "b"), None, all_nodes=("a", "b"))
    assert covers(("a", "b"), ("b",), all_nodes=("a", "b"))
    assert not covers(("a",), None, all_nodes=("a", "b"))
    assert not covers(("a",), ("b",), all_nodes=("a", "b"))


# --- whose turn it is -------------------------------------------------------------------------------------------------


def last_word(node: str, outcome: NodeOutcome, code: int | None) -> NodeAnswer:
    return NodeAnswer(node, outcome, code, "text", None, 0.1)


def test_who_was_not_reached_is_asked_first_then_who_got_no_word() -> None:
    before = {"a": last_word("a", R, 459), "b": last_word("b", U, None), "c": last_word("c", T, 421), "d": None}
    assert in_turn(("a", "b", "c", "d", "new"), before) == ("d", "b", "c", "a", "new")


def test_where_all_had_their_word_or_none_the_order_is_that_of_the_configuration() -> None:
    assert in_turn(("c", "a", "b"), {node: last_word(node, S, 250) for node in "abc"}) == ("c", "a", "b")
    assert in_turn(("c", "a", "b"), dict.fromkeys("abc")) == ("c", "a", "b")
