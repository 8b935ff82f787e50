from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from email.utils import parsedate_to_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from siteagent.wire import trace

WHEN = "Sun, 22 Nov 2026 08:00:00 +0100"


def field(**changes: str | None) -> str:
    values: dict[str, str | None] = {
        "helo": "isp.example",
        "peer": "192.0.2.9",
        "by": "mail.office.example",
        "word": "ESMTP",
        "ident": "1.2",
        "recipient": None,
        "when": WHEN,
    }
    return trace.received(**{**values, **changes}).decode()  # type: ignore[arg-type]


def test_received_as_rfc_5321_has_it() -> None:
    assert field(recipient="alice@office.example") == (
        "Received: from isp.example ([192.0.2.9])\n"
        "\tby mail.office.example with ESMTP id 1.2\n"
        "\tfor <alice@office.example>;\n"
        f"\t{WHEN}\n"
    )


def test_ipv6_peers_are_tagged_literals() -> None:
    assert "([IPv6:2001:db8::1])" in field(peer="2001:db8::1%ppp0")


@given(helo=st.text(max_size=400), ident=st.text(max_size=50), recipient=st.text(max_size=300))
def test_nothing_a_peer_says_begins_a_line(helo: str, ident: str, recipient: str) -> None:
    lines = field(helo=helo, ident=ident, recipient=recipient).split("\n")
    assert lines.pop() == ""
    assert len(lines) <= 4
    assert lines[0].startswith("Received: from ")
    assert all(line.startswith("\t") for line in lines[1:])
    assert all(len(line.encode("utf-8", "replace")) <= 998 or len(recipient) > 200 for line in lines)
    assert "\r" not in "".join(lines)


@given(st.text(max_size=100))
def test_return_path_and_delivered_to_are_one_line_each(address: str) -> None:
    for octets in (trace.return_path(address), trace.delivered_to(address)):
        assert octets.count(b"\n") == 1
        assert b"\r" not in octets


def test_the_null_sender_has_an_empty_return_path() -> None:
    assert trace.return_path("") == b"Return-Path: <>\n"


@pytest.mark.parametrize(
    ("facts", "word"),
    [
        ({"extended": False, "tls": False}, "SMTP"),
        ({"extended": True, "tls": False}, "ESMTP"),
        ({"extended": True, "tls": True}, "ESMTPS"),
        ({"extended": True, "tls": False, "authenticated": True}, "ESMTPA"),
        ({"extended": True, "tls": True, "authenticated": True}, "ESMTPSA"),
        ({"extended": True, "tls": False, "utf8": True}, "UTF8SMTP"),
        ({"extended": True, "tls": True, "authenticated": True, "utf8": True}, "UTF8SMTPSA"),
    ],
)
def test_the_word_after_with(facts: dict[str, bool], word: str) -> None:
    assert trace.with_word(**facts) == word


@given(
    st.datetimes(min_value=datetime(1000, 1, 1)),
    st.integers(-12 * 60, 14 * 60),
)
def test_a_date_reads_back(moment: datetime, minutes: int) -> None:
    aware = moment.replace(microsecond=0, tzinfo=timezone(timedelta(minutes=minutes)))
    assert parsedate_to_datetime(trace.date(aware)) == aware


def test_utc_is_plus_0000() -> None:
    assert trace.date(datetime(2026, 11, 2, 8, 5, 9, tzinfo=UTC)) == "Mon, 2 Nov 2026 08:05:09 +0000"
