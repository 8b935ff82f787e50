"""One SMTP reply, as a value: what we say to a peer, and what a provider said to us.

RFC 5321 §4.2 for the form, RFC 2034 and RFC 3463 for enhanced codes. A refusal inside siteagent is always one of
these values, returned and never raised; ``inbound/smtp.py`` alone writes it to a socket.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_ENHANCED = re.compile(r"([245])\.(\d{1,3})\.(\d{1,3})(?:\s+|$)")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]+")


@dataclass(frozen=True, slots=True)
class Reply:
    """`code` three digits; `enhanced` as ``"4.7.1"`` or ``""``; `text` one line for each line of the reply, by LF."""

    code: int
    enhanced: str
    text: str

    @property
    def positive(self) -> bool:
        return 200 <= self.code < 400

    @property
    def temporary(self) -> bool:
        return 400 <= self.code < 500

    @property
    def permanent(self) -> bool:
        return 500 <= self.code < 600

    def __bytes__(self) -> bytes:
        """The reply as it travels, CRLF included. Control characters become spaces: no reply inside a reply."""
        prefix = f"{self.enhanced} " if self.enhanced else ""
        lines = [_UNPRINTABLE.sub(" ", line) for line in self.text.split("\n")]
        last = len(lines) - 1
        rows = [f"{self.code}{'-' if i < last else ' '}{prefix}{line}".rstrip() for i, line in enumerate(lines)]
        # A reply whose text is empty still needs its space: `250 ` (RFC 5321 §4.2: text is optional, clients vary).
        rows = [row + " " if len(row) == 3 else row for row in rows]
        return ("\r\n".join(rows) + "\r\n").encode("utf-8", "replace")

    def __str__(self) -> str:
        parts = [str(self.code), self.enhanced, printable(self.text)]
        return " ".join(part for part in parts if part)


def printable(text: str) -> str:
    """`text` on one line, without control characters: fit for a log, a table, an error."""
    return _UNPRINTABLE.sub(" ", text).strip()


def parsed(code: int, text: str) -> Reply:
    """What a server answered, its enhanced code split off the first line where it agrees with the class of `code`."""
    match = _ENHANCED.match(text)
    if match is None or int(match[1]) != code // 100:
        return Reply(code, "", text)
    enhanced = ".".join(match.groups())
    rest = text[match.end() :]
    # Servers repeat the enhanced code on every line of a reply (RFC 2034 §4): take it off each.
    lines = [line.removeprefix(enhanced).lstrip() if i else line for i, line in enumerate(rest.split("\n"))]
    return Reply(code, enhanced, "\n".join(lines))
