"""The talk with a provider that asks for nothing, against scripted servers."""

from __future__ import annotations

import asyncio

from siteagent.config.sections import Limits, Provider
from siteagent.doctor.survey import NO_NODE, Survey, survey
from tests.scripted import Provider as Scripted
from tests.scripted import dialogue

LIMITS = Limits(connect_seconds=5, command_seconds=2, etrn_reply_seconds=1)


def looked_at(text: str) -> tuple[Survey, list[str]]:
    async def work() -> tuple[Survey, list[str]]:
        async with Scripted(dialogue(text)) as server:
            provider = Provider(name="isp", host="127.0.0.1", nodes=("office.example",), port=server.port)
            found = await survey(
                provider, addresses=["127.0.0.1"], line=None, hostname="here.example", password=None, limits=LIMITS
            )
            return found, server.commands

    return asyncio.run(work())


GREETING = "S: 220 mx.isp.example ESMTP Exim 4.99\nC: EHLO *\n"


def test_software_offers_and_our_own_address_are_seen_and_no_queue_is_started() -> None:
    found, commands = looked_at(
        f"{GREETING}S: 250-mx.isp.example Hello here.example [203.0.113.7]\nS: 250-SIZE 1000\nS: 250 ETRN\n"
        f"C: ETRN {NO_NODE}\nS: 459 not allowed"
    )
    assert (found.software, found.seen_as, found.knows_etrn) == ("Exim", "203.0.113.7", True)
    assert not found.refuses_us and not found.wants_login and found.error is None
    assert [command for command in commands if command.startswith("ETRN")] == [f"ETRN {NO_NODE}"]


def test_a_server_that_lists_etrn_and_does_not_know_it_does_not_know_it() -> None:
    found, _ = looked_at(f"{GREETING}S: 250-mx\nS: 250 ETRN\nC: ETRN *\nS: 502 not implemented")
    assert not found.knows_etrn


def test_a_refusal_of_our_address_at_the_greeting_is_told_with_its_words() -> None:
    found, _ = looked_at("S: 554 5.7.1 your address is on a list")
    assert found.error is not None and "your address is on a list" in found.error.why
    assert found.error.fix


def test_a_server_that_says_nothing_to_the_question_is_an_error_and_not_a_wait() -> None:
    found, _ = looked_at(f"{GREETING}S: 250 mx\nC: ETRN *\n! silent")
    assert found.error is not None and found.etrn is None


def test_nobody_there_is_told() -> None:
    provider = Provider(name="isp", host="127.0.0.1", nodes=("office.example",), port=1)
    found = asyncio.run(
        survey(provider, addresses=["127.0.0.1"], line=None, hostname="h.example", password=None, limits=LIMITS)
    )
    assert found.error is not None and found.error.stage == "connect"
