"""What a round tells and costs: the ledger as people read it, silence explained, big mail left with the provider."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from tests.e2e.lab import Lab, Tap, nothing_left, smtp, wait_for
from tests.e2e.messages import NODES, marked, simple

pytestmark = [pytest.mark.netns, pytest.mark.postfix]

SILENT_SOON = "first_connection_seconds = 1"


@pytest.fixture
def lab() -> Iterator[Lab]:
    with nothing_left(), Lab() as made:
        yield made


def test_history_reads_as_a_ledger_and_the_line_has_its_price(lab: Lab) -> None:
    isp = lab.provider()
    sent = simple(3)
    isp.queue(sent)
    with lab.agent() as agent, Tap(lab.site, isp.line.device) as tap:
        isp.line.up()
        ended = agent.wait_for_round("isp")
        assert agent.settle(sent) == []
        carried = sum(packet.octets for packet in tap.packets)
        assert agent.terminate() == 0
        told = agent.command("history").stdout.splitlines()[-1]
        assert re.search(
            r"asked \d\d:\d\d:\d\d \(250\), first connection after \d+\.\d s, 3 messages, 7\.\d kB"
            r" \((8|9|1\d)\.\d kB on the wire\), drained \d\d:\d\d:\d\d$",
            told,
        ), told
        # What TCP carried, to the octet; Linux counts the SYN of each connection too.
        assert 0 <= ended["wire_bytes"] - carried <= 8
        (day,) = json.loads(agent.command("history", "--cost", "--json").stdout)["lines"]
        assert (day["interface"], day["rounds"], day["messages"]) == (isp.line.device, 1, 3)
        assert day["wire_bytes"] == ended["wire_bytes"] and day["seconds"] >= ended["seconds"] - 0.1


def test_the_first_silence_ever_is_explained_with_nothing_was_waiting_first(lab: Lab) -> None:
    isp = lab.provider()
    with lab.agent(tables={"provider.isp": SILENT_SOON}) as agent:
        isp.line.up()
        assert agent.wait_for_round("isp")["outcome"] == "silent"
        agent.wait_for(lambda: "silence" in agent.warnings(), "the warning")
        (warning,) = agent.status()["warnings"]
        assert "Likely: nothing was waiting; or " in warning["text"]
        assert "takes no connection" not in warning["text"], "our port is open"
        isp.submit(simple(1))
        agent.wait_for(lambda: "silence" not in agent.warnings(), "it came: cleared")


def test_silence_of_a_provider_that_turns_to_another_address_than_ours_is_seen(lab: Lab) -> None:
    isp = lab.provider()
    lab.site.knows("office.dyn.example", "192.0.2.99")
    table = f'{SILENT_SOON}\nreached_as = "office.dyn.example"'
    with lab.agent(tables={"provider.isp": table}) as agent:
        isp.line.up()
        agent.wait_for(lambda: "silence" in agent.warnings(), "the warning")
        (warning,) = agent.status()["warnings"]
        assert f"leads to 192.0.2.99, and we are {isp.line.site_address}" in warning["text"]


def test_big_mail_stays_with_the_provider_for_the_price_of_a_few_lines(lab: Lab) -> None:
    isp = lab.provider(nodes=NODES)
    isp.queue([marked(octets=1_000_000)])
    with lab.agent(tables={"provider.isp": "defer_above_bytes = 500_000\ngives_up_days = 4"}) as agent:
        isp.line.up()
        with smtp(isp.namespace, isp.line.site_address, 25, isp.host):
            pass  # an empty session: greeting, EHLO, QUIT
        ended = agent.wait_for_round("isp")
        assert ended["outcome"] == "incomplete"
        empty, deferred = (event["wire_bytes"] for event in agent.events("session.closed")[:2])
        print(f"an empty session: {empty} octets; with a message of 1 MB deferred: {deferred}")
        assert deferred - empty <= 1000
        wait_for(lambda: agent.provider_status("isp")["last_round"]["deferred"], "listed in status")
        (held,) = agent.provider_status("isp")["last_round"]["deferred"]
        assert (held["code"], held["bytes"] > 1_000_000) == (452, True)
        assert "it returns it to the sender about " in agent.command("status").stdout
        days = (_day(held["gives_up"]) - _day(held["since"])).days
        assert days == 4


def _day(text: str):  # type: ignore[no-untyped-def]
    from datetime import datetime

    return datetime.fromisoformat(text)
