"""``siteagent check`` and ``siteagent recipients``: what the configuration says, and whether it can work."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click

from siteagent.cli.context import Context
from siteagent.config import files, names, paths
from siteagent.config.draft import Problems
from siteagent.config.sections import Configuration, Delivery, HubConfiguration, Mailbox, Method, Provider, Tls
from siteagent.errors import UsageError


@click.command()
@click.option("--hub", is_flag=True, help="Check the hub's configuration.")
@click.pass_obj
def check(context: Context, hub: bool) -> None:
    """Read the configuration and tell every problem of it at once.

    Works offline: the file itself, and the paths and permissions that it depends on. Run as root, it looks as the
    user whom the agent runs as.
    """
    path = context.path(hub=hub)
    context.out(checked(path, hub=hub))
    if not hub:
        for note in notes(context.configuration()):
            context.talk(f"note: {note}")


def checked(path: Path, *, hub: bool = False) -> str:
    """A summary of the configuration in `path`, which has no problem.

    Raises what `files.load` raises; Problems also for what is wrong on the disk.
    """
    value: Configuration | HubConfiguration | None
    value, draft = files.survey(path, kind=HubConfiguration) if hub else files.survey(path, kind=Configuration)
    who = paths.inspect(path, value, draft) if value is not None else ""
    if value is None or draft.problems:
        raise Problems(str(path), draft.problems)
    rows = _hub_summary(value) if isinstance(value, HubConfiguration) else _summary(value)
    width = max(len(label) for label, _ in rows)
    lines = [f"  {label:<{width}}  {text}" for label, text in rows]
    return "\n".join([f"ok: {path} (files looked at as {who})", *lines])


def _summary(value: Configuration) -> list[tuple[str, str]]:
    rows = [("hostname", value.hostname), ("state", str(value.state_directory))]
    rows += [("provider", _provider_in_words(provider, ask_only=value.ask_only)) for provider in value.provider]
    listening = ", ".join(str(endpoint) for endpoint in value.listener.listen)
    tls = " with STARTTLS" if value.listener.tls_certificate and listening else ""
    rows.append(("listener", (listening or "none: ask-only" if value.ask_only else listening or "none") + tls))
    for mailbox in value.mailbox:
        reader = f", read by {mailbox.reader}" if mailbox.reader else ""
        rows.append(("mailbox", f"{mailbox.name}: {', '.join(mailbox.addresses)} -> {mailbox.maildir}{reader}"))
    if value.mailbox:
        rows.append(("unknown", f"mail for unknown names: {value.delivery.unknown_recipient}"))
    return rows


def _provider_in_words(provider: Provider, *, ask_only: bool) -> str:
    login = f", as {provider.username}" if provider.username else ""
    peers = f"; may connect: {', '.join(provider.peers) or f'the addresses of {provider.host}'}"
    if ask_only or provider.method is Method.ATRN:
        peers = ""  # nobody connects to us
    return (
        f"{provider.name}: {provider.method.value} for {', '.join(provider.nodes)} at {provider.host}:{provider.port}, "
        f"TLS {provider.tls.value}{login}{peers}"
    )


def _hub_summary(value: HubConfiguration) -> list[tuple[str, str]]:
    rows = [("hostname", value.hostname), ("state", str(value.state_directory))]
    rows.append(("mail in", ", ".join(str(endpoint) for endpoint in value.listener.listen) or "none"))
    rows.append(("atrn", ", ".join(str(endpoint) for endpoint in value.odmr.listen) or "none"))
    for node in value.node:
        way = f"-> {node.deliver_to}" if node.deliver_to else "by ATRN alone"
        rows.append(("node", f"{node.name}: {', '.join(node.domains)} {way}"))
    if value.notices.relay is None:
        rows.append(("notices", "none: mail that expires is held and shown"))
    return rows


def notes(value: Configuration) -> list[str]:
    """What is allowed, and probably not meant."""
    out = []
    for provider in value.provider:
        at = f"provider {provider.name}"
        if not provider.peers and provider.method is not Method.ATRN and not value.ask_only:
            out.append(f"{at}: no `peers`: many providers send from other addresses than the one that is asked")
        if (provider.tls_fingerprint or provider.tls_ca_file) and not provider.tls.verified:
            out.append(f'{at}: tls = "{provider.tls.value}" verifies nothing; "required" does')
        if provider.tls is Tls.IMPLICIT and provider.port == 25:
            out.append(f"{at}: TLS from the first byte is spoken on port 465, seldom on 25")
    if value.delivery.unknown_recipient == "defer" and value.mailbox:
        out.append('mail for unknown names waits at the provider; set unknown_recipient = "reject" once all works')
    return out


# --- recipients -------------------------------------------------------------------------------------------------------


@click.command()
@click.option(
    "--format",
    "form",
    type=click.Choice(["plain", "postfix", "exim"]),
    default="plain",
    show_default=True,
    help="plain: one a line; postfix: a relay_recipient_maps table; exim: a file for an address list.",
)
@click.pass_obj
def recipients(context: Context, form: str) -> None:
    """Print every valid address, for the provider's recipient check.

    `@domain` (for Exim `*@domain`) stands for every name of a domain.
    """
    value = context.configuration()
    if value.ask_only and not value.mailbox:
        why = "another mail server receives here (`listen = []`), and it alone knows them"
        raise UsageError("cannot list the addresses", why, fix="take the list from that server")
    for address in valid_addresses(value.delivery, value.mailbox):
        context.out(_formatted(address, form))
    separator = value.delivery.subaddress_separator
    if separator and value.mailbox:
        context.talk(f"note: name{separator}anything is valid too, wherever name is")


def valid_addresses(delivery: Delivery, mailboxes: Iterable[Mailbox]) -> list[str]:
    """Every address that is taken, folded; ``@domain`` where all of a domain is, and then no other of it."""
    addresses = [folded for box in mailboxes for text in box.addresses if (folded := names.mail_address(text))]
    written = delivery.domains if delivery.domains is not None else [a.rpartition("@")[2] for a in addresses]
    domains = list(dict.fromkeys(folded for text in written if (folded := names.mail_domain(text))))
    whole = {address[1:] for address in addresses if address.startswith("@")}
    if delivery.unknown_recipient not in ("reject", "defer"):
        whole.update(domains)
    out = [f"@{domain}" for domain in domains if domain in whole]
    # RFC 5321 §4.5.1: postmaster is an address of every domain, whether anybody wrote it down or not.
    out += [address for address in addresses if address.rpartition("@")[2] not in whole]
    out += [f"postmaster@{domain}" for domain in domains if domain not in whole and addresses]
    return list(dict.fromkeys(out))


def _formatted(address: str, form: str) -> str:
    if form == "postfix":
        return f"{address} OK"  # relay_recipient_maps: the value is not used, but must be there
    if form == "exim" and address.startswith("@"):
        return f"*{address}"
    return address
