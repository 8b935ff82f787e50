"""Non-delivery notices (RFC 3464)."""

from __future__ import annotations

import email
from datetime import UTC, datetime
from email.message import Message

from siteagent.hub.notice import notice
from siteagent.store.spool import Filing
from siteagent.wire.reply import Reply


def made(**options: object) -> Message:
    filing = Filing(
        id=7,
        message="m7",
        target="office.example",
        addresses=("alice@office.example", "bob@office.example"),
        session="s",
        provider=None,
        round=None,
        sender="friend@far.example",
        received=b"Received: from x\n\tby hub.example; now\n",
        smtputf8=False,
        eight_bit=False,
        accepted=datetime(2026, 11, 1, 8, 0, tzinfo=UTC),
        size=1,
        bare=0,
        data=b"",
        file=None,
        head=0,
    )
    values: dict[str, object] = {
        "content": b"Subject: secret plans\nX: y\n\nThe body stays here.\n",
        "reasons": {
            "alice@office.example": Reply(550, "5.1.1", "no such user"),
            "bob@office.example": "the site did not fetch it within 30 days",
        },
        "hostname": "hub.example",
        "when": "Mon, 23 Nov 2026 08:00:00 +0000",
        "ident": "notice.7.abc",
    }
    return email.message_from_bytes(notice(filing, **{**values, **options}))  # type: ignore[arg-type]


def test_it_is_a_report_in_three_parts() -> None:
    message = made()
    assert message.get_content_type() == "multipart/report"
    assert message.get_param("report-type") == "delivery-status"
    kinds = [part.get_content_type() for part in message.get_payload()]  # type: ignore[union-attr]
    assert kinds == ["text/plain", "message/delivery-status", "text/rfc822-headers"]
    assert (message["To"], message["Auto-Submitted"]) == ("<friend@far.example>", "auto-replied")


def test_what_holds_more_than_ascii_has_types_of_its_own() -> None:
    message = made(reasons={"bj\u00f6rn@office.example": "gone"}, content="Subject: caf\u00e9\n\n".encode())
    kinds = [part.get_content_type() for part in message.get_payload()]  # type: ignore[union-attr]
    assert kinds == ["text/plain", "message/global-delivery-status", "message/global-headers"]
    assert b"Final-Recipient: utf-8; bj\xc3\xb6rn@office.example" in message.as_bytes()


def test_each_recipient_has_its_fields() -> None:
    _, status, _ = made().get_payload()  # type: ignore[misc]
    head, alice, bob = status.get_payload()
    assert head["Reporting-MTA"] == "dns; hub.example"
    assert (alice["Final-Recipient"], alice["Action"], alice["Status"]) == (
        "rfc822; alice@office.example",
        "failed",
        "5.1.1",
    )
    assert alice["Diagnostic-Code"] == "smtp; 550 5.1.1 no such user"
    assert (bob["Final-Recipient"], bob["Status"]) == ("rfc822; bob@office.example", "5.4.7")


def test_the_header_goes_along_and_the_content_does_not() -> None:
    text = made().as_string()
    assert "secret plans" in text
    assert "stays here" not in text


def test_no_word_of_the_site_begins_a_line_of_its_own() -> None:
    reply = Reply(550, "5.7.1", "no\r\nBcc: victim@far.example\r\n\r\nhello")
    message = made(reasons={"alice@office.example": reply})
    assert message["Bcc"] is None
    _, status, _ = message.get_payload()  # type: ignore[misc]
    assert status.get_payload()[1]["Bcc"] is None


def test_a_header_without_end_is_cut() -> None:
    assert len(made(content=b"X: y\n" * 100_000).as_bytes()) < 40_000
