"""Hints, looks, and what is told of them; on a loop whose clock jumps over every wait."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from siteagent.config.sections import Link
from siteagent.events import Event, Line, LinkChanged, LinkDown, LinkUp, PartFailed
from siteagent.link.backend import POLL, WAKE, Poke, Unavailable
from siteagent.link.oracle import ANYWHERE
from siteagent.link.watch import LOOK_SECONDS, RESTART_SECONDS, Target, Watch

PPP = Line("ppp0", "198.51.100.7")
ETH = Line("eth0", "192.0.2.7", "192.0.2.1")
DOCKER = Line("docker0", "172.17.0.1")


class JumpingLoop(asyncio.SelectorEventLoop):
    """Waits take no time: its clock jumps to the next timer. Waiting for nothing at all is an error."""

    def __init__(self) -> None:
        self.now = 1000.0
        loop = self

        class Jump(selectors.DefaultSelector):
            def select(self, timeout: float | None = None) -> Any:
                found = super().select(0)
                if not found and timeout is None:
                    raise AssertionError("the loop waits for ever")
                if not found and timeout:
                    loop.now += timeout
                return found

        super().__init__(Jump())

    def time(self) -> float:
        return self.now


class Sky:
    """An oracle whose lines the test sets; `broken` makes it unable to tell."""

    def __init__(self, *lines: Line) -> None:
        self.now: tuple[Line, ...] = lines
        self.asked: list[tuple[str, ...]] = []
        self.broken = False

    def lines(self, addresses: Sequence[str]) -> tuple[Line, ...]:
        self.asked.append(tuple(addresses))
        if self.broken:
            raise OSError("netlink is in a bad mood")
        return self.now


class Scene:
    """A watch, its sky, and everything it told with the seconds since the start."""

    def __init__(self, sky: Sky, section: Link, targets: list[Target], sources: Sequence[Any]) -> None:
        self.sky = sky
        self.targets = targets
        self.loop = asyncio.get_running_loop()
        self.began = self.loop.time()
        self.told: list[tuple[float, Event]] = []
        self.nudges: list[tuple[float, str]] = []
        self.wakes: list[float] = []
        self.notes: list[str] = []
        self.asleep = False
        self.watch = Watch(
            section,
            targets=lambda: self.targets,
            emit=lambda event: self.told.append((self.at(), event)),
            hook_directory=Path("/nonexistent"),
            note=self.notes.append,
            oracle=sky,
            sources=sources,
            monotonic=self.loop.time,
            slept=self.slept,
        )
        self.watch.on_nudge = lambda cause: self.nudges.append((self.at(), cause))
        self.watch.on_wake = lambda: self.wakes.append(self.at())

    def at(self) -> float:
        return round(self.loop.time() - self.began, 3)

    def slept(self) -> bool:
        asleep, self.asleep = self.asleep, False
        return asleep

    def change(self, *lines: Line, cause: str = "netlink") -> None:
        self.sky.now = lines
        self.watch.poke(cause)

    @property
    def events(self) -> list[Event]:
        return [event for _, event in self.told]


def played(
    play: Callable[[Scene], Awaitable[None]],
    *lines: Line,
    section: Link | None = None,
    targets: Sequence[Target] = (Target("isp", ("203.0.113.9",)),),
    sources: Sequence[Any] = (),
) -> Scene:
    async def main() -> Scene:
        scene = Scene(Sky(*lines), section or Link(), list(targets), sources)
        task = asyncio.create_task(scene.watch.run())
        await asyncio.sleep(0)
        await play(scene)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()
        return scene

    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        return runner.run(main())


async def rest(scene: Scene) -> None:
    await asyncio.sleep(60)


def test_a_line_that_is_there_at_the_start_is_told_at_once() -> None:
    scene = played(rest, ETH)
    expected = LinkUp(provider="isp", interface="eth0", source="192.0.2.7", gateway="192.0.2.1", cause="start")
    assert scene.told == [(0.0, expected)]
    assert scene.watch.line("isp") == ETH


def test_a_line_that_comes_up_is_told_after_the_settle_time_with_its_cause() -> None:
    async def play(scene: Scene) -> None:
        await asyncio.sleep(5)
        scene.change(PPP)
        await asyncio.sleep(0.2)
        scene.watch.poke(POLL)
        await rest(scene)

    expected = LinkUp(provider="isp", interface="ppp0", source="198.51.100.7", gateway=None, cause="netlink")
    assert played(play).told == [(5.5, expected)]


def test_a_cable_pulled_is_told_with_the_interface_that_went() -> None:
    async def play(scene: Scene) -> None:
        await asyncio.sleep(5)
        scene.change()
        await rest(scene)

    scene = played(play, ETH)
    assert scene.told[1:] == [(5.5, LinkDown(provider="isp", interface="eth0", cause="netlink"))]
    assert scene.watch.line("isp") is None


def test_s49_another_address_on_the_same_line_is_a_change() -> None:
    async def play(scene: Scene) -> None:
        await asyncio.sleep(5)
        scene.change(Line("ppp0", "198.51.100.99"))
        await rest(scene)

    expected = LinkChanged(provider="isp", interface="ppp0", source="198.51.100.99", gateway=None, cause="netlink")
    assert played(play, PPP).told[1:] == [(5.5, expected)]


def test_a_flap_shorter_than_the_settle_time_is_not_told() -> None:
    async def play(scene: Scene) -> None:
        await asyncio.sleep(5)
        for _ in range(9):
            scene.change()
            await asyncio.sleep(0.1)
            scene.change(PPP)
            await asyncio.sleep(0.2)
        await rest(scene)

    assert len(played(play, PPP).told) == 1


def test_a_hint_that_finds_nothing_new_is_a_nudge_once() -> None:
    async def play(scene: Scene) -> None:
        await asyncio.sleep(5)
        scene.watch.poke("hook:ppp0", nudge=True)
        scene.watch.poke("hook:ppp0", nudge=True)
        await rest(scene)

    scene = played(play, PPP)
    assert scene.nudges == [(5.5, "hook:ppp0")]
    assert len(scene.told) == 1


def test_a_hint_that_came_with_a_change_is_no_nudge() -> None:
    async def play(scene: Scene) -> None:
        await asyncio.sleep(5)
        scene.watch.poke("hook:ppp0", nudge=True)
        await asyncio.sleep(0.3)
        scene.change(PPP)
        await rest(scene)

    scene = played(play)
    assert [at for at, _ in scene.told] == [5.8]
    assert scene.nudges == []


def test_a_hint_about_an_interface_that_no_way_leaves_by_is_no_nudge() -> None:
    async def play(scene: Scene) -> None:
        scene.watch.poke("hook:docker0", nudge=True)
        await rest(scene)

    assert played(play, PPP).nudges == []


def test_a_hint_while_there_is_no_line_is_no_nudge() -> None:
    async def play(scene: Scene) -> None:
        scene.watch.poke("hook:any", nudge=True)
        await rest(scene)

    assert played(play).nudges == []


def test_a_tick_is_no_nudge() -> None:
    async def play(scene: Scene) -> None:
        scene.watch.poke(POLL)
        scene.watch.poke("netlink")
        await rest(scene)

    assert played(play, PPP).nudges == []


def test_a_wake_up_is_told_behind_what_changed_meanwhile() -> None:
    async def play(scene: Scene) -> None:
        await asyncio.sleep(5)
        scene.asleep = True
        scene.change(ETH)
        await rest(scene)

    scene = played(play, PPP)
    assert [at for at, _ in scene.told] == [0.0, 5.5]
    assert scene.wakes == [5.5]


def test_a_late_tick_is_a_wake_up() -> None:
    async def play(scene: Scene) -> None:
        await asyncio.sleep(5)
        scene.watch.poke(WAKE)
        await rest(scene)

    assert played(play, PPP).wakes == [5.5]


def test_two_providers_are_told_of_each_by_its_own_way() -> None:
    targets = [Target("sat", ("203.0.113.9",), ("ppp*",)), Target("dsl", (), ("eth*",))]

    async def play(scene: Scene) -> None:
        await asyncio.sleep(5)
        scene.change(PPP)
        await rest(scene)

    scene = played(play, PPP, ETH, targets=targets)
    assert [(event.name, getattr(event, "provider", "")) for event in scene.events] == [
        ("link.up", "sat"),
        ("link.up", "dsl"),
        ("link.down", "dsl"),
    ]


def test_a_provider_without_known_addresses_is_judged_by_the_default_route() -> None:
    assert set(played(rest, PPP, targets=[Target("isp", ())]).sky.asked) == {ANYWHERE}


def test_an_ignored_interface_is_no_way_unless_it_is_named() -> None:
    assert played(rest, DOCKER).told == []
    assert len(played(rest, DOCKER, section=Link(interfaces=("docker0",))).told) == 1


def test_a_provider_that_the_reload_brought_is_told_of_and_one_that_it_took_is_forgotten() -> None:
    async def play(scene: Scene) -> None:
        await asyncio.sleep(5)
        scene.targets[:] = [Target("new", ())]
        scene.watch.poke("reload")
        await rest(scene)

    scene = played(play, PPP)
    assert [getattr(event, "provider", "") for event in scene.events] == ["isp", "new"]
    assert scene.watch.line("isp") is None


def test_a_watch_that_replaces_another_tells_only_what_differs() -> None:
    async def play(scene: Scene) -> None:
        await asyncio.sleep(5)
        told: list[Event] = []
        narrow = Link(interfaces=("ppp*",))
        watch = Watch(
            narrow,
            targets=lambda: [Target("isp", ()), Target("lan", (), ("eth*",))],
            emit=told.append,
            hook_directory=Path("/nonexistent"),
            note=scene.notes.append,
            oracle=scene.sky,
            sources=[],
            monotonic=scene.loop.time,
            slept=lambda: False,
        )
        watch.take_over(scene.watch)
        assert watch.line("isp") == ETH
        task = asyncio.create_task(watch.run())
        await asyncio.sleep(5)
        task.cancel()
        assert told == [LinkDown(provider="isp", interface="eth0", cause="start")]

    played(play, ETH, targets=[Target("isp", ()), Target("lan", (), ("eth*",))])


def test_an_oracle_that_cannot_tell_changes_nothing_and_is_said_once() -> None:
    async def play(scene: Scene) -> None:
        await asyncio.sleep(5)
        scene.sky.broken = True
        for _ in range(5):
            scene.change()
            await asyncio.sleep(5)
        assert scene.watch.line("isp") == PPP
        scene.sky.broken = False
        scene.watch.poke(POLL)
        await rest(scene)

    scene = played(play, PPP)
    assert len(scene.notes) == 1 and "isp" in scene.notes[0]
    assert [event.name for event in scene.events] == ["link.up", "link.down"]


def test_an_oracle_that_breaks_while_settling_is_not_asked_in_a_tight_loop() -> None:
    async def play(scene: Scene) -> None:
        await asyncio.sleep(5)
        scene.change(PPP)
        await asyncio.sleep(0.1)
        scene.sky.broken = True
        scene.sky.asked.clear()
        await asyncio.sleep(10)
        assert len(scene.sky.asked) <= 10 / LOOK_SECONDS

    played(play)


def test_a_storm_of_hints_costs_a_bounded_number_of_looks() -> None:
    async def play(scene: Scene) -> None:
        scene.sky.asked.clear()
        for _ in range(5000):
            scene.watch.poke("netlink")
            await asyncio.sleep(0.001)
        assert len(scene.sky.asked) <= 5 / LOOK_SECONDS + 2

    assert len(played(play, PPP).told) == 1


class Faulty:
    """A source that raises what it is given, each time, and counts its runs."""

    name = "faulty"
    nudges = False

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.runs: list[float] = []

    async def run(self, poke: Poke) -> None:
        self.runs.append(asyncio.get_running_loop().time())
        raise self.error


def test_a_source_that_falls_over_is_said_and_started_again_with_growing_pauses() -> None:
    source = Faulty(ValueError("broken"))

    async def play(scene: Scene) -> None:
        await asyncio.sleep(380)

    scene = played(play, PPP, sources=[source])
    failed = [event for event in scene.events if isinstance(event, PartFailed)]
    assert [event.seconds for event in failed] == list(RESTART_SECONDS)
    assert failed[0] == PartFailed(part="link.faulty", reason="ValueError: broken", seconds=1.0)
    pauses = [round(b - a) for a, b in zip(source.runs, source.runs[1:], strict=False)]
    assert pauses == list(RESTART_SECONDS)[: len(pauses)]


def test_a_source_that_the_host_refuses_is_said_once_and_the_others_go_on() -> None:
    async def play(scene: Scene) -> None:
        await asyncio.sleep(400)
        scene.change(PPP, cause=POLL)
        await rest(scene)

    scene = played(play, sources=[Faulty(Unavailable("cannot open a netlink socket", "refused"))])
    assert scene.notes == ["cannot open a netlink socket: refused; looking every 15 s instead"]
    assert [event.name for event in scene.events] == ["link.up"]


def test_a_source_that_ends_by_itself_is_a_failure() -> None:
    class Ending(Faulty):
        async def run(self, poke: Poke) -> None:
            return

    async def play(scene: Scene) -> None:
        await asyncio.sleep(0.5)

    scene = played(play, sources=[Ending(ValueError())])
    assert [event.name for event in scene.events] == ["part.failed"]


def test_stopping_the_watch_stops_its_sources() -> None:
    stopped: list[str] = []

    class Patient:
        name = "patient"
        nudges = False

        async def run(self, poke: Poke) -> None:
            try:
                await asyncio.sleep(1e6)
            finally:
                stopped.append(self.name)

    played(rest, sources=[Patient()])
    assert stopped == ["patient"]


WAYS: list[tuple[Line, ...]] = [(), (PPP,), (ETH,), (PPP, ETH), (DOCKER,)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 2), st.sampled_from(WAYS), st.booleans()), max_size=25))
def test_whatever_is_hinted_and_lost_the_last_word_is_the_truth(
    steps: list[tuple[float, tuple[Line, ...], bool]],
) -> None:
    async def play(scene: Scene) -> None:
        for pause, lines, heard in steps:
            await asyncio.sleep(pause)
            scene.sky.now = lines
            if heard:
                scene.watch.poke("netlink")
        scene.watch.poke(POLL)
        await asyncio.sleep(10)
        line = scene.watch.line("isp")
        usable = [way for way in scene.sky.now if way != DOCKER]
        assert (line in usable) if usable else line is None

    scene = played(play)
    up = False
    for event in scene.events:
        # Never two ups without a down between, and no change or end of what is not there.
        assert up is not isinstance(event, LinkUp)
        up = not isinstance(event, LinkDown)
