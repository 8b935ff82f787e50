"""`wire.etrn`: what each answer means."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from siteagent.events import NodeOutcome
from siteagent.wire.etrn import BY_CLASS, CLOSED, HINTS, SILENCE, TABLE, GoOn, promised, sendable, software, verdict
from siteagent.wire.reply import Reply, parsed

# S41's codes, all but silence: outcome and next step, written down a second time.
MEANINGS = {
    250: ("started", GoOn.NEXT_NODE),
    251: ("nothing", GoOn.NEXT_NODE),
    252: ("started", GoOn.NEXT_NODE),
    253: ("started", GoOn.NEXT_NODE),
    421: ("retry", GoOn.STOP),
    450: ("retry", GoOn.NEXT_NODE),
    451: ("retry", GoOn.NEXT_NODE),
    453: ("retry", GoOn.NEXT_NODE),
    458: ("retry", GoOn.NEXT_NODE),
    459: ("refused", GoOn.NEXT_NODE),
    500: ("refused", GoOn.STOP),
    501: ("refused", GoOn.NEXT_NODE),
    502: ("refused", GoOn.STOP),
    503: ("refused", GoOn.NEW_CONNECTION),
    530: ("refused", GoOn.AUTHENTICATE),
    535: ("refused", GoOn.AUTHENTICATE),
    550: ("refused", GoOn.NEXT_NODE),
    554: ("refused", GoOn.NEXT_NODE),
}


@pytest.mark.parametrize("code", MEANINGS)
def test_s41_each_code_has_its_meaning_and_next_step(code: int) -> None:
    found = verdict(Reply(code, "", "whatever it says"))
    assert (found.outcome.value, found.go_on) == MEANINGS[code]
    assert found.meaning


def test_s41_no_two_meanings_are_worded_alike_but_those_of_one_policy() -> None:
    meanings = [TABLE[code].meaning for code in MEANINGS]
    assert len(set(meanings)) == len(meanings)


def test_s41_silence_is_not_no_mail() -> None:
    assert SILENCE.outcome is NodeOutcome.UNKNOWN
    assert CLOSED.outcome is NodeOutcome.UNKNOWN


@given(st.integers(200, 599), st.text(max_size=40))
def test_every_reply_has_a_verdict(code: int, text: str) -> None:
    found = verdict(Reply(code, "", text))
    assert found.meaning
    if found.outcome in (NodeOutcome.STARTED, NodeOutcome.NOTHING):
        assert code < 400 or code == 453


@given(st.integers(400, 599), st.text(max_size=40))
def test_a_refusal_never_counts_as_started(code: int, text: str) -> None:
    assert verdict(Reply(code, "", text)).outcome is not NodeOutcome.STARTED


def test_whatever_is_not_well_has_a_fix_or_a_next_step() -> None:
    rows = [*TABLE.values(), *BY_CLASS.values(), *(hint.verdict for hint in HINTS), SILENCE, CLOSED]
    for row in rows:
        if row.outcome not in (NodeOutcome.STARTED, NodeOutcome.NOTHING):
            assert row.fix or row.go_on is GoOn.NEW_CONNECTION, row


@pytest.mark.parametrize(
    ("code", "text", "go_on", "outcome"),
    [
        (458, "4.7.1 ETRN session limit reached", GoOn.NEW_CONNECTION, "retry"),
        (550, "5.7.1 ETRN session limit reached.", GoOn.NEW_CONNECTION, "retry"),
        (453, "You have no mail", GoOn.NEXT_NODE, "nothing"),
        (501, "argument must begin with #", GoOn.NEXT_NODE, "refused"),
        (458, "5.7.1 Sorry, only literal target domains accepted", GoOn.NEXT_NODE, "refused"),
        (458, "authentication required", GoOn.AUTHENTICATE, "retry"),
        (459, "node not allowed: authenticate first", GoOn.AUTHENTICATE, "refused"),
        (502, "5.7.0 Authentication is not for ETRN", GoOn.STOP, "refused"),
        (250, "session limit is not a matter here", GoOn.NEXT_NODE, "started"),
        (421, "4.7.0 session limit, closing", GoOn.STOP, "retry"),
    ],
)
def test_the_wording_tells_more_than_the_code(code: int, text: str, go_on: GoOn, outcome: str) -> None:
    found = verdict(parsed(code, text))
    assert (found.go_on, found.outcome.value) == (go_on, outcome)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("OK, 14 pending messages for node x.example started", 14),
        ("OK, 14 messages for node 7.example started", 14),
        ("OK, node 4u.example: 3 started", 3),
        ("OK, 5", 5),
        ("OK", None),
        ("OK, pending messages for node 10.1.2.3 started", None),
        ("node #7 has 2 messages", 2),
        ("9999999999999 messages", None),
        ("", None),
    ],
)
def test_the_number_of_a_253(text: str, count: int | None) -> None:
    assert promised(text) == count


def test_the_enhanced_code_is_not_the_number() -> None:
    assert verdict(parsed(253, "2.0.0 OK, 14 pending messages")).promised == 14
    assert verdict(parsed(253, "2.0.0 OK")).promised is None


def test_other_codes_promise_nothing() -> None:
    assert verdict(Reply(250, "", "3 messages")).promised is None


@pytest.mark.parametrize(
    ("greeting", "name"),
    [
        ("mx ESMTP Postfix (Debian/GNU)", "Postfix"),
        ("mx ESMTP exim 4.99", "Exim"),
        ("postfixed.example ready", "Postfix"),
    ],
)
def test_the_software_is_read_off_the_greeting(greeting: str, name: str) -> None:
    assert software(greeting) == name


def test_unknown_software_is_empty() -> None:
    assert software("mx.isp.example ESMTP ready") == ""


@pytest.mark.parametrize("node", ["office.example", "@office.example", "#q", "[192.0.2.1]"])
def test_these_can_be_sent(node: str) -> None:
    assert sendable(node)


@pytest.mark.parametrize("node", ["", "a b", "a\r\nQUIT", "a\0", "büro.example", "x" * 401])
def test_these_cannot_be_sent(node: str) -> None:
    assert not sendable(node)
