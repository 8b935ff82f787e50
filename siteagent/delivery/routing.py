"""Which mailbox an address leads to, or the refusal that its sender is told. Pure.

Nothing is ever relayed: an address leads to a mailbox of the configuration, or nowhere. Domains are compared as
A-labels, local parts without case (RFC 5321 §2.4 lets the final host decide) and, beyond ASCII, in NFC.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from siteagent.config.sections import Delivery, Mailbox
from siteagent.wire.reply import Reply

NOT_OURS = Reply(550, "5.7.1", "we do not relay to other domains")
UNKNOWN = Reply(550, "5.1.1", "there is no such mailbox here")
UNKNOWN_FOR_NOW = Reply(451, "4.1.1", "this mailbox is not known here yet, try again later")


class Routing:
    """The table made from one configuration. Addresses come as ``local@domain``, or as ``postmaster`` alone."""

    def __init__(self, delivery: Delivery, mailboxes: Sequence[Mailbox], *, hostname: str) -> None:
        self._separator = delivery.subaddress_separator
        self._exact: dict[tuple[str, str], str] = {}
        self._rest: dict[str, str] = {}
        for mailbox in mailboxes:
            for address in mailbox.addresses:
                local, _, domain = address.rpartition("@")
                if local:
                    self._exact[folded_local(local), folded_domain(domain)] = mailbox.name
                else:
                    self._rest[folded_domain(domain)] = mailbox.name
        self.domains = served_domains(delivery, mailboxes)
        self.postmaster = delivery.postmaster or (mailboxes[0].name if mailboxes else "")
        self._unknown = delivery.unknown_recipient
        self._own_names = {*self.domains, folded_domain(hostname)}

    def route(self, address: str) -> str | Reply:
        """The mailbox that `address` leads to, or what its sender is told."""
        local, at, domain = address.rpartition("@")
        if not at:
            local, domain = address, ""
        local = folded_local(local)
        domain = folded_domain(domain)
        if domain in self.domains:
            found = self._lookup(local, domain)
            if found is not None:
                return found
        # RFC 5321 §4.5.1: postmaster, at every domain of ours and without one.
        if local == "postmaster" and (not domain or domain in self._own_names or domain.startswith("[")):
            return self.postmaster
        if domain not in self.domains:
            return NOT_OURS
        # A local part that names another host is somebody's try at relaying, even where a mailbox takes the rest.
        if any(c in local for c in "%!@"):
            return NOT_OURS
        if domain in self._rest:
            return self._rest[domain]
        if self._unknown == "reject":
            return UNKNOWN
        return UNKNOWN_FOR_NOW if self._unknown == "defer" else self._unknown

    def _lookup(self, local: str, domain: str) -> str | None:
        found = self._exact.get((local, domain))
        if found is None and self._separator and self._separator in local[1:]:
            found = self._exact.get((local[: local.index(self._separator, 1)], domain))
        return found


def served_domains(delivery: Delivery, mailboxes: Sequence[Mailbox]) -> frozenset[str]:
    """The domains that mail is taken for: those configured, else those of all addresses."""
    if delivery.domains is not None:
        return frozenset(folded_domain(domain) for domain in delivery.domains)
    return frozenset(folded_domain(a.rpartition("@")[2]) for mailbox in mailboxes for a in mailbox.addresses)


def folded_local(local: str) -> str:
    """A local part for comparison: quotes and quoted pairs undone, NFC, without case."""
    if len(local) >= 2 and local[0] == local[-1] == '"':
        plain, escaped = [], False
        for char in local[1:-1]:
            if char == "\\" and not escaped:
                escaped = True
                continue
            plain.append(char)
            escaped = False
        local = "".join(plain)
    return local.lower() if local.isascii() else unicodedata.normalize("NFC", local).casefold()


def folded_domain(domain: str) -> str:
    """A domain for comparison: lower case, no final dot, A-labels. What IDNA does not take stays as it is."""
    domain = domain.rstrip(".").lower()
    if domain.isascii():
        return domain
    import idna  # only for those who need it: 10 ms and 3 MB

    try:
        return idna.encode(domain, uts46=True).decode("ascii")
    except idna.IDNAError:
        return domain
