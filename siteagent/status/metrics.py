"""The snapshot as figures for Prometheus: the text that the textfile collector of its node exporter reads.

Pure. Like the screen it looks at the document alone. Names are `siteagent_` and what they count, with the unit; what is
counted since ever ends with `_total` (prometheus.io/docs/practices/naming). Times are points in time: whoever watches
subtracts them from now, so that the file is right for as long as nothing happens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

Part = Mapping[str, Any]
Sample = tuple[Mapping[str, str], float]

# Name -> (type, help).
_FAMILIES = {
    "siteagent_running": ("gauge", "Whether the agent runs, as it saw itself last."),
    "siteagent_link_up": ("gauge", "Whether there is a line to a provider."),
    "siteagent_listener_open": ("gauge", "Whether the agent takes connections."),
    "siteagent_sessions_open": ("gauge", "Sessions in which mail may arrive now."),
    "siteagent_queue_messages": ("gauge", "Messages that were accepted and are not filed."),
    "siteagent_queue_oldest_timestamp_seconds": ("gauge", "When the oldest of those was accepted."),
    "siteagent_warning": ("gauge", "A warning that stands."),
    "siteagent_rounds_total": ("counter", "Rounds that ended."),
    "siteagent_messages_total": ("counter", "Messages that were accepted."),
    "siteagent_received_bytes_total": ("counter", "Their size."),
    "siteagent_provider_state": ("gauge", "1 for the state that a provider is in."),
    "siteagent_round_ended_timestamp_seconds": ("gauge", "When a provider's last round ended."),
    "siteagent_round_outcome": ("gauge", "1 for the outcome of a provider's last round."),
    "siteagent_round_messages": ("gauge", "Messages that a provider's last round brought."),
    "siteagent_round_wire_bytes": ("gauge", "What a provider's last round cost on the wire."),
    "siteagent_held_back_messages": ("gauge", "Messages that stay with a provider since we did not take them."),
}


def metrics(document: Part) -> str:
    """The whole file. A family without a sample is left out."""
    samples: dict[str, list[Sample]] = {}
    for name, labels, value in _samples(document):
        samples.setdefault(name, []).append((labels, value))
    rows = []
    for name, (kind, text) in _FAMILIES.items():
        if name in samples:
            rows += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
            rows += [f"{name}{_labels(labels)} {_number(value)}" for labels, value in samples[name]]
    return "\n".join(rows) + "\n"


def _samples(document: Part) -> Iterator[tuple[str, Mapping[str, str], float]]:
    yield "siteagent_running", {}, document["state"] in ("running", "stopping")
    yield "siteagent_link_up", {}, bool(document["link"]["up"])
    yield "siteagent_listener_open", {}, bool(document["listener"]["open"])
    yield "siteagent_sessions_open", {}, len(document["sessions_open"])
    queue = document["queue"]
    yield "siteagent_queue_messages", {}, queue["messages"]
    if queue["oldest"]:
        yield "siteagent_queue_oldest_timestamp_seconds", {}, _seconds(queue["oldest"])
    kinds = [warning["name"] for warning in document["warnings"]]
    for kind in dict.fromkeys(kinds):
        yield "siteagent_warning", {"name": kind}, kinds.count(kind)
    totals = document["totals"]
    yield "siteagent_rounds_total", {}, totals["rounds"]
    yield "siteagent_messages_total", {}, totals["messages"]
    yield "siteagent_received_bytes_total", {}, totals["bytes"]
    for provider in document["providers"]:
        yield from _provider(provider)


def _provider(provider: Part) -> Iterator[tuple[str, Mapping[str, str], float]]:
    name, last = {"provider": provider["name"]}, provider["last_round"]
    yield "siteagent_provider_state", {**name, "state": provider["state"]}, 1
    if last is None:
        return
    yield "siteagent_round_messages", name, last["messages"]
    yield "siteagent_round_wire_bytes", name, last["wire_bytes"]
    yield "siteagent_held_back_messages", name, len(last["deferred"])
    if last["ended"]:
        yield "siteagent_round_ended_timestamp_seconds", name, _seconds(last["ended"])
        yield "siteagent_round_outcome", {**name, "outcome": last["outcome"]}, 1


def _seconds(when: str) -> float:
    return datetime.fromisoformat(when).timestamp()


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)


def _labels(labels: Mapping[str, str]) -> str:
    """A value may hold what an operator wrote: backslash, quote and line end are escaped, as the format has it."""
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
