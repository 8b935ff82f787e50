"""What the hub says on the wire: AUTH, ETRN (RFC 1985), ATRN (RFC 2645)."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trustme
from tests.fakes import FakeSpool, Peer
from tests.hub import Running, hub, node, password_of

MAIL = b"Subject: hi\r\n\r\nhello\r\n"


def office(tmp_path: Path, **options: object) -> list[object]:
    secret = password_of(tmp_path, "office")
    return [
        node(account="office", password_file=secret, **options),
        node("other.example", account="other", password_file=password_of(tmp_path, "other")),
    ]


def talk(
    tmp_path: Path, script: Callable[[Running, Peer], Awaitable[None]], *, nodes: list | None = None, **options: object
) -> Running:
    async def run() -> Running:
        async with hub(tmp_path, nodes or office(tmp_path), odmr=True, **options) as running:  # type: ignore[arg-type]
            peer = await running.peer()
            await script(running, peer)
            await peer.close()
            return running

    return asyncio.run(run())


async def cram_md5(peer: Peer, account: str = "office", secret: str = "sesame") -> str:
    challenge = base64.b64decode((await peer.say("AUTH CRAM-MD5"))[4:])
    digest = hmac.new(secret.encode(), challenge, hashlib.md5).hexdigest()
    return await peer.say(base64.b64encode(f"{account} {digest}".encode()))


# --- EHLO -------------------------------------------------------------------------------------------------------------


def test_ehlo_lists_etrn_without_parameters_and_atrn_and_auth(tmp_path: Path) -> None:
    async def script(running: Running, peer: Peer) -> None:
        lines = {line[4:] for line in (await peer.say("EHLO site.example")).split("\n")}
        assert {"ETRN", "ATRN", "AUTH CRAM-MD5"} <= lines

    talk(tmp_path, script)


def test_without_accounts_no_auth_is_offered(tmp_path: Path) -> None:
    async def script(running: Running, peer: Peer) -> None:
        assert "AUTH" not in await peer.say("EHLO site.example")
        assert await peer.code("AUTH PLAIN AGEAYg==") == 502

    talk(tmp_path, script, nodes=[node(deliver_to="192.0.2.1:25", etrn_without_auth=True)])


# --- ETRN -------------------------------------------------------------------------------------------------------------


def test_etrn_inside_a_transaction_is_503(tmp_path: Path) -> None:
    async def script(running: Running, peer: Peer) -> None:
        assert await peer.code("MAIL FROM:<a@b.example>") == 250
        assert await peer.code("ETRN office.example") == 503

    talk(tmp_path, script)


def test_etrn_before_ehlo_is_503(tmp_path: Path) -> None:
    async def run() -> None:
        async with hub(tmp_path, office(tmp_path)) as running:  # type: ignore[arg-type]
            host, _, port = running.hub.addresses[0].rpartition(":")
            peer = Peer(*await asyncio.open_connection(host, int(port)))
            await peer.reply()
            assert await peer.code("ETRN office.example") == 503
            await peer.close()

    asyncio.run(run())


@pytest.mark.parametrize("argument", ["", " ", "localname", "two words", "@com", "x" * 500])
def test_etrn_with_something_else_than_one_name_is_501(tmp_path: Path, argument: str) -> None:
    async def script(running: Running, peer: Peer) -> None:
        assert await peer.code(f"ETRN {argument}") == 501

    talk(tmp_path, script)


def test_several_etrn_in_one_session_are_answered_in_order(tmp_path: Path) -> None:
    async def script(running: Running, peer: Peer) -> None:
        peer.send(b"ETRN open.example\r\nETRN localname\r\nETRN nobody.example\r\nETRN open.example\r\n")
        codes = [(await peer.reply())[:3] for _ in range(4)]
        assert codes == ["250", "501", "459", "250"]

    talk(tmp_path, script, nodes=[node("open.example", deliver_to="192.0.2.1:25", etrn_without_auth=True)])


def test_only_who_logged_in_is_told_numbers(tmp_path: Path) -> None:
    nodes = [
        node(
            account="office",
            password_file=password_of(tmp_path, "office"),
            deliver_to="127.0.0.1:1",
            etrn_without_auth=True,
        )
    ]

    async def script(running: Running, peer: Peer) -> None:
        assert (await peer.say("ETRN office.example"))[:3] == "250"
        await running.fill([MAIL] * 3)
        stranger = await running.peer()
        assert await stranger.say("ETRN office.example") == "250 2.0.0 OK, queuing for node office.example started"
        assert (await cram_md5(peer))[:3] == "235"
        wanted = "253 2.0.0 OK, 3 pending messages for node office.example started"
        assert await peer.say("ETRN office.example") == wanted
        await stranger.close()

    talk(tmp_path, script, nodes=nodes)


def test_who_logged_in_is_told_that_nothing_waits(tmp_path: Path) -> None:
    async def script(running: Running, peer: Peer) -> None:
        await cram_md5(peer)
        assert await peer.say("ETRN office.example") == "251 2.0.0 OK, no messages waiting for node office.example"

    talk(tmp_path, script, nodes=office(tmp_path, deliver_to="127.0.0.1:1"))


def test_a_node_that_nothing_can_be_pushed_to_is_458(tmp_path: Path) -> None:
    async def script(running: Running, peer: Peer) -> None:
        await cram_md5(peer)
        assert await peer.code("ETRN office.example") == 458

    talk(tmp_path, script)


def test_s58_unknown_forbidden_and_anonymous_hear_the_same_459(tmp_path: Path) -> None:
    async def script(running: Running, peer: Peer) -> None:
        anonymous = [await peer.say("ETRN office.example"), await peer.say("ETRN nobody.example")]
        await cram_md5(peer)
        known = [await peer.say("ETRN other.example"), await peer.say("ETRN nobody.example")]
        words = {answer.replace(name, "*") for answer in anonymous + known for name in ("office", "nobody", "other")}
        assert len({a.split("Node")[0] + a.split("not allowed")[1] for a in anonymous + known}) == 1, words
        assert anonymous[0].startswith("459 ")

    talk(tmp_path, script)


def test_s58_the_eleventh_ask_in_a_minute_is_458(tmp_path: Path) -> None:
    async def script(running: Running, peer: Peer) -> None:
        codes = [await peer.code("ETRN nobody.example") for _ in range(12)]
        assert codes == [459] * 10 + [458] * 2

    talk(tmp_path, script)


# --- AUTH -------------------------------------------------------------------------------------------------------------


def test_s58_a_storm_of_refused_asks_in_one_session_ends_it(tmp_path: Path) -> None:
    async def script(running: Running, peer: Peer) -> None:
        peer.send(b"ETRN nobody.example\r\n" * 500)
        codes = []
        while (reply := await peer.reply())[:3] in ("459", "458"):
            codes.append(reply[:3])
        assert (reply[:3], len(codes)) == ("421", 100)
        assert len(running.of("node.asked")) == 101

    talk(tmp_path, script)


def test_a_password_is_not_taken_in_clear(tmp_path: Path) -> None:
    async def script(running: Running, peer: Peer) -> None:
        assert await peer.code("AUTH PLAIN AG9mZmljZQBzZXNhbWU=") == 538
        assert await peer.code("AUTH LOGIN") == 538

    talk(tmp_path, script)


@pytest.mark.parametrize(
    ("line", "code"),
    [("AUTH", 501), ("AUTH NTLM", 504), ("AUTH CRAM-MD5 AGEAYg==", 501), ("AUTH CRAM-MD5 !!", 501)],
)
def test_auth_that_cannot_be_read_is_told_how(tmp_path: Path, line: str, code: int) -> None:
    async def script(running: Running, peer: Peer) -> None:
        assert await peer.code(line) == code

    talk(tmp_path, script)


def test_auth_can_be_given_up_and_is_not_counted_as_a_failure(tmp_path: Path) -> None:
    async def script(running: Running, peer: Peer) -> None:
        for _ in range(4):
            assert await peer.code("AUTH CRAM-MD5") == 334
            assert await peer.code("*") == 501
        assert (await cram_md5(peer))[:3] == "235"

    talk(tmp_path, script)


def test_auth_twice_or_inside_a_transaction_is_503(tmp_path: Path) -> None:
    async def script(running: Running, peer: Peer) -> None:
        assert await peer.code("MAIL FROM:<a@b.example>") == 250
        assert await peer.code("AUTH CRAM-MD5") == 503
        assert await peer.code("RSET") == 250
        await cram_md5(peer)
        assert await peer.code("AUTH CRAM-MD5") == 503

    talk(tmp_path, script)


def test_a_login_that_cannot_be_checked_is_told_to_come_later(tmp_path: Path) -> None:
    """Its password file is gone: 454, and not counted as a wrong password."""

    async def script(running: Running, peer: Peer) -> None:
        (tmp_path / "office.password").unlink()
        for _ in range(5):
            assert (await cram_md5(peer))[:3] == "454"
        assert await peer.code("ATRN") == 530

    talk(tmp_path, script)


def test_unknown_account_and_wrong_password_hear_the_same(tmp_path: Path) -> None:
    async def script(running: Running, peer: Peer) -> None:
        assert await cram_md5(peer, "nobody") == await cram_md5(peer, "office", "wrong")

    running = talk(tmp_path, script)
    assert [event.blocked for event in running.of("login.failed")] == [False, False]


def test_s58_the_third_failed_login_closes_and_the_address_is_turned_away(tmp_path: Path) -> None:
    async def script(running: Running, peer: Peer) -> None:
        answers = [(await cram_md5(peer, "office", "wrong"))[:3] for _ in range(3)]
        assert answers == ["535", "535", "421"]
        for address in (running.hub.addresses[0], running.hub.odmr_addresses[0]):
            host, _, port = address.rpartition(":")
            again = Peer(*await asyncio.open_connection(host, int(port)))
            assert (await again.reply())[:3] == "421"
            await again.close()

    talk(tmp_path, script)


def certificates(tmp_path: Path) -> tuple[trustme.CA, dict[str, object]]:
    authority = trustme.CA()
    issued = authority.issue_cert("hub.example")
    issued.private_key_pem.write_to_path(str(tmp_path / "hub.key"))
    issued.cert_chain_pems[0].write_to_path(str(tmp_path / "hub.pem"))
    return authority, {"tls_certificate": tmp_path / "hub.pem", "tls_key": tmp_path / "hub.key"}


async def under_tls(peer: Peer, authority: trustme.CA, client: trustme.LeafCert | None = None) -> str:
    """STARTTLS and EHLO; what that lists."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    if client is not None:
        client.configure_cert(context)
    assert await peer.code("STARTTLS") == 220
    await peer.writer.start_tls(context, server_hostname="hub.example")
    return await peer.say("EHLO site.example")


def test_under_tls_plain_and_login_are_offered_and_work(tmp_path: Path) -> None:
    authority, listener = certificates(tmp_path)

    async def script(running: Running, peer: Peer) -> None:
        assert "AUTH PLAIN LOGIN CRAM-MD5" in await under_tls(peer, authority)
        blob = base64.b64encode(b"\0office\0sesame").decode()
        assert await peer.code(f"AUTH PLAIN {blob}") == 235
        second = await running.peer()
        await under_tls(second, authority)
        assert await second.code("AUTH LOGIN") == 334
        assert await second.code(base64.b64encode(b"office")) == 334
        assert await second.code(base64.b64encode(b"sesame")) == 235
        await second.close()

    talk(tmp_path, script, listener=listener)


def test_who_logged_in_in_clear_must_do_so_again_under_tls(tmp_path: Path) -> None:
    authority, listener = certificates(tmp_path)

    async def script(running: Running, peer: Peer) -> None:
        await cram_md5(peer)
        await under_tls(peer, authority)
        assert await peer.code("ATRN") == 530

    talk(tmp_path, script, listener=listener)


def test_a_site_may_log_in_by_its_certificate_and_by_no_other(tmp_path: Path) -> None:
    authority, listener = certificates(tmp_path)
    own, foreign = trustme.CA().issue_cert("site.example"), authority.issue_cert("site.example")
    own.cert_chain_pems[0].write_to_path(str(tmp_path / "site.pem"))
    nodes = [node(account="office", certificate_file=tmp_path / "site.pem"), node("x.example", account="x")]

    async def script(running: Running, peer: Peer) -> None:
        assert "EXTERNAL" in await under_tls(peer, authority, own)
        assert await peer.code("AUTH EXTERNAL =") == 235
        second = await running.peer()
        with pytest.raises((ssl.SSLError, ConnectionError, ValueError)):
            offered = await under_tls(second, authority, foreign)
            assert "EXTERNAL" not in offered
            raise ConnectionError
        third = await running.peer()
        assert "EXTERNAL" not in await under_tls(third, authority)
        await third.close()

    talk(tmp_path, script, listener=listener, nodes=nodes)


# --- ATRN -------------------------------------------------------------------------------------------------------------


def test_s59_atrn_without_a_login_is_530(tmp_path: Path) -> None:
    async def script(running: Running, peer: Peer) -> None:
        assert await peer.code("ATRN office.example") == 530

    talk(tmp_path, script)


def test_s59_atrn_inside_a_transaction_is_503(tmp_path: Path) -> None:
    async def script(running: Running, peer: Peer) -> None:
        await cram_md5(peer)
        assert await peer.code("MAIL FROM:<a@b.example>") == 250
        assert await peer.code("ATRN office.example") == 503

    talk(tmp_path, script)


@pytest.mark.parametrize(
    ("argument", "code"),
    [
        ("office.example", 453),
        ("", 453),
        ("other.example", 450),
        ("office.example,other.example", 450),
        ("nobody.example", 450),
        ("office.example, x.example", 501),
        (",".join(f"d{n}.example" for n in range(150)), 501),
        (",".join(f"d{n}.example" for n in range(10_000)), 501),
    ],
)
def test_s59_atrn_is_refused_by_the_codes_of_rfc_2645(tmp_path: Path, argument: str, code: int) -> None:
    async def script(running: Running, peer: Peer) -> None:
        await cram_md5(peer)
        assert await peer.code(f"ATRN {argument}".rstrip()) == code
        assert await peer.code("NOOP") == 250, "the session goes on"

    talk(tmp_path, script)


def test_atrn_is_not_offered_where_no_port_for_it_is_configured(tmp_path: Path) -> None:
    async def run() -> None:
        async with hub(tmp_path, office(tmp_path)) as running:  # type: ignore[arg-type]
            peer = await running.peer()
            assert "ATRN" not in await peer.say("EHLO x.example")
            assert await peer.code("ATRN") == 502
            await peer.close()

    asyncio.run(run())


def test_the_port_of_atrn_takes_no_mail(tmp_path: Path) -> None:
    async def script(running: Running, peer: Peer) -> None:
        odmr = await running.peer(running.hub.odmr_addresses[0])
        lines = (await odmr.say("EHLO x.example")).split("\n")
        assert {"AUTH CRAM-MD5", "ATRN"} <= {line[4:] for line in lines}
        assert not any("SIZE" in line or "ETRN" in line for line in lines)
        for verb in ("MAIL FROM:<a@b.example>", "RCPT TO:<a@office.example>", "DATA", "ETRN office.example", "VRFY x"):
            assert await odmr.code(verb) == 502, verb
        await odmr.close()

    talk(tmp_path, script)


async def fetch(running: Running, spool: FakeSpool, address: str | None = None, **options: object) -> Peer:
    """ATRN by hand; the reversed session is answered by a listener's dialect over a pair of pipes."""
    peer = await running.peer(address or running.hub.odmr_addresses[0])
    await cram_md5(peer)
    assert await peer.say("ATRN office.example") == "250 2.0.0 OK now reversing the connection"
    return peer


def test_from_its_250_on_the_hub_is_the_client(tmp_path: Path) -> None:
    async def script(running: Running, peer: Peer) -> None:
        await running.fill([MAIL])
        turned = await fetch(running, FakeSpool())
        turned.send(b"220 site.example\r\n")
        assert await turned.reader.readline() == b"EHLO hub.example\r\n"
        turned.send(b"250 site.example\r\n")
        assert (await turned.reader.readline()).startswith(b"MAIL FROM:<friend@far.example>")
        turned.send(b"250 ok\r\n")
        assert await turned.reader.readline() == b"RCPT TO:<alice@office.example>\r\n"
        turned.send(b"250 ok\r\n")
        assert await turned.reader.readline() == b"DATA\r\n"
        turned.send(b"354 go on\r\n")
        content = await turned.reader.readuntil(b"\r\n.\r\n")
        assert content.endswith(b"Subject: hi\r\n\r\nhello\r\n.\r\n")
        turned.send(b"250 taken\r\n")
        assert await turned.reader.readline() == b"QUIT\r\n"
        turned.send(b"221 bye\r\n")
        ended = await running.released()
        assert (ended.method, ended.messages, ended.left, ended.reason) == ("atrn", 1, 0, "")

    talk(tmp_path, script)


def test_a_site_that_greets_too_early_is_understood(tmp_path: Path) -> None:
    async def script(running: Running, peer: Peer) -> None:
        await running.fill([MAIL])
        turned = await running.peer(running.hub.odmr_addresses[0])
        await cram_md5(turned)
        turned.send(b"ATRN\r\n220 site.example\r\n")
        assert (await turned.reply())[:3] == "250"
        assert await turned.reader.readline() == b"EHLO hub.example\r\n"
        await turned.close()
        assert (await running.released()).left == 1

    talk(tmp_path, script)


def test_a_site_that_hangs_up_after_the_turn_gets_everything_the_next_time(tmp_path: Path) -> None:
    async def script(running: Running, peer: Peer) -> None:
        await running.fill([MAIL] * 3)
        for attempt in (1, 2):
            turned = await fetch(running, FakeSpool())
            await turned.close()
            ended = await running.released(attempt)
            assert (ended.messages, ended.left) == (0, 3)

    talk(tmp_path, script)


def test_a_second_atrn_while_the_first_moves_is_450(tmp_path: Path) -> None:
    async def script(running: Running, peer: Peer) -> None:
        await running.fill([MAIL])
        first = await fetch(running, FakeSpool())
        second = await running.peer(running.hub.odmr_addresses[0])
        await cram_md5(second)
        assert await second.code("ATRN") == 450
        await first.close()
        await second.close()

    talk(tmp_path, script)


def test_who_asks_until_its_lost_connection_is_given_up_has_not_asked_too_often(tmp_path: Path) -> None:
    async def script(running: Running, peer: Peer) -> None:
        await running.fill([MAIL])
        first = await fetch(running, FakeSpool())
        for _ in range(12):
            again = await running.peer(running.hub.odmr_addresses[0])
            await cram_md5(again)
            assert "on its way" in await again.say("ATRN")
            await again.close()
        await first.close()
        await running.released()
        await (await fetch(running, FakeSpool())).close()

    talk(tmp_path, script)


def test_implicit_tls_is_spoken_from_the_first_octet(tmp_path: Path) -> None:
    authority, listener = certificates(tmp_path)

    async def script(running: Running, peer: Peer) -> None:
        context = ssl.create_default_context()
        authority.configure_trust(context)
        host, _, port = running.hub.odmr_addresses[-1].rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port), ssl=context, server_hostname="hub.example")
        secured = await Peer(reader, writer).hello()
        lines = await secured.say("EHLO x.example")
        assert "PLAIN" in lines
        assert "STARTTLS" not in lines
        await secured.close()

    talk(tmp_path, script, listener=listener, odmr_tls=True)
