"""`agent.asking`: what stands between the decision to ask and the asking."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from siteagent.agent.asking import Asker
from siteagent.config.sections import Limits, Method, Provider, Tls
from siteagent.errors import TemporaryError
from siteagent.events import BeforeAsk, Line
from siteagent.rounds.choice import Choice
from siteagent.wire.etrn import AskResult

PUBLIC = Line("eth0", "198.51.100.7")
NAME = "office.dyn.example"


def asked(
    *, line: Line = PUBLIC, found: str = "", statuses: tuple[int | None, ...] = (0,), **options: Any
) -> tuple[AskResult, list[BeforeAsk], list[tuple[str, str]]]:
    """One ask that ends where the provider's name is resolved. What the hook was told, and what was waited for."""
    told: list[BeforeAsk] = []
    waited: list[tuple[str, str]] = []

    async def before(event: BeforeAsk) -> int | None:
        told.append(event)
        return statuses[min(len(told), len(statuses)) - 1]

    async def where(name: str, address: str) -> str:
        waited.append((name, address))
        return found

    async def resolve(host: str) -> tuple[str, ...]:
        raise TemporaryError("cannot resolve it", "this is as far as the test goes")

    async def run() -> AskResult:
        provider = Provider(host="mx.isp.example", nodes=("office.example",), tls=Tls.OFF, **options)
        asker = Asker(provider, hostname="h", limits=Limits(), resolve=resolve, before=before, where=where)
        asker.delay_seconds = 0.001
        if options.get("method") is Method.ATRN:
            asker.choice = lambda: Choice(Method.ATRN, 366)
        return await asker(("office.example",), line, lambda answer: None)

    return asyncio.run(run()), told, waited


def reason(result: AskResult) -> str:
    assert result.failure is not None and result.failure.temporary
    return result.failure.reason


def test_a_name_that_leads_elsewhere_keeps_us_from_asking_and_is_tried_again() -> None:
    result, _, waited = asked(found="it leads to 192.0.2.1", wait_for_address=True, reached_as=NAME)
    assert reason(result) == f"{NAME} does not lead to 198.51.100.7 yet: it leads to 192.0.2.1"
    assert waited == [(NAME, "198.51.100.7")]


def test_a_name_that_leads_to_us_does_not() -> None:
    result, _, waited = asked(wait_for_address=True, reached_as=NAME)
    assert "as far as the test goes" in reason(result) and waited


@pytest.mark.parametrize(
    "options",
    [
        {"reached_as": NAME},
        {"wait_for_address": True},
        {"wait_for_address": True, "reached_as": NAME, "line": Line("eth0", "192.168.1.2")},
        {"wait_for_address": True, "reached_as": NAME, "method": Method.ATRN},
    ],
    ids=["not wanted", "no name", "behind a NAT", "by ATRN"],
)
def test_where_it_is_not_wanted_or_cannot_be_compared_nothing_is_waited_for(options: dict[str, Any]) -> None:
    assert asked(**options)[2] == []


def test_the_command_comes_before_the_name_is_looked_at() -> None:
    _, told, _ = asked(statuses=(75, 75, 0))
    assert [(event.provider, event.source, event.attempt) for event in told] == [
        ("mx.isp.example", "198.51.100.7", number) for number in (1, 2, 3)
    ]


def test_a_command_that_never_is_ready_delays_ten_times_and_no_more() -> None:
    result, told, _ = asked(statuses=(75,))
    assert len(told) == 10 and "as far as the test goes" in reason(result)


@pytest.mark.parametrize("status", [1, None])
def test_a_command_that_fails_or_is_not_there_delays_nothing(status: int | None) -> None:
    assert len(asked(statuses=(status,))[1]) == 1
