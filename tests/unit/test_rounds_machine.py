"""`rounds.machine`: the table is total, and its rules hold for whatever happens in whatever order.

The last test shows that the stateful one would notice: it finds each of a list of planted defects.
"""

from __future__ import annotations

import re
from pathlib import Path

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
from siteagent.events import Outcome
from siteagent.rounds.machine import (
    TABLE,
    Action,
    Ignored,
    Impossible,
    OurBug,
    Row,
    Signal,
    State,
    Table,
    diagram,
    rows_as_text,
    step,
)

PAIRS = [(state, signal) for state in State for signal in Signal]
PLANS = {a for a in Action if a.name.startswith("PLAN_")}
TIMERS = {a for a in Action if a.name.startswith("TIME_")}


# --- the table itself -------------------------------------------------------------------------------------------------


def test_every_pair_of_state_and_signal_is_decided():
    assert set(TABLE) == set(PAIRS)


def test_a_signal_that_cannot_come_is_our_bug_and_says_why():
    with pytest.raises(OurBug, match="'silent' while receiving: somebody came"):
        step(State.RECEIVING, Signal.SILENT)


def test_a_pair_that_the_table_lacks_is_our_bug():
    with pytest.raises(OurBug):
        step(State.DOWN, Signal.LINE_UP, table={})


def test_an_ignored_signal_says_why():
    assert all(d.why for d in TABLE.values() if isinstance(d, Ignored | Impossible))


def test_every_outcome_is_reached():
    ends = {a.outcome for d in TABLE.values() if isinstance(d, Row) for a in d.actions if a.outcome}
    assert ends == set(Outcome)


def test_every_state_but_the_first_is_reached():
    assert {d.state for d in TABLE.values() if isinstance(d, Row)} == set(State)


def test_every_action_is_used():
    assert {a for d in TABLE.values() if isinstance(d, Row) for a in d.actions} == set(Action)


@pytest.mark.parametrize("pair", PAIRS, ids=lambda p: getattr(p, "name", str(p)))
def test_a_row_opens_and_closes_rounds_as_its_states_say(pair):
    decision = TABLE[pair]
    if not isinstance(decision, Row):
        return
    open_after = pair[0].in_round + (Action.START in decision.actions) - sum(bool(a.outcome) for a in decision.actions)
    assert open_after == decision.state.in_round


@pytest.mark.parametrize("signal", [Signal.LINE_DOWN, Signal.LINE_CHANGED, Signal.WOKE, Signal.STOP])
@pytest.mark.parametrize("state", [s for s in State if s.in_round])
def test_what_ends_a_round_from_outside_breaks_the_ask_off(state, signal):
    assert Action.BREAK_OFF in TABLE[state, signal].actions


@pytest.mark.parametrize("state", [s for s in State if s.in_round])
def test_s46_a_lost_line_ends_the_round_link_lost(state):
    assert Action.END_LINK_LOST in TABLE[state, Signal.LINE_DOWN].actions


def test_states_are_told_in_the_words_of_status_json():
    assert {state.word for state in State} == {"down", "asking", "receiving", "resting", "retrying"}


# --- the page ---------------------------------------------------------------------------------------------------------


PAGE = Path(__file__).resolve().parents[2] / "docs" / "flow.md"
BLOCKS = {"diagram": lambda: f"```mermaid\n{diagram()}```\n", "rows": rows_as_text}


def _block(mark: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- {mark} -->\n)(.*?)(<!-- end of {mark} -->)", re.DOTALL)


@pytest.mark.parametrize("mark", BLOCKS)
def test_docs_flow_md_is_fresh(mark):
    found = _block(mark).search(PAGE.read_text("utf-8"))
    assert found is not None and found[2] == BLOCKS[mark](), "run: python tests/unit/test_rounds_machine.py"


# --- whatever happens, in whatever order ------------------------------------------------------------------------------


class Rounds(RuleBasedStateMachine):
    """The table with the plainest of runners around it, and an environment that does only what can happen."""

    table: Table = TABLE

    def __init__(self) -> None:
        super().__init__()
        self.state = State.DOWN
        self.line = False
        self.timer: Action | None = None
        self.asking = False
        self.round_open = False
        self.rounds_started = 0
        self.sessions_open = 0  # in the round
        self.session_came = False
        self.held = 0
        self.retiring = False
        self.by_clock = True

    @initialize(by_clock=st.booleans())
    def choose(self, by_clock: bool) -> None:
        self.by_clock = by_clock

    # the runner

    def feed(self, signal: Signal) -> None:
        row = step(self.state, signal, table=self.table)
        if isinstance(row, Ignored):
            return
        was, self.state = self.state, row.state
        if was is not row.state:
            self.timer = None
        for action in row.actions:
            self.do(action)
        if was.in_round and not self.state.in_round and self.state is not State.STOPPED:
            if self.retiring:
                self.feed(Signal.RETIRE)
            elif self.held:
                self.feed(Signal.REQUESTED)

    def do(self, action: Action) -> None:
        if action in TIMERS or (action in PLANS and (self.by_clock or action is not Action.PLAN_CLOCK)):
            assert not (action in PLANS and not self.line), "an ask is planned without a line"
            self.timer = action
        elif action is Action.START:
            assert not self.round_open, "two rounds at a time"
            self.round_open, self.session_came, self.held = True, False, 0
            self.rounds_started += 1
        elif action is Action.ASK:
            assert self.line, "asked without a line"
            assert not self.asking, "two asks at a time"
            self.asking = True
        elif action is Action.BREAK_OFF:
            self.asking = False
        elif action in (Action.HOLD_REQUEST,):
            self.held += 1
        elif action is Action.RETIRE_LATER:
            self.retiring = True
        elif action.outcome is not None:
            assert self.round_open, "an end without a round"
            if action.outcome in (Outcome.DRAINED, Outcome.SILENT, Outcome.NOTHING):
                assert not self.sessions_open, "over, with a session open"
            self.round_open = False
            self.sessions_open = 0

    # the environment

    @rule()
    @precondition(lambda self: not self.line)
    def line_comes_up(self) -> None:
        self.line = True
        self.feed(Signal.LINE_UP)

    # One rule for all that disturbs: by one rule each, hardly a round would get as far as filing.
    @rule(what=st.sampled_from(["change", "down", Signal.WOKE, Signal.NUDGED, "join", "queue", "time", "end"]))
    def disturbance(self, what: Signal | str) -> None:
        if isinstance(what, Signal):
            self.feed(what)
        elif what == "change" and self.line:
            self.feed(Signal.LINE_CHANGED)
        elif what == "down" and self.line:
            self.line = False
            self.feed(Signal.LINE_DOWN)
        elif what in ("join", "queue"):
            joins = what == "join" and self.state in (State.ASKING, State.EXPECTING)
            in_round = Signal.JOINED if joins else Signal.QUEUED
            self.feed(in_round if self.round_open else Signal.REQUESTED)
        elif what == "time" and self.asking:
            self.feed(Signal.TIME_IS_UP)
        elif what == "time" and self.round_open:
            self.feed(Signal.TROUBLED)
        elif what == "end" and self.rounds_started > 6:
            self.feed(Signal.RETIRE if self.round_open and not self.retiring else Signal.STOP)

    @rule()
    @precondition(lambda self: self.asking)
    def agree(self) -> None:
        self.asking = False
        if self.sessions_open:
            self.feed(Signal.AGREED_RECEIVING)
        else:
            self.feed(Signal.AGREED_RECEIVED if self.session_came else Signal.AGREED)

    @rule(
        signal=st.sampled_from(
            [Signal.NOTHING, Signal.ASKED, Signal.REFUSED, Signal.FAILED, Signal.TROUBLED, Signal.TROUBLED_STILL]
        )
    )
    @precondition(lambda self: self.asking and not self.sessions_open)
    def answer_otherwise(self, signal: Signal) -> None:
        self.asking = False
        self.feed(signal)

    @rule()
    @precondition(lambda self: self.round_open and self.sessions_open < 2)
    def session_opens(self) -> None:
        self.sessions_open += 1
        self.session_came = True
        self.feed(Signal.SESSION_OPENED)

    @rule()
    @precondition(lambda self: self.round_open and self.sessions_open)
    def session_closes(self) -> None:
        self.sessions_open -= 1
        self.feed(Signal.SESSION_CLOSED if self.sessions_open else Signal.LAST_SESSION_CLOSED)

    @rule(
        ending=st.sampled_from(
            [Signal.UNFILED, Signal.UNFILED, Signal.SETTLED, Signal.TROUBLED, Signal.TROUBLED_STILL]
        ),
    )
    @precondition(lambda self: self.timer is not None)
    def timer_fires(self, ending: Signal) -> None:
        timer, self.timer = self.timer, None
        if timer in PLANS:
            self.feed(Signal.ASK_DUE)
        elif timer is Action.TIME_GRACE:
            self.feed(Signal.GRACE_OVER)
        elif timer is Action.TIME_FIRST_CONNECTION:
            self.feed(Signal.SILENT if ending in (Signal.SETTLED, Signal.UNFILED) else ending)
        else:
            self.feed(ending)

    # the rules

    @invariant()
    def something_is_pending(self) -> None:
        if not self.line or self.state is State.STOPPED:
            return
        if self.state is State.RESTING and not self.by_clock:
            return
        assert self.asking or self.timer or self.sessions_open, f"nothing is pending while {self.state.value}"

    @invariant()
    def a_round_is_open_where_the_state_says_so(self) -> None:
        assert self.round_open == self.state.in_round

    @invariant()
    def an_ask_is_at_work_while_asking_alone(self) -> None:
        assert self.asking == (self.state is State.ASKING)

    @invariant()
    def a_request_that_waits_is_not_forgotten(self) -> None:
        assert not self.held or self.state in (State.CALLED, State.STOPPED) or self.state.in_round

    @invariant()
    def a_request_that_waits_for_a_line_waits_by_a_timer(self) -> None:
        assert self.state is not State.CALLED or self.timer is Action.TIME_GRACE


def test_the_rules_hold_whatever_happens():
    run_state_machine_as_test(Rounds, settings=settings(stateful_step_count=50, database=None))


_S, _G, _A = State, Signal, Action
DEFECTS = {
    "the window for the first connection is not timed": (_S.ASKING, _G.AGREED, Row(_S.EXPECTING)),
    "quiet is not timed": (_S.RECEIVING, _G.LAST_SESSION_CLOSED, Row(_S.QUIET)),
    "filing is looked at once only": (_S.FILING, _G.UNFILED, Row(_S.FILING)),
    "a failure plans no retry": (_S.ASKING, _G.FAILED, Row(_S.RETRYING, (_A.END_FAILED,))),
    "a changed line plans no ask": (_S.RESTING, _G.LINE_CHANGED, Row(_S.DUE, (_A.FORGET,))),
    "a request during a round starts a second one": (_S.RECEIVING, _G.QUEUED, Row(_S.ASKING, (_A.START, _A.ASK))),
    "a request is joined and not asked for": (_S.EXPECTING, _G.JOINED, Row(_S.ASKING, (_A.JOIN_REQUEST,))),
    "waking up asks beside the ask at work": (_S.ASKING, _G.WOKE, Row(_S.ASKING, (_A.ASK,))),
    "a lost line leaves the ask at work": (_S.ASKING, _G.LINE_DOWN, Row(_S.DOWN, (_A.END_LINK_LOST,))),
    "a lost line leaves the round open": (_S.QUIET, _G.LINE_DOWN, Row(_S.DOWN)),
    "a session during quiet goes unnoticed": (_S.QUIET, _G.SESSION_OPENED, Ignored("")),
    "a request without a line gets no end": (_S.CALLED, _G.GRACE_OVER, Row(_S.DOWN, (_A.START,))),
    "a request without a line waits for ever": (_S.DOWN, _G.REQUESTED, Row(_S.CALLED, (_A.HOLD_REQUEST,))),
    "an ask is planned after the line went": (_S.RESTING, _G.LINE_DOWN, Row(_S.DOWN, (_A.PLAN_CLOCK,))),
    "an answer that comes is called impossible": (_S.ASKING, _G.NOTHING, Impossible("")),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_the_rules_find_a_planted_defect(defect):
    state, signal, decision = DEFECTS[defect]
    planted = type("Planted", (Rounds,), {"table": {**TABLE, (state, signal): decision}})
    search = settings(
        max_examples=1500,
        stateful_step_count=50,
        derandomize=True,  # found today is found tomorrow
        database=None,
        phases=[Phase.generate],
        report_multiple_bugs=False,
    )
    with pytest.raises(AssertionError):
        run_state_machine_as_test(planted, settings=search)


if __name__ == "__main__":
    text = PAGE.read_text("utf-8")
    for mark, block in BLOCKS.items():
        text = _block(mark).sub(lambda found, block=block: found[1] + block() + found[3], text)
    PAGE.write_text(text, "utf-8")
