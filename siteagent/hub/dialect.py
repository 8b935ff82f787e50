"""What the hub says beyond the listener's dialect: AUTH, ETRN (RFC 1985) and ATRN (RFC 2645).

`HubDialect` takes mail too and serves every verb; `OdmrDialect` stands at ATRN's own port and serves nothing else
(RFC 2645 §5.4), `ImplicitDialect` the same in TLS from the first octet. What a verb means is `Front`'s to decide; the
order, the syntax and who may speak at all is decided here.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass

from siteagent.errors import SiteAgentError
from siteagent.events import LoginFailed
from siteagent.hub import login, nodes
from siteagent.hub.front import Front
from siteagent.hub.guard import BLOCKED, network
from siteagent.hub.login import Checked
from siteagent.inbound import says
from siteagent.inbound.connection import Phase
from siteagent.inbound.reception import Reception
from siteagent.inbound.smtp import Dialect
from siteagent.wire.etrn import sendable
from siteagent.wire.reply import Reply

_ETRN_IN_MAIL = Reply(503, "5.5.1", "ETRN is not possible inside a transaction")
_ATRN_IN_MAIL = Reply(503, "5.5.1", "ATRN is not possible inside a transaction")
_AUTH_IN_MAIL = Reply(503, "5.5.1", "AUTH is not possible inside a transaction")
_AUTH_TWICE = Reply(503, "5.5.1", "logged in already")
_AUTH_SYNTAX = Reply(501, "5.5.4", "it is AUTH mechanism")
_LOG_IN_FIRST = Reply(530, "5.7.0", "log in first")
_ONLY_ODMR = Reply(502, "5.5.1", "this port is for ATRN alone")
_HANDSHAKE_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HubReception(Reception):
    """`certificate_accounts`: a client's certificate (DER) -> the accounts that it proves."""

    front: Front
    offers_auth: bool
    offers_atrn: bool
    certificate_accounts: Callable[[bytes], tuple[str, ...]]


class HubDialect(Dialect):
    """The listener's dialect, and AUTH, ETRN, ATRN."""

    account: str | None = None

    @property
    def hub(self) -> HubReception:
        assert isinstance(self.reception, HubReception)
        return self.reception

    def keywords(self) -> list[str]:
        return [*super().keywords(), *self._offers(), "ETRN"]

    def _offers(self) -> list[str]:
        offers = []
        if self.hub.offers_auth:
            offers.append(f"AUTH {' '.join(self._mechanisms())}")
        if self.hub.offers_atrn:
            offers.append("ATRN")
        return offers

    def crowd(self, peer: str) -> str:
        return network(peer)

    def wrong_line(self) -> None:
        # A list of domains without end is wrong in its parameters, not too long to be a command.
        if self.hub.offers_atrn and self._too_long[:5].upper() == b"ATRN ":
            self.wrong(nodes.ATRN_SYNTAX)
        else:
            super().wrong_line()

    # --- AUTH ---------------------------------------------------------------------------------------------------------

    def _certified(self) -> tuple[str, ...]:
        ssl_object = self.transport.get_extra_info("ssl_object") if self.transport is not None else None
        certificate = ssl_object.getpeercert(binary_form=True) if ssl_object is not None else None
        return self.hub.certificate_accounts(certificate) if certificate else ()

    def _mechanisms(self) -> list[str]:
        return login.mechanisms(tls=self.tls, certificate_accounts=self._certified())

    async def smtp_AUTH(self, argument: str | None) -> None:
        """RFC 4954 §4."""
        mechanism, _, initial = (argument or "").partition(" ")
        mechanism = mechanism.upper()
        refusal = self._auth_refusal(mechanism)
        if refusal is not None:
            self.wrong(refusal)
            return
        try:
            given = login.decoded(initial.encode("utf-8", "surrogateescape")) if initial.strip() else None
            checked = await self.hub.front.logins.check(
                mechanism, given, self._challenge, certificate_accounts=self._certified()
            )
        except login.Cancelled:
            self.wrong(login.CANCELLED)
        except login.Malformed:
            self.wrong(login.MALFORMED)
        except SiteAgentError as error:
            self._report(error)
            self.say(login.NOT_NOW)
        else:
            self._logged_in(mechanism, checked)

    def _auth_refusal(self, mechanism: str) -> Reply | None:
        if not self.hub.offers_auth:
            return says.NOT_OFFERED
        if not self.session.extended_smtp:
            return says.HELLO_FIRST
        if self.in_message:
            return _AUTH_IN_MAIL
        if self.account is not None:
            return _AUTH_TWICE
        if not mechanism:
            return _AUTH_SYNTAX
        if mechanism in ("PLAIN", "LOGIN") and not self.tls:
            return login.ENCRYPT_FIRST
        return None if mechanism in self._mechanisms() else login.UNKNOWN_MECHANISM

    async def _challenge(self, octets: bytes) -> bytes:
        self.say(login.challenged(octets))
        return login.decoded(await self.read_line())

    def _logged_in(self, mechanism: str, checked: Checked) -> None:
        front = self.hub.front
        if checked.account is not None:
            front.passed_login(self.peer)
            self.account = checked.account
            self.session.authenticated = True
            self.say(login.DONE)
            return
        blocked = front.failed_login(self.peer)
        self.emit(LoginFailed(peer=self.peer, mechanism=mechanism, reason=checked.reason, blocked=blocked))
        if blocked:
            self.end(BLOCKED, "too many failed logins")
        else:
            self.say(login.FAILED)

    async def _begin_tls(self, context: ssl.SSLContext) -> None:
        await super()._begin_tls(context)
        self.account = None  # RFC 3207 §4.2

    # --- ETRN ---------------------------------------------------------------------------------------------------------

    def verb_ETRN(self, argument: bytes) -> None:
        """RFC 1985 §5. Answered at once, whatever the length of the queue."""
        name = argument.strip().decode("utf-8", "replace")
        if self.in_message:
            self.out_of_order(_ETRN_IN_MAIL)
        elif not self.session.host_name:
            self.out_of_order(says.HELLO_FIRST)
        elif not sendable(name):
            self.wrong(nodes.SYNTAX)
        else:
            self._asked(self.hub.front.release(name, account=self.account, peer=self.peer))

    def _asked(self, reply: Reply) -> None:
        """Each ask is a line of the log: who is refused a hundred times in one session is shown the door."""
        if reply.positive:
            self.say(reply)
        else:
            self.idle(reply)

    # --- ATRN ---------------------------------------------------------------------------------------------------------

    async def smtp_ATRN(self, argument: str | None) -> None:
        """RFC 2645 §5.2.1. From our 250 on we are the client of this connection."""
        if not self.hub.offers_atrn:
            self.say(says.NOT_OFFERED)
        elif self.in_message:
            self.out_of_order(_ATRN_IN_MAIL)
        elif self.account is None:
            self.say(_LOG_IN_FIRST)
        else:
            answer = self.hub.front.fetch((argument or "").strip(), account=self.account, peer=self.peer)
            if isinstance(answer, Reply):
                self._asked(answer)
            elif self.phase is Phase.OPEN and self.transport is not None and not self.transport.is_closing():
                self.say(answer.reply)
                answer.run(*self.detach())


class OdmrDialect(HubDialect):
    """Port 366: EHLO, STARTTLS, AUTH, ATRN and QUIT (RFC 2645 §4, §5)."""

    def keywords(self) -> list[str]:
        offered = [line for line in super().keywords() if line in ("PIPELINING", "ENHANCEDSTATUSCODES", "STARTTLS")]
        return [*offered, *self._offers()]

    def _only_odmr(self, argument: bytes) -> None:
        self.wrong(_ONLY_ODMR)

    verb_MAIL = verb_RCPT = verb_DATA = verb_BDAT = verb_ETRN = verb_VRFY = verb_EXPN = _only_odmr


class ImplicitDialect(OdmrDialect):
    """TLS from the first octet: the handshake stands in front of the door."""

    _shaking: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        context = self.reception.tls()
        if context is None or self._shaking is not None:
            super().connection_made(transport)
            return
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._shaking = self.loop.create_task(self._shake(transport, context))

    async def _shake(self, plain: asyncio.Transport, context: ssl.SSLContext) -> None:
        try:
            secured = await self.loop.start_tls(
                plain, self, context, server_side=True, ssl_handshake_timeout=_HANDSHAKE_SECONDS
            )
        except (OSError, asyncio.IncompleteReadError):
            plain.abort()
            self.connection_lost(None)
            return
        if secured is None or self.phase is Phase.GONE:
            plain.abort()
            self.connection_lost(None)
            return
        super().connection_made(secured)

    def eof_received(self) -> bool:
        return super().eof_received() if self.since is not None else False
