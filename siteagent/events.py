"""Everything that happens, as frozen values: one vocabulary for log, journal, hooks and status.

An edge reports a fact by ``emit(SessionOpened(...))`` and decides nothing by it. Events carry no time: whoever
collects them stamps them (`Stamped`), so that a test's clock reaches everywhere. The name that people meet
(``session.opened``) and the order of the fields in a log line are those of the class. ``docs/events.md`` is printed
from this module.

Units stand in the names or are: ``bytes`` octets, ``seconds`` durations. ``round``, ``session`` and ``message`` are
ids; ``message`` is the unique part of the Maildir file name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from enum import Enum, StrEnum
from functools import cache
from typing import Any, ClassVar, TypeVar

import attrs

FieldValue = str | int | float | bool | tuple[str, ...] | None


class Severity(StrEnum):
    """Decided by what must happen next: nothing, somebody may want to look, somebody must act."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Outcome(StrEnum):
    """How a round ended. ``drained`` is an inference (ETRN has no end mark); silence is never called success."""

    DRAINED = "drained"
    NOTHING = "nothing"
    SILENT = "silent"
    INCOMPLETE = "incomplete"
    ASKED = "asked"
    REFUSED = "refused"
    FAILED = "failed"
    LINK_LOST = "link-lost"


class NodeOutcome(StrEnum):
    """What the provider's answer for one node means."""

    STARTED = "started"
    NOTHING = "nothing"
    REFUSED = "refused"
    RETRY = "retry"
    UNKNOWN = "unknown"


@attrs.frozen(kw_only=True)
class Event:
    """Base of all events. `name` and `severity` belong to the class.

    `in_crowds`: every session and every message has one, so that it may be told some milliseconds late with others.
    """

    name: ClassVar[str] = ""
    severity: ClassVar[Severity] = Severity.INFO
    in_crowds: ClassVar[bool] = False

    def values(self) -> dict[str, FieldValue]:
        """Field name to plain value, in the order of the class; enums as their text."""
        out: dict[str, FieldValue] = {}
        kind: Any = type(self)
        for name in _names(kind):
            value = getattr(self, name)
            out[name] = value.value if isinstance(value, Enum) else value
        return out


@cache
def _names(kind: type[Event]) -> tuple[str, ...]:
    return tuple(field.name for field in attrs.fields(kind))


Emit = Callable[[Event], None]


@attrs.frozen
class Stamped:
    """An event and when it was collected, in UTC."""

    at: datetime
    event: Event


_Hears = TypeVar("_Hears", bound=Callable[..., object])


def hears(*kinds: type[Event]) -> Callable[[_Hears], _Hears]:
    """Marks a function that events are brought to: of all kinds, only these mean something to it."""

    def mark(function: _Hears) -> _Hears:
        function.hears = frozenset(kinds)  # type: ignore[attr-defined]
        return function

    return mark


# --- the agent itself ------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class AgentReady(Event):
    """Every part runs; the listener takes connections (or there is none: ask-only)."""

    name: ClassVar[str] = "agent.ready"
    hostname: str
    listening: tuple[str, ...]
    providers: tuple[str, ...]
    seconds: float


@attrs.frozen(kw_only=True)
class AgentStopping(Event):
    """No new session and no new round from here on."""

    name: ClassVar[str] = "agent.stopping"
    reason: str


@attrs.frozen(kw_only=True)
class ConfigReloaded(Event):
    """A changed configuration counts from the next session and the next round on."""

    name: ClassVar[str] = "config.reloaded"
    path: str


@attrs.frozen(kw_only=True)
class ConfigRejected(Event):
    """A changed configuration has problems, and the one in force stays."""

    name: ClassVar[str] = "config.rejected"
    severity: ClassVar[Severity] = Severity.ERROR
    path: str
    problems: tuple[str, ...]


@attrs.frozen(kw_only=True)
class PartFailed(Event):
    """A part of the agent fell over and is started again; `seconds` until then."""

    name: ClassVar[str] = "part.failed"
    severity: ClassVar[Severity] = Severity.ERROR
    part: str
    reason: str
    seconds: float


# --- the line ---------------------------------------------------------------------------------------------------------


@attrs.frozen
class Line:
    """A way to a provider: the interface that its route leaves by, our address on it, the next hop if there is one."""

    interface: str
    source: str
    gateway: str | None = None


@attrs.frozen(kw_only=True)
class LinkUp(Event):
    """There is a way to `provider` where there was none. `cause`: what made us look."""

    name: ClassVar[str] = "link.up"
    provider: str
    interface: str
    source: str
    gateway: str | None
    cause: str


@attrs.frozen(kw_only=True)
class LinkChanged(Event):
    """The way to `provider` leads over another interface or from another address now."""

    name: ClassVar[str] = "link.changed"
    provider: str
    interface: str
    source: str
    gateway: str | None
    cause: str


@attrs.frozen(kw_only=True)
class LinkDown(Event):
    """There is no way to `provider` any more."""

    name: ClassVar[str] = "link.down"
    provider: str
    interface: str
    cause: str


@attrs.frozen(kw_only=True)
class LineUsed(Event):
    """A line was up for so long, and carried so much, since the last time this was said of it."""

    name: ClassVar[str] = "line.used"
    severity: ClassVar[Severity] = Severity.DEBUG
    interface: str
    seconds: float
    wire_bytes: int


# --- asking -----------------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class RoundStarted(Event):
    """From the decision to ask until all has arrived, or has not."""

    name: ClassVar[str] = "round.started"
    round: str
    provider: str
    cause: str
    method: str
    nodes: tuple[str, ...]
    interface: str
    requests: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class MethodChosen(Event):
    """``method = "auto"`` came to another choice than the last time, or to its first one."""

    name: ClassVar[str] = "method.chosen"
    round: str
    provider: str
    method: str
    port: int
    reason: str


@attrs.frozen(kw_only=True)
class BeforeAsk(Event):
    """A provider is about to be asked; told to a hook alone, which is waited for. `attempt` counts from 1.

    The command may bring a dynamic name up to date. Exit code 75 delays the ask by a minute, ten times at most.
    """

    name: ClassVar[str] = "before.ask"
    severity: ClassVar[Severity] = Severity.DEBUG
    provider: str
    interface: str
    source: str
    attempt: int


@attrs.frozen(kw_only=True)
class AskAnswered(Event):
    """The provider's answer for one node. `promised` is its count of messages, where it told one."""

    name: ClassVar[str] = "ask.answered"
    round: str
    provider: str
    node: str
    outcome: NodeOutcome
    code: int | None
    text: str
    promised: int | None
    seconds: float


@attrs.frozen(kw_only=True)
class AskFailed(Event):
    """The conversation with the provider did not get through. `stage`: connect, greeting, ehlo, starttls, auth, ask."""

    name: ClassVar[str] = "ask.failed"
    severity: ClassVar[Severity] = Severity.WARNING
    round: str
    provider: str
    stage: str
    code: int | None
    reason: str
    temporary: bool
    fix: str | None = None


@attrs.frozen(kw_only=True)
class RoundEnded(Event):
    """A round is over; the figures are those of its sessions. `next_seconds` until the next ask, if one is planned.

    `wire_bytes` are those of sessions and asks, both ways; `ask_bytes` is the part of the asks.
    """

    name: ClassVar[str] = "round.ended"
    round: str
    provider: str
    outcome: Outcome
    sessions: int
    messages: int
    files: int
    duplicates: int
    refused: int
    bytes: int
    wire_bytes: int
    seconds: float
    link_interface: str
    reason: str = ""
    next_seconds: float | None = None
    ask_bytes: int = 0


# --- receiving --------------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class SessionOpened(Event):
    """An allowed peer is being greeted."""

    name: ClassVar[str] = "session.opened"
    in_crowds: ClassVar[bool] = True
    session: str
    provider: str | None
    round: str | None
    peer: str


@attrs.frozen(kw_only=True)
class SessionRefused(Event):
    """A peer was turned away before any command. `expected`: a provider's connection was awaited at that moment."""

    name: ClassVar[str] = "session.refused"
    peer: str
    code: int
    reason: str
    expected: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class MessageAccepted(Event):
    """Durable in our spool, and therefore answered 250. `seconds` from MAIL to the commit."""

    name: ClassVar[str] = "message.accepted"
    in_crowds: ClassVar[bool] = True
    message: str
    session: str
    provider: str | None
    round: str | None
    sender: str
    recipients: tuple[str, ...]
    bytes: int
    wire_bytes: int
    seconds: float


@attrs.frozen(kw_only=True)
class MessageStored(Event):
    """One file of a message stands in a mailbox, whole and synced."""

    name: ClassVar[str] = "message.stored"
    in_crowds: ClassVar[bool] = True
    message: str
    mailbox: str
    file: str
    bytes: int
    round: str | None = None
    provider: str | None = None


@attrs.frozen(kw_only=True)
class MessageDuplicate(Event):
    """Came again for these recipients, who have it from an earlier session: answered 250, filed no second time."""

    name: ClassVar[str] = "message.duplicate"
    message: str
    session: str
    provider: str | None
    round: str | None
    sender: str
    recipients: tuple[str, ...]
    first: str


@attrs.frozen(kw_only=True)
class MessageRefused(Event):
    """A sender, recipient or message was answered 4yz or 5yz. `recipient` is empty where the whole message was."""

    name: ClassVar[str] = "message.refused"
    severity: ClassVar[Severity] = Severity.WARNING
    session: str
    provider: str | None
    round: str | None
    sender: str
    recipient: str
    code: int
    reason: str
    bytes: int


@attrs.frozen(kw_only=True)
class FilingFailed(Event):
    """An accepted message could not be put into its mailbox; it stays in the spool and is tried again."""

    name: ClassVar[str] = "filing.failed"
    severity: ClassVar[Severity] = Severity.ERROR
    message: str
    mailbox: str
    reason: str
    tries: int
    next_seconds: float


@attrs.frozen(kw_only=True)
class SessionClosed(Event):
    """A session is over.

    `clean`: the peer said QUIT, or hung up between messages; it heard every 250 as far as the kernel can tell; and no
    answer of ours was 4yz.
    """

    name: ClassVar[str] = "session.closed"
    in_crowds: ClassVar[bool] = True
    session: str
    provider: str | None
    round: str | None
    peer: str
    messages: int
    bytes: int
    wire_bytes: int
    seconds: float
    clean: bool
    reason: str


# --- the hub ----------------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class HubReady(Event):
    """The hub's listeners take connections; `messages` are held from before."""

    name: ClassVar[str] = "hub.ready"
    hostname: str
    listening: tuple[str, ...]
    nodes: int
    messages: int
    bytes: int
    seconds: float


@attrs.frozen(kw_only=True)
class NodeAsked(Event):
    """A site asked the hub for its mail; `code` is what it was told. `account` is empty without a login."""

    name: ClassVar[str] = "node.asked"
    method: str
    argument: str
    account: str
    peer: str
    code: int
    nodes: tuple[str, ...]
    messages: int


@attrs.frozen(kw_only=True)
class LoginFailed(Event):
    """Somebody could not prove who they are. `blocked`: from here on that address is turned away for a while."""

    name: ClassVar[str] = "login.failed"
    severity: ClassVar[Severity] = Severity.WARNING
    peer: str
    mechanism: str
    reason: str
    blocked: bool


@attrs.frozen(kw_only=True)
class MessageSent(Event):
    """The site answered 250 for these recipients: held no longer."""

    name: ClassVar[str] = "message.sent"
    message: str
    node: str
    recipients: tuple[str, ...]
    bytes: int
    reply: str


@attrs.frozen(kw_only=True)
class MessageHeld(Event):
    """The site did not take a message for these recipients; it stays held, and is sent with the next ask."""

    name: ClassVar[str] = "message.held"
    severity: ClassVar[Severity] = Severity.WARNING
    message: str
    node: str
    recipients: tuple[str, ...]
    code: int | None
    reason: str
    tries: int


@attrs.frozen(kw_only=True)
class MessageReturned(Event):
    """A message is given up for these recipients. `notice`: a non-delivery notice left for its sender."""

    name: ClassVar[str] = "message.returned"
    severity: ClassVar[Severity] = Severity.WARNING
    message: str
    node: str
    sender: str
    recipients: tuple[str, ...]
    reason: str
    notice: bool


@attrs.frozen(kw_only=True)
class PushEnded(Event):
    """One release of a node's mail is over. `left` messages are held still; `reason` says why, where one is known."""

    name: ClassVar[str] = "push.ended"
    node: str
    method: str
    connections: int
    messages: int
    bytes: int
    left: int
    seconds: float
    reason: str = ""


@attrs.frozen(kw_only=True)
class SpoolDamaged(Event):
    """Something in the spool cannot be read; it is set aside, and the rest goes on."""

    name: ClassVar[str] = "spool.damaged"
    severity: ClassVar[Severity] = Severity.ERROR
    what: str
    reason: str


# --- telling somebody -------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class WarningRaised(Event):
    """Something stands that a person should know. `warning` names the kind, `subject` what it is about."""

    name: ClassVar[str] = "warning.raised"
    severity: ClassVar[Severity] = Severity.WARNING
    warning: str
    subject: str
    text: str
    fix: str


@attrs.frozen(kw_only=True)
class WarningCleared(Event):
    """A warning no longer stands."""

    name: ClassVar[str] = "warning.cleared"
    warning: str
    subject: str


@attrs.frozen(kw_only=True)
class HookFailed(Event):
    """An operator's command could not be run, ended with an error, or took too long."""

    name: ClassVar[str] = "hook.failed"
    severity: ClassVar[Severity] = Severity.ERROR
    hook: str
    command: str
    reason: str


def by_name() -> Mapping[str, type[Event]]:
    """Every event class by the name that people meet, in the order of this module."""
    return {cls.name: cls for cls in Event.__subclasses__()}


_DOC_BREAK = re.compile(r"\s+")


def summary(cls: type[Event]) -> str:
    """The first paragraph of the class's docstring, on one line: what ``docs/events.md`` and ``--help`` print."""
    return _DOC_BREAK.sub(" ", (cls.__doc__ or "").split("\n\n")[0]).strip()
