"""What DNS says, and kinds of addresses."""

from __future__ import annotations

import pytest
from siteagent.doctor.records import NoSuchName, addresses, exchanges, kind, patient
from siteagent.errors import TemporaryError


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1", "loopback"),
        ("0.0.0.0", "loopback"),
        ("::1", "loopback"),
        ("100.64.0.1", "shared"),
        ("100.127.255.254", "shared"),
        ("100.128.0.1", "public"),
        ("192.168.1.4", "private"),
        ("10.0.0.1", "private"),
        ("fd00::1", "private"),
        ("169.254.3.4", "reserved"),
        ("fe80::1%eth0", "reserved"),
        ("8.8.8.8", "public"),
        ("2a00:1450::1", "public"),
    ],
)
def test_every_kind_of_address(address: str, expected: str) -> None:
    assert kind(address) == expected


def test_exchanges_come_best_first_and_a_null_mx_is_none() -> None:
    rows = {"a.example": ["20 B.example.", "5 c.example."], "none.example": ["0 ."]}
    assert exchanges("a.example", lambda name, kind: rows[name]) == ["c.example", "b.example"]
    assert exchanges("none.example", lambda name, kind: rows[name]) == []


def test_an_address_is_its_own_answer() -> None:
    def never(name: str, kind: str) -> list[str]:
        raise AssertionError

    assert addresses("192.0.2.1", never) == ["192.0.2.1"]


def test_a_name_that_is_not_there_is_another_thing_than_a_dns_that_is_silent() -> None:
    def absent(name: str, kind: str) -> list[str]:
        raise NoSuchName(name)

    def silent(name: str, kind: str) -> list[str]:
        raise TemporaryError("x", "y")

    with pytest.raises(NoSuchName):
        addresses("nowhere.invalid", absent)
    with pytest.raises(TemporaryError):
        addresses("nowhere.invalid", silent)


def test_a_dead_resolver_costs_its_time_once() -> None:
    asked = []

    def silent(name: str, kind: str) -> list[str]:
        asked.append(name)
        raise TemporaryError("x", "no answer")

    look = patient(silent)
    for name in ("a.example", "b.example", "c.example"):
        with pytest.raises(TemporaryError):
            look(name, "A")
    assert asked == ["a.example"]
