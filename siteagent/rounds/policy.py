"""The judgements around the table, each a pure function: what the answers mean together, and when to ask again.

Times are monotonic seconds. The figures that are ours and not the operator's stand at the top, with their reasons.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from siteagent.config.sections import Provider
from siteagent.events import NodeOutcome, Outcome
from siteagent.rounds.machine import Action, Signal, State
from siteagent.wire.etrn import AskFailure, NodeAnswer

# After an incomplete round, counted from its end. The last is 600 s, as long as Postfix keeps a message active whose
# final dot was not answered (an ETRN meanwhile does not touch it), and a minute more.
REASK_SECONDS = (60.0, 300.0, 660.0)

# After a 5yz (S41): an hour, doubling to a day. Somebody has to change something first, and may have.
REFUSED_FIRST_SECONDS, REFUSED_LAST_SECONDS = 3600.0, 86400.0

# After a 458, which may mean "busy" or "denied for good": the pauses before the next tries on the same line. Said once
# more after the last of them it counts as refused. postscreen lets a new client in on its second visit.
BUSY_CODE = 458
BUSY_SECONDS = (30.0, 60.0, 120.0)

# RFC 5321 §3.8: the server closes the connection, whatever it was asked.
CLOSING_CODE = 421

# `ask_every_seconds = "auto"`.
AUTO_SECONDS = 900.0

# A hint counts if mail may have been missed, and never makes us ask more often than this.
NUDGE_AFTER_SUCCESS_SECONDS, NUDGE_AFTER_ASK_SECONDS = 60.0, 10.0

# A request may come from the very script that brings the line up: it waits this long for the watch to see the line.
# Shorter than the 5 s after which `siteagent ask` gives up on us.
GRACE_SECONDS = 4.0

# While mail of the round is not filed: look so often; and stop waiting when nothing happened for so long.
FILING_POLL_SECONDS, FILING_PATIENCE_SECONDS = 1.0, 60.0

# Pauses from here on get up to a tenth on top, so that the sites of one provider do not march in step. Only on top:
# 660 s is a lower bound.
JITTER_FROM_SECONDS, JITTER_SHARE = 60.0, 0.1

SUCCESSES = frozenset({Outcome.DRAINED, Outcome.NOTHING, Outcome.SILENT, Outcome.ASKED})


# --- what the answers mean --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answers for all nodes as one. `signal`: AGREED, NOTHING, REFUSED or FAILED.

    `trouble` is set where some node is still owed an ask; `reason` is for people and names what was not started.
    """

    signal: Signal
    reason: str = ""
    trouble: str = ""


def merged(nodes: Sequence[str], answers: Iterable[NodeAnswer], failure: AskFailure | None) -> Verdict:
    """What the answers for `nodes` mean together; the last answer for a node counts.

    One node that started is enough to wait for mail; one that cannot be asked never keeps the others from being
    asked as usual, so `refused` is said only where nothing better is. Mail that waits behind a temporary failure
    makes the round fail (none started), or troubles it (some did).
    """
    last = {answer.node: answer for answer in answers}
    by = {outcome: [a for a in last.values() if a.outcome is outcome] for outcome in NodeOutcome}
    unreached = [node for node in nodes if node not in last]
    later = by[NodeOutcome.RETRY] + by[NodeOutcome.UNKNOWN]
    refused = [_told(answer) for answer in by[NodeOutcome.REFUSED]]
    # A node that was not reached shares the fate of what kept us from it.
    permanent = not failure.temporary if failure else bool(refused) and not later
    owed = [_told(answer) for answer in later] + ([] if permanent else [f"{node}: not asked" for node in unreached])
    if permanent:
        refused += [f"{node}: not asked" for node in unreached]
    why = [failure.reason] if failure else []
    if by[NodeOutcome.STARTED]:
        trouble = "; ".join(why + owed) if owed else ""
        return Verdict(Signal.AGREED, "; ".join(refused), trouble)
    if owed:
        return Verdict(Signal.FAILED, "; ".join(why + owed + refused))
    if by[NodeOutcome.NOTHING]:
        return Verdict(Signal.NOTHING, "; ".join(refused))
    if refused:
        return Verdict(Signal.REFUSED, "; ".join(why + refused))
    return Verdict(Signal.FAILED, "no answer")


def _told(answer: NodeAnswer) -> str:
    code = f"{answer.code} " if answer.code is not None else ""
    return f"{answer.node}: {code}{answer.text}".rstrip(": ")


def answered(
    verdict: Verdict,
    *,
    ask_only: bool,
    session_open: bool,
    session_came: bool,
    troubled: bool,
    exhausted: bool,
    stands: bool = False,
) -> Signal:
    """What the end of an ask is for the table. A session that is there outweighs a provider that has nothing.

    `stands`: what was agreed or came already does, whatever became of this ask; it was not the first of its round, or
    the provider connected before its answer, which then was lost.
    """
    signal = verdict.signal
    if stands and signal in (Signal.REFUSED, Signal.FAILED):
        signal = Signal.NOTHING
    if ask_only:
        if signal is not Signal.AGREED:
            return signal
        return ending(troubled=troubled, exhausted=exhausted, otherwise=Signal.ASKED)
    if signal is Signal.NOTHING and not (session_open or session_came or troubled):
        return Signal.AGREED if stands else signal  # whom it agreed to send before may be on the way
    if signal in (Signal.AGREED, Signal.NOTHING):
        if session_open:
            return Signal.AGREED_RECEIVING
        if session_came or signal is Signal.NOTHING:
            return Signal.AGREED_RECEIVED
    return signal


def in_turn(nodes: Sequence[str], before: Mapping[str, NodeAnswer | None]) -> tuple[str, ...]:
    """`nodes` in the order in which to ask: first those that a conversation cut short left without a word.

    `before`: the last answer to each node of the ask before, None for one that was not reached. A server that hangs up
    behind every second command (Postfix under stress, after a refused name) would otherwise never hear of the later
    nodes, whose mail would wait for ever behind the first one's answer.
    """

    def rank(node: str) -> int:
        if node not in before:
            return 2
        told = before[node]
        if told is None:
            return 0
        return 1 if told.code is None or told.code == CLOSING_CODE else 2

    return tuple(sorted(nodes, key=rank))


# --- a 458 that stays -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Patience:
    """How often each node was answered 458 in a row on this line, and which were in the latest conversation."""

    said: Mapping[str, int] = field(default_factory=dict)
    latest: frozenset[str] = frozenset()

    def judged(self, answer: NodeAnswer) -> NodeAnswer:
        """`answer`, but refused where a temporary 458 has been said too often to be one."""
        if not _is_busy(answer) or self.said.get(answer.node, 0) < len(BUSY_SECONDS):
            return answer
        return replace(answer, outcome=NodeOutcome.REFUSED)

    def after(self, answers: Iterable[NodeAnswer]) -> Patience:
        """What is remembered once these answers are in; they are the provider's own, not the judged ones."""
        said, latest = dict(self.said), set[str]()
        for answer in answers:
            if _is_busy(answer):
                said[answer.node] = said.get(answer.node, 0) + 1
                latest.add(answer.node)
            else:
                said.pop(answer.node, None)
        return Patience(said, frozenset(latest))

    @property
    def pause(self) -> float | None:
        """Seconds until the nodes that were put off just now are asked again; None where no try is left for any."""
        left = [self.said[node] for node in self.latest if self.said[node] <= len(BUSY_SECONDS)]
        return BUSY_SECONDS[min(left) - 1] if left else None


def _is_busy(answer: NodeAnswer) -> bool:
    return answer.code == BUSY_CODE and answer.outcome is NodeOutcome.RETRY


# --- what the provider promised ---------------------------------------------------------------------------------------

# Once all that a 253 counted is there, or a 251 said that no more is: a moment for what came to the queue meanwhile.
PROMISE_KEPT_SECONDS = 3.0


def promised(answers: Iterable[NodeAnswer]) -> int | None:
    """How many messages the provider said it sends; None unless it said so for every node that it started."""
    last = {answer.node: answer for answer in answers}
    counts = [answer.promised for answer in last.values() if answer.outcome is NodeOutcome.STARTED]
    known = [count for count in counts if count is not None]
    return sum(known) if known and len(known) == len(counts) else None


# --- how a wait ends --------------------------------------------------------------------------------------------------


def ending(*, troubled: bool, exhausted: bool, otherwise: Signal) -> Signal:
    """The signal at an end that would be `otherwise`, had there been no trouble."""
    if not troubled:
        return otherwise
    return Signal.TROUBLED_STILL if exhausted else Signal.TROUBLED


def waited(state: State, *, unfiled: bool, troubled: bool, exhausted: bool) -> Signal:
    """What the end of a state's timer is for the table. `state`: EXPECTING, QUIET or FILING."""
    if state is State.EXPECTING:
        return ending(troubled=troubled, exhausted=exhausted, otherwise=Signal.SILENT)
    if unfiled:
        return Signal.UNFILED
    return ending(troubled=troubled, exhausted=exhausted, otherwise=Signal.SETTLED)


def quiet_pause(
    *, quiet: float, first_connection: float, since_ask: float, our_session_came: bool, all_came: bool = False
) -> float:
    """Seconds without a session after which all has come.

    `all_came`: the provider's own count says so, which is a hint and no more. Where only sessions closed that were open
    before we asked, the provider's answer to the ask is still out: it gets the rest of the window for its first
    connection.
    """
    if our_session_came:
        return min(quiet, PROMISE_KEPT_SECONDS) if all_came else quiet
    return max(quiet, first_connection - since_ask)


# --- when to ask again ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Memory:
    """What earlier rounds leave behind.

    `failures` and `refusals` in a row; `troubled_at`: the end of the last incomplete round whose re-asks are not yet
    done, and `reasks` how many of them are.
    """

    failures: int = 0
    refusals: int = 0
    troubled_at: float | None = None
    reasks: int = 0

    @property
    def exhausted(self) -> bool:
        """One more incomplete round gets no quick re-ask."""
        return self.troubled_at is not None and self.reasks >= len(REASK_SECONDS) - 1

    def on_new_line(self, now: float) -> Memory:
        """All schedules begin anew. What a dead session still holds at the provider is owed as before."""
        return self._passed(now)

    def after(self, outcome: Outcome, *, now: float, session_lost: bool = False) -> Memory:
        """The memory once a round ended; `session_lost`: the line went with a session open, or after trouble."""
        if outcome is Outcome.FAILED:
            return replace(self, failures=self.failures + 1)
        if outcome is Outcome.REFUSED:
            return replace(self, failures=0, refusals=self.refusals + 1)
        if outcome is Outcome.LINK_LOST:
            return replace(self, troubled_at=now, reasks=0) if session_lost else self
        if outcome is Outcome.INCOMPLETE:
            reasks = 0 if self.troubled_at is None else min(self.reasks + 1, len(REASK_SECONDS))
            return Memory(troubled_at=now, reasks=reasks)
        return self._passed(now)

    def _passed(self, now: float) -> Memory:
        """The re-asks whose time has come are done, the later ones are still owed.

        What stayed at the provider may be held there until the last of them, however well a round before it went.
        """
        if self.troubled_at is None:
            return Memory()
        reasks = self.reasks
        while reasks < len(REASK_SECONDS) and self.troubled_at + REASK_SECONDS[reasks] <= now:
            reasks += 1
        return Memory(troubled_at=self.troubled_at, reasks=reasks) if reasks < len(REASK_SECONDS) else Memory()

    def reask_pause(self, now: float) -> float | None:
        """Seconds until the next re-ask; None if none is owed."""
        if self.troubled_at is None or self.reasks >= len(REASK_SECONDS):
            return None
        return max(self.troubled_at + REASK_SECONDS[self.reasks] - now, 1.0)


def retry_pause(schedule: Sequence[float], failures: int) -> float:
    """Seconds before the next attempt after so many failures in a row; the last pause repeats."""
    return schedule[min(failures, len(schedule) - 1)]


def refused_pause(refusals: int) -> float:
    """Seconds before the next ask after so many refusals in a row, 1 or more (S41)."""
    return min(REFUSED_FIRST_SECONDS * 2.0 ** min(refusals - 1, 10), REFUSED_LAST_SECONDS)


def clock_pause(ask_every: float | str, *, metered: bool) -> float | None:
    """Seconds between rounds on a line that stays up; None: not by the clock."""
    if metered or ask_every == 0:
        return None
    return AUTO_SECONDS if isinstance(ask_every, str) else float(ask_every)


@dataclass(frozen=True, slots=True)
class Plan:
    """When the next ask is due, and the cause that its round will have; None: that of the signal that led here."""

    seconds: float
    cause: str | None


def planned(
    action: Action,
    provider: Provider,
    memory: Memory,
    *,
    metered: bool,
    now: float,
    busy: float | None = None,
) -> Plan | None:
    """What a PLAN action comes to; None: nothing is planned, the next link event or request is waited for.

    `busy`: the pause of nodes that were answered 458.
    """
    reask = memory.reask_pause(now)
    match action:
        case Action.PLAN_FIRST:
            return Plan(provider.retry_seconds[0], None)
        case Action.PLAN_RETRY if busy is not None:
            return Plan(busy, "retry")
        case Action.PLAN_RETRY:
            return Plan(retry_pause(provider.retry_seconds, memory.failures), "retry")
        case Action.PLAN_LONG:
            return Plan(refused_pause(memory.refusals), "retry")
        case Action.PLAN_REASK:
            assert reask is not None, "an incomplete round that gets no re-ask is TROUBLED_STILL"
            # What only waits behind a 458 need not wait for dead sessions; the sessions of the others get their minute.
            return Plan(reask if busy is None else min(reask, max(busy, REASK_SECONDS[0])), "retry")
        case Action.PLAN_CLOCK:
            clock = clock_pause(provider.ask_every_seconds, metered=metered)
            if reask is not None and (clock is None or reask < clock):
                return Plan(reask, "retry")
            return Plan(clock, "clock") if clock is not None else None
    raise AssertionError(f"not a plan: {action}")


def jittered(pause: float, share: float) -> float:
    """`pause` with up to a tenth on top if it is long; `share` is random, from 0 to 1."""
    return pause * (1 + JITTER_SHARE * share) if pause >= JITTER_FROM_SECONDS else pause


def nudge_counts(*, now: float, last_success: float | None, last_ask: float | None) -> bool:
    """A hint is followed only where we may have missed something, and not over and over."""
    if last_success is not None and now - last_success < NUDGE_AFTER_SUCCESS_SECONDS:
        return False
    return last_ask is None or now - last_ask >= NUDGE_AFTER_ASK_SECONDS


# --- requests ---------------------------------------------------------------------------------------------------------


def covers(asked: Sequence[str], wanted: Sequence[str] | None, *, all_nodes: Sequence[str]) -> bool:
    """A round for the nodes `asked` answers a request for `wanted` (None: all of them)."""
    return set(asked) >= set(all_nodes if wanted is None else wanted)
