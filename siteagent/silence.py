"""Why did nobody come? Looks at what can be known after silent rounds, and names the likely causes.

Off the mail's path: everything here happens in a task of its own after a round ended, with a deadline, and nothing
waits for it. ``250`` and then silence mostly means that nothing was waiting (Postfix, Exim and Sendmail never say so),
and that always stands first. The rest is what was found, not what could be: without a finding, and with a provider
that came before and not long ago, nobody is told anything.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from siteagent.config.sections import Provider
from siteagent.errors import SiteAgentError
from siteagent.events import (
    AskAnswered,
    Emit,
    Event,
    Outcome,
    RoundEnded,
    RoundStarted,
    SessionOpened,
    Stamped,
    WarningCleared,
    WarningRaised,
    hears,
)
from siteagent.rounds.choice import unreachable

SILENT_ROUNDS = 3
# So long without a connection is no news of a provider that came before: many a queue is empty over a long weekend.
USUAL_SILENCE = timedelta(days=3)
LOOK_SECONDS = 20.0
_GREETING_SECONDS = 2.0

NOTHING_WAITED = "nothing was waiting"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known of one provider's silence.

    `reached`: the addresses of `reached_as`, None where that was not asked or cannot be told. `answers_ourselves`:
    our port takes connections at our own address, None where that was not tried.
    """

    provider: Provider
    in_a_row: int
    last_came: datetime | None
    now: datetime
    counted: bool = False
    source: str = ""
    reached: tuple[str, ...] | None = None
    port: int | None = None
    answers_ourselves: bool | None = None
    blocked: str = ""


@dataclass(frozen=True, slots=True)
class Cause:
    """`likely` as in "likely: ..."; `ask`: what to do, or to ask the provider."""

    likely: str
    ask: str


def findings(facts: Facts) -> list[Cause]:
    """What was found that would explain it, the surest first."""
    provider, found = facts.provider, list[Cause]()
    if facts.blocked:
        found.append(
            Cause(f'it refuses our address ("{facts.blocked}")', "set username and password_file, or port = 587")
        )
    if facts.port is None:
        pass  # by ATRN nobody needs to reach us
    elif facts.answers_ourselves is False:
        found.append(
            Cause(
                f"our port {facts.port} takes no connection at {facts.source}, not even from ourselves",
                "look at `listen` and at this host's firewall",
            )
        )
    if facts.reached is not None and facts.source and not facts.reached:
        found.append(Cause(f"{provider.reached_as} has no address", "look at its DNS, or its dynamic-DNS client"))
    elif facts.reached and facts.source and facts.source not in facts.reached and not unreachable(facts.source):
        found.append(
            Cause(
                f"{provider.reached_as} leads to {', '.join(facts.reached)}, and we are {facts.source}",
                "update that name; the provider connects to where it leads",
            )
        )
    if facts.source and (why := unreachable(facts.source)):
        found.append(
            Cause(
                f"nobody outside can connect to us: {why}, unless a port is forwarded",
                'forward the port, or ask whether the provider does ATRN (method = "auto")',
            )
        )
    return found


def guesses(facts: Facts) -> list[Cause]:
    """What cannot be seen from here, and is worth a question: for a provider that never came."""
    provider = facts.provider
    if facts.last_came is not None:
        return []
    found = []
    if not provider.peers and not provider.host.replace(".", "").isdigit():
        found.append(
            Cause(
                "it connects from other addresses than those of its name",
                "ask which they are, for `peers`; a refused one is a warning of its own",
            )
        )
    forms = {node[0] if node[0] in "@#" else "" for node in provider.nodes}
    if forms == {""}:
        found.append(
            Cause("it holds the mail under another name", "ask for the exact name to send, `#name` or `@name`")
        )
    node, us = provider.nodes[0].lstrip("@#"), provider.reached_as or "this host"
    ask = f"ask where it delivers mail for {node} to: that must be {us}"
    return [*found, Cause("it does not know where we are", ask)]


def explanation(facts: Facts) -> Cause | None:
    """One sentence of causes, "nothing was waiting" first, and one of questions; None where nobody need be told."""
    found = findings(facts)
    recently = facts.last_came is not None and facts.now - facts.last_came < USUAL_SILENCE
    if not found and recently and not facts.counted:
        return None
    causes = [*found, *guesses(facts)]
    first = [] if facts.counted else [NOTHING_WAITED]
    times = "once" if facts.in_a_row == 1 else f"{facts.in_a_row} times in a row"
    said = "counted mail for us" if facts.counted else "agreed to send"
    likely = "; or ".join([*first, *(cause.likely for cause in causes)]) or "it cannot reach us"
    before = f", last {facts.last_came:%Y-%m-%d}" if facts.last_came is not None else ", and never so far"
    text = f"{facts.provider.name} {said} {times} and nobody came{before}. Likely: {likely}"
    asks = "; ".join(dict.fromkeys(cause.ask for cause in causes))
    return Cause(text, asks or f"send a mail to yourself, and run `siteagent test {facts.provider.name}`")


# --- looking ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Past:
    in_a_row: int = 0
    silent_ever: bool = False
    last_came: datetime | None = None
    counted: bool = False
    blocked: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Around:
    """What `Explainer` asks of the agent around it."""

    provider: Callable[[str], Provider | None]
    source: Callable[[str], str]  # our address on the line to that provider, "" without one
    resolve: Callable[[str], Awaitable[tuple[str, ...]]]
    port: Callable[[], int | None]  # where we listen for the provider; None: nowhere
    at: Callable[[str], tuple[str, ...]]  # the providers that an address may stand for, as well as each other
    wall: Callable[[], datetime]
    raise_: Callable[[str, str, str, str], WarningRaised | None]
    clear: Callable[[str, str], WarningCleared | None]
    emit: Emit


@dataclass(slots=True)
class Explainer:
    """Counts silent rounds, and looks after the first ever and the third in a row. `background` runs the look."""

    around: Around
    background: Callable[[Coroutine[Any, Any, None]], None]
    _past: dict[str, _Past] = field(default_factory=dict)
    _knocking_from: str = ""  # our own address, while we try our own port: `peers` may hold it

    def restore(self, past: Mapping[str, datetime], silent: frozenset[str]) -> None:
        """What earlier runs saw: who came when, and who was silent before."""
        for name, at in past.items():
            self._of(name).last_came = at
        for name in silent:
            self._of(name).silent_ever = True

    def _of(self, name: str) -> _Past:
        return self._past.setdefault(name, _Past())

    @hears(RoundStarted, AskAnswered, SessionOpened, RoundEnded)
    def observe(self, event: Event) -> None:
        """Every event of the agent; never waits."""
        match event:
            case RoundStarted():
                past = self._of(event.provider)
                past.counted, past.blocked = False, ""
            case AskAnswered():
                past = self._of(event.provider)
                # A count of nothing is none.
                past.counted |= event.code in (252, 253) and event.promised != 0
                past.blocked = event.text if event.code == 554 else past.blocked
            case SessionOpened() if event.peer != self._knocking_from:
                # Two providers of one address look the same: whose session it was is a guess, that it came is not.
                for name in {event.provider, *self.around.at(event.peer)} - {None}:
                    self._came(str(name))
            case RoundEnded():
                self._ended(event)

    def _came(self, name: str) -> None:
        past = self._of(name)
        past.last_came, past.in_a_row = self.around.wall(), 0
        self._emit(self.around.clear("silence", name))

    def _ended(self, event: RoundEnded) -> None:
        past = self._of(event.provider)
        if event.outcome is not Outcome.SILENT:
            if event.outcome in (Outcome.DRAINED, Outcome.NOTHING):
                past.in_a_row = 0
                self._emit(self.around.clear("silence", event.provider))
            return
        past.in_a_row += 1
        first, past.silent_ever = not past.silent_ever, True
        if (first and past.last_came is None) or past.in_a_row == SILENT_ROUNDS or past.counted:
            self.background(self.look(event.provider))

    async def look(self, name: str) -> None:
        """Finds the facts and tells what they say. Trouble in looking is no news."""
        provider = self.around.provider(name)
        if provider is None:
            return
        past = self._of(name)
        source, reached = self.around.source(name), await self._reached(provider)
        port = self.around.port()  # looked up at the last moment: with open = "asked" it closes behind the round
        facts = Facts(
            provider=provider,
            in_a_row=past.in_a_row,
            last_came=past.last_came,
            now=self.around.wall(),
            counted=past.counted,
            source=source,
            reached=reached,
            port=port,
            answers_ourselves=await self._answers(source, port) if source and port else None,
            blocked=past.blocked,
        )
        told = explanation(facts)
        if told is not None and self._of(name).in_a_row:
            self._emit(self.around.raise_("silence", name, told.likely, told.ask))

    async def _reached(self, provider: Provider) -> tuple[str, ...] | None:
        if not provider.reached_as:
            return None
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                return await self.around.resolve(provider.reached_as)
        except (SiteAgentError, TimeoutError):
            return None

    async def _answers(self, host: str, port: int) -> bool | None:
        """Whether somebody takes connections there. None: could not be tried."""
        self._knocking_from = host
        try:
            async with asyncio.timeout(LOOK_SECONDS / 4):
                reader, writer = await asyncio.open_connection(host, port)
        except (ConnectionRefusedError, TimeoutError):
            return False
        except OSError:
            return None
        else:
            with contextlib.suppress(OSError):  # TimeoutError too: it is open all the same
                async with asyncio.timeout(_GREETING_SECONDS):
                    await reader.read(1)  # so that our own listener has told of this session by now
                writer.close()
                await writer.wait_closed()
            return True
        finally:
            self._knocking_from = ""

    def _emit(self, event: WarningRaised | WarningCleared | None) -> None:
        if event is not None:
            self.around.emit(event)


def remembered(past: tuple[Stamped, ...]) -> tuple[dict[str, datetime], frozenset[str]]:
    """For `Explainer.restore`: from the journal's last rounds, told as events."""
    came = {s.event.provider: s.at for s in past if isinstance(s.event, SessionOpened) and s.event.provider}
    rounds = [s.event for s in past if isinstance(s.event, RoundEnded)]
    return came, frozenset(event.provider for event in rounds if event.outcome is Outcome.SILENT)
