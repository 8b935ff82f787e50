"""ATRN (RFC 2645): ask for our mail, and be the server on the same connection from the provider's 250 on.

The law: the connection is handed over inside `data_received`, at the octet where the 250 ended. Between "reply parsed"
and "task resumed" a loop's turn may pass, in which aiosmtplib throws octets away; so from the ATRN on its protocol is
not used any more. One ATRN turns one connection; what it could not ask for is asked on the next.

What an answer means stands in `wire.atrn`. Nothing is sent on a line that was not verified, nor without a login (S42).
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from siteagent.config.sections import Limits, Provider
from siteagent.events import Line
from siteagent.uplink.broken import AGAIN, Broken, Hangup, OutOfStep, Silence, refused
from siteagent.uplink.connection import Connection, Route, session
from siteagent.uplink.login import log_in
from siteagent.wire import atrn, etrn
from siteagent.wire.etrn import AskFailure, AskResult, GoOn, NodeAnswer
from siteagent.wire.reader import ReplyError, ReplyReader
from siteagent.wire.reply import Reply, printable


@dataclass(frozen=True, slots=True)
class Turned:
    """Our server's side of a connection that was turned round, not greeted yet; a future for when it is over."""

    session: asyncio.Protocol
    over: asyncio.Future[None]


Receive = Callable[[], Turned]


async def turn(
    provider: Provider,
    nodes: Sequence[str],
    *,
    line: Line | None,
    addresses: Sequence[str],
    hostname: str,
    limits: Limits,
    password: str | None,
    tls: ssl.SSLContext | None,
    on_answer: Callable[[NodeAnswer], None],
    receive: Receive,
    transcript: Callable[[str], None] | None = None,
) -> AskResult:
    """Fetches the mail of `nodes` from `provider`. `receive` makes the session that takes it in.

    Returns when the last ATRN was answered; the session that it opened goes on by itself. Where several connections
    are needed, each begins when the session on the one before is over. Never raises for what a peer, the line or a
    file of the provider's options does. Cancellation closes a connection that is not turned yet.
    """
    route = Route(line=line, addresses=addresses, hostname=hostname, limits=limits, tls=tls, transcript=transcript)
    asking = _Asking(provider, nodes, password=password, on_answer=on_answer, receive=receive)
    failure: Broken | None = None
    counted: list[int] = []
    try:
        while asking.waiting:
            if asking.turned is not None:
                await asking.turned.over
            async with session(provider, route, count=counted.append) as connection:
                await asking.talk(connection)
                await connection.quit()
    except Broken as error:
        failure = error
    told = None
    if failure is not None:
        told = AskFailure(failure.stage, failure.why, failure.code, failure.temporary, failure.fix)
    return AskResult(tuple(asking.answers), told, asking.offers_atrn, asking.software, wire_bytes=sum(counted))


def take_transport(connection: Connection) -> tuple[asyncio.Transport, bytes]:
    """The transport of an open session, for another protocol to go on with, and octets that nobody has read.

    The connection is of no more use to its owner; closing it closes nothing.
    """
    protocol = connection._protocol
    assert protocol is not None, "not open"
    return connection.release(), protocol.stray


class _Asking:
    """The loop's state: which domains wait, in commands that are short enough."""

    def __init__(
        self,
        provider: Provider,
        nodes: Sequence[str],
        *,
        password: str | None,
        on_answer: Callable[[NodeAnswer], None],
        receive: Receive,
    ) -> None:
        self.provider = provider
        self.answers: list[NodeAnswer] = []
        self.offers_atrn = False
        self.software = ""
        self.turned: Turned | None = None
        self._password = password
        self._on_answer = on_answer
        self._receive = receive
        self.waiting: deque[tuple[str, ...]] = deque()
        for node in nodes:
            if not atrn.sendable(node):
                self._tell(node, None, atrn.NO_DOMAIN, 0.0)
        self.waiting.extend(atrn.commands([node for node in nodes if atrn.sendable(node)]))

    async def talk(self, connection: Connection) -> None:
        """Asks until the connection is turned, or nobody waits any more.

        Raises:
            Broken: no login, or the connection ended; every node before has its answer.
        """
        self.offers_atrn = "atrn" in connection.features
        self.software = etrn.software(connection.greeting.text) or self.software
        await log_in(connection, self._password, insist=True)
        if not connection.logged_in:
            raise Broken(
                self.provider,
                "auth",
                "there is no login that may be sent on this line",
                temporary=False,
                fix=f"set username and password_file of provider {self.provider.name}, "
                'with tls = "required" or "implicit"',
            )
        while self.waiting:
            domains = self.waiting.popleft()
            try:
                reply, seconds = await self._atrn(connection, domains)
            except Broken as error:
                verdict = atrn.SILENCE if isinstance(error, Silence) else atrn.CLOSED
                for domain in domains:
                    self._tell(domain, None, verdict, 0.0, text=error.why)
                raise
            verdict = atrn.verdict(reply)
            if len(domains) > 1 and atrn.about_one_domain(reply):
                # Which one shows when each is asked alone.
                self.waiting.extendleft((domain,) for domain in reversed(domains))
                continue
            for domain in domains:
                self._tell(domain, reply, verdict, seconds)
            if reply.code == 250:
                return
            if verdict.go_on is GoOn.STOP:
                raise refused(self.provider, "ask", reply)

    async def _atrn(self, connection: Connection, domains: tuple[str, ...]) -> tuple[Reply, float]:
        clock = asyncio.get_running_loop().time
        began = clock()
        command = f"ATRN {','.join(domains)}"
        connection.note(f"C: {command}")
        bridge = _Bridge(self._take_over, connection)
        reply = await bridge.ask(command, seconds=connection.limits.atrn_reply_seconds)
        connection.note(f"S: {reply}")
        return reply, clock() - began

    def _take_over(self) -> asyncio.Protocol:
        self.turned = self._receive()
        return self.turned.session

    def _tell(self, node: str, reply: Reply | None, verdict: etrn.Verdict, seconds: float, *, text: str = "") -> None:
        fix = verdict.fix and verdict.fix.replace("this provider", f"provider {self.provider.name}")
        answer = NodeAnswer(
            node,
            verdict.outcome,
            reply.code if reply is not None else None,
            printable(str(reply)[4:]) if reply is not None else text or verdict.meaning,
            None,
            seconds,
            fix,
        )
        self.answers.append(answer)
        self._on_answer(answer)


class _Bridge(asyncio.Protocol):
    """Stands on the connection from the ATRN to its answer; on a 250 it puts our server there, on the spot."""

    def __init__(self, take_over: Callable[[], asyncio.Protocol], connection: Connection) -> None:
        self._take_over = take_over
        self._connection = connection
        self._reader = ReplyReader()
        self._transport = connection._transport
        self._old = connection._protocol
        self._answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

    async def ask(self, command: str, *, seconds: float) -> Reply:
        """Raises Broken. Cancelled, or without an answer in `seconds`, the connection is closed."""
        connection, transport, old = self._connection, self._transport, self._old
        assert transport is not None and old is not None, "not open"
        provider = connection.provider
        if old.stray:
            connection.close()
            raise OutOfStep(provider, "ask", "it said more than was asked", temporary=True, fix=AGAIN)
        transport.set_protocol(self)
        transport.write(command.encode("ascii") + b"\r\n")
        try:
            async with asyncio.timeout(seconds):
                return await self._answer
        except TimeoutError:
            connection.close()
            raise Silence(provider, "ask", f"no answer in {seconds:g} s", temporary=True, fix=AGAIN) from None
        except ReplyError as error:
            connection.close()
            raise OutOfStep(provider, "ask", str(error), temporary=True, fix=AGAIN) from None
        except ConnectionError as error:
            connection.close()
            why = "it closed the connection without an answer"
            raise Hangup(provider, "ask", why, temporary=True, fix=AGAIN) from error
        except asyncio.CancelledError:
            connection.close()  # closes nothing where it is turned already
            raise

    def data_received(self, data: bytes) -> None:
        if self._answer.done():
            return
        try:
            reply = self._reader.feed(data)
        except ReplyError as error:
            self._answer.set_exception(error)
            return
        if reply is None:
            return
        transport = self._transport
        assert transport is not None
        if reply.code == 250:
            self._turn(transport)
        elif self._old is not None:
            transport.set_protocol(self._old)
        self._answer.set_result(reply)

    def _turn(self, transport: asyncio.Transport) -> None:
        self._connection.release()  # not the client's any more
        try:
            session = self._take_over()
        except Exception:
            transport.abort()
            raise
        transport.set_protocol(session)
        session.connection_made(transport)
        if self._reader.rest:
            # Who talks before our greeting is not refused: it is the provider that we dialled.
            session.data_received(self._reader.rest)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        if not self._answer.done():
            self._answer.set_exception(ConnectionResetError(str(error or "closed")))
