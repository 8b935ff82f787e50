from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from siteagent.wire import address
from siteagent.wire.address import Argument, Fault, mail_argument, rcpt_argument


def sender(text: str | bytes) -> str | Fault:
    found = mail_argument(b"FROM:" + (text if isinstance(text, bytes) else text.encode()))
    return found if isinstance(found, Fault) else found.path.address


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("<a@b.example>", "a@b.example"),
        ("<>", ""),
        (" <a@b.example>", "a@b.example"),
        ("a@b.example", "a@b.example"),
        ("<A.b+c=d/e@B.Example>", "A.b+c=d/e@B.Example"),
        ("<user%host@b.example>", "user%host@b.example"),
        ("<host!user@b.example>", "host!user@b.example"),
        ("<@one.example,@two.example:a@b.example>", "a@b.example"),
        ("<@one.example:a@b.example>", "a@b.example"),
        ('<"a b"@b.example>', '"a b"@b.example'),
        ('<"ab"@b.example>', "ab@b.example"),
        ('<"a\\"b"@b.example>', '"a\\"b"@b.example'),
        ('<"a@c.example"@b.example>', '"a@c.example"@b.example'),
        ("<a@[192.0.2.1]>", "a@[192.0.2.1]"),
        ("<a@[IPv6:2001:db8::1]>", "a@[IPv6:2001:db8::1]"),
        ("<root>", "root"),
        ("<a..b.@b.example>", "a..b.@b.example"),
        ("<a@b.example.>", "a@b.example"),
        ("<jörg@müller.example>", "jörg@müller.example"),
    ],
)
def test_a_path_is_read(path: str, expected: str) -> None:
    assert sender(path) == expected


@pytest.mark.parametrize(
    ("path", "fault"),
    [
        ("<", Fault.SYNTAX),
        ("", Fault.SYNTAX),
        ("<a@[>", Fault.SYNTAX),
        ("<a@[1.2.3.4.5]>", Fault.SYNTAX),
        ("<a@[IPv6:xyz]>", Fault.SYNTAX),
        ('<"', Fault.SYNTAX),
        ('<""@b.example>', Fault.SYNTAX),
        ("<a b@b.example>", Fault.SYNTAX),
        ("<a@b..example>", Fault.SYNTAX),
        ("<a@-b.example>", Fault.SYNTAX),
        ("<a@b-.example>", Fault.SYNTAX),
        ("<a@.example>", Fault.SYNTAX),
        ("<(c)a@b.example>", Fault.SYNTAX),
        ("<a@b.example>x", Fault.SYNTAX),
        ("<@:a@b.example>", Fault.SYNTAX),
        ("root", Fault.SYNTAX),
        ("<a\0@b.example>", Fault.CONTROL),
        ("<a\u0085@b.example>", Fault.CONTROL),
        (b"<a\xff@b.example>", Fault.ENCODING),
        ("<" + "a" * 513 + "@b.example>", Fault.LENGTH),
        ("<a@" + "b." * 200 + "example>", Fault.LENGTH),
        ("<a@" + "b" * 64 + ".example>", Fault.LENGTH),
    ],
)
def test_what_is_no_path_has_its_reason(path: str | bytes, fault: Fault) -> None:
    assert sender(path) is fault


def test_a_recipient_is_never_the_null_path() -> None:
    assert rcpt_argument(b"TO:<>") is Fault.SYNTAX


def test_the_keyword_is_told_from_the_address() -> None:
    assert mail_argument(b"TO:<a@b.example>") is Fault.KEYWORD
    assert rcpt_argument(b"to:<Postmaster>") == Argument(address.Path("Postmaster", ""), {})


@pytest.mark.parametrize(
    ("tail", "expected"),
    [
        (" SIZE=1 body=8BitMime", {"SIZE": "1", "BODY": "8BitMime"}),
        (" SMTPUTF8", {"SMTPUTF8": None}),
        ("  SIZE=1  ", {"SIZE": "1"}),
        (" AUTH=<>", {"AUTH": "<>"}),
        (" MT-PRIORITY=3", {"MT-PRIORITY": "3"}),
        (" SIZE=", Fault.PARAMETER),
        (" =1", Fault.PARAMETER),
        (" -X", Fault.PARAMETER),
        (" A=b=c", Fault.PARAMETER),
    ],
)
@pytest.mark.parametrize("path", ["<a@b.example>", '<"a b"@b.example>'])
def test_parameters_are_read_alike_behind_a_plain_and_a_quoted_path(path: str, tail: str, expected: object) -> None:
    found = mail_argument(f"FROM:{path}{tail}".encode())
    assert (found if isinstance(found, Fault) else found.parameters) == expected


ALPHABET = st.sampled_from([*'<>@"\\.:,[]()- \t', "a", "b", "IPv6:", "..", "=", "é", "\0", "x.example"])


@given(st.lists(ALPHABET, max_size=30))
def test_the_fast_way_and_the_complete_way_agree(parts: list[str]) -> None:
    text = ("FROM:" + "".join(parts)).encode()
    fast, complete = mail_argument(text), address._complete(b"FROM", text)
    assert fast == complete


@given(st.binary(max_size=200))
def test_any_octets_have_an_answer(octets: bytes) -> None:
    for found in (mail_argument(b"FROM:<" + octets), rcpt_argument(octets), mail_argument(b"FROM:" + octets + b">")):
        assert isinstance(found, Argument | Fault)


@given(st.lists(ALPHABET, max_size=30))
def test_an_address_that_was_read_reads_back_as_itself(parts: list[str]) -> None:
    once = sender("<" + "".join(parts) + ">")
    if not isinstance(once, Fault):
        assert sender(f"<{once}>") == once


@pytest.mark.parametrize(
    "line",
    [b"<" + b'"' * 100_000, b"<" + b"@a," * 50_000, b"<" + b"a." * 50_000, b'<"' + b"\\" * 100_000, b"<[" * 50_000],
)
def test_time_grows_with_the_length_and_no_faster(line: bytes) -> None:
    began = time.perf_counter()
    assert isinstance(mail_argument(b"FROM:" + line), Fault)
    assert time.perf_counter() - began < 1
