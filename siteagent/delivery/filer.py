"""From the spool into the mailboxes, in batches, until it is done.

One lane a target, and one thread at a time in a lane: a mailbox on a full, slow or vanished disk delays its own mail
alone. A lone message is filed at once; where more come a lane begins a batch every 20 ms at most, since a batch costs
little more than a message, and its thread takes the interpreter from the sessions. What cannot be filed stays in the
spool and comes again, with growing pauses; the provider is not bothered again. `accept` is called by the spool's
thread; everything is reported on the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime

from siteagent.delivery.target import Delivered, Target
from siteagent.events import Emit, FilingFailed, MessageStored
from siteagent.store.body import Envelope, Placement
from siteagent.store.spool import Filing, Spool

BATCH = 64
RETRY_SECONDS = (5.0, 15.0, 30.0, 60.0, 120.0, 300.0)
REST_SECONDS = 0.02
_THREADS = 8
_HELD_BYTES = 16 * 1024 * 1024


@dataclass(slots=True)
class _Lane:
    """`running`: a batch is being filed, or was begun a moment ago: what waits is taken up by itself."""

    target: str
    waiting: deque[Filing] = field(default_factory=deque)
    running: bool = False
    began: float = 0.0


@dataclass(frozen=True, slots=True)
class QueueView:
    """What `status` shows: deliveries owed, since when the oldest, and why, if one failed."""

    messages: int
    oldest: datetime | None
    reason: str | None


class Filer:
    """Made and closed on the loop. What the spool still owes from before is handed to `accept` at the start."""

    def __init__(
        self,
        spool: Spool,
        targets: Mapping[str, Target],
        *,
        emit: Emit,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
        retry_seconds: Sequence[float] = RETRY_SECONDS,
        rest_seconds: float = REST_SECONDS,
    ) -> None:
        self._spool = spool
        self._targets = dict(targets)
        self._emit = emit
        self._wall = wall
        self._retry_seconds = retry_seconds
        self._rest_seconds = rest_seconds
        self._loop = asyncio.get_running_loop()
        self._guard = threading.Lock()
        self._lanes: dict[str, _Lane] = {}
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="filer")
        self._held_bytes = 0
        self._fresh: Counter[str] = Counter()
        self._owed: dict[tuple[int, str], datetime] = {}
        self._failed: dict[tuple[int, str], tuple[Filing, str]] = {}
        self._timers: dict[tuple[int, str], asyncio.TimerHandle] = {}
        self._closing = False
        self._starting: list[_Lane] = []

    # --- what the others ask ------------------------------------------------------------------------------------------

    def waiting_to_file(self, round_id: str) -> bool:
        """Whether something of that round is accepted and has not been tried yet. What failed holds no round."""
        with self._guard:
            return self._fresh[round_id] > 0

    def view(self) -> QueueView:
        with self._guard:
            reason = next((why for _, why in self._failed.values()), None)
            return QueueView(len(self._owed), min(self._owed.values(), default=None), reason)

    def place(self, envelope: Envelope) -> Placement | None:
        """Where a large message of one target is best written; any thread."""
        target = self._targets.get(envelope.targets[0])
        return target.place(envelope) if target is not None else None

    # --- work ---------------------------------------------------------------------------------------------------------

    def accept(self, filings: Sequence[Filing]) -> None:
        """Takes what became owed. Any thread; never blocks."""
        with self._guard:
            for filing in filings:
                if filing.data is not None:
                    if self._held_bytes > _HELD_BYTES:
                        filing = dataclasses.replace(filing, data=None)
                    else:
                        self._held_bytes += len(filing.data or b"")
                self._owed.setdefault((filing.id, filing.target), filing.accepted)
                if filing.round is not None and filing.tries == 0:
                    self._fresh[filing.round] += 1
                self._enqueue(filing)
            starting = self._to_start()
        self._start(starting)

    def reconfigure(self, targets: Mapping[str, Target]) -> None:
        """Other mailboxes from here on; what waits is tried at once."""
        self._targets = dict(targets)
        self.retry_now()

    def retry_now(self) -> int:
        """Tries everything at once that waits for its next try. Returns how many there were."""
        for timer in self._timers.values():
            timer.cancel()
        keys = list(self._timers)
        self._timers.clear()
        for key in keys:
            self._again(key)
        return len(keys)

    async def close(self) -> None:
        """Ends the batches that run; what waits stays in the spool."""
        self._closing = True
        for timer in self._timers.values():
            timer.cancel()
        with self._guard:
            for lane in self._lanes.values():
                lane.waiting.clear()
        await asyncio.to_thread(self._threads.shutdown, wait=True)

    def _enqueue(self, filing: Filing) -> None:
        lane = self._lanes.get(filing.target)
        if lane is None:
            lane = self._lanes[filing.target] = _Lane(filing.target)
        lane.waiting.append(filing)
        if not lane.running and not self._closing:
            lane.running = True
            self._starting.append(lane)

    def _to_start(self) -> list[_Lane]:
        starting, self._starting = self._starting, []
        return starting

    def _start(self, lanes: Sequence[_Lane]) -> None:
        """Not under the guard, which is the first that a thread wants."""
        with contextlib.suppress(RuntimeError):  # closed meanwhile: what waits stays in the spool
            for lane in lanes:
                self._threads.submit(self._drain, lane)

    def _drain(self, lane: _Lane) -> None:
        """A thread's work: one batch. What more waits goes behind the other lanes' batches."""
        lane.began = time.monotonic()
        with self._guard:
            batch = [lane.waiting.popleft() for _ in range(min(BATCH, len(lane.waiting)))]
        results = self._deliver(lane.target, batch)
        done = [(f.id, f.target) for f, r in zip(batch, results, strict=True) if r.reason is None]
        if done:
            self._spool.filed(done)
        self._loop.call_soon_threadsafe(self._drained, lane, batch, results)

    def _drained(self, lane: _Lane, batch: Sequence[Filing], results: Sequence[Delivered]) -> None:
        """On the loop."""
        rest = lane.began + self._rest_seconds - time.monotonic()
        if rest > 0 and len(lane.waiting) < BATCH and not self._closing:
            self._loop.call_later(rest, self._go_on, lane)
        else:
            self._go_on(lane)
        self._report(batch, results)

    def _go_on(self, lane: _Lane) -> None:
        with self._guard:
            lane.running = bool(lane.waiting) and not self._closing
        if lane.running:
            self._start([lane])

    def _deliver(self, name: str, batch: Sequence[Filing]) -> list[Delivered]:
        target = self._targets.get(name)
        if target is None:
            return [Delivered(reason=f"there is no mailbox {name} in the configuration any more")] * len(batch)
        try:
            results = target.deliver(batch, self._spool.load)
            assert len(results) == len(batch), f"{len(results)} results for {len(batch)} filings"
        except Exception as error:  # a target's bug must not cost the lane its thread
            return [Delivered(reason=f"{type(error).__name__}: {error}", visible=True)] * len(batch)
        return results

    def _report(self, batch: Sequence[Filing], results: Sequence[Delivered]) -> None:
        with self._guard:
            for filing, result in zip(batch, results, strict=True):
                self._account(filing, result)
        events = [
            self._stored(filing, result) if result.reason is None else self._postpone(filing, result)
            for filing, result in zip(batch, results, strict=True)
        ]
        for event in events:  # last: whoever hears them must not cost a message its next try
            self._emit(event)

    def _stored(self, filing: Filing, result: Delivered) -> MessageStored:
        return MessageStored(
            message=filing.message,
            mailbox=filing.target,
            file=result.file,
            bytes=result.bytes,
            round=filing.round,
            provider=filing.provider,
        )

    def _account(self, filing: Filing, result: Delivered) -> None:
        key = (filing.id, filing.target)
        if filing.data is not None:
            self._held_bytes -= len(filing.data)
        if filing.round is not None and filing.tries == 0:
            self._fresh[filing.round] -= 1
            if self._fresh[filing.round] <= 0:
                del self._fresh[filing.round]
        if result.reason is None:
            self._owed.pop(key, None)
            self._failed.pop(key, None)

    def _postpone(self, filing: Filing, result: Delivered) -> FilingFailed:
        key = (filing.id, filing.target)
        pause = self._retry_seconds[min(filing.tries, len(self._retry_seconds) - 1)]
        reason = result.reason or ""
        again = dataclasses.replace(
            filing, tries=filing.tries + 1, data=None, recovered=filing.recovered or result.visible
        )
        with self._guard:
            self._failed[key] = (again, reason)
        due = self._wall().timestamp() + pause
        self._spool.postponed(again, tries=again.tries, next_try=due, reason=reason)
        if not self._closing:
            self._timers[key] = self._loop.call_later(pause, self._again, key)
        return FilingFailed(
            message=filing.message, mailbox=filing.target, reason=reason, tries=again.tries, next_seconds=pause
        )

    def _again(self, key: tuple[int, str]) -> None:
        self._timers.pop(key, None)
        with self._guard:
            filing, _ = self._failed[key]
            self._enqueue(filing)
            starting = self._to_start()
        self._start(starting)
