"""The dialect on a transport that records: what is answered, in how many segments, and what reaches the spool."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from siteagent.events import Event
from siteagent.inbound.smtp import Dialect
from tests.fakes import FakeSpool, FakeTransport, events_of, reception, session, settle

ENVELOPE = b"MAIL FROM:<a@b.example>\r\nRCPT TO:<alice@office.example>\r\n"
HELLO = b"EHLO isp.example\r\n"


class Talk:
    """One session: octets in, what came back since the last time out."""

    def __init__(self, **changes: Any) -> None:
        self.spool = FakeSpool()
        self.events: list[Event] = []
        dialect = changes.pop("dialect", Dialect)
        self.protocol, self.transport = session(reception(self.spool, self.events, **changes), dialect=dialect)

    async def __call__(self, *chunks: bytes) -> bytes:
        self.transport.segments.clear()
        for chunk in chunks:
            self.protocol.data_received(chunk)
            await settle(self.protocol)
        return self.transport.sent

    async def codes(self, *chunks: bytes) -> list[int]:
        return codes(await self(*chunks))

    def told(self, name: str) -> list[Any]:
        return events_of(self.events, name)


def codes(answers: bytes) -> list[int]:
    return [int(line[:3]) for line in answers.splitlines() if line[3:4] == b" "]


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(test())  # type: ignore[arg-type]


def test_what_ehlo_offers() -> None:
    async def test() -> None:
        assert (await Talk()(HELLO)).decode().splitlines() == [
            "250-mail.office.example",
            "250-PIPELINING",
            "250-SIZE",
            "250-8BITMIME",
            "250-SMTPUTF8",
            "250-ENHANCEDSTATUSCODES",
            "250 CHUNKING",
        ]
        assert b"250-SIZE 5000\r\n" in await Talk(listener={"max_message_bytes": 5000})(HELLO)

    run(test)


def test_the_replies_to_one_burst_leave_in_one_segment() -> None:
    async def test() -> None:
        talk = Talk()
        await talk(HELLO)
        assert len(talk.transport.segments) == 1
        assert await talk.codes(ENVELOPE + b"DATA\r\n") == [250, 250, 354]
        assert len(talk.transport.segments) == 1
        assert await talk.codes(b"hello\r\n.\r\n" + ENVELOPE + b"DATA\r\n") == [250, 250, 250, 354]
        assert len(talk.transport.segments) == 1
        assert await talk.codes(b"again\r\n.\r\nQUIT\r\n") == [250, 221]
        assert len(talk.transport.segments) == 1

    run(test)


def test_a_message_is_handed_over_with_its_envelope() -> None:
    async def test() -> None:
        talk = Talk()
        await talk(b"EHLO relay.isp.example\r\n")
        await talk(
            b"MAIL FROM:<Sender@B.example> SIZE=30 BODY=8BITMIME AUTH=<>\r\n"
            b"RCPT TO:<Alice@office.example>\r\nRCPT TO:<bob@office.example>\r\nDATA\r\n"
        )
        assert talk.protocol.progress()[:2] == (0, 30)
        await talk(b"Subject: x\r\n\r\n..dot\r\n.\r\n")
        ((envelope, content),) = talk.spool.stored
        assert content == b"Subject: x\n\n.dot\n"
        assert envelope.sender == "Sender@B.example"
        assert envelope.recipients == (("Alice@office.example", "alice"), ("bob@office.example", "bob"))
        assert (envelope.provider, envelope.round, envelope.session) == ("isp", "round-1", "id-1")
        assert (envelope.eight_bit, envelope.smtputf8) == (True, False)
        assert re.fullmatch(
            rb"Received: from relay.isp.example \(\[192.0.2.9\]\)\n"
            rb"\tby mail.office.example with ESMTP id id-2;\n"
            rb"\t.*\n",
            envelope.received,
        )
        (accepted,) = talk.told("message.accepted")
        assert accepted.message == envelope.message == "id-2"
        assert accepted.recipients == ("Alice@office.example", "bob@office.example")
        assert (accepted.bytes, accepted.wire_bytes) == (len(content), len(b"Subject: x\r\n\r\n..dot\r\n.\r\n"))

    run(test)


def test_a_lone_recipient_is_named_in_received_and_two_are_not() -> None:
    async def test() -> None:
        talk = Talk()
        await talk(HELLO, ENVELOPE, b"DATA\r\n", b".\r\n")
        await talk(ENVELOPE + b"RCPT TO:<bob@office.example>\r\nDATA\r\n", b".\r\n")
        assert [b"for <" in envelope.received for envelope, _ in talk.spool.stored] == [True, False]

    run(test)


@pytest.mark.parametrize(
    ("hello", "mail", "word"),
    [(b"HELO", b"", b"SMTP"), (b"EHLO", b"", b"ESMTP"), (b"EHLO", b" SMTPUTF8", b"UTF8SMTP")],
)
def test_the_word_after_with_tells_how_it_came(hello: bytes, mail: bytes, word: bytes) -> None:
    async def test() -> None:
        talk = Talk()
        await talk(hello + b" isp.example\r\n", b"MAIL FROM:<a@b.example>" + mail + b"\r\n")
        await talk(b"RCPT TO:<alice@office.example>\r\n", b"DATA\r\n", b".\r\n")
        assert b" with " + word + b" id " in talk.spool.stored[0][0].received

    run(test)


def test_the_null_sender_and_postmaster_without_a_domain_are_taken() -> None:
    async def test() -> None:
        talk = Talk()
        assert (await talk.codes(HELLO, b"MAIL FROM:<>\r\n", b"RCPT TO:<Postmaster>\r\n", b"DATA\r\n", b"x\r\n.\r\n"))[
            -1
        ] == 250
        envelope, _ = talk.spool.stored[0]
        assert (envelope.sender, envelope.recipients) == ("", (("Postmaster", "alice"),))

    run(test)


def test_smtputf8_addresses_are_taken_where_they_are_announced() -> None:
    async def test() -> None:
        talk = Talk(route=lambda address: "alice")
        await talk(HELLO, "MAIL FROM:<jörg@müller.example> SMTPUTF8\r\nRCPT TO:<ålice@office.example>\r\n".encode())
        await talk(b"DATA\r\n", b"x\r\n.\r\n")
        envelope, _ = talk.spool.stored[0]
        assert (envelope.sender, envelope.smtputf8) == ("jörg@müller.example", True)

    run(test)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (b"MAIL FROM:<a@b.example>\r\n", 503),
        (HELLO + b"RCPT TO:<alice@office.example>\r\n", 503),
        (HELLO + b"DATA\r\n", 503),
        (HELLO + b"MAIL FROM:<a@b.example>\r\nDATA\r\n", 503),
        (HELLO + b"MAIL FROM:<a@b.example>\r\nMAIL FROM:<a@b.example>\r\n", 503),
        (HELLO + b"MAIL\r\n", 501),
        (HELLO + b"MAIL TO:<a@b.example>\r\n", 501),
        (HELLO + b"MAIL FROM:<a@b.example> BODY=BINARYMIME\r\n", 501),
        (HELLO + b"MAIL FROM:<a@b.example> RET=HDRS\r\n", 555),
        (HELLO + ENVELOPE[:25] + b"RCPT TO:<alice@office.example> NOTIFY=NEVER\r\n", 555),
        (b"HELO x\r\nMAIL FROM:<a@b.example> SIZE=5\r\n", 555),
        (HELLO + ENVELOPE + b"DATA now\r\n", 501),
        (b"EHLO\r\n", 501),
        (b"EHLO \x01\r\n", 501),
        (b"HELO\r\n", 501),
        (b"QUIT now\r\n", 501),
        (b"RSET now\r\n", 501),
        (b"ETRN x.example\r\n", 500),
        (b"AUTH PLAIN\r\n", 500),
        (b"EXPN list\r\n", 502),
        (b"\r\n", 500),
        (b"\xff\xfe x\r\n", 500),
        (b"VRFY alice\r\n", 252),
        (b"HELP\r\n", 214),
        (b"STARTTLS\r\n", 454),
    ],
)
def test_the_reply_to_the_last_of_these(lines: bytes, expected: int) -> None:
    async def test() -> None:
        assert (await Talk().codes(lines))[-1] == expected

    run(test)


def test_ehlo_in_the_middle_resets_the_transaction() -> None:
    async def test() -> None:
        talk = Talk()
        assert (await talk.codes(HELLO + ENVELOPE + HELLO + b"DATA\r\n"))[-1] == 503

    run(test)


def test_verbs_and_keywords_have_no_case() -> None:
    async def test() -> None:
        talk = Talk()
        lines = (HELLO + ENVELOPE).lower() + b"data\r\n"
        assert await talk.codes(lines) == [250, 250, 250, 354]

    run(test)


# --- BDAT -------------------------------------------------------------------------------------------------------------


def test_bdat_in_one_burst_needs_one_round_trip() -> None:
    async def test() -> None:
        talk = Talk()
        await talk(HELLO)
        assert await talk.codes(ENVELOPE + b"BDAT 8 LAST\r\n.\r\nhi\r\n" + b"\n" + b"QUIT\r\n") == [250, 250, 250, 221]
        assert talk.spool.contents == [b".\nhi\n\n"]
        assert len(talk.transport.segments) == 1

    run(test)


@pytest.mark.parametrize("step", [1, 3, 100])
def test_bdat_in_chunks_however_they_are_cut(step: int) -> None:
    stream = ENVELOPE + b"BDAT 5\r\none\r\nBDAT 0\r\nBDAT 6\r\n\r\ntwo\rBDAT 1 LAST\r\n\nNOOP\r\n"

    async def test() -> None:
        talk = Talk()
        await talk(HELLO)
        assert await talk.codes(*(stream[i : i + step] for i in range(0, len(stream), step))) == [250] * 7
        assert talk.spool.contents == [b"one\n\ntwo\n"]

    run(test)


def test_bdat_last_of_nothing_ends_the_message() -> None:
    async def test() -> None:
        talk = Talk()
        assert (await talk.codes(HELLO + ENVELOPE + b"BDAT 3\r\nabcBDAT 0 LAST\r\n"))[-1] == 250
        assert talk.spool.contents == [b"abc"]

    run(test)


@pytest.mark.parametrize(
    ("front", "code"),
    [
        (b"", 503),
        (b"MAIL FROM:<a@b.example>\r\n", 503),
        (b"MAIL FROM:<a@b.example>\r\nRCPT TO:<nobody@office.example>\r\n", 554),
    ],
)
def test_the_octets_of_a_chunk_that_nobody_wants_are_not_read_as_commands(front: bytes, code: int) -> None:
    async def test() -> None:
        talk = Talk()
        await talk(HELLO)
        assert (await talk.codes(front + b"BDAT 6 LAST\r\nQUIT\r\nNOOP\r\n"))[-2:] == [code, 250]
        assert not talk.spool.stored

    run(test)


@pytest.mark.parametrize("argument", [b"", b" x", b" 5 FIRST", b" -1", b" 5LAST"])
def test_bdat_without_a_size_ends_the_session(argument: bytes) -> None:
    async def test() -> None:
        talk = Talk()
        assert (await talk.codes(HELLO + ENVELOPE + b"BDAT" + argument + b"\r\nQUIT\r\n"))[-1] == 501
        assert talk.transport.eof

    run(test)


def test_a_refused_chunk_fails_the_message_and_the_session_goes_on() -> None:
    async def test() -> None:
        talk = Talk(listener={"max_message_bytes": 10})
        await talk(HELLO)
        answers = await talk.codes(ENVELOPE + b"BDAT 20\r\n" + b"x" * 20 + b"BDAT 6 LAST\r\nQUIT\r\n" + b"NOOP\r\n")
        assert answers == [250, 250, 552, 503, 250]
        assert len(talk.told("message.refused")) == 1

    run(test)


def test_data_and_rcpt_are_refused_between_chunks() -> None:
    async def test() -> None:
        talk = Talk()
        lines = HELLO + ENVELOPE + b"BDAT 1\r\na" + b"DATA\r\n" + b"RCPT TO:<bob@office.example>\r\nBDAT 1 LAST\r\nb"
        assert (await talk.codes(lines))[-3:] == [503, 503, 250]
        assert talk.spool.contents == [b"ab"]

    run(test)


# --- however it is cut ------------------------------------------------------------------------------------------------

SESSION = (
    HELLO
    + ENVELOPE
    + b"DATA\r\nSubject: a\r\n\r\n..x\r\nbare\nlf\r\n.\r\n"
    + ENVELOPE
    + b"RCPT TO:<nobody@office.example>\r\nBDAT 9\r\nQUIT\r\n.\r\nBDAT 2 LAST\r\n\r\n"
    + b"FROB\r\nRSET\r\nNOOP\r\n"
    + b"MAIL FROM:<\r\n"
    + b"x" * 2500
    + b"\r\nQUIT\r\n"
)


def play(chunks: list[bytes]) -> tuple[bytes, list[bytes]]:
    answers = b""
    contents: list[bytes] = []

    async def test() -> None:
        nonlocal answers
        talk = Talk()
        answers = await talk(*chunks)
        contents.extend(talk.spool.contents)

    run(test)
    return answers, contents


def test_byte_by_byte_is_answered_like_at_once() -> None:
    at_once = play([SESSION])
    assert codes(at_once[0])[-1] == 221
    assert len(at_once[1]) == 2
    assert play([bytes([octet]) for octet in SESSION]) == at_once


@given(st.lists(st.integers(0, len(SESSION)), max_size=15))
def test_any_cuts_are_answered_like_at_once(cuts: list[int]) -> None:
    points = sorted({0, len(SESSION), *cuts})
    chunks = [SESSION[a:b] for a, b in pairwise(points)]
    assert play(chunks) == play([SESSION])


WORDS = [
    b"MAIL FROM:<a@b.example>",
    b"RCPT TO:<alice@office.example>",
    b"DATA",
    b"BDAT 3",
    b"BDAT 2 LAST",
    b"RSET",
    b"\r\n",
]
WORDS += [
    b"EHLO x",
    b".",
    b"QUIT",
    b"\0",
    b"\xff",
    b"<",
    b" ",
    b"NOOP",
    b"\r",
    b"\n",
    b"STARTTLS",
    b"SIZE=",
    b"abc",
    b"VRFY x",
]


@given(st.lists(st.sampled_from(WORDS), max_size=40), st.booleans())
def test_whatever_comes_every_reply_is_well_formed_and_nothing_is_raised(words: list[bytes], lines: bool) -> None:
    troubles: list[Any] = []

    async def test() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: troubles.append(context))
        talk = Talk()
        answers = await talk(HELLO, *((word + b"\r\n" if lines else word) for word in words))
        for line in answers.splitlines():
            assert re.fullmatch(rb"[2-5][0-9]{2}[ -][ -~]*", line)
        assert answers == b"" or answers.endswith(b"\r\n")

    run(test)
    assert not troubles


# --- events -----------------------------------------------------------------------------------------------------------


async def ended(talk: Talk) -> Any:
    if not talk.transport.closed:
        talk.transport.close()
    while not talk.told("session.closed"):
        await asyncio.sleep(0)
    return talk.told("session.closed")[0]


@pytest.mark.parametrize(
    ("lines", "clean", "reason"),
    [
        ([HELLO, b"QUIT\r\n"], True, "quit"),
        ([b"QUIT\r\n"], True, "quit"),
        ([HELLO], True, "hung up"),
        ([HELLO, ENVELOPE], False, "hung up in a message"),
        ([HELLO, ENVELOPE, b"DATA\r\n", b"half"], False, "hung up in a message"),
        ([HELLO, ENVELOPE, b"DATA\r\n", b"x\r\n.\r\n"], True, "hung up"),
        ([HELLO, b"MAIL FROM:<a@b.example>\r\nRCPT TO:<nobody@office.example>\r\nRSET\r\nQUIT\r\n"], True, "quit"),
    ],
)
def test_how_a_session_ended(lines: list[bytes], clean: bool, reason: str) -> None:
    async def test() -> None:
        talk = Talk()
        await talk(*lines)
        closed = await ended(talk)
        assert (closed.clean, closed.reason) == (clean, reason)

    run(test)


def test_an_answer_of_4yz_makes_a_session_unclean() -> None:
    async def test() -> None:
        talk = Talk()
        talk.spool.has_room = False
        await talk(HELLO, b"MAIL FROM:<a@b.example>\r\n", b"QUIT\r\n")
        assert (await ended(talk)).clean is False

    run(test)


def test_a_session_counts_what_it_brought() -> None:
    async def test() -> None:
        talk = Talk()
        octets = HELLO + ENVELOPE + b"DATA\r\n"
        answers = await talk(octets)
        answers += await talk(b"hello\r\n.\r\nQUIT\r\n")
        closed = await ended(talk)
        greeting = len(b"220 mail.office.example ESMTP\r\n")
        assert (closed.messages, closed.bytes) == (1, 6)
        assert closed.wire_bytes == len(octets) + len(b"hello\r\n.\r\nQUIT\r\n") + len(answers) + greeting

    run(test)


def test_what_a_recipient_has_already_is_told_as_a_duplicate() -> None:
    async def test() -> None:
        talk = Talk()
        import hashlib

        talk.spool.known = {("a@b.example", "alice@office.example", hashlib.sha256(b"x\n").digest())}
        await talk(HELLO)
        lines = ENVELOPE + b"RCPT TO:<bob@office.example>\r\nDATA\r\n"
        assert (await talk.codes(lines, b"x\r\n.\r\n"))[-1] == 250
        (duplicate,) = talk.told("message.duplicate")
        (accepted,) = talk.told("message.accepted")
        assert (duplicate.recipients, duplicate.first) == (("alice@office.example",), "first-id")
        assert (accepted.recipients, accepted.message) == (("bob@office.example",), duplicate.message)
        assert (await talk.codes(ENVELOPE + b"DATA\r\n", b"x\r\n.\r\n"))[-1] == 250
        assert len(talk.told("message.accepted")) == 1

    run(test)


def test_quit_behind_the_dot_does_not_make_up_for_a_connection_that_was_lost_before_our_250() -> None:
    async def test() -> None:
        talk = Talk()
        talk.spool.gate = asyncio.Event()
        await talk(HELLO, ENVELOPE, b"DATA\r\n")
        talk.protocol.data_received(b"x\r\n.\r\nQUIT\r\n")
        await asyncio.sleep(0)
        talk.protocol.connection_lost(ConnectionResetError("reset"))
        assert not talk.told("session.closed")
        talk.spool.gate.set()
        closed = await ended(talk)
        assert (closed.messages, closed.clean, closed.reason) == (1, False, "connection lost: reset")

    run(test)


# --- for subclasses ---------------------------------------------------------------------------------------------------


class Wider(Dialect):
    verb_HELP = None  # type: ignore[assignment]

    async def smtp_ASK(self, argument: str | None) -> None:
        await self.push(f"250 you said {argument}")
        line = await self.read_line()
        await self.push(f"250 and {line.decode()}")

    async def smtp_FAIL(self, argument: str | None) -> None:
        raise RuntimeError("secret")


def test_a_subclass_adds_verbs_that_wait_and_takes_others_away() -> None:
    async def test() -> None:
        talk = Talk(dialect=Wider)
        answers = await talk(HELLO, b"ASK  me \r\n", b"this", b"\r\nNOOP\r\nHELP\r\n")
        assert answers.splitlines()[-4:-2] == [b"250 you said me", b"250 and this"]
        assert codes(answers)[-2:] == [250, 500]
        assert await talk.codes(b"ASK a\r\nthat\r\nNOOP\r\n") == [250, 250, 250]

    run(test)


def test_a_verb_of_a_subclass_that_fails_is_451() -> None:
    async def test() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        talk = Talk(dialect=Wider)
        assert (await talk(b"FAIL\r\n")).startswith(b"451 4.3.0 something")
        assert await talk.codes(b"NOOP\r\n") == [250]

    run(test)


def test_a_peer_that_goes_while_a_verb_waits_for_its_line_ends_the_session() -> None:
    async def test() -> None:
        talk = Talk(dialect=Wider)
        await talk(b"ASK x\r\n")
        talk.protocol.connection_lost(None)
        assert (await ended(talk)).reason == "hung up"

    run(test)


def test_aiosmtpd_auth_methods_work_in_a_subclass() -> None:
    from aiosmtpd.smtp import SMTP, AuthResult

    class Trusted(Dialect):
        def _authenticator(self, *told: Any) -> AuthResult:  # type: ignore[override]
            return AuthResult(success=told[-1].password == b"secret")

        async def smtp_AUTH(self, arg: str | None) -> None:
            result = await SMTP.auth_PLAIN(self, self, [arg or ""])  # type: ignore[no-untyped-call]
            await self.push("235 welcome" if result.success else "535 no")

    async def test() -> None:
        talk = Talk(dialect=Trusted)
        assert await talk(b"AUTH PLAIN\r\n") == b"334 \r\n"
        assert await talk(b"AGFsaWNlAHNlY3JldA==\r\n") == b"235 welcome\r\n"

    run(test)


def test_the_transport_can_be_given_away_with_what_nobody_read() -> None:
    class Turning(Dialect):
        async def smtp_ATRN(self, argument: str | None) -> None:
            await self.push("250 turn")
            Turning.taken = self.detach()

    async def test() -> None:
        talk = Talk(dialect=Turning)
        assert await talk(b"ATRN x.example\r\n220 customer ready\r\n") == b"250 turn\r\n"
        transport, rest = Turning.taken  # type: ignore[attr-defined]
        assert isinstance(transport, FakeTransport)
        assert (rest, transport.closed) == (b"220 customer ready\r\n", False)
        assert talk.told("session.closed")[0].reason == "turned"

    run(test)


# --- flow -------------------------------------------------------------------------------------------------------------


def test_a_peer_that_does_not_read_is_not_read_from() -> None:
    async def test() -> None:
        talk = Talk()
        await talk(HELLO)
        talk.protocol.pause_writing()
        assert await talk(b"NOOP\r\n" * 5) == b""
        assert not talk.transport.reading
        talk.protocol.resume_writing()
        await settle(talk.protocol)
        assert talk.transport.reading
        assert codes(talk.transport.sent) == [250] * 5

    run(test)


def test_a_spool_that_is_behind_stops_the_reading_until_it_has_caught_up() -> None:
    async def test() -> None:
        talk = Talk()
        await talk(HELLO, ENVELOPE, b"DATA\r\n")
        (writer,) = talk.spool.writers
        writer.backlog = 600_000
        await talk(b"x" * 1000)
        assert not talk.transport.reading
        await talk(b"late\r\n.\r\nQUIT\r\n")
        assert not talk.spool.stored
        writer.backlog = 0
        assert writer.on_drained is not None
        writer.on_drained()
        await settle(talk.protocol)
        await settle(talk.protocol)
        assert talk.spool.contents == [b"x" * 1000 + b"late\n"]
        assert codes(talk.transport.sent)[-2:] == [250, 221]

    run(test)


def test_a_half_close_behind_a_long_burst_waits_for_its_turn() -> None:
    async def test() -> None:
        talk = Talk()
        burst = b"MAIL FROM:<a@b.example>\r\n" + b"RCPT TO:<alice@office.example>\r\n" * 900 + b"BDAT 2 LAST\r\nhi"
        talk.protocol.data_received(HELLO + burst)
        assert talk.protocol.eof_received() is True
        while not talk.told("session.closed"):
            await asyncio.sleep(0)
        assert talk.spool.contents == [b"hi"]
        assert codes(talk.transport.sent)[-1] == 250

    run(test)


def test_a_long_burst_leaves_the_others_their_turn() -> None:
    async def test() -> None:
        talk = Talk()
        await talk(HELLO + b"MAIL FROM:<a@b.example>\r\n")
        turns = 0

        async def other() -> None:
            nonlocal turns
            while len(codes(talk.transport.sent)) < 3000:
                turns += 1
                await asyncio.sleep(0)

        talk.transport.segments.clear()
        task = asyncio.create_task(other())
        talk.protocol.data_received(b"RCPT TO:<alice@office.example>\r\n" * 3000)
        await task
        assert turns >= 5

    run(test)
