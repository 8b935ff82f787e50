"""`hub.expiry`: mail that was held for longer than `retain_days`."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.hub import Running, hub, node
from tests.unit.test_hub_push import MAIL, odd_site, smtp


def expired(tmp_path: Path, *, relay: bool) -> tuple[Running, list[bytes]]:
    notices: list[bytes] = []
    clock = {"now": 5000.0}

    async def run() -> Running:
        async with odd_site(smtp(contents=notices)) as address:
            nodes = [node(deliver_to="127.0.0.1:1", etrn_without_auth=True, retain_days=3)]
            async with hub(
                tmp_path, nodes, relay=address if relay else None, monotonic=lambda: clock["now"]
            ) as running:
                await running.fill([MAIL])
                for _ in range(3):
                    clock["now"] += 86_400
                    running.hub._mark_day()
                    await running.hub.expiry.look()
                assert running.of("message.returned") == [], "not a minute early"
                clock["now"] += 86_400
                await running.hub.expiry.look()
                await asyncio.sleep(0.02)
                return running

    return asyncio.run(run()), notices


def test_s61_after_retain_days_the_sender_gets_a_notice_and_the_message_goes(tmp_path: Path) -> None:
    running, notices = expired(tmp_path, relay=True)
    assert len(notices) == 1
    assert b"Status: 5.4.7" in notices[0]
    assert running.hub.queue.totals() == (0, 0)


def test_without_a_relay_what_expires_is_held_and_shown(tmp_path: Path) -> None:
    running, _ = expired(tmp_path, relay=False)
    assert running.hub.queue.count("office.example") == 1
    (warning,) = running.hub.document()["warnings"]
    assert warning["name"] == "expired"
