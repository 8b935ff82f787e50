"""`rounds.runner` on a fake clock: line, asks, sessions, requests, and what is said at the end of each round."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from functools import wraps

import pytest
from siteagent.agent.gate import Gate
from siteagent.agent.meter import Meter
from siteagent.config.sections import Method, Provider
from siteagent.errors import UsageError
from siteagent.events import (
    AskAnswered,
    AskFailed,
    Event,
    FilingFailed,
    Line,
    MessageDuplicate,
    MethodChosen,
    NodeOutcome,
    RoundEnded,
    Stamped,
)
from siteagent.rounds.choice import Seen
from siteagent.silence import Around, Explainer
from siteagent.status import Warnings
from siteagent.status.fold import StatusFold
from siteagent.wire.etrn import AskFailure, AskResult, NodeAnswer
from tests.rounds_fakes import (
    NO_ANSWER,
    NODE,
    NOTHING,
    OTHER,
    PPP,
    REFUSED,
    RETRY,
    STARTED,
    Bench,
    answer,
    result,
    turn,
)


def scene(function):
    """An async test as a plain function."""

    @wraps(function)
    def run(*args: object, **kwargs: object) -> None:
        asyncio.run(function(*args, **kwargs))

    return run


# --- the line comes up ------------------------------------------------------------------------------------------------


@scene
async def test_line_up_asks_at_once():
    bench = Bench()
    await bench.up()
    assert bench.asks == [(NODE,)]
    assert bench.started[0].cause == "link" and bench.started[0].interface == PPP.interface
    assert bench.runner.state == "receiving" and bench.runner.expecting


@scene
async def test_line_up_waits_for_the_first_of_retry_seconds():
    bench = Bench(retry_seconds=(7.0, 9.0))
    await bench.up()
    assert bench.asks == [] and bench.runner.state == "resting" and not bench.runner.idle
    await bench.wait(7)
    assert len(bench.asks) == 1


@scene
async def test_line_up_told_twice_asks_once():
    bench = Bench()
    await bench.up()
    await bench.up()
    assert len(bench.asks) == 1


@scene
async def test_s49_another_address_asks_again_on_the_new_line():
    bench = Bench()
    await bench.up()
    bench.runner.line_changed(OTHER, "netlink")
    await bench.wait()
    assert bench.outcomes == ["link-lost"]
    assert [event.interface for event in bench.started] == [PPP.interface, OTHER.interface]


@scene
async def test_s49_another_address_while_resting_asks_again():
    bench = Bench(NOTHING)
    await bench.up()
    bench.runner.line_changed(OTHER, "netlink")
    await bench.wait()
    assert len(bench.asks) == 2


@scene
async def test_waking_from_sleep_asks_again():
    bench = Bench(NOTHING)
    await bench.up()
    bench.runner.woke()
    await bench.wait()
    assert [event.cause for event in bench.started] == ["link", "wake"]


@scene
async def test_nudge_within_a_minute_of_a_success_is_no_ask():
    bench = Bench(NOTHING)
    await bench.up()
    await bench.wait(59)
    bench.runner.nudge("hook")
    await bench.wait()
    assert len(bench.asks) == 1


@scene
async def test_nudge_a_minute_after_the_last_success_asks():
    bench = Bench(NOTHING)
    await bench.up()
    await bench.wait(61)
    bench.runner.nudge("hook")
    await bench.wait()
    assert [event.cause for event in bench.started] == ["link", "hint"]


@scene
async def test_a_hundred_nudges_a_second_do_not_outrun_the_schedule_much():
    bench = Bench(NO_ANSWER)
    await bench.up()
    for _ in range(6000):
        bench.runner.nudge("hook")
        await bench.wait(0.01)
    assert len(bench.asks) <= 12


# --- failures ---------------------------------------------------------------------------------------------------------


@scene
async def test_no_answer_is_tried_again_by_the_schedule_and_its_last_pause_repeats():
    bench = Bench(NO_ANSWER, retry_seconds=(0.0, 2.0, 5.0))
    await bench.up()
    assert bench.runner.state == "retrying"
    await bench.wait(30)
    assert [event.next_seconds for event in bench.ended[:4]] == [2.0, 5.0, 5.0, 5.0]
    assert set(bench.outcomes) == {"failed"}


@scene
async def test_every_node_to_retry_fails_the_round():
    bench = Bench(RETRY)
    await bench.up()
    assert bench.outcomes == ["failed"] and "458" in bench.ended[0].reason


@scene
async def test_failure_is_told_with_its_stage():
    bench = Bench(NO_ANSWER)
    await bench.up()
    assert [(event.stage, event.temporary) for event in bench.of(AskFailed)] == [("connect", True)]


@scene
async def test_a_success_starts_the_schedule_anew():
    bench = Bench(NO_ANSWER, NO_ANSWER, NOTHING, NO_ANSWER, retry_seconds=(0.0, 2.0, 5.0), ask_every_seconds=10)
    await bench.up()
    await bench.wait(2 + 5 + 10)
    assert [event.next_seconds for event in bench.ended] == [2.0, 5.0, 10.0, 2.0]


@scene
async def test_a_new_line_starts_the_schedule_anew():
    bench = Bench(NO_ANSWER, retry_seconds=(0.0, 2.0, 5.0))
    await bench.up()
    await bench.wait(3)
    bench.runner.line_down("netlink")
    await bench.up()
    assert [event.next_seconds for event in bench.ended] == [2.0, 5.0, 2.0]


@scene
async def test_an_ask_that_raises_fails_the_round_and_is_tried_again():
    bench = Bench(RuntimeError("boom"), NOTHING)
    await bench.up()
    assert bench.outcomes == ["failed"] and "RuntimeError: boom" in bench.ended[0].reason
    await bench.wait(2)
    assert bench.outcomes == ["failed", "nothing"]


@scene
async def test_an_ask_that_is_cancelled_by_itself_fails_the_round():
    bench = Bench(None, NOTHING)
    await bench.up()
    bench.waiting[0].cancel()
    await bench.wait()
    assert bench.outcomes == ["failed"]


@scene
async def test_s41_refused_is_asked_again_after_an_hour_doubling_to_a_day():
    bench = Bench(REFUSED)
    await bench.up()
    await bench.wait(10 * 86400)
    hours = [event.next_seconds / 3600 for event in bench.ended]
    assert hours[:7] == [1, 2, 4, 8, 16, 24, 24]
    assert set(bench.outcomes) == {"refused"} and bench.runner.state == "resting"


@scene
async def test_s41_refused_is_asked_again_at_the_next_link_event():
    bench = Bench(REFUSED)
    await bench.up()
    bench.runner.line_down("netlink")
    await bench.up()
    assert len(bench.asks) == 2


@scene
async def test_s41_refused_is_asked_again_at_a_request():
    bench = Bench(REFUSED)
    await bench.up()
    bench.request("q1")
    await bench.wait()
    assert len(bench.asks) == 2


@scene
async def test_a_permanent_failure_is_refused():
    bench = Bench(result(failure=AskFailure("starttls", "the certificate is bad", None, False, "pin it")))
    await bench.up()
    assert bench.outcomes == ["refused"]


# --- several nodes ----------------------------------------------------------------------------------------------------


@scene
async def test_each_node_has_its_own_answer_and_one_that_started_is_enough():
    told = result(
        answer("a", NodeOutcome.REFUSED, 459), answer("b", NodeOutcome.NOTHING, 251), answer("c", NodeOutcome.STARTED)
    )
    bench = Bench(told, nodes=("a", "b", "c"))
    await bench.up()
    assert [(e.node, e.outcome) for e in bench.of(AskAnswered)] == [
        ("a", NodeOutcome.REFUSED),
        ("b", NodeOutcome.NOTHING),
        ("c", NodeOutcome.STARTED),
    ]
    assert bench.runner.expecting


@scene
async def test_a_node_that_must_be_tried_again_makes_the_round_incomplete():
    bench = Bench(result(answer("a"), answer("b", NodeOutcome.RETRY, 458)), nodes=("a", "b"))
    await bench.up()
    await bench.wait(120)
    assert bench.outcomes == ["incomplete"] and bench.ended[0].next_seconds == 60


@scene
async def test_a_refused_node_does_not_keep_the_others_from_the_usual_clock():
    told = result(answer("a", NodeOutcome.REFUSED, 459), answer("b", NodeOutcome.NOTHING, 251))
    bench = Bench(told, nodes=("a", "b"))
    await bench.up()
    assert bench.outcomes == ["nothing"] and bench.ended[0].next_seconds == 900
    assert "459" in bench.ended[0].reason


# --- what comes -------------------------------------------------------------------------------------------------------


@scene
async def test_nobody_comes_and_the_round_is_silent():
    bench = Bench()
    await bench.up()
    await bench.wait(119)
    assert bench.outcomes == []
    await bench.wait(1)
    assert bench.outcomes == ["silent"] and bench.ended[0].next_seconds == 900
    assert not bench.runner.expecting and bench.runner.state == "resting"


@scene
async def test_nothing_ends_the_round_at_once():
    bench = Bench(NOTHING)
    await bench.up()
    assert bench.outcomes == ["nothing"] and bench.ended[0].seconds == 0


@scene
async def test_quiet_after_the_last_session_and_the_round_is_drained():
    bench = Bench()
    await bench.up()
    session = bench.open()
    bench.accept(session, size=100)
    bench.accept(session, size=50)
    await bench.wait(1000)
    bench.close(session, wire_bytes=400)
    await bench.wait(14)
    assert bench.outcomes == []
    await bench.wait(1)
    end = bench.ended[0]
    assert (end.outcome.value, end.sessions, end.messages, end.files) == ("drained", 1, 2, 2)
    assert (end.bytes, end.wire_bytes) == (150, 400)


@scene
async def test_session_came_is_told_of_the_open_round():
    bench = Bench()
    await bench.up()
    assert not bench.runner.session_came
    bench.close(bench.open())
    assert bench.runner.session_came


@scene
async def test_a_new_session_ends_the_quiet():
    bench = Bench()
    await bench.up()
    bench.close(bench.open())
    await bench.wait(14)
    second = bench.open()
    await bench.wait(500)
    assert bench.outcomes == []
    bench.close(second)
    await bench.wait(15)
    assert bench.outcomes == ["drained"] and bench.ended[0].sessions == 2


@scene
async def test_two_sessions_at_once_are_both_waited_for():
    bench = Bench()
    await bench.up()
    first, second = bench.open(), bench.open()
    bench.close(first)
    await bench.wait(500)
    assert bench.outcomes == []
    bench.close(second)
    await bench.wait(15)
    assert bench.outcomes == ["drained"]


@scene
async def test_a_session_that_comes_before_the_answer_counts():
    bench = Bench(None)
    await bench.up()
    session = bench.open()
    bench.waiting[0].set_result(STARTED)
    await bench.wait(200)
    assert bench.outcomes == [] and bench.runner.state == "receiving"
    bench.close(session)
    await bench.wait(15)
    assert bench.outcomes == ["drained"]


@scene
async def test_a_session_that_came_and_went_before_the_answer_counts():
    bench = Bench(None)
    await bench.up()
    bench.close(bench.open())
    bench.waiting[0].set_result(STARTED)
    await bench.wait(15)
    assert bench.outcomes == ["drained"]


@pytest.mark.parametrize("over", [False, True])
@scene
async def test_a_provider_that_connects_and_never_answers_was_heard(over: bool):
    bench = Bench(None)
    await bench.up()
    session = bench.open()
    bench.accept(session)
    if over:
        bench.close(session)
    bench.waiting[0].set_result(NO_ANSWER)
    await bench.wait()
    assert bench.ended == [], "its mail is on the way"
    if not over:
        bench.close(session)
    await bench.wait(15)
    assert (bench.outcomes, bench.ended[-1].messages) == (["incomplete"], 1)
    assert "no answer" in bench.ended[-1].reason and bench.ended[-1].next_seconds == 60


@scene
async def test_an_older_session_is_no_sign_that_the_ask_was_heard():
    bench = Bench(None)
    session = bench.open(None)
    await bench.up()
    bench.waiting[0].set_result(NO_ANSWER)
    await bench.wait()
    assert bench.outcomes == ["failed"]
    bench.close(session)


@scene
async def test_a_session_that_is_open_when_the_round_is_asked_counts():
    bench = Bench(NOTHING)
    session = bench.open(round_id=None)
    await bench.up()
    assert bench.outcomes == []
    bench.accept(session)
    bench.close(session)
    await bench.wait(120)
    assert bench.outcomes == ["drained"]
    assert (bench.ended[0].sessions, bench.ended[0].messages, bench.ended[0].files) == (1, 1, 1)


@scene
async def test_an_older_session_does_not_shorten_the_wait_for_the_first_connection():
    bench = Bench()
    session = bench.open(round_id=None)
    await bench.up()
    bench.close(session)
    await bench.wait(119)
    assert bench.outcomes == []
    await bench.wait(1)
    assert bench.outcomes == ["drained"]


@scene
async def test_a_session_of_another_provider_does_not_count():
    bench = Bench()
    await bench.up()
    bench.open(provider="other", round_id="x")
    await bench.wait(120)
    assert bench.outcomes == ["silent"]


@scene
async def test_a_message_known_already_counts_as_message_and_as_duplicate_once():
    bench = Bench()
    await bench.up()
    session = bench.open()
    message = bench.accept(session)
    for known in (message, "m-other"):
        bench.runner.observe(
            MessageDuplicate(
                message=known, session=session, provider="isp", round="r1", sender="", recipients=(), first="m0"
            )
        )
    bench.close(session)
    await bench.wait(15)
    assert (bench.ended[0].messages, bench.ended[0].duplicates) == (2, 2)


@scene
async def test_ask_only_ends_asked_with_the_answers():
    bench = Bench(ask_only=True)
    await bench.up()
    assert bench.outcomes == ["asked"] and not bench.runner.expecting


# --- filing -----------------------------------------------------------------------------------------------------------


@scene
async def test_drained_waits_until_all_is_filed():
    bench = Bench()
    await bench.up()
    session = bench.open()
    message = bench.accept(session, filed=False)
    bench.close(session)
    await bench.wait(40)
    assert bench.outcomes == [] and bench.runner.state == "receiving"
    bench.unfiled.clear()
    bench.store(message)
    await bench.wait()
    assert bench.outcomes == ["drained"] and bench.ended[0].files == 1


@scene
async def test_drained_notices_by_itself_that_all_is_filed():
    bench = Bench()
    await bench.up()
    session = bench.open()
    bench.accept(session, filed=False)
    bench.close(session)
    await bench.wait(20)
    bench.unfiled.clear()
    await bench.wait(1)
    assert bench.outcomes == ["drained"]


@scene
async def test_a_message_that_cannot_be_filed_does_not_hold_the_round():
    bench = Bench()
    await bench.up()
    session = bench.open()
    message = bench.accept(session, filed=False)
    bench.close(session)
    await bench.wait(20)
    bench.runner.observe(FilingFailed(message=message, mailbox="alice", reason="disk full", tries=1, next_seconds=60))
    await bench.wait()
    assert bench.outcomes == ["drained"] and "waits to be filed" in bench.ended[0].reason


@scene
async def test_a_message_filed_in_one_mailbox_and_stuck_in_another_does_not_hold_the_round():
    bench = Bench()
    await bench.up()
    session = bench.open()
    message = bench.accept(session, filed=False)
    bench.store(message)
    bench.runner.observe(FilingFailed(message=message, mailbox="bob", reason="disk full", tries=1, next_seconds=60))
    bench.close(session)
    await bench.wait(15)
    assert bench.outcomes == ["drained"]


@scene
async def test_a_round_whose_mail_was_tried_in_vain_at_once_says_so():
    bench = Bench()
    await bench.up()
    session = bench.open()
    message = bench.accept(session, filed=False)
    bench.runner.observe(FilingFailed(message=message, mailbox="alice", reason="disk full", tries=1, next_seconds=60))
    bench.unfiled.clear()  # the filer counts what was not tried yet
    bench.close(session)
    await bench.wait(16)
    assert bench.outcomes == ["drained"] and "waits to be filed" in bench.ended[0].reason


@scene
async def test_filing_that_stands_still_does_not_hold_the_round_for_ever():
    bench = Bench()
    await bench.up()
    session = bench.open()
    bench.accept(session, filed=False)
    bench.close(session)
    await bench.wait(15 + 59)
    assert bench.outcomes == []
    await bench.wait(2)
    assert bench.outcomes == ["drained"]


@scene
async def test_the_failed_filing_of_other_mail_does_not_end_the_wait():
    bench = Bench()
    await bench.up()
    session = bench.open()
    bench.accept(session, filed=False)
    bench.close(session)
    await bench.wait(20)
    bench.runner.observe(FilingFailed(message="old", mailbox="alice", reason="disk full", tries=9, next_seconds=60))
    await bench.wait(5)
    assert bench.outcomes == []


# --- incomplete -------------------------------------------------------------------------------------------------------


async def _one_session(bench: Bench, *, code: int = 0, clean: bool = True) -> None:
    session = bench.open()
    if code:
        bench.refuse(session, code)
    bench.close(session, clean=clean)
    await bench.wait(15)


@scene
async def test_a_4yz_of_ours_makes_the_round_incomplete():
    bench = Bench()
    await bench.up()
    await _one_session(bench, code=452)
    end = bench.ended[0]
    assert (end.outcome.value, end.refused, end.next_seconds) == ("incomplete", 1, 60)
    assert "452" in end.reason and bench.runner.state == "retrying"


@scene
async def test_a_5yz_of_ours_does_not_make_the_round_incomplete():
    bench = Bench()
    await bench.up()
    await _one_session(bench, code=550)
    assert bench.outcomes == ["drained"] and bench.ended[0].refused == 1


@scene
async def test_a_session_that_broke_makes_the_round_incomplete():
    bench = Bench()
    await bench.up()
    await _one_session(bench, clean=False)
    assert bench.outcomes == ["incomplete"]


@scene
async def test_a_refused_connection_of_ours_makes_the_round_incomplete():
    bench = Bench()
    await bench.up()
    bench.refuse_connection("isp")
    await bench.wait(120)
    assert bench.outcomes == ["incomplete"] and "203.0.113.77" in bench.ended[0].reason


@scene
async def test_a_refused_connection_that_nobody_awaited_changes_nothing():
    bench = Bench()
    await bench.up()
    bench.refuse_connection("other")
    await bench.wait(120)
    assert bench.outcomes == ["silent"]


@scene
async def test_incomplete_again_and_again_is_asked_after_60_300_660_seconds_then_by_the_clock():
    bench = Bench()
    await bench.up()
    for _ in range(4):
        await _one_session(bench, code=452)
        await bench.wait(bench.ended[-1].next_seconds)
    assert [event.next_seconds for event in bench.ended] == [60, 300, 660, 900]
    assert len(bench.asks) == 5


@scene
async def test_a_silent_re_ask_does_not_end_the_re_asks():
    bench = Bench()
    await bench.up()
    await _one_session(bench, clean=False)
    lost_at = bench.clock.now
    begun: list[float] = []
    bench.on_event = lambda e: begun.append(bench.clock.now - lost_at) if e.name == "round.started" else None
    await bench.wait(1000)
    assert begun == [60, 300, 660]
    assert bench.ended[-1].next_seconds == 900


@scene
async def test_on_a_metered_line_an_incomplete_round_is_asked_again_and_then_left():
    bench = Bench(metered=True)
    await bench.up()
    await _one_session(bench, clean=False)
    await bench.wait(100_000)
    assert len(bench.asks) == 4 and bench.runner.next_ask is None and bench.runner.state == "resting"


# --- by the clock -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("every", "metered", "asks"), [("auto", False, 5), ("auto", True, 1), (0, False, 1), (1800, False, 3)]
)
def test_ask_every_seconds(every, metered, asks):
    @scene
    async def run():
        bench = Bench(NOTHING, metered=metered, ask_every_seconds=every)
        await bench.up()
        await bench.wait(3600)
        assert len(bench.asks) == asks

    run()


@scene
async def test_next_ask_is_told_by_todays_wall_clock():
    bench = Bench(NOTHING)
    await bench.up()
    await bench.wait(100)
    assert (bench.runner.next_ask - bench.clock.wall()).total_seconds() == 800


# --- the line goes ----------------------------------------------------------------------------------------------------


@scene
async def test_s46_line_lost_while_asking_breaks_the_ask_off_and_ends_the_round():
    bench = Bench(None)
    await bench.up()
    bench.runner.line_down("netlink")
    await bench.wait()
    assert bench.outcomes == ["link-lost"] and bench.asks_at_work == 0
    assert bench.runner.state == "down" and bench.ended[0].next_seconds is None


@scene
async def test_s46_the_next_line_up_starts_one_round_not_two():
    bench = Bench()
    await bench.up()
    bench.open()
    bench.runner.line_down("netlink")
    await bench.wait(100)
    await bench.up()
    await bench.wait(3600)
    assert len(bench.started) == 2 and len(bench.asks) == 2


@scene
async def test_s47_a_session_that_outlives_the_line_counts_in_the_next_round():
    bench = Bench()
    await bench.up()
    session = bench.open()
    bench.runner.line_down("netlink")
    await bench.wait(3)
    await bench.up()
    bench.accept(session)
    bench.close(session)
    await bench.wait(120)
    assert bench.outcomes == ["link-lost", "drained"]
    assert bench.ended[1].messages == 1


@scene
async def test_a_session_lost_with_the_line_is_owed_re_asks_even_on_a_metered_line():
    bench = Bench(metered=True)
    await bench.up()
    session = bench.open()
    bench.runner.line_down("netlink")
    bench.close(session, clean=False)
    await bench.up()
    await bench.wait(5000)
    assert bench.outcomes == ["link-lost", "silent", "silent", "silent"]


@scene
async def test_an_ask_that_is_slow_to_go_does_not_overlap_the_next():
    bench = Bench(None)
    bench.cancellation_takes_turns = 4
    await bench.up()
    for line in (OTHER, PPP, OTHER, PPP):
        bench.runner.line_changed(line, "netlink")
        await turn(1)
        due = bench.clock.next_due(bench.clock.now)
        assert due is not None
        due.fire()
        await turn(1)
    await turn(40)
    assert bench.most_asks_at_once == 1 and bench.asks_at_work == 1


@scene
async def test_200_flaps_in_a_minute_start_no_overlap_and_lose_no_round():
    bench = Bench(None)
    bench.cancellation_takes_turns = 3
    open_rounds: set[str] = set()

    def check(event: Event) -> None:
        if event.name == "round.started":
            assert not open_rounds
            open_rounds.add(event.round)
        if isinstance(event, RoundEnded):
            open_rounds.remove(event.round)

    bench.on_event = check
    for _ in range(200):
        bench.runner.line_up(PPP, "netlink")
        await bench.wait(0.15)
        bench.runner.line_down("netlink")
        await bench.wait(0.15)
    assert bench.most_asks_at_once == 1
    assert bench.outcomes == ["link-lost"] * 200
    bench.answers = [NOTHING]
    await bench.up()
    assert bench.outcomes[-1] == "nothing"


@scene
async def test_flaps_without_a_turn_of_the_loop_end_in_one_ask_at_work():
    bench = Bench(None)
    for _ in range(200):
        bench.runner.line_up(PPP, "netlink")
        bench.runner.line_down("netlink")
    await bench.up()
    assert len(bench.asks) == 1 and bench.asks_at_work == 1


# --- requests ---------------------------------------------------------------------------------------------------------


@scene
async def test_a_request_starts_a_round():
    bench = Bench(NOTHING)
    await bench.up()
    bench.request("q1")
    await bench.wait()
    assert bench.started[1].cause == "request" and bench.started[1].requests == ("q1",)


@scene
async def test_a_request_joins_the_round_whose_ask_is_under_way():
    bench = Bench(None)
    await bench.up()
    bench.request("q1")
    assert bench.runner.view().requests == {"r1": ("q1",)}
    bench.waiting[0].set_result(STARTED)
    await bench.wait(120)
    assert len(bench.asks) == 1 and bench.outcomes == ["silent"]


@scene
async def test_a_request_while_nobody_came_yet_is_asked_for_at_once():
    bench = Bench()
    await bench.up()
    await bench.wait(60)
    bench.request("q1")
    await bench.wait(1)
    assert len(bench.asks) == 2 and bench.runner.view().requests == {"r1": ("q1",)}
    await bench.wait(100)
    assert bench.outcomes == [], "the wait for the first connection began anew"
    await bench.wait(20)
    assert bench.outcomes == ["silent"]


@scene
async def test_what_the_provider_agreed_to_stands_when_a_request_hears_that_nothing_waits():
    bench = Bench(STARTED, NOTHING)
    await bench.up()
    bench.request("q1")
    await bench.wait(1)
    assert len(bench.asks) == 2 and bench.outcomes == []
    session = bench.open()
    bench.accept(session)
    bench.close(session)
    await bench.wait(20)
    assert bench.outcomes == ["drained"]


@scene
async def test_a_request_while_mail_is_coming_is_asked_for_right_behind_it():
    bench = Bench(STARTED, NOTHING)
    await bench.up()
    session = bench.open()
    bench.accept(session)
    bench.request("q1")
    bench.close(session)
    await bench.wait(14)
    bench.request("q2")
    assert len(bench.asks) == 1
    await bench.wait(2)
    assert bench.outcomes == ["drained", "nothing"]
    assert bench.started[1].requests == ("q1", "q2")


@scene
async def test_a_request_for_some_nodes_asks_for_those():
    bench = Bench(NOTHING, nodes=("a", "b"))
    await bench.up()
    bench.request("q1", "b")
    await bench.wait()
    assert bench.asks[1] == ("b",)


@scene
async def test_a_request_for_other_nodes_comes_right_behind_the_round():
    bench = Bench(result(answer("a", NodeOutcome.NOTHING)), None, nodes=("a", "b"))
    await bench.up()
    bench.answers = [None]
    bench.request("q1", "a")
    await bench.wait()
    bench.request("q2", "b")
    bench.request("q3", "a")
    await bench.wait(1)
    assert bench.asks[1:] == [("a",)]
    bench.waiting[0].set_result(result(answer("a", NodeOutcome.NOTHING, 251)))
    await bench.wait()
    assert bench.asks[1:] == [("a",), ("b",)]
    assert bench.runner.view().requests["r2"] == ("q1", "q3") and bench.started[2].requests == ("q2",)
    assert bench.ended[1].next_seconds == 0


@scene
async def test_a_round_for_some_nodes_does_not_put_off_the_others():
    bench = Bench(NO_ANSWER, result(answer("b", NodeOutcome.NOTHING, 251)), NOTHING, nodes=("a", "b"), metered=True)
    await bench.up()
    bench.request("q1", "b")
    await bench.wait(2)
    assert bench.asks == [("a", "b"), ("b",), ("a", "b")]


@scene
async def test_a_request_for_a_foreign_node_is_an_error_that_names_it():
    bench = Bench()
    with pytest.raises(UsageError, match="evil"):
        bench.request("q1", "evil\r\nQUIT")


@scene
async def test_a_request_a_moment_before_the_line_is_answered_by_its_round():
    bench = Bench(NOTHING)
    bench.request("q1")
    await bench.wait(2)
    await bench.up()
    assert bench.outcomes == ["nothing"] and bench.started[0].requests == ("q1",)


@scene
async def test_a_request_without_a_line_fails_before_the_asker_gives_up():
    bench = Bench()
    bench.request("q1")
    await bench.wait(4)
    assert bench.outcomes == ["failed"] and bench.started[0].requests == ("q1",)
    assert bench.asks == [] and bench.runner.state == "down"
    assert bench.ended[0].reason == "there is no line to isp"


@scene
async def test_requests_that_follow_each_other_do_not_put_off_that_failure():
    bench = Bench()
    for number in range(5):
        bench.request(f"q{number}")
        await bench.wait(1)
    assert bench.outcomes == ["failed"]


@scene
async def test_the_time_of_a_request_ends_its_round_as_incomplete():
    bench = Bench(NOTHING, STARTED)
    await bench.up()
    bench.request("q1", timeout=30)
    await bench.wait()
    bench.open()
    await bench.wait(30)
    assert bench.outcomes[1] == "incomplete" and "time of the request" in bench.ended[1].reason


@scene
async def test_the_time_of_a_request_breaks_off_an_ask():
    bench = Bench(NOTHING, None)
    await bench.up()
    bench.request("q1", timeout=30)
    await bench.wait(30)
    assert bench.outcomes[1] == "failed" and bench.asks_at_work == 0


@scene
async def test_the_time_of_a_request_ends_no_round_that_others_wait_for():
    bench = Bench(NOTHING, STARTED)
    await bench.up()
    bench.request("q1", timeout=30)
    bench.request("q2")
    await bench.wait(60)
    assert len(bench.outcomes) == 1


@scene
async def test_the_time_of_a_request_ends_no_round_of_the_link():
    bench = Bench()
    await bench.up()
    bench.request("q1", timeout=30)
    await bench.wait(60)
    assert bench.outcomes == []


@scene
async def test_a_request_from_within_round_ended_starts_the_next_round():
    bench = Bench(NOTHING)
    bench.on_event = lambda e: bench.request("q1") if isinstance(e, RoundEnded) and e.round == "r1" else None
    await bench.up()
    assert bench.outcomes == ["nothing", "nothing"] and bench.started[1].requests == ("q1",)


@scene
async def test_a_line_that_goes_from_within_round_started_ends_that_round():
    bench = Bench()
    bench.on_event = lambda e: bench.runner.line_down("hook") if e.name == "round.started" else None
    await bench.up()
    assert bench.outcomes == ["link-lost"] and bench.asks_at_work == 0


# --- reload and stop --------------------------------------------------------------------------------------------------


@scene
async def test_a_changed_configuration_counts_from_the_next_round():
    bench = Bench(NOTHING, None, NOTHING)
    await bench.up()
    bench.request("q1")
    await bench.wait()
    bench.runner.reconfigure(Provider(host="h", name="isp", nodes=("x",)))
    bench.waiting[0].set_result(NOTHING)
    await bench.wait(900)
    assert bench.asks == [(NODE,), (NODE,), ("x",)]


@scene
async def test_a_removed_provider_finishes_its_round_and_starts_no_other():
    bench = Bench()
    await bench.up()
    finished = asyncio.ensure_future(bench.runner.finish())
    await bench.wait(119)
    assert not finished.done()
    await bench.wait(1)
    await finished
    await bench.wait(5000)
    assert bench.outcomes == ["silent"] and bench.ended[0].next_seconds is None
    assert len(bench.asks) == 1 and bench.clock.pending == []


@scene
async def test_stop_ends_an_open_round_as_incomplete_and_leaves_nothing_running():
    bench = Bench(None)
    await bench.up()
    await bench.runner.stop()
    assert bench.outcomes == ["incomplete"] and bench.ended[0].reason == "stopped"
    assert bench.asks_at_work == 0 and bench.clock.pending == [] and bench.runner.idle


@scene
async def test_after_stop_nothing_starts_a_round():
    bench = Bench(NOTHING)
    await bench.up()
    await bench.runner.stop()
    await bench.up(OTHER)
    bench.request("q1")
    bench.runner.woke()
    await bench.wait(5000)
    assert len(bench.asks) == 1


# --- in the long run --------------------------------------------------------------------------------------------------


@scene
async def test_s45_ten_thousand_silent_rounds_leave_memory_flat():
    """The rounds, and what follows them in the agent: status, the explanation of silence, meter, the hooks' gate."""
    import gc

    bench = Bench(keep_events=False)
    observers = followers(bench)
    ends = 0

    def happened(event: Event) -> None:
        nonlocal ends
        ends += isinstance(event, RoundEnded) and event.outcome.value == "silent"
        for observe in observers:
            observe(Stamped(bench.clock.wall(), event))

    def blocks() -> int:
        bench.asks.clear()
        gc.collect()
        return sys.getallocatedblocks()  # tracemalloc would take three times as long as all the rounds

    bench.on_event = happened
    await bench.up()
    one = 120 + 900
    await bench.wait(1000 * one)
    before = blocks()
    await bench.wait(9000 * one)
    after = blocks()
    assert ends == 10_000
    assert after - before < 500, "of each round something is kept"


def followers(bench: Bench) -> list[Callable[[Stamped], object]]:
    async def resolve(host: str) -> tuple[str, ...]:
        return ()

    warnings = Warnings()
    around = Around(
        provider=lambda name: Provider(host="mx.isp.example", nodes=(NODE,), name=name),
        source=lambda name: PPP.source,
        resolve=resolve,
        port=lambda: None,
        at=lambda peer: (),
        wall=bench.clock.wall,
        raise_=warnings.raise_,
        clear=warnings.clear,
        emit=lambda event: None,
    )
    explainer = Explainer(around, lambda work: work.close())
    meter = Meter(lambda event: None, monotonic=bench.clock.monotonic, wall=bench.clock.wall)
    gate = Gate(lambda stamped: None, busy=lambda line: False)
    return [
        StatusFold().fold,
        lambda stamped: explainer.observe(stamped.event),
        lambda stamped: meter.observe(stamped.event),
        gate.observe,
        lambda stamped: gate.check(stamped.event),
    ]


# --- a 458 that stays -------------------------------------------------------------------------------------------------


@scene
async def test_s41_458_is_tried_again_after_30_60_and_120_s_and_then_counts_as_refused():
    bench = Bench(RETRY)
    await bench.up()
    pauses = []
    for _ in range(4):
        pauses.append(bench.ended[-1].next_seconds)
        await bench.wait(pauses[-1])
    assert pauses == [30, 60, 120, 3600]
    assert bench.outcomes[:4] == ["failed", "failed", "failed", "refused"]
    told = [event.outcome for event in bench.of(AskAnswered)]
    assert told[:4] == [NodeOutcome.RETRY] * 3 + [NodeOutcome.REFUSED]


@scene
async def test_another_answer_between_begins_the_patience_with_458_anew():
    bench = Bench(RETRY, RETRY, NOTHING, RETRY)
    await bench.up()
    await bench.wait(90)
    bench.request("q")
    await bench.wait()
    assert bench.ended[-1].next_seconds == 30


@scene
async def test_a_new_line_begins_the_patience_with_458_anew():
    bench = Bench(RETRY)
    await bench.up()
    await bench.wait(90)
    bench.runner.line_down("netlink")
    await bench.up()
    assert bench.ended[-1].next_seconds == 30


@scene
async def test_no_answer_behind_a_458_is_no_458():
    bench = Bench(RETRY, NO_ANSWER, RETRY, NOTHING)
    await bench.up()
    assert bench.ended[-1].next_seconds == 30
    await bench.wait(30)
    assert bench.ended[-1].next_seconds == 5, "the second failure in a row"
    await bench.wait(5)
    assert bench.ended[-1].next_seconds == 60, "the second 458"


@scene
async def test_no_answer_at_all_keeps_the_schedule_of_retry_seconds():
    bench = Bench(RETRY, NO_ANSWER)
    await bench.up()
    await bench.wait(30)
    bench.runner.line_down("netlink")
    await bench.up()
    assert bench.ended[-1].next_seconds == 2


# --- what the provider counted ----------------------------------------------------------------------------------------


def counted(messages: int | None) -> NodeAnswer:
    return NodeAnswer(NODE, NodeOutcome.STARTED, 253, "counted", messages, 0.1)


@scene
async def test_all_that_was_counted_is_there_and_the_line_is_free_soon():
    bench = Bench(result(counted(1)))
    await bench.up()
    session = bench.open()
    bench.accept(session)
    bench.close(session)
    await bench.wait(3)
    assert bench.outcomes == ["drained"] and len(bench.asks) == 1


@scene
async def test_less_than_was_counted_is_asked_for_once_more_and_only_once():
    bench = Bench(result(counted(2)))
    await bench.up()
    for _ in range(2):
        session = bench.open()
        bench.close(session)
        await bench.wait(14)
        assert bench.outcomes == []
        await bench.wait(1)
    await bench.wait(300)
    assert len(bench.asks) == 2 and bench.outcomes == ["drained"]


@scene
async def test_a_second_ask_that_hears_of_nothing_more_ends_the_round_soon():
    bench = Bench(result(counted(2)), NOTHING)
    await bench.up()
    session = bench.open()
    bench.accept(session)
    bench.close(session)
    await bench.wait(15)
    assert len(bench.asks) == 2 and bench.outcomes == []
    await bench.wait(3)
    assert bench.outcomes == ["drained"] and bench.ended[0].messages == 1


@scene
@pytest.mark.parametrize("told", [NO_ANSWER, REFUSED, RETRY])
async def test_a_second_ask_that_fails_makes_the_round_incomplete_and_never_failed(told):
    bench = Bench(result(counted(2)), told)
    await bench.up()
    session = bench.open()
    bench.accept(session)
    bench.close(session)
    await bench.wait(30)
    assert bench.outcomes == ["incomplete"] and bench.ended[0].messages == 1


@scene
async def test_a_number_for_some_nodes_alone_is_no_number():
    bench = Bench(result(counted(1), answer("b")), nodes=(NODE, "b"))
    await bench.up()
    bench.close(bench.open())
    await bench.wait(14)
    assert bench.outcomes == []
    await bench.wait(1)
    assert bench.outcomes == ["drained"] and len(bench.asks) == 1


@scene
async def test_the_second_ask_is_for_the_nodes_that_started():
    bench = Bench(result(counted(2), answer("b", NodeOutcome.NOTHING, 251)), nodes=(NODE, "b"))
    await bench.up()
    bench.close(bench.open())
    await bench.wait(15)
    assert bench.asks == [(NODE, "b"), (NODE,)]


# --- habits, hours, method --------------------------------------------------------------------------------------------


@scene
async def test_a_provider_that_calls_at_once_is_not_waited_for_two_minutes():
    bench = Bench(ask_every_seconds=600)
    await bench.up()
    for _ in range(5):
        bench.close(bench.open())
        await bench.wait(615)
    assert bench.outcomes == ["drained"] * 5
    await bench.wait(30)
    assert bench.outcomes[-1] == "silent" and bench.ended[-1].seconds == 15


@scene
async def test_a_call_after_the_round_gave_up_widens_the_wait():
    bench = Bench(ask_every_seconds=600)
    await bench.up()
    for _ in range(5):
        bench.close(bench.open())
        await bench.wait(615)
    await bench.wait(100)
    assert bench.outcomes[-1] == "silent"
    bench.close(bench.open(None))
    await bench.wait(700)
    assert bench.ended[-1].seconds == 120


@scene
async def test_outside_the_hours_the_line_alone_does_not_make_us_ask_but_a_request_does():
    def closed_until_nine(at):
        return max(0.0, (at.replace(hour=9, minute=0, second=0) - at).total_seconds())

    bench = Bench(NOTHING, runner_options={"closed_for": closed_until_nine})
    await bench.up()
    await bench.wait(3599)
    assert bench.asks == [] and bench.runner.next_ask.hour == 9
    bench.request("q")
    await bench.wait()
    assert len(bench.asks) == 1


@scene
async def test_when_the_hours_begin_the_ask_that_was_held_back_is_made():
    def closed_until_nine(at):
        return max(0.0, (at.replace(hour=9, minute=0, second=0) - at).total_seconds())

    bench = Bench(NOTHING, runner_options={"closed_for": closed_until_nine})
    await bench.up()
    await bench.wait(3600)
    assert len(bench.asks) == 1 and bench.started[0].cause == "link"


@scene
async def test_a_clock_that_was_set_back_while_we_waited_keeps_the_hours_closed():
    closed = [100.0]
    bench = Bench(NOTHING, runner_options={"closed_for": lambda at: closed[0]})
    await bench.up()
    await bench.wait(100)
    assert bench.asks == []
    closed[0] = 0.0
    await bench.wait(100)
    assert len(bench.asks) == 1


@scene
async def test_auto_turns_to_atrn_after_asking_twice_in_vain_and_says_why():
    offered = AskResult((answer(),), None, True, "")
    bench = Bench(offered, method=Method.AUTO, username="office", ask_every_seconds=600)
    await bench.up()
    await bench.wait(1500)
    assert [event.method for event in bench.started] == ["etrn", "etrn", "atrn"]
    assert [(event.method, event.port) for event in bench.of(MethodChosen)] == [("etrn", 25), ("atrn", 25)]
    assert "twice" in bench.of(MethodChosen)[1].reason or "2 times" in bench.of(MethodChosen)[1].reason
    assert bench.runner.choice.method is Method.ATRN


@scene
async def test_a_configured_method_is_no_event():
    bench = Bench()
    await bench.up()
    assert bench.of(MethodChosen) == [] and bench.started[0].method == "etrn"


@scene
async def test_what_is_offered_at_another_port_says_nothing_about_the_providers():
    bench = Bench(STARTED, method=Method.AUTO, username="office", ask_every_seconds=600)
    private = Line("eth7", "192.168.1.2", None)
    await bench.up(private)
    await bench.wait(720)
    bench.answers = [AskResult((answer(),), None, True, "")]
    await bench.wait(1500)
    ports = [event.port for event in bench.of(MethodChosen)]
    assert ports == [25, 25, 366], "asked twice in vain at 25, where nothing is offered; then at 366, and that stays"
    assert [event.method for event in bench.started] == ["etrn", "etrn", "atrn", "atrn"]


@scene
async def test_auto_turns_to_atrn_at_once_where_etrn_is_refused_for_good_and_only_once():
    told = AskResult((answer(outcome=NodeOutcome.REFUSED, code=502),), None, True, "")
    bench = Bench(told, method=Method.AUTO, username="office")
    await bench.up()
    assert [event.method for event in bench.started] == ["etrn", "atrn"]
    assert bench.outcomes == ["refused", "refused"]
    await bench.wait(3600)
    assert len(bench.started) == 2, "both ways are refused: now somebody has to change something"
    await bench.wait(3600)
    assert [event.method for event in bench.started] == ["etrn", "atrn", "etrn"]


@scene
async def test_auto_stays_with_etrn_for_a_provider_that_calls_hours_later():
    offered = AskResult((answer(),), None, True, "")
    bench = Bench(offered, method=Method.AUTO, username="office", ask_every_seconds=3600)
    await bench.up()
    for _ in range(4):
        await bench.wait(1800)
        bench.close(bench.open(None))
        await bench.wait(1920)
    assert {event.method for event in bench.started} == {"etrn"} and set(bench.outcomes) == {"silent"}


@scene
async def test_mail_that_comes_over_the_turned_connection_does_not_make_auto_think_that_we_can_be_reached():
    offered = AskResult((answer(),), None, True, "")
    bench = Bench(offered, method=Method.AUTO, username="office", ask_every_seconds=600)
    await bench.up()
    await bench.wait(1450)
    for _ in range(3):
        assert bench.started[-1].method == "atrn"
        bench.close(bench.open())
        await bench.wait(660)


@scene
async def test_auto_remembers_what_an_earlier_run_saw():
    seen = Seen(None, 2)
    bench = Bench(STARTED, method=Method.AUTO, username="office", runner_options={"seen": seen})
    await bench.up(Line("eth7", "192.168.1.2", None))
    assert [event.method for event in bench.started] == ["atrn"]


@scene
async def test_behind_a_server_that_hangs_up_after_every_command_the_other_nodes_get_their_turn():
    told = NodeAnswer("a", NodeOutcome.REFUSED, 459, "no", None, 0.1)
    cut = AskFailure("ask", "too many errors", 421, True, None)
    bench = Bench(result(told, answer("b", NodeOutcome.RETRY, 421), failure=cut), NOTHING, nodes=("a", "b", "c"))
    await bench.up()
    await bench.wait(2)
    assert bench.asks == [("a", "b", "c"), ("c", "b", "a")]


@scene
async def test_200_flaps_start_no_more_rounds_than_settled_changes_and_none_is_lost():
    bench = Bench(None)
    for _ in range(200):
        await bench.up()
        await bench.wait(0.2)
        bench.runner.line_down("netlink")
        await bench.wait(0.1)
    assert len(bench.started) == len(bench.ended) == 200 and bench.most_asks_at_once == 1
    assert set(bench.outcomes) == {"link-lost"}
    bench.answers = [NOTHING]
    await bench.up()
    assert bench.outcomes[-1] == "nothing"
