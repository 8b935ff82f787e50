"""Where a name leads to, asked of those who must know: the authoritative servers of its zone.

For ``wait_for_address``: a provider that is asked while the name still leads to our old address hands our mail to
whoever has that address now (RFC 1985 §3, §8). A resolver on the way may hold the old answer for as long as its time to
live; the zone's own servers do not. What a provider's resolver still holds nobody can see: keep that time short.
dnspython is imported by those who use it. Everything blocks but `leads_to`.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable

from siteagent.errors import TemporaryError

LOOK_SECONDS = 4.0
PAUSE_SECONDS = 3.0
PATIENCE_SECONDS = 120.0

Look = Callable[[str, str, str | None], list[str]]
"""(name, type, server or None for the resolver) -> records as text. Raises TemporaryError where nobody answers."""


def servers(name: str, look: Look) -> list[str]:
    """The addresses of the servers of the zone that `name` is in: NS of the name, or of the nearest name above."""
    labels = name.rstrip(".").split(".")
    for number in range(len(labels) - 1):
        found = look(".".join(labels[number:]), "NS", None)
        if found:
            return [address for server in found[:4] for address in look(server.rstrip("."), "A", None)]
    return []


def addresses(name: str, family: int, look: Look) -> tuple[str, ...]:
    """The addresses of `name`, as the first of its zone's servers says that answers; `family` 4 or 6.

    Raises TemporaryError where none does, or none is known.
    """
    kind = "A" if family == 4 else "AAAA"
    trouble: TemporaryError | None = None
    for server in servers(name, look):
        try:
            return tuple(look(name, kind, server))
        except TemporaryError as error:
            trouble = error
    raise trouble or TemporaryError(f"cannot look up {name}", "its zone has no server that is known")


async def leads_to(
    name: str,
    address: str,
    *,
    look: Look | None = None,
    patience: float = PATIENCE_SECONDS,
    pause: float = PAUSE_SECONDS,
) -> str:
    """Waits until `name` leads to `address`. "" when it does; why not, when patience is over. May be cancelled."""
    wanted = ipaddress.ip_address(address.partition("%")[0])
    clock = asyncio.get_running_loop().time
    until = clock() + patience
    while True:
        try:
            found = await asyncio.to_thread(addresses, name, wanted.version, look or _dns)
            if any(ipaddress.ip_address(each) == wanted for each in found):
                return ""
            why = f"it leads to {', '.join(found)}" if found else "it has no address"
        except TemporaryError as error:
            why = error.why
        if clock() + pause > until:
            return why
        await asyncio.sleep(pause)


def _dns(name: str, kind: str, server: str | None) -> list[str]:
    import dns.exception
    import dns.resolver

    try:
        resolver = dns.resolver.Resolver(configure=server is None)
        if server is not None:
            resolver.nameservers = [server]
        resolver.cache = None
        answer = resolver.resolve(name, kind, lifetime=LOOK_SECONDS)
    except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
        return []
    except (dns.exception.DNSException, OSError) as error:
        raise TemporaryError(f"cannot look up {kind} of {name}", str(error) or type(error).__name__) from error
    return [record.to_text() for record in answer]
