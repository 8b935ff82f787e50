"""The questions of `init`: what will do as an answer, and what is said where one will not."""

from __future__ import annotations

import io
import sys

import pytest
from siteagent.cli import questions
from siteagent.cli.context import Context
from siteagent.cli.questions import Questions, asked_mailboxes
from siteagent.errors import UsageError

DOMAIN = "office.example"


def typed(monkeypatch: pytest.MonkeyPatch, text: str) -> Questions:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    return Questions(Context(), silent=False)


@pytest.mark.parametrize(
    ("lines", "boxes"),
    [
        ("alice\n\n", [("alice", ["alice@office.example"])]),
        ("alice@office.example\n\n", [("alice", ["alice@office.example"])]),
        ("alice=sales\n\n", [("alice", ["sales@office.example"])]),
        ("alice = alice, info@office.example\n\n", [("alice", ["alice@office.example", "info@office.example"])]),
        ("alice bob\n\n", [("alice", ["alice@office.example"]), ("bob", ["bob@office.example"])]),
        ("alice\nbob\n\n", [("alice", ["alice@office.example"]), ("bob", ["bob@office.example"])]),
        ("all=@office.example\n\n", [("all", ["@office.example"])]),
    ],
)
def test_mailboxes_are_taken_in_the_ways_that_people_write_them(
    monkeypatch: pytest.MonkeyPatch, lines: str, boxes: list[tuple[str, list[str]]]
) -> None:
    assert asked_mailboxes(typed(monkeypatch, lines), DOMAIN) == boxes


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("al/ice", "'al/ice' is no name for a mailbox"),
        ("alice=", "alice= is no mail address"),
        ("alice=a@b@c", "a@b@c is no mail address"),
        ("bob", "there is a mailbox bob already"),
        ("carol=bob@office.example", "bob@office.example is another mailbox's already"),
    ],
)
def test_a_mailbox_that_will_not_do_is_told_why_and_asked_for_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: str, why: str
) -> None:
    boxes = asked_mailboxes(typed(monkeypatch, f"bob\n{line}\nalice\n\n"), DOMAIN)
    assert [name for name, _ in boxes] == ["bob", "alice"]
    assert f"will not do: {why}" in capsys.readouterr().err


def test_without_a_domain_a_bare_name_is_no_mailbox(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="no answer for --mailbox"):
        asked_mailboxes(typed(monkeypatch, "alice\n"), None)


def test_a_reader_must_be_dovecot_or_somebody_here() -> None:
    refuse = questions.no_reader(lambda name: name == "alice")
    assert (refuse("dovecot"), refuse("alice")) == (None, None)
    assert "there is no such user here" in str(refuse("alyce"))


def test_the_end_of_input_ends_the_line_of_the_question(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError):
        typed(monkeypatch, "")("--node", "Which?")
    assert capsys.readouterr().err == "Which? \n"
