"""`provider-sheet`: what to send to the provider, so that it holds the mail until asked and never returns it.

The settings of Postfix are those that were run against the agent; docs/providers.md says what each server does.
"""

from __future__ import annotations

import click

from siteagent.cli.context import Context
from siteagent.cli.setup import valid_addresses
from siteagent.config.sections import Configuration, Method, Provider
from siteagent.errors import UsageError

_FORMS = ("text", "postfix", "exim", "sendmail")


@click.command("provider-sheet")
@click.argument("provider", required=False, metavar="[PROVIDER]")
@click.option(
    "--for", "form", type=click.Choice(_FORMS), default="text", show_default=True, help="The provider's mail server."
)
@click.pass_obj
def provider_sheet(context: Context, provider: str | None, form: str) -> None:
    """Print what to send to the provider.

    As text for people, or with the settings of its mail server: which domains it relays, that it holds the mail until
    asked, which addresses exist, and what must never happen to our name in DNS.
    """
    value = context.configuration()
    known = {each.name: each for each in value.provider}
    if provider is not None and provider not in known:
        raise UsageError("cannot print a sheet", f"there is no provider {provider}", fix=f"known: {', '.join(known)}")
    chosen = known[provider] if provider is not None else value.provider[0]
    context.out("\n".join(sheet(value, chosen, form)))
    if chosen.reached_as is None and chosen.method is not Method.ATRN:
        context.talk("note: set reached_as of the provider to the name by which it finds you; the sheet then has it")


def sheet(value: Configuration, provider: Provider, form: str) -> list[str]:
    """The lines of the sheet."""
    rows = [*_text(value, provider)]
    if form != "text":
        rows += ["", *{"postfix": _postfix, "exim": _exim, "sendmail": _sendmail}[form](value, provider)]
    return rows


def domains(value: Configuration) -> list[str]:
    written = value.delivery.domains
    if written is None:
        written = tuple(a.rpartition("@")[2] for box in value.mailbox for a in box.addresses)
    return list(dict.fromkeys(written)) or [node.lstrip("@#") for provider in value.provider for node in provider.nodes]


def _place(value: Configuration, provider: Provider) -> tuple[str, int]:
    """Where the provider sends to: name or a placeholder, and port."""
    ports = [endpoint.port for endpoint in value.listener.listen if endpoint.port]
    return provider.reached_as or "OUR-NAME-OR-ADDRESS", ports[0] if ports else 25


def _text(value: Configuration, provider: Provider) -> list[str]:
    backup = value.ask_only  # layout B: our own server is the MX, and this one its backup
    rows = [
        f"To the postmaster of {provider.host}:",
        "",
        *_wish(value, provider, backup=backup),
        "",
        *(_BACKUP if backup else _ALONE),
        "- Keep what you cannot deliver as long as you can (30 days is good; 5 are the usual minimum). Send no",
        "  non-delivery notice before that: that we are not there is the normal case.",
        "- Hold the mail until we ask: do not try every few minutes, which costs both of us.",
        "- Refuse addresses that do not exist while their sender is still connected"
        + ("." if backup else "; the list is below."),
        "  What you take and we must refuse becomes a notice to a stranger.",
        "- Do not return what is answered 4yz by us: we answer so when a disk is full, and when a message must wait.",
    ]
    if provider.method is not Method.ATRN:
        rows += _reaching(_place(value, provider)[0], listed=not backup)
    if backup:
        return [*rows, "", "Addresses that exist: as our mail server has them; we send the list with this."]
    addresses = [f"  {address}" for address in valid_addresses(value.delivery, value.mailbox)] or ["  (all)"]
    return [*rows, "", "Addresses that exist:", *addresses]


_ALONE = ["- Relay these domains to us, and to nobody else: no other MX than yours may take their mail away."]
_BACKUP = ["- Relay these domains to our server alone, as its backup MX: what you hold goes to us and to nobody else."]


def _wish(value: Configuration, provider: Provider, *, backup: bool) -> list[str]:
    names, (host, port) = ", ".join(domains(value)), _place(value, provider)
    if backup:
        rows = [
            f"Please be the backup for the mail of {names}: take it while our own server is away. Our line comes and",
            "goes; when it is there, our mail agent",
        ]
    else:
        rows = [f"Please hold the mail of {names} for us. Our line comes and goes; when it is there, our mail agent"]
    if provider.method is Method.ATRN:
        login = f' as "{provider.username}"' if provider.username else ""
        return [
            *rows,
            f"connects to {provider.host}, port {provider.port}, logs in{login}"
            f" and fetches it by ATRN (RFC 2645) for: {', '.join(provider.nodes)}.",
        ]
    takes = f"and our mail server takes it at {host}, port 25." if backup else f"and takes it at {host}, port {port}."
    return [
        *rows,
        f"asks {provider.host}, port {provider.port}, by ETRN (RFC 1985) for: {', '.join(provider.nodes)}",
        takes + ("" if backup else _offers(value)),
    ]


def _reaching(host: str, *, listed: bool) -> list[str]:
    """How we are found. `listed`: connections from other networks than those they told us of are turned away."""
    rows = [
        f"- Our name {host} always exists in DNS. Never remove it, never park it on 127.0.0.1 while we are away:",
        "  mail would come back to its senders at once. It keeps our last address, with a TTL of a minute.",
    ]
    if listed:
        rows.append(
            "- Tell us every network that you send from, and tell us before it changes: others are turned away."
        )
    return rows


def _offers(value: Configuration) -> str:
    last = " and STARTTLS." if value.listener.tls_certificate else "."
    return f" It offers PIPELINING, CHUNKING, 8BITMIME, SMTPUTF8{last}"


def _postfix(value: Configuration, provider: Provider) -> list[str]:
    names, (host, port) = domains(value), _place(value, provider)
    inline = ", ".join(f"{name}=site:[{host}]:{port}" for name in names)
    return [
        "Postfix, main.cf (3.0 and later):",
        "",
        f"  relay_domains = {', '.join(names)}",
        "  fast_flush_domains = $relay_domains",
        "  relay_recipient_maps = texthash:/etc/postfix/site-recipients",
        f"  transport_maps = inline:{{{inline}}}",
        "  defer_transports = site",
        "  site_destination_concurrency_limit = 4",
        "  smtp_tls_connection_reuse = yes",
        "  maximal_queue_lifetime = 30d",
        "",
        "master.cf:",
        "",
        "  site  unix  -  -  n  -  -  smtp",
        "",
        "/etc/postfix/site-recipients is the output of `siteagent recipients --format postfix`. ETRN names domains",
        "exactly: subdomains must stand in the list and be asked for by their own name. After a change of these lines",
        "run `postfix reload` and once `sendmail -q`.",
    ]


def _exim(value: Configuration, provider: Provider) -> list[str]:
    names, (host, port) = domains(value), _place(value, provider)
    return [
        "Exim 4, main section:",
        "",
        f"  domainlist site_domains = {' : '.join(names)}",
        "  queue_smtp_domains = +site_domains",
        "  acl_smtp_etrn = site_etrn",
        # What a peer said may not become an argument (taint, since 4.94); the entry of a list that it matches may.
        f'  smtp_etrn_command = /usr/sbin/exim -R "${{if inlisti{{$domain}}{{{" : ".join(names)}}}{{$value}}fail}}"',
        "",
        "routers, before the one for all other domains:",
        "",
        "  site:",
        "    driver = manualroute",
        "    domains = +site_domains",
        f"    route_list = * {host}::{port} byname",
        "    transport = remote_smtp",
        "",
        "ACLs (and add +site_domains to relay_to_domains, with /etc/exim4/site-recipients for its recipients):",
        "",
        "  site_etrn:",
        "    accept hosts = THE-ADDRESSES-OF-THE-SITE",
        "    accept authenticated = *",
        "    deny",
        "",
        "retry, before the general rule: keep it for 30 days, and forget dynamic addresses",
        "",
        *(f"  {name}  *  F,30d,1h" for name in names),
        "",
        "and in the transport `retry_include_ip_address = false`. Without smtp_etrn_command Exim knows only the form",
        f'"#name": then set nodes = ["#{names[0]}"] here. Leave message_size and DKIM signing out of this transport.',
    ]


def _sendmail(value: Configuration, provider: Provider) -> list[str]:
    names, (host, port) = domains(value), _place(value, provider)
    return [
        "Sendmail 8, sendmail.mc:",
        "",
        "  FEATURE(`mailertable')dnl",
        "  define(`confTO_QUEUERETURN', `30d')dnl",
        "  define(`confTO_QUEUEWARN', `15d')dnl",
        *([f"  define(`DSMTP_MAILER_ARGS', `TCP $h {port}')dnl"] if port != 25 else []),
        "",
        "mailertable (then makemap); dsmtp is the mailer that waits for ETRN:",
        "",
        *(f"  {name}\tdsmtp:[{host}]" for name in names),
        "",
        "relay-domains:",
        "",
        *(f"  {name}" for name in names),
        "",
        "ETRN must not be in PrivacyOptions (noetrn). Ask for at most six names on a connection.",
    ]
