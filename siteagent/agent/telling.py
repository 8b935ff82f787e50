"""Every event, carried to everybody who wants it: log, snapshot, journal, hooks, and the parts that act on it.

`Teller.emit` is the one `emit` of the agent. It stamps the event and never waits: what needs a disk has its own
thread. Events that come in crowds wait a moment for each other while the agent runs; who sets a timer because of
events sets it with `Teller.timer`. The snapshot is written to ``status.json`` at once when a state, the line or a round
changed, otherwise at most every half second.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Container
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from siteagent.events import (
    AgentReady,
    ConfigRejected,
    ConfigReloaded,
    Event,
    FilingFailed,
    MessageAccepted,
    MessageRefused,
    MessageStored,
    Outcome,
    RoundEnded,
    SessionOpened,
    SessionRefused,
    Severity,
    Stamped,
    WarningCleared,
    WarningRaised,
)
from siteagent.inbound import says
from siteagent.logs import LogWriter
from siteagent.status import Document, StatusFold, Warnings, metrics, not_in_force, urgent
from siteagent.store.snapshot import Snapshot

CALM_SECONDS = 0.5
RETRY_SECONDS = 15.0
_PEERS_REMEMBERED = 1000  # anybody may knock, and IPv6 has addresses for everybody
_OF_PROVIDERS = ("peer-refused", "silence", "refused", "held-back", "no-round", "tls", "heartbeat")

_PATIENCE_SECONDS = 0.005
_WARNING = frozenset(
    {
        *(AgentReady, ConfigRejected, ConfigReloaded, SessionRefused, SessionOpened, RoundEnded),
        *(MessageRefused, MessageAccepted, FilingFailed, MessageStored),
    }
)

Observer = Callable[[Event], None]


class Timer:
    """One that was set with `Teller.timer`."""

    def __init__(self, seconds: float, callback: Callable[[], None], *, tell: Callable[[], None]) -> None:
        self._callback: Callable[[], None] | None = callback
        self._tell = tell
        self._handle = asyncio.get_running_loop().call_later(seconds, self._ring)

    def cancel(self) -> None:
        self._callback = None
        self._handle.cancel()

    def _ring(self) -> None:
        self._tell()
        callback, self._callback = self._callback, None
        if callback is not None:  # what was told just now may have made it needless
            callback()


class Teller:
    """`observers` see each event after log, snapshot and journal have it, in order; what they emit comes behind it.

    One that is marked with `events.hears` sees those alone.

    One that fails is told of, and costs neither the others nor whoever emitted anything.
    """

    def __init__(
        self,
        state_directory: Path,
        *,
        log: LogWriter,
        record: Callable[[Stamped], None],
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._state_directory = state_directory
        self._snapshot = Snapshot(state_directory, note=partial(self.note, severity=Severity.ERROR))
        self._log = log
        self._record = record
        self._wall = wall
        self.fold = StatusFold()
        self.warnings = Warnings()
        self.observers: list[Observer] = []
        self.hooks: Callable[[Stamped], None] = lambda stamped: None
        self.document: Callable[[], Document] = dict
        self.metrics: Path | None = None  # where the figures are written, too
        self._waiting: deque[Stamped] = deque()
        self._later: Callable[[float, Callable[[], None]], asyncio.TimerHandle] | None = None
        self._due: asyncio.TimerHandle | None = None
        self._telling = False
        self._changed = asyncio.Event()
        self._urgent = asyncio.Event()
        self._failing: dict[str, set[str]] = {}
        self._refused: dict[str, set[str]] = {}  # provider -> unlisted addresses that it seems to have

    def emit(self, event: Event) -> None:
        """Tells everybody, in order: at once, or within 5 ms (see `be_patient`). On the loop's thread."""
        self._waiting.append(Stamped(self._wall(), event))
        if self._telling:
            return  # by whoever is at it, behind the event that is being told
        if self._later is None or not event.in_crowds:
            self.tell()
        elif self._due is None:
            self._due = self._later(_PATIENCE_SECONDS, self.tell)

    def be_patient(self, later: Callable[[float, Callable[[], None]], asyncio.TimerHandle] | None) -> None:
        """From here on events that come in crowds wait for each other; None: no more. `later`: the loop's `call_later`.

        One by one, between two steps of the sessions, they were seen to cost three times what they cost in a row.
        """
        self._later = later
        self.tell()

    def timer(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """`call_later` for whoever acts on events: what happened before it rings has been told by then."""
        return Timer(seconds, callback, tell=self.tell)

    def tell(self) -> None:
        """Tells what waits."""
        if self._due is not None:
            self._due.cancel()
            self._due = None
        if self._telling:
            return
        self._telling = True
        try:
            while self._waiting:
                self._tell(self._waiting.popleft())
        finally:
            self._telling = False

    def _tell(self, stamped: Stamped) -> None:
        event = stamped.event
        self._log.write(stamped)
        self.fold.fold(stamped)
        self._record(stamped)
        # A session that emits must not pay with a 451 for a hook's or a terminal's trouble.
        try:
            self.hooks(stamped)
        except Exception as error:
            self._complain(error)
        kind = type(event)
        for observer in self.observers:
            wanted = getattr(observer, "hears", None)
            if wanted is not None and kind not in wanted:
                continue
            try:
                observer(event)
            except Exception as error:
                self._complain(error)
        for warning in self._warned(event) if kind in _WARNING else ():
            self.emit(warning)
        self.changed(now=urgent(event))

    def _complain(self, error: Exception) -> None:
        self.note(f"whoever hears of events failed: {type(error).__name__}: {error}", severity=Severity.ERROR)

    def note(self, text: str, *, severity: Severity = Severity.INFO) -> None:
        """A line for the log that is no event."""
        self._log.note(self._wall(), text, severity=severity)

    def changed(self, *, now: bool = False) -> None:
        """The snapshot differs from what was written."""
        self._changed.set()
        if now:
            self._urgent.set()

    # --- warnings -----------------------------------------------------------------------------------------------------

    def _warned(self, event: Event) -> list[WarningRaised | WarningCleared]:
        """What a person must be told because of `event`."""
        found: list[WarningRaised | WarningCleared | None] = []
        match event:
            case ConfigRejected():
                fix = "mend the file, with `siteagent check`; or restart the agent, where that is what it says"
                found.append(self.warnings.raise_("configuration", event.path, not_in_force(event.problems), fix))
            case ConfigReloaded() | AgentReady():
                found += [self.warnings.clear("configuration", p) for p in self.warnings.standing("configuration")]
            case SessionRefused():
                for provider in event.expected:
                    if len(known := self._refused.setdefault(provider, set())) < _PEERS_REMEMBERED:
                        known.add(event.peer)
                    text = f"{provider} seems to connect from {event.peer} now"
                    fix = f'add "{event.peer}" to peers of provider {provider}, if it is its: strangers knock too'
                    found.append(self.warnings.raise_("peer-refused", provider, text, fix))
            case SessionOpened(provider=str(name)) if event.peer in self._refused.get(name, ()):
                found.append(self._known_again(name))
            case RoundEnded(outcome=Outcome.DRAINED):
                found.append(self._known_again(event.provider))
                found.append(self.warnings.clear("refused", event.provider))
            case RoundEnded(outcome=Outcome.REFUSED):
                text = f"{event.provider} refuses to send our mail: {event.reason}"
                fix = f"run `siteagent doctor`; the log of round {event.round} says what it wants"
                found.append(self.warnings.raise_("refused", event.provider, text, fix))
            case RoundEnded(outcome=Outcome.NOTHING | Outcome.SILENT | Outcome.ASKED):
                found.append(self.warnings.clear("refused", event.provider))
            case MessageRefused(reason=says.NOT_KEPT.text):
                text = f"mail is turned away: the spool in {self._state_directory} cannot keep it"
                fix = "mend the disk, the log says what is wrong with it; the provider brings the mail again"
                found.append(self.warnings.raise_("cannot-keep", "spool", text, fix))
            case MessageAccepted():
                found.append(self.warnings.clear("cannot-keep", "spool"))
            case FilingFailed():
                self._failing.setdefault(event.mailbox, set()).add(event.message)
                text = f"mail for {event.mailbox} cannot be filed: {event.reason}"
                fix = "mend that, then run `siteagent queue retry`; nothing is lost meanwhile"
                found.append(self.warnings.raise_("cannot-file", event.mailbox, text, fix))
            case MessageStored():
                failing = self._failing.get(event.mailbox, set())
                failing.discard(event.message)
                if not failing:
                    found.append(self.warnings.clear("cannot-file", event.mailbox))
        return [warning for warning in found if warning is not None]

    def _known_again(self, provider: str) -> WarningCleared | None:
        """It brought its mail after all, or its new address is in the list now."""
        self._refused.pop(provider, None)
        return self.warnings.clear("peer-refused", provider)

    def only_about(self, providers: Container[str]) -> None:
        """Clears the warnings about providers that are not in the configuration any more: nothing else ever would."""
        for kind in _OF_PROVIDERS:
            for subject in self.warnings.standing(kind):
                if subject not in providers and (cleared := self.warnings.clear(kind, subject)) is not None:
                    self.emit(cleared)

    # --- status.json --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keeps ``status.json`` up to date, until cancelled."""
        while True:
            await self._changed.wait()
            written = await self.write()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CALM_SECONDS if written else RETRY_SECONDS):
                    await self._urgent.wait()

    async def write(self) -> bool:
        """Writes the snapshot as it is now. Trouble with the disk is said once, and never stops the agent.

        False: it could not be written, and is still to be.
        """
        self.tell()
        self._changed.clear()
        self._urgent.clear()
        document = self.document()
        written = await self._snapshot.write(document)
        if not written:
            self._changed.set()
        if self.metrics is not None:  # trouble with it is said, and costs the snapshot nothing
            await self._snapshot.put(self.metrics, metrics(document))
        return written

    def close(self) -> None:
        self._snapshot.close()
