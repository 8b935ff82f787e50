"""Events folded into one snapshot, and the contract's JSON made from it.

What is no event (the state of a round's machine, open sessions, what waits to be filed) is handed to `document`. When
the file is written is the agent's; `urgent` says for which events at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from siteagent.events import (
    AskAnswered,
    AskFailed,
    Event,
    LinkChanged,
    LinkDown,
    LinkUp,
    MessageAccepted,
    MessageDuplicate,
    MessageRefused,
    MessageStored,
    Outcome,
    RoundEnded,
    RoundStarted,
    SessionOpened,
    Stamped,
    WarningCleared,
    WarningRaised,
)

VERSION = 1
LEDGER_ROUNDS = 24
EARLIER_ROUNDS = 4
DEFERRED_SHOWN = 100
_UNASKED_REMEMBERED = 100

Document = dict[str, Any]


def timestamp(at: datetime | None) -> str | None:
    """`at` as ISO 8601 in UTC, ``2026-11-22T08:00:00Z``."""
    return None if at is None else at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# --- what is handed in ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ProviderView:
    """What a provider's runner knows. `requests`: by round, which it answers; some join a round after it began."""

    name: str
    state: str
    next_ask: datetime | None = None
    requests: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    gives_up_days: float | None = None  # how long the provider keeps mail that it cannot hand over


@dataclass(frozen=True, slots=True)
class ListenerView:
    addresses: tuple[str, ...] = ()
    open: bool = False


@dataclass(frozen=True, slots=True)
class QueueView:
    """Accepted and not yet filed; `reason` is why the oldest still waits, where it failed once."""

    messages: int = 0
    oldest: datetime | None = None
    reason: str | None = None


class ProviderLike(Protocol):
    """`ProviderView`, or what a runner gives as its own view."""

    @property
    def name(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def next_ask(self) -> datetime | None: ...
    @property
    def requests(self) -> Mapping[str, tuple[str, ...]]: ...


class SessionView(Protocol):
    """An open session: `bytes` received of a message in `seconds`, of `size` where the peer announced one."""

    @property
    def provider(self) -> str | None: ...
    @property
    def peer(self) -> str: ...
    @property
    def bytes(self) -> int: ...
    @property
    def size(self) -> int | None: ...
    @property
    def seconds(self) -> float: ...
    @property
    def since(self) -> datetime: ...


# --- folding ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Link:
    up: bool
    since: datetime
    interface: str
    source: str | None
    cause: str


# After these the provider has offered what it had: what it did not offer again is gone.
_OFFERED_ALL = (Outcome.DRAINED, Outcome.NOTHING, Outcome.INCOMPLETE)
_Held = tuple[int, str, str, int]  # code, reason, sender, bytes: what makes two refusals the same message


@dataclass(slots=True)
class _Round:
    """One round as far as it came."""

    id: str
    provider: str
    cause: str
    method: str
    interface: str
    started: datetime
    requests: tuple[str, ...]
    nodes: dict[str, Document] = field(default_factory=dict)
    asked: datetime | None = None
    code: int | None = None
    first_connection: datetime | None = None
    ended: datetime | None = None
    outcome: str | None = None
    reason: str = ""
    sessions: int = 0
    messages: int = 0
    files: int = 0
    duplicates: int = 0
    refused: int = 0
    bytes: int = 0
    wire_bytes: int = 0
    deferred: dict[_Held, Document] = field(default_factory=dict)
    held_before: dict[_Held, Document] = field(default_factory=dict)
    counted: dict[str, None] = field(default_factory=dict)

    def hold_back(self, at: datetime, event: MessageRefused) -> None:
        """A 4yz of ours: the message stays with the provider, which will offer it again."""
        key = (event.code, event.reason, event.sender, event.bytes)
        if key in self.deferred or len(self.deferred) >= DEFERRED_SHOWN:
            return
        self.deferred[key] = self.held_before.get(key) or {
            "code": event.code,
            "reason": event.reason,
            "bytes": event.bytes,
            "since": timestamp(at),
        }

    def document(self) -> Document:
        return {
            "id": self.id,
            "cause": self.cause,
            "method": self.method,
            "started": timestamp(self.started),
            "ended": timestamp(self.ended),
            "outcome": self.outcome,
            "reason": self.reason,
            "requests": list(self.requests),
            "nodes": list(self.nodes.values()),
            **self.figures(),
            "deferred": [dict(held) for held in self.deferred.values()],
        }

    def figures(self) -> Document:
        return {
            "sessions": self.sessions,
            "messages": self.messages,
            "files": self.files,
            "duplicates": self.duplicates,
            "refused": self.refused,
            "bytes": self.bytes,
            "wire_bytes": self.wire_bytes,
        }

    def ledger(self) -> Document:
        """One row of the ledger: what a line is paid by, and where its time went."""
        waited = None
        if self.first_connection is not None:
            waited = max(0.0, (self.first_connection - (self.asked or self.started)).total_seconds())
        return {
            "id": self.id,
            "provider": self.provider,
            "cause": self.cause,
            "method": self.method,
            "interface": self.interface,
            "started": timestamp(self.started),
            "asked": timestamp(self.asked),
            "code": self.code,
            "first_connection_seconds": waited,
            "ended": timestamp(self.ended),
            "outcome": self.outcome,
            **self.figures(),
        }


class StatusFold:
    """Folds events, in the order in which they happened, into what `document` shows."""

    def __init__(self) -> None:
        self._links: dict[str, _Link] = {}
        self._rounds: dict[str, _Round] = {}  # provider -> its latest round
        self._ledger: deque[_Round] = deque(maxlen=LEDGER_ROUNDS)
        self._warnings: dict[tuple[str, str], tuple[datetime, WarningRaised]] = {}
        self._totals = {"rounds": 0, "messages": 0, "bytes": 0}
        self._unasked: dict[str, None] = {}  # ids of mail that came without a round, oldest first

    def restore(self, past: Iterable[Stamped], *, rounds: int, messages: int, bytes: int) -> None:
        """Take up what an earlier run of the agent saw: its last rounds as events, and its totals."""
        for stamped in past:
            self.fold(stamped)
        self._totals = {"rounds": rounds, "messages": messages, "bytes": bytes}

    def fold(self, stamped: Stamped) -> None:
        """Take one event in. Events that the snapshot does not show are passed over."""
        event = stamped.event
        match event:
            case LinkUp() | LinkChanged():
                self._links[event.provider] = _Link(True, stamped.at, event.interface, event.source, event.cause)
            case LinkDown():
                self._links[event.provider] = _Link(False, stamped.at, event.interface, None, event.cause)
            case RoundStarted():
                self._round_started(stamped.at, event)
            case AskAnswered() | AskFailed():
                self._answered(stamped.at, event)
            case SessionOpened() | MessageAccepted() | MessageDuplicate() | MessageRefused() | MessageStored():
                self._received(stamped.at, event)
            case RoundEnded():
                self._round_ended(stamped.at, event)
            case WarningRaised():
                key = (event.warning, event.subject)
                since = self._warnings[key][0] if key in self._warnings else stamped.at
                self._warnings[key] = (since, event)
            case WarningCleared():
                self._warnings.pop((event.warning, event.subject), None)

    def ledger(self) -> list[Document]:
        """The last rounds that ended, oldest first, at most LEDGER_ROUNDS."""
        return [each.ledger() for each in self._ledger]

    def _round_started(self, at: datetime, event: RoundStarted) -> None:
        known = self._rounds.get(event.provider)
        if known is not None and known.id == event.round:  # said again: a request joined it
            known.requests = _united(known.requests, event.requests)
            return
        fresh = _Round(event.round, event.provider, event.cause, event.method, event.interface, at, event.requests)
        # What was held back keeps its `since` if it is held back again.
        fresh.held_before = known.deferred if known is not None else {}
        self._rounds[event.provider] = fresh

    def _answered(self, at: datetime, event: AskAnswered | AskFailed) -> None:
        known = self._round(event.provider, event.round)
        if known is None:
            return
        if event.code is not None:
            known.code = event.code
        if isinstance(event, AskFailed):
            known.reason = event.reason
            return
        if known.asked is None:
            known.asked = at - timedelta(seconds=event.seconds)
        known.nodes[event.node] = {
            "node": event.node,
            "outcome": event.outcome.value,
            "code": event.code,
            "text": event.text,
            "promised": event.promised,
        }

    def _received(
        self, at: datetime, event: SessionOpened | MessageAccepted | MessageDuplicate | MessageRefused | MessageStored
    ) -> None:
        known = self._round(event.provider, event.round)
        match event:
            case MessageAccepted():
                self._count(known, event.message, event.bytes, event.wire_bytes)
            case MessageDuplicate():
                self._count(known, event.message, 0, 0)
        if known is None:
            return
        match event:
            case SessionOpened():
                known.sessions += 1
                known.first_connection = known.first_connection or at
            case MessageStored():
                known.files += 1
            case MessageDuplicate():
                known.duplicates += 1
            case MessageRefused():
                known.refused += 1
                if 400 <= event.code < 500:
                    known.hold_back(at, event)

    def _count(self, known: _Round | None, message: str, bytes: int, wire_bytes: int) -> None:
        """One transaction answered 250: some of its recipients may be accepted and some have it already."""
        counted = self._unasked if known is None else known.counted
        if message not in counted:
            counted[message] = None
            self._totals["messages"] += 1
            if known is not None:
                known.messages += 1
            elif len(counted) > _UNASKED_REMEMBERED:
                del counted[next(iter(counted))]
        self._totals["bytes"] += bytes
        if known is not None:
            known.bytes += bytes
            known.wire_bytes += wire_bytes

    def _round_ended(self, at: datetime, event: RoundEnded) -> None:
        self._totals["rounds"] += 1
        known = self._round(event.provider, event.round)
        if known is None:
            return
        known.ended = at
        known.outcome = event.outcome.value
        known.reason = event.reason
        known.sessions, known.messages, known.files = event.sessions, event.messages, event.files
        known.duplicates, known.refused = event.duplicates, event.refused
        known.bytes, known.wire_bytes = event.bytes, event.wire_bytes
        if event.outcome not in _OFFERED_ALL:
            # What was not offered again is there still, as far as we know.
            known.deferred = {**known.held_before, **known.deferred}
        known.held_before = {}
        self._ledger.append(known)

    def _round(self, provider: str | None, round: str | None) -> _Round | None:
        known = self._rounds.get(provider) if provider is not None else None
        return known if known is not None and known.id == round else None

    # --- showing ------------------------------------------------------------------------------------------------------

    def document(
        self,
        *,
        state: str,
        pid: int,
        since: datetime | None,
        listener: ListenerView,
        sessions: Sequence[SessionView],
        queue: QueueView,
        providers: Sequence[ProviderLike],
    ) -> Document:
        """The contract's JSON of ``status.json``: `state` starting, running, stopping or stopped."""
        return {
            "version": VERSION,
            "state": state,
            "pid": pid,
            "since": timestamp(since),
            "link": self._link({view.name for view in providers}),
            "listener": {"addresses": list(listener.addresses), "open": listener.open},
            "sessions_open": [_session(view) for view in sessions],
            "queue": {"messages": queue.messages, "oldest": timestamp(queue.oldest), "reason": queue.reason},
            "providers": [self._provider(view) for view in providers],
            "warnings": [
                {"name": warning.warning, "since": timestamp(at), "text": warning.text, "fix": warning.fix}
                for at, warning in self._warnings.values()
            ],
            "totals": dict(self._totals),
        }

    def _link(self, providers: set[str]) -> Document:
        """The line, as one: up if any provider can be reached, and then by the way found last."""
        links = [link for name, link in self._links.items() if name in providers]
        if not links:
            return {"up": False, "interface": None, "source": None, "since": None, "cause": None}
        chosen = max(links, key=lambda link: (link.up, link.since))
        return {
            "up": chosen.up,
            "interface": chosen.interface if chosen.up else None,
            "source": chosen.source,
            "since": timestamp(chosen.since),
            "cause": chosen.cause,
        }

    def _provider(self, view: ProviderLike) -> Document:
        last = self._rounds.get(view.name)
        if last is not None:
            last.requests = _united(last.requests, view.requests.get(last.id, ()))
        shown: Document = {
            "name": view.name,
            "state": view.state,
            "next_ask": timestamp(view.next_ask),
            "last_round": None if last is None else _with_ends(last.document(), getattr(view, "gives_up_days", None)),
        }
        # Whoever asked looks now and then: by then a round for somebody else may have begun.
        if earlier := self._on_request(view, but=last):
            shown["earlier_rounds"] = earlier
        return shown

    def _on_request(self, view: ProviderLike, *, but: _Round | None) -> list[Document]:
        found = []
        for each in list(self._ledger)[-EARLIER_ROUNDS:]:
            if each.provider == view.name and each is not but:
                each.requests = _united(each.requests, view.requests.get(each.id, ()))
                if each.requests:
                    found.append(each.document())
        return found


def _with_ends(document: Document, days: float | None) -> Document:
    """`document` of a round, each deferred message with when the provider gives up: about, as far as we can know."""
    if days is not None:
        for held in document["deferred"]:
            held["gives_up"] = timestamp(datetime.fromisoformat(held["since"]) + timedelta(days=days))
    return document


def _session(view: SessionView) -> Document:
    return {
        "provider": view.provider,
        "peer": view.peer,
        "bytes": view.bytes,
        "size": view.size,
        "seconds": round(view.seconds, 1),
        "since": timestamp(view.since),
    }


def _united(first: tuple[str, ...], second: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*first, *second)))


def urgent(event: Event) -> bool:
    """Whether ``status.json`` must show this at once; everything else may wait half a second."""
    return event.name.partition(".")[0] in ("agent", "link", "round", "warning", "config", "ask")
