"""Pushing without being asked: the clock of the nodes with `push_every_seconds`.

For a site whose line is always there and that asks for nothing. The first push is due one interval after the start,
then one each interval; where nothing waits, or a push runs already, that turn is left out.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Iterable

from siteagent.config.sections import Node


class Clock:
    """`changed` when the nodes may be others; `run` until it is cancelled. On the loop's thread."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._due: dict[str, float] = {}
        self._changed = asyncio.Event()

    def changed(self) -> None:
        """A new interval counts from now on; a shorter one before the earlier is over."""
        self._changed.set()

    async def run(self, nodes: Callable[[], Iterable[Node]], push: Callable[[Node], None]) -> None:
        """Calls `push` for each node whose turn it is."""
        while True:
            self._changed.clear()
            for node in self.due(nodes()):
                push(node)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.pause()):
                    await self._changed.wait()

    def due(self, nodes: Iterable[Node]) -> list[Node]:
        """Those of `nodes` whose turn it is now; their next one is an interval away."""
        now = self._monotonic()
        timed = [node for node in nodes if node.push_every_seconds and node.deliver_to is not None]
        self._due = {
            node.name: min(self._due.get(node.name, math.inf), now + node.push_every_seconds) for node in timed
        }
        turn = [node for node in timed if self._due[node.name] <= now]
        self._due |= {node.name: now + node.push_every_seconds for node in turn}
        return turn

    def pause(self) -> float | None:
        """Seconds until the next turn of any; None: no node has one."""
        return max(0.0, min(self._due.values()) - self._monotonic()) if self._due else None
