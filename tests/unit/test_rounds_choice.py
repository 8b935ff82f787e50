"""`rounds.choice`: ETRN or ATRN, where the configuration leaves it open."""

from __future__ import annotations

import pytest
from siteagent.config.sections import Auth, Method, Provider
from siteagent.events import Outcome
from siteagent.rounds.choice import VAIN_ASKS, Seen, choose, unreachable

PUBLIC, SHARED, PRIVATE = "203.0.113.7", "100.64.9.9", "192.168.1.7"


def provider(method: Method = Method.AUTO, *, username: str | None = "office", auth: Auth = Auth.AUTO) -> Provider:
    return Provider(host="mx.isp.example", nodes=("office.example",), method=method, username=username, auth=auth)


def etrn(seen: Seen, *outcomes: Outcome, came: bool = False) -> Seen:
    for outcome in outcomes:
        seen = seen.after(Method.ETRN, outcome, came=came)
    return seen


@pytest.mark.parametrize(
    ("source", "seen", "method", "port"),
    [
        (PUBLIC, Seen(), "etrn", 25),
        (PUBLIC, Seen(True), "etrn", 25),
        (PUBLIC, Seen(True, VAIN_ASKS - 1), "etrn", 25),
        (PUBLIC, Seen(True, VAIN_ASKS), "atrn", 25),
        (PUBLIC, Seen(False, VAIN_ASKS), "etrn", 25),  # most providers have nothing on 366, and most queues are empty
        (SHARED, Seen(), "etrn", 25),
        (SHARED, Seen(True), "atrn", 25),
        (PRIVATE, Seen(True), "atrn", 25),
        (SHARED, Seen(False), "etrn", 25),
        (SHARED, Seen(False, VAIN_ASKS), "atrn", 366),
        (SHARED, Seen(None, VAIN_ASKS), "atrn", 25),  # what is offered is not in the journal of the rounds before
        (PUBLIC, Seen(None, VAIN_ASKS), "etrn", 25),
        (PUBLIC, Seen(True, etrn_refused=True), "atrn", 25),
        (PUBLIC, Seen(False, etrn_refused=True), "atrn", 366),
    ],
)
def test_the_choice(source: str, seen: Seen, method: str, port: int) -> None:
    chosen = choose(provider(), seen, source=source)
    assert (chosen.method.value, chosen.port) == (method, port)
    assert chosen.reason


@pytest.mark.parametrize("method", [Method.ETRN, Method.ATRN])
def test_what_is_configured_is_not_chosen(method: Method) -> None:
    chosen = choose(provider(method), Seen(True, 9), source=SHARED)
    assert (chosen.method, chosen.reason) == (method, "")


def test_somebody_who_came_ends_the_vain_asks() -> None:
    seen = etrn(Seen(), Outcome.SILENT, Outcome.SILENT)
    assert seen.vain == 2
    assert etrn(seen, Outcome.DRAINED, came=True).vain == 0


def test_who_calls_when_nobody_waits_any_more_can_call_all_the_same() -> None:
    assert etrn(Seen(True), Outcome.SILENT, Outcome.SILENT).called() == Seen(True)


def test_a_provider_that_says_that_nothing_waits_was_not_asked_in_vain() -> None:
    assert etrn(Seen(), Outcome.SILENT, Outcome.NOTHING, Outcome.SILENT).vain == 1


def test_an_ask_that_was_not_agreed_to_is_not_in_vain() -> None:
    assert etrn(Seen(), Outcome.FAILED, Outcome.REFUSED).vain == 0


def test_etrn_that_is_refused_for_good_is_remembered_until_it_is_agreed_to() -> None:
    seen = etrn(Seen(True), Outcome.REFUSED, Outcome.FAILED)
    assert seen.etrn_refused
    assert choose(provider(), seen, source=PUBLIC).reason == "ATRN is offered, and ETRN is refused"
    assert not etrn(seen, Outcome.SILENT).etrn_refused


@pytest.mark.parametrize("seen", [Seen(True), Seen(True, VAIN_ASKS), Seen(None, VAIN_ASKS), Seen(etrn_refused=True)])
def test_without_a_login_it_stays_with_etrn_and_says_what_is_missing(seen: Seen) -> None:
    chosen = choose(provider(username=None), seen, source=SHARED)
    assert (chosen.method, chosen.port) == (Method.ETRN, 25) and "username" in chosen.reason
    assert choose(provider(username=None, auth=Auth.EXTERNAL), seen, source=SHARED).method is Method.ATRN


def test_where_mail_is_not_received_nothing_can_be_turned_round() -> None:
    chosen = choose(provider(), Seen(True, VAIN_ASKS), source=SHARED, receives=False)
    assert chosen.method is Method.ETRN and "listen = []" in chosen.reason


def test_what_earlier_runs_saw_counts() -> None:
    rounds = [("etrn", "drained", True), ("etrn", "silent", False), ("etrn", "silent", False)]
    assert Seen.from_past(rounds) == Seen(None, 2)
    assert Seen.from_past([*rounds, ("atrn", "failed", False)]).atrn_failed
    assert Seen.from_past([*rounds, ("atrn", "drained", True)]) == Seen(None, 2), "that came over our own connection"


@pytest.mark.parametrize("seen", [Seen(False, VAIN_ASKS), Seen(True), Seen(True, VAIN_ASKS)])
def test_atrn_that_did_not_come_about_gives_etrn_its_turn_and_is_tried_again_behind_it(seen: Seen) -> None:
    assert choose(provider(), seen, source=SHARED).method is Method.ATRN
    seen = seen.after(Method.ATRN, Outcome.FAILED, came=False)
    assert choose(provider(), seen, source=SHARED).method is Method.ETRN
    seen = seen.after(Method.ETRN, Outcome.SILENT, came=False)
    assert choose(provider(), seen, source=SHARED).method is Method.ATRN


@pytest.mark.parametrize("came", [True, False])
def test_atrn_that_works_is_stayed_with(came: bool) -> None:
    seen = Seen(False, VAIN_ASKS).after(Method.ATRN, Outcome.DRAINED if came else Outcome.NOTHING, came=came)
    assert choose(provider(), seen, source=SHARED).method is Method.ATRN


@pytest.mark.parametrize("source", ["10.1.2.3", "172.16.0.1", "169.254.1.1", "fd00::1", "fe80::1%eth0", "100.127.0.1"])
def test_private_and_shared_addresses_cannot_be_reached(source: str) -> None:
    assert source in unreachable(source)


@pytest.mark.parametrize("source", ["8.8.8.8", "2a00:1450::1", "127.0.0.1", "", "100.128.0.1"])
def test_others_can(source: str) -> None:
    assert unreachable(source) == ""
