"""The networks that a domain says its mail comes from: SPF records (RFC 7208), read for ``peers = ["spf:..."]``.

Only mechanisms that name addresses count (ip4, ip6, a, mx, include, redirect); a record that would take more than
ten look-ups (§4.6.4) ends there. Stricter than RFC 7208: a network so wide that no provider can own it, such as the
whole Internet, is left out, since it would make everybody the provider. dnspython is imported by those who use it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import threading
from collections.abc import Callable, Iterable

from siteagent.errors import TemporaryError

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
LookUp = Callable[[str, str], list[str]]
"""(name, type) -> the records as text; [] where there are none. Raises TemporaryError where DNS does not answer."""

MAX_LOOK_UPS = 10
_MOST_MX = 10
_SECONDS = 20.0
_WIDEST = {4: 8, 6: 16}


async def networks(domain: str) -> tuple[Network, ...]:
    """The networks of `domain`'s record. Raises TemporaryError where it has none that can be read now."""
    return await in_a_thread(lambda: read(domain, _dns))


async def in_a_thread(work: Callable[[], tuple[Network, ...]]) -> tuple[Network, ...]:
    """`work`, in a thread that nobody waits for at the end: a DNS that is silent must not hold the process."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[tuple[Network, ...]] = loop.create_future()

    def settle(found: tuple[Network, ...] | Exception) -> None:
        if done.done():
            return
        if isinstance(found, Exception):
            done.set_exception(found)
        else:
            done.set_result(found)

    def run() -> None:
        found: tuple[Network, ...] | Exception
        try:
            found = work()
        except Exception as error:  # whoever waits is told
            found = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(settle, found)

    threading.Thread(target=run, name="spf", daemon=True).start()
    return await done


def read(domain: str, look_up: LookUp) -> tuple[Network, ...]:
    """`networks`, with the DNS handed in. Blocks."""
    walk = _Walk(look_up)
    walk.record(domain)
    if not walk.found:
        raise TemporaryError(f"cannot read the SPF record of {domain}", "it names no address")
    return tuple(dict.fromkeys(walk.found))


class _Walk:
    def __init__(self, look_up: LookUp) -> None:
        self._look_up = look_up
        self._left = MAX_LOOK_UPS
        self._seen: set[str] = set()
        self.found: list[Network] = []

    def record(self, domain: str) -> None:
        domain = domain.rstrip(".").lower()
        if domain in self._seen:
            return
        self._seen.add(domain)
        text = next((t for t in self._look_up(domain, "TXT") if t.lower().split(" ", 1)[0] == "v=spf1"), "")
        redirect = ""
        for term in text.split()[1:]:
            if term.lstrip("+-~?").lower() == "all":  # what follows is never tested, redirect not followed (§5.1, §6.1)
                return
            if term[:1] in "-~?":
                continue
            term = term.removeprefix("+")
            if term.lower().startswith("redirect="):
                redirect = term.partition("=")[2]
            else:
                self._mechanism(term, domain)
        if redirect and "%" not in redirect and self._may_look():
            self.record(redirect)

    def _mechanism(self, term: str, domain: str) -> None:
        name, colon, value = term.partition(":")
        if name.lower() in ("ip4", "ip6"):
            self._add([value], "")
            return
        name, slash, length = (value if colon else name).partition("/")
        host, kind = (name, term.partition(":")[0]) if colon else (domain, name)
        if not host or "%" in host:  # macros need a message (§7)
            return
        match kind.lower():
            case "a" if self._may_look():
                self._add(self._addresses(host), slash + length)
            case "mx" if self._may_look():
                names = [record.split()[-1] for record in self._look_up(host, "MX")]
                for exchange in names[:_MOST_MX]:  # not of the ten: they have a limit of their own (§4.6.4)
                    self._add(self._addresses(exchange), slash + length)
            case "include" if self._may_look():
                self.record(host)

    def _may_look(self) -> bool:
        """One of the terms that cost a look-up; whether there is one left."""
        self._left -= 1
        return self._left >= 0

    def _addresses(self, host: str) -> list[str]:
        return self._look_up(host, "A") + self._look_up(host, "AAAA")

    def _add(self, addresses: Iterable[str], length: str) -> None:
        """`length`: ``/24``, ``/24//64`` with the second one for IPv6, or ``//64`` (§5.3)."""
        four, _, six = length.partition("//")
        for address in addresses:
            try:
                plain = ipaddress.ip_network(address, strict=False)
                wanted = (four.lstrip("/") if plain.version == 4 else six) or str(plain.prefixlen)
                network = ipaddress.ip_network(f"{plain.network_address}/{wanted}", strict=False)
            except ValueError:
                continue
            if network.prefixlen >= _WIDEST[network.version]:
                self.found.append(network)


def _dns(name: str, kind: str) -> list[str]:
    import dns.exception
    import dns.resolver

    try:
        answer = dns.resolver.resolve(name, kind, lifetime=_SECONDS)
    except (dns.resolver.NoAnswer, dns.resolver.NXDOMAIN):
        return []
    except dns.exception.DNSException as error:
        raise TemporaryError(f"cannot look up {kind} of {name}", str(error) or type(error).__name__) from error
    if kind == "TXT":
        return [b"".join(record.strings).decode("ascii", "replace") for record in answer]
    return [record.to_text() for record in answer]
