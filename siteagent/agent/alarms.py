"""When must a person be told, beyond what one event says: what lasts, what shrinks, what runs out.

`observe` remembers what happened, `look` judges what that and the disk amount to, every minute. What is raised or
cleared goes through `Warnings`, which says each thing once. Time is the monotonic clock's, so that a wall clock that
jumps raises nothing (S62); only a certificate's end is a date.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from siteagent.config.sections import Configuration
from siteagent.events import (
    AskAnswered,
    AskFailed,
    Emit,
    Event,
    LinkChanged,
    LinkDown,
    LinkUp,
    Outcome,
    RoundEnded,
    SessionClosed,
    Stamped,
    hears,
)
from siteagent.host import certificates
from siteagent.status import Document, Warnings, amount

LOOK_SECONDS = 60.0
DAY_SECONDS = 86_400.0
# A line that was there for less has given nobody a fair chance.
LEAST_LINE_SECONDS = 600.0
LOW_SHARE, FINE_SHARE = 0.10, 0.11
CERTIFICATE_DAYS = 21
HELD_BACK = timedelta(days=3)
_HANDSHAKES = 2
_GOOD = (Outcome.DRAINED, Outcome.NOTHING, Outcome.SILENT, Outcome.ASKED)
_TLS = "TLS handshake"

Usage = Callable[[Path], tuple[int, int]]


def _usage(path: Path) -> tuple[int, int]:
    if sys.platform == "win32":
        import shutil

        usage = shutil.disk_usage(path)
        return usage.free, usage.total
    else:  # what shutil does, whose import takes longer than all that runs before the listener is open
        figures = os.statvfs(path)
        return figures.f_bavail * figures.f_frsize, figures.f_blocks * figures.f_frsize


@dataclass(slots=True)
class _Line:
    """One provider: since when there was no good round, and for how long its line was up since then."""

    since: float
    up_at: float | None = None
    up_seconds: float = 0.0
    broken_tls: int = 0
    why: str = ""


@dataclass(frozen=True, slots=True)
class _Judged:
    """Whether one warning stands; `text` and `fix` where it does."""

    kind: str
    subject: str
    stands: bool
    text: str = ""
    fix: str = ""


@dataclass(slots=True, kw_only=True)
class Alarms:
    """On the loop's thread; only the looks at disks and files leave it."""

    configuration: Configuration
    warnings: Warnings
    emit: Emit
    document: Callable[[], Document]
    monotonic: Callable[[], float]
    wall: Callable[[], datetime]
    usage: Usage = _usage
    _lines: dict[str, _Line] = field(default_factory=dict)

    def restore(self, past: Iterable[Stamped]) -> None:
        """What earlier runs saw: since when there was no good round."""
        now, wall = self.monotonic(), self.wall()
        for stamped in past:
            event = stamped.event
            if isinstance(event, RoundEnded) and event.outcome in _GOOD:
                ago = min(max((wall - stamped.at).total_seconds(), 0.0), 30 * DAY_SECONDS)
                self._line(event.provider).since = now - ago

    @hears(LinkUp, LinkChanged, LinkDown, RoundEnded, AskFailed, AskAnswered, SessionClosed)
    def observe(self, event: Event) -> None:
        """Every event of the agent."""
        now = self.monotonic()
        match event:
            case LinkUp() | LinkChanged():
                line = self._line(event.provider)
                line.up_at = line.up_at if line.up_at is not None else now
            case LinkDown():
                self._count(self._line(event.provider), now)
                self._line(event.provider).up_at = None
            case RoundEnded():
                self._round_ended(event, now)
            case AskFailed(stage="starttls"):
                self._tls_broke(event.provider, event.reason)
            case AskAnswered():
                self._tls_held(event.provider)
            case SessionClosed(provider=str(name)) if event.reason.startswith(_TLS):
                self._tls_broke(name, event.reason)
            case SessionClosed(provider=str(name), clean=True):
                self._tls_held(name)

    async def run(self) -> None:
        """Looks every minute, until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """Judges everything once."""
        found = [*self._rounds(), *self._held_back()]
        found += await asyncio.to_thread(lambda: [*self._disks(), *self._certificate()])
        for judged in found:
            self._tell(judged)
        self._forget_removed(found)

    # --- what lasts ---------------------------------------------------------------------------------------------------

    def _line(self, provider: str) -> _Line:
        if provider not in self._lines:
            self._lines[provider] = _Line(self.monotonic())
        return self._lines[provider]

    def _count(self, line: _Line, now: float) -> None:
        if line.up_at is not None:
            line.up_seconds += now - line.up_at
            line.up_at = now

    def _round_ended(self, event: RoundEnded, now: float) -> None:
        line = self._line(event.provider)
        if event.outcome in _GOOD:
            line.since, line.up_seconds = now, 0.0
            line.up_at = now if line.up_at is not None else None
            self._tell(_Judged("no-round", event.provider, False))
        else:
            line.why = event.reason or event.outcome.value

    def _rounds(self) -> Iterator[_Judged]:
        now = self.monotonic()
        for provider in self.configuration.provider:
            line = self._line(provider.name)
            self._count(line, now)
            lasted = now - line.since >= DAY_SECONDS and line.up_seconds >= LEAST_LINE_SECONDS
            hours = int((now - line.since) / 3600)
            why = f"; the last attempt: {line.why}" if line.why else ""
            text = f"no successful round with {provider.name} for {hours // 24 * 24} hours, though the line was up{why}"
            fix = "run `siteagent doctor`, then `siteagent ask " + provider.name + "`"
            yield _Judged("no-round", provider.name, lasted, text, fix)

    def _held_back(self) -> Iterator[_Judged]:
        for view in self.document().get("providers", ()):
            deferred: list[dict[str, Any]] = (view.get("last_round") or {}).get("deferred") or []
            old = [each for each in deferred if self.wall() - datetime.fromisoformat(each["since"]) > HELD_BACK]
            text = fix = ""
            if old:
                first = min(old, key=lambda each: str(each["since"]))
                count = f"{len(old)} message{'' if len(old) == 1 else 's'}"
                why = f"{first['code']} {first['reason']}"
                text = f"{count} at {view['name']} not taken since {first['since'][:10]}: {why}"
                fix = (
                    "make room, or raise the limit if it is too big (defer_above_bytes, max_message_bytes): in the end "
                    "the provider returns it to its sender; `siteagent status` shows what is held back"
                )
            yield _Judged("held-back", view["name"], bool(old), text, fix)

    def _tls_broke(self, provider: str, why: str) -> None:
        line = self._line(provider)
        line.broken_tls += 1
        if line.broken_tls >= _HANDSHAKES:
            text = f"TLS with {provider} does not come about: {why}"
            self._tell(_Judged("tls", provider, True, text, "run `siteagent doctor`, which looks at the certificates"))

    def _tls_held(self, provider: str) -> None:
        self._line(provider).broken_tls = 0
        self._tell(_Judged("tls", provider, False))

    # --- what shrinks and runs out ------------------------------------------------------------------------------------

    def _disks(self) -> Iterator[_Judged]:
        assert self.configuration.state_directory is not None
        places = {"state": self.configuration.state_directory}
        places |= {f"mailbox {box.name}": box.maildir for box in self.configuration.mailbox}
        seen: set[int] = set()
        for name, place in places.items():
            try:
                device = place.stat().st_dev
                free, total = self.usage(place)
            except OSError:
                continue  # the filer tells of what is not there
            stands = ("disk", name) in self._standing()
            share = free / total if total else 1.0
            low = share < (FINE_SHARE if stands else LOW_SHARE) and device not in seen
            seen.add(device)
            text = f"only {amount(free)} of {amount(total)} left on the disk of {place}"
            floor = amount(self.configuration.listener.min_free_bytes)
            full = f"below {floor} no mail is taken, and it stays at the provider"
            waits = "once it is full, mail waits in the state directory"
            yield _Judged("disk", name, low, text, f"make room: {full if name == 'state' else waits}")

    def _certificate(self) -> Iterator[_Judged]:
        path = self.configuration.listener.tls_certificate
        if path is None:
            return
        try:
            until = certificates.good_until(certificates.first_of(path.read_bytes()))
        except (OSError, ValueError):
            return  # the reload tells of it, and the one in use stays
        left = until - self.wall()
        when = "expired" if left < timedelta(0) else "expires"
        text = f"the certificate {path} {when} on {until.astimezone(UTC):%Y-%m-%d}"
        fix = "renew it; the agent takes the new one without a restart"
        yield _Judged("certificate", str(path), left < timedelta(days=CERTIFICATE_DAYS), text, fix)

    # --- telling ------------------------------------------------------------------------------------------------------

    def _standing(self) -> set[tuple[str, str]]:
        return {("disk", subject) for subject in self.warnings.standing("disk")}

    def _tell(self, judged: _Judged) -> None:
        event: Event | None
        if judged.stands:
            if judged.subject in self.warnings.standing(judged.kind):
                return  # the figures change every minute, the matter does not
            event = self.warnings.raise_(judged.kind, judged.subject, judged.text, judged.fix)
        else:
            event = self.warnings.clear(judged.kind, judged.subject)
        if event is not None:
            self.emit(event)

    def _forget_removed(self, found: list[_Judged]) -> None:
        """What is not looked at any more (a removed mailbox, another certificate) stands no longer."""
        looked_at = {(judged.kind, judged.subject) for judged in found}
        for kind in ("no-round", "disk", "certificate"):
            for subject in self.warnings.standing(kind):
                if (kind, subject) not in looked_at:
                    self._tell(_Judged(kind, subject, False))
