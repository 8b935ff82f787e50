"""What the provider brought, told by the events of its sessions: who is there, what it cost, what went wrong. Pure.

A session belongs to a round if it was opened in it, or was open when the round began: what survives a lost line, or
came by itself, must be waited for too. A message and a file belong where their session does. Figures are sums over
events, each counted in one round only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from siteagent.events import (
    Event,
    FilingFailed,
    MessageAccepted,
    MessageDuplicate,
    MessageRefused,
    MessageStored,
    SessionClosed,
    SessionOpened,
    SessionRefused,
)
from siteagent.rounds.machine import Signal


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one round. `messages`: transactions answered 250; `wire_bytes`: sessions that ended and the asks, both ways.

    `ask_bytes`: the part of `wire_bytes` that the asks cost.
    """

    sessions: int = 0
    messages: int = 0
    files: int = 0
    duplicates: int = 0
    refused: int = 0
    bytes: int = 0
    wire_bytes: int = 0
    ask_bytes: int = 0


@dataclass(slots=True)
class _Session:
    round: str | None
    counts: bool  # in the round that is open
    wire_bytes: int = 0  # told so far, in whichever round
    last_message: str | None = None
    deferred: str = ""  # what we answered 4yz in it, latest
    told: bool = False  # and that the open round was told of it


class Ledger:
    """The sessions of one provider, and the figures of its open round. Feed `observe` every event of the agent."""

    def __init__(self, provider: str) -> None:
        self._provider = provider
        self._sessions: dict[str, _Session] = {}
        self._round: str | None = None
        self._figures = Figures()
        self._rounds: set[str] = set()  # whose mail counts here: this round's, and that of sessions taken over
        self._accepted: set[str] = set()  # messages of the open round
        self._unfiled: set[str] = set()  # those without any file yet
        self._stuck: set[str] = set()  # those whose filing failed
        self._unasked: set[str] = set()  # those that came over a session without a round
        # The filer may be faster than the news that a message was accepted: what is told of it until then.
        self._filed_early: Counter[str] = Counter()
        self._failed_early: set[tuple[str, str]] = set()
        self._postponed: set[tuple[str, str]] = set()  # (message, mailbox) that could not be filed so far
        self.trouble: list[str] = []  # why the round is incomplete: the first few reasons
        self.our_session_came = False  # opened in this round, not only taken over
        self.moves = 0  # grows with every event that counted in a round

    def begin(self, round_id: str) -> None:
        """A round begins; sessions that are open now count in it."""
        assert self._round is None, "one round at a time"
        self._clear()
        self._round = round_id
        self._rounds = {round_id} | {s.round for s in self._sessions.values() if s.round is not None}
        for session in self._sessions.values():
            session.counts = True
        self._add(sessions=len(self._sessions))

    def end(self) -> Figures:
        """The round is over: its figures. Sessions that are still open go on and count nowhere until the next one."""
        figures = self._figures
        self._clear()
        for session in self._sessions.values():
            session.counts = session.told = False
        return figures

    def _clear(self) -> None:
        self._round = None
        self._figures = Figures()
        self._rounds = set()
        self._accepted, self._unfiled, self._stuck, self._unasked = set(), set(), set(), set()
        self._filed_early, self._failed_early, self._postponed = Counter(), set(), set()
        self.trouble = []
        self.our_session_came = False

    @property
    def open_sessions(self) -> int:
        """How many sessions of the provider are open, whichever round they belong to."""
        return len(self._sessions)

    @property
    def session_open(self) -> bool:
        """A session that counts in the open round is there."""
        return any(session.counts for session in self._sessions.values())

    @property
    def session_came(self) -> bool:
        """The open round has had a session."""
        return self._figures.sessions > 0

    @property
    def stuck(self) -> bool:
        """Some filing failed, and nothing else of this round is known to be on its way."""
        return bool(self._stuck) and self._unfiled <= self._stuck

    @property
    def waits_to_be_filed(self) -> bool:
        """Something of this round was tried, could not be filed, and is tried again later."""
        return bool(self._postponed)

    def unfiled(self, waiting_to_file: Callable[[str], bool]) -> bool:
        """Something accepted in this round is not in its mailbox yet.

        `waiting_to_file(round)` knows the spool; it cannot tell mail that is tried in vain from mail that is next.
        """
        # Mail of a session without a round cannot be found by one: there our own count must do.
        if self._unasked & self._unfiled:
            return True
        return any(waiting_to_file(round_id) for round_id in self._rounds)

    @property
    def handed_over(self) -> int:
        """What the provider tried to hand over in the open round: taken, or refused for good."""
        return self._figures.messages + self._figures.refused

    def note_ask(self, octets: int) -> None:
        """An ask of the open round cost so much."""
        if octets:
            self._add(wire_bytes=octets, ask_bytes=octets)

    def note_trouble(self, reason: str) -> None:
        """Something stays at the provider, or may."""
        if len(self.trouble) < 3 and reason not in self.trouble:
            self.trouble.append(reason)

    def observe(self, event: Event) -> Signal | None:
        """Count `event`; a signal if it changes who is there in the open round. Foreign events are left alone."""
        match event:
            case SessionOpened():
                return self._opened(event)
            case SessionClosed():
                return self._closed(event)
            case SessionRefused() if self._round is not None and self._provider in event.expected:
                self.note_trouble(f"a connection from {event.peer} was refused: {event.reason}")
            case MessageAccepted() | MessageDuplicate() | MessageRefused():
                session = self._sessions.get(event.session)
                if session is not None and session.counts:
                    self._count(event, session)
            case MessageStored() if event.message in self._accepted or event.round in self._rounds:
                self._filed(event)
            case MessageStored() if self._round is not None and event.round is None:
                self._filed_early[event.message] += 1
            case FilingFailed() if event.message in self._accepted:
                self._failed(event.message, event.mailbox)
            case FilingFailed() if self._round is not None and event.tries == 1:
                self._failed_early.add((event.message, event.mailbox))
        return None

    def _filed(self, event: MessageStored) -> None:
        self._unfiled.discard(event.message)
        self._postponed.discard((event.message, event.mailbox))
        if event.message not in self._accepted:
            self._filed_early[event.message] = 0  # counted here, and not to be waited for
        self._add(files=1)

    def _failed(self, message: str, mailbox: str) -> None:
        self.moves += 1
        self._stuck.add(message)
        self._postponed.add((message, mailbox))

    def _opened(self, event: SessionOpened) -> Signal | None:
        if event.provider != self._provider:
            return None
        ours = self._round is not None and event.round == self._round
        self._sessions[event.session] = _Session(event.round, ours)
        if not ours:
            return None
        self.our_session_came = True
        self._add(sessions=1)
        return Signal.SESSION_OPENED

    def _closed(self, event: SessionClosed) -> Signal | None:
        session = self._sessions.pop(event.session, None)
        if session is None or not session.counts:
            return None
        self._add(wire_bytes=max(event.wire_bytes - session.wire_bytes, 0))
        # A session in which we answered 4yz is not clean either, but that was told already; unless in an earlier round.
        if not event.clean and not session.told:
            ended = f"the session from {event.peer} ended uncleanly: {event.reason}"
            self.note_trouble(session.deferred or ended)
        return Signal.SESSION_CLOSED if self.session_open else Signal.LAST_SESSION_CLOSED

    def _count(self, event: MessageAccepted | MessageDuplicate | MessageRefused, session: _Session) -> None:
        if isinstance(event, MessageRefused):
            self._add(refused=1)
            if 400 <= event.code < 500:
                session.deferred, session.told = f"we answered {event.code}: {event.reason}", True
                self.note_trouble(session.deferred)
            return
        # One transaction may be both: new for some of its recipients, known to others.
        first_told = session.last_message != event.message
        session.last_message = event.message
        self._add(messages=int(first_told))
        if isinstance(event, MessageDuplicate):
            self._add(duplicates=1)
            return
        session.wire_bytes += event.wire_bytes
        self._accepted.add(event.message)
        if session.round is None:
            self._unasked.add(event.message)
        if event.message in self._filed_early:
            self._add(files=self._filed_early.pop(event.message))
        else:
            self._unfiled.add(event.message)
        for message, mailbox in [early for early in self._failed_early if early[0] == event.message]:
            self._failed(message, mailbox)
        self._add(bytes=event.bytes, wire_bytes=event.wire_bytes)

    def _add(self, **figures: int) -> None:
        self.moves += 1
        self._figures = replace(
            self._figures, **{name: getattr(self._figures, name) + value for name, value in figures.items()}
        )
