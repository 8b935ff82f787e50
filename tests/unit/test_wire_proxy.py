from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from siteagent.wire.proxy import Proxied, header

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"


def version_2(command: int, family: int, addresses: bytes, extra: bytes = b"", transport: int = 1) -> bytes:
    return (
        SIGNATURE
        + bytes([0x20 | command, family << 4 | transport])
        + (len(addresses) + len(extra)).to_bytes(2, "big")
        + addresses
        + extra
    )


INET = ipaddress.ip_address("192.0.2.9").packed + bytes(8)
INET6 = ipaddress.ip_address("2001:db8::9").packed + bytes(20)


@pytest.mark.parametrize(
    ("octets", "peer"),
    [
        (b"PROXY TCP4 192.0.2.9 198.51.100.1 4000 25\r\n", "192.0.2.9"),
        (b"PROXY TCP6 2001:db8::9 2001:db8::1 4000 25\r\n", "2001:db8::9"),
        (b"PROXY UNKNOWN\r\n", None),
        (version_2(1, 1, INET), "192.0.2.9"),
        (version_2(1, 1, INET, b"\x03\0\x04abcd"), "192.0.2.9"),
        (version_2(1, 2, INET6), "2001:db8::9"),
        (version_2(0, 0, b""), None),
        # LOCAL: whatever else it says is ignored (2.2), a family or a transport that does not exist as well.
        (version_2(0, 1, INET), None),
        (version_2(0, 2, INET), None),
        (version_2(0, 4, b"", transport=3), None),
        # A transport that is not told, or a socket with a path: the connection's own address counts.
        (version_2(1, 1, INET, transport=0), None),
        (version_2(1, 3, bytes(216)), None),
        (version_2(1, 3, bytes(216), transport=2), None),
    ],
)
def test_a_header_whole_in_pieces_and_with_what_follows(octets: bytes, peer: str | None) -> None:
    assert header(octets) == Proxied(peer, len(octets))
    assert header(octets + b"EHLO x\r\n") == Proxied(peer, len(octets))
    for end in range(len(octets)):
        assert header(octets[:end]) is None


@pytest.mark.parametrize(
    "octets",
    [
        b"EHLO isp.example\r\n",
        b"PROXY TCP4 2001:db8::9 198.51.100.1 4000 25\r\n",
        b"PROXY TCP4 x y 1 2\r\n",
        b"PROXY \r\n",
        b"PROXY " + b"x" * 200,
        SIGNATURE + b"\x31\x11\0\x0c" + INET,
        SIGNATURE + b"\x21\x11\xff\xff" + INET,
        version_2(1, 1, b"abcd"),
        version_2(1, 4, INET),
        version_2(1, 1, INET, transport=3),
        version_2(1, 0, b"", transport=3),
        # 2.1: what does not match exactly ends the connection, also where it is not the source.
        b"PROXY TCP4 192.0.2.9 198.51.100.x 4000 25\r\n",
        b"PROXY TCP4 192.0.2.9 2001:db8::1 4000 25\r\n",
        b"PROXY TCP6 fe80::9%eth0 2001:db8::1 4000 25\r\n",
        b"PROXY TCP4 192.0.2.9 198.51.100.1 65536 25\r\n",
        b"PROXY TCP4 192.0.2.9 198.51.100.1 4000 65536\r\n",
        b"PROXY TCP4 192.0.2.9 198.51.100.1 04000 25\r\n",
        b"PROXY TCP4 192.0.2.9 198.51.100.1 4000 +25\r\n",
        b"PROXY TCP4 192.0.2.9 198.51.100.1 \xb2 25\r\n",
        b"PROXY UNKNOWN\n",
        b"PROXY TCP4 192.0.2.9 198.51.100.1 4000 25\n",
    ],
)
def test_what_is_no_header_is_refused(octets: bytes) -> None:
    assert header(octets) is False


@given(st.binary(max_size=300), st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", SIGNATURE, SIGNATURE + b"\x21\x11"]))
def test_any_octets_have_an_answer(octets: bytes, front: bytes) -> None:
    found = header(front + octets)
    assert found in (None, False) or isinstance(found, Proxied)
