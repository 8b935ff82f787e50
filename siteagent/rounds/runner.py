"""Timers and actions around the table of ``rounds.machine``: one `Runner` a provider.

It carries out and never decides: an event becomes a signal (``rounds.ledger``, ``rounds.policy``), the table answers
with a state and actions, and each action is one method here. Nothing here waits, but the ask, which is a task.

Two asks never overlap: one that was broken off is waited for before the next begins. Everything runs on the event
loop's thread; a call that comes from within an `emit` of ours is taken in when the step at hand is done.
"""

from __future__ import annotations

import asyncio
import random as _random
from collections import deque
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Protocol

import attrs

from siteagent.config.sections import Method, Provider
from siteagent.errors import UsageError
from siteagent.events import Emit, Event, Line, MethodChosen, Outcome, RoundEnded, SessionOpened
from siteagent.rounds import choice, policy
from siteagent.rounds.asking import Asker, AskFunction
from siteagent.rounds.choice import Choice
from siteagent.rounds.habits import Habits
from siteagent.rounds.ledger import Ledger
from siteagent.rounds.machine import TABLE, Action, Ignored, Signal, State, Table, step
from siteagent.rounds.record import Request, Round, View
from siteagent.wire.etrn import AskResult, NodeAnswer

__all__ = ["AskFunction", "CallLater", "Request", "Runner", "View"]


class Handle(Protocol):
    """What `call_later` gives back."""

    def cancel(self) -> None: ...


CallLater = Callable[[float, Callable[[], None]], Handle]


_CAUSES = {
    Signal.LINE_UP: "link",
    Signal.LINE_CHANGED: "link",
    Signal.WOKE: "wake",
    Signal.NUDGED: "hint",
    Signal.REQUESTED: "request",
    Signal.GRACE_OVER: "request",
}
_ROUNDS_KEPT = 4
_WAITS_TO_BE_FILED = "mail waits to be filed"
_SOON_SECONDS = 60.0


def _loop_call_later(seconds: float, callback: Callable[[], None]) -> Handle:
    return asyncio.get_running_loop().call_later(seconds, callback)


class Runner:
    """The rounds of one provider. All calls on the event loop's thread; none of them blocks or raises for an event."""

    def __init__(
        self,
        provider: Provider,
        *,
        ask: AskFunction,
        emit: Emit,
        monotonic: Callable[[], float],
        wall: Callable[[], datetime],
        new_id: Callable[[], str],
        waiting_to_file: Callable[[str], bool],
        ask_only: bool,
        metered: Callable[[str], bool],
        call_later: CallLater = _loop_call_later,
        random: Callable[[], float] = _random.random,
        table: Table = TABLE,
        closed_for: Callable[[datetime], float] = lambda at: 0.0,
        habits: Habits | None = None,
        seen: choice.Seen | None = None,
        on_request_only: bool = False,
    ) -> None:
        """`closed_for`: seconds from that moment on in which nobody may be asked by ourselves.

        `habits` and `seen`: what the provider was seen to do before. `on_request_only`: a round that waited for the
        line is the request's and nothing else: its nodes, its time.
        """
        self._provider = provider
        self._configured = provider  # counts from the next round
        self._asker = Asker(ask)
        self._emit = emit
        self._monotonic = monotonic
        self._wall = wall
        self._new_id = new_id
        self._waiting_to_file = waiting_to_file
        self._ask_only = ask_only
        self._metered = metered
        self._call_later = call_later
        self._random = random
        self._table = table
        self._closed_for = closed_for
        self._habits = habits or Habits()
        self._on_request_only = on_request_only
        self._seen = seen or choice.Seen()
        self._choice: choice.Choice | None = None  # how the latest round asks
        self._last_closed_at: float | None = None  # the latest session of the open round that ended

        self._state = State.DOWN
        self._line: Line | None = None
        self._ledger = Ledger(provider.name)
        self._memory = policy.Memory()
        self._patience = policy.Patience()
        self._heard: dict[str, NodeAnswer | None] = {}  # of the latest ask that was over: each node's last word
        self._round: Round | None = None
        self._requests: dict[str, tuple[str, ...]] = {}
        self._held: list[Request] = []
        self._retiring = False
        self._cause = ""  # of the next round
        self._incoming: Request | None = None  # the request that the signal at hand is about
        self._inputs: deque[Callable[[], Signal | None]] = deque()
        self._stepping = False
        self._ended: RoundEnded | None = None  # to be said at the end of the step
        self._timer: Handle | None = None
        self._limit: Handle | None = None
        self._next_at: float | None = None
        self._owed: tuple[float, str] | None = (
            None  # the plan that a round for some nodes alone came before: when, cause
        )
        self._asked_at: float | None = None
        self._called = False
        self._succeeded_at: float | None = None
        self._moved_at = 0.0  # something was filed, or came
        self._stopped = asyncio.Event()

    # --- what people and the agent see --------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return self._provider.name

    @property
    def state(self) -> str:
        """In the words of ``status.json``."""
        return self._state.word

    @property
    def round(self) -> str | None:
        """The id of the open round."""
        return self._round.id if self._round else None

    @property
    def expecting(self) -> bool:
        """A round is open and takes sessions."""
        return self._round is not None and self._state.in_round and not self._ask_only

    @property
    def choice(self) -> Choice | None:
        """How the latest round asks: its method and port."""
        return self._choice

    @property
    def session_came(self) -> bool:
        """The open round has had a session of the provider."""
        return self._ledger.session_came

    @property
    def asked_at(self) -> float | None:
        """When the latest ask began, monotonic."""
        return self._asked_at

    @property
    def next_ask(self) -> datetime | None:
        """When the next ask is due, by today's wall clock: the clock may jump, the plan does not."""
        if self._next_at is None:
            return None
        return self._wall() + timedelta(seconds=max(self._next_at - self._monotonic(), 0))

    @property
    def idle(self) -> bool:
        """No round is open or about to begin, and no ask is at work."""
        return self._state in (State.DOWN, State.RESTING, State.RETRYING, State.STOPPED) and not (
            self._held or self._asker.busy
        )

    @property
    def line(self) -> Line | None:
        """The way to the provider, if there is one."""
        return self._line

    @property
    def done(self) -> bool:
        """The line may go as far as this provider is concerned; an ask held back by the hours does not keep it."""
        if self._state is State.DUE and self._next_at is not None:
            return self._next_at - self._monotonic() > _SOON_SECONDS
        return self.idle

    def view(self) -> View:
        return View(self.name, self.state, self.next_ask, self.round, dict(self._requests))

    # --- what happens: each call puts a signal in line ----------------------------------------------------------------

    def line_up(self, line: Line, cause: str) -> None:
        """There is a way to the provider. Told twice, it counts once; another line than before is a change."""
        self._feed(partial(self._take_line, line))

    def line_changed(self, line: Line, cause: str) -> None:
        """The way leads over another interface or from another address now."""
        self._feed(partial(self._take_line, line))

    def line_down(self, cause: str) -> None:
        """There is no way any more (settled: a short flap is no news)."""
        self._feed(partial(self._take_line, None))

    def woke(self) -> None:
        """The host slept: whatever was under way is dead or may be."""
        self._feed(self._take_wake)

    def nudge(self, cause: str) -> None:
        """Somebody hinted that the line is there; the way is unchanged."""
        self._feed(self._take_nudge)

    def request(self, request: Request) -> None:
        """A round now: joins the open one where that asks for its nodes from now on, else comes right behind it.

        Raises:
            UsageError: one of its nodes is not the provider's.
        """
        foreign = [node for node in request.nodes or () if node not in self._configured.nodes]
        if foreign:
            raise UsageError(
                f"cannot ask {self.name} for {', '.join(foreign)}",
                "not among its nodes",
                fix=f"add it to `nodes` of provider {self.name}, or ask for {', '.join(self._configured.nodes)}",
            )
        self._feed(partial(self._take_request, request))

    def observe(self, event: Event) -> None:
        """Every event of the agent may be given; those of this provider's sessions and mail count."""
        self._feed(partial(self._take_event, event))

    def reconfigure(self, provider: Provider) -> None:
        """`provider`, of the same name, counts from the next round."""
        self._configured = provider

    async def finish(self) -> None:
        """Take no new round; return once the open one has ended. For a provider that was removed."""
        self._feed(lambda: Signal.RETIRE)
        await self._stopped.wait()

    async def stop(self) -> None:
        """End now: an open round as incomplete, an ask broken off and waited for."""
        self._feed(self._take_stop)
        await self._asker.gone()

    # --- from what happens to a signal --------------------------------------------------------------------------------

    def _take_line(self, line: Line | None) -> Signal | None:
        was, self._line = self._line, line
        if line == was:
            return None
        if line is None:
            self._remark("the line went down")
            return Signal.LINE_DOWN
        self._remark(f"the line changed to {line.interface}, {line.source}")
        return Signal.LINE_UP if was is None else Signal.LINE_CHANGED

    def _take_wake(self) -> Signal:
        self._remark("the host slept")
        return Signal.WOKE

    def _take_stop(self) -> Signal:
        self._remark("stopped")
        return Signal.STOP

    def _take_nudge(self) -> Signal | None:
        counts = policy.nudge_counts(now=self._monotonic(), last_success=self._succeeded_at, last_ask=self._asked_at)
        return Signal.NUDGED if counts else None

    def _take_request(self, request: Request) -> Signal:
        self._incoming = request
        if self._round is None:
            return Signal.REQUESTED
        if self._state is State.ASKING:
            asked = self._round.nodes
        elif self._state is State.EXPECTING:
            asked = self._round.started_nodes  # whom a second ask is about
        else:
            return Signal.QUEUED
        joins = policy.covers(asked, request.nodes, all_nodes=self._provider.nodes)
        return Signal.JOINED if joins else Signal.QUEUED

    def _take_event(self, event: Event) -> Signal | None:
        moves = self._ledger.moves
        if isinstance(event, SessionOpened) and event.provider == self.name:
            if self._round is None or self._round.method != Method.ATRN.value:
                self._seen = self._seen.called()
            self._learn_habit()
        signal = self._ledger.observe(event)
        if signal in (Signal.SESSION_CLOSED, Signal.LAST_SESSION_CLOSED):
            self._last_closed_at = self._monotonic()
        if self._ledger.moves == moves:
            return None
        self._moved_at = self._monotonic()
        if signal is None and self._state is State.FILING and not self._unfiled():
            return self._waited()
        return signal

    def _learn_habit(self) -> None:
        """The provider connects: how long after the ask, or after its session before.

        Also when nobody waits any more: that is how a window that became too short is seen.
        """
        now = self._monotonic()
        if self._round is None or not self._ledger.session_came:
            if self._asked_at is not None and not self._called:
                self._called = True
                self._habits = self._habits.called(now - self._asked_at, limit=self._provider.first_connection_seconds)
        elif self._last_closed_at is not None and not self._ledger.session_open:
            self._habits = self._habits.paused(now - self._last_closed_at)

    def _waited(self) -> Signal:
        """The timer of EXPECTING, QUIET or FILING is over, or all is filed."""
        if self._state is State.QUIET:
            if self._falls_short():
                self._remark("the provider counted more than came: asked again")
                return Signal.SHORT
            self._moved_at = self._monotonic()  # patience begins with FILING
        unfiled = self._state is not State.EXPECTING and self._unfiled()
        return policy.waited(self._state, unfiled=unfiled, troubled=self._troubled, exhausted=self._memory.exhausted)

    def _falls_short(self) -> bool:
        """The provider counted (253), less came, and it was not asked again yet."""
        current = self._round
        if current is None or current.asks != 1 or self._troubled or self._ask_only:
            return False
        counted = policy.promised(current.answers)
        return counted is not None and self._ledger.handed_over < counted

    def _all_came(self) -> bool:
        current = self._round
        if current is None:
            return False
        if current.method == Method.ATRN.value:
            return True  # over the connection that was turned; there is no other
        counted = policy.promised(current.answers)
        return current.told_empty or (counted is not None and self._ledger.handed_over >= counted)

    def _unfiled(self) -> bool:
        """Filing is worth waiting for: mail is on its way, and can be filed, and moves."""
        if not self._ledger.unfiled(self._waiting_to_file):
            return False
        if not self._ledger.stuck and self._monotonic() - self._moved_at < policy.FILING_PATIENCE_SECONDS:
            return True
        self._remark(_WAITS_TO_BE_FILED)
        return False

    def _take_time_is_up(self) -> Signal:
        self._remark("the time of the request is up")
        if self._state is State.ASKING:
            return Signal.TIME_IS_UP
        if self._state is State.FILING:
            return policy.ending(troubled=self._troubled, exhausted=self._memory.exhausted, otherwise=Signal.SETTLED)
        return policy.ending(troubled=True, exhausted=self._memory.exhausted, otherwise=Signal.TROUBLED)

    @property
    def _troubled(self) -> bool:
        return bool(self._ledger.trouble)

    def _remark(self, reason: str) -> None:
        """Something that ``round.ended`` should say; no round, nothing to say."""
        if self._round is not None:
            self._round.reasons.append(reason)

    # --- from signal to actions, by the table -------------------------------------------------------------------------

    def _feed(self, take: Callable[[], Signal | None]) -> None:
        """Step through the table by the signal that `take` returns; it is called when what came before is done."""
        self._inputs.append(take)
        if self._stepping:
            return
        self._stepping = True
        try:
            while self._inputs:
                signal = self._inputs.popleft()()
                if signal is not None:
                    self._step(signal)
        finally:
            self._stepping = False

    def _step(self, signal: Signal) -> None:
        row = step(self._state, signal, table=self._table)
        if isinstance(row, Ignored):
            return
        was, self._state = self._state, row.state
        if signal is Signal.REQUESTED and self._next_at is not None:
            self._owed = self._next_at, self._cause
        if row.state is not was:
            self._stop_timer()
        if not (self._on_request_only and self._held):
            self._cause = _CAUSES.get(signal, self._cause)
        for action in row.actions:
            self._do(action)
        self._say_ended()
        if row.state is State.STOPPED:
            self._held.clear()
            self._stopped.set()
        elif was.in_round and not row.state.in_round:
            # What waited for the end of the round goes before anything that came meanwhile.
            if self._retiring:
                self._inputs.appendleft(lambda: Signal.RETIRE)
            elif self._held:
                self._inputs.appendleft(lambda: Signal.REQUESTED)

    def _do(self, action: Action) -> None:
        if action.outcome is not None:
            self._end(action.outcome)
            return
        match action:
            case Action.HOLD_REQUEST:
                self._hold()
            case Action.JOIN_REQUEST:
                self._join()
            case Action.FORGET:
                self._memory = self._memory.on_new_line(self._monotonic())
                self._patience = policy.Patience()
                self._owed = None
            case Action.BREAK_OFF:
                self._asker.break_off()
            case Action.RETIRE_LATER:
                self._retiring = True
            case Action.START:
                self._start()
            case Action.ASK:
                self._begin_ask()
            case Action.TIME_GRACE:
                self._time(policy.GRACE_SECONDS, lambda: Signal.GRACE_OVER)
            case Action.TIME_FIRST_CONNECTION:
                self._time(self._first_connection_seconds(), self._waited)
            case Action.TIME_QUIET:
                self._time(self._quiet_seconds(), self._waited)
            case Action.TIME_FILING:
                self._time(policy.FILING_POLL_SECONDS, self._waited)
            case _:
                self._plan(action)

    # --- actions: timers ----------------------------------------------------------------------------------------------

    def _time(self, seconds: float, take: Callable[[], Signal | None]) -> None:
        self._stop_timer()
        self._timer = self._call_later(seconds, partial(self._feed, take))

    def _stop_timer(self) -> None:
        self._next_at = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _first_connection_seconds(self) -> float:
        return self._habits.first_connection_seconds(self._provider)

    def _quiet_seconds(self) -> float:
        return policy.quiet_pause(
            quiet=self._habits.quiet_seconds(self._provider),
            first_connection=self._first_connection_seconds(),
            since_ask=self._monotonic() - (self._asked_at or 0.0),
            our_session_came=self._ledger.our_session_came,
            all_came=self._all_came(),
        )

    def _plan(self, action: Action) -> None:
        """Set the timer of the next ask, if there is to be one."""
        assert self._line is not None, "plans are made on a line"
        now = self._monotonic()
        if action is Action.PLAN_LONG and self._memory.refusals == 1 and self._choose().method is Method.ATRN:
            # Refused one way, and the other was not tried: nobody has to change anything first.
            action = Action.PLAN_RETRY
        metered = self._metered(self._line.interface)
        plan = policy.planned(
            action, self._configured, self._memory, metered=metered, now=now, busy=self._patience.pause
        )
        due: tuple[float, str] | None = None
        if plan is not None:
            due = now + policy.jittered(plan.seconds, self._random()), plan.cause or self._cause
        if self._owed is not None and (due is None or self._owed < due):
            due = max(self._owed[0], now), self._owed[1]
        if due is not None:
            self._time_ask(*due)

    def _time_ask(self, at: float, cause: str) -> None:
        """Ask at `at`, or when the hours for asking begin."""
        now = self._monotonic()
        at += self._closed_for(self._wall() + timedelta(seconds=at - now))
        self._time(at - now, self._ask_due)
        self._next_at, self._cause = at, cause

    def _ask_due(self) -> Signal | None:
        """The clock on the wall may have been set while we waited."""
        if self._closed_for(self._wall()) <= 0:
            return Signal.ASK_DUE
        self._time_ask(self._monotonic(), self._cause)
        return None

    # --- actions: requests --------------------------------------------------------------------------------------------

    def _hold(self) -> None:
        if self._incoming is not None:
            self._held.append(self._incoming)
            self._incoming = None

    def _join(self) -> None:
        current = self._round
        if current is not None and self._incoming is not None:
            current.requests.append(self._incoming)
            self._requests[current.id] += (self._incoming.id,)
            self._incoming = None
            self._set_limit(current)

    def _set_limit(self, current: Round | None) -> None:
        """The time of the requests that the round is for."""
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None
        if current is not None and current.seconds_allowed is not None:
            left = max(current.started_at + current.seconds_allowed - self._monotonic(), 0.0)
            self._limit = self._call_later(left, partial(self._feed, self._take_time_is_up))

    # --- actions: the round -------------------------------------------------------------------------------------------

    def _start(self) -> None:
        provider = self._provider = self._configured
        requests, self._held = self._held, []
        chosen = self._choose()
        current = self._round = Round(
            id=self._new_id(),
            provider=provider.name,
            method=chosen.method.value,
            cause=self._cause,
            line=self._line,
            nodes=self._nodes(requests),
            requests=requests,
            started_at=self._monotonic(),
        )
        if self._line is None:
            self._remark(f"there is no line to {provider.name}")
        if current.nodes == provider.nodes:
            self._owed = None
        self._ledger.begin(current.id)
        self._requests[current.id] = current.request_ids
        for old in list(self._requests)[:-_ROUNDS_KEPT]:
            del self._requests[old]
        self._set_limit(current)
        self._emit(current.started())
        if chosen != self._choice and chosen.reason:
            self._emit(
                MethodChosen(
                    round=current.id,
                    provider=provider.name,
                    method=chosen.method.value,
                    port=chosen.port,
                    reason=chosen.reason,
                )
            )
        self._choice = chosen
        self._last_closed_at = None

    def _choose(self) -> Choice:
        source = self._line.source if self._line else ""
        return choice.choose(self._configured, self._seen, source=source, receives=not self._ask_only)

    def _nodes(self, requests: Sequence[Request]) -> tuple[str, ...]:
        """What to ask for: all, unless the round is for requests alone and each of them names its nodes."""
        everything = self._provider.nodes
        wanted = {node for request in requests for node in request.nodes or everything}
        if self._cause != "request" or not wanted:
            return everything
        # A reload may have taken away what was asked for meanwhile.
        return tuple(node for node in everything if node in wanted) or everything

    def _end(self, outcome: Outcome) -> None:
        """Close the books; it is said when the step is done and the next ask planned."""
        if self._ledger.waits_to_be_filed:
            self._remark(_WAITS_TO_BE_FILED)
        current, self._round = self._round, None
        assert current is not None, "no round to end"
        now = self._monotonic()
        self._seen = self._seen.after(Method(current.method), outcome, came=self._ledger.session_came)
        self._set_limit(None)
        lost = self._ledger.session_open or self._troubled
        self._memory = self._memory.after(outcome, now=now, session_lost=lost)
        if outcome in policy.SUCCESSES:
            self._succeeded_at = now
        trouble = self._ledger.trouble
        self._ended = current.ended(outcome, self._ledger.end(), now=now, trouble=trouble)

    def _say_ended(self) -> None:
        ended, self._ended = self._ended, None
        if ended is None:
            return
        next_seconds = None
        if self._next_at is not None and not self._retiring:
            next_seconds = 0.0 if self._held else self._next_at - self._monotonic()
        self._emit(attrs.evolve(ended, next_seconds=next_seconds))

    # --- actions: the ask ---------------------------------------------------------------------------------------------

    def _begin_ask(self) -> None:
        current = self._round
        assert current is not None and current.line is not None, "an ask needs a round and a line"
        self._asked_at = self._monotonic()
        self._called = False  # nobody came for this ask yet
        current.asks += 1
        patience = self._patience
        self._asker.begin(
            policy.in_turn(current.nodes if current.asks == 1 else current.started_nodes, self._heard),
            current.line,
            on_answer=lambda answer: self._emit(current.answered(patience.judged(answer))),
            on_over=lambda result: self._feed(partial(self._take_result, current, result)),
        )

    def _take_result(self, current: Round, result: AskResult) -> Signal | None:
        if self._round is not current:
            return None  # it ended while this stood in line
        if result.failure is not None:
            self._emit(current.failed(result.failure))
        again = current.asks > 1
        answers = tuple(self._patience.judged(answer) for answer in result.answers)
        self._patience = self._patience.after(result.answers)
        self._heard |= dict.fromkeys(current.started_nodes if again else current.nodes)
        self._heard |= {answer.node: answer for answer in result.answers}
        self._ledger.note_ask(result.wire_bytes)
        asked_at_port = self._choice is not None and self._choice.port == self._provider.port
        if asked_at_port and (result.software or result.offers_atrn or result.answers):
            self._seen = self._seen.offered(result.offers_atrn)
        verdict = policy.merged(current.started_nodes if again else current.nodes, answers, result.failure)
        if again and verdict.signal in (Signal.FAILED, Signal.REFUSED):
            self._ledger.note_trouble(f"asking again: {verdict.reason}")
        # Nobody answered, and yet somebody came: what was asked for was heard.
        came_unanswered = verdict.signal is Signal.FAILED and self._ledger.our_session_came
        if came_unanswered and not again:
            self._ledger.note_trouble(f"mail came, but no answer: {verdict.reason}")
        current.told_empty = again and verdict.signal is Signal.NOTHING
        if not again:
            current.answers = answers
        if verdict.trouble:
            self._ledger.note_trouble(verdict.trouble)
        if verdict.reason:
            self._remark(verdict.reason)
        return policy.answered(
            verdict,
            ask_only=self._ask_only,
            session_open=self._ledger.session_open,
            session_came=self._ledger.session_came,
            troubled=self._troubled,
            exhausted=self._memory.exhausted,
            stands=again or came_unanswered,
        )
