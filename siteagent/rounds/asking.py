"""One ask at a time, as a task that can be broken off.

An ask that was begun ends in exactly one `on_over`, whatever happens inside it, unless it is broken off: then nothing
more is heard of it. Two never overlap: what was broken off is waited for before the next one begins.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from siteagent.events import Line
from siteagent.wire.etrn import AskFailure, AskResult, NodeAnswer

OnAnswer = Callable[[NodeAnswer], None]
AskFunction = Callable[[Sequence[str], Line, OnAnswer], Awaitable[AskResult]]


class Asker:
    """Calls `ask`, which is trusted to end, and to end at once when it is cancelled."""

    def __init__(self, ask: AskFunction) -> None:
        self._ask = ask
        self._tasks: set[asyncio.Task[AskResult]] = set()  # the one at work, and those broken off and not gone yet
        self._current: asyncio.Task[AskResult] | None = None

    @property
    def busy(self) -> bool:
        """An ask is at work, or one that was broken off is not gone yet."""
        return bool(self._tasks)

    def begin(
        self, nodes: Sequence[str], line: Line, *, on_answer: OnAnswer, on_over: Callable[[AskResult], None]
    ) -> None:
        """Ask. `on_answer` is given each answer once, and before `on_over`."""
        assert self._current is None, "one ask at a time"
        told: list[NodeAnswer] = []

        def tell(answer: NodeAnswer) -> None:
            if self._current is task and answer not in told:
                told.append(answer)
                on_answer(answer)

        task = asyncio.ensure_future(self._run(nodes, line, tell, frozenset(self._tasks)))
        self._tasks.add(task)
        self._current = task
        task.add_done_callback(partial(self._over, told, tell, on_over))

    def break_off(self) -> None:
        """End the ask that is at work, if one is; it is not heard of again."""
        task, self._current = self._current, None
        if task is not None:
            task.cancel()

    async def gone(self) -> None:
        """Wait for what is at work or was broken off."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _run(
        self, nodes: Sequence[str], line: Line, tell: OnAnswer, broken_off: frozenset[asyncio.Task[AskResult]]
    ) -> AskResult:
        if broken_off:
            await asyncio.wait(broken_off)
        return await self._ask(nodes, line, tell)

    def _over(
        self,
        told: list[NodeAnswer],
        tell: OnAnswer,
        on_over: Callable[[AskResult], None],
        task: asyncio.Task[AskResult],
    ) -> None:
        self._tasks.discard(task)
        # Always fetched: asyncio complains of an error that nobody looked at.
        error = None if task.cancelled() else task.exception()
        if self._current is not task:
            return
        if task.cancelled() or error is not None:
            reason = f"our bug: {type(error).__name__}: {error}" if error else "our bug: the ask was cancelled"
            result = AskResult(tuple(told), AskFailure("ask", reason, None, True, None), False, "")
        else:
            result = task.result()
            for answer in result.answers:
                tell(answer)
        self._current = None
        on_over(result)
