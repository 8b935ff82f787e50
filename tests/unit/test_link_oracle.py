"""What counts as a way to a provider."""

from __future__ import annotations

import ipaddress
import socket
import struct
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from siteagent.events import Line
from siteagent.link import netlink, oracle
from siteagent.link.netlink import Message, attribute
from siteagent.link.oracle import NetlinkOracle, UdpOracle, allowed, link_in, parsed, route_in, usable_source

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs AF_NETLINK (Linux)")
TARGET = ipaddress.ip_address("203.0.113.9")
LOOPBACK = ipaddress.ip_address("127.0.0.1")


def route(*extra: bytes, kind: int = 1, source: str | None = "198.51.100.7", index: int = 3) -> Message:
    body = struct.pack("=BBBBBBBBI", 2, 32, 0, 0, 254, 0, 0, kind, 0)
    body += attribute(4, struct.pack("=I", index))
    if source is not None:
        body += attribute(7, ipaddress.ip_address(source).packed)
    return Message(netlink.RTM_NEWROUTE, 1, body + b"".join(extra))


def test_a_unicast_route_with_our_address_is_a_way() -> None:
    answer = route(attribute(5, bytes([192, 0, 2, 1])))
    assert route_in(answer, TARGET) == (3, "198.51.100.7", "192.0.2.1")


def test_a_point_to_point_line_has_no_gateway() -> None:
    assert route_in(route(), TARGET) == (3, "198.51.100.7", None)


def test_an_ipv4_route_through_an_ipv6_next_hop_names_that() -> None:
    hop = ipaddress.ip_address("fe80::1").packed
    assert route_in(route(attribute(18, struct.pack("=H", 10) + hop)), TARGET) == (3, "198.51.100.7", "fe80::1")


@pytest.mark.parametrize("kind", [0, 2, 3, 5, 6, 7, 8])
def test_a_route_that_is_not_unicast_is_no_way(kind: int) -> None:
    assert route_in(route(kind=kind), TARGET) is None


def test_loopback_is_a_way_to_loopback_addresses() -> None:
    assert route_in(route(kind=2, source="127.0.0.1", index=1), LOOPBACK) == (1, "127.0.0.1", None)


def test_our_own_address_on_a_network_is_no_way_out() -> None:
    assert route_in(route(kind=2, source="198.51.100.7"), ipaddress.ip_address("198.51.100.7")) is None


def test_a_route_from_an_address_that_nobody_can_answer_to_is_no_way() -> None:
    assert route_in(route(source="169.254.7.7"), TARGET) is None


def test_a_route_without_an_address_of_ours_is_no_way() -> None:
    assert route_in(route(source=None), TARGET) is None


@pytest.mark.parametrize(
    ("source", "target", "usable"),
    [
        ("198.51.100.7", "203.0.113.9", True),
        ("10.0.0.5", "203.0.113.9", True),
        ("127.0.0.1", "203.0.113.9", False),
        ("169.254.7.7", "203.0.113.9", False),
        ("0.0.0.0", "203.0.113.9", False),
        ("fe80::1", "2001:db8::9", False),
        ("::1", "2001:db8::9", False),
        ("::", "2001:db8::9", False),
        ("fe80::1", "fe80::2", True),
        ("2001:db8::7", "fe80::2", True),
        ("::1", "::1", True),
        ("192.0.2.2", "127.0.0.1", False),
    ],
)
def test_a_source_is_usable_where_it_can_be_answered(source: str, target: str, usable: bool) -> None:
    assert usable_source(ipaddress.ip_address(source), ipaddress.ip_address(target)) is usable


@linux
def test_a_link_local_provider_is_looked_up_on_its_own_interface() -> None:
    index = socket.if_nametoindex("lo")
    for scope in ("lo", str(index)):
        (message,) = netlink.messages(oracle.route_request(ipaddress.ip_address(f"fe80::1%{scope}"), 1))
        assert netlink.attributes(message.body, 12)[4] == struct.pack("=I", index)


def link(flags: int, name: bytes = b"ppp0\0") -> Message:
    return Message(netlink.RTM_NEWLINK, 1, struct.pack("=BxHiII", 0, 1, 3, flags, 0) + attribute(3, name))


def test_an_interface_that_is_up_and_running_is_one() -> None:
    assert link_in(link(0x41)) == ("ppp0", True)


@pytest.mark.parametrize("flags", [0x0, 0x1, 0x40])
def test_an_interface_without_its_cable_does_not_run(flags: int) -> None:
    assert link_in(link(flags)) == ("ppp0", False)


# Lengths are 16-bit words and mostly small: plain random bytes hardly ever make one that fits.
WORDS = st.one_of(st.integers(0, 40), st.sampled_from([0, 1, 3, 4, 8, 16]), st.integers(0, 65535))
BYTES = st.one_of(
    st.binary(max_size=200),
    st.lists(WORDS, max_size=120).map(lambda words: struct.pack(f"={len(words)}H", *words)),
)


@given(BYTES, st.integers(0, 40))
def test_any_answer_is_read_without_an_exception(body: bytes, kind: int) -> None:
    for target in (TARGET, LOOPBACK, ipaddress.ip_address("2001:db8::1")):
        route_in(Message(kind, 1, body), target)
        route_in(Message(netlink.RTM_NEWROUTE, 1, body), target)
    link_in(Message(netlink.RTM_NEWLINK, 1, body))


@pytest.mark.parametrize(
    ("interface", "patterns", "answer"),
    [
        ("eth0", ("*",), True),
        ("docker0", ("*",), False),
        ("docker0", ("docker0",), True),
        ("docker0", ("docker*",), False),
        ("ppp1", ("ppp*", "wwan*"), True),
        ("eth0", ("ppp*", "wwan*"), False),
        ("PPP0", ("ppp*",), False),
        ("eth0", (), False),
        ("", ("*",), True),
        ("", ("ppp*",), False),
    ],
)
def test_patterns_choose_the_interface(interface: str, patterns: tuple[str, ...], answer: bool) -> None:
    assert allowed(interface, patterns, ("docker*", "veth*")) is answer


def test_what_is_no_address_is_passed_over_and_a_mapped_one_is_ipv4() -> None:
    found = list(parsed(["mx.isp.example", "", "::ffff:203.0.113.9", "2001:db8::1"]))
    assert found == [ipaddress.ip_address("203.0.113.9"), ipaddress.ip_address("2001:db8::1")]


def test_ten_thousand_addresses_are_not_all_looked_up() -> None:
    assert len(list(parsed(["203.0.113.9"] * 10_000))) == oracle.MAX_ADDRESSES


@linux
@pytest.mark.parametrize("judge", [NetlinkOracle(), UdpOracle()], ids=["netlink", "udp"])
def test_the_loopback_interface_leads_to_loopback(judge: NetlinkOracle | UdpOracle) -> None:
    assert judge.lines(["127.0.0.1", "127.0.0.1"]) == (Line("lo", "127.0.0.1", None),)


@linux
def test_looking_leaves_no_descriptor_behind() -> None:
    with socket.socket() as before:
        number = before.fileno()
    for _ in range(50):
        NetlinkOracle().lines(["127.0.0.1", "::1", "203.0.113.9"])
    with socket.socket() as after:
        assert after.fileno() == number


def test_an_interface_that_does_not_run_is_no_way_for_the_socket_judge_either() -> None:
    assert UdpOracle(lambda source: None).lines(["127.0.0.1"]) == ()


def test_a_refused_netlink_is_said_and_the_socket_judges() -> None:
    notes: list[str] = []
    judge = oracle.standard(notes.append, lambda: netlink.open_socket(protocol=9999))
    assert isinstance(judge, UdpOracle)
    if sys.platform.startswith("linux"):
        assert len(notes) == 1 and "netlink" in notes[0]
