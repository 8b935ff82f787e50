"""Sessions that nobody wrote: real ones, mutated, split at random, hung up on at any moment.

A minute, five with ``--long``. How to play longer, or one again: `tests.fuzz.sessions`.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from siteagent.events import Event
from siteagent.inbound.smtp import Dialect
from siteagent.store.spool import SpoolFailed
from tests.fakes import FakeTransport, reception
from tests.fuzz.sessions import MOST_GROWTH_BYTES, FickleSpool, Run, fuzz, judge, mutated, split

_SHORT_SECONDS, _LONG_SECONDS = 60.0, 300.0


async def play(seed: int, troubles: list[dict[str, Any]]) -> None:
    """One session. Raises AssertionError for a reply that is none, or for a trouble of ours."""
    chance = random.Random(seed)
    events: list[Event] = []
    limits = {"max_recipients": chance.choice((100, 1000)), "max_message_bytes": chance.choice((0, 0, 300))}
    protocol = Dialect(reception(FickleSpool(chance), events, listener=limits))
    transport = FakeTransport()
    transport.protocol = protocol
    protocol.connection_made(transport)
    octets = mutated(chance)
    if chance.random() < 0.2:
        octets = octets[: chance.randrange(len(octets) + 1)]
    for part in split(octets, chance):
        for _ in range(1000):
            if transport.reading or transport.closed:
                break
            await asyncio.sleep(0)
        if transport.closed:
            break
        protocol.data_received(part)
        if chance.random() < 0.3:
            await asyncio.sleep(0)
    if not transport.closed and chance.random() < 0.5:
        protocol.eof_received()
    for _ in range(10_000):
        await asyncio.sleep(0)
        if protocol.work is None and not protocol._turn:
            break
    assert protocol.work is None, "it never comes to an end"
    protocol.connection_lost(None if chance.random() < 0.5 else ConnectionResetError())
    judge(transport.sent)
    planted = [trouble for trouble in troubles if isinstance(trouble.get("exception"), SpoolFailed)]
    assert troubles == planted, troubles
    troubles.clear()
    assert [event.name for event in events].count("session.closed") == 1


async def _fuzz(run: Run) -> tuple[int, int]:
    troubles: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: troubles.append(context))
    return await fuzz(lambda seed: play(seed, troubles), run)


@pytest.mark.timeout(1200)
def test_no_session_makes_an_exception_a_malformed_reply_or_a_leak(request: pytest.FixtureRequest) -> None:
    run = Run.asked(request, short_seconds=_SHORT_SECONDS, long_seconds=_LONG_SECONDS)
    played, growth = asyncio.run(_fuzz(run))
    print(f"{played} sessions, memory grew by {growth / 2**20:.1f} MiB")
    assert growth < MOST_GROWTH_BYTES
