"""What each line is used for: seconds that it was up, and octets of mail and of asking on it.

A line is up while the way to any provider leads over it. What was used is told by ``line.used``, in pieces: at the end
of a round, when the line goes, every five minutes and over midnight (UTC), so that the journal can add it up by days
and a crash loses little.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from siteagent.events import Emit, Event, LineUsed, LinkChanged, LinkDown, LinkUp, RoundEnded, SessionClosed, hears

FLUSH_SECONDS = 300.0


class Meter:
    """On the loop's thread. `tick` every minute or so."""

    def __init__(self, emit: Emit, *, monotonic: Callable[[], float], wall: Callable[[], datetime]) -> None:
        self._emit = emit
        self._monotonic = monotonic
        self._wall = wall
        self._ways: dict[str, str] = {}  # provider -> the line that leads there
        self._since: dict[str, float] = {}  # line -> up, and told, until
        self._octets: dict[str, int] = {}
        self._day = wall().date()

    @hears(LinkUp, LinkChanged, LinkDown, SessionClosed, RoundEnded)
    def observe(self, event: Event) -> None:
        """Every event of the agent."""
        match event:
            case LinkUp() | LinkChanged():
                self._leave(event.provider)
                self._ways[event.provider] = event.interface
                self._since.setdefault(event.interface, self._monotonic())
            case LinkDown():
                self._leave(event.provider)
            case SessionClosed():
                self._count(self._line_of(event.provider), event.wire_bytes)
            case RoundEnded():
                self._count(event.link_interface, event.ask_bytes)
                self._flush(event.link_interface)

    def tick(self) -> None:
        """Tells what is due."""
        day = self._wall().date()
        over = day != self._day
        self._day = day
        for line in list(self._since):
            if over or self._monotonic() - self._since[line] >= FLUSH_SECONDS:
                self._flush(line)

    def close(self) -> None:
        """Tells everything."""
        for line in {*self._since, *self._octets}:
            self._flush(line)

    def _line_of(self, provider: str | None) -> str:
        """Mail of nobody in particular counts on the line, where there is but one."""
        if provider is not None and provider in self._ways:
            return self._ways[provider]
        lines = set(self._ways.values())
        return lines.pop() if len(lines) == 1 else ""

    def _leave(self, provider: str) -> None:
        line = self._ways.pop(provider, None)
        if line is not None and line not in self._ways.values():
            self._flush(line)
            self._since.pop(line, None)

    def _count(self, line: str, octets: int) -> None:
        self._octets[line] = self._octets.get(line, 0) + octets

    def _flush(self, line: str) -> None:
        now = self._monotonic()
        seconds = now - self._since[line] if line in self._since else 0.0
        octets = self._octets.pop(line, 0)
        if line in self._since:
            self._since[line] = now
        if seconds or octets:
            self._emit(LineUsed(interface=line, seconds=round(seconds, 3), wire_bytes=octets))
