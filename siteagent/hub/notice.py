"""A non-delivery notice (RFC 3464, in the frame of RFC 3462): what happened, for people and for programs. Pure.

Never for the null sender (RFC 5321 §4.5.5: a notice about a notice is a loop). The header of the message goes along,
its content does not: the sender has that.
"""

from __future__ import annotations

from collections.abc import Mapping

from siteagent.store.spool import Filing
from siteagent.wire import trace
from siteagent.wire.reply import Reply, printable

_MOST_HEADER_BYTES = 32_768


def notice(
    filing: Filing, *, content: bytes, reasons: Mapping[str, Reply | str], hostname: str, when: str, ident: str
) -> bytes:
    """The whole notice, LF line ends. `reasons`: the reply of the site for each recipient, or words of ours.

    `content` begins with the header of the message; `when` comes from `trace.date`.
    """
    boundary = f"=_{ident.replace('.', '_')}"
    arrived = trace.date(filing.accepted)
    people = [
        f"This is the mail server {hostname}.",
        "",
        "Your message could not be delivered to the recipients below, and is given up.",
        "",
        *(f"  <{_line(address)}>: {_line(str(reason))}" for address, reason in reasons.items()),
        "",
        f"It was held here since {arrived}.",
    ]
    fields = [f"Reporting-MTA: dns; {hostname}", f"Arrival-Date: {arrived}"]
    for address, reason in reasons.items():
        fields += ["", *_recipient_fields(address, reason, when)]
    header = _header(filing.received + content)
    # RFC 6533 §4: what holds more than ASCII has types of its own.
    plain = all(address.isascii() for address in reasons)
    parts = [
        ("text/plain; charset=utf-8", "\n".join(people).encode()),
        ("message/delivery-status" if plain else "message/global-delivery-status", "\n".join(fields).encode()),
        ("text/rfc822-headers" if header.isascii() else "message/global-headers", header),
    ]
    head = (
        f"From: Mail server <MAILER-DAEMON@{hostname}>\nTo: <{_line(filing.sender)}>\n"
        f"Subject: Undelivered mail is given up\nDate: {when}\nMessage-ID: <{ident}@{hostname.strip('[]')}>\n"
        "Auto-Submitted: auto-replied\nMIME-Version: 1.0\n"
        f'Content-Type: multipart/report; report-type=delivery-status;\n\tboundary="{boundary}"\n\n'
    ).encode()
    body = b"".join(
        f"--{boundary}\nContent-Type: {kind}\nContent-Transfer-Encoding: 8bit\n\n".encode() + part + b"\n"
        for kind, part in parts
    )
    return head + body + f"--{boundary}--\n".encode()


def _recipient_fields(address: str, reason: Reply | str, when: str) -> list[str]:
    """RFC 3464 §2.3."""
    kind = "rfc822" if address.isascii() else "utf-8"  # RFC 6533 §3
    fields = [f"Final-Recipient: {kind}; {_line(address)}", "Action: failed"]
    if isinstance(reason, Reply):
        status = reason.enhanced if reason.enhanced.startswith("5") else "5.0.0"
        return [
            *fields,
            f"Status: {status}",
            f"Diagnostic-Code: smtp; {_line(str(reason))}",
            f"Last-Attempt-Date: {when}",
        ]
    return [*fields, "Status: 5.4.7", f"Diagnostic-Code: x-siteagent; {_line(reason)}"]


def _header(content: bytes) -> bytes:
    end = content.find(b"\n\n")
    header = content[: end + 1] if end >= 0 else content
    if len(header) > _MOST_HEADER_BYTES:
        header = header[: header.rfind(b"\n", 0, _MOST_HEADER_BYTES) + 1]
    return header


def _line(text: str) -> str:
    return printable(text)[:900]
