"""Exim 4.96 and Sendmail 8.17 as Debian builds them, asked by the agent: what they say, and that their mail is filed.

Postfix is the provider of the other tests here. How each server answers is listed in docs/providers.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from tests.e2e.agent import Agent
from tests.e2e.lab import Lab, nothing_left
from tests.e2e.messages import BOB, CAROL, NODES, Shape, simple
from tests.e2e.postfix import Terms
from tests.e2e.servers import Exim, Sendmail, Server

pytestmark = [pytest.mark.netns, pytest.mark.unpacked]

SENT = [*simple(3), *simple(1, recipients=(BOB, CAROL), first=10)]


@pytest.fixture
def lab() -> Iterator[Lab]:
    with nothing_left(), Lab() as made:
        yield made


def provider(lab: Lab, kind: type[Server], **options: Any) -> Server:
    terms = Terms(nodes=options.pop("nodes", NODES))
    server = kind(kind.__name__.lower(), lab.line(), lab.directory / kind.__name__, terms, **options)
    lab.providers.append(server)  # type: ignore[arg-type]
    server.start()
    return server


def answers(agent: Agent) -> list[tuple[str, int]]:
    return [(event["outcome"], event["code"]) for event in agent.events("ask.answered")]


def drained(lab: Lab, server: Server, sent: list[Shape], *, table: str = "") -> Agent:
    """The line comes up; all that was sent is filed once, byte for byte."""
    agent = lab.agent(tables={f"provider.{server.name}": table})
    agent.start()
    server.line.up()
    ended = agent.wait_for_round(server.name)
    assert (ended["outcome"], ended["messages"]) == ("drained", len(sent)), server.log_tail()
    assert (server.waiting(), agent.settle(sent)) == (0, [])
    return agent


def test_exim_takes_the_name_with_a_number_sign_and_siteagent_learns_it(lab: Lab) -> None:
    exim = provider(lab, Exim)
    exim.queue(SENT)
    agent = drained(lab, exim, SENT, table="learn_name_form = true")
    assert answers(agent) == [("started", 250)] * 2
    assert agent.terminate() == 0
    exim.queue(simple(1, first=20))
    agent.start()
    agent.wait_for_round("exim", beyond=1)
    asked = [line for line in exim.log_tail(400).splitlines() if " ETRN " in line]
    forms = [line.partition(" ETRN ")[2].split()[0] for line in asked]
    assert forms == [NODES[0], f"#{NODES[0]}", NODES[1], f"#{NODES[1]}", f"#{NODES[0]}", f"#{NODES[1]}"], "learned"


def test_exim_with_an_etrn_command_takes_the_bare_name(lab: Lab) -> None:
    exim = provider(lab, Exim, command=True)
    exim.queue(SENT)
    assert answers(drained(lab, exim, SENT)) == [("started", 250)] * 2


def test_exim_that_denies_says_458_and_is_asked_again_after_half_a_minute(lab: Lab) -> None:
    exim = provider(lab, Exim, acl="deny")
    with lab.agent() as agent:
        exim.line.up()
        ended = agent.wait_for_round("exim")
        assert ended["outcome"] == "failed"
        assert ended["next_seconds"] == pytest.approx(30, abs=1)  # what is left of it when it is said
        assert answers(agent) == [("retry", 458)] * 2


def test_sendmail_takes_the_bare_name(lab: Lab) -> None:
    sendmail = provider(lab, Sendmail)
    # It adds a Date where there is none.
    sent = [replace(shape, content=b"Date: Sun, 22 Nov 2026 08:00:00 +0000\n" + shape.content) for shape in SENT]
    sendmail.queue(sent)
    assert answers(drained(lab, sendmail, sent)) == [("started", 250)] * 2


def test_sendmail_without_etrn_is_refused_and_a_person_is_told(lab: Lab) -> None:
    sendmail = provider(lab, Sendmail, privacy="noetrn")
    with lab.agent() as agent:
        sendmail.line.up()
        ended = agent.wait_for_round("sendmail")
        assert (ended["outcome"], answers(agent)) == ("refused", [("refused", 502)])
        agent.wait_for(lambda: "refused" in agent.warnings(), "the warning")
