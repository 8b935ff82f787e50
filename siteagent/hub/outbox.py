"""The letters of one release: handed out a few at a time, and what the site said to each carried into the spool.

What the site answered 250 for is owed no more and is never sent again; everything else stays held. A 5yz is held or
returned to the sender, as `undeliverable` of the node has it; a 4yz, silence or a lost connection never is (S61).
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

from siteagent.config.sections import Node, Undeliverable
from siteagent.events import Emit, MessageHeld, MessageSent, SpoolDamaged
from siteagent.hub.letter import Letter, Result
from siteagent.hub.queue import Queue
from siteagent.hub.returns import Returns
from siteagent.store import held
from siteagent.store.held import Held
from siteagent.store.spool import Filing, Spool
from siteagent.wire.reply import Reply

_BATCH_LETTERS = 16
_BATCH_BYTES = 1_048_576
_LEAST_BATCH_BYTES = 16_384
_ALL_BATCHES_BYTES = 16_777_216  # of all releases together, however many sites ask in one minute
_RECEIVED_CR = 8  # line ends that our own field has, at most: SIZE is an estimate (RFC 1870 §5)


@dataclasses.dataclass(slots=True)
class _Out:
    """One that was read. `filing` has its content only until it is handed out."""

    held: Held
    filing: Filing


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """What every release works with. `background` runs what must not be waited for."""

    spool: Spool
    queue: Queue
    returns: Returns
    bodies: Path
    emit: Emit
    background: Callable[[Coroutine[Any, Any, None]], None]
    outboxes: set[Outbox] = dataclasses.field(default_factory=set)

    def batch_bytes(self) -> int:
        """How much one release may read ahead, now that so many run."""
        share = _ALL_BATCHES_BYTES // max(1, len(self.outboxes))
        return max(_LEAST_BATCH_BYTES, min(_BATCH_BYTES, share))


class Outbox:
    """Of one node. Several connections may take from it."""

    def __init__(self, desk: Desk, node: Node) -> None:
        self._desk = desk
        self._node = node
        self._ready: deque[_Out] = deque()
        self._out: dict[int, _Out] = {}
        self._reading = asyncio.Lock()
        self._closed = False
        self.messages = 0
        self.bytes = 0
        self.reasons: dict[str, None] = {}
        desk.outboxes.add(self)
        desk.queue.rewind(node.name)

    async def next(self) -> Letter | None:
        """The next letter, the oldest first; None when there is none that this release has not handed out."""
        async with self._reading:
            while not self._ready:
                if not await self._read():
                    return None
        out = self._ready.popleft()
        letter = _letter(out.filing, self._desk.bodies)
        # Many may be on their way at once: only the letter has the content, until it is written.
        out.filing = dataclasses.replace(out.filing, data=None)
        self._out[out.held.id] = out
        return letter

    def tell(self, result: Result) -> None:
        """What the site said to a letter that `next` handed out. Once for each."""
        out = self._out.pop(result.letter.id)
        if result.unreadable:
            self._set_aside(out.held, result.why)
            return
        filing, taken = out.filing, result.taken
        if taken:
            self.messages += 1
            self.bytes += filing.size
            reply = result.answers[taken[0]]
            self._desk.emit(
                MessageSent(
                    message=filing.message,
                    node=self._node.name,
                    recipients=taken,
                    bytes=filing.size,
                    reply=str(reply),
                )
            )
        left = {address: reply for address, reply in result.answers.items() if address not in taken}
        if not left:
            self._desk.spool.filed([(filing.id, filing.target)])
            self._desk.queue.gone(self._node.name, out.held)
            return
        returned = {}
        if self._node.undeliverable is Undeliverable.BOUNCE:
            returned = {address: reply for address, reply in left.items() if reply is not None and reply.permanent}
        if taken or returned:
            self._desk.background(self._settle(out, left, returned, taken=taken, why=result.why))
        else:
            self._hold(out, left, result.why)

    def close(self) -> None:
        """The release is over: what was not handed out goes back."""
        self._closed = True
        self._desk.outboxes.discard(self)
        while self._ready:
            self._desk.queue.put_back(self._node.name, self._ready.popleft().held)
        self._desk.queue.rewind(self._node.name)

    # --- in -----------------------------------------------------------------------------------------------------------

    async def _read(self) -> bool:
        """Reads the next few from the spool; False where nothing is left."""
        queue, name = self._desk.queue, self._node.name
        batch = queue.take(name, _BATCH_LETTERS)
        if not batch:
            return False
        identities = [one.id for one in batch]
        try:
            found, damaged, looked = await self._desk.spool.ask(
                partial(held.fetch, target=name, identities=identities, most_bytes=self._desk.batch_bytes())
            )
        except BaseException:
            for one in batch:
                queue.put_back(name, one)
            raise
        queue.unread(name, batch[looked:])
        by_id = {filing.id: filing for filing in found}
        for one in batch[:looked]:
            filing = by_id.get(one.id)
            if filing is not None:
                self._ready.append(_Out(one, filing))
                continue
            if one.id in damaged:
                self._set_aside(one, damaged[one.id])
            else:
                queue.gone(name, one)  # dropped meanwhile
        return True

    def _set_aside(self, one: Held, reason: str) -> None:
        """Not sent before the next start looks at it again: it must not stand before the others each time."""
        self._desk.queue.gone(self._node.name, one)
        self._desk.emit(SpoolDamaged(what=f"message {one.id} for {self._node.name}", reason=reason))

    # --- out ----------------------------------------------------------------------------------------------------------

    async def _settle(
        self,
        out: _Out,
        left: dict[str, Reply | None],
        returned: dict[str, Reply],
        *,
        taken: tuple[str, ...],
        why: str,
    ) -> None:
        """Where not all recipients fare alike: what is owed from here on stands in the spool before anything else."""
        try:
            if returned and await self._return(out.filing, returned):
                left = {address: reply for address, reply in left.items() if address not in returned}
            narrowed = tuple(address for address in out.filing.addresses if address in left)
            if narrowed and len(narrowed) < len(out.filing.addresses):
                await self._desk.spool.ask(
                    partial(held.narrow, identity=out.filing.id, target=out.filing.target, addresses=narrowed)
                )
        except BaseException:  # the hub ends, or something of ours failed: it is owed to all of them as before
            self._desk.queue.put_back(self._node.name, out.held)
            self._rewind()
            raise
        if not left:
            self._desk.spool.filed([(out.filing.id, out.filing.target)])
            self._desk.queue.gone(self._node.name, out.held)
            return
        self._hold(out, left, why)
        self._rewind()

    def _rewind(self) -> None:
        """While the release goes on, what came back waits for its end: else it would be sent again and again."""
        if self._closed:
            self._desk.queue.rewind(self._node.name)

    async def _return(self, filing: Filing, replies: dict[str, Reply]) -> bool:
        """Whether the sender was told: its notice carries the header of the message, which is read again."""
        try:
            whole = await self._desk.spool.ask(
                partial(held.with_content, identity=filing.id, target=filing.target),
            )
        except (LookupError, ValueError, TypeError, AttributeError) as error:
            self._desk.emit(SpoolDamaged(what=f"message {filing.id} for {filing.target}", reason=str(error)))
            return False
        return await self._desk.returns.refused(whole, self._node, replies)

    def _hold(self, out: _Out, left: dict[str, Reply | None], why: str) -> None:
        answered = next(((address, reply) for address, reply in left.items() if reply is not None), None)
        reply = answered[1] if answered is not None else None
        reason = str(reply) if reply is not None else why or "no answer"
        tries = out.filing.tries + 1
        self.reasons[reason] = None
        if reply is not None:
            self._desk.emit(
                MessageHeld(
                    message=out.filing.message,
                    node=self._node.name,
                    recipients=tuple(left),
                    code=reply.code,
                    reason=reason,
                    tries=tries,
                )
            )
        self._desk.spool.postponed(out.filing, tries=tries, next_try=0, reason=reason)
        self._desk.queue.put_back(self._node.name, out.held)


def _letter(filing: Filing, bodies: Path) -> Letter:
    file = filing.file
    if file is not None and not file.exists() and (bodies / file.name).exists():
        file = bodies / file.name  # the state directory was moved
    return Letter(
        id=filing.id,
        message=filing.message,
        sender=filing.sender,
        addresses=filing.addresses,
        size=filing.size + filing.bare + len(filing.received) + _RECEIVED_CR,
        smtputf8=filing.smtputf8,
        eight_bit=filing.eight_bit,
        received=filing.received,
        data=filing.data,
        file=file,
        head=filing.head,
        stored=filing.size,
        tries=filing.tries,
    )
