"""Who asks too often, and who guesses passwords. No I/O: the clock comes in.

Three failed logins from one address, and it hears 421 for a quarter of an hour (S58); more than ten asks a minute, and
an ask is answered 458. An IPv6 peer counts by its /64, since it has all of it. Both tables are bounded: who fills them
pushes out who was quiet longest.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict, deque
from collections.abc import Callable

from siteagent.wire.reply import Reply

BLOCKED = Reply(421, "4.7.0", "too many failed logins, try again later")
TOO_OFTEN = Reply(458, "4.7.0", "too many requests, try again in a minute")
FAILURES = 3
BLOCK_SECONDS = 900.0
ASKS = 10
ASK_WINDOW_SECONDS = 60.0
_MOST_KEPT = 10_000


class Guard:
    """`clock` is monotonic."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._failures: OrderedDict[str, deque[float]] = OrderedDict()
        self._asks: OrderedDict[str, deque[float]] = OrderedDict()

    def admit(self, peer: str) -> Reply | None:
        """What a peer is told before anything else; None: welcome."""
        times = self._failures.get(network(peer))
        blocked = times is not None and len(times) >= FAILURES and self._clock() - times[-1] < BLOCK_SECONDS
        return BLOCKED if blocked else None

    def failed(self, peer: str) -> bool:
        """A login of `peer` failed; whether it is turned away from here on."""
        times = self._times(self._failures, network(peer), FAILURES)
        times.append(self._clock())
        return len(times) >= FAILURES and times[-1] - times[0] < BLOCK_SECONDS

    def passed(self, peer: str) -> None:
        """A login of `peer` succeeded: what failed before is forgiven."""
        self._failures.pop(network(peer), None)

    def may_ask(self, asker: str, *, nodes: int = 1) -> bool:
        """Counts an ask. `asker`: the account, or the address; `nodes` of it: each of them may be asked for twice."""
        most = max(ASKS, 2 * nodes)
        now = self._clock()
        times = self._times(self._asks, asker, most + 1)
        while times and now - times[0] >= ASK_WINDOW_SECONDS:
            times.popleft()
        if len(times) >= most:
            return False
        times.append(now)
        return True

    def not_asked(self, asker: str) -> None:
        """The latest ask of `asker` is not counted after all."""
        if times := self._asks.get(asker):
            times.pop()

    @staticmethod
    def _times(table: OrderedDict[str, deque[float]], key: str, most: int) -> deque[float]:
        times = table.get(key)
        if times is None or times.maxlen != most:
            times = table[key] = deque(times or (), maxlen=most)
            if len(table) > _MOST_KEPT:
                table.popitem(last=False)
        table.move_to_end(key)
        return times


def network(peer: str) -> str:
    """As whom a peer counts: its address, or the network that an IPv6 host has for itself."""
    try:
        address = ipaddress.ip_address(peer.partition("%")[0])
    except ValueError:
        return peer
    return str(ipaddress.ip_network((address, 64), strict=False)) if address.version == 6 else peer
