"""What was held for longer than `retain_days` is given up: a notice to its sender by the relay of `[notices]`.

Without a relay nothing is ever given up; it is counted, and shown. Time is that which really passed (`hub.days`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from siteagent.config.sections import Node
from siteagent.errors import SiteAgentError
from siteagent.hub.days import Days
from siteagent.hub.nodes import NodeTable
from siteagent.hub.outbox import Desk
from siteagent.store import held

_EXPIRY_SECONDS = 3600.0
_FIRST_EXPIRY_SECONDS = 15.0


class Expiry:
    """`releasing`: whether a node's mail is on its way just now. `left`: by node, how many are over their time."""

    def __init__(
        self,
        desk: Desk,
        days: Days,
        *,
        table: Callable[[], NodeTable],
        releasing: Callable[[str], bool],
        note: Callable[[str], None],
        place: Path,
    ) -> None:
        self.left: dict[str, int] = {}
        self._desk = desk
        self._days = days
        self._table = table
        self._releasing = releasing
        self._note = note
        self._place = place

    def mark(self, highest: int) -> None:
        """Messages up to number `highest` are here now. Blocks."""
        self._days.mark(highest)
        longest = max((node.retain_days for node in self._table().nodes.values()), default=1)
        try:
            self._days.save(longest_days=longest)
        except OSError as error:
            self._note(f"cannot write {self._place}: {error.strerror}")

    async def run(self, highest: Callable[[], int], changed: Callable[[], None]) -> None:
        """Looks soon after the start, and then every hour, until it is cancelled."""
        await asyncio.sleep(_FIRST_EXPIRY_SECONDS)
        while True:
            await asyncio.to_thread(self.mark, highest())
            await self.look()
            changed()
            await asyncio.sleep(_EXPIRY_SECONDS)

    async def look(self) -> None:
        """Gives up what is over its time and can be given up now."""
        queue, returns = self._desk.queue, self._desk.returns
        for node in list(self._table().nodes.values()):
            waiting = queue.older_than(node.name, self._days.held_for(node.retain_days))
            if waiting and returns.relay is not None and not self._releasing(node.name):
                for one in queue.take_these(node.name, waiting):
                    await self._give_up(node, one)
                queue.rewind(node.name)
            self.left[node.name] = len(queue.older_than(node.name, self._days.held_for(node.retain_days)))

    async def _give_up(self, node: Node, one: held.Held) -> None:
        given_up = False
        try:
            filing = await self._desk.spool.ask(
                lambda connection: held.with_content(connection, one.id, node.name)  # one message at a time
            )
            given_up = await self._desk.returns.expired(filing, node)
        except (LookupError, ValueError, TypeError, SiteAgentError) as error:
            self._note(f"cannot give up message {one.id} for {node.name}: {error}")
        finally:
            if given_up:
                self._desk.spool.filed([(one.id, node.name)])
                self._desk.queue.gone(node.name, one)
            else:
                self._desk.queue.put_back(node.name, one)
