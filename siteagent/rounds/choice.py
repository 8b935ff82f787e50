"""``method = "auto"``: ETRN or ATRN for the round that begins, and why. Pure.

ETRN costs less and lets several messages come at once, but the provider must be able to connect to us. ATRN is taken
where it is offered and we cannot be reached, as far as one can know: our address is private or shared (the usual way
to be behind a NAT), or the provider agreed twice in a row and nobody came. Where the provider's port for ETRN does not
offer ATRN, ``atrn_port`` is tried, but only from such an address and after asking in vain: most providers have nothing
there. An ATRN that did not come about gives ETRN its turn again.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, replace

from siteagent.config.sections import Method, Provider

VAIN_ASKS = 2

_SHARED = ipaddress.ip_network("100.64.0.0/10")  # RFC 6598: between a carrier's NAT and its customers
# RFC 1918, 3927, 4193, 4291. Not `is_private`, which has every special range in it, those for documents too.
_PRIVATE = tuple(
    ipaddress.ip_network(text)
    for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "fc00::/7", "fe80::/10")
)


@dataclass(frozen=True, slots=True)
class Choice:
    """How to ask. `reason` is for people; empty where there was nothing to choose."""

    method: Method
    port: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the rounds so far told. `offers_atrn`: on `port`, None while nobody knows; `vain`: ETRN rounds in a row

    that were agreed to and brought nobody; `atrn_failed`: the latest round, by ATRN, did not come about.
    """

    offers_atrn: bool | None = None
    vain: int = 0
    atrn_failed: bool = False

    def offered(self, offers: bool) -> Seen:
        return replace(self, offers_atrn=offers)

    def after(self, method: Method, *, came: bool, agreed: bool) -> Seen:
        """Once a round ended: `came`, somebody connected, or the provider said that nothing waits."""
        if method is Method.ATRN:
            return replace(self, atrn_failed=not (came or agreed))
        if came:
            return Seen(self.offers_atrn)
        return replace(self, vain=self.vain + agreed, atrn_failed=False)


def unreachable(source: str) -> str:
    """Why nobody outside can connect to `source`, "" where one can as far as the address tells."""
    try:
        address = ipaddress.ip_address(source.partition("%")[0])
    except ValueError:
        return ""
    if address.version == 4 and address in _SHARED:
        return f"our address {source} is shared by the carrier's customers (NAT)"
    if any(address.version == network.version and address in network for network in _PRIVATE):
        return f"our address {source} is private"
    return ""


def choose(provider: Provider, seen: Seen, *, source: str) -> Choice:
    """The method of the next round from address `source`."""
    if provider.method is not Method.AUTO:
        return Choice(provider.method, provider.port)
    if seen.atrn_failed:
        return Choice(Method.ETRN, provider.port, "ATRN did not come about")
    closed = unreachable(source)
    in_vain = seen.vain >= VAIN_ASKS
    vain = f"the provider agreed {seen.vain} times and nobody came"
    if seen.offers_atrn and (closed or in_vain):
        return Choice(Method.ATRN, provider.port, f"ATRN is offered, and {closed or vain}")
    if closed and in_vain and seen.offers_atrn is False:
        return Choice(Method.ATRN, provider.atrn_port, f"{closed}, and {vain}")
    if closed:
        known = "not known yet to be offered" if seen.offers_atrn is None else "not offered here"
        return Choice(Method.ETRN, provider.port, f"ATRN is {known}, although {closed}")
    return Choice(Method.ETRN, provider.port, "nothing says that we cannot be reached")
