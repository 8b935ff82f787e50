"""What is held for each node, in the order in which it was accepted. On the loop's thread.

A number, a size and a date of each message is all that is kept in memory; the rest stays in the spool until it is sent.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Iterable, Sequence

from siteagent.store.held import Held
from siteagent.store.spool import Filing


class _Waiting:
    """One node's."""

    __slots__ = ("away", "bytes", "tried", "untried")

    def __init__(self) -> None:
        self.untried: deque[Held] = deque()  # to be handed out, oldest first
        self.tried: list[Held] = []  # came back in the release that runs; not again before the next one
        self.away = 0  # handed out
        self.bytes = 0  # of all three


class Queue:
    """`take` hands some out; each of them then goes by `gone`, or comes back by `put_back`."""

    def __init__(self) -> None:
        self._nodes: dict[str, _Waiting] = {}

    def add(self, node: str, held: Held) -> None:
        """What became owed."""
        waiting = self._nodes.setdefault(node, _Waiting())
        waiting.untried.append(held)
        waiting.bytes += held.size

    def load(self, node: str, waiting: Sequence[Held]) -> None:
        """What was owed before this start, oldest first."""
        known = self._nodes.setdefault(node, _Waiting())
        known.untried.extend(waiting)
        known.bytes += sum(held.size for held in waiting)

    def accept(self, filings: Iterable[Filing]) -> None:
        """What was committed just now."""
        for filing in filings:
            self.add(filing.target, Held(filing.id, filing.size, int(filing.accepted.timestamp())))

    def take(self, node: str, count: int) -> list[Held]:
        """The oldest `count` for `node` at most; none twice in one release."""
        waiting = self._nodes.get(node)
        if waiting is None:
            return []
        found = [waiting.untried.popleft() for _ in range(min(count, len(waiting.untried)))]
        waiting.away += len(found)
        return found

    def gone(self, node: str, held: Held) -> None:
        """It was taken, and is owed no more."""
        waiting = self._nodes[node]
        waiting.away -= 1
        waiting.bytes -= held.size
        if not (waiting.untried or waiting.tried or waiting.away):
            del self._nodes[node]

    def take_these(self, node: str, wanted: Iterable[Held]) -> list[Held]:
        """Those of `wanted` that are not handed out; now they are."""
        waiting = self._nodes.get(node)
        if waiting is None:
            return []
        here = {*waiting.untried, *waiting.tried} & set(wanted)
        waiting.untried = deque(held for held in waiting.untried if held not in here)
        waiting.tried = [held for held in waiting.tried if held not in here]
        waiting.away += len(here)
        return sorted(here)

    def unread(self, node: str, batch: Sequence[Held]) -> None:
        """The last of what was taken was not looked at: it comes next."""
        waiting = self._nodes.get(node)
        if waiting is not None and batch:
            waiting.away -= len(batch)
            waiting.untried.extendleft(reversed(batch))

    def put_back(self, node: str, held: Held) -> None:
        """It was taken, and is owed still; handed out again once `rewind` was called."""
        waiting = self._nodes[node]
        waiting.away -= 1
        insort(waiting.tried, held)

    def rewind(self, node: str) -> None:
        """A release is over, or one begins: everything may be handed out again, oldest first."""
        waiting = self._nodes.get(node)
        if waiting is not None and waiting.tried:
            waiting.untried = deque(sorted([*waiting.tried, *waiting.untried]))
            waiting.tried = []

    def remove(self, node: str, identities: set[int]) -> int:
        """Forgets those that are not handed out just now; how many there were."""
        waiting = self._nodes.get(node)
        if waiting is None:
            return 0
        removed = [held for held in (*waiting.untried, *waiting.tried) if held.id in identities]
        waiting.untried = deque(held for held in waiting.untried if held.id not in identities)
        waiting.tried = [held for held in waiting.tried if held.id not in identities]
        waiting.bytes -= sum(held.size for held in removed)
        if not (waiting.untried or waiting.tried or waiting.away):
            del self._nodes[node]
        return len(removed)

    def older_than(self, node: str, identity: int) -> list[Held]:
        """Those with a number up to `identity` that are not handed out just now."""
        waiting = self._nodes.get(node)
        if waiting is None:
            return []
        return [held for held in (*waiting.tried, *waiting.untried) if held.id <= identity]

    def nodes(self) -> list[str]:
        """Those that something is held for."""
        return list(self._nodes)

    def count(self, node: str) -> int:
        """Messages, those on their way included."""
        waiting = self._nodes.get(node)
        return 0 if waiting is None else len(waiting.untried) + len(waiting.tried) + waiting.away

    def bytes(self, node: str) -> int:
        """Octets, those on their way included."""
        waiting = self._nodes.get(node)
        return 0 if waiting is None else waiting.bytes

    def oldest(self, node: str) -> int | None:
        """When the oldest that is not on its way was accepted, in seconds since 1970."""
        waiting = self._nodes.get(node)
        if waiting is None:
            return None
        firsts = [*waiting.tried[:1], *([waiting.untried[0]] if waiting.untried else [])]
        return min((held.accepted for held in firsts), default=None)

    def totals(self) -> tuple[int, int]:
        """Messages and octets of all nodes."""
        return sum(map(self.count, self._nodes)), sum(waiting.bytes for waiting in self._nodes.values())
