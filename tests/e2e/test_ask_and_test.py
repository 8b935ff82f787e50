"""`ask` and `test` as people and scripts use them: alone, with a running agent, as another user, two at once."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tests.e2e.agent import Agent
from tests.e2e.lab import Lab, PostfixProvider, Sink
from tests.e2e.messages import ALICE, BOB, CAROL, simple

pytestmark = [pytest.mark.netns, pytest.mark.postfix]

TABLES = {
    "link": "settle_seconds = 0.1",
    "provider.isp": "quiet_seconds = 1\nfirst_connection_seconds = 1\nretry_seconds = [0, 300]",
}
SENT = [*simple(3), *simple(2, recipients=(CAROL,), first=10)]


@pytest.fixture
def isp(lab: Lab) -> PostfixProvider:
    made = lab.provider()
    made.queue(SENT)
    made.line.up()
    return made


def rounds_of(output: str) -> list[dict[str, Any]]:
    document = json.loads(output)
    assert document["version"] == 1
    return list(document["rounds"])


# --- ask --------------------------------------------------------------------------------------------------------------


def test_ask_alone_does_one_whole_round_and_exits_0(lab: Lab, isp: PostfixProvider) -> None:
    agent = lab.agent(tables=TABLES)
    done = agent.command("ask")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("isp: drained, 5 messages, ")
    assert "office.example: started (250 Queuing started)" in done.stderr
    assert (agent.wrong(SENT), isp.waiting()) == ([], 0)
    assert not agent.namespace.listens(25), "the listener is gone with it"
    again = agent.command("ask", "--json")
    (silent,) = rounds_of(again.stdout)
    assert (again.returncode, silent["outcome"], silent["messages"]) == (0, "silent", 0)
    assert "siteagent test isp" in again.stderr, "what silence can mean is said"


def test_ask_for_one_node_brings_that_nodes_mail_alone(lab: Lab, isp: PostfixProvider) -> None:
    agent = lab.agent(tables=TABLES)
    done = agent.command("ask", "isp", "--node", "branch.example", "--json")
    (only,) = rounds_of(done.stdout)
    assert (done.returncode, only["messages"], [node["node"] for node in only["nodes"]]) == (0, 2, ["branch.example"])
    assert isp.waiting() == 3


def test_ask_without_a_line_says_so_and_exits_75(lab: Lab) -> None:
    isp = lab.provider()
    agent = lab.agent(tables=TABLES)
    done = agent.command("ask")
    assert done.returncode == 75, done.stderr
    assert done.stdout.startswith("isp: failed") and f"there is no line to {isp.name}" in done.stdout


def test_ask_where_another_program_has_the_port_names_it_and_exits_73(lab: Lab, isp: PostfixProvider) -> None:
    agent = lab.agent(tables=TABLES)
    with Sink(lab.site):
        done = agent.command("ask")
    assert done.returncode == 73
    assert "cannot listen on 0.0.0.0:25" in done.stderr and "(pid " in done.stderr
    assert isp.waiting() == 5


def test_with_a_running_agent_ask_follows_that_agents_round(lab: Lab, isp: PostfixProvider) -> None:
    with lab.agent(tables=TABLES) as agent:
        agent.wait_for_round("isp")
        more = simple(2, first=20)
        isp.line.down()
        agent.wait_for(lambda: agent.events("link.down"), "link.down")
        isp.queue(more)
        isp.line.up()
        agent.wait_for_round("isp", beyond=1)
        done = agent.command("ask", "--json")
        (asked,) = rounds_of(done.stdout)
        assert (done.returncode, asked["outcome"], asked["cause"]) == (0, "silent", "request")
        assert asked["id"] in {ended["round"] for ended in agent.rounds()}, "a round of the agent, not one of its own"
        assert agent.wrong([*SENT, *more]) == []
        assert agent.running()
        assert list((agent.state / "requests").iterdir()) == []


def test_two_at_once_are_both_served(lab: Lab, isp: PostfixProvider) -> None:
    agent = lab.agent(tables=TABLES)
    with ThreadPoolExecutor(2) as pool:
        alone = list(pool.map(lambda _: agent.command("ask"), range(2)))
    assert sorted(done.returncode for done in alone) == [0, 0], [done.stderr for done in alone]
    assert sum("drained, 5 messages" in done.stdout for done in alone) == 1
    assert any("is at work; waiting for it" in done.stderr for done in alone)
    with agent, ThreadPoolExecutor(2) as pool:
        agent.wait_for_round("isp")
        before = len(agent.rounds())
        followed = [rounds_of(d.stdout)[0] for d in pool.map(lambda _: agent.command("ask", "--json"), range(2))]
        assert [latest["outcome"] for latest in followed] == ["silent", "silent"]
        assert {latest["id"] for latest in followed} <= {ended["round"] for ended in agent.rounds()[before:]}


def test_another_user_who_may_write_to_requests_may_ask_and_who_may_not_is_told_so(
    lab: Lab, isp: PostfixProvider
) -> None:
    with lab.agent(tables=TABLES) as agent:
        agent.wait_for_round("isp")
        agent.configuration.chmod(0o644)
        refused = agent.command("ask", user="nobody")
        assert refused.returncode == 77, refused.stderr
        assert f"{agent.state / 'requests'}" in refused.stderr
        shutil.chown(agent.state / "requests", "root", "nogroup")
        done = agent.command("ask", "--json", user="nobody")
        assert done.returncode == 0, done.stderr
        (asked,) = rounds_of(done.stdout)
        assert asked["id"] == agent.rounds()[-1]["round"]


# --- test -------------------------------------------------------------------------------------------------------------


def test_test_names_each_hop_into_the_maildir(lab: Lab) -> None:
    isp = lab.provider(settings={"defer_transports": "relay"})
    isp.line.up()
    agent = lab.agent(tables=TABLES)
    done = agent.command("test")
    assert done.returncode == 0, done.stderr
    took, asked, connected, there = done.stdout.splitlines()
    assert took.startswith(f"1. isp took the message for {ALICE} (250 ")
    assert asked.startswith("2. asked isp (office.example: 250 Queuing started")
    assert connected.startswith("3. isp connected and brought 1 message after ")
    assert there.startswith(f"4. it is in the Maildir of {ALICE} after ")
    (filed,) = agent.files("alice")
    assert b"\nX-Siteagent-Test: " in filed.read_bytes()


def test_test_follows_the_round_of_a_running_agent(lab: Lab) -> None:
    isp = lab.provider(settings={"defer_transports": "relay"})
    isp.line.up()
    with lab.agent(tables=TABLES) as agent:
        agent.wait_for_round("isp")
        done = agent.command("test", "isp", "--to", BOB)
        assert done.returncode == 0, done.stderr
        assert f"it is in the Maildir of {BOB}" in done.stdout
        assert len(agent.files("bob")) == 1


def failed_hop(agent: Agent, *arguments: str) -> tuple[int, str]:
    """What `test` says when a hop fails: its exit code, and its words on stderr."""
    done = agent.command("test", *arguments)
    return done.returncode, done.stderr


def test_test_names_the_hop_when_the_provider_does_not_take_our_mail(lab: Lab) -> None:
    isp = lab.provider(settings={"relay_recipient_maps": "inline:{nobody@office.example=x}"})
    isp.line.up()
    code, words = failed_hop(lab.agent(tables=TABLES))
    assert code == 69
    assert f"the message stopped: isp does not take mail for {ALICE}: " in words
    assert "550 5.1.1" in words, "the provider's own words"


def test_test_names_the_hop_when_the_provider_refuses_to_be_asked(lab: Lab) -> None:
    isp = lab.provider(settings={"defer_transports": "relay", "fast_flush_domains": ""})
    isp.line.up()
    code, words = failed_hop(lab.agent(tables=TABLES))
    assert code == 69
    assert "the message stopped: isp refuses to be asked: " in words and "459 " in words


def test_test_names_the_hop_when_the_provider_does_not_call(lab: Lab) -> None:
    isp = lab.provider(site_port=2626, settings={"defer_transports": "relay"})
    isp.line.up()
    code, words = failed_hop(lab.agent(tables=TABLES))
    assert code == 75
    assert "the message stopped: isp does not call: it agreed to send, and then nobody connected" in words


def test_test_names_the_hop_when_the_provider_calls_from_an_unlisted_address(lab: Lab) -> None:
    isp = lab.provider(settings={"defer_transports": "relay"})
    isp.line.up()
    tables = {**TABLES, "provider.isp": TABLES["provider.isp"] + '\npeers = ["198.51.100.77"]'}
    code, words = failed_hop(lab.agent(tables=tables))
    assert code == 75
    assert (
        f"the message stopped: isp calls from an unlisted address: isp seems to connect from {isp.address} now" in words
    )
    assert f'add "{isp.address}" to peers of provider isp' in words
