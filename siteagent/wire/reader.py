"""Reply bytes in, `Reply` values out: what a server said, or that it does not speak SMTP.

The law: a reply is either right or an error, never guessed. ``22X``, ``220OK``, lines of one reply with different
codes, a code outside 2yz to 5yz, or a NUL end the conversation (`ReplyError`), because whatever is counted as
"started" by mistake is mail that nobody waits for. RFC 5321 §4.2 for the form.

Lenient, because servers do it: bare LF ends a line, blank lines between two replies are skipped, lines longer than
512 octets are read (up to `MAX_LINE`), 8-bit text is taken as UTF-8 with what does not decode replaced.

Trap for the next reader: what stands behind a complete reply is not the next reply. It stays in `rest`, and a client
that sees anything there before it sends its next command has lost step with the server.
"""

from __future__ import annotations

import re

from siteagent.wire.reply import Reply, parsed, printable

MAX_LINE = 8192
MAX_REPLY = 65536
_FORM = re.compile(rb"([2-5][0-9][0-9])(?:([ -])(.*))?", re.DOTALL)
_BLANK = b"\r\n"


class ReplyError(Exception):
    """The peer's bytes are no SMTP reply. The text says what is wrong with them, quoting at most 80 characters."""


class ReplyReader:
    """Takes bytes as they come, in any pieces. After `ReplyError` the connection, and this reader, are of no use."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._searched = 0
        self._code: int | None = None
        self._lines: list[str] = []
        self._taken = 0

    @property
    def rest(self) -> bytes:
        """What arrived behind the last complete reply, blank lines in front of it left out."""
        return bytes(self._buffer).lstrip(_BLANK)

    def feed(self, data: bytes) -> Reply | None:
        """The reply that `data` completes, or None while it lacks bytes.

        Raises:
            ReplyError: the bytes are no reply, or too many: more than `MAX_LINE` in a line, `MAX_REPLY` in a reply.
        """
        self._buffer += data
        while (end := self._buffer.find(b"\n", self._searched)) >= 0:
            line = bytes(self._buffer[:end])
            del self._buffer[: end + 1]
            self._searched = 0
            reply = self._line(line)
            if reply is not None:
                return reply
        self._searched = len(self._buffer)
        if len(self._buffer) > MAX_LINE or self._taken + len(self._buffer) > MAX_REPLY:
            raise ReplyError("a reply without end")
        return None

    def _line(self, line: bytes) -> Reply | None:
        self._taken += len(line) + 1
        if len(line) > MAX_LINE or self._taken > MAX_REPLY:
            raise ReplyError("a reply without end")
        line = line.rstrip(b"\r")
        if not line and self._code is None:
            return None
        match = _FORM.fullmatch(line)
        if match is None or b"\0" in line:
            raise ReplyError(f'"{quoted(line)}" is no reply')
        code = int(match[1])
        if self._code not in (None, code):
            raise ReplyError(f"one reply with two codes, {self._code} and {code}")
        self._code = code
        self._lines.append((match[3] or b"").decode("utf-8", "replace").strip(" \t\r"))
        if match[2] == b"-":
            return None
        reply = parsed(code, "\n".join(self._lines))
        self._code, self._lines, self._taken = None, [], 0
        return reply


def quoted(raw: bytes) -> str:
    """The first of `raw`, fit for an error text."""
    text = printable(raw[:80].decode("utf-8", "replace"))
    return f"{text}..." if len(raw) > 80 else text
