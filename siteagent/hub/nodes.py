"""Which node a recipient's mail is held for, which nodes an ETRN or ATRN means, and who may start them. Pure.

RFC 1985 §5: a node name, ``@name`` for a name with every subdomain of it, ``#queue`` for a queue of ours by its name.
An unknown node and one that the asker may not start are answered alike (S58): the table of our nodes is nobody's
business. RFC 2645 §5.2.1: domains, of which one that is not the account's spoils all of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from siteagent.config.sections import Node
from siteagent.delivery.routing import NOT_OURS, UNKNOWN, folded_domain, folded_local
from siteagent.wire.reply import Reply

SYNTAX = Reply(501, "5.5.4", "syntax error in parameters: it is ETRN node, with the full name of the node")
ATRN_SYNTAX = Reply(501, "5.5.4", "it is ATRN domain,domain")
ATRN_REFUSED = Reply(450, "4.7.1", "not all of these domains are yours, or nothing is known of them here")
MOST_DOMAINS = 100
_DOMAIN = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9_-]*[A-Za-z0-9])?)+\Z")


def not_allowed(argument: str) -> Reply:
    """One answer for what does not exist and for what belongs to somebody else."""
    return Reply(459, "4.7.1", f"Node {argument} not allowed: it is not known here, or not yours to start")


class NodeTable:
    """Made from one configuration; immutable. `recipients`: those of each node, from its option or its file."""

    def __init__(self, nodes: Sequence[Node], *, recipients: Mapping[str, tuple[str, ...]] | None = None) -> None:
        self.nodes = {node.name: node for node in nodes}
        self._by_name: dict[str, list[Node]] = {}
        self._by_account: dict[str, list[Node]] = {}
        self._domains: dict[str, str] = {}
        self._known: dict[str, frozenset[tuple[str, str]]] = {}
        for node in nodes:
            names = {folded_domain(node.name), *(folded_domain(d) for d in node.domains if not d.startswith("*"))}
            for name in names:
                self._by_name.setdefault(name, []).append(node)
            if node.account is not None:
                self._by_account.setdefault(node.account, []).append(node)
            for domain in node.domains:
                self._domains[folded_domain(domain.removeprefix("*")).removeprefix("@")] = node.name
            listed = (recipients or {}).get(node.name, node.recipients)
            if listed is not None:
                self._known[node.name] = frozenset(_folded(address) for address in listed)

    # --- mail in ------------------------------------------------------------------------------------------------------

    def route(self, address: str) -> str | Reply:
        """The node that mail for `address` is held for, or what its sender is told. Never relays elsewhere (S3)."""
        local, domain = _folded(address)
        node = self._node_of(domain)
        if node is None or any(c in local for c in "%!@"):
            return NOT_OURS
        known = self._known.get(node)
        if known is not None and local != "postmaster" and not known & {(local, domain), ("", domain)}:
            return UNKNOWN
        return node

    def _node_of(self, domain: str) -> str | None:
        """By the domain itself, else by the longest ``*.`` above it."""
        found = self._domains.get(domain)
        rest = domain
        while found is None and "." in rest:
            rest = rest.partition(".")[2]
            found = self._domains.get("." + rest)
        return found

    # --- asking -------------------------------------------------------------------------------------------------------

    def account(self, name: str) -> list[Node]:
        """The nodes of an account; none where it does not exist."""
        return self._by_account.get(name, [])

    @property
    def has_accounts(self) -> bool:
        return bool(self._by_account)

    def startable(self, argument: str, *, account: str | None) -> list[Node] | Reply:
        """The nodes that this ETRN argument means and `account` (None: nobody logged in) may start; else the reply."""
        kind, name = (argument[0], argument[1:]) if argument[:1] in ("@", "#") else ("", argument)
        if kind == "#":
            meant = [node for node in (self.nodes.get(name), self.nodes.get(argument)) if node is not None]
        elif kind == "@":
            if not _DOMAIN.match(name):
                return SYNTAX
            meant = self._below(folded_domain(name), account)
        else:
            meant = self._by_name.get(folded_domain(name), [])
            if "." not in name and not any(_may_start(node, account) for node in meant):
                return SYNTAX  # RFC 1985 §7 has it so for a name that is not qualified
        allowed = [node for node in meant if _may_start(node, account)]
        return allowed or not_allowed(argument)

    def _below(self, top: str, account: str | None) -> list[Node]:
        """RFC 1985 §5.3: a sanity check. Without a login only where `top` itself is a node that anyone may start."""
        if account is None and not any(_may_start(node, None) for node in self._by_name.get(top, [])):
            return []
        candidates = self._by_account.get(account, []) if account is not None else list(self.nodes.values())
        open_to_all = self._by_name.get(top, [])
        found = [node for node in candidates if _is_below(node, top)]
        return list(dict.fromkeys(found + [node for node in open_to_all if node not in found]))

    def fetchable(self, argument: str, *, account: str) -> list[Node] | Reply:
        """The nodes that this ATRN argument means; a Reply where one of them is not the account's."""
        own = self._by_account.get(account, [])
        if not argument:
            return own or ATRN_REFUSED
        domains = argument.split(",")
        if len(domains) > MOST_DOMAINS or not all(_DOMAIN.match(domain) for domain in domains):
            return ATRN_SYNTAX
        found: dict[str, Node] = {}
        for domain in domains:
            meant = [node for node in self._by_name.get(folded_domain(domain), []) if node in own]
            if not meant:
                return ATRN_REFUSED
            found |= {node.name: node for node in meant}
        return list(found.values())


def _is_below(node: Node, top: str) -> bool:
    names = [node.name, *(domain.removeprefix("*.") for domain in node.domains)]
    return any(folded_domain(name) == top or folded_domain(name).endswith("." + top) for name in names)


def _may_start(node: Node, account: str | None) -> bool:
    return node.etrn_without_auth or (account is not None and node.account == account)


def _folded(address: str) -> tuple[str, str]:
    local, _, domain = address.rpartition("@")
    return folded_local(local), folded_domain(domain)
