"""The figures for Prometheus, made from the snapshot."""

from __future__ import annotations

import re
from typing import Any

import pytest
from siteagent.status import ListenerView, ProviderView, QueueView, StatusFold, metrics
from tests.unit.test_status import AT, Open, answered, document, ended, folded, refused, started, up, warned

_LINE = re.compile(
    r"# (HELP|TYPE) siteagent_\w+ .+|"
    r'(siteagent_\w+)(\{\w+="(?:[^"\\\n]|\\["\\n])*"(?:,\w+="(?:[^"\\\n]|\\["\\n])*")*\})? -?\d+(\.\d+)?'
)


def figures(text: str) -> dict[str, float]:
    """Name and labels -> value; every line is one of the format."""
    assert text.endswith("\n")
    for row in text.splitlines():
        assert _LINE.fullmatch(row), row
    samples = [row.rpartition(" ") for row in text.splitlines() if not row.startswith("#")]
    assert len({name for name, _, _ in samples}) == len(samples), "a sample stands twice"
    return {name: float(value) for name, _, value in samples}


def test_a_site_at_work_has_every_figure() -> None:
    fold = folded(up(), started(), answered(), refused(), ended(), warned(), warned("more", subject="second"))
    found = figures(metrics(document(fold, sessions=[Open()], queue=QueueView(2, AT, "disk full"))))
    wanted = {
        "siteagent_running": 1,
        "siteagent_link_up": 1,
        "siteagent_listener_open": 1,
        "siteagent_sessions_open": 1,
        "siteagent_queue_messages": 2,
        "siteagent_queue_oldest_timestamp_seconds": AT.timestamp(),
        'siteagent_warning{name="peer-refused"}': 2,
        "siteagent_rounds_total": 1,
        'siteagent_provider_state{provider="isp",state="resting"}': 1,
        'siteagent_round_outcome{provider="isp",outcome="drained"}': 1,
        'siteagent_held_back_messages{provider="isp"}': 1,
    }
    assert {name: found.get(name) for name in wanted} == wanted
    assert found['siteagent_round_ended_timestamp_seconds{provider="isp"}'] >= AT.timestamp()


def test_before_anything_happened_there_is_no_figure_of_a_round() -> None:
    found = figures(metrics(document(folded())))
    assert found["siteagent_running"] == 1 and found["siteagent_link_up"] == 0
    assert not [name for name in found if "round_" in name or "warning" in name or "oldest" in name]


@pytest.mark.parametrize("state", ["starting", "stopped"])
def test_who_does_not_run_says_so(state: str) -> None:
    assert figures(metrics(stopped(state)))["siteagent_running"] == 0


@pytest.mark.parametrize("name", ['say "hi"', "back\\slash", "line\nend", "é", 'x"} 1\nsiteagent_running 1'])
def test_a_name_stays_inside_its_label(name: str) -> None:
    view = ProviderView(name, "resting")
    found = figures(metrics(document(folded(), providers=[view])))
    assert len([each for each in found if each.startswith("siteagent_provider_state{")]) == 1
    assert len([each for each in found if each == "siteagent_running"]) == 1


def stopped(state: str) -> dict[str, Any]:
    return StatusFold().document(
        state=state, pid=1, since=AT, listener=ListenerView(), sessions=(), queue=QueueView(), providers=()
    )
