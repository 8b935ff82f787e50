"""The listener is open while a round expects mail, and only then."""

import asyncio
from collections.abc import Awaitable, Callable

from siteagent.agent.shutter import Shutter
from siteagent.events import Outcome, RoundEnded, RoundStarted

STARTED = RoundStarted(round="r", provider="isp", cause="link", method="etrn", nodes=("a.b",), interface="ppp0")
ENDED = RoundEnded(
    round="r",
    provider="isp",
    outcome=Outcome.DRAINED,
    sessions=0,
    messages=0,
    files=0,
    duplicates=0,
    refused=0,
    bytes=0,
    wire_bytes=0,
    seconds=0.0,
    link_interface="ppp0",
)


class Door:
    def __init__(self) -> None:
        self.said: list[str] = []

    async def open(self) -> None:
        self.said.append("open")

    async def close(self, *, seconds: float) -> None:
        self.said.append("close")


class Stage:
    def __init__(self) -> None:
        self.door = Door()
        self.expecting = False
        self.changes = 0
        self.shutter = Shutter(self.door, expecting=lambda: self.expecting, changed=self._changed, grace_seconds=1.0)

    def _changed(self) -> None:
        self.changes += 1

    async def begin(self) -> None:
        self.expecting = True
        self.shutter.observe(STARTED)
        await settle()

    async def end(self) -> None:
        self.expecting = False
        self.shutter.observe(ENDED)
        await settle()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def play(scene: Callable[[Stage], Awaitable[None]]) -> Stage:
    async def scenario() -> Stage:
        stage = Stage()
        running = asyncio.create_task(stage.shutter.run())
        await settle()
        await scene(stage)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        return stage

    return asyncio.run(scenario())


def test_it_is_closed_until_a_round_begins() -> None:
    async def scene(stage: Stage) -> None:
        return None

    assert play(scene).door.said == []


def test_it_opens_with_a_round_and_closes_behind_it() -> None:
    async def scene(stage: Stage) -> None:
        await stage.begin()
        assert stage.door.said == ["open"]
        await stage.end()

    stage = play(scene)
    assert (stage.door.said, stage.changes) == (["open", "close"], 2)


def test_it_stays_open_while_another_round_expects_mail() -> None:
    async def scene(stage: Stage) -> None:
        await stage.begin()
        stage.shutter.observe(ENDED)
        await settle()

    assert play(scene).door.said == ["open"]


def test_a_round_that_begins_while_it_closes_opens_it_again() -> None:
    async def scene(stage: Stage) -> None:
        await stage.begin()
        await stage.end()
        await stage.begin()

    assert play(scene).door.said == ["open", "close", "open"]
