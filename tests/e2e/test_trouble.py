"""What goes wrong at one provider or in one mailbox: it is said where people look, harms nobody else, loses nothing."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from tests.e2e.agent import Agent
from tests.e2e.lab import Lab, PostfixProvider
from tests.e2e.messages import ALICE, BOB, CAROL, note_of, simple

pytestmark = [pytest.mark.netns, pytest.mark.postfix]

QUICK = "quiet_seconds = 1\nfirst_connection_seconds = 1\nretry_seconds = [0, 0.5, 1]"
TABLES = {"link": "settle_seconds = 0.5", "provider.isp": QUICK, "provider.other": QUICK}
OURS = [*simple(2, recipients=(ALICE,)), *simple(2, recipients=(BOB,), first=5)]
THEIRS = simple(3, recipients=(CAROL,), first=10)


def other_provider(lab: Lab) -> PostfixProvider:
    """The one that works."""
    other = lab.provider("other", nodes=["branch.example"])
    other.queue(THEIRS)
    return other


def up(lab: Lab, agent: Agent) -> None:
    """Both lines within the settle time, and not before the names are known: else one is asked by way of the other."""
    agent.wait_for_first_look()
    for line in lab.lines:
        line.up()


def said(agent: Agent) -> dict[str, Any]:
    """`siteagent status --json`."""
    done = agent.command("status", "--json")
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def last_round(document: dict[str, Any], provider: str) -> dict[str, Any]:
    return dict(next(view for view in document["providers"] if view["name"] == provider)["last_round"])


def notes(agent: Agent) -> list[str]:
    return [note for path in agent.files("alice") if (note := note_of(path))]


def other_is_unharmed(agent: Agent, other: PostfixProvider) -> None:
    (ended,) = agent.rounds("other")
    assert (ended["outcome"], ended["messages"], other.waiting()) == ("drained", len(THEIRS), 0)


def test_a_node_that_postfix_refuses_is_refused_and_its_neighbour_is_not(lab: Lab) -> None:
    isp, other = lab.provider("isp", nodes=["office.example"]), other_provider(lab)
    isp.queue(OURS)
    nodes = 'nodes = ["foreign.example", "office.example"]\n'
    with lab.agent(tables={**TABLES, "provider.isp": nodes + QUICK}) as agent:
        up(lab, agent)
        ended = agent.wait_for_round("isp")
        agent.wait_for_round("other")
        latest = last_round(said(agent), "isp")
        assert [(n["node"], n["outcome"], n["code"]) for n in latest["nodes"]] == [
            ("foreign.example", "refused", 459),
            ("office.example", "started", 250),
        ]
        assert (latest["outcome"], latest["messages"], isp.waiting()) == ("drained", len(OURS), 0)
        assert "foreign.example" in ended["reason"] and "459" in ended["reason"]
        (refused,) = agent.events("ask.answered", node="foreign.example")
        assert (refused["outcome"], refused["code"]) == ("refused", 459) and "foreign.example" in refused["text"]
        other_is_unharmed(agent, other)
        assert agent.settle([*OURS, *THEIRS]) == []


def test_a_provider_that_refuses_every_node_is_asked_again_much_later(lab: Lab) -> None:
    isp, other = lab.provider("isp", nodes=["office.example"], settings={"fast_flush_domains": ""}), other_provider(lab)
    isp.queue(OURS)
    with lab.agent(tables=TABLES) as agent:
        up(lab, agent)
        ended = agent.wait_for_round("isp")
        agent.wait_for_round("other")
        document = said(agent)
        assert (ended["outcome"], last_round(document, "isp")["outcome"]) == ("refused", "refused")
        assert "459" in ended["reason"] and 3600 <= ended["next_seconds"] < 3600 * 1.2
        assert isp.waiting() == len(OURS)
        other_is_unharmed(agent, other)
    done = agent.command("ask", "isp")
    assert done.returncode == 69, "the provider refused"


def test_a_provider_that_is_down_is_tried_again_by_the_schedule_and_then_brings_all(lab: Lab) -> None:
    isp, other = lab.provider("isp", nodes=["office.example"]), other_provider(lab)
    isp.queue(OURS)
    isp.stop()
    with lab.agent(tables=TABLES) as agent:
        up(lab, agent)
        agent.wait_for_round("isp", beyond=1)
        agent.wait_for_round("other")
        first, second = agent.rounds("isp")[:2]
        assert [first["outcome"], second["outcome"]] == ["failed", "failed"]
        assert [first["next_seconds"], second["next_seconds"]] == pytest.approx([0.5, 1], abs=0.1)
        failed = agent.events("ask.failed", provider="isp")[0]
        assert (failed["stage"], failed["temporary"], failed["level"]) == ("connect", True, "warning")
        assert "refused" in failed["reason"]
        document = said(agent)
        view = next(view for view in document["providers"] if view["name"] == "isp")
        assert last_round(document, "isp")["outcome"] == "failed"
        assert view["state"] in ("retrying", "asking") and (view["next_ask"] or view["state"] == "asking")
        other_is_unharmed(agent, other)
        isp.start()
        agent.wait_for(lambda: agent.events("round.ended", provider="isp", outcome="drained"), "drained after all")
        assert isp.waiting() == 0 and agent.settle([*OURS, *THEIRS]) == []


def test_a_provider_that_agrees_and_never_connects_is_silent(lab: Lab) -> None:
    isp = lab.provider("isp", nodes=["office.example"], site_port=2626)
    other = other_provider(lab)
    isp.queue(OURS)
    with lab.agent(tables=TABLES) as agent:
        up(lab, agent)
        ended = agent.wait_for_round("isp")
        agent.wait_for_round("other")
        latest = last_round(said(agent), "isp")
        assert (ended["outcome"], latest["outcome"], latest["messages"]) == ("silent", "silent", 0)
        assert [node["outcome"] for node in latest["nodes"]] == ["started"]
        other_is_unharmed(agent, other)
        assert isp.wait_for_deferred() == len(OURS), "nothing is lost: it is where it was"


def test_s1_a_provider_that_calls_from_an_unlisted_address_is_told_to_wait_and_people_are_told(lab: Lab) -> None:
    isp, other = lab.provider("isp", nodes=["office.example"]), other_provider(lab)
    isp.queue(OURS)
    with lab.agent(tables={**TABLES, "provider.isp": f'{QUICK}\npeers = ["198.51.100.77"]'}) as agent:
        up(lab, agent)
        ended = agent.wait_for_round("isp")
        agent.wait_for_round("other")
        assert ended["outcome"] == "incomplete" and isp.address in ended["reason"]
        refused = agent.events("session.refused")[0]
        assert (refused["peer"], refused["code"], refused["expected"]) == (isp.address, 421, ["isp"])
        (warning,) = said(agent)["warnings"]
        assert warning["name"] == "peer-refused" and f"isp seems to connect from {isp.address} now" in warning["text"]
        assert f'add "{isp.address}" to peers' in warning["fix"]
        other_is_unharmed(agent, other)
        assert isp.wait_for_deferred() == len(OURS) and "status=bounced" not in isp.maillog()
        # The line to add, added: the next round brings all, and the warning goes.
        agent.write_configuration(tables=TABLES)
        agent.wait_for(lambda: agent.events("config.reloaded"), "config.reloaded")
        assert agent.command("ask", "isp").returncode == 0
        assert agent.settle([*OURS, *THEIRS]) == [] and isp.waiting() == 0
        agent.wait_for(lambda: not agent.warnings(), "no warning")
        assert notes(agent) == ["peer-refused"], "nobody reads logs"


def test_s29_a_maildir_that_cannot_be_written_keeps_its_mail_in_the_spool_and_says_so(lab: Lab) -> None:
    isp, other = lab.provider("isp", nodes=["office.example"]), other_provider(lab)
    isp.queue(OURS)
    agent = lab.agent(tables=TABLES)
    in_the_way = agent.maildir("bob")
    in_the_way.write_text("not a directory\n")
    with agent:
        up(lab, agent)
        ended = agent.wait_for_round("isp")
        agent.wait_for_round("other")
        assert (ended["outcome"], ended["messages"], ended["files"]) == ("drained", len(OURS), 2)
        assert "mail waits to be filed" in ended["reason"]
        assert isp.waiting() == 0, "the provider is not bothered"
        document = said(agent)
        (warning,) = document["warnings"]
        assert warning["name"] == "cannot-file" and "mail for bob cannot be filed" in warning["text"] and warning["fix"]
        assert document["queue"]["messages"] == 2 and "Not a directory" in document["queue"]["reason"]
        failed = agent.events("filing.failed")
        assert {event["mailbox"] for event in failed} == {"bob"} and failed[0]["level"] == "error"
        other_is_unharmed(agent, other)
        assert agent.settle([shape for shape in (*OURS, *THEIRS) if BOB not in shape.recipients]) == []
        listed = agent.command("queue", "--json")
        assert len(json.loads(listed.stdout)["messages"]) == 2
        in_the_way.unlink()
        assert agent.command("queue", "retry").returncode == 0
        assert agent.settle([*OURS, *THEIRS]) == []
        agent.wait_for(lambda: not agent.warnings() and agent.status()["queue"]["messages"] == 0, "all is well again")
        time.sleep(0.5)
        assert agent.settle([*OURS, *THEIRS]) == [], "and stays once"
        assert notes(agent) == ["cannot-file"]
