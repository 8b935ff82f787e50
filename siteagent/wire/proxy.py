"""The PROXY protocol's header, versions 1 and 2: who the peer of a forwarded connection really is.

https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt. Pure: octets in, an answer out. Only the source address is
kept; what else a header carries (ports, TLVs) is skipped by its own length.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_MAX_V1 = 107
_MAX_V2 = 16 + 4096


@dataclass(frozen=True, slots=True)
class Proxied:
    """`peer` is None where the header tells none (UNKNOWN, LOCAL): the connection's own address counts then."""

    peer: str | None
    consumed: int


def header(data: bytes) -> Proxied | bool | None:
    """The header that `data` begins with; None while it is not complete; False where there can be none."""
    if data.startswith(b"PROXY "):
        return _version_1(data)
    if data.startswith(_SIGNATURE):
        return _version_2(data)
    if b"PROXY ".startswith(data[:6]) or _SIGNATURE.startswith(data[:12]):
        return None
    return False


def _version_1(data: bytes) -> Proxied | bool | None:
    end = data.find(b"\r\n", 0, _MAX_V1)
    if end < 0:
        return None if len(data) < _MAX_V1 else False
    words = data[:end].split(b" ")
    if words[1] == b"UNKNOWN":
        return Proxied(None, end + 2)
    if len(words) != 6 or words[1] not in (b"TCP4", b"TCP6"):
        return False
    try:
        peer = ipaddress.ip_address(words[2].decode("ascii"))
    except ValueError:
        return False
    if peer.version != (4 if words[1] == b"TCP4" else 6):
        return False
    return Proxied(str(peer), end + 2)


def _version_2(data: bytes) -> Proxied | bool | None:
    if len(data) < 16:
        return None
    length = 16 + int.from_bytes(data[14:16], "big")
    if data[12] >> 4 != 2 or data[12] & 15 > 1 or length > _MAX_V2:
        return False
    if len(data) < length:
        return None
    if data[12] & 15 == 0:
        return Proxied(None, length)
    family = data[13] >> 4
    if family == 1 and length >= 16 + 12:
        return Proxied(str(ipaddress.IPv4Address(data[16:20])), length)
    if family == 2 and length >= 16 + 36:
        return Proxied(str(ipaddress.IPv6Address(data[16:32])), length)
    return Proxied(None, length) if family == 0 else False
