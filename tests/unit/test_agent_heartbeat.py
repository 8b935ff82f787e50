"""The daily message to ourselves: sent when due, taken away when it comes, told of when it does not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from siteagent.agent.heartbeat import Beats
from siteagent.config.load import parse
from siteagent.config.sections import Configuration, Provider
from siteagent.errors import TemporaryError
from siteagent.events import Event, MessageStored, WarningCleared, WarningRaised
from siteagent.status import Warnings

NOW = datetime(2026, 11, 22, 8, tzinfo=UTC)


class Bench:
    def __init__(self, place: Path, *, heartbeat: str = "daily") -> None:
        (place / "alice/new").mkdir(parents=True, exist_ok=True)
        self.place = place
        text = (
            f'[[provider]]\nname = "isp"\nhost = "192.0.2.1"\nnodes = ["office.example"]\nheartbeat = "{heartbeat}"\n'
            f'[[mailbox]]\nname = "alice"\naddresses = ["@all.example", "alice@office.example"]\n'
            f'maildir = "{place}/alice"\n'
        )
        self.now, self.up = NOW, True
        self.sent: list[tuple[str, str]] = []
        self.asked: list[str] = []
        self.told: list[Event] = []
        self.refusal: Exception | None = None
        self.waiting: list[Awaitable[None]] = []
        self.beats = Beats(
            configuration=parse(text, path="", kind=Configuration),
            warnings=Warnings(),
            emit=self.told.append,
            send=self._send,
            ask=self.asked.append,
            line_up=lambda name: self.up,
            wall=lambda: self.now,
            background=self.waiting.append,
            file=place / "heartbeat.json",
        )

    async def _send(self, provider: Provider, address: str, mark: str) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.sent.append((address, mark))

    def look(self, *, later: timedelta = timedelta(0)) -> None:
        self.now += later
        asyncio.run(self.beats.look())

    def arrives(self, content: str) -> Path:
        path = self.place / "alice/new/1795.M1P2Q3R4.mail,S=1,W=1"
        path.write_text(content)
        self.beats.observe(MessageStored(message="m", mailbox="alice", file=path.name, bytes=1))

        async def judged() -> None:
            while self.waiting:
                await self.waiting.pop()

        asyncio.run(judged())
        return path

    def said(self) -> list[str]:
        return [type(event).__name__ for event in self.told]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_one_a_day_goes_out_and_the_provider_is_asked(bench: Bench) -> None:
    for _ in range(48):
        bench.look(later=timedelta(hours=1))
    assert [address for address, _ in bench.sent] == ["alice@office.example"] * 2
    assert bench.asked == ["isp", "isp"]


def test_none_without_a_line_and_none_where_nobody_wants_them(bench: Bench, tmp_path: Path) -> None:
    bench.up = False
    bench.look()
    other = Bench(tmp_path, heartbeat="off")
    other.look()
    assert bench.sent == other.sent == []


def test_a_restart_sends_none_before_its_time(bench: Bench, tmp_path: Path) -> None:
    bench.look()
    again = Bench(tmp_path)
    again.beats._last = again.beats._read()
    again.look(later=timedelta(hours=23))
    assert again.sent == []
    again.look(later=timedelta(hours=2))
    assert len(again.sent) == 1


def test_what_arrives_is_taken_away_and_other_mail_is_not(bench: Bench) -> None:
    bench.look()
    assert bench.arrives("Subject: an order\n\nhello").exists()
    assert not bench.arrives(f"X-Siteagent-Test: {bench.sent[0][1]}\n\n").exists()
    assert bench.said() == []


def test_one_that_is_lost_is_told_and_the_next_that_comes_clears_it(bench: Bench) -> None:
    bench.look()
    bench.look(later=timedelta(hours=7))
    assert [type(event) for event in bench.told] == [WarningRaised]
    bench.look(later=timedelta(hours=18))
    bench.arrives(f"X-Siteagent-Test: {bench.sent[1][1]}\n\n")
    assert [type(event) for event in bench.told] == [WarningRaised, WarningCleared]


def test_a_provider_that_does_not_take_it_is_told_with_its_words(bench: Bench) -> None:
    bench.refusal = TemporaryError("mx.isp.example takes no mail", 'it answered "550 no relaying"')
    bench.look()
    (raised,) = bench.told
    assert isinstance(raised, WarningRaised) and "550 no relaying" in raised.text


def test_s62_a_clock_that_went_back_twenty_years_stops_no_heartbeat(bench: Bench) -> None:
    bench.look()
    bench.look(later=timedelta(days=-20 * 365))
    assert len(bench.sent) == 2
