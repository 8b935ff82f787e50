"""The door: from the accepted connection to the greeting, or to the one line that a stranger hears.

A stranger is answered 4yz, never 5yz: Exim and Sendmail would return the mail of a provider that calls from a new
address. An allowed peer that comes in a crowd is not refused, its greeting waits for a place (see `places`).
"""

from __future__ import annotations

import asyncio
import math
import socket
from datetime import UTC, datetime

from siteagent.events import SessionOpened, SessionRefused
from siteagent.inbound import says
from siteagent.inbound.admission import plain_peer
from siteagent.inbound.connection import INBOX_BYTES, Connection, Phase
from siteagent.inbound.places import WAIT_SECONDS
from siteagent.wire import proxy
from siteagent.wire.reply import Reply, printable

_PROXY_SECONDS = 10.0
_NOT_NOW = Reply(421, says.OUR_FAULT.enhanced, says.OUR_FAULT.text)


class Door(Connection):
    """`greeted` is called when the session begins."""

    def greeted(self) -> None:
        """The 220 is queued; what came early lies in the inbox."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        peername = transport.get_extra_info("peername")
        self.peer = plain_peer(str(peername[0])) if isinstance(peername, tuple) and peername else ""
        self.session.peer = peername
        self.tls = transport.get_extra_info("ssl_object") is not None
        try:
            if self.reversed:
                self.greet()
            elif self.reception.listener.proxy_protocol:
                self._start_clock(_PROXY_SECONDS)
            else:
                self._admit()
        except Exception as error:
            self._report(error)
            self.end(_NOT_NOW, "our fault")

    def knock(self, data: bytes) -> None:
        """Octets from a peer that has not been greeted."""
        self._inbox += data
        if self._key is None and self.reception.listener.proxy_protocol and not self.reversed:
            self._read_proxy_header()
        elif len(self._inbox) > INBOX_BYTES:
            self._regulate()

    def _read_proxy_header(self) -> None:
        found = proxy.header(self._inbox)
        if found is None:
            return
        if isinstance(found, bool):
            self._turn_away(says.PROXY_HEADER, "no PROXY header")
            return
        self._inbox = self._inbox[found.consumed :]
        if found.peer is not None:
            self.peer = plain_peer(found.peer)
        self._deadline = math.inf
        self._admit()

    def _admit(self) -> None:
        house = self._house
        refusal = self.reception.admit(self.peer)
        if refusal is not None:
            self._turn_away(refusal, refusal.text)
            return
        if house is None:
            self._welcome()
            return
        if house.places.full:
            self._turn_away(says.STRANGER_BUSY, "too many connections")
            return
        owner = self.reception.owner(self.peer)
        key = owner.provider or self.crowd(self.peer)
        if owner.provider is None and house.places.crowded(key):
            self._turn_away(says.STRANGER_BUSY, "too many connections from there")
            return
        self._key = key
        if house.places.enter(self, self._key):
            self._welcome()
        else:
            self._start_clock(WAIT_SECONDS)

    def crowd(self, peer: str) -> str:
        """Whose places a peer takes that belongs to no provider."""
        return peer

    def place_is_free(self) -> None:
        if self.phase is Phase.ARRIVING:
            self.loop.call_soon(self._welcome)

    def _welcome(self) -> None:
        if self.phase is not Phase.ARRIVING:
            return
        try:
            self.owner = self.reception.owner(self.peer)
            if self.owner.provider is None and self._talks_early():
                self._turn_away(says.EARLY_TALKER, "talked before the greeting")
                return
            self.greet()
        except Exception as error:
            self._report(error)
            self._turn_away(_NOT_NOW, "our fault")

    def _talks_early(self) -> bool:
        """Whether octets came before our greeting: programs that send rubbish do not wait for it."""
        if self._inbox:
            return True
        own = self.transport.get_extra_info("socket") if self.transport is not None else None
        if own is None or self.tls:
            return False
        try:
            # asyncio hands out a wrapper without recv: look through a duplicate of the descriptor.
            with socket.socket(fileno=socket.dup(own.fileno())) as peek:
                return bool(peek.recv(1, socket.MSG_PEEK | getattr(socket, "MSG_DONTWAIT", 0)))
        except OSError:
            return False

    def greet(self) -> None:
        """The 220, and the session exists."""
        self.phase = Phase.OPEN
        self.session_id = self.reception.new_id()
        self.since = datetime.now(UTC)
        self._opened_at = self.loop.time()
        self._queue(f"220 {self.reception.hostname} ESMTP\r\n".encode("ascii", "replace"))
        if not self._closing:
            self._flush_alone()
        self.emit(
            SessionOpened(session=self.session_id, provider=self.owner.provider, round=self.owner.round, peer=self.peer)
        )
        if self._closing:
            self.end(says.CLOSING, "closing down")
            return
        self.greeted()
        self._regulate()

    def _turn_away(self, reply: Reply, reason: str) -> None:
        house = self._house
        if house is None or house.may_tell(self.peer, self.loop.time()):
            self.emit(
                SessionRefused(
                    peer=self.peer,
                    code=reply.code,
                    reason=printable(reason),
                    expected=self.reception.expected(self.peer),
                )
            )
        self.end(reply, reason)

    def expired(self) -> None:
        if self._key is None:
            self._turn_away(says.PROXY_HEADER, "no PROXY header")
        else:
            self._turn_away(says.WAITED_TOO_LONG, "waited for its greeting too long")

    def shut(self) -> None:
        """A graceful stop: 421 now, or behind the answer to the message that is under way."""
        self._closing = True
        if self.phase is Phase.ARRIVING:
            self._turn_away(says.CLOSING, "closing down")
        elif self.phase is Phase.OPEN and not self.in_content:
            self.end(says.CLOSING, "closing down")
