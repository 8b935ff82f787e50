"""Who a peer may speak for: the providers whose networks hold its address.

Pure: addresses in, names out; resolving names and SPF records to networks is done elsewhere, and what does not
resolve yet is simply not in the table (unknown peers stay strangers). Only the address of the connection counts, never
HELO or reverse DNS. An IPv4-mapped IPv6 peer (``::ffff:192.0.2.1``) is its IPv4 address here.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from functools import lru_cache

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def plain_peer(peer: str) -> str:
    """A peer's address in one spelling: no zone, and an IPv4-mapped address as IPv4. Other text is returned as is."""
    text = peer.partition("%")[0]
    if ":" not in text:
        return text
    try:
        address = ipaddress.IPv6Address(text)
    except ValueError:
        return text
    mapped = address.ipv4_mapped
    return str(mapped) if mapped is not None else str(address)


def _plain_network(network: Network) -> Network:
    """A rule written for ``::ffff:0:0/96`` or below means IPv4 too."""
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= 96:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return ipaddress.IPv4Network((int(mapped), network.prefixlen - 96))
    return network


@lru_cache(maxsize=256)  # asked three times a session, and a provider comes from a few addresses
def _parsed(peer: str) -> tuple[int, int, int] | None:
    """An address as (number, version, bits); None for a text that is none."""
    try:
        address = ipaddress.ip_address(plain_peer(peer))
    except ValueError:
        return None
    return int(address), address.version, address.max_prefixlen


class PeerTable:
    """Networks of all providers; immutable, made anew when a name resolves to something else."""

    __slots__ = ("_rules",)

    def __init__(self, networks: Mapping[str, Iterable[Network]]) -> None:
        rules: dict[tuple[int, int], dict[int, tuple[str, ...]]] = {}
        for provider, ranges in networks.items():
            for network in map(_plain_network, ranges):
                held = rules.setdefault((network.version, network.prefixlen), {})
                base = int(network.network_address)
                names = held.get(base, ())
                if provider not in names:
                    held[base] = (*names, provider)
        # Longest prefix first: the first hit decides.
        self._rules = sorted(rules.items(), key=lambda rule: -rule[0][1])

    def candidates(self, peer: str) -> tuple[str, ...]:
        """Providers whose longest matching prefix is the longest of all; several at a tie; () for a stranger."""
        address = _parsed(peer)
        if address is None:
            return ()
        number, of_version, bits = address
        for (version, length), held in self._rules:
            if version != of_version:
                continue
            shift = bits - length
            names = held.get(number >> shift << shift)
            if names:
                return names
        return ()
