"""`rounds.ledger`: who is there, what it cost, what went wrong."""

from __future__ import annotations

import pytest
from siteagent.events import (
    FilingFailed,
    MessageAccepted,
    MessageRefused,
    MessageStored,
    SessionClosed,
    SessionOpened,
    SessionRefused,
)
from siteagent.rounds.ledger import Ledger
from siteagent.rounds.machine import Signal


def opened(session: str, round_id: str | None, provider: str = "isp") -> SessionOpened:
    return SessionOpened(session=session, provider=provider, round=round_id, peer="203.0.113.9")


def closed(session: str, *, wire_bytes: int = 0, clean: bool = True) -> SessionClosed:
    return SessionClosed(
        session=session,
        provider="isp",
        round=None,
        peer="203.0.113.9",
        messages=0,
        bytes=0,
        wire_bytes=wire_bytes,
        seconds=1.0,
        clean=clean,
        reason="",
    )


def accepted(message: str, session: str, wire_bytes: int = 10) -> MessageAccepted:
    return MessageAccepted(
        message=message,
        session=session,
        provider="isp",
        round=None,
        sender="",
        recipients=(),
        bytes=5,
        wire_bytes=wire_bytes,
        seconds=0.1,
    )


def refused(session: str, code: int) -> MessageRefused:
    return MessageRefused(
        session=session, provider="isp", round=None, sender="", recipient="", code=code, reason="so", bytes=0
    )


def stored(message: str, round_id: str | None) -> MessageStored:
    return MessageStored(message=message, mailbox="alice", file=message, bytes=5, round=round_id, provider="isp")


def failed(message: str) -> FilingFailed:
    return FilingFailed(message=message, mailbox="alice", reason="full", tries=1, next_seconds=60)


@pytest.fixture
def ledger() -> Ledger:
    ledger = Ledger("isp")
    ledger.begin("r1")
    return ledger


def test_sessions_of_the_round_are_signals(ledger):
    assert ledger.observe(opened("s1", "r1")) is Signal.SESSION_OPENED
    assert ledger.observe(opened("s2", "r1")) is Signal.SESSION_OPENED
    assert ledger.observe(closed("s1")) is Signal.SESSION_CLOSED
    assert ledger.observe(closed("s2")) is Signal.LAST_SESSION_CLOSED


def test_a_session_of_another_provider_or_round_is_no_signal(ledger):
    assert ledger.observe(opened("s1", "r1", provider="other")) is None
    assert ledger.observe(opened("s2", "r0")) is None
    assert ledger.observe(closed("s1")) is None
    assert ledger.observe(closed("s2")) is None


def test_a_session_without_a_round_is_no_signal():
    ledger = Ledger("isp")
    assert ledger.observe(opened("s1", None)) is None
    assert ledger.observe(closed("s1")) is None


def test_what_a_session_cost_is_counted_in_one_round_only(ledger):
    ledger.observe(opened("s1", "r1"))
    ledger.observe(accepted("m1", "s1", wire_bytes=100))
    first = ledger.end()
    ledger.begin("r2")
    ledger.observe(accepted("m2", "s1", wire_bytes=30))
    ledger.observe(closed("s1", wire_bytes=180))
    second = ledger.end()
    assert (first.wire_bytes, second.wire_bytes) == (100, 80)
    assert (first.messages, second.messages) == (1, 1)


def test_files_of_a_session_taken_over_count_whatever_round_they_are_told_with(ledger):
    ledger.observe(opened("s1", "r1"))
    ledger.end()
    ledger.begin("r2")
    ledger.observe(stored("m1", "r1"))
    assert ledger.end().files == 1


def test_files_of_other_rounds_do_not_count(ledger):
    ledger.observe(stored("m0", "r0"))
    assert ledger.end().files == 0


def test_mail_of_a_session_without_a_round_is_waited_for():
    ledger = Ledger("isp")
    ledger.observe(opened("s1", None))
    ledger.begin("r1")
    ledger.observe(accepted("m1", "s1"))
    assert ledger.unfiled(lambda round_id: False)
    ledger.observe(stored("m1", None))
    assert not ledger.unfiled(lambda round_id: False)
    assert ledger.end().files == 1


def test_stuck_says_that_nothing_else_is_known_to_be_on_its_way(ledger):
    ledger.observe(opened("s1", "r1"))
    ledger.observe(accepted("m1", "s1"))
    ledger.observe(accepted("m2", "s1"))
    ledger.observe(failed("m1"))
    assert not ledger.stuck
    ledger.observe(stored("m2", "r1"))
    assert ledger.stuck


def test_a_4yz_is_trouble_told_once_though_its_session_is_not_clean(ledger):
    ledger.observe(opened("s1", "r1"))
    ledger.observe(refused("s1", 452))
    ledger.observe(closed("s1", clean=False))
    assert ledger.trouble == ["we answered 452: so"]


def test_a_5yz_is_no_trouble(ledger):
    ledger.observe(opened("s1", "r1"))
    ledger.observe(refused("s1", 550))
    assert ledger.trouble == []


def test_trouble_names_no_more_than_three_reasons(ledger):
    for peer in range(100):
        ledger.observe(SessionRefused(peer=str(peer), code=421, reason="", expected=("isp",)))
    assert len(ledger.trouble) == 3


def test_a_refused_connection_outside_a_round_is_no_trouble():
    ledger = Ledger("isp")
    ledger.observe(SessionRefused(peer="p", code=421, reason="", expected=("isp",)))
    ledger.begin("r1")
    assert ledger.trouble == []


def test_a_round_leaves_nothing_to_the_next(ledger):
    ledger.observe(opened("s1", "r1"))
    ledger.observe(accepted("m1", "s1"))
    ledger.observe(refused("s1", 452))
    ledger.observe(closed("s1"))
    ledger.end()
    ledger.begin("r2")
    assert ledger.trouble == [] and not ledger.session_came and not ledger.our_session_came
    assert ledger.end() == Ledger("isp").end()


def test_what_could_not_be_filed_is_remembered_until_it_is(ledger):
    ledger.observe(opened("s", "r1"))
    ledger.observe(accepted("m", "s"))
    ledger.observe(failed("m"))
    assert ledger.waits_to_be_filed
    ledger.observe(stored("m", "r1"))
    assert not ledger.waits_to_be_filed


@pytest.mark.parametrize("round_id", ["r1", None])
def test_the_filer_may_be_faster_than_the_news_of_what_was_accepted(ledger, round_id):
    """A commit is known to the filer's thread first: it may have filed, or failed, before anybody hears of it."""
    if round_id is None:  # a session that was there before the round
        ledger.end()
    ledger.observe(opened("s", round_id))
    if round_id is None:
        ledger.begin("r2")
    ledger.observe(stored("m", round_id))
    ledger.observe(failed("n"))
    ledger.observe(accepted("m", "s"))
    assert not ledger.unfiled(lambda round_id: False), "it is filed already: nothing to wait for"
    ledger.observe(accepted("n", "s"))
    assert ledger.stuck and ledger.waits_to_be_filed
    assert ledger.end().files == 1


def test_a_4yz_of_an_earlier_round_is_trouble_of_the_round_in_which_its_session_ends() -> None:
    ledger = Ledger("isp")
    ledger.begin("r1")
    ledger.observe(opened("s", "r1"))
    ledger.observe(refused("s", 452))
    ledger.end()
    ledger.begin("r2")
    ledger.observe(closed("s", clean=False))
    assert ledger.trouble == ["we answered 452: so"]


def test_a_4yz_is_told_once_a_round() -> None:
    ledger = Ledger("isp")
    ledger.begin("r1")
    ledger.observe(opened("s", "r1"))
    ledger.observe(refused("s", 452))
    ledger.observe(closed("s", clean=False))
    assert ledger.trouble == ["we answered 452: so"]
