"""The line cut where it hurts: the round says that it is incomplete, and after the next link-up all is there once.

The provider's SMTP timeouts are short, so that it notices; a real one keeps such a message for up to ten minutes.
"""

from __future__ import annotations

from typing import Any

import pytest
from tests.e2e.agent import Agent
from tests.e2e.lab import Lab, PostfixProvider, wait_for
from tests.e2e.messages import BOB, CAROL, CUT_HERE, DEAF_FROM_HERE, marked, simple

pytestmark = [pytest.mark.netns, pytest.mark.postfix]

MARKED = marked(octets=2_000_000)
OTHERS = [*simple(3, recipients=(BOB,)), *simple(2, recipients=(CAROL,), first=10)]
SENT = [MARKED, *OTHERS]
TABLES = {
    "link": "settle_seconds = 0.2",
    "provider.isp": "quiet_seconds = 1",
    "limits": "silence_seconds = 3\ncommand_seconds = 3",
}


def provider(lab: Lab) -> PostfixProvider:
    isp = lab.provider(timeout_seconds=2)
    isp.queue(SENT)
    return isp


def link_up_anew(isp: PostfixProvider, agent: Agent) -> dict[str, Any]:
    """The line is whole again and comes up again; the round that follows."""
    isp.wait_for_deferred()
    agent.wait_for(lambda: len(agent.events("session.closed")) == len(agent.events("session.opened")), "all ended")
    before = len(agent.events("link.down"))
    isp.line.down()
    agent.wait_for(lambda: len(agent.events("link.down")) > before, "link.down")
    isp.line.heal()
    rounds = len(agent.rounds("isp"))
    isp.line.up()
    return agent.wait_for_round("isp", beyond=rounds)


def test_s46_cut_in_the_middle_of_two_megabytes_the_round_is_incomplete_and_the_next_brings_it(lab: Lab) -> None:
    isp = provider(lab)
    with lab.agent(tables=TABLES) as agent:
        isp.line.cut_at(CUT_HERE)
        isp.line.up()
        cut = agent.wait_for_round("isp")
        assert isp.line.dropped() > 0
        assert (cut["outcome"], cut["messages"]) == ("incomplete", len(OTHERS))
        assert "ended uncleanly" in cut["reason"]
        assert cut["next_seconds"] > 59, "the provider may still hold on to the dead session"
        assert agent.wrong(OTHERS) == [] and agent.leftovers() == [], "nothing half, and nothing less than the others"
        healed = link_up_anew(isp, agent)
        assert (healed["outcome"], healed["messages"], isp.waiting()) == ("drained", 1, 0)
        assert agent.wrong(SENT) == [] and agent.leftovers() == []


def test_cut_right_after_the_final_dot_the_250_is_not_heard_and_it_is_filed_once_all_the_same(lab: Lab) -> None:
    isp = provider(lab)
    with lab.agent(tables=TABLES) as agent:
        isp.line.deafen_at(DEAF_FROM_HERE)
        isp.line.up()
        cut = agent.wait_for_round("isp")
        assert isp.line.dropped() > 0
        assert agent.wrong(SENT) == [], "it was taken, durably, whether or not they know"
        isp.wait_for_deferred()
        assert isp.waiting() == 1, "Postfix has not heard the 250"
        assert (cut["outcome"], cut["messages"]) == ("incomplete", len(SENT))
        healed = link_up_anew(isp, agent)
        assert (healed["outcome"], healed["messages"], healed["duplicates"]) == ("drained", 1, 1)
        assert (healed["files"], isp.waiting()) == (0, 0)
        assert agent.wrong(SENT) == [] and agent.leftovers() == []
        (again,) = agent.events("message.duplicate")
        assert again["first"] in {event["message"] for event in agent.events("message.stored", mailbox="alice")}


def test_the_line_that_goes_down_in_the_middle_ends_the_round_as_link_lost_and_loses_nothing(lab: Lab) -> None:
    isp = provider(lab)
    with lab.agent(tables=TABLES) as agent:
        isp.line.cut_at(CUT_HERE)
        isp.line.up()
        wait_for(isp.line.dropped, "the middle of the message")
        isp.line.down()
        assert agent.wait_for_round("isp")["outcome"] == "link-lost"
        isp.line.heal()
        isp.wait_for_deferred()
        # Else its end may fall into the next round, which rightly says that it lost a session.
        agent.wait_for(lambda: len(agent.events("session.closed")) == len(agent.events("session.opened")), "all ended")
        isp.line.up()
        assert agent.wait_for_round("isp", beyond=1)["outcome"] == "drained"
        assert agent.wrong(SENT) == [] and agent.leftovers() == [] and isp.waiting() == 0


def test_s47_a_flap_in_the_middle_of_a_message_does_not_lose_the_session(lab: Lab) -> None:
    isp = lab.provider(timeout_seconds=20)
    large = marked(octets=800_000)
    isp.queue([large])
    with lab.agent(tables={**TABLES, "link": "settle_seconds = 1", "limits": "silence_seconds = 20"}) as agent:
        isp.line.rate(4_000_000)
        isp.line.up()
        agent.wait_for(lambda: agent.status().get("sessions_open"), "a session")
        agent.wait_for(lambda: agent.status()["sessions_open"][0]["bytes"] > 200_000, "part of the message")
        isp.line.unplug()
        wait_for(lambda: "NO-CARRIER" in lab.site.ip("link", "show", isp.line.device), "no carrier")
        isp.line.plug()
        ended = agent.wait_for_round("isp")
        assert (ended["outcome"], ended["sessions"], ended["messages"]) == ("drained", 1, 1)
        assert not agent.events("link.down")
        assert agent.wrong([large]) == []
