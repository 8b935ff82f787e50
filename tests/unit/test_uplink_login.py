"""`uplink.login`: one mechanism, one attempt, nothing of it in a transcript."""

from __future__ import annotations

import base64
import hashlib
import hmac
from pathlib import Path

import pytest
from tests.asking import Asked, asked, trust

USER, SECRET = "office", "s3cr3t pässword"
CHALLENGE = "<1896.697170952@mx.isp.example>"


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def run(tmp_path: Path, listed: str, exchange: str, **options: object) -> Asked:
    """A login on implicit TLS, verified; `listed` are the lines of the EHLO reply."""
    ca = trust(tmp_path)
    lines = "".join(f"S: 250-{line}\n" for line in listed.split("|") if line)
    script = f"S: 220 mx\nC: EHLO *\nS: 250-mx\n{lines}S: 250 ETRN\n{exchange}"
    given = {"username": USER, "password": SECRET, **options}
    return asked(script, server_tls=ca.server, implicit=True, tls="implicit", tls_ca_file=ca.authority, **given)  # type: ignore[arg-type]


DONE = "S: 235 2.7.0 ok\nC: ETRN *\nS: 250 OK\nC: QUIT\nS: 221 bye\n"
PLAIN = f"C: AUTH PLAIN {b64(chr(0) + USER + chr(0) + SECRET)}\n"
LOGIN = f"C: AUTH LOGIN\nS: 334 VXNlcm5hbWU6\nC: {b64(USER)}\nS: 334 UGFzc3dvcmQ6\nC: {b64(SECRET)}\n"
DIGEST = hmac.new(SECRET.encode(), CHALLENGE.encode(), hashlib.md5).hexdigest()
CRAM = f"C: AUTH CRAM-MD5\nS: 334 {b64(CHALLENGE)}\nC: {b64(f'{USER} {DIGEST}')}\n"
EXTERNAL = f"C: AUTH EXTERNAL {b64(USER)}\n"


@pytest.mark.parametrize(
    ("auth", "listed", "exchange"),
    [
        ("plain", "AUTH PLAIN LOGIN", PLAIN),
        ("login", "AUTH PLAIN LOGIN", LOGIN),
        ("cram-md5", "AUTH PLAIN CRAM-MD5", CRAM),
        ("external", "AUTH EXTERNAL", EXTERNAL),
        ("auto", "AUTH CRAM-MD5 LOGIN PLAIN", PLAIN),
        ("auto", "AUTH CRAM-MD5 LOGIN", LOGIN),
        ("auto", "AUTH CRAM-MD5", CRAM),
        ("auto", "auth plain", PLAIN),
        ("auto", "AUTH=PLAIN", PLAIN),
        ("auto", "AUTH GSSAPI NTLM|AUTH=LOGIN", LOGIN),
    ],
)
def test_each_mechanism_says_what_its_standard_has(tmp_path: Path, auth: str, listed: str, exchange: str) -> None:
    done = run(tmp_path, listed, exchange + DONE, auth=auth)
    assert done.server.problems == []
    assert done.outcomes == [("started", 250)]


@pytest.mark.parametrize("exchange", [PLAIN, LOGIN, CRAM, EXTERNAL])
def test_s57_no_part_of_a_login_gets_into_the_transcript(tmp_path: Path, exchange: str) -> None:
    method = exchange.split()[2]
    done = run(tmp_path, f"AUTH {method}", exchange + DONE, auth=method.lower())
    text = "\n".join(done.transcript)
    secrets = [
        word for line in exchange.splitlines() if line.startswith("C:") for word in line.split() if len(word) > 9
    ]
    secrets = [word for word in secrets if word != "CRAM-MD5"]
    assert text
    assert not any(secret in text for secret in (*secrets, SECRET))


def test_external_without_a_name_lets_the_line_say_who_we_are(tmp_path: Path) -> None:
    done = run(tmp_path, "AUTH EXTERNAL", "C: AUTH EXTERNAL =\n" + DONE, auth="external", username=None, password=None)
    assert done.server.problems == []


def test_a_long_password_does_not_go_into_the_command_line(tmp_path: Path) -> None:
    secret = "x" * 500
    exchange = f"C: AUTH PLAIN\nS: 334 \nC: {b64(chr(0) + USER + chr(0) + secret)}\n"
    assert run(tmp_path, "AUTH PLAIN", exchange + DONE, password=secret).server.problems == []


@pytest.mark.parametrize(
    ("reply", "temporary", "fix"),
    [
        ("535 5.7.8 authentication failed", False, "password_file"),
        ("454 4.7.0 temporary failure", True, "the next ask"),
        ("432 a transition is needed", True, "the next ask"),
        ("534 too weak", False, "auth"),
        ("504 what", False, "auth"),
        ("530 TLS first", False, "tls"),
        ("421 bye", True, "the next ask"),
    ],
)
def test_a_refused_login_ends_it_and_tells_the_fix(tmp_path: Path, reply: str, temporary: bool, fix: str) -> None:
    done = run(tmp_path, "AUTH PLAIN LOGIN CRAM-MD5", PLAIN + f"S: {reply}\n")
    failure = done.result.failure
    assert failure is not None
    assert (failure.stage, failure.code, failure.temporary) == ("auth", int(reply[:3]), temporary)
    assert fix in (failure.fix or "")
    assert reply.split()[-1] in failure.reason
    assert "ETRN" not in done.verbs


def test_a_refused_mechanism_is_not_followed_by_a_weaker_one(tmp_path: Path) -> None:
    done = run(tmp_path, "AUTH CRAM-MD5 PLAIN LOGIN", CRAM + "S: 535 no\n", auth="cram-md5")
    assert done.verbs.count("AUTH") == 1


@pytest.mark.parametrize(
    ("options", "listed", "words"),
    [
        ({"auth": "cram-md5"}, "AUTH PLAIN LOGIN", "plain login, not cram-md5"),
        ({}, "AUTH GSSAPI NTLM", "gssapi ntlm"),
        ({"password": None}, "AUTH PLAIN", "no password"),
        ({"password": "a\0b"}, "AUTH PLAIN", "NUL"),
    ],
)
def test_what_cannot_be_done_is_told_and_nothing_is_sent(
    tmp_path: Path, options: dict[str, object], listed: str, words: str
) -> None:
    done = run(tmp_path, listed, "", **options)
    failure = done.result.failure
    assert failure is not None
    assert (failure.stage, failure.temporary) == ("auth", False)
    assert words in failure.reason
    assert failure.fix
    assert done.verbs == ["EHLO", "QUIT"]


def test_without_a_username_nobody_logs_in(tmp_path: Path) -> None:
    done = run(tmp_path, "AUTH PLAIN", "C: ETRN *\nS: 250 OK\n", username=None, password=None)
    assert done.verbs == ["EHLO", "ETRN", "QUIT"]


def test_where_auth_is_not_listed_the_question_is_asked_without(tmp_path: Path) -> None:
    assert run(tmp_path, "", "C: ETRN *\nS: 250 OK\n").verbs == ["EHLO", "ETRN", "QUIT"]


@pytest.mark.parametrize("challenge", ["!!!", "", "a"])
def test_a_challenge_that_is_none_is_cancelled(tmp_path: Path, challenge: str) -> None:
    done = run(tmp_path, "AUTH CRAM-MD5", f"C: AUTH CRAM-MD5\nS: 334 {challenge}\nC: [*]\nS: 501 cancelled\n")
    assert done.result.failure is not None
    assert done.result.failure.stage == "auth"
    assert done.server.problems == []
