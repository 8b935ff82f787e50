"""`hub.outbox`: what a release holds in memory, and what becomes of a letter when something of ours fails."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from siteagent.config.sections import Undeliverable
from siteagent.hub.letter import Result
from siteagent.hub.outbox import Desk, Outbox
from siteagent.hub.queue import Queue
from siteagent.store import held
from siteagent.store.spool import Spool
from siteagent.wire.reply import Reply
from tests.bench.hub_queue import make_queue, node_name
from tests.hub import hub, node
from tests.unit.test_hub_push import odd_site

SITES, OCTETS = 15, 10_000


def test_what_is_on_its_way_to_many_sites_takes_no_memory(tmp_path: Path) -> None:
    """Each site takes everything in and answers nothing: a hundred letters are on their way to each."""
    make_queue(tmp_path / "state", 100 * SITES, nodes=SITES, octets=OCTETS)
    taken = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal taken
        writer.write(b"220 site\r\n")
        await reader.readuntil(b"\r\n")
        writer.write(b"250-site\r\n250-PIPELINING\r\n250 CHUNKING\r\n")
        while data := await reader.read(65_536):
            taken += len(data)

    async def run() -> int:
        async with odd_site(talk) as address:
            names = [node_name(number) for number in range(SITES)]
            nodes = [node(name, deliver_to=address, etrn_without_auth=True, max_connections=1) for name in names]
            async with hub(tmp_path, nodes) as running:
                tracemalloc.start()
                for each in nodes:
                    running.hub.front.release(each.name, account=None, peer=each.name)
                await running.until(lambda: taken > SITES * 100 * OCTETS * 0.99, seconds=60)
                _, most = tracemalloc.get_traced_memory()
                tracemalloc.stop()
                return most

    most = asyncio.run(run())
    assert most < SITES * 100 * OCTETS, f"{most} octets, and {taken} were sent"


class BrokenReturns:
    relay = "relay.example:25"

    async def refused(self, *_: object) -> bool:
        raise RuntimeError("a bug of ours")


def test_whatever_fails_while_a_notice_is_made_the_message_is_handed_out_again(tmp_path: Path) -> None:
    state = tmp_path / "state"
    make_queue(state, 1, nodes=1)

    async def run() -> tuple[int, int]:
        index = held.Index()
        spool = Spool(state, recall=index)
        spool.open()
        queue = Queue()
        name = node_name(0)
        queue.load(name, index.held[name])
        work: list[Coroutine[Any, Any, None]] = []
        desk = Desk(
            spool=spool,
            queue=queue,
            returns=BrokenReturns(),  # type: ignore[arg-type]
            bodies=state,
            emit=lambda event: None,
            background=work.append,
        )
        outbox = Outbox(desk, node(name, undeliverable=Undeliverable.BOUNCE))
        letter = await outbox.next()
        assert letter is not None
        outbox.tell(Result(letter, {letter.addresses[0]: Reply(550, "5.1.1", "no such user")}))
        outbox.close()
        with pytest.raises(RuntimeError):
            await work.pop()
        found = queue.count(name), len(queue.take(name, 10))
        await spool.close()
        return found

    assert asyncio.run(run()) == (1, 1)
