"""What people order by hand: ``hub release`` and ``hub drop``, left as files in the state directory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path

from siteagent.events import MessageReturned
from siteagent.hub.nodes import NodeTable
from siteagent.hub.outbox import Desk
from siteagent.hub.push import Pusher
from siteagent.status import counted
from siteagent.store import held, lock, requests
from siteagent.store.durable import remove_quietly
from siteagent.store.spool import Spool

RELEASE, DROP = "release", "drop"


class Orders:
    """`answer` is told what became of each, by its id: the words, and whether it was done."""

    def __init__(
        self,
        desk: Desk,
        pusher: Pusher,
        *,
        table: Callable[[], NodeTable],
        answer: Callable[[str, str, bool], None],
    ) -> None:
        self._desk = desk
        self._pusher = pusher
        self._table = table
        self._answer = answer

    def take(self, state_directory: Path) -> None:
        """Takes what was left there."""
        for request in requests.take(state_directory):
            if request.kind == RELEASE:
                self._release(request)
            elif request.kind == DROP:
                self._desk.background(self._drop(request))

    def _release(self, request: requests.Request) -> None:
        answers = []
        done = True
        for name in request.nodes:
            node = self._table().nodes.get(name)
            count = self._desk.queue.count(name)
            if node is None:
                answers.append(f"there is no node {name}")
            elif node.deliver_to is None:
                answers.append(f"{name} has no deliver_to: it fetches its mail by ATRN")
            else:
                self._pusher.start(node)
                answers.append(f"{counted(count, 'message')} for {name}")
                continue
            done = False
        self._answer(request.id, "; ".join(answers), done)

    async def _drop(self, request: requests.Request) -> None:
        spool, queue = self._desk.spool, self._desk.queue
        for message in request.nodes:
            deliveries = await spool.ask(partial(held.named, message=message))
            gone = [(identity, node) for identity, node in deliveries if queue.remove(node, {identity})]
            if gone:
                for path in await spool.ask(partial(held.drop, deliveries=gone)):
                    remove_quietly(path)
            for _, node in gone:
                self._desk.emit(
                    MessageReturned(
                        message=message, node=node, sender="", recipients=(), reason="dropped by hand", notice=False
                    )
                )
            unmoved = f"{message} is on its way" if deliveries else f"there is no message {message}"
            text = f"dropped {message}" if gone else unmoved
            self._answer(request.id, text, bool(gone))


def drop_now(state_directory: Path, message: str) -> tuple[bool, str]:
    """Removes a message from the spool of a hub that does not run; whether it was there, and words. Blocks.

    Raises CannotCreate where a hub runs after all, StorageError.
    """
    held_lock = lock.acquire(state_directory, purpose=f"drop {message}")
    try:
        spool = Spool(state_directory, recall=held.Index())
        spool.open()
        try:
            return asyncio.run(_drop_from(spool, message))
        finally:
            spool.close_now()
    finally:
        held_lock.release()


async def _drop_from(spool: Spool, message: str) -> tuple[bool, str]:
    deliveries = await spool.ask(partial(held.named, message=message))
    for path in await spool.ask(partial(held.drop, deliveries=deliveries)):
        remove_quietly(path)
    return bool(deliveries), f"dropped {message}" if deliveries else f"there is no message {message}"
