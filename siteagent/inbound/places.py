"""Who is greeted when: places for each provider, a queue behind them, and how fast each of them sends.

A provider opens up to twenty sessions at once, and each one that is refused stays in its queue until it is asked the
next time: so nobody allowed is refused for coming in a crowd, their greeting is held back. Postfix waits 300 s for
one, RFC 5321 §4.5.3.2.1 says 5 minutes; we answer before that.

No I/O and no clock here: what is done with a place, and when it is given up, is `Guest`'s.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict, deque
from typing import Protocol

WAIT_SECONDS = 240.0


class Guest(Protocol):
    """One connection of an allowed peer."""

    def place_is_free(self) -> None:
        """Its turn has come. Called from `Places.leave` of another guest."""


class Meter:
    """Octets of one peer, all its sessions together, over a sliding window. `window_seconds` in tenths of itself."""

    __slots__ = ("_slots", "_step")

    def __init__(self, window_seconds: float) -> None:
        self._step = window_seconds / 10
        self._slots: deque[list[float]] = deque(maxlen=11)

    def add(self, now: float, octets: int) -> None:
        slots = self._slots
        if slots and now - slots[-1][0] < self._step:
            slots[-1][1] += octets
        else:
            slots.append([now, octets])

    def octets_since(self, since: float) -> float:
        """Octets in the slots that reach behind `since`; never fewer than really came."""
        return sum(octets for start, octets in self._slots if start + self._step > since)


class Places:
    """`key` names whose place it is: the provider, or the address of a peer that belongs to none."""

    def __init__(self, *, total: int, each: int) -> None:
        self.total = total
        self.each = each
        self._taken: dict[str, int] = {}
        self._queues: dict[str, OrderedDict[Guest, None]] = {}
        self._meters: dict[str, Meter] = {}
        self._count = 0

    @property
    def full(self) -> bool:
        """No connection more, not even to wait."""
        return self._count >= self.total

    def crowded(self, key: str) -> bool:
        """For one who belongs to no provider: those of its key have a quarter of the house, so that others get in."""
        here = self._taken.get(key, 0) + len(self._queues.get(key, ()))
        return here >= max(self.each, self.total // 4)

    @property
    def waiting(self) -> int:
        return sum(map(len, self._queues.values()))

    def enter(self, guest: Guest, key: str) -> bool:
        """True: greet it now. False: it stands in the queue, and `place_is_free` comes in its turn."""
        self._count += 1
        if self._taken.get(key, 0) < self.each and not self._queues.get(key):
            self._taken[key] = self._taken.get(key, 0) + 1
            return True
        self._queues.setdefault(key, OrderedDict())[guest] = None
        return False

    def leave(self, guest: Guest, key: str) -> None:
        """`guest` is gone, from its place or from the queue. Exactly once for each `enter`."""
        self._count -= 1
        queue = self._queues.get(key)
        if queue is not None and guest in queue:
            del queue[guest]
            if not queue:
                del self._queues[key]
            return
        taken = self._taken.get(key, 0) - 1
        if queue and taken < self.each:
            successor, _ = queue.popitem(last=False)
            if not queue:
                del self._queues[key]
            successor.place_is_free()
            return
        if taken > 0:
            self._taken[key] = taken
        else:
            self._taken.pop(key, None)
            self._meters.pop(key, None)

    def meter(self, key: str, window_seconds: float) -> Meter:
        """The meter that all guests of `key` share while one of them is there."""
        found = self._meters.get(key)
        if found is None:
            found = self._meters[key] = Meter(window_seconds)
        return found


def _network_of(peer: str) -> str:
    """An IPv6 address as its first 64 bits, all else as it is."""
    if ":" not in peer:
        return peer
    try:
        return str(ipaddress.IPv6Network((ipaddress.IPv6Address(peer).packed[:8] + bytes(8), 64)))
    except ValueError:
        return peer


_READ_BYTES = 262_144
_TOLD_EACH = 20
_TOLD_ADDRESSES = 500


class House:
    """What the sessions of one listener share."""

    def __init__(self, *, total: int, each: int) -> None:
        self.places = Places(total=total, each=each)
        self.lingering = 0
        self.buffer = memoryview(bytearray(_READ_BYTES))
        self._told: OrderedDict[str, list[float]] = OrderedDict()

    def may_tell(self, peer: str, now: float) -> bool:
        """Whether a refusal of `peer` may be reported: a scanner must not fill the log. 20 a minute each.

        An IPv6 network of 64 bits counts as one: whoever has one address there has 2**64.
        """
        whose = _network_of(peer)
        entry = self._told.get(whose)
        if entry is None or now - entry[0] > 60:
            entry = self._told[whose] = [now, 0]
            if len(self._told) > _TOLD_ADDRESSES:
                self._told.popitem(last=False)
        entry[1] += 1
        return entry[1] <= _TOLD_EACH
