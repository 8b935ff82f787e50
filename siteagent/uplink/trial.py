"""Hands the provider one small message for an address of ours, as a stranger's server would: no login.

What `siteagent test` needs to tell "the provider does not take our mail" from "the provider does not send it on".
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from datetime import datetime
from email.utils import format_datetime

import attrs

from siteagent.config.sections import Limits, Provider, Tls
from siteagent.events import Line
from siteagent.uplink.broken import refused
from siteagent.uplink.connection import Connection, Route, session
from siteagent.wire.reply import Reply

# Ports where strangers do not deliver: ODMR, its misprint in Exim's manual, submission with and without TLS.
_NOT_FOR_STRANGERS = (366, 386, 465, 587)
_DATA_SECONDS = 600.0  # RFC 5321 §4.5.3.2.6


MARK = "X-Siteagent-Test"


def marked(*, hostname: str, address: str, mark: str, at: datetime, why: str) -> bytes:
    """A small message for `address`, with `mark` in a header line and `why` as its text; lines end in CRLF."""
    lines = (
        f"From: siteagent test <postmaster@{address.rpartition('@')[2]}>",
        f"To: {address}",
        "Subject: siteagent test",
        f"Date: {format_datetime(at)}",
        f"Message-ID: <{mark}.siteagent-test@{hostname.strip('[]')}>",
        f"{MARK}: {mark}",
        "Auto-Submitted: auto-generated",
        "",
        why,
        "",
    )
    return "\r\n".join(lines).encode()


async def hand_over(
    provider: Provider,
    *,
    line: Line | None,
    addresses: Sequence[str],
    hostname: str,
    limits: Limits,
    tls: ssl.SSLContext | None,
    sender: str,
    recipient: str,
    message: bytes,
    transcript: Callable[[str], None] | None = None,
) -> Reply:
    """Delivers `message` from `sender` ("" is the null sender) to `recipient`; the reply to its final dot.

    Where the provider is asked at a port that strangers do not use, the message goes to port 25, TLS if offered.

    Raises:
        Broken: at a stage of the session, or mail, rcpt or data, with the code of the reply that refused it.
        ValueError: an address that cannot stand in a command.
    """
    for address in (sender, recipient):
        if not address.isascii() or any(c.isspace() or not c.isprintable() or c in "<>" for c in address):
            raise ValueError(f"{address!r} cannot stand in an SMTP command")
    if provider.port in _NOT_FOR_STRANGERS:
        provider = attrs.evolve(provider, port=25, tls=Tls.OPPORTUNISTIC)  # type: ignore[misc]  # an alias of define
        tls = None
    route = Route(line=line, addresses=addresses, hostname=hostname, limits=limits, tls=tls, transcript=transcript)
    async with session(provider, route) as connection:
        await _say(connection, f"MAIL FROM:<{sender}>", stage="mail")
        await _say(connection, f"RCPT TO:<{recipient}>", stage="rcpt")
        await _say(connection, "DATA", stage="data", wanted=3)
        reply = await connection.body(_stuffed(message), stage="data", seconds=_DATA_SECONDS)
        if reply.code // 100 != 2:
            raise refused(provider, "data", reply)
        await connection.quit()
        return reply


async def _say(connection: Connection, line: str, *, stage: str, wanted: int = 2) -> None:
    reply = await connection.command(line, stage=stage)
    if reply.code // 100 != wanted:
        raise refused(connection.provider, stage, reply)


def _stuffed(message: bytes) -> bytes:
    """`message` as it travels: lines end in CRLF, a dot in front of each leading dot, the final dot (§4.5.2)."""
    rows = [b"." + row if row.startswith(b".") else row for row in message.splitlines()]
    return b"\r\n".join([*rows, b".", b""])
