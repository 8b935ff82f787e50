from __future__ import annotations

from ipaddress import ip_network

import pytest
from siteagent.inbound.admission import PeerTable, plain_peer

TABLE = PeerTable(
    {
        "isp": [ip_network("203.0.113.0/24"), ip_network("2001:db8::/32")],
        "relay": [ip_network("203.0.113.64/26")],
        "twin": [ip_network("203.0.113.0/24")],
        "mapped": [ip_network("::ffff:198.51.100.0/120")],
    }
)


@pytest.mark.parametrize(
    ("peer", "providers"),
    [
        ("203.0.113.70", ("relay",)),
        ("203.0.113.9", ("isp", "twin")),
        ("::ffff:203.0.113.70", ("relay",)),
        ("::FFFF:cb00:7146", ("relay",)),
        ("2001:db8::1", ("isp",)),
        ("2001:db8::1%ppp0", ("isp",)),
        ("198.51.100.7", ("mapped",)),
        ("192.0.2.1", ()),
        ("2001:db9::1", ()),
        ("", ()),
        ("isp.example", ()),
    ],
)
def test_the_longest_prefix_decides(peer: str, providers: tuple[str, ...]) -> None:
    assert TABLE.candidates(peer) == providers


def test_everything_can_be_a_rule() -> None:
    table = PeerTable({"all": [ip_network("0.0.0.0/0"), ip_network("::/0")]})
    assert table.candidates("192.0.2.1") == table.candidates("2001:db8::1") == ("all",)


def test_an_ipv6_rule_for_everything_does_not_admit_ipv4() -> None:
    assert PeerTable({"six": [ip_network("::/0")]}).candidates("::ffff:192.0.2.1") == ()


def test_a_peer_has_one_spelling() -> None:
    assert plain_peer("::ffff:192.0.2.1") == "192.0.2.1"
    assert plain_peer("fe80::1%eth0") == "fe80::1"
    assert plain_peer("2001:DB8:0::1") == "2001:db8::1"
