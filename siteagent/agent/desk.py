"""The providers' runners: lines, requests and sessions brought to the right one.

One `Runner` a provider, with its `Asker`; what a session counts for, whom a refused stranger may have been, and which
of the requests left in the state directory concerns whom is decided here.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs

from siteagent.agent.asking import Asker
from siteagent.agent.peering import Peering
from siteagent.agent.telling import Teller
from siteagent.config.hours import closed_for, parse
from siteagent.config.sections import Configuration, Method, Provider
from siteagent.delivery.filer import Filer
from siteagent.errors import UsageError
from siteagent.events import BeforeAsk, Event, Line, LinkChanged, LinkDown, LinkUp, Severity
from siteagent.inbound.reception import Owner
from siteagent.inbound.smtp import Dialect
from siteagent.link.watch import Target
from siteagent.names import Resolver
from siteagent.rounds.choice import Seen
from siteagent.rounds.habits import Habits
from siteagent.rounds.runner import Request, Runner
from siteagent.status import Document, ProviderView
from siteagent.store import requests
from siteagent.store.forms import NameForms

if TYPE_CHECKING:
    from siteagent.uplink.turn import Turned


@dataclass(frozen=True, slots=True)
class Once:
    """One round of these providers (names; empty: all) for these nodes (empty: all), and then the end."""

    request: str
    providers: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    timeout_seconds: float | None = None

    def share(self, provider: Provider) -> Provider | None:
        """What of `provider` is wanted: it with those nodes alone, or nothing. Nobody else asks in this life."""
        if self.providers and provider.name not in self.providers:
            return None
        nodes = tuple(node for node in provider.nodes if node in self.nodes) if self.nodes else provider.nodes
        return attrs.evolve(provider, nodes=nodes) if nodes else None  # type: ignore[misc]  # an alias of define


class Desk:
    """On the loop's thread. `background` runs what must not be waited for."""

    def __init__(
        self,
        configuration: Configuration,
        *,
        teller: Teller,
        filer: Filer,
        resolver: Resolver,
        peering: Peering,
        receives: bool,
        background: Callable[[Coroutine[Any, Any, None]], None],
        transcript: Callable[[str], None] | None,
        forms: NameForms | None = None,
        before: Callable[[BeforeAsk], Awaitable[int | None]] | None = None,
        adopt: Callable[[Owner], Dialect] | None = None,
        on_request_only: bool = False,
    ) -> None:
        """`adopt` makes the session for a connection of ours that a provider turns round (ATRN).

        `on_request_only`: of a life that is for `ask_once`.
        """
        self._on_request_only = on_request_only
        self._adopt = adopt
        self.configuration = configuration
        self._forms = forms
        self._before = before
        self.runners: dict[str, Runner] = {}
        self._askers: dict[str, Asker] = {}
        self._leaving: dict[str, Provider] = {}  # removed, and a round of theirs is open
        self._teller = teller
        self._filer = filer
        self._resolver = resolver
        self._peering = peering
        self._receives = receives
        self._background = background
        self._transcript = transcript

    # --- runners ------------------------------------------------------------------------------------------------------

    def add(self, provider: Provider) -> None:
        """Takes a provider in; the line to it comes with the watch's next look."""
        asker = Asker(
            provider,
            hostname=self.configuration.hostname,
            limits=self.configuration.limits,
            resolve=self._resolver.resolve,
            transcript=self._transcript,
            forms=self._forms,
            before=self._before,
            receive=partial(self._receive, provider.name) if self._adopt is not None else None,
        )
        self._askers[provider.name] = asker
        self.runners[provider.name] = Runner(
            provider,
            ask=asker,
            emit=self._teller.emit,
            monotonic=time.monotonic,
            wall=lambda: datetime.now(UTC),
            call_later=self._teller.timer,
            new_id=lambda: secrets.token_hex(6),
            waiting_to_file=self._filer.waiting_to_file,
            ask_only=not self._receives and provider.method is not Method.ATRN,
            metered=self._is_metered,
            closed_for=self._closed_for,
            habits=self._habits(provider.name),
            seen=self._seen(provider.name),
            on_request_only=self._on_request_only,
        )
        asker.choice = lambda: self.runners[provider.name].choice
        self._background(asker.prepare())

    def reconfigure(self, configuration: Configuration) -> None:
        """Counts from each provider's next round; who was removed finishes the one that runs."""
        before = {provider.name: provider for provider in self.configuration.provider}
        self.configuration = configuration
        removed = set(self.runners)
        for provider in configuration.provider:
            removed.discard(provider.name)
            if provider.name in self._leaving:
                continue  # taken in anew when that round is over: who leaves does not come back
            if provider.name in self.runners:
                asker = self._askers[provider.name]
                asker.reconfigure(provider, hostname=configuration.hostname, limits=configuration.limits)
                self.runners[provider.name].reconfigure(provider)
            else:
                self.add(provider)
        for name in removed.difference(self._leaving):
            self._leaving[name] = before[name]
            self._background(self._retire(name))
        self._tell_peering()

    async def _retire(self, name: str) -> None:
        runner = self.runners[name]
        await runner.finish()
        del self.runners[name], self._askers[name], self._leaving[name]
        again = self.provider(name)
        if again is not None:
            self.add(again)
            if runner.line is not None:  # the watch has told of it, and tells nobody twice
                self.runners[name].line_up(runner.line, "reload")
        self._tell_peering()

    def _tell_peering(self) -> None:
        """Who may connect: also a removed provider, until its round is over."""
        configured = self.configuration.provider
        kept = [p for p in self._leaving.values() if self.provider(p.name) is None]
        self._peering.reconfigure((*configured, *kept))

    async def finish(self, name: str) -> None:
        """No further round of that provider."""
        await self.runners[name].finish()

    async def stop(self) -> None:
        """Ends every round, asks included."""
        await asyncio.gather(*(runner.stop() for runner in self.runners.values()))

    # --- what comes in ------------------------------------------------------------------------------------------------

    def observe(self, event: Event) -> None:
        """Every event of the agent."""
        match event:
            case LinkUp() | LinkChanged() if event.provider in self.runners:
                line = Line(event.interface, event.source, event.gateway)
                self.runners[event.provider].line_up(line, event.cause)
            case LinkDown() if event.provider in self.runners:
                self.runners[event.provider].line_down(event.cause)
        for runner in list(self.runners.values()):
            runner.observe(event)

    def woke(self) -> None:
        for runner in self.runners.values():
            runner.woke()

    def nudged(self, cause: str) -> None:
        for runner in self.runners.values():
            runner.nudge(cause)

    def ask_once(self, once: Once) -> None:
        """One round of the providers that are there."""
        for name, runner in self.runners.items():
            self._request(runner, once.request, self._nodes(name), once.nodes, once.timeout_seconds)

    def take(self, request: requests.Request) -> None:
        """A request from the state directory: for the providers and nodes it names, or for all."""
        known = {node for provider in self.configuration.provider for node in provider.nodes}
        if foreign := [node for node in request.nodes if node not in known]:
            self._note(f"a request asks for {', '.join(foreign)}, which no provider of the configuration has")
        for name in request.providers or tuple(self.runners):
            runner = self.runners.get(name)
            if runner is None:
                self._note(f"a request asks for provider {name}, which is not in the configuration")
            else:
                self._request(runner, request.id, self._nodes(name), request.nodes, request.timeout_seconds)

    def _request(
        self, runner: Runner, identity: str, own: tuple[str, ...], wanted: tuple[str, ...], seconds: float | None
    ) -> None:
        nodes = tuple(node for node in wanted if node in own)
        if wanted and not nodes:
            return
        try:
            runner.request(Request(identity, nodes or None, seconds))
        except UsageError as error:
            self._note(f"{error.what}: {error.why}")

    # --- what the listener asks ---------------------------------------------------------------------------------------

    def owner(self, peer: str) -> Owner:
        """By the longest prefix; at a tie the provider with a round open, the latest ask first.

        Who comes from an address of ours is nobody, though a network in `peers` may have it: we, trying our own port.
        """
        names = self._peering.candidates(peer)
        if peer in self._our_addresses() and not self._peering.asked_at(peer, names):
            return Owner(provider=None, round=None)
        waiting = [self.runners[name] for name in names if name in self.runners and self.runners[name].expecting]
        if waiting:
            latest = max(waiting, key=lambda runner: runner.asked_at or 0.0)
            return Owner(provider=latest.name, round=latest.round)
        return Owner(provider=names[0] if len(names) == 1 else None, round=None)

    def _receive(self, name: str) -> Turned:
        """The session for a connection that provider `name` turns round: its round's, whatever its address."""
        from siteagent.uplink.turn import Turned

        assert self._adopt is not None
        session = self._adopt(Owner(provider=name, round=self.runners[name].round))
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        forget = session.on_end

        def ended(session: Dialect) -> None:
            if forget is not None:
                forget(session)
            if not over.done():
                over.set_result(None)

        session.on_end = ended
        return Turned(session, over)

    def expected(self, peer: str) -> tuple[str, ...]:
        """The providers that a stranger may be."""
        runners = self.runners.values()
        return self._peering.suspects(
            peer,
            waiting={runner.name: runner.session_came for runner in runners if runner.expecting},
            ours=self._our_addresses(),
        )

    def _our_addresses(self) -> set[str]:
        return {runner.line.source for runner in self.runners.values() if runner.line is not None}

    def defer_above(self, provider: str | None) -> int:
        """Octets above which a message stays with that provider for now; 0: none."""
        return next((p.defer_above_bytes for p in self.configuration.provider if p.name == provider), 0)

    # --- what others see ----------------------------------------------------------------------------------------------

    def targets(self) -> list[Target]:
        """What the link watch looks for."""
        return [
            Target(provider.name, self._resolver.known(provider.host), provider.interfaces or ())
            for provider in self.configuration.provider
            if provider.name in self.runners
        ]

    def views(self) -> list[ProviderView]:
        views = [runner.view() for runner in self.runners.values()]
        return [
            ProviderView(
                name=view.name,
                state=view.state,
                next_ask=view.next_ask,
                requests=view.requests,
                gives_up_days=provider.gives_up_days if (provider := self.provider(view.name)) else None,
            )
            for view in views
        ]

    def _nodes(self, name: str) -> tuple[str, ...]:
        return next((p.nodes for p in self.configuration.provider if p.name == name), ())

    def provider(self, name: str) -> Provider | None:
        return next((p for p in self.configuration.provider if p.name == name), None)

    def source(self, name: str) -> str:
        """Our address on the line to that provider, "" without one."""
        line = self.runners[name].line if name in self.runners else None
        return line.source if line is not None else ""

    def busy_on(self, interface: str) -> bool:
        """Some provider that this line leads to is not done: a round is open, or about to begin."""
        return any(
            runner.line is not None and runner.line.interface == interface and not runner.done
            for runner in self.runners.values()
        )

    def _closed_for(self, at: datetime) -> float:
        return closed_for([parse(window) for window in self.configuration.windows.ask], at.astimezone())

    def _habits(self, name: str) -> Habits:
        """What earlier runs saw of the provider; the journal tells it at start."""
        return Habits.from_calls(row["first_connection_seconds"] for row in self._past_rounds(name))

    def _seen(self, name: str) -> Seen:
        """How its rounds went in earlier runs, for ``method = "auto"``."""
        rows = self._past_rounds(name)
        return Seen.from_past((row["method"], row["outcome"], bool(row["sessions"])) for row in rows)

    def _past_rounds(self, name: str) -> list[Document]:
        return [row for row in self._teller.fold.ledger() if row["provider"] == name]

    def _is_metered(self, interface: str) -> bool:
        return any(fnmatchcase(interface, pattern) for pattern in self.configuration.link.metered)

    def _note(self, text: str) -> None:
        self._teller.note(text, severity=Severity.WARNING)
