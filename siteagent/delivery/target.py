"""What accepted messages are filed into: the protocol that every kind of mailbox keeps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from siteagent.store.body import Envelope, Placement
from siteagent.store.spool import Filing

Load = Callable[[Filing], bytes]


@dataclass(frozen=True, slots=True)
class Delivered:
    """What became of one filing: name and size of the file that was published, or the `reason` why there is none.

    `visible`: it failed after a reader could see it, so the next try must look before it writes.
    """

    file: str = ""
    bytes: int = 0
    reason: str | None = None
    visible: bool = False


class Target(Protocol):
    """Blocks, and so runs in a thread; one batch of a target at a time.

    `deliver` answers for each filing of the batch, in order, and raises nothing. Without a reason the message is
    published and durable; with one nothing is promised, and the same filing comes again later.
    """

    @property
    def name(self) -> str: ...

    def deliver(self, batch: Sequence[Filing], load: Load) -> list[Delivered]: ...

    def place(self, envelope: Envelope) -> Placement | None:
        """Where the file of a large message may be written so that filing it is one rename; None: anywhere."""
        ...
