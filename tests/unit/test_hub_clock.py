"""Pushing by the clock: when it is whose turn, and that a hub does it unasked."""

from __future__ import annotations

import asyncio
from pathlib import Path

from siteagent.config.convert import changed
from siteagent.hub.clock import Clock
from tests.fakes import FakeSpool
from tests.hub import hub, node, site

MAIL = b"Subject: hi\r\n\r\nhello\r\n"
WAY = "192.0.2.1:25"


def test_its_turn_comes_once_in_an_interval_and_never_without_one() -> None:
    now = [1000.0]
    clock = Clock(lambda: now[0])
    nodes = [
        node("often.example", deliver_to=WAY, push_every_seconds=60),
        node("seldom.example", deliver_to=WAY, push_every_seconds=150),
        node("asked.example", deliver_to=WAY),
        node("fetches.example", push_every_seconds=60),
    ]
    turns = []
    for _ in range(6):
        turns.append([one.name.partition(".")[0] for one in clock.due(nodes)])
        now[0] += 30
    assert turns == [[], [], ["often"], [], ["often"], ["seldom"]]
    assert clock.pause() == 0  # 180 seconds: often's again


def test_a_shorter_interval_counts_at_once_and_a_node_that_went_has_no_turn() -> None:
    now = [0.0]
    clock = Clock(lambda: now[0])
    assert clock.due([node(deliver_to=WAY, push_every_seconds=3600)]) == []
    assert clock.due([node(deliver_to=WAY, push_every_seconds=10)]) == []
    assert clock.pause() == 10
    now[0] = 50
    assert clock.due([]) == []
    assert clock.pause() is None


def test_a_hub_pushes_unasked_what_waits_again_and_again(tmp_path: Path) -> None:
    spool = FakeSpool()

    async def run() -> None:
        async with (
            site(spool) as server,
            hub(tmp_path, [node(deliver_to=server.addresses[0], push_every_seconds=0.02)]) as running,
        ):
            for count in (1, 2):
                await running.fill([MAIL + b"%d\r\n" % count])
                await running.until(lambda: len(spool.stored) == count)  # noqa: B023

    asyncio.run(run())


def test_a_reload_that_sets_an_interval_starts_its_clock(tmp_path: Path) -> None:
    spool = FakeSpool()

    async def run() -> None:
        async with site(spool) as server:
            asked = node(deliver_to=server.addresses[0])
            async with hub(tmp_path, [asked]) as running:
                await running.fill([MAIL])
                timed = changed(running.hub.configuration, node=(changed(asked, push_every_seconds=0.02),))
                await running.hub.apply(timed)
                await running.until(lambda: spool.stored)

    asyncio.run(run())
