"""The round as data: one table, state x signal -> state and actions. Pure; ``rounds.runner`` carries it out.

The rules that the table holds:

1. **Something is always pending.** Unless the line is down, an ask is under way, a timer runs, or a session is open.
   The one exception is RESTING where the operator wants no asking by the clock (a metered line, or 0), and nothing is
   owed: there the next link event or request is waited for.
2. **One round at a time.** A round opens with START and ends with exactly one END; a row that starts one stands in a
   state without a round, a row that ends one in a state with a round. A request joins a round whose ask is to
   come or under way; of one that asked before, it can only get what the provider had then, so it waits for the next.
3. **One line a round.** If the line goes, changes or slept, the round is over; sessions that survive count in the next
   one. So what a round cost was spent on one interface.
4. **A state has at most one timer.** Entering a state anew, or leaving it, ends the timer; a row that goes where a
   timer is needed starts it.
5. **A round is over by inference only** (ETRN has no end mark): the provider said that there is nothing, or nobody
   came, or somebody came and then all was quiet and filed.
6. **Trouble is remembered, and decides at the end.** A 4yz of ours, a refused connection, a broken session, a node
   that was not started: the same end, but `incomplete`, and asked again.
7. **An end is said last**, when the plan behind it is made: ``round.ended`` tells when it goes on.

Which signal an event stands for is decided by ``rounds.policy`` and ``rounds.ledger``, both pure too. Every pair of
state and signal is a row, or ignored, or impossible; the last is our bug, and `step` says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from itertools import product
from typing import TypeVar

from siteagent.events import Outcome


class State(Enum):
    """What we are doing about one provider."""

    DOWN = "down"
    CALLED = "called"  # the line is down, and a request waits a moment for it
    DUE = "due"  # the line is there; the first ask on it comes after retry_seconds[0]
    ASKING = "asking"
    EXPECTING = "expecting"  # the provider agreed; nobody came yet
    RECEIVING = "receiving"  # a session is open
    QUIET = "quiet"  # somebody came, no session is open now
    FILING = "filing"  # quiet for long enough; what was accepted is not all in its mailboxes
    RESTING = "resting"
    RETRYING = "retrying"
    STOPPED = "stopped"

    @property
    def in_round(self) -> bool:
        return self in IN_ROUND

    @property
    def word(self) -> str:
        """The state's name in ``status.json``: down, asking, receiving, resting or retrying."""
        return _WORDS.get(self, self.value)


class Signal(Enum):
    """What can happen. The names say which timer or part it comes from only where two would be confused."""

    LINE_UP = "line up"
    LINE_CHANGED = "line changed"
    LINE_DOWN = "line down"
    WOKE = "woke"
    NUDGED = "nudged"  # a hint, the way unchanged, and our last success is a while ago
    REQUESTED = "requested"  # no round is open
    JOINED = "joined"  # a request that the open round answers, if it asks (again)
    QUEUED = "queued"  # a request for other nodes than the open round's, or when mail was asked for and is coming
    ASK_DUE = "ask due"
    GRACE_OVER = "grace over"  # no line came for the request that waits
    TIME_IS_UP = "time is up"  # of the requests that the round is for
    AGREED = "agreed"  # at least one node started; nobody came yet
    AGREED_RECEIVING = "agreed, receiving"  # the same, and a session is open already
    AGREED_RECEIVED = "agreed, received"  # the same, and a session came and went already
    NOTHING = "nothing"
    ASKED = "asked"  # ask-only: agreed, and the rest is another server's
    REFUSED = "refused"
    FAILED = "failed"
    SESSION_OPENED = "session opened"
    SESSION_CLOSED = "session closed"  # others are open
    LAST_SESSION_CLOSED = "last session closed"
    SILENT = "silent"  # the window for the first connection is over
    UNFILED = "unfiled"  # quiet, but not all is filed
    SETTLED = "settled"  # quiet, and all is filed
    SHORT = "short"  # quiet, but the provider counted more than came, and was not asked again yet
    TROUBLED = "troubled"  # over, but something stayed at the provider: it is asked again soon
    TROUBLED_STILL = "troubled still"  # the same, and the quick re-asks are used up
    RETIRE = "retire"  # no new round; end after the one that runs
    STOP = "stop"


class Action(Enum):
    """What to do, in this order."""

    HOLD_REQUEST = "hold the request"
    JOIN_REQUEST = "add the request to the round"
    FORGET = "forget failures"  # a new line starts the schedules anew
    BREAK_OFF = "break the ask off"
    RETIRE_LATER = "retire after the round"
    START = "start a round"
    ASK = "ask"
    TIME_GRACE = "wait for a line"
    TIME_FIRST_CONNECTION = "wait for the first connection"
    TIME_QUIET = "wait for quiet"
    TIME_FILING = "wait for filing"
    END_DRAINED = "end: drained"
    END_NOTHING = "end: nothing"
    END_SILENT = "end: silent"
    END_INCOMPLETE = "end: incomplete"
    END_ASKED = "end: asked"
    END_REFUSED = "end: refused"
    END_FAILED = "end: failed"
    END_LINK_LOST = "end: link-lost"
    PLAN_FIRST = "plan the first ask"
    PLAN_CLOCK = "plan by the clock"
    PLAN_RETRY = "plan the next try"
    PLAN_LONG = "plan a far ask"
    PLAN_REASK = "plan a re-ask"

    @property
    def outcome(self) -> Outcome | None:
        """How the round ends by this action; None if it ends none."""
        return Outcome(self.value.removeprefix("end: ")) if self.value.startswith("end: ") else None


S, G, A = State, Signal, Action

IN_ROUND = frozenset({S.ASKING, S.EXPECTING, S.RECEIVING, S.QUIET, S.FILING})
WAITING = frozenset({S.DUE, S.RESTING, S.RETRYING})  # the line is there, no round is open
IDLE = frozenset({S.DOWN, S.CALLED}) | WAITING
AFTER_ANSWER = IN_ROUND - {S.ASKING}

_WORDS = {S.CALLED: "down", S.DUE: "resting", S.STOPPED: "down"} | dict.fromkeys(AFTER_ANSWER, "receiving")

SESSIONS = frozenset({G.SESSION_OPENED, G.SESSION_CLOSED, G.LAST_SESSION_CLOSED})
ANSWERS = frozenset({G.AGREED, G.AGREED_RECEIVING, G.AGREED_RECEIVED, G.NOTHING, G.ASKED, G.REFUSED, G.FAILED})
ENDINGS = frozenset({G.SILENT, G.UNFILED, G.SETTLED, G.SHORT, G.TROUBLED, G.TROUBLED_STILL})


@dataclass(frozen=True, slots=True)
class Row:
    """Go to `state` and do `actions`, in order."""

    state: State
    actions: tuple[Action, ...] = ()


@dataclass(frozen=True, slots=True)
class Ignored:
    """It can happen here and changes nothing; `why`."""

    why: str


@dataclass(frozen=True, slots=True)
class Impossible:
    """It cannot happen here; if it does, it is our bug. `why`."""

    why: str


Decision = Row | Ignored | Impossible
Table = Mapping[tuple[State, Signal], Decision]

_STAY = None

# From; signal; to (`_STAY`: where we are); actions. One line a decision.
ROWS: tuple[tuple[State | frozenset[State], Signal | frozenset[Signal], State | None, tuple[Action, ...]], ...] = (
    # --- no line
    (S.DOWN, G.LINE_UP, S.DUE, (A.FORGET, A.PLAN_FIRST)),
    (S.DOWN, G.REQUESTED, S.CALLED, (A.HOLD_REQUEST, A.TIME_GRACE)),
    (S.CALLED, G.REQUESTED, _STAY, (A.HOLD_REQUEST,)),
    (S.CALLED, G.LINE_UP, S.ASKING, (A.FORGET, A.START, A.ASK)),
    (S.CALLED, G.GRACE_OVER, S.DOWN, (A.START, A.END_FAILED)),
    # --- a line, no round
    (WAITING, G.ASK_DUE, S.ASKING, (A.START, A.ASK)),
    (WAITING, G.REQUESTED, S.ASKING, (A.HOLD_REQUEST, A.START, A.ASK)),
    (WAITING, G.LINE_CHANGED, S.DUE, (A.FORGET, A.PLAN_FIRST)),
    (WAITING, G.WOKE, S.DUE, (A.FORGET, A.PLAN_FIRST)),
    # A nudge is somebody's word: it may bring an ask forward, it does not start the schedule anew.
    (frozenset({S.RESTING, S.RETRYING}), G.NUDGED, S.DUE, (A.PLAN_FIRST,)),
    (WAITING, G.LINE_DOWN, S.DOWN, ()),
    # --- the ask is under way
    (S.ASKING, G.AGREED, S.EXPECTING, (A.TIME_FIRST_CONNECTION,)),
    (S.ASKING, G.AGREED_RECEIVING, S.RECEIVING, ()),
    (S.ASKING, G.AGREED_RECEIVED, S.QUIET, (A.TIME_QUIET,)),
    (S.ASKING, G.ASKED, S.RESTING, (A.END_ASKED, A.PLAN_CLOCK)),
    (S.ASKING, G.NOTHING, S.RESTING, (A.END_NOTHING, A.PLAN_CLOCK)),
    (S.ASKING, G.REFUSED, S.RESTING, (A.END_REFUSED, A.PLAN_LONG)),
    (S.ASKING, G.FAILED, S.RETRYING, (A.END_FAILED, A.PLAN_RETRY)),
    (S.ASKING, G.TIME_IS_UP, S.RETRYING, (A.BREAK_OFF, A.END_FAILED, A.PLAN_RETRY)),
    # --- the provider agreed: whoever comes, comes by itself
    (S.EXPECTING, G.SILENT, S.RESTING, (A.END_SILENT, A.PLAN_CLOCK)),
    (AFTER_ANSWER - {S.RECEIVING}, G.SESSION_OPENED, S.RECEIVING, ()),
    (S.RECEIVING, G.LAST_SESSION_CLOSED, S.QUIET, (A.TIME_QUIET,)),
    (frozenset({S.QUIET, S.FILING}), G.UNFILED, S.FILING, (A.TIME_FILING,)),
    (frozenset({S.QUIET, S.FILING}), G.SETTLED, S.RESTING, (A.END_DRAINED, A.PLAN_CLOCK)),
    # Once a round at most: a re-ask costs a conversation, and on some servers a walk through the queue.
    (S.QUIET, G.SHORT, S.ASKING, (A.ASK,)),
    # In ASKING: ask-only, and not every node was started. In RECEIVING: the time of a request is up.
    (IN_ROUND, G.TROUBLED, S.RETRYING, (A.END_INCOMPLETE, A.PLAN_REASK)),
    (IN_ROUND, G.TROUBLED_STILL, S.RESTING, (A.END_INCOMPLETE, A.PLAN_CLOCK)),
    # --- any time in a round
    (IN_ROUND, G.LINE_DOWN, S.DOWN, (A.BREAK_OFF, A.END_LINK_LOST)),
    (IN_ROUND, G.LINE_CHANGED, S.DUE, (A.BREAK_OFF, A.END_LINK_LOST, A.FORGET, A.PLAN_FIRST)),
    (IN_ROUND, G.WOKE, S.DUE, (A.BREAK_OFF, A.END_LINK_LOST, A.FORGET, A.PLAN_FIRST)),
    (S.ASKING, G.JOINED, _STAY, (A.JOIN_REQUEST,)),
    # Somebody knows of mail now, and nobody came yet: to wait for the end of the window would only cost time.
    (S.EXPECTING, G.JOINED, S.ASKING, (A.JOIN_REQUEST, A.ASK)),
    (IN_ROUND, G.QUEUED, _STAY, (A.HOLD_REQUEST,)),
    (IN_ROUND, G.RETIRE, _STAY, (A.RETIRE_LATER,)),
    (IN_ROUND, G.STOP, S.STOPPED, (A.BREAK_OFF, A.END_INCOMPLETE)),
    # --- the end
    (IDLE, frozenset({G.RETIRE, G.STOP}), S.STOPPED, ()),
)

IGNORED: tuple[tuple[State | frozenset[State], Signal | frozenset[Signal], str], ...] = (
    (frozenset({S.DOWN, S.CALLED}), frozenset({G.WOKE, G.NUDGED}), "the watch looks by itself; there is no line yet"),
    (S.DUE, G.NUDGED, "an ask is coming"),
    (IN_ROUND, G.NUDGED, "a round is at work"),
    (S.ASKING, SESSIONS, "counted; what follows is decided when the answers are in"),
    (S.RECEIVING, frozenset({G.SESSION_OPENED, G.SESSION_CLOSED}), "counted; a session is open still"),
    (S.STOPPED, frozenset(Signal), "we are done"),
)

IMPOSSIBLE: tuple[tuple[State | frozenset[State], Signal | frozenset[Signal], str], ...] = (
    (frozenset({S.DOWN, S.CALLED}), frozenset({G.LINE_CHANGED, G.LINE_DOWN}), "there is no line"),
    (WAITING | IN_ROUND, G.LINE_UP, "there is a line; another one is a change"),
    (IDLE, SESSIONS | ANSWERS | ENDINGS | {G.TIME_IS_UP, G.JOINED, G.QUEUED}, "no round is open"),
    (IN_ROUND, G.REQUESTED, "a round is open: the request joins it or waits"),
    (IN_ROUND | {S.DOWN, S.CALLED}, G.ASK_DUE, "its timer runs only where a round may start"),
    (IN_ROUND | WAITING | {S.DOWN}, G.GRACE_OVER, "its timer runs only while a request waits for a line"),
    (AFTER_ANSWER, ANSWERS, "the ask is over"),
    (frozenset({S.RECEIVING, S.QUIET, S.FILING}), G.JOINED, "what was asked for is coming: the request waits"),
    (S.ASKING, frozenset({G.SILENT, G.UNFILED, G.SETTLED, G.SHORT}), "no waiting has begun"),
    (frozenset({S.QUIET, S.FILING, S.RECEIVING}), G.SILENT, "somebody came"),
    (S.EXPECTING, frozenset({G.UNFILED, G.SETTLED, G.SHORT}), "nobody came"),
    (S.FILING, G.SHORT, "decided when it was quiet"),
    (
        frozenset({S.EXPECTING, S.QUIET, S.FILING}),
        frozenset({G.SESSION_CLOSED, G.LAST_SESSION_CLOSED}),
        "no session is open",
    ),
    (S.RECEIVING, frozenset({G.UNFILED, G.SETTLED, G.SHORT}), "a session is open"),
    (AFTER_ANSWER, G.TIME_IS_UP, "it comes as troubled, or as settled where all but the filing is done"),
)


_T = TypeVar("_T", bound=Enum)


def _each(one_or_many: _T | frozenset[_T]) -> frozenset[_T]:
    return one_or_many if isinstance(one_or_many, frozenset) else frozenset((one_or_many,))


def _table() -> Table:
    """The three lists above as one mapping. A pair that is decided twice is an error of this module."""
    table: dict[tuple[State, Signal], Decision] = {}

    def put(state: State, signal: Signal, decision: Decision) -> None:
        assert (state, signal) not in table, f"decided twice: {state}, {signal}"
        table[state, signal] = decision

    for states, signals, target, actions in ROWS:
        for state, signal in product(_each(states), _each(signals)):
            put(state, signal, Row(target or state, actions))
    for states, signals, why in IGNORED:
        for state, signal in product(_each(states), _each(signals)):
            put(state, signal, Ignored(why))
    for states, signals, why in IMPOSSIBLE:
        for state, signal in product(_each(states), _each(signals)):
            put(state, signal, Impossible(why))
    return table


TABLE: Table = _table()


class OurBug(AssertionError):
    """A signal came in a state in which it cannot happen."""


def step(state: State, signal: Signal, *, table: Table = TABLE) -> Row | Ignored:
    """What `signal` means in `state`.

    Raises:
        OurBug: the table says that this cannot happen; the text is the table's.
    """
    decision = table.get((state, signal), Impossible("the table does not have it"))
    if isinstance(decision, Impossible):
        raise OurBug(f"{signal.value!r} while {state.value}: {decision.why}")
    return decision


def diagram(table: Table = TABLE) -> str:
    """The rows that lead from one state to another, as a mermaid state diagram; ``docs/flow.md`` prints it."""
    edges: dict[tuple[State, State], list[str]] = {}
    for state in State:
        for signal in Signal:
            decision = table[state, signal]
            if isinstance(decision, Row) and decision.state is not state and decision.state is not State.STOPPED:
                outcome = next((o.value for a in decision.actions if (o := a.outcome)), None)
                label = f"{signal.value} ({outcome})" if outcome and outcome != signal.value else signal.value
                edges.setdefault((state, decision.state), []).append(label)
    lines = ["stateDiagram-v2", f"    [*] --> {State.DOWN.value}"]
    lines += [f"    {a.value} --> {b.value}: {', '.join(labels)}" for (a, b), labels in edges.items()]
    return "\n".join(lines) + "\n"


def rows_as_text(table: Table = TABLE) -> str:
    """Every row as a line of a Markdown table: state, signal, next state, actions."""
    lines = ["| state | signal | then | and |", "|---|---|---|---|"]
    for state in State:
        for signal in Signal:
            decision = table[state, signal]
            if isinstance(decision, Row):
                actions = "; ".join(action.value for action in decision.actions)
                lines.append(f"| {state.value} | {signal.value} | {decision.state.value} | {actions} |")
    return "\n".join(lines) + "\n"
