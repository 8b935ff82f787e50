"""Each warning that is no single event: raised by its cause, once, and cleared when that is gone."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme
from siteagent.agent.alarms import Alarms
from siteagent.config.load import parse
from siteagent.config.sections import Configuration
from siteagent.events import (
    AskAnswered,
    AskFailed,
    Event,
    LinkDown,
    LinkUp,
    NodeOutcome,
    Outcome,
    RoundEnded,
    SessionClosed,
    Stamped,
    WarningCleared,
    WarningRaised,
)
from siteagent.status import Warnings

NOW = datetime(2026, 11, 22, 8, tzinfo=UTC)
HOUR = 3600.0


class Bench:
    """Alarms with everything around them in our hands."""

    def __init__(self, tmp_path: Path, listener: str = "") -> None:
        (tmp_path / "mail").mkdir(exist_ok=True)
        text = (
            f'state_directory = "{tmp_path}"\n[[provider]]\nname = "isp"\nhost = "mx.isp.example"\n'
            f'nodes = ["office.example"]\n[[mailbox]]\nname = "alice"\naddresses = ["alice@office.example"]\n'
            f'maildir = "{tmp_path}/mail"\n{listener}'
        )
        self.clock = 1_000_000.0
        self.now = NOW
        self.disk = (50, 100)
        self.deferred: list[dict[str, Any]] = []
        self.told: list[Event] = []
        self.warnings = Warnings()
        self.alarms = Alarms(
            configuration=parse(text, path="", kind=Configuration),
            warnings=self.warnings,
            emit=self.told.append,
            document=lambda: {"providers": [{"name": "isp", "last_round": {"deferred": self.deferred}}]},
            monotonic=lambda: self.clock,
            wall=lambda: self.now,
            usage=lambda path: self.disk,
        )

    def passes(self, seconds: float, *, step: float = 60.0) -> None:
        until = self.clock + seconds
        while self.clock < until:
            self.clock = min(until, self.clock + max(step, seconds / 50))
            self.look()

    def look(self) -> None:
        asyncio.run(self.alarms.look())

    def said(self) -> list[str]:
        """``+disk`` for what was raised, ``-disk`` for what was cleared."""
        out = []
        for event in self.told:
            if isinstance(event, WarningRaised):
                assert event.text and event.fix
                out.append(f"+{event.warning}")
            elif isinstance(event, WarningCleared):
                out.append(f"-{event.warning}")
        return out

    def up(self) -> None:
        self.alarms.observe(LinkUp(provider="isp", interface="ppp0", source="192.0.2.1", gateway=None, cause="netlink"))

    def down(self) -> None:
        self.alarms.observe(LinkDown(provider="isp", interface="ppp0", cause="netlink"))

    def round(self, outcome: Outcome) -> None:
        self.alarms.observe(ended(outcome))


def ended(outcome: Outcome) -> RoundEnded:
    figures: dict[str, Any] = dict.fromkeys(
        ("sessions", "messages", "files", "duplicates", "refused", "bytes", "wire_bytes"), 0
    )
    return RoundEnded(
        round="r", provider="isp", outcome=outcome, seconds=1.0, link_interface="ppp0", reason="no answer", **figures
    )


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


# --- no successful round ----------------------------------------------------------------------------------------------


def test_a_day_of_line_without_a_good_round_is_told_once_and_ends_with_one(bench: Bench) -> None:
    bench.up()
    bench.round(Outcome.FAILED)
    bench.passes(23 * HOUR)
    assert bench.said() == []
    bench.passes(3 * HOUR)
    assert bench.said() == ["+no-round"]
    raised = bench.told[0]
    assert isinstance(raised, WarningRaised)
    assert "24 hours" in raised.text and "no answer" in raised.text
    bench.round(Outcome.SILENT)
    bench.look()
    assert bench.said() == ["+no-round", "-no-round"]


def test_a_week_without_a_line_is_nobodys_fault(bench: Bench) -> None:
    bench.passes(7 * 24 * HOUR)
    assert bench.said() == []


def test_a_line_that_comes_for_some_minutes_a_day_counts(bench: Bench) -> None:
    for _ in range(4):
        bench.up()
        bench.round(Outcome.FAILED)
        bench.passes(300)
        bench.down()
        bench.passes(10 * HOUR)
    assert bench.said() == ["+no-round"]


def test_good_rounds_keep_it_away(bench: Bench) -> None:
    bench.up()
    for _ in range(10):
        bench.passes(12 * HOUR)
        bench.round(Outcome.NOTHING)
    assert bench.said() == []


def test_s62_a_wall_clock_that_jumps_raises_nothing(bench: Bench) -> None:
    bench.up()
    bench.now = NOW + timedelta(days=20 * 365)
    bench.look()
    bench.now = NOW - timedelta(days=20 * 365)
    bench.look()
    assert bench.said() == []


def test_a_restart_does_not_forget_since_when(bench: Bench) -> None:
    bench.alarms.restore([Stamped(NOW - timedelta(hours=23), ended(Outcome.DRAINED))])
    bench.up()
    bench.passes(2 * HOUR)
    assert bench.said() == ["+no-round"]


# --- TLS --------------------------------------------------------------------------------------------------------------


def _ask_failed() -> AskFailed:
    return AskFailed(round="r", provider="isp", stage="starttls", code=None, reason="not trusted", temporary=False)


def _closed(reason: str, *, clean: bool) -> SessionClosed:
    return SessionClosed(
        session="s",
        provider="isp",
        round=None,
        peer="192.0.2.9",
        messages=0,
        bytes=0,
        wire_bytes=0,
        seconds=1.0,
        clean=clean,
        reason=reason,
    )


def test_two_handshakes_that_fail_in_a_row_are_told_and_an_answer_clears_it(bench: Bench) -> None:
    bench.alarms.observe(_ask_failed())
    assert bench.said() == []
    bench.alarms.observe(_ask_failed())
    bench.alarms.observe(_ask_failed())
    assert bench.said() == ["+tls"]
    answer = {"round": "r", "provider": "isp", "node": "n", "outcome": NodeOutcome.STARTED}
    bench.alarms.observe(AskAnswered(**answer, code=250, text="", promised=None, seconds=0.1))  # type: ignore[arg-type]
    assert bench.said() == ["+tls", "-tls"]


def test_the_providers_own_connections_count_too(bench: Bench) -> None:
    for _ in range(2):
        bench.alarms.observe(_closed("TLS handshake: wrong version number", clean=False))
    assert bench.said() == ["+tls"]
    bench.alarms.observe(_closed("QUIT", clean=True))
    assert bench.said() == ["+tls", "-tls"]


# --- disk, certificate, held back -------------------------------------------------------------------------------------


def test_a_disk_under_a_tenth_is_told_once_however_its_figures_change(bench: Bench) -> None:
    for free in (50, 9, 8, 7, 10, 50):
        bench.disk = (free, 100)
        bench.look()
    assert bench.said() == ["+disk", "-disk"]


def test_one_disk_under_several_directories_is_one_warning(bench: Bench) -> None:
    bench.disk = (5, 100)
    bench.look()
    assert bench.warnings.standing("disk") == ("state",)


def test_a_certificate_with_three_weeks_left_is_told_and_a_new_one_clears_it(tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    bench = Bench(tmp_path, f'[listener]\ntls_certificate = "{certificate}"\ntls_key = "{key}"\n')

    def issue(days: int) -> None:
        issued = trustme.CA().issue_cert("mail.office.example", not_after=NOW + timedelta(days=days))
        certificate.write_bytes(issued.cert_chain_pems[0].bytes())

    for days, said in (
        (40, []),
        (20, ["+certificate"]),
        (-2, ["+certificate"]),
        (90, ["+certificate", "-certificate"]),
    ):
        issue(days)
        bench.look()
        assert bench.said() == said, days


def test_mail_that_waits_over_three_days_because_of_us_is_told(bench: Bench) -> None:
    old = NOW - timedelta(days=4)
    held = {"code": 452, "reason": "too big for this line", "bytes": 9_000_000, "since": old.isoformat()}
    bench.deferred = [{**held, "since": NOW.isoformat()}]
    bench.look()
    assert bench.said() == []
    bench.deferred = [held]
    bench.look()
    bench.deferred = []
    bench.look()
    assert bench.said() == ["+held-back", "-held-back"]
