"""`uplink.trial`: hands over one message as a stranger would."""

from __future__ import annotations

import asyncio

import pytest
from siteagent.errors import ExitCode
from siteagent.uplink.broken import Broken
from siteagent.uplink.trial import hand_over
from siteagent.wire.reply import Reply
from tests import scripted
from tests.asking import HOST, LINE, limits, section

HELLO = "S: 220 mx\nC: EHLO *\nS: 250-mx\nS: 250 AUTH PLAIN\n"
ENVELOPE = "C: MAIL FROM:<>\nS: 250 ok\nC: RCPT TO:<alice@office.example>\nS: 250 ok\nC: DATA\nS: 354 go\n"
MESSAGE = b"Subject: trial\n\n.dot\nend"


def handed(script: str, **options: str) -> tuple[Reply, scripted.Provider]:
    async def scene() -> tuple[Reply, scripted.Provider]:
        async with scripted.Provider(script) as server:
            given = {"sender": "", "recipient": "alice@office.example", **options}
            reply = await hand_over(
                section(server.port, tls="off", username="office"),
                line=LINE,
                addresses=(HOST,),
                hostname="mail.office.example",
                limits=limits(),
                tls=None,
                message=MESSAGE,
                **given,
            )
            await server.settled()
            return reply, server

    return asyncio.run(scene())


def test_the_message_travels_with_dots_stuffed_and_without_a_login() -> None:
    body = "C: Subject: trial\nC:\nC: ..dot\nC: end\nC: .\nS: 250 2.0.0 queued as 1\nC: QUIT\nS: 221 bye"
    reply, server = handed(HELLO + ENVELOPE + body)
    assert server.problems == []
    assert reply == Reply(250, "2.0.0", "queued as 1")


@pytest.mark.parametrize(
    ("script", "stage"),
    [
        ("C: MAIL *\nS: 550 no", "mail"),
        ("C: MAIL *\nS: 250 ok\nC: RCPT *\nS: 550 5.7.1 relaying denied", "rcpt"),
        ("C: MAIL *\nS: 250 ok\nC: RCPT *\nS: 450 greylisted", "rcpt"),
        ("C: MAIL *\nS: 250 ok\nC: RCPT *\nS: 250 ok\nC: DATA\nS: 554 no", "data"),
    ],
)
def test_a_refusal_names_its_stage_and_a_fix(script: str, stage: str) -> None:
    with pytest.raises(Broken) as caught:
        handed(HELLO + script)
    temporary = "450" in script
    assert (caught.value.stage, caught.value.temporary) == (stage, temporary)
    assert caught.value.exit_code is (ExitCode.TEMPORARY if temporary else ExitCode.UNAVAILABLE)
    assert caught.value.fix


def test_a_refused_message_is_stage_data() -> None:
    with pytest.raises(Broken) as caught:
        handed(HELLO + ENVELOPE + "C: *\nC: *\nC: *\nC: *\nC: .\nS: 552 too big")
    assert (caught.value.stage, caught.value.code) == ("data", 552)


@pytest.mark.parametrize("recipient", ["a@b\r\nQUIT", "a b@c", "a>@b", "ä@b"])
def test_an_address_that_cannot_stand_in_a_command_is_not_sent(recipient: str) -> None:
    with pytest.raises(ValueError, match="cannot stand"):
        handed(HELLO, recipient=recipient)
