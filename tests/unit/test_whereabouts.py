"""`whereabouts`: where a name leads to by its zone's own servers, and waiting for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from siteagent.errors import TemporaryError
from siteagent.whereabouts import Look, addresses, leads_to, servers

NAME, OLD, NEW = "office.dyn.example", "198.51.100.1", "198.51.100.7"


def zone(*answers: str | None, dead: tuple[str, ...] = ()) -> tuple[Look, list[tuple[str, str, str | None]]]:
    """dyn.example with two servers; each look at the name gets the next of `answers`, the last again and again."""
    asked: list[tuple[str, str, str | None]] = []
    left = list(answers)

    def look(name: str, kind: str, server: str | None) -> list[str]:
        asked.append((name, kind, server))
        if server is None:
            known = {("dyn.example", "NS"): ["ns1.example.", "ns2.example."], ("ns1.example", "A"): ["192.0.2.1"]}
            known |= {("ns2.example", "A"): ["192.0.2.2"], (NAME, "A"): [OLD]}  # a resolver that remembers
            return known.get((name, kind), [])
        if server in dead:
            raise TemporaryError("cannot look it up", "timeout")
        told = left.pop(0) if len(left) > 1 else left[0]
        return [] if told is None else [told]

    return look, asked


def wait(look: Look, address: str = NEW, patience: float = 0.05) -> str:
    return asyncio.run(leads_to(NAME, address, look=look, patience=patience, pause=0.01))


def test_the_servers_are_those_of_the_nearest_zone_above() -> None:
    look, _ = zone(NEW)
    assert servers(NAME, look) == ["192.0.2.1", "192.0.2.2"]


def test_the_zones_own_server_is_asked_and_no_resolver_that_remembers() -> None:
    look, asked = zone(NEW)
    assert addresses(NAME, 4, look) == (NEW,)
    assert (NAME, "A", None) not in asked


def test_a_dead_server_leaves_the_question_to_the_next() -> None:
    look, _ = zone(NEW, dead=("192.0.2.1",))
    assert addresses(NAME, 4, look) == (NEW,)


def test_a_zone_whose_servers_are_dead_is_temporary() -> None:
    look, _ = zone(NEW, dead=("192.0.2.1", "192.0.2.2"))
    with pytest.raises(TemporaryError):
        addresses(NAME, 4, look)


def test_it_is_waited_until_the_name_leads_to_us() -> None:
    look, asked = zone(OLD, OLD, None, NEW)
    assert wait(look, patience=5) == ""
    assert len([1 for name, _, server in asked if name == NAME and server]) == 4


@pytest.mark.parametrize(
    ("answer", "dead", "why"),
    [(OLD, (), f"it leads to {OLD}"), (None, (), "no address"), (NEW, ("192.0.2.1", "192.0.2.2"), "timeout")],
)
def test_when_patience_is_over_it_says_why(answer: str | None, dead: tuple[str, ...], why: str) -> None:
    look, _ = zone(answer, dead=dead)
    assert why in wait(look)


def test_an_address_of_the_newer_kind_is_asked_for_as_such() -> None:
    asked: list[str] = []

    def look(name: str, kind: str, server: str | None) -> list[str]:
        asked.append(kind)
        return {"NS": ["ns.example."], "A": ["192.0.2.1"], "AAAA": ["2001:db8:0::7"]}[kind]

    assert wait(look, "2001:db8::7") == ""
    assert asked[-1] == "AAAA"


def test_a_name_without_a_zone_is_no_endless_wait() -> None:
    nothing: Callable[[str, str, str | None], list[str]] = lambda name, kind, server: []  # noqa: E731
    assert "no server" in wait(nothing)
