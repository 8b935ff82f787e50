"""``open = "asked"``: the listener is open while a round expects mail, and closed when none does.

So nobody scans, fills or tries a port that is needed for two minutes an hour. Opening takes a millisecond, asking at
least a round trip: the port is there before the provider can know that it is wanted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from siteagent.events import Event, RoundEnded, RoundStarted, hears


class _Opens(Protocol):
    async def open(self) -> None: ...

    def close(self, *, seconds: float) -> Awaitable[None]: ...


class Shutter:
    """`run` supervised, until cancelled; who cancels it closes the listener. `expecting`: whether any round waits."""

    def __init__(
        self, listener: _Opens, *, expecting: Callable[[], bool], changed: Callable[[], None], grace_seconds: float
    ) -> None:
        self._listener = listener
        self._expecting = expecting
        self._changed = changed
        self._grace_seconds = grace_seconds
        self._look = asyncio.Event()
        self._open = False

    @hears(RoundStarted, RoundEnded)
    def observe(self, event: Event) -> None:
        """Every event of the agent."""
        if isinstance(event, RoundStarted | RoundEnded):
            self._look.set()

    async def run(self) -> None:
        """Follows the rounds. Raises CannotCreate, PermissionProblem where the port cannot be had: tried again."""
        while True:
            self._look.clear()
            wanted = self._expecting()
            if wanted and not self._open:
                await self._listener.open()
                self._open = True
                self._changed()
            elif self._open and not wanted:
                self._open = False
                await self._listener.close(seconds=self._grace_seconds)
                self._changed()
            else:
                await self._look.wait()
