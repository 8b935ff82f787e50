"""The content of one message as a stream: from the wire into the spool's writer, and what is wrong with it.

Law: constant memory, never waits. A message that will be refused is read to its end all the same (nothing else keeps
a pipelining peer in step) and stored no further; the refusal is given once, at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from siteagent.inbound import says
from siteagent.wire.dotstuff import Folder, Unstuffer
from siteagent.wire.reply import Reply

MAX_RECEIVED = 100
# Content of one line. Nobody sends such lines, and who does fills memory somewhere; 100 kB and more must pass.
MAX_LINE_BYTES = 16 * 1024 * 1024
_FIELD = b"\nreceived:"


class Writer(Protocol):
    """The part of the spool's writer that is used while content arrives."""

    def write(self, data: bytes) -> None: ...

    def discard(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Rules:
    """`max_bytes` and `defer_above` in octets as RFC 1870 counts them (CRLF, no stuffing), 0 for none."""

    max_bytes: int = 0
    defer_above: int = 0
    reject_bare_newline: bool = False


class Content:
    """One message's content. `data` for DATA, `bdat` and `last` for BDAT; then `refusal` says what is wrong, if."""

    __slots__ = ("_folder", "_head", "_line", "_received", "_rules", "error", "refusal", "size", "wire", "writer")

    def __init__(self, writer: Writer | None, rules: Rules, *, chunked: bool = False) -> None:
        """`writer` None: everything is dropped (the transaction has failed, its octets must still be read)."""
        self.writer = writer
        self.refusal: Reply | None = None
        self.error: Exception | None = None
        self.size = 0
        self.wire = 0
        self._rules = rules
        self._folder: Folder = Folder() if chunked else Unstuffer()
        # The end of the header seen so far; None behind it. An LF in front makes the first line like any other.
        self._head: bytes | None = b"\n"
        self._received = 0
        self._line = 0

    @property
    def bare(self) -> int:
        """Line ends that were not CRLF."""
        return self._folder.bare_cr + self._folder.bare_lf

    @property
    def octets(self) -> int:
        """The size as a sender declares it with ``SIZE=``."""
        return self.size + self._folder.folded

    def data(self, chunk: bytes) -> bytes | None:
        """Takes a chunk of DATA. Returns what follows the end, None while the end has not come."""
        folder = self._folder
        assert isinstance(folder, Unstuffer)
        content, rest = folder.unstuff(chunk)
        self.wire += len(chunk) if rest is None else len(chunk) - len(rest)
        self._take(content)
        if rest is not None:
            self._end()
        return rest

    def bdat(self, chunk: bytes) -> None:
        self.wire += len(chunk)
        self._take(self._folder.feed(chunk))

    def last(self) -> None:
        """No octet follows the chunks so far (BDAT LAST)."""
        self._take(self._folder.close())
        self._end()

    def refuse(self, reply: Reply) -> None:
        """Drops what was stored; the first reason stays."""
        if self.refusal is None:
            self.refusal = reply
        writer, self.writer = self.writer, None
        if writer is not None:
            writer.discard()

    def _take(self, content: bytes) -> None:
        self.size += len(content)
        writer = self.writer
        if writer is None or not content:
            return
        if self._head is not None:
            self._read_header(content)
        self._measure_line(content)
        rules = self._rules
        if rules.max_bytes and self.octets > rules.max_bytes:
            self.refuse(says.TOO_BIG)
        elif rules.defer_above and self.octets > rules.defer_above:
            # Over the hard limit it is a 552 in the end; until that is sure, nothing more is stored.
            self.refuse(says.TOO_BIG_NOW)
        elif self._received > MAX_RECEIVED:
            self.refuse(says.LOOP)
        elif self.writer is not None:
            try:
                writer.write(content)
            except Exception as error:
                # The stream must be read on all the same, or the peer's next message would be taken for commands.
                self.error = error
                self.refuse(says.OUR_FAULT)

    def _end(self) -> None:
        rules = self._rules
        if self.refusal is says.TOO_BIG_NOW and rules.max_bytes and self.octets > rules.max_bytes:
            self.refusal = says.TOO_BIG
        if rules.reject_bare_newline and self.bare:
            self.refuse(says.BARE_NEWLINE)

    def _read_header(self, content: bytes) -> None:
        """Counts Received fields until the first empty line (RFC 5321 §6.3)."""
        assert self._head is not None
        text = self._head + content
        end = text.find(b"\n\n")
        if end >= 0:
            self._received += text[:end].lower().count(_FIELD)
            self._head = None
            return
        self._received += text.lower().count(_FIELD)
        self._head = text[-(len(_FIELD) - 1) :]

    def _measure_line(self, content: bytes) -> None:
        newline = content.find(b"\n")
        if newline < 0:
            self._line += len(content)
        else:
            self._line += newline
        if self._line > MAX_LINE_BYTES:
            self.refuse(says.LINE_OF_CONTENT)
        if newline >= 0:
            self._line = len(content) - content.rfind(b"\n") - 1
