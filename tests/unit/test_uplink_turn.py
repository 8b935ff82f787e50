"""ATRN, our side: the connection is handed over at the octet where the 250 ended."""

from __future__ import annotations

import asyncio
import ssl
import sys
from functools import cache

import pytest
import trustme
from siteagent.config.sections import Auth, Limits, Method, Provider, Tls
from siteagent.events import NodeOutcome
from siteagent.inbound.reception import Owner
from siteagent.inbound.smtp import Dialect
from siteagent.uplink.turn import Turned, turn
from siteagent.wire.etrn import AskResult, NodeAnswer
from tests.fakes import FakeSpool, reception


@cache
def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A provider's and ours that trusts it."""
    authority = trustme.CA()
    offered, trusted = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(offered)
    authority.configure_trust(trusted)
    return offered, trusted


class Provided:
    """A provider on loopback, played by a function; what came after the turn is recorded."""

    def __init__(self, after: list[str], *, chop: int = 0, leaves: bool = False) -> None:
        self._after = after
        self._chop = chop
        self._leaves = leaves
        self.heard: list[str] = []
        self.connections = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        writer.write(b"220 mx.example ESMTP\r\n")
        try:
            while True:
                line = (await reader.readuntil(b"\r\n")).decode().rstrip("\r\n")
                self.heard.append(line)
                if line.startswith("EHLO"):
                    writer.write(b"250-mx.example\r\n250-AUTH PLAIN\r\n250 ATRN\r\n")
                elif line.startswith("AUTH"):
                    writer.write(b"235 ok\r\n")
                elif line == "QUIT":
                    writer.write(b"221 bye\r\n")
                    break
                elif line.startswith("ATRN"):
                    answer = self._after.pop(0)
                    if answer == "hang up":
                        break
                    octets = answer.encode()
                    for at in range(0, len(octets), self._chop or len(octets)):
                        writer.write(octets[at : at + (self._chop or len(octets))])
                        await writer.drain()
                        if self._chop:
                            await asyncio.sleep(0.002)
                    if self._leaves:
                        await asyncio.sleep(0.05)
                        break
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        writer.close()


class Result:
    def __init__(self, result: AskResult, spool: FakeSpool, provided: Provided, events: list, told: list) -> None:
        self.result, self.spool, self.provided, self.events, self.told = result, spool, provided, events, told

    @property
    def outcomes(self) -> list[tuple[str, str, int | None]]:
        return [(answer.node, answer.outcome.value, answer.code) for answer in self.result.answers]


def asked(
    after: list[str],
    nodes: tuple[str, ...] = ("office.example",),
    *,
    chop: int = 0,
    leaves: bool = False,
    verified: bool = True,
    limits: Limits | None = None,
    username: str | None = "office",
) -> Result:
    async def run() -> Result:
        provided = Provided(after, chop=chop, leaves=leaves)
        offered, trusted = contexts() if verified else (None, None)
        server = await asyncio.start_server(provided, "127.0.0.1", 0, ssl=offered)
        provider = Provider(
            host="127.0.0.1",
            port=server.sockets[0].getsockname()[1],
            nodes=nodes,
            name="isp",
            method=Method.ATRN,
            username=username,
            auth=Auth.PLAIN,
            tls=Tls.IMPLICIT if verified else Tls.OFF,
        )
        spool, events, told = FakeSpool(), [], list[NodeAnswer]()
        sessions: list[asyncio.Future[None]] = []

        def receive() -> Turned:
            over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            sessions.append(over)
            session = Dialect(reception(spool, events), reversed_session=True, owner=Owner(provider="isp", round="r1"))
            session.on_end = lambda session: over.set_result(None)
            return Turned(session, over)

        result = await turn(
            provider,
            nodes,
            line=None,
            addresses=("127.0.0.1",),
            hostname="mail.office.example",
            limits=limits or Limits(),
            password="sesame",
            tls=trusted,
            on_answer=told.append,
            receive=receive,
        )
        for over in sessions:
            await asyncio.wait_for(over, 5)
        server.close()
        return Result(result, spool, provided, events, told)

    return asyncio.run(run())


MAIL = (
    "EHLO mx.example\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<alice@office.example>\r\nDATA\r\n"
    "Subject: hi\r\n\r\n..dot\r\n.\r\nQUIT\r\n"
)


def test_after_the_250_we_are_the_server_and_the_mail_is_taken() -> None:
    found = asked(["250 turning\r\n" + MAIL])
    assert found.outcomes == [("office.example", "started", 250)]
    assert found.spool.contents == [b"Subject: hi\n\n.dot\n"]
    assert found.result.failure is None


@pytest.mark.parametrize("chop", [1, 2, 3, 7, 16, 61])
def test_no_octet_is_lost_or_left_however_it_is_cut(chop: int) -> None:
    found = asked(["250-turning\r\n250 now\r\n" + MAIL], chop=chop)
    assert found.spool.contents == [b"Subject: hi\n\n.dot\n"]


def test_the_session_counts_for_the_provider_and_its_round() -> None:
    found = asked(["250 ok\r\n" + MAIL])
    opened, *_, closed = found.events
    assert (opened.name, opened.provider, opened.round) == ("session.opened", "isp", "r1")
    assert (closed.name, closed.clean, closed.messages) == ("session.closed", True, 1)


def test_quit_as_the_first_command_is_an_end_in_order() -> None:
    found = asked(["250 ok\r\nQUIT\r\n"])
    assert found.events[-1].clean


def test_turned_and_hung_up_without_quit_is_no_end_in_order() -> None:
    assert not asked(["250 ok\r\nEHLO mx.example\r\n"], leaves=True).events[-1].clean


def test_s44_the_turned_session_offers_no_starttls_auth_etrn_or_atrn() -> None:
    session_lines: list[str] = []

    async def run() -> None:
        dialect = Dialect(reception(FakeSpool(), []), reversed_session=True)
        session_lines.extend(dialect.keywords())

    asyncio.run(run())
    assert not {"STARTTLS", "AUTH", "ETRN", "ATRN"} & {line.partition(" ")[0] for line in session_lines}


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        ("453 You have no mail", NodeOutcome.NOTHING),
        ("450 no", NodeOutcome.RETRY),
        ("451 later", NodeOutcome.RETRY),
        ("530 log in", NodeOutcome.REFUSED),
        ("502 no", NodeOutcome.REFUSED),
        ("421 bye", NodeOutcome.RETRY),
    ],
)
def test_a_refusal_leaves_the_client_in_step(answer: str, outcome: NodeOutcome) -> None:
    found = asked([answer + "\r\n"])
    assert [given.outcome for given in found.result.answers] == [outcome]
    assert found.provided.heard[-1] == "QUIT" or answer.startswith("421")
    assert found.told == list(found.result.answers)


def test_one_domain_that_is_not_ours_does_not_keep_the_others_from_being_asked() -> None:
    found = asked(
        ["450 no\r\n", "453 no mail\r\n", "450 no\r\n", "250 ok\r\n" + MAIL],
        ("a.example", "b.example", "office.example"),
    )
    assert found.outcomes == [
        ("a.example", "nothing", 453),
        ("b.example", "retry", 450),
        ("office.example", "started", 250),
    ]
    assert [line for line in found.provided.heard if line.startswith("ATRN")] == [
        "ATRN a.example,b.example,office.example",
        "ATRN a.example",
        "ATRN b.example",
        "ATRN office.example",
    ]


def test_a_refusal_that_is_about_the_server_is_not_asked_again_domain_by_domain() -> None:
    found = asked(["450 4.3.2 too many requests\r\n"], ("a.example", "b.example"))
    assert found.outcomes == [("a.example", "retry", 450), ("b.example", "retry", 450)]
    assert [line for line in found.provided.heard if line.startswith("ATRN")] == ["ATRN a.example,b.example"]


def test_what_is_left_is_asked_on_another_connection_behind_the_first_session() -> None:
    nodes = tuple(f"site{n:03}.some-long-domain.example" for n in range(20))
    found = asked(["250 ok\r\nQUIT\r\n", "250 ok\r\nQUIT\r\n"], nodes)
    assert found.provided.connections == 2
    assert [outcome for _, outcome, _ in found.outcomes] == ["started"] * 20


def test_a_name_that_atrn_cannot_carry_is_told_and_the_others_are_asked() -> None:
    found = asked(["453 no\r\n"], ("#queue", "office.example"))
    assert found.outcomes == [("#queue", "refused", None), ("office.example", "nothing", 453)]


def test_s42_nothing_is_sent_where_nobody_was_verified() -> None:
    found = asked([], verified=False)
    assert found.result.failure is not None
    assert found.result.failure.stage == "auth"
    assert not any(line.startswith(("AUTH", "ATRN")) for line in found.provided.heard)


def test_s42_without_a_login_no_atrn_is_sent() -> None:
    found = asked([], username=None)
    assert found.result.failure is not None
    assert not any(line.startswith("ATRN") for line in found.provided.heard)


@pytest.mark.parametrize("answer", ["2X0 ok\r\n", "250\x00ok\r\n", "25\r\n", "250OK\r\n"])
def test_s40_what_is_no_reply_turns_nothing(answer: str) -> None:
    found = asked([answer])
    assert found.result.failure is not None
    assert [outcome for _, outcome, _ in found.outcomes] == ["unknown"]
    assert found.events == []


def test_only_250_turns() -> None:
    found = asked(["252 ok\r\n"])
    assert found.events == []
    assert [outcome for _, outcome, _ in found.outcomes] == ["unknown"]


def test_silence_ends_at_its_own_deadline() -> None:
    found = asked([" "], limits=Limits(atrn_reply_seconds=0.1))
    assert found.result.failure is not None
    assert "0.1 s" in found.result.failure.reason


def test_a_hang_up_is_told_and_temporary() -> None:
    found = asked(["hang up"])
    assert found.result.failure is not None
    assert found.result.failure.temporary


def test_the_deadline_for_atrn_is_eleven_minutes() -> None:
    assert Limits().atrn_reply_seconds == 660


def test_what_asking_cost_is_counted_also_where_nothing_waits() -> None:
    found = asked(["453 no mail\r\n"])
    assert found.result.wire_bytes > 1500, "a handshake of TLS alone is more than that"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what TCP carried")
def test_no_octet_of_a_turned_connection_is_counted_twice_or_never() -> None:
    empty, full = asked(["250 ok\r\nQUIT\r\n"]), asked([f"250 ok\r\n{MAIL.replace('hi', 'x' * 30_000)}"])
    costs = [found.result.wire_bytes + found.events[-1].wire_bytes for found in (empty, full)]
    assert 30_000 < costs[1] - costs[0] < 31_500
    assert costs[0] > 1500, "the handshake, which came before the turn"
