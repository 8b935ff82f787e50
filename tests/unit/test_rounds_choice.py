"""`rounds.choice`: ETRN or ATRN, where the configuration leaves it open."""

from __future__ import annotations

import pytest
from siteagent.config.sections import Method, Provider
from siteagent.rounds.choice import VAIN_ASKS, Seen, choose, unreachable

PUBLIC, SHARED, PRIVATE = "203.0.113.7", "100.64.9.9", "192.168.1.7"


def provider(method: Method = Method.AUTO) -> Provider:
    return Provider(host="mx.isp.example", nodes=("office.example",), method=method)


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
    seen = Seen().after(Method.ETRN, came=False, agreed=True).after(Method.ETRN, came=False, agreed=True)
    assert seen.vain == 2
    assert seen.after(Method.ETRN, came=True, agreed=True).vain == 0


def test_an_ask_that_was_not_agreed_to_is_not_in_vain() -> None:
    assert Seen().after(Method.ETRN, came=False, agreed=False).vain == 0


@pytest.mark.parametrize("seen", [Seen(False, VAIN_ASKS), Seen(True), Seen(True, VAIN_ASKS)])
def test_atrn_that_did_not_come_about_gives_etrn_its_turn_and_is_tried_again_behind_it(seen: Seen) -> None:
    assert choose(provider(), seen, source=SHARED).method is Method.ATRN
    seen = seen.after(Method.ATRN, came=False, agreed=False)
    assert choose(provider(), seen, source=SHARED).method is Method.ETRN
    seen = seen.after(Method.ETRN, came=False, agreed=True)
    assert choose(provider(), seen, source=SHARED).method is Method.ATRN


@pytest.mark.parametrize("came", [True, False])
def test_atrn_that_works_is_stayed_with(came: bool) -> None:
    seen = Seen(False, VAIN_ASKS).after(Method.ATRN, came=came, agreed=True)
    assert choose(provider(), seen, source=SHARED).method is Method.ATRN


@pytest.mark.parametrize("source", ["10.1.2.3", "172.16.0.1", "169.254.1.1", "fd00::1", "fe80::1%eth0", "100.127.0.1"])
def test_private_and_shared_addresses_cannot_be_reached(source: str) -> None:
    assert source in unreachable(source)


@pytest.mark.parametrize("source", ["8.8.8.8", "2a00:1450::1", "127.0.0.1", "", "100.128.0.1"])
def test_others_can(source: str) -> None:
    assert unreachable(source) == ""
