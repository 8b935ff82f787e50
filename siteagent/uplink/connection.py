"""One session with a provider's server: connect, greeting, EHLO (else HELO), TLS.

The law: nothing confidential goes out before the line is protected as `tls` of the provider says. Extensions are never
remembered from one session to the next, nor over STARTTLS (RFC 5321 §3.2, RFC 3207 §4.2). Cancellation closes the
connection at once.

    async with session(provider, ...) as connection:
        reply = await connection.command("ETRN office.example", stage="ask", seconds=300)
        await connection.quit()
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import TypeVar

from aiosmtplib.esmtp import parse_esmtp_extensions

from siteagent.config.sections import Limits, Provider, Tls
from siteagent.errors import SiteAgentError
from siteagent.events import Line
from siteagent.uplink import sockets, tls
from siteagent.uplink.broken import AGAIN, Broken, Hangup, Silence, Unprotected, refused
from siteagent.uplink.protocol import Protocol
from siteagent.uplink.talk import Talk
from siteagent.uplink.tls import client_context
from siteagent.wire.reader import quoted
from siteagent.wire.reply import Reply

__all__ = ["Broken", "Connection", "Route", "client_context", "session"]

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """How to get to the provider and who we say we are. `hostname` "" : the address literal of our end."""

    line: Line | None
    addresses: Sequence[str]
    hostname: str
    limits: Limits
    tls: ssl.SSLContext | None
    transcript: Callable[[str], None] | None = None


class Connection(Talk):
    """An open session. `features`: EHLO keyword, lower case, to its parameters; empty after HELO."""

    def __init__(self, provider: Provider, route: Route) -> None:
        super().__init__(provider, route.limits, route.transcript)
        self.greeting = Reply(0, "", "")
        self.features: dict[str, str] = {}
        self.auth_methods: tuple[str, ...] = ()
        self.encrypted = False
        self.verified = False
        self.certificate = b""  # DER, of the server on this line
        self.logged_in = False
        self.refused_tls = False
        self.address = ""  # whom we reached; one that was dialled
        self._route = route
        self._hello = "HELO"

    # --- opening ------------------------------------------------------------------------------------------------------

    async def open(self, *, hello: str = "EHLO", plain: bool = False) -> None:
        """Everything up to the point where commands may be sent. `plain`: without opportunistic TLS.

        Raises:
            Broken: at one of the stages connect, greeting, ehlo, starttls.
        """
        self._hello = hello
        self.refused_tls = plain
        await self._connect()
        self.greeting = await self._reply(self._live("greeting").read_response(None), "greeting", None)
        if self.greeting.code != 220:
            raise refused(self.provider, "greeting", self.greeting)
        await self._introduce()
        if self.provider.tls is Tls.REQUIRED or (self.provider.tls is Tls.OPPORTUNISTIC and not plain):
            await self.start_tls()

    async def _connect(self) -> None:
        route, provider = self._route, self.provider
        # Before there is a connection: both may fail, and from create_connection on asyncio owns the socket.
        context = await self._context() if provider.tls is Tls.IMPLICIT else None
        name = tls.server_name(provider) if context is not None else None
        connected = await sockets.dial(
            provider,
            route.addresses,
            provider.port,
            line=route.line,
            seconds=route.limits.connect_seconds,
            note=lambda text: self.note(f"-- {text}"),
        )
        with suppress(OSError):  # reset already
            self.address = str(connected.getpeername()[0])
        loop = asyncio.get_running_loop()
        protocol = self._protocol = Protocol(loop)
        dialled = loop.create_connection(lambda: protocol, sock=connected, ssl=context, server_hostname=name)
        if context is None:
            self._transport, _ = await dialled
            return
        self._transport, _ = await self._handshake(dialled)
        self._protected(context)

    async def _introduce(self) -> None:
        """EHLO; HELO where that is refused (RFC 1869 §4.4 to 4.7), after RSET where HELO is refused too.

        Lenient: any 5yz to EHLO counts as "no extensions", not only the codes that the RFC lists.
        """
        self.features, self.auth_methods = {}, ()
        name = self._our_name()
        if self._hello == "EHLO":
            reply = await self.command(f"EHLO {name}", stage="ehlo")
            if reply.code == 250:
                self.features, methods = parse_esmtp_extensions(reply.text)
                self.auth_methods = tuple(dict.fromkeys(methods))
                return
            if not reply.permanent:
                raise refused(self.provider, "ehlo", reply)
        reply = await self.command(f"HELO {name}", stage="ehlo")
        if reply.permanent:
            await self.command("RSET", stage="ehlo")
            reply = await self.command(f"HELO {name}", stage="ehlo")
        if reply.code != 250:
            raise refused(self.provider, "ehlo", reply)

    def _our_name(self) -> str:
        """What stands behind EHLO: the hostname, else the address literal of our end (RFC 5321 §4.1.1.1, §4.1.3)."""
        given = self._route.hostname.strip()
        if given and sockets.literal(given) is None and given.isascii() and given.isprintable() and " " not in given:
            return given
        address = sockets.literal(given) if given else None
        if address is None:
            assert self._transport is not None
            address = str(self._transport.get_extra_info("sockname")[0]).partition("%")[0]
        return f"[IPv6:{address}]" if ":" in address else f"[{address}]"

    # --- protecting ---------------------------------------------------------------------------------------------------

    async def start_tls(self, *, unadvertised: bool = False) -> None:
        """STARTTLS and EHLO again, where the server offers it (or anyway: `unadvertised`).

        With ``tls = "required"`` it must succeed and verify; else a server that does not offer it, or refuses, leaves
        the line in clear.

        Raises:
            Unprotected: opportunistic, and the handshake did not succeed: this connection is lost, not the cause.
            Broken: required, and not to be had; or bytes behind the 220 (RFC 3207 §4.2: somebody injects commands).
        """
        provider, required = self.provider, self.provider.tls is Tls.REQUIRED
        if "starttls" not in self.features and not unadvertised:
            if required:
                raise self._no_starttls()
            return
        context = await self._context()
        name = tls.server_name(provider)
        reply = await self.command("STARTTLS", stage="starttls")
        if reply.code != 220:
            self.refused_tls = True
            if required or reply.code == 421:
                raise refused(provider, "starttls", reply)
            return
        protocol = self._live("starttls")
        if protocol.stray:
            raise self._out_of_step("starttls", f'bytes behind its answer to STARTTLS: "{quoted(protocol.stray)}"')
        try:
            await self._handshake(protocol.protect(context, name, seconds=self.limits.command_seconds))
        except Broken as error:
            self.close()
            if required:
                raise
            raise Unprotected(provider, "starttls", error.why, temporary=True, fix=error.fix) from error
        self._protected(context)
        await self._introduce()

    def _protected(self, context: ssl.SSLContext) -> None:
        protocol = self._live("starttls")
        assert isinstance(protocol.transport, asyncio.Transport)
        self._transport = protocol.transport
        shown = self._transport.get_extra_info("ssl_object")
        self.certificate = shown.getpeercert(binary_form=True) or b""
        try:
            self.verified = tls.verified(self.provider, context, self.certificate)
        except Broken:
            self.close()  # not another byte to whoever that is
            raise
        self.encrypted = True
        self.note(f"-- {shown.version()}, {'verified' if self.verified else 'not verified'}")

    async def _handshake(self, shake: Awaitable[_T]) -> _T:
        seconds = self.limits.command_seconds
        try:
            async with asyncio.timeout(seconds):
                return await shake
        except TimeoutError:
            why = f"the TLS handshake was not over in {seconds:g} s"
            raise Silence(self.provider, "starttls", why, temporary=True, fix=AGAIN) from None
        except (OSError, ValueError) as error:
            raise tls.bad_handshake(self.provider, error) from error

    async def _context(self) -> ssl.SSLContext:
        if self._route.tls is not None:
            return self._route.tls
        try:
            return await asyncio.get_running_loop().run_in_executor(None, client_context, self.provider)
        except SiteAgentError as error:
            raise Broken(
                self.provider, "starttls", f"{error.what}: {error.why}", temporary=False, fix=error.fix
            ) from error

    def _no_starttls(self) -> Broken:
        return Broken(
            self.provider,
            "starttls",
            'it does not offer STARTTLS, and tls = "required"',
            temporary=False,
            fix="ask the provider for a port with TLS; if it worked before, something on this line takes it out. "
            f'Without a login, tls = "opportunistic" for provider {self.provider.name} is possible',
        )


@asynccontextmanager
async def session(
    provider: Provider, route: Route, *, count: Callable[[int], None] = lambda octets: None
) -> AsyncIterator[Connection]:
    """An open `Connection`, closed at the end whatever happens. QUIT is the caller's to say, but after a `Broken`.

    `count` is told what each connection cost: octets of TCP's payload, both ways, TLS included.

    A server that hangs up on EHLO gets HELO on a second connection, one whose opportunistic TLS does not come about
    gets a second one in clear. An address that takes the connection and does not let us in is no better than one that
    does not answer: the next one is tried (RFC 5321 §5.1).

    Raises:
        Broken: at one of the stages connect, greeting, ehlo, starttls.
    """
    connection = await _opened(provider, route, count)
    try:
        yield connection
    except Broken as error:
        await connection.leave(error)
        raise
    finally:
        connection.close()


async def _opened(provider: Provider, route: Route, count: Callable[[int], None]) -> Connection:
    hello, plain = "EHLO", False
    while True:
        connection = Connection(provider, route)
        connection.on_cost = count
        try:
            await connection.open(hello=hello, plain=plain)
        except Broken as error:
            if isinstance(error, Hangup | Unprotected):
                connection.close()
            else:
                await connection.leave(error)
            others = tuple(address for address in route.addresses if address != connection.address)
            if error.stage == "greeting" and 0 < len(others) < len(route.addresses):
                connection.note(f"-- {error.why}: the next address")
                route = replace(route, addresses=others)
            elif _wants_helo(provider, error) and hello == "EHLO":
                connection.note("-- it hung up on EHLO: once more, with HELO")
                hello = "HELO"
            elif isinstance(error, Unprotected) and not plain:
                connection.note(f"-- {error.why}: once more, in clear")
                plain = True
            else:
                raise
        except BaseException:
            connection.close()
            raise
        else:
            return connection


def _wants_helo(provider: Provider, error: Broken) -> bool:
    """It hung up on EHLO (RFC 1869 §4.7). HELO knows no STARTTLS: pointless where that is required."""
    return isinstance(error, Hangup) and error.stage == "ehlo" and provider.tls is not Tls.REQUIRED
