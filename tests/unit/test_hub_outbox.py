"""`hub.outbox`: what a release holds in memory while its letters are on their way."""

from __future__ import annotations

import asyncio
import tracemalloc
from pathlib import Path

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
