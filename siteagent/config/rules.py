"""What one option means for another, and names that must exist: the checks across sections of siteagent.toml.

Every rule looks at a configuration that may have problems already, and keeps silent about what they made empty. Pure;
what only the host can tell (files, credentials) is judged by ``config.files`` and ``config.paths``.
"""

from __future__ import annotations

from pathlib import PurePath

from siteagent.config import names
from siteagent.config.draft import Draft, nearest, one_of, shown
from siteagent.config.lines import KeyPath
from siteagent.config.sections import Auth, Configuration, Delivery, Listener, Mailbox, Method, Provider

HOST = "a host name or an address"
OWN_NAME = 'a host name such as "mail.office.example", or an address literal such as "[192.0.2.1]"'
MAIL_ADDRESS = '"name@domain", or "@domain" for the rest of a domain'
PEER = 'an address, a network such as "203.0.113.0/24", a host name, or "spf:" and a domain'
DOMAIN = "a domain name"
_POLICIES = ("reject", "defer")


def judge(configuration: Configuration, draft: Draft) -> None:
    """Report every problem of `configuration` that no single option shows."""
    judge_hostname(configuration.hostname, draft)
    if not configuration.provider and not draft.wrong("provider"):
        draft.report(("provider",), found="nothing", allowed="at least one [[provider]] with host and nodes")
    for i, provider in enumerate(configuration.provider):
        _judge_provider(provider, i, draft)
    _judge_provider_names(configuration.provider, draft)
    judge_listener(configuration.listener, draft)
    if not configuration.mailbox and not configuration.ask_only and not draft.wrong("mailbox"):
        allowed = "at least one [[mailbox]] with addresses and maildir, or listen = [] in [listener]"
        draft.report(("mailbox",), found="nothing", allowed=allowed)
    _judge_mailboxes(configuration.mailbox, draft)
    _judge_delivery(configuration.delivery, configuration.mailbox, draft)


def judge_hostname(hostname: str, draft: Draft) -> None:
    if draft.written("hostname") and not draft.wrong("hostname") and names.own_name(hostname) is None:
        draft.report(("hostname",), found=shown(hostname), allowed=OWN_NAME)


# --- providers --------------------------------------------------------------------------------------------------------


def _judge_provider(provider: Provider, i: int, draft: Draft) -> None:
    at: KeyPath = ("provider", i)
    if provider.host and names.host(provider.host) is None:
        draft.report((*at, "host"), found=shown(provider.host), allowed=HOST)
    if provider.reached_as is not None and names.host(provider.reached_as) is None:
        draft.report((*at, "reached_as"), found=shown(provider.reached_as), allowed=HOST)
    twice(provider.nodes, str.casefold, (*at, "nodes"), "a node once", draft)
    for j, peer in enumerate(provider.peers):
        if names.peer(peer) is None:
            meant = names.meant_network(peer)
            draft.report((*at, "peers", j), found=shown(peer), allowed=PEER, nearest=f'"{meant}"' if meant else None)
    _judge_login(provider, at, draft)


def _judge_login(provider: Provider, at: KeyPath, draft: Draft) -> None:
    """RFC 2645 §4: ATRN needs AUTH. Threat model S42: no secret on a line whose other end was not verified."""
    # Where one of these is unusable already, what it was meant to be is not known.
    if any(draft.wrong(*at, key) for key in ("method", "tls", "auth", "username", "password_file")):
        return
    logs_in = provider.username is not None or provider.auth is Auth.EXTERNAL
    if provider.method is Method.ATRN and not logs_in:
        draft.report(
            (*at, "username"),
            found='none, with method = "atrn"',
            allowed='the account that ATRN logs in with, or auth = "external"',
        )
    if provider.password_file is not None and not logs_in:
        draft.report((*at, "password_file"), found="a password without username", allowed="both or neither")
    # CRAM-MD5 is no exception: what it sends can be searched through offline (`uplink.login`).
    if (logs_in or provider.method is Method.ATRN) and not provider.tls.verified:
        cause = "username" if provider.username is not None else f'auth = "{provider.auth.value}"'
        cause = 'method = "atrn"' if provider.method is Method.ATRN else cause
        draft.report(
            (*at, "tls"),
            found=f'"{provider.tls.value}", with {cause}',
            allowed='"required" or "implicit" where somebody logs in (a certificate of its own: tls_fingerprint)',
        )


def _judge_provider_names(providers: tuple[Provider, ...], draft: Draft) -> None:
    seen: dict[str, str] = {}
    for i, provider in enumerate(providers):
        if not provider.name or draft.wrong("provider", i, "name"):
            continue
        key = provider.name.casefold()
        if key in seen:
            own = draft.written("provider", i, "name")
            found = f"{shown(provider.name)} a second time{'' if own else ' (it is the default)'}"
            draft.report(("provider", i, "name"), found=found, allowed="a name for each provider alone")
        seen[key] = provider.name


# --- listener ---------------------------------------------------------------------------------------------------------


def judge_listener(listener: Listener, draft: Draft) -> None:
    for present, other in (("tls_certificate", "tls_key"), ("tls_key", "tls_certificate")):
        alone = getattr(listener, present) is not None and getattr(listener, other) is None
        if alone and not draft.wrong("listener", other):
            draft.report(("listener", present), found=f"no {other} with it", allowed="both or neither")
    if listener.require_tls and listener.tls_certificate is None and not draft.wrong("listener", "tls_certificate"):
        draft.report(
            ("listener", "require_tls"), found="true without a certificate", allowed="tls_certificate and tls_key"
        )
    seen = set()
    for i, endpoint in enumerate(listener.listen):
        if endpoint in seen and endpoint.port:
            draft.report(("listener", "listen", i), found=f'"{endpoint}" a second time', allowed="each once")
        seen.add(endpoint)


# --- mailboxes and delivery -------------------------------------------------------------------------------------------


def _judge_mailboxes(mailboxes: tuple[Mailbox, ...], draft: Draft) -> None:
    by_name: dict[str, str] = {}
    by_maildir: dict[PurePath, str] = {}
    by_address: dict[str, str] = {}
    for i, mailbox in enumerate(mailboxes):
        at: KeyPath = ("mailbox", i)
        if mailbox.name and not draft.wrong(*at, "name"):
            folded = mailbox.name.casefold()
            if folded in by_name:
                own = "" if draft.written(*at, "name") else " (it is the default)"
                found = f"{shown(mailbox.name)} a second time{own}"
                draft.report((*at, "name"), found=found, allowed="a name for each mailbox alone")
            if folded in _POLICIES:
                allowed = "another name: unknown_recipient has a meaning for this one"
                draft.report((*at, "name"), found=shown(mailbox.name), allowed=allowed)
            by_name[folded] = mailbox.name
        if not draft.wrong(*at, "maildir"):
            place = _lexical(mailbox.maildir)
            if place in by_maildir:
                found = f"{shown(str(mailbox.maildir))}, which is that of mailbox {by_maildir[place]} already"
                draft.report((*at, "maildir"), found=found, allowed="a Maildir for each mailbox alone")
            by_maildir.setdefault(place, mailbox.name)
        for j, address in enumerate(mailbox.addresses):
            folded_address = names.mail_address(address)
            if folded_address is None:
                draft.report((*at, "addresses", j), found=shown(address), allowed=MAIL_ADDRESS)
            elif folded_address in by_address:
                owner = by_address[folded_address]
                found = f"{shown(address)}, which mailbox {owner} has already"
                draft.report((*at, "addresses", j), found=found, allowed="an address in one mailbox, once")
            else:
                by_address[folded_address] = mailbox.name


def _lexical(path: PurePath) -> PurePath:
    """`path` without ``.`` and ``..``: two spellings of one place compare equal. Links are not followed."""
    parts: list[str] = []
    for part in path.parts:
        if part == ".." and parts and parts[-1] not in ("..", path.anchor):
            parts.pop()
        elif not (part == ".." and parts and parts[-1] == path.anchor):
            parts.append(part)
    return PurePath(*parts)


def _judge_delivery(delivery: Delivery, mailboxes: tuple[Mailbox, ...], draft: Draft) -> None:
    known = [mailbox.name for mailbox in mailboxes]
    complete = not any(draft.wrong("mailbox", i, "name") for i in range(len(mailboxes)))
    if mailboxes and complete and not draft.wrong("mailbox"):
        _name_of_mailbox("postmaster", delivery.postmaster, known, [], draft)
        _name_of_mailbox("unknown_recipient", delivery.unknown_recipient, known, list(_POLICIES), draft)
    if delivery.domains is None:
        return
    served = set()
    for i, domain in enumerate(delivery.domains):
        folded = names.mail_domain(domain)
        if folded is None:
            draft.report(("delivery", "domains", i), found=shown(domain), allowed=DOMAIN)
        else:
            served.add(folded)
    if draft.wrong("delivery", "domains"):
        return
    for i, mailbox in enumerate(mailboxes):
        for j, address in enumerate(mailbox.addresses):
            folded = names.mail_address(address)
            if folded is not None and folded.rpartition("@")[2] not in served:
                draft.report(
                    ("mailbox", i, "addresses", j),
                    found=f"{shown(address)}, whose domain is not in `domains` of [delivery]",
                    allowed=f"an address in {one_of(delivery.domains) if delivery.domains else 'no domain at all'}",
                )


def _name_of_mailbox(key: str, name: str | None, known: list[str], words: list[str], draft: Draft) -> None:
    if name is None or name in words or name in known or draft.wrong("delivery", key):
        return
    guess = nearest(name, [*words, *known])
    choices = [f'"{word}"' for word in words] + [f"a mailbox ({one_of(known)})"]
    quoted = f'"{guess}"' if guess else None
    draft.report(("delivery", key), found=shown(name), allowed=one_of(choices), nearest=quoted)


def twice(values: tuple[str, ...], fold: object, at: KeyPath, allowed: str, draft: Draft) -> None:
    """Report each of `values` that, folded, came before."""
    assert callable(fold)
    seen = set()
    for i, value in enumerate(values):
        key = fold(value)
        if key in seen:
            draft.report((*at, i), found=f"{shown(value)} a second time", allowed=allowed)
        seen.add(key)
