"""The checks across sections of hub.toml, after the pattern of ``config.rules``. Pure."""

from __future__ import annotations

from siteagent.config import names
from siteagent.config.draft import Draft, shown
from siteagent.config.lines import KeyPath
from siteagent.config.rules import DOMAIN, MAIL_ADDRESS, judge_hostname, judge_listener
from siteagent.config.sections import HubConfiguration, Node

HOST_AND_PORT = '"HOST:PORT", such as "office.example:25" or "[2001:db8::1]:25"'


def judge_hub(configuration: HubConfiguration, draft: Draft) -> None:
    """Report every problem of `configuration` that no single option shows."""
    judge_hostname(configuration.hostname, draft)
    judge_listener(configuration.listener, draft)
    taken = {endpoint for endpoint in configuration.listener.listen if endpoint.port}
    for i, endpoint in enumerate(configuration.odmr.listen):
        if endpoint in taken:
            allowed = "another port than those of [listener]: 366 is ATRN's (RFC 2645 §3)"
            draft.report(("odmr", "listen", i), found=f'"{endpoint}" a second time', allowed=allowed)
    relay = configuration.notices.relay
    if relay is not None and names.host_and_port(relay) is None:
        draft.report(("notices", "relay"), found=shown(relay), allowed=HOST_AND_PORT)
    by_name: dict[str, str] = {}
    by_domain: dict[str, str] = {}
    by_account: dict[str, Node] = {}
    for i, node in enumerate(configuration.node):
        _judge_node(node, ("node", i), draft)
        _once(by_name, node.name, node.name.casefold(), ("node", i, "name"), draft)
        _judge_domains(node, ("node", i), by_domain, draft)
        _judge_account(node, ("node", i), by_account, draft)


def _once(seen: dict[str, str], text: str, key: str, at: KeyPath, draft: Draft) -> None:
    if key and key in seen:
        draft.report(at, found=f"{shown(text)} a second time", allowed="each node once")
    seen[key] = text


def _judge_node(node: Node, at: KeyPath, draft: Draft) -> None:
    if node.deliver_to is not None and names.host_and_port(node.deliver_to) is None:
        draft.report((*at, "deliver_to"), found=shown(node.deliver_to), allowed=HOST_AND_PORT)
    proof = node.password_file or node.certificate_file
    if node.account is not None and proof is None and not draft.wrong(*at, "password_file"):
        draft.report((*at, "account"), found="no password_file with it", allowed="both or neither")
    if node.password_file is not None and node.account is None and not draft.wrong(*at, "account"):
        draft.report((*at, "password_file"), found="no account with it", allowed="both or neither")
    unreachable = node.deliver_to is None and node.account is None
    if unreachable and not draft.wrong(*at, "deliver_to") and not draft.wrong(*at, "account"):
        found = "neither deliver_to nor account"
        allowed = "deliver_to for ETRN, or account and password_file for ATRN: its mail could never leave"
        draft.report((*at, "deliver_to"), found=found, allowed=allowed)
    elif node.push_every_seconds and node.deliver_to is None and not draft.wrong(*at, "deliver_to"):
        draft.report((*at, "push_every_seconds"), found="no deliver_to with it", allowed="both, or deliver_to alone")


def _judge_domains(node: Node, at: KeyPath, by_domain: dict[str, str], draft: Draft) -> None:
    served = set()
    for j, domain in enumerate(node.domains):
        star = "*." if domain.startswith("*.") else ""
        folded = names.mail_domain(domain.removeprefix("*."))
        if folded is None:
            draft.report((*at, "domains", j), found=shown(domain), allowed=f'{DOMAIN}, or "*." and one')
        elif star + folded in by_domain:
            owner = by_domain[star + folded]
            found = f"{shown(domain)}, which node {owner} has already"
            draft.report((*at, "domains", j), found=found, allowed="a domain in one node, once")
        else:
            by_domain[star + folded] = node.name
            served.add(star + folded)
    if draft.wrong(*at, "domains"):
        return
    for j, address in enumerate(node.recipients or ()):
        folded = names.mail_address(address)
        if folded is None:
            draft.report((*at, "recipients", j), found=shown(address), allowed=MAIL_ADDRESS)
        elif not _covers(served, folded.rpartition("@")[2]):
            found = f"{shown(address)}, whose domain is not in `domains`"
            draft.report((*at, "recipients", j), found=found, allowed="an address in a domain of the node")


def _covers(served: set[str], domain: str) -> bool:
    return domain in served or any(s.startswith("*.") and domain.endswith(s[1:]) for s in served)


def _judge_account(node: Node, at: KeyPath, by_account: dict[str, Node], draft: Draft) -> None:
    """One account may fetch for several nodes, by one password."""
    if node.account is None:
        return
    first = by_account.setdefault(node.account, node)
    if first.password_file != node.password_file and not draft.wrong(*at, "password_file"):
        found = f"another password than node {first.name} has for account {shown(node.account)}"
        draft.report((*at, "password_file"), found=found, allowed="one password_file for one account")
