"""What is known of one round while it is open, and the events that tell of it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime

from siteagent.events import AskAnswered, AskFailed, Line, NodeOutcome, Outcome, RoundEnded, RoundStarted
from siteagent.rounds.ledger import Figures
from siteagent.wire.etrn import AskFailure, NodeAnswer


@dataclass(frozen=True, slots=True)
class Request:
    """Somebody wants a round now. `nodes` None: all. `timeout_seconds` counts from the start of the round."""

    id: str
    nodes: tuple[str, ...] | None = None
    timeout_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class View:
    """For ``status.json``. `requests`: which requests each of the latest rounds answers, the newest round last."""

    name: str
    state: str
    next_ask: datetime | None
    round: str | None
    requests: Mapping[str, tuple[str, ...]]


@dataclass(slots=True)
class Round:
    """An open round. `started_at` is monotonic; `reasons` are for ``round.ended``."""

    id: str
    provider: str
    method: str
    cause: str
    line: Line | None
    nodes: tuple[str, ...]
    requests: list[Request]
    started_at: float
    reasons: list[str] = field(default_factory=list)
    answers: tuple[NodeAnswer, ...] = ()  # of the first ask
    asks: int = 0
    told_empty: bool = False  # the second ask was answered: no more

    @property
    def started_nodes(self) -> tuple[str, ...]:
        """Those that the provider agreed to send for: whom a second ask of the round is about."""
        return tuple(dict.fromkeys(a.node for a in self.answers if a.outcome is NodeOutcome.STARTED)) or self.nodes

    @property
    def interface(self) -> str:
        return self.line.interface if self.line else ""

    @property
    def request_ids(self) -> tuple[str, ...]:
        return tuple(request.id for request in self.requests)

    @property
    def seconds_allowed(self) -> float | None:
        """A round that exists for its requests alone ends when none of them waits any more. None: no such limit."""
        limits = [request.timeout_seconds for request in self.requests]
        known = [limit for limit in limits if limit is not None]
        return max(known) if self.cause == "request" and known and len(known) == len(limits) else None

    def started(self) -> RoundStarted:
        return RoundStarted(
            round=self.id,
            provider=self.provider,
            cause=self.cause,
            method=self.method,
            nodes=self.nodes,
            interface=self.interface,
            requests=self.request_ids,
        )

    def answered(self, answer: NodeAnswer) -> AskAnswered:
        return AskAnswered(
            round=self.id,
            provider=self.provider,
            node=answer.node,
            outcome=answer.outcome,
            code=answer.code,
            text=answer.text,
            promised=answer.promised,
            seconds=answer.seconds,
        )

    def failed(self, failure: AskFailure) -> AskFailed:
        return AskFailed(
            round=self.id,
            provider=self.provider,
            stage=failure.stage,
            code=failure.code,
            reason=failure.reason,
            temporary=failure.temporary,
            fix=failure.fix,
        )

    def ended(self, outcome: Outcome, figures: Figures, *, now: float, trouble: Sequence[str]) -> RoundEnded:
        """Trouble is told where it decided the outcome."""
        told = trouble if outcome is Outcome.INCOMPLETE else ()
        return RoundEnded(
            round=self.id,
            provider=self.provider,
            outcome=outcome,
            **asdict(figures),
            seconds=now - self.started_at,
            link_interface=self.interface,
            reason="; ".join(dict.fromkeys((*told, *self.reasons))),
        )
