"""The arguments of MAIL and RCPT: a path and its ESMTP parameters.

RFC 5321 §4.1.2 for paths, §4.1.1.11 for parameters, RFC 6531 §3.3 for addresses beyond ASCII. Two parsers, one
meaning: an anchored expression for the plain form that nearly all mail uses, and a complete one for the rest. Never
raises; returns a value, or the `Fault` that says why there is none. Linear in the length of the line.

What is kept: a percent hack and a bang path are a local part like any other (whether it is ours, routing decides).
What is dropped: a source route (RFC 5321 appendix F.2: MUST be recognised, SHOULD be ignored).

Lenient: missing angle brackets around a plain address, blanks after the colon, dots anywhere in a local part (a
Japanese carrier gave out millions of those), a local part over 64 octets (VERP), a final dot of a domain.
"""

from __future__ import annotations

import ipaddress
import re
from enum import StrEnum
from typing import NamedTuple

MAX_LOCAL_OCTETS = 512
MAX_DOMAIN_OCTETS = 255


class Fault(StrEnum):
    """Why there is no path."""

    KEYWORD = "keyword missing"  # neither FROM: nor TO:
    SYNTAX = "address malformed"
    CONTROL = "control character"
    ENCODING = "not UTF-8"
    LENGTH = "address too long"
    PARAMETER = "parameter malformed"


class Path(NamedTuple):
    """`local` and `domain` as people write them; both empty is the null path ``<>``; `domain` alone may be empty."""

    local: str
    domain: str
    ascii: bool = True

    @property
    def address(self) -> str:
        """``local@domain``, quoted where it must be; ``""`` for the null path."""
        return f"{self.local}@{self.domain}" if self.domain else self.local


class Argument(NamedTuple):
    """`parameters`: upper-case keyword to value, None where it has none; the last one counts where one repeats."""

    path: Path
    parameters: dict[str, str | None]


_PLAIN_LOCAL = rb"[!#$%&'*+\-/0-9=?A-Z^_`a-z{|}~.]{1,64}"
_PLAIN_DOMAIN = rb"[0-9A-Za-z][0-9A-Za-z_.-]{0,253}"
_PLAIN = {
    keyword: re.compile(
        rb"(?i:%b): ?<(?:(%b)@(%b))?>((?: [!-~]+)*) *\Z" % (keyword, _PLAIN_LOCAL, _PLAIN_DOMAIN),
    )
    for keyword in (b"FROM", b"TO")
}
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
# Told by what is not in them: a class with a range up to U+10FFFF takes milliseconds to compile, at every start.
_DOT_STRING = re.compile(r"[^\x00-\x20\x22(),:;<>@\[\\\]\x7f-\x9f]+")
_NOT_IN_LABELS = r"\x00-,/:-@\[-^`{-\x9f"  # all of ASCII and C1 but letters, digits, "_", "-" and "."
_DOMAIN = re.compile(rf"[^{_NOT_IN_LABELS}]+")
_LABEL = re.compile(rf"[^{_NOT_IN_LABELS}.\-](?:[^{_NOT_IN_LABELS}.]*[^{_NOT_IN_LABELS}.\-])?")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_ESCAPED = re.compile(r"\\(.)")
_MUST_ESCAPE = re.compile(r'(["\\])')
_ROUTE = re.compile(r"@[^@,:<>\s]+(?:,@[^@,:<>\s]+)*:")
_LITERAL = re.compile(r"\[([!-Z^-~]+)\]")
_KEYWORD = re.compile(r"[0-9A-Za-z][0-9A-Za-z-]*\Z")
_VALUE = re.compile(r"[^=\s]+\Z")


def mail_argument(text: bytes) -> Argument | Fault:
    """What follows ``MAIL ``: ``FROM:<path> parameters``. The path may be null, and may lack a domain."""
    return _argument(b"FROM", text)


def rcpt_argument(text: bytes) -> Argument | Fault:
    """What follows ``RCPT ``: ``TO:<path> parameters``. The path is never null; it may lack a domain."""
    found = _argument(b"TO", text)
    return Fault.SYNTAX if isinstance(found, Argument) and not found.path.local else found


def _argument(keyword: bytes, text: bytes) -> Argument | Fault:
    match = _PLAIN[keyword].match(text)
    if match is None:
        return _complete(keyword, text)
    local, domain, tail = match.groups()
    if local is None:
        path = Path("", "")
    else:
        if b".." in domain or domain[-1] in b".-" or b".-" in domain or b"-." in domain or len(domain) > 63:
            return _complete(keyword, text)
        path = Path(local.decode("ascii"), domain.decode("ascii"))
    parameters = _parameters(tail.decode("ascii")) if tail else {}
    return parameters if isinstance(parameters, Fault) else Argument(path, parameters)


def _complete(keyword: bytes, raw: bytes) -> Argument | Fault:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return Fault.ENCODING
    if _CONTROL.search(text):
        return Fault.CONTROL
    colon = len(keyword) + 1
    if text[:colon].upper() != keyword.decode("ascii") + ":":
        return Fault.KEYWORD
    text = text[colon:].strip(" ")
    if text.startswith("<>"):
        path, tail = Path("", ""), text[2:]
    else:
        bracketed = text.startswith("<")
        found = _mailbox(text, 1 if bracketed else 0, bracketed=bracketed)
        if isinstance(found, Fault):
            return found
        path, end = found
        tail = text[end:]
    if tail and not tail.startswith(" "):
        return Fault.SYNTAX
    parameters = _parameters(tail)
    return parameters if isinstance(parameters, Fault) else Argument(path, parameters)


def _mailbox(text: str, start: int, *, bracketed: bool) -> tuple[Path, int] | Fault:
    """The mailbox at `start` and the index behind it (and behind its ``>``)."""
    if bracketed and text.startswith("@", start):
        route = _ROUTE.match(text, start)
        if route is None:
            return Fault.SYNTAX
        start = route.end()
    parsed = _local_part(text, start, quotes=bracketed)
    if isinstance(parsed, Fault):
        return parsed
    local, at = parsed
    domain = ""
    if text.startswith("@", at):
        host = _domain(text, at + 1)
        if isinstance(host, Fault):
            return host
        domain, at = host
    elif not bracketed:
        return Fault.SYNTAX
    if bracketed:
        if not text.startswith(">", at):
            return Fault.SYNTAX
        at += 1
    return Path(local, domain, local.isascii() and domain.isascii()), at


def _local_part(text: str, start: int, *, quotes: bool) -> tuple[str, int] | Fault:
    """One spelling for each local part: quotes only where it cannot do without."""
    if quotes and text.startswith('"', start):
        match = _QUOTED.match(text, start)
        if match is None:
            return Fault.SYNTAX
        local = _ESCAPED.sub(r"\1", match[1])
        if not _DOT_STRING.fullmatch(local):
            local = '"' + _MUST_ESCAPE.sub(r"\\\1", local) + '"'
    else:
        match = _DOT_STRING.match(text, start)
        if match is None:
            return Fault.SYNTAX
        local = match[0]
    if local == '""':
        return Fault.SYNTAX
    if len(local.encode("utf-8")) > MAX_LOCAL_OCTETS:
        return Fault.LENGTH
    return local, match.end()


def _domain(text: str, start: int) -> tuple[str, int] | Fault:
    if text.startswith("[", start):
        match = _LITERAL.match(text, start)
        if match is None or not _is_address(match[1]):
            return Fault.SYNTAX
        return match[0], match.end()
    match = _DOMAIN.match(text, start)
    if match is None:
        return Fault.SYNTAX
    domain = match[0].removesuffix(".")
    if len(domain.encode("utf-8")) > MAX_DOMAIN_OCTETS:
        return Fault.LENGTH
    for label in domain.split("."):
        if not _LABEL.fullmatch(label):
            return Fault.SYNTAX
        if label.isascii() and len(label) > 63:
            return Fault.LENGTH
    return domain, match.end()


def _is_address(inside: str) -> bool:
    """RFC 5321 §4.1.3: an IPv4 address, ``IPv6:`` and an address, or another registered tag and its content."""
    tag, colon, content = inside.partition(":")
    try:
        if not colon:
            ipaddress.IPv4Address(inside)
        elif tag.upper() == "IPV6":
            ipaddress.IPv6Address(content)
        else:
            return bool(content) and _KEYWORD.match(tag) is not None
    except ValueError:
        return False
    return True


def _parameters(tail: str) -> dict[str, str | None] | Fault:
    """RFC 5321 §4.1.1.11. Values keep their case."""
    found: dict[str, str | None] = {}
    for word in tail.split():
        keyword, equals, value = word.partition("=")
        if not _KEYWORD.match(keyword) or (equals and not _VALUE.match(value)):
            return Fault.PARAMETER
        found[keyword.upper()] = value if equals else None
    return found
