"""Every option there is: its type, its default, what is allowed and what it means.

One attrs class a table of the file; `option` keeps what people read about an option next to it. ``config.load`` turns
text into these, ``docs/configuration.md`` and the sample are printed from them, and the rest of the program is
handed them whole. Pure: nothing here looks at the host; what is derived from it (the host's own name, where state
lives) is filled in by ``config.files``.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar, dataclass_transform

import attrs

from siteagent.config import hours

Check = Callable[[Any], bool]
_T = TypeVar("_T")


def option(
    doc: str,
    *,
    default: Any = attrs.NOTHING,
    factory: Callable[[], Any] | None = None,
    derived: Callable[[Any], Any] | None = None,
    shown: str | None = None,
    allowed: str = "",
    check: Check | None = None,
    sample: str | None = None,
    tentative: bool = False,
) -> Any:
    """One option of the file.

    `derived` makes the default from the options declared above it; `shown` is the default in words where the value
    alone would not tell; `allowed` completes the sentence "... is not ..."; `check` holds for every allowed value;
    `sample` is a TOML value to print in documentation; `tentative` marks names that may still change until 1.0.
    """
    metadata = {
        "doc": doc,
        "shown": shown,
        "allowed": allowed,
        "check": check,
        "sample": sample,
        "tentative": tentative,
    }
    if factory is not None:
        return attrs.field(factory=factory, metadata=metadata)
    if derived is not None:
        return attrs.field(default=attrs.Factory(derived, takes_self=True), metadata=metadata)
    return attrs.field(default=default, metadata=metadata)


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(option,))
def section(cls: type[_T]) -> type[_T]:
    """One table of the file: an attrs class, frozen, with keyword arguments alone."""
    return attrs.define(frozen=True, slots=True, kw_only=True)(cls)


# --- what is allowed --------------------------------------------------------------------------------------------------


def _positive(value: float) -> bool:
    return value > 0


def _not_negative(value: float) -> bool:
    return value >= 0


def _days(value: int) -> bool:
    return 1 <= value <= 36_500  # a date so far from today exists


def _port(value: int) -> bool:
    return 1 <= value <= 65535


def _node_name(value: str) -> bool:
    """RFC 1985 §5: one argument of a command line. No blank, control or non-ASCII character (checklist E23)."""
    return 0 < len(value) <= 400 and all(33 <= ord(c) <= 126 for c in value)


def _nodes(value: tuple[str, ...]) -> bool:
    return bool(value) and all(_node_name(node) for node in value) and len(set(value)) == len(value)


def _schedule(value: tuple[float, ...]) -> bool:
    return bool(value) and all(seconds >= 0 for seconds in value) and value[-1] >= 1


def _ask_every(value: float | str) -> bool:
    return value == "auto" if isinstance(value, str) else value == 0 or value >= 10


def _push_every(value: float) -> bool:
    return value == 0 or value >= 10


def _fingerprint(value: str) -> bool:
    kind, _, digits = value.partition(":")
    plain = digits.replace(":", "")
    return kind == "sha256" and len(plain) == 64 and all(c in "0123456789abcdefABCDEF" for c in plain)


def _separator(value: str) -> bool:
    return value == "" or (len(value) == 1 and value in "+-_.=#")


NAME_ALLOWED = "letters, digits, '.', '-' and '_', at most 64 of them"


def plain_name(value: str) -> bool:
    """A name that is safe in a file name, a log line and an environment variable's value."""
    return (
        0 < len(value) <= 64
        and value[0] not in ".-"
        and all(c.isascii() and (c.isalnum() or c in "._-") for c in value)
    )


def _name_of_host(host: str) -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in host).lstrip(".-")[:64]


def _name_of_address(addresses: tuple[str, ...]) -> str:
    local, _, domain = addresses[0].rpartition("@") if addresses else ("", "", "")
    return _name_of_host(local or domain)


# --- values -----------------------------------------------------------------------------------------------------------


@attrs.define(frozen=True, slots=True)
class Endpoint:
    """An address and port to listen on, written ``192.0.2.1:25`` or ``[2001:db8::1]:25``. Port 0: any free one."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        """Raises ValueError where `text` is not an IP address in that form with a port from 0 to 65535."""
        host, colon, port = text.rpartition(":")
        if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
            raise ValueError(text)
        if host.startswith("[") and host.endswith("]"):
            host = str(ipaddress.IPv6Address(host[1:-1]))
        elif host in ("*", "localhost"):
            host = {"*": "0.0.0.0", "localhost": "127.0.0.1"}[host]
        else:
            host = str(ipaddress.IPv4Address(host))
        return cls(host, int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Backend(StrEnum):
    AUTO = "auto"
    NETLINK = "netlink"
    WINDOWS = "windows"
    POLL = "poll"


class Method(StrEnum):
    ETRN = "etrn"
    ATRN = "atrn"
    AUTO = "auto"


class Tls(StrEnum):
    """How the line to a provider is protected; the last two verify who answers."""

    OFF = "off"
    OPPORTUNISTIC = "opportunistic"
    REQUIRED = "required"
    IMPLICIT = "implicit"

    @property
    def verified(self) -> bool:
        return self in (Tls.REQUIRED, Tls.IMPLICIT)


class Auth(StrEnum):
    AUTO = "auto"
    PLAIN = "plain"
    LOGIN = "login"
    CRAM_MD5 = "cram-md5"
    EXTERNAL = "external"


class NotAdvertised(StrEnum):
    TRY = "try"
    REFUSE = "refuse"


class Heartbeat(StrEnum):
    OFF = "off"
    DAILY = "daily"


class Open(StrEnum):
    ALWAYS = "always"
    ASKED = "asked"


class BareNewline(StrEnum):
    ACCEPT = "accept"
    REJECT = "reject"


class LogFormat(StrEnum):
    TEXT = "text"
    JSON = "json"


class LogLevel(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


SECONDS = "a number of seconds, 0 or more"
MORE_THAN_ZERO = "a number greater than 0"
DAYS = "a whole number from 1 to 36500"


# --- the tables of siteagent.toml -------------------------------------------------------------------------------------


@section
class Link:
    """Which ways out count as a line to the world, and how it is watched."""

    backend: Backend = option(
        "How changes of the network are noticed. `auto` takes what the system has, and polls where it is refused.",
        default=Backend.AUTO,
    )
    interfaces: tuple[str, ...] = option(
        "Shell patterns; only an interface that matches one may be the way to a provider.",
        default=("*",),
        shown='["*"]',
    )
    metered: tuple[str, ...] = option(
        "Lines that are paid by volume or time: there the clock alone never makes the agent ask.",
        default=("ppp*", "wwan*"),
        shown='["ppp*", "wwan*"]',
    )
    ignore_interfaces: tuple[str, ...] = option(
        "Interfaces that never count, unless `interfaces` gives their exact name.",
        default=("docker*", "veth*", "br-*", "virbr*"),
        shown='["docker*", "veth*", "br-*", "virbr*"]',
    )
    settle_seconds: float = option(
        "A change counts when nothing has contradicted it for so long.",
        default=0.5,
        allowed=SECONDS,
        check=_not_negative,
    )
    poll_seconds: float = option(
        "Look again so often even if nothing was reported.",
        default=15.0,
        allowed="a number of seconds, 1 or more",
        check=lambda v: v >= 1,
    )
    hook_directory: Path | None = option(
        "Hints from NetworkManager, pppd and others are files put here.",
        default=None,
        shown="`/run/siteagent-hook` for root and services, else `hints/` in the state directory",
        sample='"/run/siteagent-hook"',
    )


@section
class Provider:
    """Somebody who holds mail for us and sends it when asked."""

    host: str = option(
        "Name or address of the server to ask.",
        sample='"mx.isp.example"',
        allowed="a host name or an address",
        check=bool,
    )
    nodes: tuple[str, ...] = option(
        "The names to ask for, sent as written. `@office.example` (with all subdomains) and `#queue` are possible.",
        sample='["office.example"]',
        allowed="a list of at least one name, none twice, without blanks or letters beyond ASCII",
        check=_nodes,
    )
    name: str = option(
        "For people: logs, status, `siteagent ask NAME`.",
        derived=lambda self: _name_of_host(self.host),
        shown="`host`",
        sample='"isp"',
        allowed=NAME_ALLOWED,
        check=plain_name,
    )
    method: Method = option(
        "How to ask. `etrn`: the provider then connects to us. `atrn`: the mail comes back over our own "
        "connection, for sites that nobody can connect to. `auto`: by ETRN, and by ATRN where it is offered, ETRN "
        "brings nothing, and there is a login.",
        default=Method.ETRN,
    )
    port: int = option(
        "The port to ask at.",
        derived=lambda self: 366 if self.method is Method.ATRN else 25,
        shown="25 for etrn and auto, 366 for atrn",
        sample="25",
        allowed="a port from 1 to 65535",
        check=_port,
    )
    atrn_port: int = option(
        "Where `auto` asks by ATRN.", default=366, allowed="a port from 1 to 65535", check=_port, tentative=True
    )
    username: str | None = option(
        "The account at the provider.",
        default=None,
        sample='"office"',
        allowed="a name of at least one character",
        check=bool,
    )
    tls: Tls = option(
        "`off`; `opportunistic`: encrypted where offered, but not verified, so no password is sent on it; `required`: "
        "STARTTLS, verified; `implicit`: TLS from the first byte, verified.",
        derived=lambda self: (
            Tls.OPPORTUNISTIC if self.username is None and self.method is not Method.ATRN else Tls.REQUIRED
        ),
        shown="`opportunistic`; `required` with a username or ATRN",
        sample='"opportunistic"',
    )
    tls_ca_file: Path | None = option(
        "Certificates to trust, PEM.", default=None, shown="the system's trust store", sample='"/etc/ssl/isp.pem"'
    )
    tls_fingerprint: str | None = option(
        "Trust exactly this certificate, signed by whom it may be.",
        default=None,
        sample='"sha256:6c1f5d47ab…"',
        allowed='"sha256:" and 64 hexadecimal digits',
        check=_fingerprint,
    )
    auth: Auth = option(
        "How to log in, where `username` is set. Never in clear on a line without verified TLS.", default=Auth.AUTO
    )
    password_file: Path | None = option(
        "A file that holds the password, readable by its owner alone.",
        default=None,
        shown="the systemd credential `siteagent.<name>.password`, if there is one",
        sample='"isp.password"',
    )
    peers: tuple[str, ...] = option(
        "Who may connect to us on its behalf: addresses, networks, host names, `spf:isp.example`.",
        default=(),
        shown="the addresses of `host`, often too few",
        sample='["203.0.113.0/24"]',
    )
    reached_as: str | None = option(
        "The name by which the provider finds us; used to explain silence.",
        default=None,
        sample='"office.dyn.example"',
    )
    wait_for_address: bool = option(
        "Ask only when `reached_as` leads to the address of the line, by the servers of its zone. For dynamic DNS: a "
        "provider that is asked earlier sends to whoever has the old address now.",
        default=False,
        tentative=True,
    )
    interfaces: tuple[str, ...] | None = option(
        "Ask only when the route leaves by one of these.",
        default=None,
        shown="`interfaces` of `[link]`",
        sample='["ppp*"]',
    )
    when_not_advertised: NotAdvertised = option(
        "What to do when the server does not list ETRN: some hide it and still do it.",
        default=NotAdvertised.TRY,
        tentative=True,
    )
    learn_name_form: bool = option(
        "Where a node is refused by 459 or 501, try `#name` for `name` (or `name` for `#name`) once, and remember what "
        "worked.",
        default=False,
        tentative=True,
    )
    ask_every_seconds: float | str = option(
        "Ask again so often while the line stays up. `auto`: 900, and on metered lines not at all. 0: never.",
        default="auto",
        allowed='"auto", 0, or a number of seconds from 10 on',
        check=_ask_every,
    )
    retry_seconds: tuple[float, ...] = option(
        "Pauses before each attempt after the line came up; the last one repeats.",
        default=(0.0, 2.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0),
        shown="[0, 2, 5, 15, 30, 60, 120, 300]",
        allowed="a list of seconds, the last one 1 or more",
        check=_schedule,
    )
    first_connection_seconds: float = option(
        "After the provider agreed: how long to wait for its first connection.",
        default=120.0,
        allowed=MORE_THAN_ZERO,
        check=_positive,
    )
    quiet_seconds: float = option(
        "Nothing came for so long and no transaction is open: the round is over.",
        default=15.0,
        allowed=MORE_THAN_ZERO,
        check=_positive,
    )
    gives_up_days: float = option(
        "How long the provider keeps mail that it cannot hand over, before it returns it to the sender. `status` "
        "says by it until when deferred mail can still be fetched; ask the provider.",
        default=5.0,
        allowed=MORE_THAN_ZERO,
        check=_positive,
        tentative=True,
    )
    heartbeat: Heartbeat = option(
        "`daily`: once a day, while the line is up, send ourselves a message by this provider as `siteagent test` "
        "does, and take it away when it arrives. A warning stands while it does not.",
        default=Heartbeat.OFF,
        tentative=True,
    )
    defer_above_bytes: int = option(
        "Bigger messages get a temporary refusal and stay with the provider. 0: none.",
        default=0,
        allowed="0 or more",
        check=_not_negative,
        tentative=True,
    )


@section
class Windows:
    """The hours in which the agent asks by itself. `siteagent ask` asks at any time."""

    ask: tuple[str, ...] = option(
        "Local times: `08:00-18:00`, `Mon-Fri 07:30-19:00`, `Sat,Sun 10:00-12:00`; `22:00-06:00` goes over midnight. "
        "`[]`: always.",
        default=(),
        shown="[]",
        allowed='a list of hours such as "08:00-18:00" or "Mon-Fri 22:00-06:00"',
        check=lambda v: all(hours.is_window(window) for window in v),
        tentative=True,
    )


@section
class Listener:
    """Our own port 25, for the provider's connections."""

    listen: tuple[Endpoint, ...] = option(
        "Where to listen. `[]`: nowhere, another server receives (ask-only). Port 0: any free one. "
        "Replaced by systemd's sockets.",
        default=(Endpoint("0.0.0.0", 25), Endpoint("::", 25)),
        shown='["0.0.0.0:25", "[::]:25"]',
        allowed='a list of addresses with a port, such as "0.0.0.0:25" or "[::]:25"',
    )
    open: Open = option("`asked`: only while a round expects mail.", default=Open.ALWAYS, tentative=True)
    tls_certificate: Path | None = option("Certificate chain for STARTTLS, PEM.", default=None, sample='"cert.pem"')
    tls_key: Path | None = option("Its private key, PEM.", default=None, sample='"key.pem"')
    require_tls: bool = option("Take no mail in clear.", default=False, tentative=True)
    proxy_protocol: bool = option(
        "Expect the PROXY protocol (v1 or v2) in front of every connection.", default=False, tentative=True
    )
    max_message_bytes: int = option(
        "0: none. A provider returns to the sender what is over the size that we announce: set it only if that "
        "is wanted.",
        default=0,
        allowed="0 or more",
        check=_not_negative,
    )
    max_recipients: int = option(
        "Recipients of one message; more are asked to come again.",
        default=1000,
        allowed="100 or more",
        check=lambda v: v >= 100,
    )
    max_connections: int = option("Connections at a time.", default=100, allowed="1 or more", check=_positive)
    max_connections_per_peer: int = option(
        "Of one provider; what comes above waits for its greeting and is not refused.",
        default=20,
        allowed="1 or more",
        check=_positive,
    )
    min_free_bytes: int = option(
        "With less free on the spool's disk, mail is asked to come again before it travels.",
        default=67_108_864,
        shown="67_108_864",
        allowed="0 or more",
        check=_not_negative,
    )
    bare_newline: BareNewline = option(
        "Line ends that are not CRLF, inside a message: keep them, or refuse it.", default=BareNewline.ACCEPT
    )


@section
class Limits:
    """For tests and odd lines."""

    command_seconds: float = option(
        "No command for so long ends a session.", default=300.0, allowed=MORE_THAN_ZERO, check=_positive, tentative=True
    )
    silence_seconds: float = option(
        "No byte of a message for so long ends a session.",
        default=180.0,
        allowed=MORE_THAN_ZERO,
        check=_positive,
        tentative=True,
    )
    minimum_bytes_per_second: int = option(
        "All sessions of a peer together, over 300 s; slower ones end.",
        default=64,
        allowed="0 or more",
        check=_not_negative,
        tentative=True,
    )
    connect_seconds: float = option(
        "To connect to a provider.", default=60.0, allowed=MORE_THAN_ZERO, check=_positive, tentative=True
    )
    etrn_reply_seconds: float = option(
        "For the answer to one ETRN.", default=300.0, allowed=MORE_THAN_ZERO, check=_positive, tentative=True
    )
    atrn_reply_seconds: float = option(
        "For the answer to ATRN.", default=660.0, allowed=MORE_THAN_ZERO, check=_positive, tentative=True
    )


@section
class Delivery:
    """Which mail is ours, and what happens to the rest."""

    domains: tuple[str, ...] | None = option(
        "Mail for any other domain is refused.",
        default=None,
        shown="the domains of all addresses",
        sample='["office.example"]',
    )
    postmaster: str | None = option(
        "The mailbox that reads what is written to the postmaster.",
        default=None,
        shown="the first one",
        sample='"alice"',
    )
    unknown_recipient: str = option(
        "Mail for a name that we do not know: `reject` it (550), `defer` it (451), or the name of a mailbox that "
        "takes it.",
        default="reject",
        shown='"reject"',
    )
    subaddress_separator: str = option(
        '`alice+lists@` is alice\'s, with "+". Empty: not.',
        default="+",
        shown='"+"',
        allowed="one of + - _ . = # or empty",
        check=_separator,
        tentative=True,
    )


@section
class Mailbox:
    """One Maildir, and the addresses that it receives for."""

    addresses: tuple[str, ...] = option(
        "Addresses; `@office.example` takes the rest of that domain.",
        sample='["alice@office.example"]',
        allowed="a list of at least one address",
        check=bool,
    )
    maildir: Path = option(
        "The Maildir; created, with tmp, new and cur, if its parent exists.", sample='"/var/mail/siteagent/alice"'
    )
    name: str = option(
        "For people.",
        derived=lambda self: _name_of_address(self.addresses),
        shown="what stands before the `@` of the first address",
        sample='"alice"',
        allowed=NAME_ALLOWED,
        check=plain_name,
    )
    reader: str | None = option(
        "A local user who reads it: files are 0660. Without: 0600, read by whoever runs as our user.",
        default=None,
        sample='"alice"',
    )


@section
class Hooks:
    """Commands of the operator's, run on events: ``round_ended = ["/etc/siteagent/hang-up"]``."""

    commands: Mapping[str, tuple[str, ...]] = option(
        "Event, with `_` for `.`, and the command as a list; no shell.", factory=dict
    )
    timeout_seconds: float = option("Then the command is ended.", default=30.0, allowed=MORE_THAN_ZERO, check=_positive)


@section
class Journal:
    """The history of rounds and messages."""

    keep_days: int = option("Older entries are dropped.", default=90, allowed=DAYS, check=_days)


@section
class Log:
    """What is written while the agent runs."""

    format: LogFormat = option("`text` (logfmt) or `json`, one event a line.", default=LogFormat.TEXT)
    level: LogLevel = option("The least that is written.", default=LogLevel.INFO)
    file: str = option("A file instead of standard error.", default="", shown='""')


@section
class Metrics:
    """Figures for a monitoring system."""

    file: Path | None = option(
        "A file for the textfile collector of Prometheus's node exporter, replaced in one step; its name ends with "
        "`.prom`, and the directory exists.",
        default=None,
        shown="none is written",
        allowed="a name that ends with .prom",
        check=lambda path: path is None or path.suffix == ".prom",
        sample='"/var/lib/prometheus/node-exporter/siteagent.prom"',
    )


@section
class Configuration:
    """The whole of siteagent.toml."""

    hostname: str = option(
        "Our name in EHLO, banner and Received. DNS is never asked for it.",
        default="",
        shown="the host's own name if it holds a dot, else the address literal",
        sample='"mail.office.example"',
    )
    state_directory: Path | None = option(
        "Spool, journal, lock, requests and status.json.",
        default=None,
        shown="`$STATE_DIRECTORY`, else the system's place for it",
        sample='"/var/lib/siteagent"',
    )
    link: Link = option("", factory=Link)
    provider: tuple[Provider, ...] = option("", default=())
    windows: Windows = option("", factory=Windows)
    listener: Listener = option("", factory=Listener)
    limits: Limits = option("", factory=Limits)
    delivery: Delivery = option("", factory=Delivery)
    mailbox: tuple[Mailbox, ...] = option("", default=())
    hooks: Hooks = option("", factory=Hooks)
    journal: Journal = option("", factory=Journal)
    log: Log = option("", factory=Log)
    metrics: Metrics = option("", factory=Metrics)

    @property
    def ask_only(self) -> bool:
        """Layout B: another server receives; we only ask. By ATRN the mail comes to us even without a listener."""
        return not self.listener.listen and all(provider.method is not Method.ATRN for provider in self.provider)


# --- the tables of hub.toml -------------------------------------------------------------------------------------------


class Undeliverable(StrEnum):
    HOLD = "hold"
    BOUNCE = "bounce"


@section
class Odmr:
    """Where sites come to fetch by ATRN."""

    listen: tuple[Endpoint, ...] = option(
        "Where to listen for ATRN. `[]`: nowhere.",
        default=(),
        shown="[]",
        allowed='a list of addresses with a port, such as "0.0.0.0:366"',
    )
    listen_tls: tuple[Endpoint, ...] = option(
        "The same, with TLS from the first byte.",
        default=(),
        shown="[]",
        allowed='a list of addresses with a port, such as "0.0.0.0:367"',
        tentative=True,
    )


@section
class Node:
    """One site: what is accepted for it, and how it gets it."""

    name: str = option(
        "The name that the site asks for.", sample='"office.example"', allowed="a name without blanks", check=_node_name
    )
    domains: tuple[str, ...] = option(
        "Mail accepted for it; `*.office.example` takes every subdomain.",
        sample='["office.example"]',
        allowed="a list of at least one domain",
        check=bool,
    )
    recipients: tuple[str, ...] | None = option(
        "The addresses that exist; others are refused.",
        default=None,
        shown="all of the domains",
        sample='["alice@office.example"]',
    )
    recipients_file: Path | None = option("The same, one a line.", default=None, sample='"office.recipients"')
    deliver_to: str | None = option(
        "Where ETRN pushes to, `HOST:PORT`; never the address of the asker.",
        default=None,
        shown="ATRN only",
        sample='"office.example:25"',
    )
    push_every_seconds: float = option(
        "Push unasked so often, while something waits: for a site whose line is always there. 0: only when asked.",
        default=0.0,
        shown="0",
        allowed="0, or a number of seconds from 10 on",
        check=_push_every,
        tentative=True,
    )
    max_connections: int = option("Of one push.", default=5, allowed="from 1 to 50", check=lambda v: 1 <= v <= 50)
    account: str | None = option(
        "The name to log in with; ATRN always needs it.",
        default=None,
        sample='"office"',
        allowed="a name of at least one character",
        check=bool,
    )
    password_file: Path | None = option("A file that holds its password.", default=None, sample='"office.password"')
    certificate_file: Path | None = option(
        "The certificate that the site shows, PEM; AUTH EXTERNAL then needs no password.",
        default=None,
        sample='"office.pem"',
        tentative=True,
    )
    etrn_without_auth: bool = option("Anyone may start this node's queue, as RFC 1985 has it.", default=False)
    retain_days: int = option("Then a non-delivery notice goes to the sender.", default=30, allowed=DAYS, check=_days)
    max_queue_bytes: int = option(
        "What may wait for it.", default=1_000_000_000, shown="1_000_000_000", allowed="1 or more", check=_positive
    )
    undeliverable: Undeliverable = option(
        "What becomes of a message that the site answers with 5yz.", default=Undeliverable.HOLD
    )


@section
class Notices:
    """Non-delivery notices."""

    relay: str | None = option(
        "Where they leave by, `HOST:PORT`.",
        default=None,
        shown="what expires is held and shown",
        sample='"smtp.example:25"',
    )


@section
class HubConfiguration:
    """The whole of hub.toml."""

    hostname: str = option("As in siteagent.toml.", default="", shown="the host's own name", sample='"hub.example"')
    state_directory: Path | None = option(
        "What is held, and the journal: mail.",
        default=None,
        shown="`$STATE_DIRECTORY`, else the system's place for it",
        sample='"/var/lib/siteagent-hub"',
    )
    listener: Listener = option("", factory=Listener)
    odmr: Odmr = option("", factory=Odmr)
    limits: Limits = option("", factory=Limits)
    node: tuple[Node, ...] = option("", default=())
    notices: Notices = option("", factory=Notices)
    log: Log = option("", factory=Log)
