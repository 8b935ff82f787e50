"""Providers that connect in as no manual says, against an agent at work in this process."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests import scripted
from tests.dialogs.test_rounds import STARTED, deliver, scene
from tests.site import ALICE, Site, conversation, free_port, provider, site, write


class Caller:
    """A provider's connection to us, said line by line."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def answer(self) -> str:
        while True:
            line = (await self.reader.readline()).decode().rstrip("\r\n")
            if line[3:4] != "-":
                return line

    async def say(self, *lines: str) -> str:
        answer = ""
        for line in lines:
            self.writer.write(line.encode() + b"\r\n")
            answer = await self.answer()
        return answer

    def reset(self) -> None:
        own = self.writer.get_extra_info("socket")
        own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


ENVELOPE = ("EHLO mx.isp.example", "MAIL FROM:<a@far.example>", f"RCPT TO:<{ALICE}>", "DATA")


@asynccontextmanager
async def calling(port: int, host: str = "127.0.0.1") -> AsyncIterator[Caller]:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        yield Caller(reader, writer)
    finally:
        writer.close()


@asynccontextmanager
async def asked(
    directory: Path, dialogue: str = STARTED, *, listen: str = "127.0.0.1:0", more: str = "", **options: object
) -> AsyncIterator[Site]:
    """An agent whose provider has answered."""
    async with scripted.Provider(dialogue) as isp:
        table = provider(port=isp.port, **{"first_connection_seconds": 5, **options})
        async with site(write(directory, table, listen=[listen], more=more)) as made:
            await made.until(lambda: made.of("ask.answered"))
            yield made


@scene
async def test_mail_that_comes_and_is_over_before_etrn_is_answered_counts(tmp_path: Path) -> None:
    port = free_port()
    early = conversation(("ETRN *", "250 ok")).replace("S: 250 ok", f"{deliver(port, 2)}\n! wait 0.4\nS: 250 ok")
    async with asked(tmp_path, early, listen=f"127.0.0.1:{port}") as made:
        ended = await made.ended()
        assert (ended.outcome.value, ended.messages, len(made.filed())) == ("drained", 2, 2)


@scene
async def test_mail_hours_later_is_filed_and_ends_the_talk_of_silence(tmp_path: Path) -> None:
    port = free_port()
    late = f"{STARTED}\nC: QUIT\nS: 221 bye\n! wait 1\n{deliver(port, 2).strip()}"
    async with asked(tmp_path, late, listen=f"127.0.0.1:{port}", first_connection_seconds=0.2) as made:
        assert (await made.ended()).outcome.value == "silent"
        await made.until(lambda: made.of("warning.raised"))
        # Beside the note about the silence.
        await made.until(lambda: sum(b"Subject: message " in filed for filed in made.filed()) == 2)
        await made.until(lambda: made.of("warning.cleared"))
        assert [(event.warning, event.subject) for event in made.of("warning.cleared")] == [("silence", "isp")]
        assert {event.round for event in made.of("message.accepted")} == {None}
        assert len(made.of("round.started")) == 1


@scene
async def test_a_caller_that_says_nothing_holds_the_line_no_longer_than_a_command_may_take(tmp_path: Path) -> None:
    async with asked(tmp_path, more="[limits]\ncommand_seconds = 0.5") as made, calling(made.port) as caller:
        ended = await made.ended()
        assert (ended.outcome.value, ended.sessions) == ("incomplete", 1)
        assert b"\r\n421 " in await caller.reader.read()


@scene
async def test_a_caller_that_breaks_off_in_the_middle_and_comes_again(tmp_path: Path) -> None:
    async with asked(tmp_path, quiet_seconds=0.5) as made:
        async with calling(made.port) as caller:
            await caller.answer()
            assert (await caller.say(*ENVELOPE))[:3] == "354"
            caller.writer.write(b"Subject: half\r\n\r\nhalf of ")
            await caller.writer.drain()
            caller.reset()
        await made.bring("whole")
        ended = await made.ended()
        assert (ended.outcome.value, ended.sessions, ended.messages) == ("incomplete", 2, 1)
        assert len(made.filed()) == 1 and b"whole" in made.filed()[0]
        assert 55 < ended.next_seconds < 67


@scene
async def test_a_caller_that_comes_anew_for_each_message_is_waited_for(tmp_path: Path) -> None:
    async with asked(tmp_path, quiet_seconds=1) as made:
        for number in range(6):
            await made.bring(f"message {number}")
        ended = await made.ended()
        assert (ended.outcome.value, ended.sessions, ended.messages) == ("drained", 6, 6)
        assert len(made.of("round.started")) == 1


@scene
async def test_of_two_providers_at_one_address_nobody_is_called_silent_when_mail_came(tmp_path: Path) -> None:
    port = free_port()
    slow = STARTED.replace("S: 220", "! wait 0.1\nS: 220")
    async with scripted.Provider(STARTED) as first, scripted.Provider(slow + deliver(port, 3)) as second:
        path = write(
            tmp_path,
            provider("first", port=first.port, first_connection_seconds=0.8),
            provider("second", port=second.port, first_connection_seconds=0.8),
            listen=[f"127.0.0.1:{port}"],
        )
        async with site(path) as made:
            await made.ended(2)
            outcomes = {event.provider: (event.outcome.value, event.messages) for event in made.of("round.ended")}
            assert outcomes == {"first": ("silent", 0), "second": ("drained", 3)}
            await asyncio.sleep(0.1)  # the look after silence, had there been one
            assert made.of("warning.raised") == []


@pytest.mark.parametrize("listed", [False, True])
@scene
async def test_a_provider_that_is_asked_over_ipv4_and_pushes_over_ipv6(tmp_path: Path, listed: bool) -> None:
    more = {"peers": ["127.0.0.1", "::1"]} if listed else {}
    async with asked(tmp_path, listen="[::1]:0", first_connection_seconds=0.5, **more) as made:
        async with calling(made.port, "::1") as caller:
            greeting = await caller.answer()
            if listed:
                await caller.say(*ENVELOPE, "Subject: six\r\n\r\nhello\r\n.", "QUIT")
        ended = await made.ended()
        if listed:
            assert (ended.outcome.value, ended.messages) == ("drained", 1)
            return
        assert greeting[:3] == "421" and ended.outcome.value == "incomplete"
        assert made.of("session.refused")[0].expected == ("isp",)
        await made.until(lambda: any("::1" in event.text for event in made.of("warning.raised")))


@scene
async def test_a_caller_that_asks_us_for_mail_is_told_no_and_may_go_on(tmp_path: Path) -> None:
    async with asked(tmp_path) as made:
        async with calling(made.port) as caller:
            await caller.answer()
            await caller.say("EHLO mx.isp.example")
            for verb in ("ETRN office.example", "ATRN office.example", "TURN"):
                assert (await caller.say(verb))[:1] == "5"
            assert (await caller.say(*ENVELOPE, "Subject: x\r\n\r\nhello\r\n.", "QUIT"))[:3] == "221"
        assert ((await made.ended()).outcome.value, len(made.filed())) == ("drained", 1)


@scene
async def test_a_caller_that_hangs_up_without_quit_behind_its_250_is_no_trouble(tmp_path: Path) -> None:
    async with asked(tmp_path) as made:
        async with calling(made.port) as caller:
            await caller.answer()
            assert (await caller.say(*ENVELOPE, "Subject: x\r\n\r\nhello\r\n."))[:3] == "250"
        assert ((await made.ended()).outcome.value, len(made.filed())) == ("drained", 1)


@scene
async def test_a_caller_that_comes_for_a_chat_is_no_mail_and_no_silence(tmp_path: Path) -> None:
    async with asked(tmp_path) as made:
        async with calling(made.port) as caller:
            await caller.answer()
            await caller.say("EHLO mx.isp.example", "NOOP", "RSET", "QUIT")
        ended = await made.ended()
        assert (ended.outcome.value, ended.sessions, ended.messages) == ("drained", 1, 0)
