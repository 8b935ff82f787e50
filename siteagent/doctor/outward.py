"""Checks of the way out and of who stands at its end: the route, our address, the provider, its certificate, DNS."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

from siteagent.config.names import mail_domain
from siteagent.config.sections import Method, Provider, Tls
from siteagent.doctor import records
from siteagent.doctor.findings import Finding, fail, ok, warn
from siteagent.doctor.site import Site, greeting, names_of, ways_without_patterns
from siteagent.doctor.survey import Survey
from siteagent.errors import TemporaryError
from siteagent.events import Line
from siteagent.host import certificates
from siteagent.status import counted, moment

CERTIFICATE_DAYS = 21


def needs_to_be_reached(site: Site, provider: Provider) -> bool:
    """Layout A: the provider connects to us, and we have a port for that."""
    return provider.method is not Method.ATRN and not site.configuration.ask_only


# --- the way out ------------------------------------------------------------------------------------------------------


def way_out(site: Site) -> Iterator[Finding]:
    """Does the provider's name resolve, and is there a line to it?"""
    for provider in site.configuration.provider:
        found = site.addresses.get(provider.name, "nobody asked")
        if isinstance(found, str):
            yield fail(
                f"name of {provider.name}",
                f"{provider.host}: {found}",
                "correct host, or see whether this host has a working resolver (/etc/resolv.conf)",
            )
            continue
        line = site.lines.get(provider.name)
        if line is not None:
            way = f" by {line.gateway}" if line.gateway else ""
            yield ok(f"line to {provider.name}", f"{line.interface}, from {line.source}{way}")
            continue
        others = ways_without_patterns(site, found)
        if others:
            yield fail(
                f"line to {provider.name}",
                f"the route leaves by {others[0].interface}, which `interfaces` or `ignore_interfaces` rule out",
                f'add "{others[0].interface}" to interfaces of [link], or of the provider, if it may be used',
            )
        else:
            yield fail(
                f"line to {provider.name}",
                f"no route to {', '.join(found[:2])} over an interface that is up",
                "bring the line up; `ip route get` and `ip link` show what is missing",
            )


def own_address(site: Site) -> Iterator[Finding]:
    """Could anybody connect to us at all?"""
    told: set[str] = set()
    for provider in site.configuration.provider:
        line = site.lines.get(provider.name)
        if line is None or not needs_to_be_reached(site, provider) or line.source in told:
            continue
        told.add(line.source)
        kind = records.kind(line.source)
        name = f"address {line.source}"
        if kind == "shared":
            yield fail(
                name,
                "shared with other customers of the carrier (CGNAT): nobody can connect to it",
                f'set method = "atrn" for provider {provider.name} if it offers that, or have the mail held by a '
                "`siteagent hub` of your own; or get a public address, or IPv6, from the carrier",
            )
        elif kind == "private" and _all_public(site, provider):
            yield warn(
                name,
                "private: a router stands between it and the provider",
                "have the router forward port 25 to this host, or ask by ATRN; where it does, all is well",
            )
        else:
            yield ok(name, kind)


def _all_public(site: Site, provider: Provider) -> bool:
    found = site.addresses.get(provider.name) or []
    return not isinstance(found, str) and all(records.kind(address) == "public" for address in found)


def reached_listener(site: Site) -> Iterator[Finding]:
    """With a running agent: does it answer at the line's own address?"""
    if site.holder is None or site.configuration.ask_only:
        return
    ports = [row.rpartition(":")[2] for row in (site.document.get("listener") or {}).get("addresses") or ()]
    told: set[str] = set()
    for provider in site.configuration.provider:
        line = site.lines.get(provider.name)
        if line is None or line.source in told or not needs_to_be_reached(site, provider):
            continue
        told.add(line.source)
        port = int(ports[0]) if ports else 25
        name = f"listener at {line.source}:{port}"
        try:
            said = greeting(line.source, port)
        except OSError as error:
            yield fail(
                name,
                f"no answer from here: {(error.strerror or str(error)).lower()}",
                "correct listen of [listener]: it must hold 0.0.0.0, or this address; then look at the firewall",
            )
        else:
            # We are a stranger to it, and hear so: that is an answer.
            good = said[:3] in ("220", "421")
            yield ok(name, "it answers") if good else fail(name, f'it says "{said}"', "see who else listens there")


# --- the provider -----------------------------------------------------------------------------------------------------


def providers(site: Site) -> Iterator[Finding]:
    for provider in site.configuration.provider:
        seen = site.surveys.get(provider.name)
        if seen is not None:
            yield from _judged(site, provider, seen)
            yield from _certificate(site, provider)


def _judged(site: Site, provider: Provider, seen: Survey) -> Iterator[Finding]:
    name = f"provider {provider.name}"
    if seen.error is not None:
        yield fail(name, f"{seen.error.what}: {seen.error.why}", seen.error.fix or "send this to the provider")
        return
    if seen.trouble or seen.etrn is None:
        yield fail(name, seen.trouble or "it did not answer", "try again; if it lasts, send this to the provider")
        return
    atrn = "atrn" in seen.features
    offers = [word for word, there in (("ETRN", seen.knows_etrn), ("ATRN", atrn)) if there]
    software = f"looks like {seen.software}; " if seen.software else ""
    line = "verified TLS" if seen.verified else "TLS, not verified" if seen.encrypted else "no TLS"
    login = ", logged in" if seen.logged_in else ""
    said = f"{software}offers {' and '.join(offers) or 'neither ETRN nor ATRN'}; {line}{login}"
    if seen.refuses_us:
        yield fail(
            name,
            f'it refuses this address of ours: "{seen.etrn}"',
            f"ask it to admit the address, or for a port with a login (port = 587, username of {provider.name})",
        )
    elif seen.wants_login and provider.username is None:
        yield fail(
            name,
            f'it wants a login: "{seen.etrn}"',
            f'set username and password_file of provider {provider.name}, with tls = "required"',
        )
    elif provider.method is Method.ETRN and not seen.knows_etrn:
        also = ' It offers ATRN: set method = "atrn".' if atrn else ""
        yield fail(
            name,
            f'it does not know ETRN: "{seen.etrn}"',
            "ask the provider for a server that does, or for another way to hold mail (`siteagent probe` tells "
            f"what there is).{also}",
        )
    elif provider.method is Method.ATRN and not atrn and seen.features and not seen.wants_login:
        yield warn(name, said, "it does not list ATRN (some do so only after the login); ask the provider for its port")
    else:
        yield ok(name, said)


def _certificate(site: Site, provider: Provider) -> Iterator[Finding]:
    der = site.certificates.get(provider.name)
    if not der or provider.tls is Tls.OFF:
        return
    name = f"certificate of {provider.name}"
    pin = certificates.fingerprint(der)
    try:
        until = certificates.good_until(der)
    except ValueError as error:
        yield warn(name, str(error), "send this to the provider")
        return
    left = until - site.now()
    if left < timedelta(0):
        if provider.tls.verified and provider.tls_fingerprint is None:
            yield fail(
                name,
                f"it expired on {until:%Y-%m-%d}",
                f'tell the provider; until it is renewed, this pins it: tls_fingerprint = "{pin}"',
            )
        else:
            yield warn(name, f"it expired on {until:%Y-%m-%d}", "tell the provider; nothing here depends on it")
    else:
        seen = site.surveys.get(provider.name)
        pinned = ""
        if not provider.tls.verified:
            pinned = f'; to verify it: tls = "required", tls_fingerprint = "{pin}"'
        elif seen is not None and seen.error is not None:  # maybe because it is not trusted: whose fix leads here
            pinned = f'; to trust exactly this one, once the provider has confirmed it: tls_fingerprint = "{pin}"'
        soon = left < timedelta(days=CERTIFICATE_DAYS)
        text = f"good until {until:%Y-%m-%d}{pinned}"
        yield warn(name, text, "the provider should renew it soon") if soon else ok(name, text)


def peers(site: Site) -> Iterator[Finding]:
    """Whose connections will be taken."""
    for provider in site.configuration.provider:
        if not needs_to_be_reached(site, provider):
            continue
        name = f"peers of {provider.name}"
        unknown = []
        for peer in provider.peers:
            host = peer.removeprefix("spf:")
            if "/" in host or peer.startswith("spf:"):
                continue
            found = names_of(site, host)
            if isinstance(found, str):
                unknown.append(f"{host}: {found}")
        if unknown:
            yield fail(name, "; ".join(unknown), f"correct peers of provider {provider.name}")
        elif not provider.peers:
            yield warn(
                name,
                f"none: only the addresses of {provider.host} may connect, and many providers send from others",
                "ask the provider for its outgoing networks and put them into peers",
            )
        else:
            yield ok(name, ", ".join(provider.peers))


# --- DNS --------------------------------------------------------------------------------------------------------------


def reached_as(site: Site) -> Iterator[Finding]:
    """The name by which the provider finds us: vanished, parked, stale, elsewhere?"""
    for provider in site.configuration.provider:
        if provider.reached_as is None or not needs_to_be_reached(site, provider):
            continue
        name = f"name {provider.reached_as}"
        found = names_of(site, provider.reached_as)
        if isinstance(found, str):
            if found == "there is no such name":
                # Postfix returns mail for a name that does not exist at once (smtp_addr.c).
                yield fail(name, f"{found}: a provider may return mail to its senders for that", "register it in DNS")
            else:
                yield warn(name, f"cannot look it up: {found}", "look again while the line is up")
            continue
        yield _where(site, provider, name, found)


def _where(site: Site, provider: Provider, name: str, found: list[str]) -> Finding:
    line = site.lines.get(provider.name)
    shown = ", ".join(found)
    parked = [address for address in found if records.kind(address) == "loopback"]
    if parked and not (line is not None and records.kind(line.source) == "loopback"):
        return fail(
            name,
            f"it is parked on {', '.join(parked)}: a provider returns mail for that, as looping back to itself",
            "let it show the last real address while the line is down; never loopback, never nothing",
        )
    ours = _ours(site, provider, line)
    if not ours:
        return warn(name, f"{shown}; our own public address is not known here", "compare it with the router's")
    if set(found) & ours:
        return ok(name, f"{shown}, which is here")
    return fail(
        name,
        f"it leads to {shown}, and we are at {', '.join(sorted(ours))}: the provider sends our mail elsewhere",
        "update the name (dynamic DNS client, or the zone), and lower its TTL",
    )


def _ours(site: Site, provider: Provider, line: Line | None) -> set[str]:
    """Our addresses as the provider may see them. A private one says nothing unless the provider is near too."""
    out = set()
    seen = site.surveys.get(provider.name)
    if seen is not None and seen.seen_as is not None:
        out.add(seen.seen_as)
    if line is not None and (records.kind(line.source) == "public" or not _all_public(site, provider)):
        out.add(line.source)
    return out


def mx(site: Site) -> Iterator[Finding]:
    """Does the mail of our domains go to the provider, or to us?"""
    value = site.configuration
    written = value.delivery.domains or [a.rpartition("@")[2] for box in value.mailbox for a in box.addresses]
    for domain in dict.fromkeys(folded for text in written if (folded := mail_domain(text))):
        name = f"MX of {domain}"
        try:
            found = records.exchanges(domain, site.look_up) or [domain]
        except records.NoSuchName:
            yield warn(name, "there is no such domain in DNS", "correct the addresses, or register the domain")
            continue
        except TemporaryError as error:
            yield warn(name, f"cannot look it up: {error.why}", "look again while the line is up")
            continue
        known = {provider.host.lower().rstrip(".") for provider in value.provider}
        known |= {value.hostname.lower()} | {p.reached_as.lower() for p in value.provider if p.reached_as}
        theirs = {a for f in site.addresses.values() if not isinstance(f, str) for a in f}
        theirs |= {line.source for line in site.lines.values() if line is not None}
        if set(found) & known or any(theirs & set(_list(names_of(site, host))) for host in found[:5]):
            yield ok(name, ", ".join(found))
        else:
            yield warn(
                name,
                f"{', '.join(found)}: neither a provider of the configuration nor this host",
                "have the domain's MX name the provider's server that holds the mail",
            )


def _list(found: list[str] | str) -> list[str]:
    return [] if isinstance(found, str) else found


# --- history ----------------------------------------------------------------------------------------------------------

_SILENCE = (
    "mostly an empty queue: Postfix, Exim and Sendmail say 250 to that too; `siteagent test {}` follows a real message"
)


def last_rounds(site: Site) -> Iterator[Finding]:
    for view in site.document.get("providers") or ():
        last = view.get("last_round")
        name = f"last round of {view['name']}"
        if last is None:
            continue
        at = moment(last["started"], datetime.now().astimezone())
        said = f"{last['outcome'] or 'under way'}, {counted(last['messages'], 'message')}, at {at}"
        if last["outcome"] == "silent":
            yield ok(name, f"{said}: {_SILENCE.format(view['name'])}")
        elif last["outcome"] in ("refused", "failed"):
            yield warn(name, f"{said}: {last.get('reason') or 'see history'}", "see what the other checks say of it")
        else:
            yield ok(name, said)
