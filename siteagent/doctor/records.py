"""What DNS says, as an outsider sees it: asked of the resolver itself, past /etc/hosts (Debian has the host's own name
on 127.0.1.1 there). Blocks; dnspython is imported when it is used.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Callable

from siteagent.errors import TemporaryError

SECONDS = 4.0

LookUp = Callable[[str, str], list[str]]
"""(name, type) -> records as text. [] for none of that type. Raises NoSuchName, TemporaryError."""


class NoSuchName(LookupError):
    """NXDOMAIN: the name is not there at all."""


def patient(look: LookUp) -> LookUp:
    """`look`, until it did not answer once: a dead resolver costs its time once, and not for every name."""
    dead: list[TemporaryError] = []

    def asked(name: str, kind: str) -> list[str]:
        if dead:
            raise dead[0]
        try:
            return look(name, kind)
        except TemporaryError as error:
            dead.append(error)
            raise

    return asked


def look_up(name: str, kind: str) -> list[str]:
    """See `LookUp`."""
    import dns.exception
    import dns.resolver

    try:
        answer = dns.resolver.resolve(name, kind, lifetime=SECONDS)
    except dns.resolver.NXDOMAIN:
        raise NoSuchName(name) from None
    except dns.resolver.NoAnswer:
        return []
    except (dns.exception.DNSException, OSError) as error:
        # Its own words name every try at every server, on one very long line.
        why = f"DNS does not answer within {SECONDS:g} s" if isinstance(error, dns.exception.Timeout) else "DNS refuses"
        raise TemporaryError(f"cannot look up {kind} of {name}", why) from error
    return [record.to_text() for record in answer]


def addresses(name: str, look: LookUp) -> list[str]:
    """A and AAAA of `name`, an address being its own. Raises as `look`; falls back on the host's own way to resolve."""
    with contextlib.suppress(ValueError):
        return [str(ipaddress.ip_address(name))]
    try:
        return look(name, "A") + look(name, "AAAA")
    except TemporaryError:
        try:
            found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        except OSError:
            raise TemporaryError(f"cannot look up {name}", "DNS does not answer") from None
        return list(dict.fromkeys(str(row[4][0]) for row in found))


def exchanges(domain: str, look: LookUp) -> list[str]:
    """The MX of `domain`, best first, lower case without a final dot; [] where there is none. Raises as `look`."""
    rows = [record.split() for record in look(domain, "MX")]
    found = sorted((int(row[0]), row[-1].rstrip(".").lower()) for row in rows if len(row) == 2 and row[0].isdigit())
    return [name for _, name in found if name]


# --- kinds of addresses -----------------------------------------------------------------------------------------------

_SHARED = ipaddress.ip_network("100.64.0.0/10")  # RFC 6598: between a carrier's customers and its NAT


def kind(address: str) -> str:
    """``loopback``, ``shared`` (CGNAT), ``private``, ``reserved`` or ``public``."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if parsed.is_loopback or parsed.is_unspecified:
        return "loopback"
    if parsed in _SHARED:
        return "shared"
    if parsed.is_link_local or parsed.is_multicast:
        return "reserved"
    return "private" if parsed.is_private else "public"
