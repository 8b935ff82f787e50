"""A runner on a bench: a clock that only tests move, asks that tests answer, events in a list."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

from siteagent.config.sections import Provider
from siteagent.events import (
    Event,
    Line,
    MessageAccepted,
    MessageRefused,
    MessageStored,
    NodeOutcome,
    RoundEnded,
    RoundStarted,
    SessionClosed,
    SessionOpened,
    SessionRefused,
)
from siteagent.rounds.runner import Request, Runner
from siteagent.wire.etrn import AskFailure, AskResult, NodeAnswer

PPP = Line("eth7", "198.51.100.7", None)
OTHER = Line("eth8", "198.51.100.8", "198.51.100.1")
NODE = "office.example"


def answer(node: str = NODE, outcome: NodeOutcome = NodeOutcome.STARTED, code: int | None = 250) -> NodeAnswer:
    return NodeAnswer(node, outcome, code, "as told", None, 0.1)


def result(*answers: NodeAnswer, failure: AskFailure | None = None) -> AskResult:
    return AskResult(answers, failure, False, "")


STARTED = result(answer())
NOTHING = result(answer(outcome=NodeOutcome.NOTHING, code=251))
REFUSED = result(answer(outcome=NodeOutcome.REFUSED, code=459))
RETRY = result(answer(outcome=NodeOutcome.RETRY, code=458))
NO_ANSWER = result(failure=AskFailure("connect", "no answer", None, True, None))


class Clock:
    """Monotonic seconds, and `call_later` on them."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._number = count()
        self._heap: list[tuple[float, int, Timer]] = []

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> datetime:
        return datetime(2026, 11, 22, 8, tzinfo=UTC) + timedelta(seconds=self.now - 1000)

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        timer = Timer(callback)
        heapq.heappush(self._heap, (self.now + seconds, next(self._number), timer))
        return timer

    @property
    def pending(self) -> list[float]:
        """When each timer is due, in seconds from now."""
        self._heap = [entry for entry in self._heap if entry[2].callback is not None]
        heapq.heapify(self._heap)
        return sorted(at - self.now for at, _number, _timer in self._heap)

    def next_due(self, until: float) -> Timer | None:
        """The next timer due at `until` or earlier, the clock set to its time."""
        while self._heap and self._heap[0][0] <= until:
            at, _number, timer = heapq.heappop(self._heap)
            if timer.callback is not None:
                self.now = max(self.now, at)
                return timer
        return None


class Timer:
    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None

    def fire(self) -> None:
        callback, self.callback = self.callback, None
        if callback is not None:
            callback()


async def turn(times: int = 6) -> None:
    """Let tasks that are ready run."""
    for _ in range(times):
        await asyncio.sleep(0)


class Bench:
    """One runner. `answers`: what asks get, in turn, the last one again and again; None keeps an ask waiting."""

    def __init__(
        self,
        *answers: AskResult | Exception | None,
        nodes: tuple[str, ...] = (NODE,),
        ask_only: bool = False,
        metered: bool = False,
        runner: type[Runner] = Runner,
        keep_events: bool = True,
        runner_options: dict[str, Any] | None = None,
        **provider: Any,
    ) -> None:
        self.clock = Clock()
        self.answers = list(answers) or [STARTED]
        self.asks: list[tuple[str, ...]] = []
        self.asks_at_work = 0
        self.most_asks_at_once = 0
        self.waiting: list[asyncio.Future[AskResult]] = []
        self.events: list[Event] = []
        self.keep_events = keep_events
        self.unfiled: set[str] = set()
        self.on_event: Callable[[Event], None] = lambda event: None
        self.cancellation_takes_turns = 0
        self._ids = count(1)
        self._sessions = count(1)
        self._messages = count(1)
        self.runner = runner(
            Provider(host="mx.isp.example", nodes=nodes, name="isp", **provider),
            ask=self.ask,
            emit=self.emit,
            monotonic=self.clock.monotonic,
            wall=self.clock.wall,
            new_id=lambda: f"r{next(self._ids)}",
            waiting_to_file=lambda round_id: round_id in self.unfiled,
            ask_only=ask_only,
            metered=lambda interface: metered,
            call_later=self.clock.call_later,
            random=lambda: 0.0,
            **(runner_options or {}),
        )

    def emit(self, event: Event) -> None:
        if self.keep_events:
            self.events.append(event)
        self.on_event(event)

    async def ask(self, nodes: Sequence[str], line: Line, on_answer: Callable[[NodeAnswer], None]) -> AskResult:
        self.asks.append(tuple(nodes))
        self.asks_at_work += 1
        self.most_asks_at_once = max(self.most_asks_at_once, self.asks_at_work)
        try:
            told = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            if told is None:
                future: asyncio.Future[AskResult] = asyncio.get_running_loop().create_future()
                self.waiting.append(future)
                told = await future
            if isinstance(told, Exception):
                raise told
            for one in told.answers:
                on_answer(one)
            return told
        finally:
            for _ in range(self.cancellation_takes_turns):
                await asyncio.sleep(0)
            self.asks_at_work -= 1

    async def wait(self, seconds: float = 0.0) -> None:
        """Move the clock, timer by timer."""
        until = self.clock.now + seconds
        await turn()
        while (timer := self.clock.next_due(until)) is not None:
            timer.fire()
            await turn()
        self.clock.now = until

    async def up(self, line: Line = PPP) -> None:
        self.runner.line_up(line, "netlink")
        await self.wait()

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def started(self) -> list[RoundStarted]:
        return self.of(RoundStarted)

    @property
    def ended(self) -> list[RoundEnded]:
        return self.of(RoundEnded)

    @property
    def outcomes(self) -> list[str]:
        return [event.outcome.value for event in self.ended]

    # --- what the listener and the filer would tell

    def open(self, round_id: str | None = "", provider: str | None = "isp") -> str:
        session = f"s{next(self._sessions)}"
        owner = self.runner.round if round_id == "" else round_id
        self.runner.observe(SessionOpened(session=session, provider=provider, round=owner, peer="203.0.113.9"))
        return session

    def close(self, session: str, *, clean: bool = True, wire_bytes: int = 0) -> None:
        self.runner.observe(
            SessionClosed(
                session=session,
                provider="isp",
                round=None,
                peer="203.0.113.9",
                messages=0,
                bytes=0,
                wire_bytes=wire_bytes,
                seconds=1.0,
                clean=clean,
                reason="quit" if clean else "connection lost",
            )
        )

    def accept(self, session: str, *, size: int = 100, filed: bool = True) -> str:
        message = f"m{next(self._messages)}"
        self.runner.observe(
            MessageAccepted(
                message=message,
                session=session,
                provider="isp",
                round=self.runner.round,
                sender="a@b.example",
                recipients=("alice@office.example",),
                bytes=size,
                wire_bytes=size + 20,
                seconds=0.1,
            )
        )
        if filed:
            self.store(message)
        elif self.runner.round:
            self.unfiled.add(self.runner.round)
        return message

    def store(self, message: str, mailbox: str = "alice") -> None:
        round_id = self.runner.round
        self.runner.observe(
            MessageStored(message=message, mailbox=mailbox, file=message, bytes=1, round=round_id, provider="isp")
        )

    def refuse(self, session: str, code: int) -> None:
        self.runner.observe(
            MessageRefused(
                session=session,
                provider="isp",
                round=self.runner.round,
                sender="a@b.example",
                recipient="x@office.example",
                code=code,
                reason="said so",
                bytes=0,
            )
        )

    def refuse_connection(self, *expected: str) -> None:
        self.runner.observe(
            SessionRefused(peer="203.0.113.77", code=421, reason="not in the provider list", expected=expected)
        )

    def request(self, name: str, *nodes: str, timeout: float | None = None) -> None:
        self.runner.request(Request(name, nodes or None, timeout))


def on_the_bench(scene: Callable[[], Any]) -> None:
    """Run an async scene."""
    asyncio.run(scene())
