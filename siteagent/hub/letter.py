"""One message as it travels: SIZE, the lines in front of it, CRLF line ends, in pieces of any length.

Nothing here holds more than a piece of a large message, and pieces of a file are read in a thread. A bare LF never
leaves (RFC 5321 §2.3.8): the spool keeps line ends as LF, and each becomes CRLF again.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from siteagent.wire.reply import Reply

PIECE_BYTES = 262_144


class Unreadable(Exception):
    """The spool does not give the content; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """`size` as RFC 1870 counts it. The content is `data`, or stands in `file` behind `head` octets."""

    id: int
    message: str
    sender: str
    addresses: tuple[str, ...]
    size: int
    smtputf8: bool
    eight_bit: bool
    received: bytes
    data: bytes | None
    file: Path | None = None
    head: int = 0
    stored: int | None = None  # octets of the content as it stands in the file; None: nobody knows
    tries: int = 0

    @property
    def envelope(self) -> Letter:
        """Without the content."""
        return replace(self, received=b"", data=None, file=None)

    @property
    def small(self) -> bytes | None:
        """All of it, where it is in memory."""
        return on_the_wire(self.received + self.data) if self.data is not None else None

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """The whole content, CRLF line ends, whole lines or not. Raises Unreadable, mostly before the first piece.

        Whoever does not take all of it closes it, and the file with it.
        """
        if self.data is not None:
            yield on_the_wire(self.received + self.data)
            return
        assert self.file is not None, "content is in memory, or in a file"
        try:
            file = await asyncio.to_thread(self.file.open, "rb")
        except OSError as error:
            raise Unreadable(f"{self.file}: {error.strerror}") from error
        try:
            if self.stored is not None and os.fstat(file.fileno()).st_size != self.head + self.stored:
                raise Unreadable(f"{self.file}: it is not whole")
            await asyncio.to_thread(file.seek, self.head)
            piece = await asyncio.to_thread(_read, file)
            yield on_the_wire(self.received)
            held = b""
            while piece:
                piece = held + piece
                # A CR at the end may belong to the LF that follows.
                held = b"\r" if piece.endswith(b"\r") else b""
                yield on_the_wire(piece[: len(piece) - len(held)])
                piece = await asyncio.to_thread(_read, file)
            if held:
                yield held
        except (OSError, OverflowError, ValueError) as error:
            raise Unreadable(f"{self.file}: {getattr(error, 'strerror', None) or error}") from error
        finally:
            await asyncio.to_thread(file.close)


def on_the_wire(text: bytes) -> bytes:
    """`text` with CRLF for each LF, whether one stood there or not."""
    if b"\r\n" in text:
        text = text.replace(b"\r\n", b"\n")
    return text.replace(b"\n", b"\r\n")


class Stuffer:
    """Doubles the dots that begin a line (RFC 5321 §4.5.2), over any pieces; `end` closes the message."""

    def __init__(self) -> None:
        self._last = b"\r\n"

    def stuffed(self, piece: bytes) -> bytes:
        """Of `piece`, CRLF line ends. A CRLF may be split between two pieces."""
        if not piece:
            return b""
        joined = self._last + piece
        out = joined.replace(b"\r\n.", b"\r\n..")[len(self._last) :]
        self._last = joined[-2:]
        return out

    @property
    def end(self) -> bytes:
        return b".\r\n" if self._last == b"\r\n" else b"\r\n.\r\n"


@dataclass(slots=True)
class Result:
    """What the site said to one message: the answer for each address, None where none came.

    `unreadable`: it was not sent, or not to its end, because our own spool does not give it; `why` says more.
    """

    letter: Letter
    answers: dict[str, Reply | None]
    why: str = ""
    unreadable: bool = False

    @property
    def taken(self) -> tuple[str, ...]:
        return tuple(address for address, reply in self.answers.items() if reply is not None and reply.code // 100 == 2)

    @property
    def refused(self) -> tuple[str, ...]:
        """For good: 5yz."""
        return tuple(address for address, reply in self.answers.items() if reply is not None and reply.permanent)


def _read(file: BinaryIO) -> bytes:
    return file.read(PIECE_BYTES)
