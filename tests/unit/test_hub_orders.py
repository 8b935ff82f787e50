"""`hub.orders`: release and drop by hand."""

from __future__ import annotations

import asyncio
from pathlib import Path

from siteagent.hub.orders import drop_now
from siteagent.store import requests
from tests.hub import Running, hub, node
from tests.unit.test_hub_server import mails, restarted


def left(running: Running, kind: str, *names: str) -> requests.Request:
    request = requests.Request(id=requests.new_id(), kind=kind, nodes=names)
    requests.leave(running.hub.state_directory, request)
    running.hub.look_at_requests()
    return request


def test_a_message_is_dropped_by_hand_and_nobody_hears_of_it(tmp_path: Path) -> None:
    async def run() -> None:
        async with hub(tmp_path, [node(deliver_to="127.0.0.1:1")], relay="127.0.0.1:1") as running:
            await running.fill(mails(2))
            ident = running.of("message.accepted")[0].message
            request = left(running, "drop", ident)
            await running.until(lambda: request.id in running.hub.fold.answers)
            assert running.hub.fold.answers[request.id]["done"]
            assert running.hub.queue.count("office.example") == 1
            again = left(running, "drop", ident)
            await running.until(lambda: again.id in running.hub.fold.answers)
            assert not running.hub.fold.answers[again.id]["done"]

    asyncio.run(run())
    assert restarted(tmp_path).hub.queue.count("office.example") == 1


def test_a_message_is_dropped_while_no_hub_runs(tmp_path: Path) -> None:
    async def run() -> str:
        async with hub(tmp_path, [node(deliver_to="127.0.0.1:1")]) as running:
            await running.fill(mails(2))
            return str(running.of("message.accepted")[0].message)

    ident = asyncio.run(run())
    assert drop_now(tmp_path / "state", ident) == (True, f"dropped {ident}")
    assert not drop_now(tmp_path / "state", ident)[0]
    assert restarted(tmp_path).hub.queue.count("office.example") == 1


def test_release_by_hand_pushes_and_says_what_it_does_not_know(tmp_path: Path) -> None:
    async def run() -> None:
        async with hub(tmp_path, [node(deliver_to="127.0.0.1:1")]) as running:
            await running.fill(mails(1))
            known, unknown = left(running, "release", "office.example"), left(running, "release", "nobody.example")
            assert running.hub.fold.answers[known.id]["done"]
            assert not running.hub.fold.answers[unknown.id]["done"]
            assert (await running.released()).left == 1

    asyncio.run(run())
