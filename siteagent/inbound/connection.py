"""One connection of the listener, below everything said on it: replies out, flow both ways, one clock, the end.

What arrives is for the layers above: `Door` (who may come, and when), `Channel` (lines and content), `Manners` and
`Dialect` (the verbs). They are one object for each connection, in layers so that each fits on a page.

aiosmtpd's class is the base (its `Session`, its AUTH methods for a subclass), but neither its constructor (which
inspects its own members, 0.2 to 0.5 ms each time), nor its task and StreamReader for each connection, nor its table
of verbs is used: only verbs written in our own classes exist. What is leant on: tests/contract/test_aiosmtpd_names.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable
from datetime import datetime
from enum import Enum, auto
from functools import lru_cache
from typing import Any

from aiosmtpd.smtp import SMTP, Envelope, Session

from siteagent.events import Event, SessionClosed
from siteagent.inbound import says
from siteagent.inbound.heard import gone, heard, unacknowledged
from siteagent.inbound.places import House, Meter
from siteagent.inbound.reception import Owner, Reception, SessionView
from siteagent.traffic import carried
from siteagent.wire.reply import Reply, printable

INBOX_BYTES = 65_536
_LINGER_SECONDS = 0.8
_HEARING_SECONDS = 120.0
_LINGERING = 64
_FIRST_LISTEN_SECONDS = 0.001
_LONGEST_LISTEN_SECONDS = 0.25
_NOT_HEARD = "gone before our last answer was heard"

Sink = Callable[[bytes], bytes | None]


@lru_cache(maxsize=128)
def _octets(reply: Reply) -> bytes:
    return bytes(reply)


class Phase(Enum):
    ARRIVING = auto()  # no greeting yet: waits for its PROXY header or its place
    OPEN = auto()
    ENDING = auto()  # the last word is said
    GONE = auto()


class Connection(SMTP, asyncio.BufferedProtocol):
    """To be made on the loop's thread; `connection_made` starts it."""

    session: Session
    envelope: Envelope = Envelope()  # aiosmtpd's AUTH methods hand it on; nothing of ours is in it

    def __init__(
        self,
        reception: Reception,
        *,
        reversed_session: bool = False,
        owner: Owner | None = None,
        house: House | None = None,
    ) -> None:
        """`reversed_session`: the connection is one that we made and that was turned round by ATRN.

        Then `owner` says whom it counts for, nobody is turned away, and neither TLS nor a place is offered.
        """
        # Not SMTP.__init__: see above.
        self.loop = asyncio.get_running_loop()
        self.reception = reception
        self.reversed = reversed_session
        self.owner = owner or Owner(provider=None, round=None)
        self.session = Session(self.loop)
        self.session_id = ""
        self.peer = ""
        self.tls = False
        self.transport: asyncio.Transport | None = None
        self.phase = Phase.ARRIVING
        self.messages = 0
        self.bytes = 0
        self.received = 0
        self.sent = 0
        self.since: datetime | None = None
        self.on_end: Callable[[Any], None] | None = None
        self._house = house
        self._buffer = house.buffer if house is not None else memoryview(bytearray(INBOX_BYTES))
        self._key: str | None = None
        self._meter: Meter | None = None
        self._opened_at = 0.0
        # What TCP carried when we last said something: TLS, and asking on a connection that was turned round, cost too.
        self._carried = 0
        self._inbox = b""
        self._skipping = False
        self._out: list[bytes] = []
        self._out_size = 0
        self._sink: Sink | None = None
        self._work: asyncio.Future[None] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._turn = False
        self._hold = False
        self._eof = False
        self._unheard = False
        self._promised_at: int | None = None  # so many octets we had said with the latest 250 to a message
        self._deaf = False
        self._clogged = False
        self._full_writer = False
        self._reading = True
        self._deadline = math.inf
        self._floor_at = math.inf
        self._silent_at = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._alone = True
        self._temporary = False
        self._closing = False
        self._reason = ""
        self._polite = False
        self._lingers = False

    # --- what the layers above fill in --------------------------------------------------------------------------------

    @property
    def in_message(self) -> bool:
        """A transaction is open: between MAIL and the answer to its end."""
        return False

    @property
    def in_content(self) -> bool:
        """Content is arriving or being committed: a graceful stop waits for this."""
        return self._sink is not None or (self._work is not None and self._waiter is None)

    def abandon(self) -> None:
        """Drops an unfinished message."""

    def progress(self) -> tuple[int, int, float]:
        """Octets of the message that is arriving, how many were declared, and the seconds that it took so far."""
        return 0, 0, 0.0

    def place_is_free(self) -> None:
        """Its turn has come (see `Places`)."""

    def expired(self) -> None:
        """The clock ran out, and the peer is neither leaving nor deaf."""

    def go_on(self) -> None:
        """The peer reads again: what was held back for it can go on."""

    # --- in -----------------------------------------------------------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the loop puts what arrives: one buffer for all, since each takes its octets out before another reads.

        asyncio's usual way is a fresh buffer of 256 KiB for each read: mapped, cut and unmapped for every line.
        """
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(bytes(self._buffer[:nbytes]))

    # --- out ----------------------------------------------------------------------------------------------------------

    def say(self, reply: Reply) -> None:
        """Queues a reply; it leaves with the others of its burst."""
        self._temporary = self._temporary or 400 <= reply.code < 500
        self._queue(_octets(reply))

    async def push(self, status: str | bytes | Reply) -> None:
        """Sends what is queued and then `status`, now. For verbs that run in a task."""
        if isinstance(status, Reply):
            self.say(status)
        else:
            line = status.encode("utf-8", "replace") if isinstance(status, str) else status
            self._temporary = self._temporary or line[:1] == b"4"
            self._queue(line.replace(b"\r", b" ").replace(b"\n", b" ") + b"\r\n")
        self._flush()

    def _queue(self, octets: bytes) -> None:
        self._out.append(octets)
        self._out_size += len(octets)

    def _flush(self) -> None:
        if not self._out:
            return
        octets = b"".join(self._out) if len(self._out) > 1 else self._out[0]
        self._out.clear()
        self._out_size = 0
        self.sent += len(octets)
        if self.transport is not None and self.phase is not Phase.GONE:
            self.transport.write(octets)
            if self.tls or self.reversed:  # when the connection is lost its socket may be gone
                self._carried = carried(self.transport) or self._carried

    def _flush_alone(self) -> None:
        """Sends what is queued where nothing more is asked yet: the peer goes on while we tell of it."""
        if not self._inbox:
            self._flush()

    def pause_writing(self) -> None:
        self._clogged = True
        self._start_clock(self.reception.limits.command_seconds)
        self._regulate()

    def resume_writing(self) -> None:
        self._clogged = False
        if self.phase is Phase.OPEN:
            self.go_on()
        self._regulate()

    def _regulate(self) -> None:
        """Reads from the peer, or does not."""
        transport = self.transport
        if transport is None or self.phase is Phase.GONE or transport.is_closing():
            return
        reading = self.phase is Phase.ENDING or (
            not self._clogged and not self._full_writer and not self._turn and len(self._inbox) <= INBOX_BYTES
        )
        if reading != self._reading:
            self._reading = reading
            if reading:
                transport.resume_reading()
            else:
                transport.pause_reading()

    # --- one clock ----------------------------------------------------------------------------------------------------

    def _start_clock(self, seconds: float) -> None:
        """Something must have happened `seconds` from now. The timer is only set anew where it would ring too late."""
        self._deadline = self.loop.time() + seconds
        self._arm()

    def _arm(self) -> None:
        if self._deadline < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = self._deadline
            self._timer = self.loop.call_at(self._deadline, self._tick)

    def _tick(self) -> None:
        self._timer, self._timer_at = None, math.inf
        if self._deadline <= self.loop.time() + 0.001:
            self._deadline = math.inf
            if self.phase is Phase.ENDING or self._clogged:
                self._reason = self._reason or "does not read our replies"
                if self.transport is not None:
                    self.transport.abort()
            else:
                self.expired()
        if self._deadline < math.inf and self.phase is not Phase.GONE:
            self._arm()

    # --- the end ------------------------------------------------------------------------------------------------------

    def end(self, reply: Reply | None, reason: str, *, linger: bool = True) -> None:
        """The last reply, then the connection is closed. `linger`: first let the peer read it, unread input or not."""
        if self.phase in (Phase.ENDING, Phase.GONE):
            return
        if reply is not None:
            self.say(reply)
        self.abandon()
        self._reason = self._reason or reason
        self.phase = Phase.ENDING
        self._inbox = b""
        self._sink = None
        self._wake()
        self._flush()
        transport = self.transport
        if transport is None:
            return
        house = self._house
        if linger and not self._eof and transport.can_write_eof() and (house is None or house.lingering < _LINGERING):
            # Closing over unread input would reset the connection and could take our last reply with it.
            with contextlib.suppress(OSError):  # the peer reset it, and nobody was told yet
                transport.write_eof()
            if house is not None:
                house.lingering += 1
                self._lingers = True
            self._regulate()
            self._start_clock(_LINGER_SECONDS)
        else:
            self._start_clock(min(_HEARING_SECONDS, self.reception.limits.command_seconds))
            self._close_when_heard(_FIRST_LISTEN_SECONDS)

    def promised(self) -> None:
        """A message was answered 250 just now: whether the peer hears that decides how the session ended."""
        self._promised_at = self.sent + self._out_size

    def unacknowledged(self) -> int | None:
        """Octets of ours that have not arrived yet; None where nobody can tell."""
        return None if self.transport is None else unacknowledged(self.transport)

    def listen(self) -> bool:
        """Whether the peer heard our last promise, as far as anybody can tell."""
        if self._promised_at is not None:
            waiting = self.unacknowledged()
            if waiting is not None:
                self._deaf = not heard(waiting, said_since=self.sent - self._promised_at, tls=self.tls)
                if not self._deaf:
                    self._promised_at = None  # for good
        return not self._deaf

    def _close_when_heard(self, pause: float) -> None:
        """Closes, at once or when our last promise was heard; the clock of the end runs. The kernel must be polled."""
        if self.transport is None:
            return
        if self.listen() or gone(self.transport):
            self.transport.close()
        else:
            self.loop.call_later(pause, self._close_when_heard, min(2 * pause, _LONGEST_LISTEN_SECONDS))

    def detach(self) -> tuple[asyncio.Transport, bytes]:
        """Gives the transport away, open, with the octets that nobody has read; the session is over (ATRN)."""
        transport, rest = self.transport, self._inbox
        assert transport is not None
        self._flush()
        self._reason, self._polite = "turned", True
        self._inbox = b""
        self._finish()
        return transport, rest

    def stop(self) -> None:
        """The time for a graceful stop is over: 421 even inside a message. A commit still runs to its end."""
        self._closing = True
        if self.phase is Phase.ENDING and self.transport is not None:
            self.transport.abort()
        elif self._work is None or self._waiter is not None:
            self.end(says.CLOSING, "closing down", linger=False)

    def connection_lost(self, error: Exception | None) -> None:
        if self.phase is Phase.GONE:
            return
        if not self._reason:
            self._reason = self._hung_up() if error is None else f"connection lost: {printable(str(error))}"
            # The far end of a connection that was turned round says QUIT when it has no more: nothing else is an end.
            self._polite = not (self.in_message or self._work is not None or self._unheard or self.reversed)
        if not self.listen():
            self._reason, self._polite = _NOT_HEARD, False
        self.abandon()
        self._finish()

    def _hung_up(self) -> str:
        if self.in_message:
            return "hung up in a message"
        return "hung up before our answer" if self._unheard else "hung up"

    def _finish(self) -> None:
        """The transport is gone. What is being committed goes on, and only then is the session over."""
        self.phase = Phase.GONE
        self.transport = None
        self._sink = None
        self._out.clear()
        self._deadline = math.inf
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        house = self._house
        if house is not None:
            if self._lingers:
                house.lingering -= 1
            if self._key is not None:
                house.places.leave(self, self._key)
        self._wake()
        if self._work is None:
            self._conclude()

    def _conclude(self) -> None:
        self._inbox = b""
        if self.since is not None:
            self.emit(
                SessionClosed(
                    session=self.session_id,
                    provider=self.owner.provider,
                    round=self.owner.round,
                    peer=self.peer,
                    messages=self.messages,
                    bytes=self.bytes,
                    wire_bytes=max(self.received + self.sent, self._carried),
                    seconds=self.loop.time() - self._opened_at,
                    clean=self._polite and not self._temporary,
                    reason=self._reason,
                )
            )
        on_end, self.on_end = self.on_end, None
        if on_end is not None:
            on_end(self)

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # --- what is told of it -------------------------------------------------------------------------------------------

    @property
    def view(self) -> SessionView | None:
        """What ``status`` shows of it; None before the greeting and after the end."""
        if self.since is None or self.phase is Phase.GONE:
            return None
        arrived, size, seconds = self.progress()
        return SessionView(
            session=self.session_id,
            provider=self.owner.provider,
            round=self.owner.round,
            peer=self.peer,
            bytes=arrived,
            size=size,
            seconds=seconds,
            since=self.since,
        )

    @property
    def work(self) -> asyncio.Future[None] | None:
        """What must not be cut short."""
        return self._work

    def emit(self, event: Event) -> None:
        """Reports a fact; whoever collects it cannot hurt the session."""
        try:
            self.reception.emit(event)
        except Exception as error:
            self._report(error)

    def _report(self, error: Exception) -> None:
        self.loop.call_exception_handler({"message": "a session of the listener", "exception": error, "protocol": self})
