"""ATRN on the wire (RFC 2645)."""

from __future__ import annotations

import pytest
from siteagent.events import NodeOutcome
from siteagent.wire import atrn
from siteagent.wire.etrn import GoOn
from siteagent.wire.reply import Reply


@pytest.mark.parametrize(
    ("code", "outcome", "go_on"),
    [
        (250, NodeOutcome.STARTED, GoOn.NEXT_NODE),
        (252, NodeOutcome.UNKNOWN, GoOn.STOP),
        (354, NodeOutcome.UNKNOWN, GoOn.STOP),
        (421, NodeOutcome.RETRY, GoOn.STOP),
        (450, NodeOutcome.RETRY, GoOn.NEXT_NODE),
        (451, NodeOutcome.RETRY, GoOn.NEXT_NODE),
        (453, NodeOutcome.NOTHING, GoOn.NEXT_NODE),
        (459, NodeOutcome.RETRY, GoOn.NEXT_NODE),
        (500, NodeOutcome.REFUSED, GoOn.STOP),
        (502, NodeOutcome.REFUSED, GoOn.STOP),
        (530, NodeOutcome.REFUSED, GoOn.STOP),
        (550, NodeOutcome.REFUSED, GoOn.NEXT_NODE),
    ],
)
def test_every_code_has_its_meaning_and_its_next_step(code: int, outcome: NodeOutcome, go_on: GoOn) -> None:
    verdict = atrn.verdict(Reply(code, "", "whatever"))
    assert (verdict.outcome, verdict.go_on) == (outcome, go_on)
    assert verdict.meaning


@pytest.mark.parametrize("name", ["office.example", "a-b.c1.example"])
def test_a_plain_domain_can_be_asked_for(name: str) -> None:
    assert atrn.sendable(name)


@pytest.mark.parametrize(
    "name", ["@office.example", "#office", "office", "a b.example", "a,b.example", "-a.example", ""]
)
def test_anything_else_cannot(name: str) -> None:
    assert not atrn.sendable(name)


def test_domains_share_a_command_as_far_as_its_512_octets_go() -> None:
    domains = [f"site{n:03}.some-long-domain.example" for n in range(60)]
    commands = atrn.commands(domains)
    assert [domain for command in commands for domain in command] == domains
    assert all(len(f"ATRN {','.join(command)}\r\n") <= 512 for command in commands)
    assert len(commands) == 4
