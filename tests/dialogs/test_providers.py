"""What we make of what servers answer: every dialogue of tests/reference, those of real ones and the odd ones."""

from __future__ import annotations

import asyncio

import pytest
from tests.asking import asked
from tests.reference.odd_dialogues import ODD
from tests.reference.provider_dialogues import DIALOGUES
from tests.reference.providers_page import PAGE, played, with_tables

EVERY = {**DIALOGUES, **ODD}


@pytest.mark.parametrize("name", EVERY)
def test_every_server_is_understood(name: str) -> None:
    entry = EVERY[name]
    run = asyncio.run(played(entry))
    assert run.server.problems == []
    assert tuple(run.outcomes) == entry.answers
    assert (run.result.failure.stage if run.result.failure else None) == entry.failure
    assert run.result.software == entry.software
    if entry.promised:
        assert tuple(answer.promised for answer in run.result.answers) == entry.promised


@pytest.mark.parametrize("name", EVERY)
def test_whatever_is_not_well_comes_with_a_fix(name: str) -> None:
    run = asyncio.run(played(EVERY[name]))
    for answer in run.result.answers:
        assert bool(answer.fix) == (answer.outcome.value not in ("started", "nothing")), answer
    assert run.result.failure is None or run.result.failure.fix


def test_atrn_is_seen_where_it_is_offered() -> None:
    assert asked(DIALOGUES["exchange"].text, nodes=DIALOGUES["exchange"].nodes, tls="off").result.offers_atrn
    assert not asked(DIALOGUES["postfix"].text, nodes=DIALOGUES["postfix"].nodes, tls="off").result.offers_atrn


def test_docs_providers_md_shows_what_the_runs_gave() -> None:
    page = PAGE.read_text("utf-8")
    assert page == with_tables(page), "run: python -m tests.reference.providers_page"
