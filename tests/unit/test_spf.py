"""`spf`: the networks of a record, with the DNS handed in."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

import pytest
from siteagent import spf
from siteagent.errors import TemporaryError


class Dns:
    """(name, type) -> records. `asked`: what was looked up, in order."""

    def __init__(self, records: Mapping[tuple[str, str], list[str]]) -> None:
        self.records = dict(records)
        self.asked: list[tuple[str, str]] = []

    def __call__(self, name: str, kind: str) -> list[str]:
        self.asked.append((name, kind))
        return self.records.get((name.rstrip("."), kind), [])


def read(record: str, **more: list[str]) -> list[str]:
    """The networks of `record`; `more`: ``mx_isp_example__A=[...]``."""
    dns = Dns({("isp.example", "TXT"): [record]})
    for name, answers in more.items():
        host, _, kind = name.partition("__")
        dns.records[host.replace("_", "."), kind] = answers
    return [str(network) for network in spf.read("isp.example", dns)]


def test_addresses_and_networks_are_taken_as_written() -> None:
    assert read("v=spf1 ip4:192.0.2.1 ip4:198.51.100.0/24 ip6:2001:db8::/32 -all") == [
        "192.0.2.1/32",
        "198.51.100.0/24",
        "2001:db8::/32",
    ]


def test_a_stands_for_the_domains_own_addresses_or_for_those_of_a_name() -> None:
    own = {"isp_example__A": ["192.0.2.1"], "isp_example__AAAA": ["2001:db8::1"]}
    assert read("v=spf1 a -all", **own) == ["192.0.2.1/32", "2001:db8::1/128"]
    assert read("v=spf1 a:out.isp.example -all", out_isp_example__A=["192.0.2.2"]) == ["192.0.2.2/32"]


@pytest.mark.parametrize(
    ("term", "found"),
    [
        ("a/24", ["192.0.2.0/24", "2001:db8::1/128"]),
        ("a//64", ["192.0.2.1/32", "2001:db8::/64"]),
        ("a/24//64", ["192.0.2.0/24", "2001:db8::/64"]),
        ("a:isp.example/24//64", ["192.0.2.0/24", "2001:db8::/64"]),
    ],
)
def test_a_length_widens_ipv4_a_second_one_ipv6(term: str, found: list[str]) -> None:
    own = {"isp_example__A": ["192.0.2.1"], "isp_example__AAAA": ["2001:db8::1"]}
    assert read(f"v=spf1 {term} -all", **own) == found


def test_mx_stands_for_the_addresses_of_all_exchanges() -> None:
    found = read(
        "v=spf1 mx -all",
        isp_example__MX=["10 mx1.isp.example.", "20 mx2.isp.example."],
        mx1_isp_example__A=["192.0.2.1"],
        mx2_isp_example__A=["192.0.2.2"],
    )
    assert found == ["192.0.2.1/32", "192.0.2.2/32"]


def test_include_and_redirect_lead_on() -> None:
    more = {"a_example__TXT": ["v=spf1 ip4:192.0.2.1 -all"], "b_example__TXT": ["v=spf1 ip4:192.0.2.2 -all"]}
    assert read("v=spf1 include:a.example redirect=b.example", **more) == ["192.0.2.1/32", "192.0.2.2/32"]


def test_behind_all_nothing_counts() -> None:
    assert read(
        "v=spf1 ip4:192.0.2.1 -all ip4:192.0.2.2 redirect=b.example", b_example__TXT=["v=spf1 ip4:1.1.1.1"]
    ) == ["192.0.2.1/32"]


def test_what_is_not_allowed_to_send_is_no_peer() -> None:
    assert read("v=spf1 ip4:192.0.2.1 -ip4:192.0.2.2 ~ip4:192.0.2.3 ?ip4:192.0.2.4 +ip4:192.0.2.5") == [
        "192.0.2.1/32",
        "192.0.2.5/32",
    ]


@pytest.mark.parametrize("wide", ["ip4:0.0.0.0/0", "ip4:64.0.0.0/2", "ip6:::/0", "ip4:1.2.3.4/0"])
def test_a_record_cannot_make_everybody_a_peer(wide: str) -> None:
    assert read(f"v=spf1 {wide} ip4:192.0.2.1 ?all") == ["192.0.2.1/32"]


def test_all_alone_admits_nobody() -> None:
    with pytest.raises(TemporaryError, match="names no address"):
        read("v=spf1 +all")


@pytest.mark.parametrize(
    "term", ["ip4:", "ip4:nonsense", "ip4:1.2.3.4/99", "a:%{i}.isp.example", "include:", "exists:%{i}", "ptr", "exp=x"]
)
def test_what_cannot_be_used_is_passed_over(term: str) -> None:
    assert read(f"v=spf1 {term} ip4:192.0.2.1") == ["192.0.2.1/32"]


def test_other_texts_of_the_domain_are_no_record() -> None:
    dns = Dns({("isp.example", "TXT"): ["v=spf10 ip4:192.0.2.9", "google-site", "V=SPF1 ip4:192.0.2.1"]})
    assert [str(network) for network in spf.read("isp.example", dns)] == ["192.0.2.1/32"]


def test_a_ring_of_includes_ends() -> None:
    dns = Dns({("isp.example", "TXT"): ["v=spf1 include:ISP.example. ip4:192.0.2.1"]})
    assert spf.read("isp.example", dns)
    assert len(dns.asked) == 1


def test_after_ten_terms_that_cost_a_look_up_the_rest_costs_nothing() -> None:
    terms = " ".join(f"a:h{n}.example" for n in range(50))
    dns = Dns({("isp.example", "TXT"): [f"v=spf1 {terms} ip4:192.0.2.1"]})
    assert [str(network) for network in spf.read("isp.example", dns)] == ["192.0.2.1/32"]
    assert len(dns.asked) == 1 + 10 * 2


def test_a_dns_that_does_not_answer_is_temporary_and_half_a_record_is_none() -> None:
    def silent(name: str, kind: str) -> list[str]:
        if name == "b.example":
            raise TemporaryError("cannot look up", "no answer")
        return ["v=spf1 ip4:192.0.2.1 include:b.example"]

    with pytest.raises(TemporaryError):
        spf.read("isp.example", silent)


def test_a_look_up_that_hangs_does_not_hold_the_end_up() -> None:
    def hangs() -> tuple[spf.Network, ...]:
        time.sleep(3)
        return ()

    async def scene() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await spf.in_a_thread(hangs)

    began = time.monotonic()
    asyncio.run(scene())
    assert time.monotonic() - began < 1


def test_what_the_look_up_raises_is_raised() -> None:
    def fails() -> tuple[spf.Network, ...]:
        raise TemporaryError("cannot", "no")

    with pytest.raises(TemporaryError):
        asyncio.run(spf.in_a_thread(fails))
