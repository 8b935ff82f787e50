"""`agent.meter`: what a line was used for, told in pieces that add up."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from siteagent.agent.meter import FLUSH_SECONDS, Meter
from siteagent.events import Event, LineUsed, LinkChanged, LinkDown, LinkUp, Outcome, RoundEnded, SessionClosed


class Bench:
    def __init__(self) -> None:
        self.now = 0.0
        self.told: list[LineUsed] = []
        self.meter = Meter(self.emit, monotonic=lambda: self.now, wall=self.wall)

    def wall(self) -> datetime:
        return datetime(2026, 11, 22, 23, 50, tzinfo=UTC) + timedelta(seconds=self.now)

    def emit(self, event: Event) -> None:
        assert isinstance(event, LineUsed)
        self.told.append(event)

    @property
    def sums(self) -> dict[str, tuple[float, int]]:
        lines = {event.interface for event in self.told}
        return {
            line: (
                sum(event.seconds for event in self.told if event.interface == line),
                sum(event.wire_bytes for event in self.told if event.interface == line),
            )
            for line in lines
        }

    def up(self, provider: str = "isp", line: str = "ppp0") -> None:
        self.meter.observe(LinkUp(provider=provider, interface=line, source="192.0.2.1", gateway=None, cause="c"))

    def down(self, provider: str = "isp", line: str = "ppp0") -> None:
        self.meter.observe(LinkDown(provider=provider, interface=line, cause="c"))


def session(octets: int, provider: str | None = "isp") -> SessionClosed:
    return SessionClosed(
        session="s", provider=provider, round=None, peer="p", messages=0, bytes=0, wire_bytes=octets, seconds=1.0,
        clean=True, reason="",
    )  # fmt: skip


def ended(line: str = "ppp0", *, asked: int = 0) -> RoundEnded:
    return RoundEnded(
        round="r", provider="isp", outcome=Outcome.DRAINED, sessions=0, messages=0, files=0, duplicates=0, refused=0,
        bytes=0, wire_bytes=asked, seconds=1.0, link_interface=line, ask_bytes=asked,
    )  # fmt: skip


def test_a_line_costs_what_it_was_up_and_carried() -> None:
    bench = Bench()
    bench.up()
    bench.now = 30
    bench.meter.observe(session(5000))
    bench.meter.observe(ended(asked=300))
    bench.now = 50
    bench.down()
    assert bench.sums == {"ppp0": (50, 5300)}


def test_a_line_to_two_providers_is_up_once() -> None:
    bench = Bench()
    bench.up("isp")
    bench.up("other")
    bench.now = 10
    bench.down("isp")
    bench.now = 20
    bench.down("other")
    assert bench.sums == {"ppp0": (20, 0)}


def test_a_way_that_moved_to_another_line_ends_the_first_ones_time() -> None:
    bench = Bench()
    bench.up()
    bench.now = 10
    bench.meter.observe(LinkChanged(provider="isp", interface="wwan0", source="192.0.2.2", gateway=None, cause="c"))
    bench.now = 15
    bench.meter.close()
    assert bench.sums == {"ppp0": (10, 0), "wwan0": (5, 0)}


def test_midnight_parts_the_days() -> None:
    bench = Bench()
    bench.up()
    for bench.now in (60, 120, 599, 601):
        bench.meter.tick()
    assert [event.seconds for event in bench.told] == [599.0, 2.0] or bench.sums["ppp0"][0] == 601


def test_a_long_time_is_told_in_pieces_so_that_a_crash_loses_little() -> None:
    bench = Bench()
    bench.up()
    bench.now = FLUSH_SECONDS - 1
    bench.meter.tick()
    assert bench.told == []
    bench.now = FLUSH_SECONDS
    bench.meter.tick()
    assert bench.sums == {"ppp0": (FLUSH_SECONDS, 0)}


def test_mail_of_nobody_counts_on_the_only_line() -> None:
    bench = Bench()
    bench.up()
    bench.meter.observe(session(70, provider=None))
    bench.down()
    assert bench.sums == {"ppp0": (0, 70)}


def test_nothing_used_is_not_told() -> None:
    bench = Bench()
    bench.up()
    bench.down()
    bench.meter.close()
    assert bench.told == []
