"""aiosmtplib's protocol with our reading of replies: one command, one reply, and nothing beside it.

aiosmtplib pairs replies with commands by position. Bytes behind a complete reply in the same segment stay in its
buffer and answer the next command; bytes between commands vanish; ``220OK`` and a reply of two codes pass. Each of
these could turn somebody's stray 250 into "started". So the bytes go through `wire.reader` here, and what nobody asked
for is kept in `stray`, where `Connection` looks before each command.

Leans on aiosmtplib 5.1's private `_response_waiter`, `_response_pending` and `_set_response_exception`;
tests/unit/test_uplink_protocol.py fails if one of them goes.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import cast

from aiosmtplib.protocol import SMTPProtocol
from aiosmtplib.response import SMTPResponse

from siteagent.wire.reader import ReplyReader
from siteagent.wire.reply import Reply

_STRAY_LIMIT = 4096


class Protocol(SMTPProtocol):
    """`last` is the reply that the latest ``execute_command`` or ``read_response`` returned."""

    last: Reply

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self._reader = ReplyReader()
        self._unasked = bytearray()
        self.octets = 0  # said and heard, without what TLS adds

    @property
    def stray(self) -> bytes:
        """What the peer sent beyond the replies that were asked for; at most 4 KiB of it."""
        return (bytes(self._unasked).lstrip(b"\r\n") + self._reader.rest)[:_STRAY_LIMIT]

    def write(self, data: bytes) -> None:
        self.octets += len(data)
        super().write(data)

    def data_received(self, data: bytes) -> None:
        self.octets += len(data)
        waiter = self._response_waiter
        if waiter is None or waiter.done() or not self._response_pending:
            self._unasked += data[: _STRAY_LIMIT - len(self._unasked)]
            return
        try:
            reply = self._reader.feed(data)
        except Exception as error:
            self._set_response_exception(waiter, error)
            if self.transport is not None:
                # What follows is not read any more: an endless line must not fill anything.
                cast(asyncio.Transport, self.transport).abort()
            return
        if reply is not None:
            self.last = reply
            waiter.set_result(SMTPResponse(reply.code, reply.text))

    async def protect(self, context: ssl.SSLContext, server_hostname: str, *, seconds: float) -> None:
        """The TLS handshake on this connection, after the server's 220 to STARTTLS.

        aiosmtplib's own ``start_tls`` throws away what stands behind the 220; we want to see it (`stray`) first.
        Raises what ``loop.start_tls`` raises. Cancellation leaves the transport to the caller to abort.
        """
        protected = await self._loop.start_tls(
            cast(asyncio.WriteTransport, self.transport),
            self,
            context,
            server_side=False,
            server_hostname=server_hostname,
            ssl_handshake_timeout=seconds,
        )
        if protected is None:
            raise ConnectionResetError
        self.transport = protected
        self._over_ssl = True
