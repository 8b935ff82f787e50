"""Giving mail up: a notice to the sender, by way of the relay of `[notices]`, and only then the message goes.

Without a relay nothing is given up: it stays held and is shown. A notice that the relay does not take now is tried
again with the next look, the message held meanwhile. A crash between notice and removal makes a second notice, never
none.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime

from siteagent.config.sections import Limits, Node, Provider, Tls
from siteagent.errors import SiteAgentError
from siteagent.events import Emit, MessageReturned
from siteagent.hub.letter import Letter, Result
from siteagent.hub.notice import notice
from siteagent.hub.pipe import Lost, Pipe
from siteagent.hub.sender import Sender
from siteagent.store.spool import Filing
from siteagent.uplink.connection import Route, session
from siteagent.uplink.turn import take_transport
from siteagent.wire import trace
from siteagent.wire.reply import Reply

_HEADER_BYTES = 65_536
_SETTLED_BYTES = 200


class Returns:
    """`relay` as ``HOST:PORT``; None: nothing is ever given up."""

    def __init__(
        self,
        *,
        hostname: str,
        relay: str | None,
        limits: Limits,
        resolve: Callable[[str], Awaitable[tuple[str, ...]]],
        emit: Emit,
        note: Callable[[str], None],
    ) -> None:
        self._hostname = hostname
        self.relay = relay
        self._limits = limits
        self._resolve = resolve
        self._emit = emit
        self._note = note

    async def refused(self, filing: Filing, node: Node, replies: Mapping[str, Reply]) -> bool:
        """The site answered 5yz, and the node has it that this is returned. Whether it is given up now."""
        return await self._give_up(filing, node, dict(replies), "; ".join({str(reply) for reply in replies.values()}))

    async def expired(self, filing: Filing, node: Node) -> bool:
        """Held for as long as the node has it. Whether it is given up now."""
        reason = f"the site did not fetch it within {node.retain_days} days"
        return await self._give_up(filing, node, dict.fromkeys(filing.addresses, reason), reason)

    async def _give_up(self, filing: Filing, node: Node, reasons: Mapping[str, Reply | str], reason: str) -> bool:
        if self.relay is None:
            return False
        if filing.sender and not await self._tell_sender(filing, reasons):
            return False
        self._emit(
            MessageReturned(
                message=filing.message,
                node=node.name,
                sender=filing.sender,
                recipients=tuple(reasons),
                reason=reason,
                notice=bool(filing.sender),
            )
        )
        return True

    async def _tell_sender(self, filing: Filing, reasons: Mapping[str, Reply | str]) -> bool:
        try:
            content = filing.data if filing.data is not None else await asyncio.to_thread(_beginning, filing)
            text = notice(
                filing,
                content=content,
                reasons=reasons,
                hostname=self._hostname,
                when=trace.date(datetime.now(UTC).astimezone()),
                ident=f"notice.{filing.id}.{secrets.token_hex(6)}",
            )
            await self._hand_to_relay(filing.sender, text)
        except (SiteAgentError, Lost, OSError) as error:
            why = getattr(error, "why", None) or str(error)
            self._note(f"cannot send the notice about {filing.message} by {self.relay}: {why}")
            return False
        return True

    async def _hand_to_relay(self, recipient: str, text: bytes) -> None:
        """Raises Lost with what the relay said, SiteAgentError where it cannot be reached."""
        assert self.relay is not None
        host, _, port = self.relay.rpartition(":")
        host = host.strip("[]")
        relay = Provider(host=host, nodes=("notices",), name="relay", port=int(port), tls=Tls.OPPORTUNISTIC)
        addresses = await self._resolve(host)
        route = Route(line=None, addresses=addresses, hostname=self._hostname, limits=self._limits, tls=None)
        letter = Letter(
            id=0,
            message="notice",
            sender="",
            addresses=(recipient,),
            size=len(text) + text.count(b"\n"),
            smtputf8=not recipient.isascii(),
            eight_bit=not text.isascii(),
            received=b"",
            data=text,
        )
        letters = [letter]
        results: list[Result] = []

        async def only() -> Letter | None:
            return letters.pop() if letters else None

        async with session(relay, route) as connection:
            pipe = Pipe()
            features = dict(connection.features)
            pipe.take_over(*take_transport(connection))
            try:
                sender = Sender(pipe, features, self._limits)
                await sender.send(only, results.append)
                await sender.bye()
            finally:
                pipe.close()
        (result,) = results
        if not result.taken:
            raise Lost(f'it answered "{result.answers[recipient]}"'[:_SETTLED_BYTES])


def _beginning(filing: Filing) -> bytes:
    assert filing.file is not None
    with filing.file.open("rb") as file:
        file.seek(filing.head)
        return file.read(_HEADER_BYTES)
