"""`rounds.runner` with everything real but the clock, the asks and the spool: its rules hold in whatever order.

The last test shows that this one would notice: it finds each of a list of planted defects.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
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
from siteagent.events import Event, FilingFailed, NodeOutcome, RoundEnded, RoundStarted
from siteagent.rounds.asking import Asker
from siteagent.rounds.ledger import Ledger
from siteagent.rounds.machine import Signal
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
_MIXED = result(answer("a"), answer("b", NodeOutcome.RETRY, 458))
ANSWERS = [_STARTED, _STARTED, _STARTED, *dict(_BOTH).values(), _MIXED, NO_ANSWER, RuntimeError("boom")]


class Rounds(RuleBasedStateMachine):
    runner: type[Runner] = Runner

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.bench: Bench
        self.line = False
        self.sessions: list[str] = []
        self.unfiled: list[str] = []
        self.requested: list[str] = []
        self.answered: list[str] = []  # requests of rounds that ended
        self.round_open: str | None = None
        self.by_clock = True
        self.ask_again_when_ended = False

    @initialize(metered=st.booleans())
    def build(self, metered: bool) -> None:
        self.by_clock = not metered

        async def make() -> Bench:
            return Bench(None, nodes=("a", "b"), metered=metered, runner=self.runner)

        self.bench = self.loop.run_until_complete(make())
        self.bench.cancellation_takes_turns = 2
        self.bench.on_event = self.on_event

    def on_event(self, event: Event) -> None:
        if isinstance(event, RoundStarted):
            assert self.round_open is None, "two rounds at a time"
            self.round_open = event.round
        if isinstance(event, RoundEnded):
            assert self.round_open == event.round, "an end without a start"
            self.round_open = None
            self.answered += self.bench.runner.view().requests[event.round]
            if event.outcome.value in ("drained", "silent", "nothing"):
                assert not self.sessions, "over, with a session open"
            if self.ask_again_when_ended:
                self.ask_again_when_ended = False
                self.ask_for_a_round(None)
                self.ask_for_a_round("a")

    def run(self, act: Callable[[], Any] = lambda: None, *, seconds: float = 0.0) -> None:
        async def scene() -> None:
            act()
            await self.bench.wait(seconds)

        self.loop.run_until_complete(scene())
        self.bench.waiting = [future for future in self.bench.waiting if not future.done()]

    def ask_for_a_round(self, node: str | None) -> None:
        name = f"q{len(self.requested)}"
        self.requested.append(name)
        self.bench.runner.request(Request(name, (node,) if node else None))

    # what happens: mostly what comes next, now and then something else

    @rule(line=st.sampled_from([PPP, OTHER]))
    @precondition(lambda self: not self.line)
    def line_comes_up(self, line: Any) -> None:
        self.line = True
        self.run(lambda: self.bench.runner.line_up(line, "netlink"))

    @rule(told=st.sampled_from(ANSWERS))
    @precondition(lambda self: self.bench.waiting)
    def provider_answers(self, told: AskResult | Exception) -> None:
        future = self.bench.waiting[0]
        self.run(lambda: future.set_exception(told) if isinstance(told, Exception) else future.set_result(told))

    @rule(what=st.sampled_from(["open", "open", "close", "close", "broken", "filed", "unfiled", "451", "551"]))
    @precondition(lambda self: self.line)
    def peer_acts(self, what: str) -> None:
        if what == "open" and len(self.sessions) < 2:
            self.run(lambda: self.sessions.append(self.bench.open()))
        elif not self.sessions:
            return
        elif what in ("close", "broken"):
            session = self.sessions.pop()
            self.run(lambda: self.bench.close(session, clean=what == "close"))
        elif what == "filed":
            self.run(lambda: self.bench.accept(self.sessions[0]))
        elif what == "unfiled":
            self.run(lambda: self.unfiled.append(self.bench.accept(self.sessions[0], filed=False)))
        elif what != "open":
            self.run(lambda: self.bench.refuse(self.sessions[0], int(what)))

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

    @rule(seconds=st.sampled_from([0.5, 15, 15, 120, 120, 900, 4000]))
    @precondition(lambda self: self.line)
    def time_passes(self, seconds: float) -> None:
        self.run(seconds=seconds)

    @rule(what=st.sampled_from(["down", "woke", "nudge", "flap", "stranger", "all", "all", "a", "b"]))
    def disturbance(self, what: str) -> None:
        runner = self.bench.runner
        if what == "down":
            self.line = False
            self.run(lambda: runner.line_down("netlink"))
        elif what == "woke":
            self.run(runner.woke)
        elif what == "nudge":
            self.run(lambda: runner.nudge("hook"))
        elif what == "stranger":
            self.run(lambda: self.bench.refuse_connection("isp"))
        elif what != "flap":
            self.run(lambda: self.ask_for_a_round(None if what == "all" else what))
        elif self.line:
            self.loop.run_until_complete(self.flap())
            self.run()

    @rule()
    @precondition(lambda self: not self.ask_again_when_ended)
    def somebody_will_ask_from_within_the_end(self) -> None:
        self.ask_again_when_ended = True

    async def flap(self) -> None:
        """The way changes faster than a broken-off ask can go."""
        for line in (OTHER, PPP, OTHER):
            self.bench.runner.line_changed(line, "netlink")
            due = self.bench.clock.next_due(self.bench.clock.now)
            if due is not None:
                due.fire()
            await turn(1)

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

    def teardown(self) -> None:
        """Whatever came before: with sessions closed and asks answered, every round ends and no request is lost."""
        try:
            if hasattr(self, "bench"):
                self.come_to_rest()
                self.loop.run_until_complete(self.bench.runner.stop())
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

    def come_to_rest(self) -> None:
        while self.sessions:
            session = self.sessions.pop()
            self.run(lambda session=session: self.bench.close(session))
        self.bench.answers = [_NOTHING]
        for _ in range(8):
            for future in self.bench.waiting:
                self.run(lambda future=future: future.set_result(_NOTHING))
            self.run(seconds=200)
        assert self.round_open is None, "the round does not end"
        assert sorted(self.answered) == sorted(self.requested), "a request is lost"


def test_the_rules_hold_whatever_happens():
    run_state_machine_as_test(Rounds, settings=settings(stateful_step_count=40, database=None))


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


DEFECTS = [
    LosesErrorsOfTheAsk,
    ForgetsWhatItHolds,
    LeavesTimersRunning,
    AsksBesideTheBrokenOff,
    WaitsForFilingForEver,
    DecidesARequestTooEarly,
    ForgetsSessionsOpenBeforeTheAsk,
    LooksForQuietBetweenSessions,
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
