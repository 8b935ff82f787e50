"""What one ask needs beside the line: addresses, a password, a TLS context. The talking is ``uplink.ask``'s.

Passwords are read for each ask and never kept; contexts are kept until their file changes, since building one takes
longer than asking.
"""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from siteagent.config.convert import changed
from siteagent.config.files import Stamp, stamp
from siteagent.config.passwords import password
from siteagent.config.sections import Limits, Method, Provider, Tls
from siteagent.errors import SiteAgentError
from siteagent.events import BeforeAsk, Line, NodeOutcome
from siteagent.hooks import NOT_YET
from siteagent.rounds.choice import Choice, unreachable
from siteagent.store.forms import NameForms
from siteagent.whereabouts import leads_to
from siteagent.wire.etrn import AskFailure, AskResult, NodeAnswer

if TYPE_CHECKING:
    from siteagent.uplink.turn import Receive


_DELAYS = 10


def greeting_name(hostname: str, line: Line) -> str:
    """Our name in EHLO on `line`. A host without a name greets by address literal (RFC 5321 §4.1.3): by that line's.

    The literal that the configuration was read with is of another time: at boot, before the line was there, it is
    loopback's, and on a line with a changing address that of an earlier one. It stays where the line's address is
    nobody's outside: then an operator wrote the one that the router has.
    """
    if not hostname.startswith("["):
        return hostname
    known = ipaddress.ip_address(hostname.strip("[]").removeprefix("IPv6:"))
    source = ipaddress.ip_address(line.source.partition("%")[0])
    if not known.is_loopback and not source.is_global:
        return hostname
    return f"[IPv6:{source}]" if source.version == 6 else f"[{source}]"


class Asker:
    """Asks one provider: ``await asker(nodes, line, on_answer)``, as its runner does. Raises CancelledError alone."""

    def __init__(
        self,
        provider: Provider,
        *,
        hostname: str,
        limits: Limits,
        resolve: Callable[[str], Awaitable[tuple[str, ...]]],
        transcript: Callable[[str], None] | None = None,
        forms: NameForms | None = None,
        receive: Receive | None = None,
        before: Callable[[BeforeAsk], Awaitable[int | None]] | None = None,
        where: Callable[[str, str], Awaitable[str]] = leads_to,
    ) -> None:
        """`receive` makes the session for a connection that is turned round; None: ATRN is not possible here.

        `before` runs the operator's command and gives its exit status; `where` waits for a name to lead to an address.
        """
        self._receive = receive
        self._before = before
        self._where = where
        self._resolve = resolve
        self._transcript = transcript
        self._forms = forms
        self.delay_seconds = 60.0
        self.choice: Callable[[], Choice | None] = lambda: None  # how the round at work asks, where `auto` chose
        self.reconfigure(provider, hostname=hostname, limits=limits)

    def reconfigure(self, provider: Provider, *, hostname: str, limits: Limits) -> None:
        """Counts from the next ask."""
        self._provider, self._hostname, self._limits = provider, hostname, limits
        self._context: tuple[Stamp | None, ssl.SSLContext] | None = None

    async def prepare(self) -> None:
        """Builds the TLS context before it is needed. Trouble with it is told by the ask."""
        try:
            await self._tls()
        except SiteAgentError:
            return

    async def __call__(self, nodes: Sequence[str], line: Line, on_answer: Callable[[NodeAnswer], None]) -> AskResult:
        from siteagent.uplink.ask import ask  # 40 ms that the start need not wait for

        provider = self._provider
        await self._prepared(line)
        if why := await self._not_found_yet(line):
            fix = f"look at the dynamic DNS of {provider.reached_as}, or set wait_for_address = false"
            failure = AskFailure(stage="prepare", reason=why, code=None, temporary=True, fix=fix)
            return AskResult((), failure, offers_atrn=False, software="")
        try:
            addresses = await self._resolve(provider.host)
            secret = await asyncio.to_thread(password, provider)
            context = await self._tls()
        except SiteAgentError as error:
            failure = AskFailure(
                stage="prepare",
                reason=f"{error.what}: {error.why}",
                code=None,
                temporary=error.temporary,
                fix=error.fix,
            )
            return AskResult((), failure, offers_atrn=False, software="")
        chosen = self.choice()
        if chosen is not None and chosen.method is Method.ATRN and self._receive is not None:
            from siteagent.uplink.turn import turn

            return await turn(
                changed(provider, port=chosen.port),
                nodes,
                line=line,
                addresses=addresses,
                hostname=greeting_name(self._hostname, line),
                limits=self._limits,
                password=secret,
                tls=context,
                on_answer=on_answer,
                receive=self._receive,
                transcript=self._transcript,
            )
        result = await ask(
            provider,
            nodes,
            forms=self._forms.known(provider.name) if self._forms is not None else None,
            line=line,
            addresses=addresses,
            hostname=greeting_name(self._hostname, line),
            limits=self._limits,
            password=secret,
            tls=context,
            on_answer=on_answer,
            transcript=self._transcript,
        )
        await self._remember_forms(result)
        return result

    async def _prepared(self, line: Line) -> None:
        """The operator's command first: a dynamic name should lead to us before the provider follows it."""
        if self._before is None:
            return
        for attempt in range(1, _DELAYS + 1):
            event = BeforeAsk(
                provider=self._provider.name, interface=line.interface, source=line.source, attempt=attempt
            )
            if await self._before(event) != NOT_YET:
                return
            await asyncio.sleep(self.delay_seconds)

    async def _not_found_yet(self, line: Line) -> str:
        """Why the provider would not find us at our name; "" where it would, or where that cannot be compared."""
        provider = self._provider
        by_atrn = (chosen := self.choice()) is not None and chosen.method is Method.ATRN
        if not provider.wait_for_address or not provider.reached_as or by_atrn or unreachable(line.source):
            return ""
        why = await self._where(provider.reached_as, line.source)
        return f"{provider.reached_as} does not lead to {line.source} yet: {why}" if why else ""

    async def _remember_forms(self, result: AskResult) -> None:
        """The form of each name that the provider took."""
        if self._forms is None or not self._provider.learn_name_form:
            return
        taken = (NodeOutcome.STARTED, NodeOutcome.NOTHING)
        answers = [answer for answer in result.answers if answer.outcome in taken]
        news = [self._forms.learn(self._provider.name, answer.node, answer.sent) for answer in answers]
        if any(news):
            await asyncio.to_thread(self._forms.save)

    async def _tls(self) -> ssl.SSLContext | None:
        from siteagent.uplink.tls import client_context

        provider = self._provider
        if provider.tls is Tls.OFF:
            return None
        now = stamp(provider.tls_ca_file) if provider.tls_ca_file else None
        if self._context is None or self._context[0] != now:
            self._context = (now, await asyncio.to_thread(client_context, provider))
        return self._context[1]
