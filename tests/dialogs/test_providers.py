"""What we make of what real servers answer: every dialogue of tests/reference/provider_dialogues.py, played."""

from __future__ import annotations

import pytest
from tests.asking import asked, limits
from tests.reference.provider_dialogues import DIALOGUES
from tests.reference.providers_page import PAGE, with_table


@pytest.mark.parametrize("name", DIALOGUES)
def test_every_server_is_understood(name: str) -> None:
    entry = DIALOGUES[name]
    patience = limits(etrn_reply_seconds=0.1) if "silent" in name else limits()
    # The words of the password are never sent: the line is in clear.
    run = asked(entry.text, *entry.connections, nodes=entry.nodes, tls="off", limit=patience)
    assert run.server.problems == []
    assert tuple(run.outcomes) == entry.answers
    assert (run.result.failure.stage if run.result.failure else None) == entry.failure
    assert run.result.software == entry.software
    if entry.promised:
        assert tuple(answer.promised for answer in run.result.answers) == entry.promised


@pytest.mark.parametrize("name", DIALOGUES)
def test_whatever_is_not_well_comes_with_a_fix(name: str) -> None:
    entry = DIALOGUES[name]
    patience = limits(etrn_reply_seconds=0.1) if "silent" in name else limits()
    run = asked(entry.text, *entry.connections, nodes=entry.nodes, tls="off", limit=patience)
    for answer in run.result.answers:
        assert bool(answer.fix) == (answer.outcome.value not in ("started", "nothing")), answer
    assert run.result.failure is None or run.result.failure.fix


def test_atrn_is_seen_where_it_is_offered() -> None:
    assert asked(DIALOGUES["exchange"].text, nodes=DIALOGUES["exchange"].nodes, tls="off").result.offers_atrn
    assert not asked(DIALOGUES["postfix"].text, nodes=DIALOGUES["postfix"].nodes, tls="off").result.offers_atrn


def test_docs_providers_md_shows_what_the_runs_gave() -> None:
    page = PAGE.read_text("utf-8")
    assert page == with_table(page), "run: python -m tests.reference.providers_page"
