"""``heartbeat = "daily"``: a message to ourselves by the provider, once a day; taken away when it arrives.

The one proof that mail flows where nobody writes for weeks. It goes out as a stranger's message would, the provider is
asked, and the file that holds the mark is removed from ``new/``; a reader that was quicker keeps it, which proves as
much. When the last one was is kept beside the state, so that a restart sends none. A warning stands while one is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from siteagent.config.sections import Configuration, Heartbeat, Mailbox, Provider
from siteagent.errors import SiteAgentError
from siteagent.events import Emit, MessageStored, hears
from siteagent.status import Warnings
from siteagent.store.durable import replace_file

FILE = "heartbeat.json"
DAY_SECONDS = 86_400.0
LOST_SECONDS = 6 * 3600.0
LOOK_SECONDS = 60.0
_LOOK_INTO_BYTES = 16_384

Send = Callable[[Provider, str, str], Awaitable[None]]
"""(provider, our address, mark): hands it over. Raises SiteAgentError."""


@dataclass(slots=True, kw_only=True)
class Beats:
    """On the loop's thread. `line_up`: whether there is a way to a provider; `ask`: a round of it now."""

    configuration: Configuration
    warnings: Warnings
    emit: Emit
    send: Send
    ask: Callable[[str], None]
    line_up: Callable[[str], bool]
    wall: Callable[[], datetime]
    background: Callable[[Awaitable[None]], None]
    file: Path
    _last: dict[str, float] = field(default_factory=dict)
    _under_way: dict[str, tuple[str, float]] = field(default_factory=dict)  # mark -> provider, when

    async def run(self) -> None:
        """Looks every minute whether one is due, or lost; until cancelled."""
        self._last = await asyncio.to_thread(self._read)
        while True:
            await self.look()
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """Sends what is due, tells of what is lost."""
        now = self.wall().timestamp()
        for mark, (name, sent) in list(self._under_way.items()):
            if now - sent > LOST_SECONDS:
                del self._under_way[mark]
                self._lost(name, f"the test message by {name} did not arrive in {LOST_SECONDS / 3600:.0f} hours")
        for provider in self.configuration.provider:
            # Also where the wall clock went back: "in the future" is no reason to wait for years (S62).
            age = abs(now - self._last.get(provider.name, 0.0))
            if provider.heartbeat is Heartbeat.DAILY and age >= DAY_SECONDS and self.line_up(provider.name):
                await self._beat(provider, now)

    async def _beat(self, provider: Provider, now: float) -> None:
        address = next((a for box in self.configuration.mailbox for a in box.addresses if not a.startswith("@")), None)
        if address is None:
            return
        self._last[provider.name] = now
        await asyncio.to_thread(self._write)
        mark = secrets.token_hex(12)
        self._under_way[mark] = (provider.name, now)
        try:
            await self.send(provider, address, mark)
        except (SiteAgentError, ValueError) as error:
            del self._under_way[mark]
            self._lost(provider.name, f"{provider.name} does not take a test message: {str(error).splitlines()[0]}")
            return
        self.ask(provider.name)

    def _lost(self, name: str, text: str) -> None:
        raised = self.warnings.raise_("heartbeat", name, text, f"run `siteagent test {name}`: it names the hop")
        if raised is not None:
            self.emit(raised)

    # --- arriving -----------------------------------------------------------------------------------------------------

    @hears(MessageStored)
    def observe(self, event: object) -> None:
        """A message that was filed may be one of ours."""
        if self._under_way and isinstance(event, MessageStored):
            box = next((each for each in self.configuration.mailbox if each.name == event.mailbox), None)
            if box is not None:
                self.background(self._judge(box, event.file))

    async def _judge(self, box: Mailbox, file: str) -> None:
        path = box.maildir / "new" / Path(file).name
        mark = await asyncio.to_thread(_mark_in, path, tuple(self._under_way))
        if mark is None:
            return
        name, _ = self._under_way.pop(mark, (None, 0.0))
        with contextlib.suppress(OSError):
            await asyncio.to_thread(path.unlink)
        cleared = self.warnings.clear("heartbeat", name) if name is not None else None
        if cleared is not None:
            self.emit(cleared)

    # --- kept ---------------------------------------------------------------------------------------------------------

    def _read(self) -> dict[str, float]:
        with contextlib.suppress(OSError, ValueError, AttributeError, TypeError):
            return {str(name): float(at) for name, at in json.loads(self.file.read_bytes()).items()}
        return {}

    def _write(self) -> None:
        with contextlib.suppress(OSError):
            replace_file(self.file, json.dumps(self._last).encode(), mode=0o600)


def _mark_in(path: Path, marks: tuple[str, ...]) -> str | None:
    try:
        with path.open("rb") as file:
            head = file.read(_LOOK_INTO_BYTES)
    except OSError:
        return None
    return next((mark for mark in marks if mark.encode() in head), None)
