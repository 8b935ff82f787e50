"""The PROXY protocol's header, versions 1 and 2: who the peer of a forwarded connection really is.

https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt. Pure: octets in, an answer out. Only the source address is
kept; what else a header carries (ports, TLVs) is skipped by its own length.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_MAX_V1 = 107
_MAX_V2 = 16 + 4096
_PORT = re.compile(rb"0|[1-9][0-9]{0,4}")
_INET, _INET6, _UNIX = 1, 2, 3
_DATAGRAM = 2


@dataclass(frozen=True, slots=True)
class Proxied:
    """`peer` is None where the header tells none (UNKNOWN, LOCAL, a path): the connection's own address counts then."""

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
    end = data.find(b"\n", 0, _MAX_V1)
    if end < 0:
        return None if len(data) < _MAX_V1 else False
    if data[end - 1 : end] != b"\r":
        return False
    words = data[: end - 1].split(b" ")
    if words[1] == b"UNKNOWN":
        return Proxied(None, end + 1)
    if len(words) != 6 or words[1] not in (b"TCP4", b"TCP6"):
        return False
    # The text wants the connection ended where anything does not match exactly: what is not kept is looked at too.
    version = 4 if words[1] == b"TCP4" else 6
    peer, own = _address(words[2], version), _address(words[3], version)
    if peer is None or own is None or not (_is_port(words[4]) and _is_port(words[5])):
        return False
    return Proxied(peer, end + 1)


def _address(word: bytes, version: int) -> str | None:
    if b"%" in word:
        return None  # `ipaddress` takes a scope, the header does not
    try:
        address = ipaddress.ip_address(word.decode("ascii"))
    except ValueError:
        return None
    return str(address) if address.version == version else None


def _is_port(word: bytes) -> bool:
    return _PORT.fullmatch(word) is not None and int(word) <= 65535


def _version_2(data: bytes) -> Proxied | bool | None:
    if len(data) < 16:
        return None
    length = 16 + int.from_bytes(data[14:16], "big")
    if data[12] >> 4 != 2 or data[12] & 15 > 1 or length > _MAX_V2:
        return False
    family, transport = data[13] >> 4, data[13] & 15
    local = data[12] & 15 == 0
    if not local and (family > _UNIX or transport > _DATAGRAM):
        return False
    if len(data) < length:
        return None
    # LOCAL: the proxy speaks for itself, and the rest is ignored, right or wrong. Not told, or a path: no address.
    if local or family in (0, _UNIX) or transport == 0:
        return Proxied(None, length)
    if family == _INET and length >= 16 + 12:
        return Proxied(str(ipaddress.IPv4Address(data[16:20])), length)
    if family == _INET6 and length >= 16 + 36:
        return Proxied(str(ipaddress.IPv6Address(data[16:32])), length)
    return False
