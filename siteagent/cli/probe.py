"""`probe`: what a provider is and can, seen from here, and which layout that makes. Needs no configuration."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from siteagent.cli.context import Context
from siteagent.config import files, names
from siteagent.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from siteagent.doctor.probing import Probe, Seen


@click.command("probe")
@click.argument("wanted", metavar="DOMAIN|HOST")
@click.option(
    "--port", "ports", multiple=True, type=click.IntRange(1, 65535), help="Look at this port instead. Repeatable."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.pass_obj
def probe(context: Context, wanted: str, ports: tuple[int, ...], as_json: bool) -> int:
    """Look at a mail domain or a server: can it hold mail for you and send it when asked?

    Nothing is sent and no queue is started. Tells which ports get out, what stands there and what it offers, what kind
    of address you have, and one verdict: layout A (it connects to you), B (you receive, it is your backup), C (nobody
    can connect to you), or that this provider cannot do it. Exit code 0 where there is a layout, 69 where there is
    none, 75 where it cannot be told now.
    """
    from siteagent.doctor.probing import verdict

    if names.host(wanted) is None:
        raise UsageError(f"cannot probe {wanted!r}", "it is no name of a domain or host", fix="give office.example")
    if not as_json:
        context.talk(f"looking at {wanted} ...")
    found = looked_at(wanted, ports=ports)
    layout, sentences = verdict(found)
    context.out(json.dumps(found.document(), ensure_ascii=False) if as_json else "\n".join(picture(found)))
    if not as_json:
        label = click.style(sentences[0], bold=True, fg="green" if layout else "yellow")
        context.out("\n".join(["", label, *(f"  {row}" for row in sentences[1:])]))
    if layout is not None:
        return ExitCode.DONE
    return ExitCode.TEMPORARY if sentences[0].startswith("cannot tell") else ExitCode.UNAVAILABLE


def looked_at(wanted: str, *, ports: Sequence[int] = ()) -> Probe:
    """The whole look, from this host."""
    from siteagent.doctor import probing
    from siteagent.link.backend import standard_oracle

    oracle = standard_oracle(lambda text: None)

    def source_to(addresses: Sequence[str]) -> str | None:
        try:
            ways = oracle.lines(addresses)
        except OSError:
            return None
        return ways[0].source if ways else None

    hostname = files.own_hostname()
    return asyncio.run(
        probing.probe(wanted, hostname=hostname, source_to=source_to, ports=tuple(ports) or probing.PORTS)
    )


def picture(found: Probe) -> list[str]:
    """What was seen, one row a port."""
    rows = []
    if found.mx:
        rows.append(f"MX       {', '.join(found.mx)}")
    for host, addresses in found.hosts.items():
        rows.append(f"address  {host}: {', '.join(addresses)}{' (this host)' if host in found.ours else ''}")
    if found.source:
        rows.append(f"here     {found.source}, {_KINDS[found.kind]}")
    rows += [f"port     {seen.host}:{seen.port:<5} {_port(seen)}" for seen in found.seen]
    return rows


_KINDS = {
    "public": "a public address",
    "private": "a private address: a router stands between",
    "shared": "shared by the carrier (CGNAT): nobody can connect to it",
    "loopback": "loopback",
    "reserved": "no address that others can use",
}


def _port(seen: Seen) -> str:
    found = seen.survey
    if found is None:
        return f"closed: {seen.why}"
    if found.error is not None:
        return f"open, then: {found.error.why}"
    offers = [
        word
        for word, there in (
            ("ETRN", seen.etrn),
            ("ATRN", seen.atrn),
            ("STARTTLS", "starttls" in found.features or found.encrypted),
            (f"AUTH {found.features.get('auth', '')}".strip(), "auth" in found.features),
        )
        if there
    ]
    return f"{found.software or 'open'}: {', '.join(offers) or 'neither ETRN nor ATRN'}"
