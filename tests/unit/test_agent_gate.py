"""`agent.gate`: the hook that may hang the line up runs when nobody needs it any more."""

from __future__ import annotations

from datetime import UTC, datetime

from siteagent.agent.gate import Gate
from siteagent.events import Event, LinkDown, Outcome, RoundEnded, SessionClosed, SessionOpened, Stamped

AT = datetime(2026, 11, 22, 8, tzinfo=UTC)


class Bench:
    def __init__(self) -> None:
        self.ran: list[str] = []
        self.busy: set[str] = set()
        self.gate = Gate(lambda stamped: self.ran.append(stamped.event.name), busy=lambda line: line in self.busy)

    def see(self, event: Event) -> None:
        self.gate.observe(Stamped(AT, event))
        self.gate.check(event)


def ended(line: str = "ppp0") -> RoundEnded:
    return RoundEnded(
        round="r", provider="isp", outcome=Outcome.DRAINED, sessions=0, messages=0, files=0, duplicates=0, refused=0,
        bytes=0, wire_bytes=0, seconds=1.0, link_interface=line,
    )  # fmt: skip


OPENED = SessionOpened(session="s", provider="isp", round="r", peer="p")
CLOSED = SessionClosed(
    session="s", provider="isp", round=None, peer="p", messages=0, bytes=0, wire_bytes=0, seconds=1.0, clean=True,
    reason="",
)  # fmt: skip


def test_with_nobody_at_work_it_runs_at_once() -> None:
    bench = Bench()
    bench.see(ended())
    assert bench.ran == ["round.ended"]


def test_it_waits_for_an_open_session() -> None:
    bench = Bench()
    bench.see(OPENED)
    bench.see(ended())
    assert bench.ran == ["session.opened"]
    bench.see(CLOSED)
    assert bench.ran == ["session.opened", "session.closed", "round.ended"]


def test_it_waits_for_another_provider_on_that_line_and_not_for_one_on_another() -> None:
    bench = Bench()
    bench.busy = {"ppp0"}
    bench.see(ended("ppp0"))
    bench.see(ended("eth0"))
    assert bench.ran == ["round.ended"]
    bench.busy = set()
    bench.see(ended("ppp0"))
    assert len(bench.ran) == 3


def test_a_line_that_is_gone_is_not_waited_for() -> None:
    bench = Bench()
    bench.busy = {"ppp0"}
    bench.see(ended())
    bench.see(LinkDown(provider="isp", interface="ppp0", cause="netlink"))
    assert bench.ran == ["link.down", "round.ended"]


def test_at_the_end_nothing_is_kept() -> None:
    bench = Bench()
    bench.busy = {"ppp0"}
    bench.see(ended())
    bench.gate.release()
    assert bench.ran == ["round.ended"]


def test_other_hooks_are_never_held_back() -> None:
    bench = Bench()
    bench.busy = {"ppp0"}
    bench.see(OPENED)
    assert bench.ran == ["session.opened"]
