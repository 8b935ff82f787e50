"""`agent.peering`: who may connect, while names resolve, do not, or change."""

from __future__ import annotations

import asyncio
import ipaddress
from typing import Any

import pytest
from siteagent.agent.peering import STRANGER, Peering
from siteagent.config.sections import Provider
from siteagent.errors import TemporaryError
from siteagent.inbound.admission import Network

HOST = "mx.isp.example"


class Names:
    """DNS: `answers` are what it knows now, `known` what it was last; names in `slow` answer when told to."""

    def __init__(self, **answers: str) -> None:
        self.answers = {name.replace("_", "."): (address,) for name, address in answers.items()}
        self.last: dict[str, tuple[str, ...]] = {}
        self.slow: dict[str, asyncio.Event] = {}
        self.spf: dict[str, str] = {}

    async def resolve(self, host: str) -> tuple[str, ...]:
        await self._wait(host)
        if host not in self.answers:
            raise TemporaryError(f"cannot resolve {host}", "no answer from DNS")
        self.last[host] = self.answers[host]
        return self.answers[host]

    def known(self, host: str) -> tuple[str, ...]:
        return self.last.get(host, ())

    async def networks(self, domain: str) -> tuple[Network, ...]:
        await self._wait(domain)
        if domain not in self.spf:
            raise TemporaryError("cannot look up", "no answer")
        return (ipaddress.ip_network(self.spf[domain]),)

    async def _wait(self, name: str) -> None:
        if name in self.slow:
            await self.slow[name].wait()


def provider(name: str = "isp", *peers: str, host: str = HOST) -> Provider:
    return Provider(name=name, host=host, nodes=("office.example",), peers=peers)


def peering(names: Names, *providers: Provider, notes: list[str] | None = None) -> Peering:
    collected = notes if notes is not None else []
    return Peering(providers, resolve=names.resolve, known=names.known, spf=names.networks, note=collected.append)


def test_s2_a_name_that_was_never_resolved_admits_nobody() -> None:
    table = peering(Names(), provider())
    assert table.admit("192.0.2.1") == STRANGER and STRANGER.code == 421


def test_s2_the_addresses_of_host_count_where_no_peers_are_named() -> None:
    names = Names(mx_isp_example="192.0.2.1")
    table = peering(names, provider())
    assert asyncio.run(table.refresh())
    assert table.candidates("192.0.2.1") == ("isp",) and table.admit("192.0.2.2") == STRANGER


def test_named_peers_replace_the_addresses_of_host() -> None:
    names = Names(mx_isp_example="192.0.2.1", out_isp_example="192.0.2.2")
    table = peering(names, provider("isp", "out.isp.example", "198.51.100.7/24"))
    asyncio.run(table.refresh())
    found = [bool(table.candidates(peer)) for peer in ("192.0.2.1", "192.0.2.2", "198.51.100.200")]
    assert found == [False, True, True]


def test_s2_an_ipv4_mapped_peer_matches_the_ipv4_rule() -> None:
    assert peering(Names(), provider("isp", "192.0.2.0/24")).candidates("::ffff:192.0.2.9") == ("isp",)


def test_the_longest_prefix_decides_and_a_tie_names_all() -> None:
    table = peering(
        Names(),
        provider("wide", "198.51.100.0/24"),
        provider("narrow", "198.51.100.8/29"),
        provider("twin", "198.51.100.8/29"),
    )
    assert table.candidates("198.51.100.1") == ("wide",)
    assert table.candidates("198.51.100.9") == ("narrow", "twin")


def test_s2_spf_names_the_networks() -> None:
    names = Names(mx_isp_example="192.0.2.1")
    names.spf["isp.example"] = "198.51.100.0/24"
    table = peering(names, provider("isp", "spf:isp.example"))
    asyncio.run(table.refresh())
    assert table.candidates("198.51.100.9") == ("isp",)


def test_a_dns_that_fails_later_keeps_what_was_known() -> None:
    names = Names(mx_isp_example="192.0.2.1")
    names.spf["isp.example"] = "198.51.100.0/24"
    table = peering(names, provider("isp", "spf:isp.example", HOST))
    asyncio.run(table.refresh())
    names.spf.clear()
    names.answers.clear()
    assert not asyncio.run(table.refresh())
    assert table.candidates("198.51.100.9") == table.candidates("192.0.2.1") == ("isp",)


def test_a_name_that_does_not_answer_keeps_no_other_waiting() -> None:
    names = Names(mx_isp_example="192.0.2.1", mx_other_example="192.0.2.2")
    table = peering(names, provider("isp", "spf:isp.example", HOST), provider("other", host="mx.other.example"))

    async def scene() -> None:
        names.slow["isp.example"] = asyncio.Event()
        task = asyncio.ensure_future(table.refresh())
        async with asyncio.timeout(2):
            while not (table.candidates("192.0.2.1") and table.candidates("192.0.2.2")):
                await asyncio.sleep(0)
        assert not task.done()
        names.slow["isp.example"].set()
        await task

    asyncio.run(scene())


def test_refresh_says_whether_anybodys_networks_changed() -> None:
    names = Names(mx_isp_example="192.0.2.1")
    table = peering(names, provider())
    assert [asyncio.run(table.refresh()) for _ in range(2)] == [True, False]
    names.answers[HOST] = ("192.0.2.9",)
    assert asyncio.run(table.refresh())
    assert table.admit("192.0.2.1") == STRANGER


def test_a_change_that_an_ask_found_first_is_a_change_too() -> None:
    names = Names(mx_isp_example="192.0.2.1")
    table = peering(names, provider())
    names.last[HOST] = ("192.0.2.1",)
    assert asyncio.run(table.refresh())


def test_trouble_with_a_name_is_noted_once_and_again_after_it_went_well() -> None:
    names, notes = Names(), list[str]()
    table = peering(names, provider(), notes=notes)
    for _ in range(3):
        asyncio.run(table.refresh())
    assert notes == [f"cannot tell the addresses of {HOST} yet: no answer from DNS"]
    names.answers[HOST] = ("192.0.2.1",)
    asyncio.run(table.refresh())
    names.answers.clear()
    asyncio.run(table.refresh())
    assert len(notes) == 2


def test_other_providers_count_from_reconfigure_on() -> None:
    table = peering(Names(), provider("isp", "192.0.2.1"))
    table.reconfigure([provider("new", "192.0.2.2")])
    assert [table.candidates(f"192.0.2.{n}") for n in (1, 2)] == [(), ("new",)]


@pytest.mark.parametrize(
    ("peer", "is_near"),
    [
        ("9.9.200.1", True),  # the same /16
        ("9.10.0.1", False),
        ("10.1.2.3", True),  # somebody's inner network: a provider behind a tunnel
        ("2001:470:ffff::1", True),
        ("2a00::1", False),
        ("::ffff:9.9.1.1", True),
        ("no address", False),
    ],
)
def test_near_is_next_to_an_address_of_the_provider_or_private(peer: str, is_near: bool) -> None:
    table = peering(Names(), provider("isp", "9.9.1.0/24", "2001:470::/48"))
    assert table.near("isp", peer) is is_near


def test_near_looks_at_host_too_and_at_nobody_of_another_name() -> None:
    names = Names()
    names.last[HOST] = ("9.9.1.1",)
    table: Any = peering(names, provider("isp", "8.8.8.8"))
    assert table.near("isp", "9.9.7.7") and not table.near("other", "9.9.7.7")
