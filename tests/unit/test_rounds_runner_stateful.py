"""`rounds.runner` with everything real but the clock, the asks and the spool: its rules hold in whatever order.

The last test shows that this one would notice: it finds each of a list of planted defects.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from siteagent.events import Event, FilingFailed, Line, NodeOutcome, RoundEnded, RoundStarted
from siteagent.rounds.asking import Asker
from siteagent.rounds.ledger import Ledger
from siteagent.rounds.machine import TABLE, Action, Ignored, Row, Signal, State
from siteagent.rounds.runner import Request, Runner
from siteagent.wire.etrn import AskResult
from tests.rounds_fakes import (
    NO_ANSWER,
    OTHER,
    PPP,
    Bench,
    answer,
    result,
    turn,
)

_BOTH = [(outcome, result(answer("a", outcome), answer("b", outcome))) for outcome in NodeOutcome]
_STARTED, _NOTHING = (dict(_BOTH)[outcome] for outcome in (NodeOutcome.STARTED, NodeOutcome.NOTHING))
_COUNTED = result(*(replace(answer(node, code=253), promised=2) for node in "ab"))
_MIXED = result(answer("a"), answer("b", NodeOutcome.RETRY, 458))
_BUSY = result(answer("a", NodeOutcome.RETRY, 458), answer("b", NodeOutcome.RETRY, 458))
_CUT = result(answer("a"), failure=NO_ANSWER.failure)
ANSWERS = [_STARTED, _STARTED, _COUNTED, *dict(_BOTH).values(), _MIXED, _BUSY, _CUT, NO_ANSWER, RuntimeError("boom")]

# What is promised to the operator (docs/flow.md), written down once more, and not taken from the code.
RETRY_SECONDS = (0.0, 2.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0)
GOOD = frozenset({"drained", "nothing", "silent", "asked"})
CLOCK, FIRST_REASK, LAST_REASK, DAY, BUSY_LAST = 900.0, 60.0, 660.0, 86400.0, 120.0


class Rounds(RuleBasedStateMachine):
    runner: type[Runner] = Runner

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.bench: Bench
        self.line: Line | None = None
        self.sessions: list[str] = []
        self.unfiled: list[str] = []
        self.requested: dict[str, float | None] = {}  # id -> its time
        self.answered: list[str] = []  # requests of rounds that ended
        self.round_open: str | None = None
        self.round_cause = ""
        self.round_began = 0.0
        self.asks_before = 0  # the round that is open
        self.asked: set[str] = set()  # the nodes of the open round
        self.wanted: dict[str, set[str]] = {}  # request -> its nodes
        self.counted: int | None = None  # what the provider said it has
        self.handed = 0  # what it tried to hand over
        self.came = 0  # sessions that count in it
        self.opened = False  # one of them was opened in it
        self.troubled = False
        self.agreed = False
        self.busy = False  # some node was answered 458 just now
        self.line_news = False
        self.failures = 0  # in a row, since the line was news
        self.trouble_at: float | None = None  # the latest, what it left is asked for again and again for a while
        self.succeeded_at: float | None = None
        self.by_clock = True
        self.ask_only = False
        self.ask_again_when_ended = False
        self.leaves = "at rest"
        self.leaving = False
        self.broken: AssertionError | None = None

    @initialize(
        metered=st.booleans(),
        ask_only=st.sampled_from([False, False, False, True]),
        leaves=st.sampled_from(["at rest", "at rest", "at rest", "at once", "removed"]),
    )
    def build(self, metered: bool, ask_only: bool, leaves: str) -> None:
        self.by_clock, self.ask_only, self.leaves = not metered, ask_only, leaves

        async def make() -> Bench:
            return Bench(None, nodes=("a", "b"), metered=metered, ask_only=ask_only, runner=self.runner)

        self.bench = self.loop.run_until_complete(make())
        self.bench.cancellation_takes_turns = 2
        self.bench.on_event = self.on_event

    def on_event(self, event: Event) -> None:
        try:
            if isinstance(event, RoundStarted):
                self.on_started(event)
            if isinstance(event, RoundEnded):
                self.on_ended(event)
        except AssertionError as error:
            self.broken = self.broken or error  # asyncio would only log it, where a callback led here
        if isinstance(event, RoundEnded) and self.ask_again_when_ended:
            self.ask_again_when_ended = False
            self.ask_for_a_round(None)
            self.ask_for_a_round("a")

    def on_started(self, event: RoundStarted) -> None:
        assert self.round_open is None, "two rounds at a time"
        assert not self.leaving, "a round of a provider that was removed"
        self.round_open, self.round_cause, self.round_began = event.round, event.cause, self.bench.clock.now
        self.asks_before = len(self.bench.asks)
        self.asked, self.counted, self.handed = set(event.nodes), None, 0
        self.came, self.opened, self.troubled, self.agreed = len(self.sessions), False, False, False

    def on_ended(self, event: RoundEnded) -> None:
        assert self.round_open == event.round, "an end without a start"
        self.round_open = None
        answers = self.bench.runner.view().requests[event.round]
        assert all(self.wanted[request] <= self.asked for request in answers), "answered without having been asked"
        self.answered += answers
        outcome = event.outcome.value
        assert event.sessions == self.came, "sessions are counted wrong"
        self.outcome_is_true(outcome)
        self.next_ask_is_in_time(outcome, event.next_seconds)
        if outcome in GOOD:
            self.succeeded_at = self.bench.clock.now

    def outcome_is_true(self, outcome: str) -> None:
        if outcome in GOOD:
            assert not self.sessions, "over, with a session open"
            assert not self.troubled, "well, with something left at the provider"
        match outcome:
            case "drained":
                assert self.came, "drained, and nobody came"
                again = len(self.bench.asks) - self.asks_before > 1
                assert again or self.counted is None or self.handed >= self.counted, (
                    "less than it counted, and not asked"
                )
            case "silent":
                assert self.agreed and not self.came, "silent, and somebody came"
            case "nothing":
                assert not self.came and not self.agreed
            case "asked":
                assert self.ask_only and self.agreed
            case "incomplete":
                assert self.troubled or self.leaving or self.time_is_up(), "incomplete, and nothing happened"
            case "refused":
                assert not self.agreed
            case "failed":
                assert (not self.agreed and not self.opened) or self.time_is_up()
            case "link-lost":
                assert self.line_news, "the line is as it was"
        assert (
            self.ask_only == (outcome == "asked")
            or outcome in ("nothing", "incomplete", "refused", "failed")
            or (outcome == ("link-lost" if self.ask_only else outcome))
        )

    def next_ask_is_in_time(self, outcome: str, seconds: float | None) -> None:
        """At the end of the round it is said when the next ask comes: never later than was promised."""
        clock, now = CLOCK if self.by_clock else None, self.bench.clock.now
        calm = self.trouble_at is None
        if outcome == "incomplete" or (outcome == "link-lost" and (self.sessions or self.troubled)):
            self.trouble_at = now
        elif outcome in GOOD and self.trouble_at is not None and now - self.trouble_at > LAST_REASK:
            self.trouble_at = None
        if self.leaving or (outcome == "link-lost" and self.line is None):
            return
        if outcome == "failed":
            if self.line is None:
                return
            self.failures += 1
            longest = BUSY_LAST if self.busy else RETRY_SECONDS[min(self.failures, len(RETRY_SECONDS) - 1)]
            assert seconds is not None and seconds <= longest
            return
        self.failures = 0
        if outcome == "incomplete" and calm:
            assert seconds is not None and seconds <= FIRST_REASK
        elif outcome == "refused":
            assert seconds is not None and seconds <= DAY
        elif outcome == "link-lost":
            assert seconds is not None and seconds <= RETRY_SECONDS[0]
        else:
            assert clock is None or (seconds is not None and seconds <= clock)

    def time_is_up(self) -> bool:
        """The round was for requests alone, each of which has its time, and all of it is over."""
        if self.round_cause != "request":
            return False
        round_id = list(self.bench.runner.view().requests)[-1]
        times = [self.requested[request] for request in self.bench.runner.view().requests[round_id]]
        known = [seconds for seconds in times if seconds is not None]
        return bool(known) and len(known) == len(times) and self.bench.clock.now >= self.round_began + max(known)

    def run(self, act: Callable[[], Any] = lambda: None, *, seconds: float = 0.0) -> None:
        async def scene() -> None:
            doing = act()
            if asyncio.iscoroutine(doing):
                await doing
            await self.bench.wait(seconds)

        self.loop.run_until_complete(scene())
        self.bench.waiting = [future for future in self.bench.waiting if not future.done()]
        self.line_news = False
        if self.broken is not None:
            raise self.broken

    def ask_for_a_round(self, node: str | None, seconds: float | None = None) -> None:
        name = f"q{len(self.requested)}"
        self.requested[name], self.wanted[name] = seconds, {node} if node else {"a", "b"}
        self.bench.runner.request(Request(name, (node,) if node else None, seconds))

    def news_of_the_line(self, act: Callable[[], Any]) -> None:
        """What starts the schedules anew, and is followed by an ask at once where there is a line."""
        self.line_news, self.failures = True, 0
        asks = len(self.bench.asks)
        self.run(act)
        assert self.line is None or len(self.bench.asks) > asks, "news of the line, and nobody is asked"

    # what happens: mostly what comes next, now and then something else

    @rule(line=st.sampled_from([PPP, OTHER]))
    @precondition(lambda self: self.line is None)
    def line_comes_up(self, line: Line) -> None:
        self.line = line
        self.news_of_the_line(lambda: self.bench.runner.line_up(line, "netlink"))

    @rule(told=st.sampled_from(ANSWERS))
    @precondition(lambda self: self.bench.waiting)
    def provider_answers(self, told: AskResult | Exception) -> None:
        self.note(told)
        future = self.bench.waiting[0]
        self.run(lambda: future.set_exception(told) if isinstance(told, Exception) else future.set_result(told))

    @rule(told=st.sampled_from([_STARTED, _COUNTED]))
    @precondition(lambda self: self.bench.waiting)
    def provider_agrees(self, told: AskResult) -> None:
        self.provider_answers(told)

    @rule()
    @precondition(lambda self: self.bench.waiting)
    def provider_is_not_reached(self) -> None:
        self.provider_answers(NO_ANSWER)

    def note(self, told: AskResult | Exception) -> None:
        """What the answer means for the round: some nodes started, some are owed an ask."""
        answers = () if isinstance(told, Exception) else told.answers
        outcomes = {one.outcome for one in answers}
        unreached = set(self.bench.asks[-1]) - {one.node for one in answers}
        owed = bool(unreached or outcomes & {NodeOutcome.RETRY, NodeOutcome.UNKNOWN})
        started = NodeOutcome.STARTED in outcomes
        again = len(self.bench.asks) - self.asks_before > 1
        refused = not started and not owed and NodeOutcome.NOTHING not in outcomes
        if owed and (started or again or self.opened):
            self.troubled = True
        if refused and again:
            self.troubled = True
        self.agreed = self.agreed or started
        counts = [one.promised for one in answers if one.outcome is NodeOutcome.STARTED]
        self.counted = sum(count or 0 for count in counts) if counts and None not in counts else None
        self.busy = any(one.code == 458 for one in answers)

    @rule()
    @precondition(lambda self: self.line and not self.ask_only and len(self.sessions) < 2)
    def session_opens(self) -> None:
        if self.round_open is not None:
            self.came, self.opened = self.came + 1, True
        self.run(lambda: self.sessions.append(self.bench.open()))

    @rule(told=st.sampled_from([_STARTED, _COUNTED]))
    @precondition(lambda self: self.bench.waiting and not self.sessions and not self.ask_only)
    def all_goes_well(self, told: AskResult) -> None:
        """What happens nearly always, and by single steps would hardly come about."""
        self.provider_answers(told)
        if self.round_open:
            self.session_opens()
            self.mail_comes("filed")
            self.session_closes(True)
        if not self.sessions and self.bench.clock.pending:
            self.the_next_timer_goes_off()

    @rule(clean=st.sampled_from([True, True, True, False]))
    @precondition(lambda self: self.sessions)
    def session_closes(self, clean: bool) -> None:
        session = self.sessions.pop()
        self.troubled = self.troubled or not clean
        self.run(lambda: self.bench.close(session, clean=clean))

    @rule(what=st.sampled_from(["filed", "filed", "unfiled", "451", "551"]))
    @precondition(lambda self: self.sessions)
    def mail_comes(self, what: str) -> None:
        session = self.sessions[0]
        self.handed += 1
        if what.isdigit():
            self.troubled = self.troubled or what[0] == "4"
            self.run(lambda: self.bench.refuse(session, int(what)))
        elif what == "filed":
            self.run(lambda: self.bench.accept(session))
        else:
            self.run(lambda: self.unfiled.append(self.bench.accept(session, filed=False)))

    @rule(fails=st.booleans())
    @precondition(lambda self: self.unfiled)
    def filing_moves(self, fails: bool) -> None:
        message = self.unfiled.pop()
        if fails:
            event = FilingFailed(message=message, mailbox="alice", reason="full", tries=1, next_seconds=60)
            self.run(lambda: self.bench.runner.observe(event))
        else:
            self.bench.unfiled.clear()
            self.run(lambda: self.bench.store(message))

    @rule(seconds=st.sampled_from([0.5, 15, 120, 900, 4000]))
    @precondition(lambda self: self.line)
    def time_passes(self, seconds: float) -> None:
        self.run(seconds=seconds)

    @rule()
    @precondition(lambda self: self.bench.clock.pending)
    def the_next_timer_goes_off(self) -> None:
        self.run(seconds=self.bench.clock.pending[0])

    @rule(
        node=st.sampled_from([None, None, "a", "b"]),
        seconds=st.sampled_from([None, None, 20.0, 200.0]),
    )
    @precondition(lambda self: self.line or len(self.requested) < 5)
    def somebody_asks(self, node: str | None, seconds: float | None) -> None:
        self.run(lambda: self.ask_for_a_round(node, seconds))

    @rule()
    @precondition(lambda self: self.line and self.round_open is None)
    def others_ask_while_one_node_is_asked_for(self) -> None:
        self.somebody_asks("a", None)
        self.somebody_asks("b", None)

    @rule(what=st.sampled_from(["down", "changed", "woke", "flap"]))
    @precondition(lambda self: self.line)
    def line_is_disturbed(self, what: str) -> None:
        runner = self.bench.runner
        if what == "woke":
            self.news_of_the_line(runner.woke)
            return
        was, self.line = self.line, {"down": None, "flap": OTHER}.get(what, OTHER if self.line == PPP else PPP)
        if what == "down":
            self.news_of_the_line(lambda: runner.line_down("netlink"))
        elif what == "changed":
            self.news_of_the_line(lambda: runner.line_changed(self.line, "netlink"))
        else:
            assert was is not None
            self.news_of_the_line(lambda: self.flap(was))

    async def flap(self, was: Line) -> None:
        """The way changes faster than a broken-off ask can go."""
        for line in (OTHER, PPP, OTHER) if was == PPP else (PPP, OTHER, PPP, OTHER):
            self.bench.runner.line_changed(line, "netlink")
            due = self.bench.clock.next_due(self.bench.clock.now)
            if due is not None:
                due.fire()
            await turn(1)

    @rule(later=st.sampled_from([0.0, 70.0]))
    @precondition(lambda self: self.line)
    def somebody_hints(self, later: float) -> None:
        self.run(seconds=later)
        runner, now = self.bench.runner, self.bench.clock.now
        asks = len(self.bench.asks)
        missed = self.succeeded_at is None or now - self.succeeded_at >= 60
        counts = runner.state in ("resting", "retrying") and missed and now - (runner.asked_at or 0) >= 10
        self.run(lambda: runner.nudge("hook"))
        assert not (self.line and counts) or len(self.bench.asks) > asks, "a hint that counts, and nobody is asked"

    @rule()
    @precondition(lambda self: self.round_open and not self.ask_only)
    def a_stranger_is_refused(self) -> None:
        self.troubled = True
        self.run(lambda: self.bench.refuse_connection("isp"))

    @rule()
    @precondition(lambda self: not self.ask_again_when_ended)
    def somebody_will_ask_from_within_the_end(self) -> None:
        self.ask_again_when_ended = True

    # the rules

    @invariant()
    def something_is_pending(self) -> None:
        if not self.line or (self.bench.runner.state == "resting" and not self.by_clock):
            return
        assert self.bench.asks_at_work or self.bench.clock.pending or self.sessions, "nothing is pending"

    @invariant()
    def asks_never_overlap(self) -> None:
        assert self.bench.most_asks_at_once <= 1, "two asks at a time"

    @invariant()
    def the_open_round_is_the_one_that_was_told(self) -> None:
        assert self.bench.runner.round == self.round_open

    @invariant()
    def no_request_is_answered_twice(self) -> None:
        assert len(self.answered) == len(set(self.answered))

    @invariant()
    def nobody_waits_where_a_round_could_begin(self) -> None:
        free = self.line and self.round_open is None and not self.leaving
        assert not free or len(self.answered) == len(self.requested), "a request waits, and no round is open"

    @invariant()
    def no_round_lasts_longer_than_those_who_wait_for_it(self) -> None:
        assert self.round_open is None or not self.time_is_up(), "the time of the requests is up"

    def teardown(self) -> None:
        """Whatever came before: with sessions closed and asks answered, every round ends and no request is lost."""
        try:
            if hasattr(self, "bench"):
                if self.leaves == "removed":
                    self.be_removed()
                elif self.leaves == "at rest":
                    self.come_to_rest()
                    assert sorted(self.answered) == sorted(self.requested), "a request is lost"
                self.leaving = True
                self.loop.run_until_complete(self.bench.runner.stop())
                self.run()
                assert self.round_open is None, "a round outlives stop()"
                assert not self.bench.clock.pending and not self.bench.asks_at_work, "something outlives stop()"
        finally:
            self.loop.run_until_complete(self.leave_no_task())
            self.loop.close()

    async def leave_no_task(self) -> None:
        """Where a rule did not hold, stop() was not reached."""
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def be_removed(self) -> None:
        """The round that is open ends, no other begins, and then it is over."""
        removed = self.loop.create_task(self.bench.runner.finish())
        self.run()
        self.leaving = True
        self.come_to_rest()
        assert removed.done(), "the provider that was removed stays"

    def come_to_rest(self) -> None:
        while self.sessions:
            session = self.sessions.pop()
            self.run(lambda session=session: self.bench.close(session))
        self.bench.answers = [_NOTHING]
        for _ in range(8):
            for future in self.bench.waiting:
                self.note(_NOTHING)
                self.run(lambda future=future: future.set_result(_NOTHING))
            self.run(seconds=200)
        assert self.round_open is None, "the round does not end"


@pytest.mark.timeout(600)  # a defect that is found is made small first
def test_the_rules_hold_whatever_happens():
    short = settings.default.max_examples <= 100
    # The short form is the same every day: what it finds is news of a change. The long one looks elsewhere each time.
    run_state_machine_as_test(Rounds, settings=settings(stateful_step_count=40, database=None, derandomize=short))


# --- planted defects --------------------------------------------------------------------------------------------------


class LosesErrorsOfTheAsk(Runner):
    def _take_result(self, current: Any, result: AskResult) -> Signal | None:
        bug = result.failure is not None and "our bug" in result.failure.reason
        return None if bug else super()._take_result(current, result)


class ForgetsWhatItHolds(Runner):
    def _hold(self) -> None:
        if self._round is None:
            super()._hold()


class LeavesTimersRunning(Runner):
    def _stop_timer(self) -> None:
        self._next_at = None


class _Overlapping(Asker):
    async def _run(self, nodes: Any, line: Any, tell: Any, broken_off: Any) -> AskResult:
        return await super()._run(nodes, line, tell, frozenset())


class AsksBesideTheBrokenOff(Runner):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._asker = _Overlapping(kwargs["ask"])


class WaitsForFilingForEver(Runner):
    def _unfiled(self) -> bool:
        return self._ledger.unfiled(self._waiting_to_file)


class DecidesARequestTooEarly(Runner):
    def request(self, request: Request) -> None:
        signal = self._take_request(request)
        self._feed(lambda: signal)


class _ForgetsOlderSessions(Ledger):
    def begin(self, round_id: str) -> None:
        self._sessions.clear()
        super().begin(round_id)


class ForgetsSessionsOpenBeforeTheAsk(Runner):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._ledger = _ForgetsOlderSessions(self.name)


class LooksForQuietBetweenSessions(Runner):
    """Takes the end of any session for the end of the last."""

    def _take_event(self, event: Event) -> Signal | None:
        signal = super()._take_event(event)
        return Signal.LAST_SESSION_CLOSED if signal is Signal.SESSION_CLOSED else signal


def with_rows(name: str, change: Callable[[Row], Row | None], *pairs: tuple[State, Signal]) -> type[Runner]:
    """A runner with other rows for `pairs`; None: nothing happens there."""
    table = dict(TABLE)
    for pair in pairs:
        row = table[pair]
        assert isinstance(row, Row)
        table[pair] = change(row) or Ignored("planted")

    def __init__(self: Runner, *args: Any, **kwargs: Any) -> None:
        Runner.__init__(self, *args, **{**kwargs, "table": table})

    return type(name, (Runner,), {"__init__": __init__})


def without(action: Action) -> Callable[[Row], Row]:
    return lambda row: Row(row.state, tuple(each for each in row.actions if each is not action))


def nothing(row: Row) -> None:
    return None


S, G, A = State, Signal, Action
IN_THE_TABLE = [
    with_rows("PlansNothingWhenAllCame", without(A.PLAN_CLOCK), (S.QUIET, G.SETTLED), (S.FILING, G.SETTLED)),
    with_rows("AsksNobodyOnAnotherLine", nothing, (S.RESTING, G.LINE_CHANGED), (S.RETRYING, G.LINE_CHANGED)),
    with_rows("RemembersFailuresOverALine", without(A.FORGET), (S.DOWN, G.LINE_UP), (S.RETRYING, G.LINE_CHANGED)),
    with_rows("HasTimeForEver", nothing, (S.ASKING, G.TIME_IS_UP)),
    with_rows("CountsAndDoesNotAsk", without(A.ASK), (S.QUIET, G.SHORT)),
    with_rows("WaitsForNoQuiet", without(A.TIME_QUIET), (S.RECEIVING, G.LAST_SESSION_CLOSED)),
    with_rows("GoesOnWithAnAskOfAnotherLine", without(A.BREAK_OFF), (S.ASKING, G.LINE_DOWN), (S.ASKING, G.WOKE)),
    with_rows("HearsNoHint", nothing, (S.RESTING, G.NUDGED), (S.RETRYING, G.NUDGED)),
]


class SeesNoTrouble(Runner):
    _troubled = False  # type: ignore[assignment]


class LosesTheNewsOfTheLine(Runner):
    """What happens while a step is at work waits for its end; here it is dropped."""

    def _feed(self, take: Callable[[], Signal | None]) -> None:
        if not self._stepping:
            super()._feed(take)


DEFECTS = [
    LosesErrorsOfTheAsk,
    ForgetsWhatItHolds,
    LeavesTimersRunning,
    AsksBesideTheBrokenOff,
    WaitsForFilingForEver,
    DecidesARequestTooEarly,
    ForgetsSessionsOpenBeforeTheAsk,
    LooksForQuietBetweenSessions,
    SeesNoTrouble,
    LosesTheNewsOfTheLine,
    *IN_THE_TABLE,
]


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.__name__)
def test_the_rules_find_a_planted_defect(defect):
    planted = type("Planted", (Rounds,), {"runner": defect})
    search = settings(
        max_examples=1500,
        stateful_step_count=40,
        derandomize=True,  # found today is found tomorrow
        database=None,
        phases=[Phase.generate],
        report_multiple_bugs=False,
    )
    with pytest.raises(AssertionError):
        run_state_machine_as_test(planted, settings=search)
