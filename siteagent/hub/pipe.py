"""A connection on which we are the client: commands go out as fast as the peer takes them, replies come in order.

What `uplink.talk` is for asking (one command, one reply), this is for sending a queue: many commands on their way at
once (RFC 2920). Laws: a reply belongs to the oldest command that has none; whatever is not a clean reply, or was not
asked for, ends the connection; and silence is measured, never the time of a whole message.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import cast

from siteagent import traffic
from siteagent.wire.reader import ReplyError, ReplyReader
from siteagent.wire.reply import Reply

_HIGH_WATER_BYTES = 32_768  # of each connection, and a thousand sites may ask in one minute


class Lost(Exception):
    """The connection is of no more use; the text says why. `code`: 421, where the peer closed it by that."""

    def __init__(self, why: str, *, code: int | None = None) -> None:
        super().__init__(why)
        self.why = why
        self.code = code


class Pipe(asyncio.Protocol):
    """Made for a transport that is open; `connection_made` is called by `take_over`."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.moved = 0.0  # when octets last went or came, by the loop's clock
        self._reader = ReplyReader()
        self._waiting: deque[asyncio.Future[Reply]] = deque()
        self._lost: Lost | None = None
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._bye: asyncio.Future[Reply] | None = None

    def take_over(self, transport: asyncio.Transport, early: bytes = b"") -> None:
        """Goes on with a connection that another protocol had; `early` are octets that nobody has read."""
        transport.set_protocol(self)
        self.connection_made(transport)
        transport.resume_reading()
        if early:
            self.data_received(early)

    # --- asyncio's ----------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=_HIGH_WATER_BYTES)
        self.moved = asyncio.get_running_loop().time()

    def data_received(self, data: bytes) -> None:
        self.moved = asyncio.get_running_loop().time()
        try:
            reply = self._reader.feed(data)
            while reply is not None:
                self._heard(reply)
                reply = self._reader.feed(b"")
        except ReplyError as error:
            self._fail(Lost(str(error)))

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        why = "it closed the connection" if error is None else f"the connection was lost: {error}"
        self._fail(Lost(why))
        self.transport = None  # an error may hold us until garbage is looked for, and it holds 300 kB of TLS

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self.moved = asyncio.get_running_loop().time()
        self._may_write.set()

    @property
    def unanswered(self) -> bool:
        """TCP repeats itself and hears nothing, or the connection is over."""
        if self._lost is not None or self.transport is None:
            return True
        return traffic.unanswered(self.transport)

    # --- ours ---------------------------------------------------------------------------------------------------------

    def reply_to_come(self) -> asyncio.Future[Reply]:
        """A place in the line of replies, for something that was written or is to be written next."""
        waiting: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        if self._lost is not None:
            waiting.set_exception(self._lost)
            waiting.exception()  # told to whoever awaits it, and to nobody else
        else:
            self._waiting.append(waiting)
        return waiting

    def write(self, octets: bytes) -> None:
        if self._lost is None and self.transport is not None:
            self.transport.write(octets)

    async def drained(self, seconds: float) -> None:
        """Waits until the peer takes more. Raises Lost, also where it takes nothing for `seconds`."""
        if self._lost is not None:
            raise self._lost
        if not self._may_write.is_set():
            try:
                async with asyncio.timeout(seconds):
                    await self._may_write.wait()
            except TimeoutError:
                self._fail(Lost(f"it took nothing for {seconds:g} s"))
            if self._lost is not None:
                raise self._lost

    async def heard(self, waiting: asyncio.Future[Reply], seconds: float) -> Reply:
        """The reply. Raises Lost, also where nothing comes or goes for `seconds`, and for a 421."""
        clock = asyncio.get_running_loop().time
        begun = clock()
        while not waiting.done():
            left = max(begun, self.moved) + seconds - clock()
            if left <= 0:
                self._fail(Lost(f"no answer in {seconds:g} s"))
                break
            await asyncio.wait({waiting}, timeout=left)
        reply = await waiting
        if reply.code == 421:
            lost = Lost(f'it said "{reply}"', code=421)
            self._fail(lost)
            raise lost
        return reply

    def say_bye(self) -> None:
        """QUIT; nothing may be said after it."""
        if self._bye is None:
            self._bye = self.reply_to_come()
            self.write(b"QUIT\r\n")

    async def bye(self, seconds: float) -> None:
        """QUIT, unless it was said, and the end; what the peer makes of it is no error."""
        self.say_bye()
        waiting = self._bye
        assert waiting is not None
        await asyncio.wait({waiting}, timeout=seconds)
        if waiting.done():
            waiting.exception()
        transport = self.transport
        if transport is not None:
            transport.close()

    def close(self) -> None:
        """At once, with nothing more said."""
        self._fail(Lost("closed"))

    def _heard(self, reply: Reply) -> None:
        if self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.done():
                waiting.set_result(reply)
        elif reply.code == 421:
            self._fail(Lost(f'it said "{reply}"', code=421))
        else:
            self._fail(Lost(f'it said "{reply}" without being asked'))

    def _fail(self, lost: Lost) -> None:
        if self._lost is not None:
            return
        self._lost = lost
        self._may_write.set()
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.done():
                waiting.set_exception(lost)
                waiting.exception()
        if self.transport is not None:
            self.transport.abort()
