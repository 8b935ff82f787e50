"""`uplink.connection`: greeting, EHLO and HELO, STARTTLS, and what is never sent on a line that is not trusted."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest
from siteagent.config.sections import Provider
from siteagent.uplink.ask import ask
from siteagent.uplink.broken import Broken
from siteagent.uplink.connection import client_context
from siteagent.uplink.tls import server_name
from siteagent.wire.etrn import AskResult
from tests import scripted
from tests.asking import LINE, NODE, Asked, asked, limits, section, trust

ETRN = "C: ETRN *\nS: 250 OK\n"
BYE = "C: QUIT\nS: 221 bye\n"
HELLO = "S: 220 mx\nC: EHLO *\nS: 250-mx\nS: 250-STARTTLS\nS: 250 ETRN\n"
AGAIN = "C: EHLO *\nS: 250-mx\nS: 250-AUTH PLAIN\nS: 250 ETRN\n"
PLAIN_HELLO = HELLO.replace("S: 250-STARTTLS\n", "")
LOGIN = {"username": "office", "password": "secret"}


def failed(run: Asked) -> tuple[str, int | None, bool]:
    failure = run.result.failure
    assert failure is not None, run.transcript
    assert failure.fix
    return failure.stage, failure.code, failure.temporary


# --- greeting, EHLO, HELO ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("code", "temporary"), [(421, True), (450, True), (521, False), (554, False), (250, True)])
def test_a_greeting_other_than_220_ends_it(code: int, temporary: bool) -> None:
    assert failed(asked(f"S: {code} no", tls="off")) == ("greeting", code, temporary)


def at_two_addresses(first: str, second: str) -> tuple[AskResult, list[int]]:
    """One ask of a name with two addresses, and how many connections each of them got."""

    async def scene() -> tuple[AskResult, list[int]]:
        async with scripted.Provider(first) as one, scripted.Provider(second, host="127.0.0.2", port=one.port) as other:
            result = await ask(
                section(one.port, host="localhost", tls="off"),
                [NODE],
                line=LINE,
                addresses=("127.0.0.1", "127.0.0.2"),
                hostname="mail.office.example",
                limits=limits(command_seconds=0.5),
                password=None,
                tls=None,
                on_answer=lambda answer: None,
            )
            return result, [len(one.heard), len(other.heard)]

    return asyncio.run(scene())


@pytest.mark.parametrize(
    "first", ["S: 421 busy\n! close", "S: 554 no service", "! close", "! drop", "! silent", "S: hm"]
)
def test_an_address_that_does_not_let_us_in_is_followed_by_the_next_one(first: str) -> None:
    """Two machines of one name; one of them is out of order, and stays first in what DNS says."""
    result, connections = at_two_addresses(first, PLAIN_HELLO + ETRN + BYE)
    assert [answer.outcome.value for answer in result.answers] == ["started"] and result.failure is None
    assert connections == [1, 1]


def test_where_no_address_lets_us_in_each_is_tried_once() -> None:
    result, connections = at_two_addresses("S: 421 busy\n! close", "S: 421 busy too\n! close")
    assert result.failure is not None and (result.failure.stage, result.failure.code) == ("greeting", 421)
    assert connections == [1, 1]


def test_554_as_the_greeting_gets_a_quit() -> None:
    assert asked("S: 554 no service", tls="off").verbs == ["QUIT"]


def test_a_greeting_of_several_lines_is_one() -> None:
    run = asked("S: 220-mx\nS: 220-no spam\nS: 220 here\nC: EHLO *\nS: 250 mx\n" + ETRN + BYE, tls="off")
    assert run.outcomes == [("started", 250)]


def test_no_greeting_in_time_says_what_it_may_be() -> None:
    run = asked("! silent", tls="off", limit=limits(command_seconds=0.05))
    assert failed(run) == ("greeting", None, True)
    assert "implicit" in (run.result.failure.fix or "")  # type: ignore[union-attr]


@pytest.mark.parametrize("code", [500, 501, 502, 504, 550, 554])
def test_a_refused_ehlo_is_followed_by_helo(code: int) -> None:
    run = asked(f"S: 220 mx\nC: EHLO *\nS: {code} what\nC: HELO *\nS: 250 mx\n" + ETRN + BYE, tls="off")
    assert run.outcomes == [("started", 250)]
    assert run.server.problems == []


def test_a_refused_helo_is_repeated_behind_rset() -> None:
    script = "S: 220 mx\nC: EHLO *\nS: 500 what\nC: HELO *\nS: 503 no\nC: RSET\nS: 503 no\nC: HELO *\nS: 250 mx\n"
    run = asked(script + ETRN + BYE, tls="off")
    assert run.outcomes == [("started", 250)]
    assert run.server.problems == []


@pytest.mark.parametrize("reply", ["", "S: 500 what\n"])
@pytest.mark.parametrize("end", ["! close", "! drop"])
def test_a_hang_up_on_ehlo_is_followed_by_helo_on_a_new_connection(reply: str, end: str) -> None:
    second = "S: 220 mx\nC: HELO *\nS: 250 mx\n" + ETRN + BYE
    run = asked(f"S: 220 mx\nC: EHLO *\n{reply}{end}", second, tls="off")
    assert run.outcomes == [("started", 250)]


def test_a_hang_up_on_helo_too_is_the_end() -> None:
    run = asked("S: 220 mx\nC: EHLO *\n! close", "S: 220 mx\nC: HELO *\n! close", tls="off")
    assert failed(run) == ("ehlo", None, True)
    assert len(run.server.heard) == 2


def test_a_temporary_refusal_of_ehlo_is_not_followed_by_helo() -> None:
    run = asked("S: 220 mx\nC: EHLO *\nS: 451 later\n" + BYE, tls="off")
    assert failed(run) == ("ehlo", 451, True)
    assert run.verbs == ["EHLO", "QUIT"]


@pytest.mark.parametrize("listed", ["etrn", "Etrn", "ETRN"])
def test_a_keyword_counts_in_any_case(listed: str) -> None:
    run = asked(f"S: 220 mx\nC: EHLO *\nS: 250-mx\nS: 250 {listed}\n" + ETRN + BYE, tls="off")
    assert not any("not listed" in line for line in run.transcript)


@pytest.mark.parametrize(
    ("hostname", "said"),
    [
        ("mail.office.example", "EHLO mail.office.example"),
        ("", "EHLO [127.0.0.1]"),
        ("192.0.2.7", "EHLO [192.0.2.7]"),
        ("[192.0.2.7]", "EHLO [192.0.2.7]"),
        ("2001:db8::7", "EHLO [IPv6:2001:db8::7]"),
        ("[IPv6:2001:db8::7]", "EHLO [IPv6:2001:db8::7]"),
        ("a b", "EHLO [127.0.0.1]"),
        ("x\r\nMAIL", "EHLO [127.0.0.1]"),
    ],
)
def test_we_say_our_name_or_an_address_literal(hostname: str, said: str) -> None:
    assert asked(PLAIN_HELLO + ETRN + BYE, tls="off", hostname=hostname).commands[0] == said


# --- TLS --------------------------------------------------------------------------------------------------------------


def test_starttls_is_followed_by_ehlo_and_what_was_listed_before_is_forgotten(tmp_path: Path) -> None:
    script = HELLO + "C: STARTTLS\nS: 220 go\n! starttls\nC: EHLO *\nS: 250 mx\n" + BYE
    ca = trust(tmp_path)
    run = asked(script, server_tls=ca.server, tls="required", tls_ca_file=ca.authority, when_not_advertised="refuse")
    assert failed(run) == ("ask", None, False)
    assert run.server.problems == []


def test_what_was_listed_before_tls_is_forgotten_after_helo_too(tmp_path: Path) -> None:
    script = HELLO + "C: STARTTLS\nS: 220 go\n! starttls\nC: EHLO *\nS: 500 what\nC: HELO *\nS: 250 mx\n" + BYE
    ca = trust(tmp_path)
    run = asked(script, server_tls=ca.server, tls="required", tls_ca_file=ca.authority, when_not_advertised="refuse")
    assert failed(run) == ("ask", None, False)
    assert run.server.problems == []


@pytest.mark.parametrize("name", ["büro.example", "xn--bro-hoa.example", "Mx.Isp.Example."])
def test_a_certificate_must_be_made_out_to_the_host_in_its_ascii_form(name: str) -> None:
    assert server_name(section(25, host=name)).lower() in ("xn--bro-hoa.example", "mx.isp.example")


def test_a_host_that_no_certificate_can_have_is_told() -> None:
    with pytest.raises(Broken, match="not a name"):
        server_name(section(25, host="ü" * 80))


@pytest.mark.parametrize("implicit", [False, True])
def test_a_verified_line_carries_the_login(tmp_path: Path, implicit: bool) -> None:
    ca = trust(tmp_path)
    before = "S: 220 mx\n" if implicit else HELLO + "C: STARTTLS\nS: 220 go\n! starttls\n"
    run = asked(
        before + AGAIN + "C: AUTH PLAIN AG9mZmljZQBzZWNyZXQ=\nS: 235 ok\n" + ETRN + BYE,
        server_tls=ca.server,
        implicit=implicit,
        tls="implicit" if implicit else "required",
        tls_ca_file=ca.authority,
        **LOGIN,
    )
    assert run.outcomes == [("started", 250)]
    assert run.server.problems == []


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize("case", ["authority", "name", "fingerprint"])
def test_s42_a_bad_certificate_sends_nothing(tmp_path: Path, case: str, implicit: bool) -> None:
    ca = trust(tmp_path, "mx.other.example" if case == "name" else "127.0.0.1", fingerprint_of_other=True)
    options: dict[str, object] = {"tls_ca_file": ca.authority}
    if case == "authority":
        options = {"tls_ca_file": trust(tmp_path, "another.example").authority}
    elif case == "fingerprint":
        options = {"tls_fingerprint": ca.fingerprint}
    before = "S: 220 mx\n" if implicit else HELLO + "C: STARTTLS\nS: 220 go\n! starttls\n"
    run = asked(
        before + AGAIN,
        server_tls=ca.server,
        implicit=implicit,
        tls="implicit" if implicit else "required",
        **options,
        **LOGIN,
    )
    assert failed(run) == ("starttls", None, False)
    assert not {"AUTH", "ETRN"}.intersection(run.verbs)
    assert run.commands == ([] if implicit else ["EHLO mail.office.example", "STARTTLS"])


def test_s42_tls_required_and_not_offered_sends_nothing() -> None:
    run = asked(PLAIN_HELLO + BYE, tls="required", **LOGIN)
    assert failed(run) == ("starttls", None, False)
    assert run.verbs == ["EHLO", "QUIT"]


@pytest.mark.parametrize(("reply", "temporary"), [("454 no TLS now", True), ("502 what", False), ("421 bye", True)])
def test_s42_tls_required_and_refused_sends_nothing(reply: str, temporary: bool) -> None:
    run = asked(HELLO + f"C: STARTTLS\nS: {reply}\n" + BYE, tls="required", **LOGIN)
    assert failed(run) == ("starttls", int(reply[:3]), temporary)
    assert not {"AUTH", "ETRN"}.intersection(run.verbs)


def test_s42_tls_required_is_not_got_around_by_refusing_ehlo() -> None:
    run = asked("S: 220 mx\nC: EHLO *\nS: 500 what\nC: HELO *\nS: 250 mx\n" + BYE, tls="required", **LOGIN)
    assert failed(run) == ("starttls", None, False)
    assert not {"AUTH", "ETRN"}.intersection(run.verbs)


def test_s42_tls_required_is_not_got_around_by_hanging_up_on_ehlo() -> None:
    run = asked("S: 220 mx\nC: EHLO *\n! close", tls="required", **LOGIN)
    assert failed(run) == ("ehlo", None, True)
    assert len(run.server.heard) == 1


@pytest.mark.parametrize("tls", ["off", "opportunistic"])
@pytest.mark.parametrize("auth", ["auto", "plain", "login", "cram-md5", "external"])
def test_s42_no_login_on_a_line_that_is_not_verified(tmp_path: Path, tls: str, auth: str) -> None:
    listed = HELLO.replace("250 ETRN", "250-AUTH PLAIN LOGIN CRAM-MD5 EXTERNAL\nS: 250 ETRN")
    script = listed
    if tls == "opportunistic":
        script += "C: STARTTLS\nS: 220 go\n! starttls\n" + listed.partition("\n")[2]
    run = asked(script + ETRN + BYE, server_tls=trust(tmp_path).server, tls=tls, auth=auth, **LOGIN)
    assert run.outcomes == [("started", 250)]
    assert "AUTH" not in run.verbs


@pytest.mark.parametrize("tls", ["required", "opportunistic"])
def test_s43_bytes_behind_the_220_of_starttls_end_it(tmp_path: Path, tls: str) -> None:
    ca = trust(tmp_path)
    script = HELLO + "C: STARTTLS\nS= 220 go\\r\\n250 injected\\r\\n\n! starttls\n" + AGAIN
    run = asked(script, server_tls=ca.server, tls=tls, tls_ca_file=ca.authority)
    assert failed(run) == ("starttls", None, True)
    assert run.verbs == ["EHLO", "STARTTLS"]
    assert len(run.server.heard) == 1


def test_a_pinned_certificate_needs_no_authority_and_no_name(tmp_path: Path) -> None:
    ca = trust(tmp_path, "whatever.example")
    script = HELLO + "C: STARTTLS\nS: 220 go\n! starttls\n" + AGAIN + ETRN + BYE
    pinned = ca.fingerprint.upper().replace("SHA256", "sha256")
    assert asked(script, server_tls=ca.server, tls="required", tls_fingerprint=pinned).outcomes == [("started", 250)]


def test_opportunistic_goes_on_in_clear_where_tls_is_not_offered() -> None:
    assert asked(PLAIN_HELLO + ETRN + BYE, tls="opportunistic").outcomes == [("started", 250)]


def test_opportunistic_goes_on_in_clear_where_tls_is_refused() -> None:
    run = asked(HELLO + "C: STARTTLS\nS: 454 not now\n" + ETRN + BYE, tls="opportunistic")
    assert run.outcomes == [("started", 250)]


def test_opportunistic_comes_again_in_clear_where_the_server_leaves_at_the_handshake() -> None:
    run = asked(HELLO + "C: STARTTLS\nS: 220 go\n! close", HELLO + ETRN + BYE, tls="opportunistic")
    assert run.outcomes == [("started", 250)]
    assert run.verbs == ["EHLO", "STARTTLS", "EHLO", "ETRN", "QUIT"]


def test_opportunistic_accepts_any_certificate(tmp_path: Path) -> None:
    script = HELLO + "C: STARTTLS\nS: 220 go\n! starttls\n" + AGAIN + ETRN + BYE
    run = asked(script, server_tls=trust(tmp_path, "x.example").server, tls="opportunistic")
    assert run.outcomes == [("started", 250)]
    assert run.server.heard[0].encrypted


def test_tls_off_does_not_start_it() -> None:
    assert "STARTTLS" not in asked(HELLO + ETRN + BYE, tls="off").verbs


def test_a_handshake_that_does_not_end_ends(tmp_path: Path) -> None:
    ca = trust(tmp_path)
    run = asked(
        HELLO + "C: STARTTLS\nS: 220 go\n! silent",
        tls="required",
        tls_ca_file=ca.authority,
        limit=limits(command_seconds=0.1),
    )
    assert failed(run) == ("starttls", None, True)


def test_implicit_tls_at_a_port_in_clear_says_what_it_may_be(tmp_path: Path) -> None:
    run = asked("S: 220 mx", tls="implicit", tls_ca_file=trust(tmp_path).authority)
    assert failed(run)[0] == "starttls"
    assert "implicit" in (run.result.failure.fix or "")  # type: ignore[union-attr]


@pytest.mark.parametrize("content", [None, "", "hello"])
def test_an_authority_that_cannot_be_read_is_told_and_nothing_is_dialled(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    run = asked("S: 220 mx", tls="implicit", tls_ca_file=path)
    assert failed(run) == ("starttls", None, False)
    assert str(path) in run.result.failure.reason  # type: ignore[union-attr]
    assert run.server.heard == []


def test_the_context_of_a_verifying_provider_verifies() -> None:
    context = client_context(Provider(host="mx.isp.example", nodes=("a.example",), username="u"))
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
