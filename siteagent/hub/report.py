"""What the hub shows of itself: the document behind ``hub status``, in its state directory as ``status.json``. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from siteagent.config.sections import Node
from siteagent.events import (
    ConfigRejected,
    ConfigReloaded,
    MessageAccepted,
    MessageReturned,
    MessageSent,
    PushEnded,
    SpoolDamaged,
    Stamped,
)
from siteagent.inbound.reception import SessionView
from siteagent.logs import timestamp
from siteagent.status import not_in_force

VERSION = 1
_ANSWERS_KEPT = 20
_DAMAGES_KEPT = 20

Document = dict[str, Any]


@dataclass(slots=True)
class Fold:
    """What the events of this run come to."""

    totals: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("accepted", "sent", "returned", "bytes"), 0))
    pushes: dict[str, Document] = field(default_factory=dict)
    damaged: list[Document] = field(default_factory=list)
    answers: dict[str, Document] = field(default_factory=dict)
    rejected: tuple[str, ...] = ()  # what is wrong with a changed configuration

    def fold(self, stamped: Stamped) -> None:
        match stamped.event:
            case MessageAccepted():
                self.totals["accepted"] += 1
            case MessageSent() as sent:
                self.totals["sent"] += 1
                self.totals["bytes"] += sent.bytes
            case MessageReturned():
                self.totals["returned"] += 1
            case PushEnded() as push:
                self.pushes[push.node] = {"ended": timestamp(stamped.at), **_without(push.values(), "node")}
            case ConfigRejected() as rejected:
                self.rejected = rejected.problems
            case ConfigReloaded():
                self.rejected = ()
            case SpoolDamaged() as damage:
                self.damaged = [*self.damaged, damage.values()][-_DAMAGES_KEPT:]

    def answer(self, request: str, text: str, *, done: bool) -> None:
        """What became of a request that somebody left."""
        self.answers[request] = {"answer": text, "done": done}
        for old in list(self.answers)[:-_ANSWERS_KEPT]:
            del self.answers[old]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """`oldest` in seconds since 1970; `expired`: held for longer than `retain_days`."""

    node: Node
    messages: int
    bytes: int
    oldest: int | None
    expired: int
    releasing: bool


def document(
    fold: Fold,
    *,
    state: str,
    pid: int,
    since: datetime,
    listening: Sequence[str],
    odmr: Sequence[str],
    sessions: Sequence[SessionView],
    nodes: Sequence[NodeView],
    relay: str | None,
) -> Document:
    """The whole document; see ``docs/hub.md`` for its fields."""
    return {
        "version": VERSION,
        "state": state,
        "pid": pid,
        "since": timestamp(since),
        "listener": {"addresses": list(listening), "odmr": list(odmr)},
        "sessions_open": [
            {"peer": view.peer, "bytes": view.bytes, "size": view.size, "since": timestamp(view.since)}
            for view in sessions
        ],
        "queue": {"messages": sum(view.messages for view in nodes), "bytes": sum(view.bytes for view in nodes)},
        "nodes": [_node(view, fold.pushes) for view in nodes],
        "warnings": warnings(nodes, fold, relay=relay),
        "requests": dict(fold.answers),
        "totals": dict(fold.totals),
    }


def warnings(nodes: Sequence[NodeView], fold: Fold, *, relay: str | None) -> list[Document]:
    """What a person should know, each with what to do."""
    found: list[Document] = []
    for view in nodes:
        if view.expired:
            why = "the relay of [notices] did not take the notices" if relay else "there is no relay in [notices]"
            found.append(
                {
                    "name": "expired",
                    "text": f"{view.expired} messages for {view.node.name} are held for more than "
                    f"{view.node.retain_days} days: {why}",
                    "fix": "set relay in [notices], or `siteagent hub drop` what nobody wants",
                }
            )
        if view.bytes >= view.node.max_queue_bytes:
            found.append(
                {
                    "name": "full",
                    "text": f"{view.node.name} holds {view.bytes} bytes: new mail for it is asked to come later",
                    "fix": "have the site fetch it, or raise max_queue_bytes",
                }
            )
    if fold.rejected:
        fix = "mend the file, with `siteagent check --hub`; or restart the hub, where that is what it says"
        found.append({"name": "configuration", "text": not_in_force(fold.rejected), "fix": fix})
    for damage in fold.damaged:
        found.append(
            {
                "name": "damaged",
                "text": f"{damage['what']} was set aside: {damage['reason']}",
                "fix": "look at the disk; the rest of the spool goes on",
            }
        )
    return found


def _node(view: NodeView, pushes: Mapping[str, Document]) -> Document:
    node = view.node
    return {
        "name": node.name,
        "domains": list(node.domains),
        "deliver_to": node.deliver_to,
        "messages": view.messages,
        "bytes": view.bytes,
        "oldest": None if view.oldest is None else timestamp(datetime.fromtimestamp(view.oldest, UTC)),
        "expired": view.expired,
        "releasing": view.releasing,
        "last_release": pushes.get(node.name),
    }


def _without(values: Mapping[str, Any], key: str) -> Document:
    return {name: value for name, value in values.items() if name != key}
