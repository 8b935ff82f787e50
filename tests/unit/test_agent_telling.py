"""`agent.telling`: everybody hears of every event, and status.json follows."""

from __future__ import annotations

import ast
import asyncio
import inspect
import io
import json
import textwrap
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from siteagent import events
from siteagent.agent import telling
from siteagent.agent.alarms import Alarms
from siteagent.agent.heartbeat import Beats
from siteagent.agent.meter import Meter
from siteagent.agent.shutter import Shutter
from siteagent.agent.telling import Teller
from siteagent.events import (
    AgentReady,
    ConfigRejected,
    ConfigReloaded,
    Event,
    FilingFailed,
    LinkUp,
    MessageAccepted,
    MessageRefused,
    MessageStored,
    Outcome,
    RoundEnded,
    SessionOpened,
    SessionRefused,
    Stamped,
)
from siteagent.inbound import says
from siteagent.logs import LogWriter
from siteagent.silence import Explainer
from siteagent.status import ListenerView, QueueView
from siteagent.status.warnings import TELLINGS
from siteagent.store.snapshot import FILE as STATUS_FILE
from siteagent.wire.reply import Reply

AT = datetime(2026, 11, 22, 8, tzinfo=UTC)
RELOADED = ConfigReloaded(path="x")


class Bench:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.log = io.StringIO()
        self.recorded: list[str] = []
        self.heard: list[str] = []
        self.teller = Teller(directory, log=LogWriter(self.log), record=self._record, wall=lambda: AT)
        self.teller.document = lambda: {"heard": list(self.heard)}
        self.teller.observers.append(lambda event: self.heard.append(event.name))

    def _record(self, stamped: Stamped) -> None:
        self.recorded.append(stamped.event.name)

    def emit(self, *events: Event) -> list[str]:
        """The warnings that `events` led to: ``raised isp``."""
        before = len(self.heard)
        told: list[str] = []

        def note(event: Event) -> None:
            if event.name in ("warning.raised", "warning.cleared"):
                told.append(f"{event.name[8:]} {getattr(event, 'warning', '')} {getattr(event, 'subject', '')}")

        self.teller.observers.append(note)
        for event in events:
            self.teller.emit(event)
        self.teller.observers.remove(note)
        assert len(self.heard) > before
        return told

    @property
    def status(self) -> Path:
        return self.directory / STATUS_FILE

    def shown(self) -> int:
        return len(json.loads(self.status.read_bytes())["heard"])


def on(directory: Path, scene: Callable[[Bench], Awaitable[None]]) -> None:
    async def work() -> None:
        bench = Bench(directory)
        try:
            await scene(bench)
        finally:
            bench.teller.close()

    asyncio.run(work())


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def ended(outcome: Outcome, provider: str = "isp") -> RoundEnded:
    return RoundEnded(
        round="r", provider=provider, outcome=outcome, sessions=0, messages=0, files=0, duplicates=0, refused=0,
        bytes=0, wire_bytes=0, seconds=1.0, link_interface="ppp0", reason="",
    )  # fmt: skip


def refused(peer: str = "198.51.100.9", *expected: str) -> SessionRefused:
    return SessionRefused(peer=peer, code=421, reason="not in the list", expected=expected)


def opened(peer: str, provider: str | None = "isp") -> SessionOpened:
    return SessionOpened(session="s", provider=provider, round=None, peer=peer)


# --- telling ----------------------------------------------------------------------------------------------------------


def test_log_journal_and_observers_hear_of_an_event(bench: Bench) -> None:
    bench.teller.emit(RELOADED)
    assert "config.reloaded" in bench.log.getvalue()
    assert bench.recorded == bench.heard == ["config.reloaded"]


def test_what_an_observer_emits_comes_behind_for_everybody(bench: Bench) -> None:
    late: list[str] = []
    bench.teller.observers.insert(0, lambda event: bench.teller.emit(RELOADED) if isinstance(event, LinkUp) else None)
    bench.teller.observers.append(lambda event: late.append(event.name))
    bench.teller.emit(LinkUp(provider="isp", interface="ppp0", source="s", gateway=None, cause="poll"))
    assert late == bench.recorded == ["link.up", "config.reloaded"]


@pytest.mark.parametrize("where", ["observer", "hooks"])
def test_one_that_fails_costs_neither_the_others_nor_whoever_emitted(bench: Bench, where: str) -> None:
    def fails(what: object) -> None:
        raise BrokenPipeError("nobody reads")

    if where == "hooks":
        bench.teller.hooks = fails
    else:
        bench.teller.observers.insert(0, fails)
    bench.teller.emit(RELOADED)
    assert bench.heard == ["config.reloaded"]
    assert "BrokenPipeError: nobody reads" in bench.log.getvalue()


# --- warnings ---------------------------------------------------------------------------------------------------------


def test_s1_a_refused_provider_is_warned_of_with_the_line_to_add(bench: Bench) -> None:
    assert bench.emit(refused("198.51.100.9", "isp")) == ["raised peer-refused isp"]
    assert 'add \\"198.51.100.9\\" to peers of provider isp' in bench.log.getvalue()


def test_a_stranger_whom_nobody_awaits_is_no_warning(bench: Bench) -> None:
    assert bench.emit(refused("198.51.100.9")) == []


def test_a_refused_provider_that_knocks_again_is_one_warning(bench: Bench) -> None:
    assert len(bench.emit(*[refused("198.51.100.9", "isp")] * 5)) == 1


def test_a_crowd_of_strangers_is_three_tellings_and_a_bounded_memory(bench: Bench) -> None:
    crowd = [refused(f"2001:db8::{number:x}", "isp") for number in range(1500)]
    assert bench.emit(*crowd) == ["raised peer-refused isp"] * TELLINGS
    assert len(bench.teller._refused["isp"]) == 1000


def test_a_drained_round_clears_it_and_no_other_outcome_does(bench: Bench) -> None:
    bench.emit(refused("198.51.100.9", "isp"))
    for outcome in set(Outcome) - {Outcome.DRAINED, Outcome.REFUSED}:
        assert bench.emit(ended(outcome)) == []
    assert bench.emit(ended(Outcome.DRAINED)) == ["cleared peer-refused isp"]


def test_another_providers_drained_round_clears_nothing(bench: Bench) -> None:
    bench.emit(refused("198.51.100.9", "isp"))
    assert bench.emit(ended(Outcome.DRAINED, "other")) == []


def test_the_refused_address_in_the_list_now_clears_it_at_its_first_session(bench: Bench) -> None:
    bench.emit(refused("198.51.100.9", "isp"))
    assert bench.emit(opened("203.0.113.1")) == [], "its old address says nothing"
    assert bench.emit(opened("198.51.100.9", None)) == []
    assert bench.emit(opened("198.51.100.9")) == ["cleared peer-refused isp"]


def test_a_refusal_stands_until_the_provider_agrees(bench: Bench) -> None:
    assert bench.emit(ended(Outcome.REFUSED)) == ["raised refused isp"]
    assert bench.emit(ended(Outcome.FAILED)) == []
    assert bench.emit(ended(Outcome.NOTHING)) == ["cleared refused isp"]


def test_s31_a_spool_that_cannot_keep_mail_is_warned_of_until_it_keeps_some(bench: Bench) -> None:
    def turned_away(reply: Reply) -> MessageRefused:
        return MessageRefused(
            session="s", provider="isp", round=None, sender="a@b.example", recipient="", code=reply.code,
            reason=reply.text, bytes=1,
        )  # fmt: skip

    assert bench.emit(turned_away(says.NO_ROOM), turned_away(says.TOO_BIG)) == []
    assert bench.emit(turned_away(says.NOT_KEPT), turned_away(says.NOT_KEPT)) == ["raised cannot-keep spool"]
    accepted = MessageAccepted(
        message="m", session="s", provider="isp", round=None, sender="a@b.example", recipients=("alice@x.example",),
        bytes=1, wire_bytes=1, seconds=0.1,
    )  # fmt: skip
    assert bench.emit(accepted) == ["cleared cannot-keep spool"]


def test_a_configuration_that_is_not_in_force_is_warned_of_until_one_is(bench: Bench) -> None:
    rejected = ConfigRejected(path="x", problems=("line 3: unknown key", "line 9: no port"))
    assert bench.emit(rejected, rejected) == ["raised configuration x"]
    assert "not in force (2 problems): line 3: unknown key" in bench.log.getvalue()
    assert bench.emit(RELOADED) == ["cleared configuration x"]
    bench.emit(rejected)
    started = AgentReady(hostname="h", listening=(), providers=(), seconds=0.1)
    assert bench.emit(started) == ["cleared configuration x"], "a start reads it anew"


def test_mail_that_cannot_be_filed_is_warned_of_until_all_of_it_is_filed(bench: Bench) -> None:
    def failed(message: str) -> FilingFailed:
        return FilingFailed(message=message, mailbox="alice", reason="disk full", tries=1, next_seconds=5)

    def stored(message: str) -> MessageStored:
        return MessageStored(message=message, mailbox="alice", file="f", bytes=1, round=None, provider=None)

    assert bench.emit(failed("m1"), failed("m2")) == ["raised cannot-file alice"]
    assert bench.emit(stored("m1"), stored("m9")) == []
    assert bench.emit(stored("m2")) == ["cleared cannot-file alice"]


def test_warnings_about_a_provider_that_is_gone_are_cleared_and_about_mailboxes_not(bench: Bench) -> None:
    failed = FilingFailed(message="m", mailbox="alice", reason="disk full", tries=1, next_seconds=5)
    bench.emit(refused("198.51.100.9", "gone"), ended(Outcome.REFUSED, "isp"), failed)
    bench.teller.only_about({"isp"})
    assert [bench.teller.warnings.standing(kind) for kind in ("peer-refused", "refused", "cannot-file")] == [
        (), ("isp",), ("alice",),
    ]  # fmt: skip
    assert bench.heard[-1] == "warning.cleared"


# --- status.json ------------------------------------------------------------------------------------------------------


def test_the_metrics_are_written_with_the_snapshot_and_their_trouble_costs_it_nothing(tmp_path: Path) -> None:
    async def scene(bench: Bench) -> None:
        bench.teller.document = lambda: bench.teller.fold.document(
            state="running", pid=1, since=AT, listener=ListenerView(), sessions=(), queue=QueueView(), providers=()
        )
        bench.teller.metrics = tmp_path / "figures" / "siteagent.prom"
        assert await bench.teller.write() and await bench.teller.write()
        assert bench.log.getvalue().count("cannot write") == 1, "said once"
        bench.teller.metrics.parent.mkdir()
        assert await bench.teller.write()
        assert "siteagent_running 1\n" in bench.teller.metrics.read_text()
        assert bench.teller.metrics.stat().st_mode & 0o777 == 0o644

    on(tmp_path, scene)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


def test_a_state_that_changed_is_written_at_once_and_anything_else_in_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telling, "CALM_SECONDS", 0.3)

    async def scene(bench: Bench) -> None:
        task = asyncio.ensure_future(bench.teller.run())
        bench.teller.emit(RELOADED)
        await until(bench.status.exists)
        bench.teller.emit(opened("p"))
        await asyncio.sleep(0.05)
        assert bench.shown() == 1, "calm"
        bench.teller.emit(RELOADED)
        await asyncio.sleep(0.05)
        assert bench.shown() == 3, "urgent, with what waited"
        task.cancel()

    on(tmp_path, scene)


def test_a_disk_that_refuses_is_told_once_and_the_snapshot_comes_when_it_takes_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telling, "CALM_SECONDS", 0.01)
    monkeypatch.setattr(telling, "RETRY_SECONDS", 0.02)
    gone = tmp_path / "state"

    async def scene(bench: Bench) -> None:
        task = asyncio.ensure_future(bench.teller.run())
        bench.teller.emit(RELOADED)
        await asyncio.sleep(0.15)
        assert bench.log.getvalue().count("cannot write") == 1
        gone.mkdir()
        await until((gone / STATUS_FILE).exists)  # though nothing happened since
        task.cancel()

    on(gone, scene)


def test_the_last_word_is_the_one_that_stands(tmp_path: Path) -> None:
    async def scene(bench: Bench) -> None:
        task = asyncio.ensure_future(bench.teller.run())
        for _ in range(50):
            bench.teller.emit(RELOADED)
            await asyncio.sleep(0)
        task.cancel()
        await bench.teller.write()
        assert bench.shown() == 50

    on(tmp_path, scene)


def test_what_happens_while_a_snapshot_is_written_is_in_the_next_one(tmp_path: Path) -> None:
    async def scene(bench: Bench) -> None:
        writing = asyncio.ensure_future(bench.teller.write())
        await asyncio.sleep(0)
        bench.teller.emit(RELOADED)
        assert await writing and bench.shown() == 0
        task = asyncio.ensure_future(bench.teller.run())
        await until(bench.shown)
        task.cancel()

    on(tmp_path, scene)


def test_a_warning_from_before_the_restart_is_not_said_again_and_can_be_cleared(tmp_path: Path) -> None:
    first, second = Bench(tmp_path), Bench(tmp_path)
    past: list[Stamped] = []
    first.teller.observers.append(lambda event: past.append(Stamped(AT + timedelta(0), event)))
    first.emit(refused("198.51.100.9", "isp"))
    second.teller.warnings.restore(past)
    assert second.emit(refused("198.51.100.9", "isp")) == []
    assert second.emit(ended(Outcome.DRAINED)) == ["cleared peer-refused isp"]


# --- who hears what ---------------------------------------------------------------------------------------------------


MARKED = (Alarms.observe, Beats.observe, Meter.observe, Shutter.observe, Explainer.observe)


@pytest.mark.parametrize("function", MARKED, ids=lambda function: function.__qualname__)
def test_what_an_observer_looks_for_is_what_it_is_marked_with(function: Any) -> None:
    _, _, body = inspect.getsource(function).partition("def ")
    names = {node.id for node in ast.walk(ast.parse(textwrap.dedent("    def " + body))) if isinstance(node, ast.Name)}
    kinds = {getattr(events, name, None) for name in names} - {Event}
    assert {kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Event)} == function.hears


def test_an_observer_that_is_marked_is_brought_nothing_else(bench: Bench) -> None:
    heard: list[str] = []

    @events.hears(LinkUp)
    def observer(event: Event) -> None:
        heard.append(event.name)

    bench.teller.observers.append(observer)
    bench.teller.emit(RELOADED)
    bench.teller.emit(LinkUp(provider="isp", interface="ppp0", source="s", gateway=None, cause="poll"))
    assert heard == ["link.up"]


# --- patience ---------------------------------------------------------------------------------------------------------

OPENED = SessionOpened(session="s1", provider="isp", round=None, peer="192.0.2.1")


def patient(bench: Bench, work: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        bench.teller.be_patient(asyncio.get_running_loop().call_later)
        await work()

    asyncio.run(run())


def test_events_of_mail_wait_a_moment_for_each_other(bench: Bench) -> None:
    async def work() -> None:
        bench.teller.emit(OPENED)
        bench.teller.emit(OPENED)
        assert bench.heard == bench.recorded == []
        async with asyncio.timeout(20):
            while not bench.heard:
                await asyncio.sleep(0.001)
        assert bench.heard == bench.recorded == ["session.opened"] * 2

    patient(bench, work)


def test_any_other_event_is_told_at_once_and_behind_what_waits(bench: Bench) -> None:
    async def work() -> None:
        bench.teller.emit(OPENED)
        bench.teller.emit(RELOADED)
        assert bench.heard == bench.recorded == ["session.opened", "config.reloaded"]

    patient(bench, work)


def test_what_waits_keeps_the_time_at_which_it_happened(tmp_path: Path) -> None:
    now, seen = [AT], list[datetime]()
    teller = Teller(
        tmp_path,
        log=LogWriter(io.StringIO()),
        record=lambda stamped: seen.append(stamped.at),
        wall=lambda: now[0],
    )

    async def work() -> None:
        teller.be_patient(asyncio.get_running_loop().call_later)
        teller.emit(OPENED)
        now[0] += timedelta(seconds=1)
        teller.tell()

    asyncio.run(work())
    assert seen == [AT]


def test_a_timer_rings_when_all_is_told_and_not_where_that_cancelled_it(bench: Bench) -> None:
    rung: list[str] = []

    async def work() -> None:
        first = bench.teller.timer(0, lambda: rung.append("first"))
        bench.teller.timer(0, lambda: rung.append(f"second behind {len(bench.heard)}"))
        bench.teller.observers.append(lambda event: first.cancel())
        bench.teller.emit(OPENED)
        async with asyncio.timeout(20):
            while not rung:
                await asyncio.sleep(0)

    patient(bench, work)
    assert rung == ["second behind 1"]


def test_the_snapshot_knows_what_waited(bench: Bench) -> None:
    async def work() -> None:
        bench.teller.emit(OPENED)
        await bench.teller.write()

    patient(bench, work)
    assert json.loads((bench.directory / STATUS_FILE).read_bytes())["heard"] == ["session.opened"]


def test_without_patience_nothing_waits_any_more(bench: Bench) -> None:
    async def work() -> None:
        bench.teller.emit(OPENED)
        bench.teller.be_patient(None)
        assert bench.heard == ["session.opened"], "what waited is told with it"
        bench.teller.emit(OPENED)
        assert bench.heard == ["session.opened"] * 2

    patient(bench, work)
