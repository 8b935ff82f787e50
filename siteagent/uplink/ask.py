"""One ETRN a node: the loop over nodes (RFC 1985), and what ends it.

The law: every node is asked, whatever the answers for the others were; the loop ends early only on 421, on a closed
connection, and on "not supported". Never more than six nodes to a connection (Sendmail brakes from the eighth on), and
a new connection where a server has a session limit. Each node gets its last word exactly once, through `on_answer`, as
it comes. What an answer means stands in `wire.etrn`.

With `learn_name_form`, a name that is refused in the form that is written (459, 501) is tried once in its other form,
`#name` for `name`; what worked is in the answer (`sent`), and `forms` says what worked before.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from siteagent.config.sections import Limits, NotAdvertised, Provider, Tls
from siteagent.events import Line
from siteagent.uplink.broken import Broken, Silence
from siteagent.uplink.connection import Connection, Route, session
from siteagent.uplink.login import log_in
from siteagent.wire import etrn
from siteagent.wire.etrn import AskFailure, AskResult, GoOn, NodeAnswer, Verdict
from siteagent.wire.reply import Reply, printable

NODES_A_CONNECTION = 6
# A server that twice in a row says nothing is overloaded; each wait may take five minutes of a paid line.
_SILENCES = 2
_SESSION_LIMIT_CODES = (458, 550)


async def ask(
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
    transcript: Callable[[str], None] | None = None,
    forms: Mapping[str, str] | None = None,
) -> AskResult:
    """Asks `provider` for the mail of `nodes`, over `line`, at the first of `addresses` that answers.

    `forms`: what to send for a node whose other form is known to work. `tls` None: the context is built here, in the
    executor. `transcript` gets each line said and heard, secrets masked. Never raises for what a peer, the line or a
    file of the provider's options does: that is the result's `failure`. Cancellation closes the connection at once;
    nodes that have not had their last word then have none.
    """
    route = Route(line=line, addresses=addresses, hostname=hostname, limits=limits, tls=tls, transcript=transcript)
    asking = _Asking(provider, nodes, password=password, on_answer=on_answer, forms=forms or {})
    failure: Broken | None = None
    counted: list[int] = []
    try:
        while asking.waiting:
            async with session(provider, route, count=counted.append) as connection:
                await asking.talk(connection)
                await connection.quit()
    except Broken as error:
        failure = error
    asking.settle()
    return AskResult(
        tuple(asking.answers), _failure(failure), asking.offers_atrn, asking.software, wire_bytes=sum(counted)
    )


def _failure(error: Broken | None) -> AskFailure | None:
    if error is None:
        return None
    return AskFailure(error.stage, error.why, error.code, error.temporary, error.fix)


class _Asking:
    """The loop's state: who waits, who is being repeated and for which answer, what was said so far."""

    def __init__(
        self,
        provider: Provider,
        nodes: Sequence[str],
        *,
        password: str | None,
        on_answer: Callable[[NodeAnswer], None],
        forms: Mapping[str, str],
    ) -> None:
        self.provider = provider
        self.waiting = deque(nodes)
        self.answers: list[NodeAnswer] = []
        self.offers_atrn = False
        self.software = ""
        self._password = password
        self._on_answer = on_answer
        self._repeated: set[tuple[str, GoOn]] = set()
        self._pending: tuple[Reply, Verdict, float] | None = None  # what the first in line was told before
        self._silences = 0
        self._forms = dict(forms) if provider.learn_name_form else {}
        self._as_written: dict[
            str, tuple[Reply, Verdict, float]
        ] = {}  # what the first form was told, while the other is tried

    async def talk(self, connection: Connection) -> None:
        """Asks what one connection carries; returns when a new one is needed, or nobody waits any more.

        Raises:
            Broken: the loop ends here, every node before has its answer.
        """
        self.offers_atrn = "atrn" in connection.features
        self.software = etrn.software(connection.greeting.text) or self.software
        await log_in(connection, self._password)
        self._check_advertised(connection)
        accepted = 0
        asked = 0
        while self.waiting and asked < NODES_A_CONNECTION:
            if not etrn.sendable(self.waiting[0]):
                self._answer(None, etrn.NO_NAME, 0.0)
                continue
            asked += 1
            try:
                reply, seconds = await self._etrn(connection)
            except Silence as error:
                self._answer(None, etrn.SILENCE, connection.limits.etrn_reply_seconds)
                self._silences += 1
                if self._silences >= _SILENCES or not self.waiting:
                    raise error
                return
            except Broken as error:
                self._answer(None, etrn.CLOSED, 0.0, text=error.why)
                raise
            self._silences = 0
            verdict = self._verdict(reply, accepted)
            if verdict.go_on is GoOn.STOP:
                self._answer(reply, verdict, seconds)
                raise self._stopped(reply, verdict)
            if self._may_repeat(verdict):
                self._pending = (reply, verdict, seconds)
                if verdict.go_on is GoOn.NEW_CONNECTION:
                    return
                if await self._satisfy(connection):
                    continue
            if self._try_other_form(reply, verdict, seconds):
                continue
            self._answer(*self._better(reply, verdict, seconds))
            accepted += reply.positive

    async def _etrn(self, connection: Connection) -> tuple[Reply, float]:
        clock = asyncio.get_running_loop().time
        began = clock()
        reply = await connection.command(
            f"ETRN {self._sent(self.waiting[0])}", stage="ask", seconds=connection.limits.etrn_reply_seconds
        )
        return reply, clock() - began

    def _sent(self, node: str) -> str:
        return self._forms.get(node, node)

    def _try_other_form(self, reply: Reply, verdict: Verdict, seconds: float) -> bool:
        """Once a node: the name in its other form is next, where this one was refused for what it is."""
        node = self.waiting[0]
        if not self.provider.learn_name_form or node in self._as_written:
            return False
        other = etrn.other_form(self._sent(node))
        if verdict.go_on is not GoOn.NEXT_NODE or reply.code not in etrn.OTHER_FORM_CODES or other is None:
            return False
        self._as_written[node] = (reply, verdict, seconds)
        self._forms[node] = other
        return True

    def _better(self, reply: Reply, verdict: Verdict, seconds: float) -> tuple[Reply, Verdict, float]:
        """Of two refusals the first counts: it is about the name as the operator wrote it."""
        node = self.waiting[0]
        if node in self._as_written and reply.code in etrn.OTHER_FORM_CODES:
            self._forms.pop(node, None)
            return self._as_written[node]
        return reply, verdict, seconds

    def _verdict(self, reply: Reply, accepted: int) -> Verdict:
        verdict = etrn.verdict(reply)
        if verdict.go_on is GoOn.NEXT_NODE and accepted and reply.code in _SESSION_LIMIT_CODES:
            # The first name went well, a later one does not: as like as not the server takes one a session.
            return Verdict(verdict.outcome, GoOn.NEW_CONNECTION, verdict.meaning, verdict.fix)
        return verdict

    def _may_repeat(self, verdict: Verdict) -> bool:
        """Once a node for each reason: an answer that stays the same is the last word."""
        reason = (self.waiting[0], verdict.go_on)
        if verdict.go_on not in (GoOn.NEW_CONNECTION, GoOn.AUTHENTICATE) or reason in self._repeated:
            return False
        self._repeated.add(reason)
        return True

    async def _satisfy(self, connection: Connection) -> bool:
        """What a 530 asks for, as far as the configuration has it; whether anything changed."""
        changed = False
        if self.provider.tls is Tls.OPPORTUNISTIC and not connection.encrypted and not connection.refused_tls:
            await connection.start_tls(unadvertised=True)
            changed = connection.encrypted
        return await log_in(connection, self._password, insist=True) or changed

    def _check_advertised(self, connection: Connection) -> None:
        if "etrn" in connection.features:
            return
        if self.provider.when_not_advertised is NotAdvertised.TRY:
            connection.note("-- ETRN is not listed: asking all the same")
            return
        raise Broken(
            self.provider,
            "ask",
            "it does not list ETRN",
            temporary=False,
            fix=f'set when_not_advertised = "try" for provider {self.provider.name} (some servers hide it), or ask the '
            "provider which of its servers does ETRN",
        )

    def _stopped(self, reply: Reply, verdict: Verdict) -> Broken:
        why = f'{verdict.meaning}: it answered "{reply}"'
        return Broken(self.provider, "ask", why, temporary=not reply.permanent, code=reply.code, fix=self._fix(verdict))

    def settle(self) -> None:
        """The answer that was to be asked for once more, and could not be, is the last word."""
        if self._pending is not None and self.waiting:
            reply, verdict, seconds = self._pending
            self._answer(reply, verdict, seconds)

    def _answer(self, reply: Reply | None, verdict: Verdict, seconds: float, *, text: str = "") -> None:
        self._pending = None
        node = self.waiting.popleft()
        sent = self._sent(node)
        answer = NodeAnswer(
            node,
            verdict.outcome,
            reply.code if reply is not None else None,
            printable(str(reply)[4:]) if reply is not None else text or verdict.meaning,
            verdict.promised,
            seconds,
            self._fix(verdict),
            sent if sent != node else "",
        )
        self.answers.append(answer)
        self._on_answer(answer)

    def _fix(self, verdict: Verdict) -> str | None:
        return verdict.fix and verdict.fix.replace("this provider", f"provider {self.provider.name}")
