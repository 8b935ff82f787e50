"""A mail server that takes everything and keeps the very bytes: what a provider really put on the wire.

Written by hand and separate from the project's own server, so that both are not wrong in the same way.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from dataclasses import dataclass

from tests.e2e.net import Namespace

END_OF_DATA = b"\r\n.\r\n"


@dataclass(frozen=True, slots=True)
class Taken:
    """One transaction. `wire` is all between the 354 and the final dot, dots still stuffed."""

    sender: str
    recipients: tuple[str, ...]
    wire: bytes

    def content(self) -> bytes:
        """Dots unstuffed, CRLF as LF."""
        lines = self.wire.split(b"\r\n")
        return b"\n".join(line[1:] if line.startswith(b".") else line for line in lines)


class Sink:
    """Listens in `namespace` until closed; every connection has its own thread. `pause`: seconds before each 250."""

    def __init__(self, namespace: Namespace, *, port: int = 25, pause: float = 0) -> None:
        self.taken: list[Taken] = []
        self.connections = 0
        self._pause = pause
        self._socket = namespace.listen("0.0.0.0", port)
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Sink:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._guarded, args=(connection,), daemon=True).start()

    def _guarded(self, connection: socket.socket) -> None:
        self._open.add(connection)
        # A provider that goes away in the middle is what some tests are about.
        with contextlib.suppress(OSError, EOFError), connection:
            self._serve(connection)
        self._open.discard(connection)

    def _serve(self, connection: socket.socket) -> None:
        buffer = bytearray()
        sender, recipients = "", list[str]()

        def until(end: bytes) -> bytes:
            begin = 0
            while (at := buffer.find(end, begin)) < 0:
                begin = max(0, len(buffer) - len(end))
                chunk = connection.recv(1 << 16)
                if not chunk:
                    raise EOFError
                buffer.extend(chunk)
            found = bytes(buffer[: at + len(end)])
            del buffer[: at + len(end)]
            return found

        def say(*lines: str) -> None:
            connection.sendall("".join(f"{line}\r\n" for line in lines).encode())

        say("220 sink.example ESMTP")
        while True:
            line = until(b"\r\n").decode("utf-8", "surrogateescape").strip()
            verb = line.upper()
            if verb.startswith(("EHLO", "HELO")):
                say("250-sink.example", "250-PIPELINING", "250-8BITMIME", "250 ENHANCEDSTATUSCODES")
            elif verb.startswith("MAIL FROM:"):
                sender, recipients = line[10:].partition(">")[0].lstrip(" <"), []
                say("250 2.1.0 ok")
            elif verb.startswith("RCPT TO:"):
                recipients.append(line[8:].partition(">")[0].lstrip(" <"))
                say("250 2.1.5 ok")
            elif verb == "DATA":
                say("354 go on")
                # The CRLF in front lets a dot on the very first line count as the end (RFC 5321 §4.1.1.4).
                buffer[:0] = b"\r\n"
                wire = until(END_OF_DATA)[2:-3]
                time.sleep(self._pause)
                self.taken.append(Taken(sender, tuple(recipients), wire))
                say("250 2.0.0 taken")
            elif verb == "QUIT":
                say("221 2.0.0 bye")
                return
            else:
                say("250 2.0.0 ok")
