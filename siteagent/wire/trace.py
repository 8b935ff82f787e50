"""The header fields that a receiving server adds: Received, Return-Path, Delivered-To.

RFC 5321 §4.4 for their form, RFC 3848 and RFC 6531 §4.3 for the word after ``with``. Nothing that a peer said can
begin a header line of its own here: whatever is not plain text becomes "?". All fields end with LF, are folded, and
no line is over 998 octets.
"""

from __future__ import annotations

import ipaddress
import re
from datetime import datetime
from functools import lru_cache

_NOT_A_NAME = re.compile(r"[^A-Za-z0-9.:_\[\]-]")
_NOT_TEXT = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_MAX_HELO = 255
_MAX_ADDRESS = 900
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def with_word(*, extended: bool, tls: bool, authenticated: bool = False, utf8: bool = False) -> str:
    """SMTP after HELO; else ESMTP or UTF8SMTP with S for TLS and A for AUTH (RFC 3848, RFC 6531 §4.3)."""
    if not extended:
        return "SMTP"
    return f"{'UTF8SMTP' if utf8 else 'ESMTP'}{'S' if tls else ''}{'A' if authenticated else ''}"


def date(moment: datetime) -> str:
    """`moment` (with its zone) as RFC 5322 §3.3 writes it, with a numeric zone."""
    offset = moment.utcoffset()
    assert offset is not None, "a date without its zone"
    minutes = int(offset.total_seconds() // 60)
    sign, minutes = ("-", -minutes) if minutes < 0 else ("+", minutes)
    return (
        f"{_DAYS[moment.weekday()]}, {moment.day} {_MONTHS[moment.month - 1]} {moment.year:04} "
        f"{moment.hour:02}:{moment.minute:02}:{moment.second:02} {sign}{minutes // 60:02}{minutes % 60:02}"
    )


@lru_cache(maxsize=64)
def literal(peer: str) -> str:
    """The address of a peer as an address literal: ``[192.0.2.1]``, ``[IPv6:2001:db8::1]`` (RFC 5321 §4.1.3)."""
    plain = peer.partition("%")[0]
    try:
        address = ipaddress.ip_address(plain)
    except ValueError:
        return "[unknown]"
    return f"[IPv6:{address}]" if address.version == 6 else f"[{address}]"


def received(*, helo: str, peer: str, by: str, word: str, ident: str, recipient: str | None, when: str) -> bytes:
    """One Received field. `recipient` only where there is exactly one: a second would tell who else was written to.

    `peer` is an IP address, `when` comes from `date`.
    """
    for_clause = f"\n\tfor <{_text(recipient)}>" if recipient and len(recipient) <= _MAX_ADDRESS else ""
    field = (
        f"Received: from {_name(helo)} ({literal(peer)})\n"
        f"\tby {_name(by)} with {word} id {_name(ident)}{for_clause};\n"
        f"\t{when}\n"
    )
    return field.encode("utf-8", "replace")


def return_path(sender: str) -> bytes:
    """`sender` empty for the null sender."""
    return f"Return-Path: <{_text(sender)}>\n".encode("utf-8", "replace")


def delivered_to(address: str) -> bytes:
    return f"Delivered-To: {_text(address)}\n".encode("utf-8", "replace")


def _name(text: str) -> str:
    return _NOT_A_NAME.sub("?", text)[:_MAX_HELO] or "unknown"


def _text(text: str) -> str:
    return _NOT_TEXT.sub("?", text)[:_MAX_ADDRESS]
