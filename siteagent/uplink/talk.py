"""Commands and replies on one connection: one command, one reply, one deadline.

The law: a deadline is that of the whole stage (`asyncio.timeout`), so that a byte every ten seconds extends nothing.
Whatever is not a clean reply raises a `Broken` that names the stage, and the connection is closed, never used again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from aiosmtplib.errors import SMTPException, SMTPServerDisconnected

from siteagent.config.sections import Limits, Provider, Tls
from siteagent.traffic import carried
from siteagent.uplink.broken import AGAIN, Broken, Hangup, OutOfStep, Silence
from siteagent.uplink.protocol import Protocol
from siteagent.wire.reader import ReplyError, ReplyReader, quoted
from siteagent.wire.reply import Reply, printable

_QUIT_SECONDS = 5.0


class Talk:
    """What `Connection` can say and hear. `transcript` gets every line of both sides, secrets masked."""

    def __init__(self, provider: Provider, limits: Limits, transcript: Callable[[str], None] | None) -> None:
        self.provider = provider
        self.limits = limits
        self._transcript = transcript
        self._protocol: Protocol | None = None
        self._transport: asyncio.Transport | None = None
        self.on_cost: Callable[[int], None] | None = None  # told once, when the connection closes

    async def command(self, line: str, *, stage: str, seconds: float | None = None, shown: str | None = None) -> Reply:
        """Sends one command line and returns its reply, whatever its code. `shown`: what a transcript may show of it.

        Raises:
            Silence: no complete reply in `seconds` (default: the limit for commands).
            Hangup: the connection ended. A 421 that came unasked before it is returned as the reply.
            OutOfStep: bytes that were not asked for, or no SMTP reply.
        """
        protocol = self._live(stage)
        if (unasked := self._unasked(stage)) is not None:
            return unasked
        self.note(f"C: {line if shown is None else shown}")
        return await self._reply(protocol.execute_command(line.encode("utf-8")), stage, seconds)

    async def body(self, data: bytes, *, stage: str, seconds: float) -> Reply:
        """Sends what follows a 354, as it is, and returns the reply. Raises as `command`."""
        protocol = self._live(stage)
        if (unasked := self._unasked(stage)) is not None:
            return unasked
        self.note(f"C: ({len(data)} bytes)")

        async def send() -> object:
            protocol._response_pending = True  # as execute_command does: the reply may come before we wait for it
            protocol.write(data)
            return await protocol.read_response(None)

        return await self._reply(send(), stage, seconds)

    async def quit(self) -> None:
        """QUIT, for at most 5 s; whatever the server makes of it is no error (RFC 1985 §7 has it answer 250)."""
        if self._transport is None:
            return
        try:
            await self.command("QUIT", stage="ask", seconds=min(_QUIT_SECONDS, self.limits.command_seconds))
        except Broken:
            return
        finally:
            self.close()

    async def leave(self, error: Broken) -> None:
        """Ends a session that `error` ended: with QUIT where both sides are still in step (after a refusal, say)."""
        if isinstance(error, Silence | Hangup | OutOfStep) or error.code == 421:
            self.close()
        else:
            await self.quit()

    def close(self) -> None:
        """Closes at once, with nothing more said. May be repeated."""
        if self._transport is None:
            return
        told, self.on_cost = self.on_cost, None
        if told is not None and self._protocol is not None:
            told(carried(self._transport) or self._protocol.octets)
        self.release().abort()

    def release(self) -> asyncio.Transport:
        """The open transport, for somebody else to go on with, who counts what it costs in all."""
        transport, self._transport = self._transport, None
        assert transport is not None, "not open"
        return transport

    def note(self, text: str) -> None:
        if self._transcript is not None:
            self._transcript(printable(text))

    def _live(self, stage: str) -> Protocol:
        assert self._protocol is not None, f"{stage} before connect"
        return self._protocol

    def _unasked(self, stage: str) -> Reply | None:
        """A 421 that came before its time is as good as an answer (RFC 5321 §3.8); anything else ends the session."""
        stray = self._live(stage).stray
        if not stray:
            return None
        try:
            reply = ReplyReader().feed(stray)
        except ReplyError:
            reply = None
        if reply is not None and reply.code == 421:
            self.note(f"S: {reply}")
            return reply
        raise self._out_of_step(stage, f'it said "{quoted(stray)}" without being asked')

    async def _reply(self, exchange: Awaitable[object], stage: str, seconds: float | None) -> Reply:
        protocol = self._live(stage)
        allowed = self.limits.command_seconds if seconds is None else seconds
        try:
            async with asyncio.timeout(allowed):
                await exchange
        except TimeoutError:
            self.close()
            fix = AGAIN
            if stage == "greeting" and self.provider.tls is not Tls.IMPLICIT:
                fix += f'; if port {self.provider.port} begins with TLS, set tls = "implicit"'
            raise Silence(self.provider, stage, f"no answer in {allowed:g} s", temporary=True, fix=fix) from None
        except ReplyError as error:
            raise self._out_of_step(stage, str(error)) from None
        except (SMTPServerDisconnected, ConnectionError) as error:
            self.close()
            why = "it closed the connection without an answer"
            raise Hangup(self.provider, stage, why, temporary=True, fix=AGAIN) from error
        except SMTPException as error:
            raise self._out_of_step(stage, printable(str(error))) from error
        reply = protocol.last
        for row in bytes(reply).decode("utf-8").splitlines():
            self.note(f"S: {row}")
        return reply

    def _out_of_step(self, stage: str, why: str) -> OutOfStep:
        self.close()
        fix = f"check that host and port of provider {self.provider.name} are those of a mail server; if so, {AGAIN}"
        return OutOfStep(self.provider, stage, why, temporary=True, fix=fix)
