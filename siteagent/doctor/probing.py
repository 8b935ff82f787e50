"""A provider looked at by a stranger, without a configuration: what it is, what it offers, and which layout that makes.

The verdict is one of the three layouts, or that this provider cannot do it. It is an inference from what can be seen,
and says where it cannot see: whether a provider really holds the mail of a domain only the provider can say.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from siteagent.config import names
from siteagent.config.sections import Limits, Method, Provider, Tls
from siteagent.doctor import records
from siteagent.doctor.survey import Survey, survey
from siteagent.errors import TemporaryError

PORTS = (25, 587, 2525, 366)
CONNECT_SECONDS = 6.0
_LIMITS = Limits(connect_seconds=CONNECT_SECONDS, command_seconds=10, etrn_reply_seconds=15)
_MOST_HOSTS = 3


@dataclass(frozen=True, slots=True)
class Seen:
    """One port of one host: `why` it could not be talked to, or the `survey`."""

    host: str
    port: int
    survey: Survey | None
    why: str = ""

    @property
    def open(self) -> bool:
        return self.survey is not None

    @property
    def etrn(self) -> bool:
        return self.survey is not None and self.survey.error is None and self.survey.knows_etrn

    @property
    def atrn(self) -> bool:
        # Some list it only after TLS and login; on its own port nothing else is spoken (RFC 2645 §4).
        return self.survey is not None and ("atrn" in self.survey.features or (self.port == 366 and self.etrn_refused))

    @property
    def etrn_refused(self) -> bool:
        assert self.survey is not None
        return self.survey.error is None and not self.survey.knows_etrn and bool(self.survey.features)


@dataclass(slots=True)
class Probe:
    """What was found. `wanted` is what was asked for, `mx` its exchanges where it is a domain; `kind` of `source`."""

    wanted: str
    mx: list[str] = field(default_factory=list)
    hosts: dict[str, list[str]] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    source: str | None = None
    kind: str = ""
    ours: list[str] = field(default_factory=list)
    trouble: str = ""

    @property
    def best(self) -> Seen | None:
        """The port to use: ETRN where there is some, else ATRN."""
        return next((s for s in self.seen if s.etrn), None) or next((s for s in self.seen if s.atrn), None)

    @property
    def reachable(self) -> bool:
        """Somebody outside could connect to us, as far as our address tells."""
        return self.kind in ("public", "private", "loopback")

    def document(self) -> dict[str, Any]:
        layout, sentences = verdict(self)
        return {
            "version": 1,
            "wanted": self.wanted,
            "mx": self.mx,
            "hosts": self.hosts,
            "address": self.source,
            "address_kind": self.kind or None,
            "ports": [_port_document(seen) for seen in self.seen],
            "layout": layout,
            "verdict": sentences[0],
            "next": sentences[1:],
        }


def _port_document(seen: Seen) -> dict[str, Any]:
    found = seen.survey
    features = found.features if found is not None else {}
    return {
        "host": seen.host,
        "port": seen.port,
        "open": seen.open,
        "why": seen.why or (str(found.error.why) if found and found.error else None),
        "software": found.software if found else None,
        "banner": found.banner if found else None,
        "etrn": seen.etrn,
        "atrn": seen.atrn,
        "starttls": "starttls" in features or bool(found and found.encrypted),
        "auth": features.get("auth", "").split() or None,
    }


# --- looking ----------------------------------------------------------------------------------------------------------


async def probe(
    wanted: str,
    *,
    hostname: str,
    look_up: records.LookUp = records.look_up,
    source_to: Callable[[Sequence[str]], str | None],
    ports: Sequence[int] = PORTS,
) -> Probe:
    """Looks at `wanted`, a domain or host; never raises for the network. `source_to`: our address on the way there."""
    found = Probe(wanted)
    await asyncio.to_thread(_names, found, records.patient(look_up))
    if not found.hosts:
        return found
    found.source = source_to([address for addresses in found.hosts.values() for address in addresses])
    found.kind = records.kind(found.source) if found.source else ""
    if found.kind != "loopback":  # there everything is "here": somebody rehearses
        found.ours = [host for host, addresses in found.hosts.items() if found.source in addresses]
    targets = [(host, port) for host in found.hosts if host not in found.ours for port in ports]
    found.seen = list(await asyncio.gather(*(_look(found.hosts[host], host, port, hostname) for host, port in targets)))
    return found


def _names(found: Probe, look_up: records.LookUp) -> None:
    name = found.wanted.strip("[]").rstrip(".").lower()
    try:
        found.mx = [] if names.ip_address(name) else records.exchanges(name, look_up)
    except records.NoSuchName:
        found.trouble = f"there is no such name as {name}"
        return
    except (TemporaryError, ValueError):
        found.mx = []  # the host itself may be known without DNS
    for host in found.mx[:_MOST_HOSTS] or [name]:
        try:
            addresses = records.addresses(host, look_up)
        except records.NoSuchName:
            continue
        except TemporaryError as error:
            found.trouble = f"{host}: {error.why}"
            continue
        if addresses:
            found.hosts[host] = addresses
    if not found.hosts and not found.trouble:
        found.trouble = f"{name} has no address"


async def _look(addresses: Sequence[str], host: str, port: int, hostname: str) -> Seen:
    why = await _connect(addresses, port)
    if why:
        return Seen(host, port, None, why)
    method = Method.ATRN if port == 366 else Method.ETRN
    provider = Provider(
        name="probe", host=host, nodes=("probe.invalid",), port=port, method=method, tls=Tls.OPPORTUNISTIC
    )
    seen = await survey(provider, addresses=addresses, line=None, hostname=hostname, password=None, limits=_LIMITS)
    return Seen(host, port, seen)


async def _connect(addresses: Sequence[str], port: int) -> str:
    """Why no connection comes about; "" where one does."""
    why = "no address"
    for address in addresses[:2]:
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                _, writer = await asyncio.open_connection(address, port, family=socket.AF_UNSPEC)
            writer.close()
            return ""
        except TimeoutError:
            why = "no answer: a firewall, of theirs, ours or the carrier's"
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            if "connect call failed" in why:
                why = "refused"
    return why


# --- judging ----------------------------------------------------------------------------------------------------------

_WHAT_CAN = (
    "what can: any Postfix (fast_flush_domains), Exim or Sendmail as provider (`siteagent provider-sheet` prints their "
    "settings), or `siteagent hub` on a small server of your own, which also serves sites that nobody can connect to"
)


def verdict(found: Probe) -> tuple[str | None, list[str]]:
    """(layout ``A``, ``B`` or ``C``, or None; sentences: the verdict, then what to do)."""
    if not found.hosts:
        return None, [f"cannot tell: {found.trouble}", "correct the name, or try again when the line is up"]
    if found.source is None:
        return None, ["cannot tell: there is no line to it", "bring the line up and try again"]
    if found.seen and not any(seen.open for seen in found.seen):
        return None, [
            "cannot tell: no port of it answers from here",
            "many carriers block port 25: ask yours, or ask the provider for another port (587 or 2525, with a login)",
        ]
    best = found.best
    if found.ours and found.mx and found.mx[0] in found.ours:
        if best is not None and best.etrn:
            return "B", [
                f"layout B: this host receives the mail of {found.wanted}; {best.host} is its backup and can be asked",
                f"siteagent init --provider {best.host}{_node(found)} --ask-only",
            ]
        return None, [f"this host receives the mail of {found.wanted} itself, and no backup that can be asked was seen"]
    if best is None:
        return None, [f"this provider cannot do it: {_none_offers(found)}", _WHAT_CAN]
    if not found.reachable and not any(seen.atrn for seen in found.seen):
        return None, [
            f"this provider cannot do it here: it offers ETRN, but {found.source} is shared by the carrier (CGNAT), "
            "and nobody can connect to it",
            _WHAT_CAN,
        ]
    if best.etrn and found.reachable:
        more = (
            ["this host has a private address: the router must forward port 25 to it"]
            if found.kind == "private"
            else []
        )
        return "A", [
            f"layout A: {best.host} port {best.port} can be asked by ETRN, and connects to us",
            *more,
            _command(found, best, "etrn"),
            "ask the provider to hold the mail until asked, and for its outgoing networks (peers)",
        ]
    chosen = next(seen for seen in found.seen if seen.atrn)
    return "C", [
        f"layout C: {chosen.host} port {chosen.port} hands mail over the connection that we open (ATRN)",
        _command(found, chosen, "atrn") + " --username ACCOUNT",
        "ask the provider for an account",
    ]


def _command(found: Probe, seen: Seen, method: str) -> str:
    return f"siteagent init --provider {seen.host}{_node(found)} --method {method}"


def _node(found: Probe) -> str:
    """What to ask for is mostly the domain, where one was looked at."""
    return f" --node {found.wanted.rstrip('.').lower()}" if found.mx else ""


def _none_offers(found: Probe) -> str:
    said = [
        f"{seen.host} port {seen.port}{f' ({seen.survey.software})' if seen.survey.software else ''}: "
        + (seen.survey.error.why if seen.survey.error else "neither ETRN nor ATRN")
        for seen in found.seen
        if seen.survey is not None
    ]
    return "; ".join(said) or "nothing there answered"
