"""Sending a queue over one connection: in one burst where the site can (PIPELINING and CHUNKING), else step by step.

A letter's recipients are answered each for themselves; only what was answered 250 to its content is sent. The burst:
letters follow each other without a pause, up to `WINDOW_BYTES` and `WINDOW_LETTERS` unanswered, each begun by RSET, so
that one that is refused cannot spoil the next (RFC 3030 §2: after a refused BDAT only RSET makes things sure again).
With DATA there is one wait a letter, for the 354 (RFC 2920 §3.1); without PIPELINING one a command.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field

from siteagent.config.sections import Limits
from siteagent.hub.letter import Letter, Result, Stuffer, Unreadable
from siteagent.hub.pipe import Lost, Pipe
from siteagent.wire.reply import Reply

WINDOW_LETTERS = 100
WINDOW_BYTES = 1_048_576
_FINAL_DOT_SECONDS = 600.0  # RFC 5321 §4.5.3.2.6
_BYE_SECONDS = 5.0

Next = Callable[[], Awaitable[Letter | None]]
Tell = Callable[[Result], None]


@dataclass(slots=True)
class _Asked:
    """What was said for one letter, by the replies that are to come."""

    letter: Letter
    before: list[asyncio.Future[Reply]] = field(default_factory=list)
    mail: asyncio.Future[Reply] | None = None
    rcpt: list[asyncio.Future[Reply]] = field(default_factory=list)
    data: asyncio.Queue[asyncio.Future[Reply] | None] = field(default_factory=asyncio.Queue)
    unreadable: str = ""


class Sender:
    """`send` empties what `next_letter` hands out. `features`: EHLO keyword, lower case, to its parameters."""

    def __init__(self, pipe: Pipe, features: Mapping[str, str], limits: Limits) -> None:
        self._pipe = pipe
        self._limits = limits
        self._features = features
        self._pipelining = "pipelining" in features
        self._chunking = "chunking" in features
        size = features.get("size", "").strip()
        self._most_bytes = int(size) if size.isascii() and size.isdigit() else 0
        self._first = True

    async def send(self, next_letter: Next, tell: Tell, *, last: bool = True) -> None:
        """Each letter that was handed out is told of once, whatever happens. Raises Lost.

        `last`: only `bye` follows. In a burst QUIT goes along then, and saves a round trip of a line that is paid.
        """
        if self._pipelining and self._chunking:
            await self._burst(next_letter, tell, last=last)
        else:
            await self._steps(next_letter, tell)

    async def bye(self) -> None:
        await self._pipe.bye(_BYE_SECONDS)

    # --- what is said for a letter ------------------------------------------------------------------------------------

    def _obstacle(self, letter: Letter) -> Reply | None:
        """Why this site can never take this letter; what its server would say to it."""
        if self._most_bytes and letter.size > self._most_bytes:
            return Reply(552, "5.3.4", "bigger than the site takes")
        if letter.smtputf8 and "smtputf8" not in self._features:
            return Reply(553, "5.6.7", "the site does not take SMTPUTF8")
        return None

    async def _opened(self, letter: Letter, tell: Tell) -> _Content | None:
        """Its content, where this site can take it and our spool gives it; else that is told, and nothing is said."""
        obstacle = self._obstacle(letter)
        if obstacle is not None:
            tell(Result(letter, dict.fromkeys(letter.addresses, obstacle)))
            return None
        pieces = letter.pieces()
        if letter.data is not None:
            return _Content(pieces)  # in memory: nothing can go wrong with it
        try:
            first = await anext(pieces)
        except Unreadable as error:
            tell(Result(letter, dict.fromkeys(letter.addresses), str(error), unreadable=True))
            return None
        except BaseException:  # broken off: of what nobody is told, nobody would ever send again
            tell(Result(letter, dict.fromkeys(letter.addresses), "broken off"))
            raise
        return _Content(pieces, first)

    def _envelope(self, letter: Letter) -> list[bytes]:
        options = ""
        if "size" in self._features:
            options += f" SIZE={letter.size}"
        if letter.eight_bit and "8bitmime" in self._features:
            options += " BODY=8BITMIME"
        if letter.smtputf8:
            options += " SMTPUTF8"
        lines = [f"MAIL FROM:<{letter.sender}>{options}\r\n".encode()]
        return lines + [f"RCPT TO:<{address}>\r\n".encode() for address in letter.addresses]

    def _begin(self, letter: Letter) -> tuple[_Asked, bytes]:
        """MAIL and RCPT, behind a RSET where something came before: what to write, and the replies to come."""
        asked = _Asked(letter)
        lines = self._envelope(letter)
        if not self._first:
            asked.before.append(self._pipe.reply_to_come())
            lines.insert(0, b"RSET\r\n")
        self._first = False
        asked.mail = self._pipe.reply_to_come()
        asked.rcpt = [self._pipe.reply_to_come() for _ in letter.addresses]
        return asked, b"".join(lines)

    async def _answered(self, asked: _Asked) -> tuple[Reply, list[Reply]]:
        seconds = self._limits.command_seconds
        for waiting in asked.before:
            await self._pipe.heard(waiting, seconds)
        assert asked.mail is not None
        mail = await self._pipe.heard(asked.mail, seconds)
        return mail, [await self._pipe.heard(waiting, seconds) for waiting in asked.rcpt]

    @staticmethod
    def _result(asked: _Asked, mail: Reply, rcpt: list[Reply], end: Reply | None) -> Result:
        answers: dict[str, Reply | None] = {}
        for address, reply in zip(asked.letter.addresses, rcpt, strict=True):
            if mail.code // 100 != 2:
                answers[address] = mail
            elif reply.code // 100 != 2:
                answers[address] = reply
            else:
                answers[address] = end
        return Result(asked.letter, answers, asked.unreadable, unreadable=bool(asked.unreadable))

    # --- the burst ----------------------------------------------------------------------------------------------------

    async def _burst(self, next_letter: Next, tell: Tell, *, last: bool) -> None:
        under_way: asyncio.Queue[_Asked | None] = asyncio.Queue()
        window = _Window()
        hearing = asyncio.ensure_future(self._hear(under_way, window, tell))
        try:
            while True:
                await window.room()
                if window.opened:
                    break
                if (letter := await next_letter()) is None:
                    if last:
                        self._pipe.say_bye()
                    break
                content = await self._opened(letter, tell)
                if content is None:
                    continue
                window.enter(letter)
                asked, octets = self._begin(letter)
                # From here on whoever hears tells of it, also where what follows fails.
                under_way.put_nowait(asked)
                async with aclosing(content):
                    await self._write_chunks(asked, octets, content)
        except Lost:
            pass  # `_hear` says so, letter by letter, and raises it
        except BaseException:
            self._pipe.close()
            raise
        finally:
            under_way.put_nowait(None)
            await self._settled(hearing)
        hearing.result()

    async def _settled(self, hearing: asyncio.Future[None]) -> None:
        """Waits until each letter was told of. Broken off, it ends the connection, tells that of each, and raises.

        Not by awaiting `hearing` itself: a cancellation would end it, with letters of which nobody hears any more.
        """
        broken_off: asyncio.CancelledError | None = None
        while not hearing.done():
            try:
                await asyncio.wait((hearing,))
            except asyncio.CancelledError as error:
                self._pipe.close()
                broken_off = error
        hearing.exception()  # where something else is raised, nobody asks for it
        if broken_off is not None:
            raise broken_off

    async def _write_chunks(self, asked: _Asked, octets: bytes, content: _Content) -> None:
        letter, pipe = asked.letter, self._pipe
        small = letter.small
        try:
            if small is not None:
                asked.data.put_nowait(pipe.reply_to_come())
                pipe.write(b"%bBDAT %d LAST\r\n%b" % (octets, len(small), small))
                await pipe.drained(self._limits.silence_seconds)
                return
            pipe.write(octets)
            async for piece in content:
                asked.data.put_nowait(pipe.reply_to_come())
                pipe.write(b"BDAT %d\r\n%b" % (len(piece), piece))
                await pipe.drained(self._limits.silence_seconds)
            asked.data.put_nowait(pipe.reply_to_come())
            pipe.write(b"BDAT 0 LAST\r\n")
            await pipe.drained(self._limits.silence_seconds)
        except Unreadable as error:
            # No LAST: nothing of it counts, and the next letter's RSET clears it away.
            asked.unreadable = str(error)
        finally:
            asked.letter = letter.envelope  # a window of a hundred keeps no contents
            asked.data.put_nowait(None)

    async def _hear(self, under_way: asyncio.Queue[_Asked | None], window: _Window, tell: Tell) -> None:
        lost: Lost | None = None
        while (asked := await under_way.get()) is not None:
            if lost is None:
                try:
                    result = await self._heard_of(asked)
                except Lost as error:
                    lost = error
                else:
                    window.leave(asked.letter)
                    tell(result)
                    continue
            window.open()
            tell(Result(asked.letter, dict.fromkeys(asked.letter.addresses), lost.why))
        if lost is not None:
            raise lost

    async def _heard_of(self, asked: _Asked) -> Result:
        mail, rcpt = await self._answered(asked)
        end: Reply | None = None
        while (waiting := await asked.data.get()) is not None:
            reply = await self._pipe.heard(waiting, _FINAL_DOT_SECONDS)
            if end is None or end.code // 100 == 2:
                end = reply  # behind the first refusal everything is a 503, which says nothing
        return self._result(asked, mail, rcpt, None if asked.unreadable else end)

    # --- step by step -------------------------------------------------------------------------------------------------

    async def _steps(self, next_letter: Next, tell: Tell) -> None:
        while (letter := await next_letter()) is not None:
            content = await self._opened(letter, tell)
            if content is None:
                continue
            result = Result(letter, dict.fromkeys(letter.addresses))
            try:
                async with aclosing(content):
                    result = await self._step(letter, content)
            except Lost as error:
                result.why = error.why
                result.unreadable = isinstance(error.__cause__, Unreadable)
                raise
            finally:
                tell(result)

    async def _step(self, letter: Letter, content: _Content) -> Result:
        """MAIL, RCPT and DATA together where the site can, else one by one."""
        pipe, seconds = self._pipe, self._limits.command_seconds
        if self._pipelining:
            asked, octets = self._begin(letter)
            waiting = pipe.reply_to_come()
            pipe.write(octets + b"DATA\r\n")
            mail, rcpt = await self._answered(asked)
            data = await pipe.heard(waiting, seconds)
        else:
            asked, mail, rcpt = await self._one_by_one(letter)
            if mail.code // 100 != 2 or not any(reply.code // 100 == 2 for reply in rcpt):
                return self._result(asked, mail, rcpt, None)
            data = await self._say(b"DATA\r\n")
        if data.code // 100 == 2:  # the answer to something else: it has had no content, and may wait for some
            pipe.close()
            raise Lost(f'it said "{data}" to DATA')
        if data.code != 354:
            return self._result(asked, mail, rcpt, data)
        if mail.code // 100 != 2 or not any(reply.code // 100 == 2 for reply in rcpt):
            # RFC 2920 §3.1: asked for the content of a message that goes to nobody. It gets none.
            await self._say(b".\r\n", seconds=_FINAL_DOT_SECONDS)
            return self._result(asked, mail, rcpt, data)
        stuffer = Stuffer()
        try:
            async for piece in content:
                pipe.write(stuffer.stuffed(piece))
                await pipe.drained(self._limits.silence_seconds)
        except Unreadable as error:
            pipe.close()  # DATA has no other way to say "never mind"
            raise Lost(str(error)) from error
        return self._result(asked, mail, rcpt, await self._say(stuffer.end, seconds=_FINAL_DOT_SECONDS))

    async def _one_by_one(self, letter: Letter) -> tuple[_Asked, Reply, list[Reply]]:
        if not self._first:
            await self._say(b"RSET\r\n")
        self._first = False
        mail_line, *rcpt_lines = self._envelope(letter)
        mail = await self._say(mail_line)
        rcpt = [await self._say(line) if mail.code // 100 == 2 else mail for line in rcpt_lines]
        return _Asked(letter), mail, rcpt

    async def _say(self, line: bytes, *, seconds: float | None = None) -> Reply:
        waiting = self._pipe.reply_to_come()
        self._pipe.write(line)
        return await self._pipe.heard(waiting, seconds or self._limits.command_seconds)


class _Window:
    """How much may be unanswered; what is lost with the connection must be sent again."""

    def __init__(self) -> None:
        self._letters = 0
        self._bytes = 0
        self._changed = asyncio.Event()
        self.opened = False

    async def room(self) -> None:
        """Waits until another letter may go; any size goes alone."""
        while not self.opened and self._letters and (self._letters >= WINDOW_LETTERS or self._bytes >= WINDOW_BYTES):
            self._changed.clear()
            await self._changed.wait()

    def enter(self, letter: Letter) -> None:
        self._letters += 1
        self._bytes += letter.size

    def leave(self, letter: Letter) -> None:
        self._letters -= 1
        self._bytes -= letter.size
        self._changed.set()

    def open(self) -> None:
        """Nobody will leave any more."""
        self.opened = True
        self._changed.set()


class _Content:
    """The pieces of a letter; `first` was read already. Closed by whoever has it, and not by a look for garbage."""

    def __init__(self, pieces: AsyncGenerator[bytes, None], first: bytes | None = None) -> None:
        self._pieces = pieces
        self._first = first

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        first, self._first = self._first, None
        return await anext(self._pieces) if first is None else first

    async def aclose(self) -> None:
        await self._pieces.aclose()
