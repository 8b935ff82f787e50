"""A new site at our hub: its table in hub.toml, its password, and what has to be set up elsewhere, ready to paste."""

from __future__ import annotations

import json
import os
import secrets
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from siteagent.cli.newhub import NewHub
from siteagent.config import files, names
from siteagent.config.draft import Problems
from siteagent.config.sections import HubConfiguration, Node
from siteagent.errors import CannotCreate, ConfigurationError, UsageError
from siteagent.host import certificates, identity


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """`deliver_to` None: it fetches by ATRN. `open_to_all`: its ETRN takes no login."""

    name: str
    domains: Sequence[str]
    deliver_to: str | None
    account: str | None = None
    open_to_all: bool = False

    @classmethod
    def of(cls, node: Node) -> Site:
        """The site that a table of hub.toml is about."""
        return cls(
            name=node.name,
            domains=node.domains,
            deliver_to=node.deliver_to,
            account=node.account,
            open_to_all=node.account is None,
        )

    @property
    def login(self) -> str:
        return self.account or self.name.partition(".")[0]

    @property
    def reached_as(self) -> str | None:
        """The name by which the hub finds it; None where that is an address, or it fetches."""
        host = self.deliver_to.rpartition(":")[0] if self.deliver_to is not None else ""
        return host if names.host_name(host) is not None else None

    def missing(self, configuration: HubConfiguration) -> list[str]:
        """What hub.toml lacks before this site can be served."""
        found = []
        if configuration.hostname.startswith("["):
            found.append('the hub\'s own name is not known: set hostname = "..." in hub.toml to its name in DNS')
        if self.deliver_to is not None and all(_is_loopback(each.host) for each in configuration.listener.listen):
            where = ", ".join(str(each) for each in configuration.listener.listen) or "nothing"
            found.append(
                f"no site can ask for its mail, since the hub listens on {where} alone: add an address that sites can "
                'reach to listen of [listener], such as "0.0.0.0:25", or another port where a mail server has 25'
            )
        if self.deliver_to is None and not (configuration.odmr.listen or configuration.odmr.listen_tls):
            found.append('ATRN needs a port: add `listen = ["0.0.0.0:366"]` under [odmr]')
        if configuration.listener.tls_certificate is None:
            found.append(
                "without tls_certificate and tls_key in [listener] no site can log in by password; docs/hub.md shows "
                "how to make them"
            )
        return found


def add(path: Path, site: Site, new: NewHub) -> tuple[HubConfiguration, Path]:
    """Appends the site's table to `path` (made as `new` where there is none) and writes its password beside it.

    All or nothing. Raises UsageError where the node is there already or the file would not be right, OSError.
    """
    known = files.load(path, hub=True).node if path.exists() else ()  # first: it says in words what is wrong with it
    old = path.read_text(encoding="utf-8") if path.exists() else None
    if any(node.name == site.name for node in known):
        fix = f"edit the file; `siteagent hub show-node {site.name}` prints again what the site needs"
        raise UsageError(f"cannot add {site.name}", f"{path} has it already", fix=fix)
    password_file = path.with_name(f"{site.login}.password")
    if password_file.exists():
        raise CannotCreate(f"cannot add {site.name}", f"{password_file} exists", fix="give another --account")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(password_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(secrets.token_urlsafe(18) + "\n")
    fresh = path.with_name(f".{path.name}.new")
    made = [fresh, password_file]
    try:
        if old is None:
            made += new.make_certificate(path.parent)
            before = new.text(path.parent, atrn=site.deliver_to is None)
        else:
            before = old.rstrip("\n") + "\n"
        fresh.write_text(before + _table(site), encoding="utf-8")
        if old is not None:
            fresh.chmod(path.stat().st_mode & 0o777)
        configuration = files.load(fresh, hub=True)
        fresh.replace(path)
    except Problems as problems:
        _forget(*made)
        wrong = "; ".join(problem.sentence for problem in problems.problems)
        what = f"cannot add {site.name}"
        raise ConfigurationError(what, wrong, fix="nothing was changed: give it otherwise, or mend the file") from None
    except BaseException:
        _forget(*made)
        raise
    assert configuration.state_directory is not None
    identity.share(made[1:], configuration.state_directory)
    return configuration, password_file


def _forget(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _table(site: Site) -> str:
    lines = ["", "[[node]]", f"name = {json.dumps(site.name)}", f"domains = {json.dumps(list(site.domains))}"]
    if site.deliver_to is not None:
        lines.append(f"deliver_to = {json.dumps(site.deliver_to)}")
    lines += [f"account = {json.dumps(site.login)}", f"password_file = {json.dumps(f'{site.login}.password')}"]
    return "\n".join(lines) + "\n"


def site_configuration(configuration: HubConfiguration, site: Site, password: str) -> str:
    """siteagent.toml for the site, with what is to be done there above it."""
    host = configuration.hostname
    domain = site.domains[0].removeprefix("*.")
    atrn = site.deliver_to is None
    lines = [
        "# --- siteagent.toml at the site ---",
        "# 1. Save this there as /etc/siteagent/siteagent.toml, and put your own mailboxes in.",
        *([] if site.open_to_all else [f"# 2. Its password: {_password_command(site, password)}"]),
        f"# {2 if site.open_to_all else 3}. sudo mkdir -p /var/mail/siteagent && sudo siteagent check",
        f"# {3 if site.open_to_all else 4}. sudo siteagent install-service, then sudo siteagent test",
        f"hostname = {json.dumps(site.reached_as or f'mail.{domain}')}",
        "",
        "[[provider]]",
        f"host = {json.dumps(host)}",
        f"nodes = {json.dumps([site.name])}",
        *(['method = "atrn"'] if atrn else [f"port = {_port_to_ask_at(configuration)}"]),
        *(_open() if site.open_to_all else _login(configuration, site)),
        *([] if atrn else [f"peers = {json.dumps([host])}     # and any other address that the hub sends from"]),
        *([f"reached_as = {json.dumps(site.reached_as)}"] if site.reached_as else []),
        "",
        *(["[listener]", "listen = []", ""] if atrn else []),
        "[[mailbox]]",
        'name = "alice"',
        f'addresses = ["alice@{domain}", "@{domain}"]     # "@..." takes every other name of the domain',
        'maildir = "/var/mail/siteagent/alice"',
        "",
    ]
    return "\n".join(lines)


def _password_command(site: Site, password: str) -> str:
    return f"echo {shlex.quote(password)} | sudo install -D -m 600 /dev/stdin /etc/siteagent/{site.login}.password"


def _open() -> list[str]:
    return ['tls = "opportunistic"']


def _login(configuration: HubConfiguration, site: Site) -> list[str]:
    return [
        'tls = "required"',
        *_pin(configuration),
        f"username = {json.dumps(site.login)}",
        f"password_file = {json.dumps(f'{site.login}.password')}",
    ]


def _port_to_ask_at(configuration: HubConfiguration) -> int:
    """The first port that is not for this machine alone, if there is one."""
    endpoints = sorted(configuration.listener.listen, key=lambda each: _is_loopback(each.host))
    return endpoints[0].port if endpoints else 25


def _pin(configuration: HubConfiguration) -> list[str]:
    """The line that trusts the hub's certificate; a comment where an authority may have signed it."""
    path = configuration.listener.tls_certificate
    if path is None:
        return []
    try:
        certificate = certificates.first_of(path.read_bytes())
        line = f'tls_fingerprint = "{certificates.fingerprint(certificate)}"'
        if certificates.self_issued(certificate):
            return [f"{line}     # the hub's certificate is its own: no authority signed it"]
    except (OSError, ValueError):
        return []  # `check --hub` says what is wrong with it
    return [
        "# Where the site does not know the authority of the hub's certificate, take away the # of the next line:",
        f"# {line}",
    ]


def _is_loopback(host: str) -> bool:
    return host == "localhost" or host == "::1" or host.startswith("127.")


def records(configuration: HubConfiguration, site: Site) -> str:
    """The DNS records that bring the domains' mail here; as comments, for whoever copies all that was printed."""
    literal = configuration.hostname.startswith("[")
    host = "the-name-of-this-hub" if literal else configuration.hostname  # an MX record leads to a name
    lines = ["# --- DNS ---", *(f"# {domain}.  IN MX 10 {host}." for domain in site.domains)]
    if site.deliver_to is not None:
        lines.append(f"# {site.deliver_to.rpartition(':')[0]} must lead to the site; never take the name out of DNS")
    return "\n".join([*lines, ""])


def postfix_recipe(configuration: HubConfiguration, site: Site) -> str:
    """A Postfix in front: it keeps spam, TLS policy and notices, and hands over what is for the sites."""
    endpoint = configuration.listener.listen[0] if configuration.listener.listen else None
    where = f"[{endpoint.host}]:{endpoint.port}" if endpoint is not None else "[127.0.0.1]:2525"
    domains = [domain.removeprefix("*") if domain.startswith("*.") else domain for domain in site.domains]
    names = " ".join(domain.removeprefix(".") for domain in domains)
    ways = ", ".join(f"{domain}=smtp:{where}" for domain in domains)
    return "\n".join(
        [
            "# --- main.cf of the Postfix in front (add to what is there) ---",
            f"relay_domains = $mydestination {names}",
            f"transport_maps = inline:{{ {ways} }}",
            "# the hub refuses unknown recipients; ask it before the message is taken:",
            "smtpd_recipient_restrictions = permit_mynetworks, reject_unauth_destination, reject_unverified_recipient",
            "unverified_recipient_reject_code = 550",
            "",
        ]
    )
