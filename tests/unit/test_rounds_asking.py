"""`rounds.asking`: an ask ends in one word, or is broken off and says nothing more."""

from __future__ import annotations

import asyncio

from siteagent.rounds.asking import Asker
from siteagent.wire.etrn import AskResult, NodeAnswer
from tests.rounds_fakes import PPP, STARTED, answer, turn


class Heard:
    def __init__(self) -> None:
        self.answers: list[NodeAnswer] = []
        self.results: list[AskResult] = []

    def begin(self, asker: Asker) -> None:
        asker.begin(("a",), PPP, on_answer=self.answers.append, on_over=self.results.append)


def _hear(ask, act=None) -> Heard:
    async def scene() -> Heard:
        heard, asker = Heard(), Asker(ask)
        heard.begin(asker)
        if act:
            await act(asker)
        await turn(10)
        assert not asker.busy
        return heard

    return asyncio.run(scene())


def test_answers_come_before_the_result_and_once():
    async def ask(nodes, line, on_answer):
        on_answer(STARTED.answers[0])
        return STARTED

    heard = _hear(ask)
    assert heard.answers == list(STARTED.answers) and heard.results == [STARTED]


def test_answers_that_only_the_result_has_are_told_too():
    async def ask(nodes, line, on_answer):
        return STARTED

    assert _hear(ask).answers == list(STARTED.answers)


def test_an_error_is_a_temporary_failure_with_the_answers_so_far():
    async def ask(nodes, line, on_answer):
        on_answer(answer("a"))
        raise ValueError("odd")

    (result,) = _hear(ask).results
    assert result.failure is not None and result.failure.temporary and "ValueError: odd" in result.failure.reason
    assert result.answers == (answer("a"),)


def test_what_is_broken_off_is_not_heard_of_again():
    async def ask(nodes, line, on_answer):
        try:
            await asyncio.sleep(1000)
        finally:
            on_answer(answer("a"))
        return STARTED

    async def act(asker: Asker) -> None:
        await turn()
        asker.break_off()
        await asker.gone()

    heard = _hear(ask, act)
    assert heard.answers == [] and heard.results == []


def test_an_ask_that_turns_its_cancellation_into_an_answer_is_not_heard_of_either():
    async def ask(nodes, line, on_answer):
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            return STARTED

    async def act(asker: Asker) -> None:
        await turn()
        asker.break_off()

    assert _hear(ask, act).results == []
