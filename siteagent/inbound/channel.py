"""Lines and content: what arrives on a connection is brought to its verb, or to the message that it belongs to.

Laws:
- Octets are handled where they arrive (`data_received`), lines as long as there are any, and the replies to all of
  them leave in one write. A task exists only while something must be waited for: a commit, a TLS handshake, a verb of
  a subclass written as ``async def smtp_XXX``; until it is done nothing more is read from the peer than a little.
- Work that has begun is never cancelled by the peer: not by its end of file, not by a reset.
- Whatever goes wrong in here is answered 451 with a fixed text, once, and the session goes on.
"""

from __future__ import annotations

import asyncio
import math
import ssl
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar

from aiosmtpd.smtp import Session

from siteagent.inbound import says
from siteagent.inbound.connection import Phase, Sink
from siteagent.inbound.door import Door
from siteagent.inbound.places import Meter
from siteagent.wire.reply import Reply, printable

MAX_LINE = 2000
MAX_AUTH_LINE = 12_288  # RFC 4954 §4
_OUTBOX_BYTES = 16_384
_LINES_A_TURN = 400
_HANDSHAKE_SECONDS = 60.0

Verb = tuple[Callable[..., Any], bool]


class _Lines:
    """What aiosmtpd's AUTH methods read from."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    async def readline(self) -> bytes:
        return await self._channel.read_line() + b"\r\n"


def _verb_table(cls: type) -> dict[bytes, Verb]:
    """``verb_XXX`` (plain, is given the argument's octets) and ``smtp_XXX`` (async, aiosmtpd's way) of our classes."""
    table: dict[bytes, Verb] = {}
    for base in reversed(cls.__mro__):
        if not issubclass(base, Channel):
            continue
        for name, function in vars(base).items():
            kind, _, verb = name.partition("_")
            if kind not in ("verb", "smtp") or not verb.isupper():
                continue
            if function is None:
                table.pop(verb.encode("ascii"), None)
            else:
                table[verb.encode("ascii")] = (function, kind == "smtp")
    return table


class Channel(Door):
    """Subclasses add verbs, and a subclass of theirs takes one away by setting it to None."""

    RATE_WINDOW_SECONDS: ClassVar[float] = 300.0
    _too_long = b""  # how the latest line began that was too long
    _verbs: ClassVar[dict[bytes, Verb]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._verbs = _verb_table(cls)

    # --- what the verbs fill in ---------------------------------------------------------------------------------------

    def unknown_verb(self, line: bytes) -> None:
        self.say(says.UNKNOWN)

    def known_verb(self) -> None:
        """A verb of ours was said."""

    def wrong_line(self) -> None:
        self.say(says.LINE_TOO_LONG)

    def judge_early(self, fragment: bytes) -> None:
        """An incomplete line lies there: enough may be known to give up on this peer."""

    def reset(self) -> None:
        """Forgets the open transaction."""

    # --- what arrives -------------------------------------------------------------------------------------------------

    @property
    def _blocked(self) -> bool:
        """Something has to happen before the next octet can be looked at."""
        return self._work is not None or self._turn or self._clogged or self._full_writer

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        phase = self.phase
        if phase is Phase.OPEN:
            if not self._blocked:
                self._run(self._inbox + data if self._inbox else data)
                return
            self._inbox += data
            self._wake()
            self._regulate()
        elif phase is Phase.ARRIVING:
            self.knock(data)

    def eof_received(self) -> bool:
        self._eof = True
        # Half closed or gone altogether looks the same: only who hung up with nothing open has heard all our answers.
        self._unheard = self.in_message or self._work is not None or self._inbox != b""
        self.listen()  # under TLS the socket is gone when the connection is said to be lost
        if self.phase is Phase.OPEN and not self.tls:
            # What is complete is still taken and answered: the peer may hear.
            if not self._blocked:
                self._run(self._inbox)
            self._wake()
            return True
        # One that waits for its greeting and has spoken already may be listening still; another has given up.
        return self.phase is Phase.ARRIVING and self._inbox != b"" and not self.tls

    def greeted(self) -> None:
        self._start_clock(self.reception.limits.command_seconds)
        self._run(self._inbox)

    def _run(self, buffer: bytes) -> None:
        """Handles all that can be handled of `buffer`, keeps the rest, sends the replies, sets the clock."""
        rest, handled = self._consume(buffer)
        if self.phase is not Phase.OPEN:
            return
        self._inbox = rest
        if self._closing and not self.in_content:
            self.end(says.CLOSING, "closing down")
            return
        if self._work is None or not self._hold:
            self._flush()
        if self._work is None and not self._full_writer:
            if self._sink is not None:
                self._content_clock()
            elif handled:
                self._start_clock(self.reception.limits.command_seconds)
            if self._eof and not self._turn and not self._clogged:
                self._polite = not self.in_message and not self._unheard and not self.reversed
                self.end(None, self._hung_up())
                return
        if not self._reading or rest or self._clogged or self._full_writer:
            self._regulate()

    def _consume(self, buffer: bytes) -> tuple[bytes, bool]:
        """(what is left of `buffer`, whether anything was complete). Stops where something must happen first."""
        start, end, lines = 0, len(buffer), 0
        while start < end:
            if self._sink is not None:
                rest = self._feed(buffer[start:] if start else buffer)
                if rest is None:
                    return b"", lines > 0
                buffer, start, end = rest, 0, len(rest)
            else:
                cut = buffer.find(b"\r\n", start)
                if cut < 0:
                    start = self._incomplete(buffer, start)
                    break
                self._alone = start == 0 and cut + 2 == end
                line = buffer[start:cut]
                start = cut + 2
                if self._skipping or len(line) > MAX_LINE:
                    self._too_long = self._too_long if self._skipping else line[:8]
                    self._skipping = False
                    self.wrong_line()
                else:
                    self._command(line)
            lines += 1
            if self._work is not None or self.phase is not Phase.OPEN or self._full_writer:
                break
            if self._out_size > _OUTBOX_BYTES:
                self._flush()
                if self._clogged:
                    break
            if lines >= _LINES_A_TURN and start < end:
                self._next_turn()
                break
        return buffer[start:] if start < end else b"", lines > 0

    def _command(self, line: bytes) -> None:
        verb, _, argument = line.partition(b" ")
        found = self._verbs.get(verb) or self._verbs.get(verb.upper())
        try:
            if found is None:
                self.unknown_verb(line)
                return
            function, waits = found
            self.known_verb()
            if waits:
                text = argument.decode("utf-8", "surrogateescape").strip() or None
                self.begin(function(self, text))
            else:
                function(self, argument)
        except Exception as error:
            self._our_fault(error)

    def _incomplete(self, buffer: bytes, start: int) -> int:
        """No line end in what is left: keep it, or drop it where it is too long already. The new start."""
        if self._skipping or len(buffer) - start > MAX_LINE + 1:
            # Constant memory: of a line that is too long only its verb, and a CR at its end, matter.
            self._too_long = self._too_long if self._skipping else buffer[start : start + 8]
            self._skipping = True
            start = len(buffer) - (1 if buffer.endswith(b"\r") else 0)
        self.judge_early(buffer)
        return start

    def _our_fault(self, error: Exception) -> None:
        self._report(error)
        self.abandon()
        self.reset()
        self.say(says.OUR_FAULT)

    # --- work ---------------------------------------------------------------------------------------------------------

    def begin(self, work: Coroutine[Any, Any, None], *, hold: bool = False) -> None:
        """Runs `work` in a task; nothing is read from the peer until it is done. The peer cannot cancel it.

        `hold`: the replies before it leave together with its own.
        """
        assert self._work is None
        self._hold = hold
        self._deadline = math.inf
        self._work = self.loop.create_task(self._perform(work))

    async def _perform(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except ConnectionError as error:
            self.end(None, printable(str(error)) or "connection lost")
        except Exception as error:
            self._our_fault(error)
        finally:
            self._work = None
        self._worked()

    def begin_commit(self) -> None:
        """As `begin` with `hold`, for work that is no task: it ends with `committed`."""
        assert self._work is None
        self._hold = True
        self._deadline = math.inf
        self._work = self.loop.create_future()

    def committed(self) -> None:
        work, self._work = self._work, None
        assert work is not None
        work.set_result(None)
        self._worked()

    def _worked(self) -> None:
        if self.phase is Phase.GONE:
            self._conclude()
        elif self.phase is Phase.OPEN:
            if self._closing and not self.in_content:
                self.end(says.CLOSING, "closing down")
                return
            self._start_clock(self.reception.limits.command_seconds)
            if not self._blocked:
                self._run(self._inbox)
            self._regulate()

    async def read_line(self, limit: int = MAX_AUTH_LINE) -> bytes:
        """The next line, without its CRLF, for a verb that runs in a task. Raises ConnectionError when none comes."""
        assert self._work is not None, "only a running verb reads lines by itself"
        self._flush()
        self._start_clock(self.reception.limits.command_seconds)
        while True:
            line, found, rest = self._inbox.partition(b"\r\n")
            if found:
                self._inbox = rest
                break
            if len(self._inbox) > limit:
                self.end(says.LINE_TOO_LONG, "line too long")
            if self.phase is not Phase.OPEN or self._eof:
                raise ConnectionAbortedError("no line came")
            self._waiter = self.loop.create_future()
            await self._waiter
        self._deadline = math.inf
        self._regulate()
        return line

    @property
    def _reader(self) -> _Lines:  # type: ignore[override]
        return _Lines(self)

    def go_on(self) -> None:
        if self._work is None:
            self._next_turn()

    def _next_turn(self) -> None:
        """Lets the others have their turn, then goes on with what lies in the inbox."""
        if not self._turn:
            self._turn = True
            self.loop.call_soon(self._take_turn)

    def _take_turn(self) -> None:
        self._turn = False
        if self.phase is Phase.OPEN and not self._blocked:
            self._run(self._inbox)
        self._regulate()

    async def _begin_tls(self, context: ssl.SSLContext) -> None:
        """Answers 220 and shakes hands. Everything that was said in clear is forgotten (RFC 3207 §4.2)."""
        plain = self.transport
        assert plain is not None
        self.say(says.TLS_READY)
        self._flush()
        # From here on, not only behind the handshake: an end that comes right behind it cannot be half an end, and
        # asyncio would warn on stderr of an `eof_received` that wants to go on.
        self.tls = True
        try:
            secured = await self.loop.start_tls(
                plain, self, context, server_side=True, ssl_handshake_timeout=_HANDSHAKE_SECONDS
            )
        except (OSError, asyncio.IncompleteReadError) as error:
            self._reason = self._reason or f"TLS handshake: {printable(str(error)) or type(error).__name__}"
            plain.abort()
            self.connection_lost(None)
            return
        if secured is None or self.phase is Phase.GONE:
            plain.abort()
            self.connection_lost(None)
            return
        self.transport = secured
        self._reading = True
        peername = self.session.peer
        self.session = Session(self.loop)
        self.session.peer = peername
        self.session.ssl = {"ssl_object": secured.get_extra_info("ssl_object")}

    # --- content ------------------------------------------------------------------------------------------------------

    def open_content(self, sink: Sink) -> None:
        """From the next octet on everything is content and goes to `sink`, until that returns what lies behind it."""
        self._sink = sink
        self._open_floor()

    def close_content(self) -> None:
        self._sink = None
        self._floor_at = math.inf
        self._full_writer = False

    def _feed(self, chunk: bytes) -> bytes | None:
        assert self._sink is not None
        if self._meter is not None:
            self._meter.add(self.loop.time(), len(chunk))
        try:
            return self._sink(chunk)
        except Exception as error:
            # Where the content ends is not known any more: nothing that follows can be read.
            self._report(error)
            self.end(Reply(421, says.OUR_FAULT.enhanced, says.OUR_FAULT.text), "our fault")
            return None

    def writer_full(self) -> None:
        """The spool takes no more just now: nothing is read until `writer_drained`, and no clock runs."""
        self._full_writer = True
        self._deadline = math.inf
        self._regulate()

    def writer_drained(self) -> None:
        if not self._full_writer:
            return
        self._full_writer = False
        if self.phase is not Phase.OPEN:
            return
        if self._sink is not None:
            self._open_floor()
            self._content_clock()
        self.go_on()

    def _content_clock(self) -> None:
        """Silence, never total time (RFC 5321 §4.5.3.2.5), and a floor for who sends one octet a minute."""
        self._silent_at = self.loop.time() + self.reception.limits.silence_seconds
        self._deadline = min(self._silent_at, self._floor_at)
        self._arm()

    def _open_floor(self) -> None:
        self._floor_at = self.loop.time() + self.RATE_WINDOW_SECONDS
        if self._meter is None:
            house = self._house
            self._meter = (
                Meter(self.RATE_WINDOW_SECONDS)
                if house is None or self._key is None
                else house.places.meter(self._key, self.RATE_WINDOW_SECONDS)
            )

    def _look_at_floor(self) -> None:
        assert self._meter is not None
        now = self.loop.time()
        floor = self.reception.limits.minimum_bytes_per_second * self.RATE_WINDOW_SECONDS
        if self._meter.octets_since(now - self.RATE_WINDOW_SECONDS) < floor:
            self.end(says.TOO_SLOW, "too slow")
            return
        self._floor_at = now + self.RATE_WINDOW_SECONDS / 10
        self._deadline = min(self._silent_at, self._floor_at)

    def expired(self) -> None:
        if self.phase is Phase.ARRIVING:
            super().expired()
        elif self._sink is not None and self.loop.time() < self._silent_at - 0.001:
            self._look_at_floor()
        else:
            self.end(says.SILENT, "silent in a message" if self._sink is not None else "silent between commands")
