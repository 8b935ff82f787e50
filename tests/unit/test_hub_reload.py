"""`hub.reload`: another hub.toml under a running hub, taken in as a whole or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from siteagent.config import files
from siteagent.host import systemd
from siteagent.hub.reload import Reloader
from siteagent.hub.server import Hub
from tests.hub import Running

Scene = Callable[[Running, Reloader], Awaitable[None]]


def write(tmp_path: Path, *nodes: str, top: str = "", listener: str = "") -> Path:
    path = tmp_path / "hub.toml"
    text = f'hostname = "hub.example"\nstate_directory = "{tmp_path}/state"\n{top}\n'
    text += f'[listener]\nlisten = ["127.0.0.1:0"]\n{listener}\n'
    for name in nodes or ("office.example",):
        text += f'[[node]]\nname = "{name}"\ndomains = ["{name}"]\ndeliver_to = "127.0.0.1:1"\n'
    path.write_text(text)
    return path


def on(path: Path, scene: Scene) -> None:
    async def work() -> None:
        events, notes = [], list[str]()
        async with Hub(files.load(path, hub=True), emit=events.append, note=notes.append) as made:
            await scene(Running(made, events, notes), Reloader(made, path))

    asyncio.run(work())


def test_another_node_is_taken_in_and_one_that_is_gone_keeps_its_mail(tmp_path: Path) -> None:
    async def scene(one: Running, reloader: Reloader) -> None:
        await one.fill([b"Subject: kept\r\n\r\nhello\r\n"])
        write(tmp_path, "branch.example")
        reloader.look()
        await one.until(lambda: one.of("config.reloaded"))
        await one.fill([b"Subject: new\r\n\r\nhello\r\n"], to=["bob@branch.example"])
        held = {node["name"]: node["messages"] for node in one.hub.document()["nodes"]}
        assert held == {"branch.example": 1, "office.example": 1}
        peer = await one.peer()
        assert await peer.code("MAIL FROM:<friend@far.example>") == 250
        assert await peer.code("RCPT TO:<alice@office.example>") == 550
        await peer.close()

    on(write(tmp_path), scene)


def test_a_file_with_a_problem_keeps_the_old_one_and_is_warned_of_until_it_is_mended(tmp_path: Path) -> None:
    path = write(tmp_path)

    async def scene(one: Running, reloader: Reloader) -> None:
        write(tmp_path, top="hostnam = 1\nhots = 2")
        await reloader.reload()
        (rejected,) = one.of("config.rejected")
        assert len(rejected.problems) == 2
        (warning,) = one.hub.document()["warnings"]
        assert warning["name"] == "configuration"
        assert warning["text"].endswith(f"not in force (2 problems): {rejected.problems[0]}")
        await one.fill([b"Subject: goes on\r\n\r\nhello\r\n"])
        write(tmp_path)
        await reloader.reload()
        assert one.hub.document()["warnings"] == []

    on(path, scene)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"top": "[odmr]\nlisten = ['127.0.0.1:0']"}, "[odmr]"),
        ({"top": "[limits]\ncommand_seconds = 10"}, "[limits]"),
    ],
)
def test_what_cannot_change_rejects_the_reload_as_a_whole(tmp_path: Path, change: dict[str, str], named: str) -> None:
    path = write(tmp_path)

    async def scene(one: Running, reloader: Reloader) -> None:
        write(tmp_path, "branch.example", **change)
        await reloader.reload()
        (rejected,) = one.of("config.rejected")
        assert rejected.problems == (f"{named}: cannot change while the hub runs; restart it",)
        assert [node["name"] for node in one.hub.document()["nodes"]] == ["office.example"]

    on(path, scene)


def test_a_burst_of_looks_is_one_reload(tmp_path: Path) -> None:
    path = write(tmp_path)

    async def scene(one: Running, reloader: Reloader) -> None:
        write(tmp_path, "branch.example")
        for _ in range(5):
            reloader.look()
        await one.until(lambda: one.of("config.reloaded"))
        await asyncio.sleep(0.05)
        assert len(one.of("config.reloaded")) == 1

    on(path, scene)


def test_systemd_hears_ready_again_even_where_the_reload_breaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path)
    told: list[str] = []

    def notify(text: str) -> bool:
        told.append(text.partition("\n")[0])
        return True

    async def breaks(hub: Hub, configuration: object) -> None:
        raise RuntimeError("the fault that was planted")

    monkeypatch.setattr(Hub, "apply", breaks)

    async def scene(one: Running, reloader: Reloader) -> None:
        monkeypatch.setattr(systemd, "notify", notify)
        one.hub.background(reloader.reload())
        await one.until(lambda: any("RuntimeError: the fault that was planted" in note for note in one.notes))
        assert told == ["RELOADING=1", "READY=1"]
        monkeypatch.undo()

    on(path, scene)
