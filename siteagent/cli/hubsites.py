"""``siteagent hub add-node`` and ``show-node``: a new site at our hub, and what it is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from siteagent.cli.context import Context
from siteagent.errors import CannotCreate, ExitCode, UsageError
from siteagent.inbound.holder import holder_of

if TYPE_CHECKING:
    from pathlib import Path

    from siteagent.cli.onboarding import Site
    from siteagent.config.sections import HubConfiguration


@click.command("add-node", short_help="Add a site, and print what it must set up.")
@click.argument("name")
@click.option("--domain", "domains", multiple=True, metavar="DOMAIN", help="Mail for it is held (default: NAME).")
@click.option("--deliver-to", metavar="HOST:PORT", help="Where ETRN pushes to.")
@click.option("--atrn", is_flag=True, help="The site fetches by ATRN: nobody can connect to it.")
@click.option("--account", metavar="NAME", help="The name to log in with (default: made from NAME).")
@click.option("--hostname", metavar="NAME", help="The hub's own name in DNS: for the first site, which makes the file.")
@click.option("--behind", type=click.Choice(["postfix"]), help="Also print how the mail server in front is set up.")
@click.pass_obj
def add_node(
    context: Context,
    name: str,
    domains: tuple[str, ...],
    deliver_to: str | None,
    atrn: bool,
    account: str | None,
    hostname: str | None,
    behind: str | None,
) -> int:
    """Add a site: writes its table and its password, and prints the site's configuration and the DNS records.

    The first one also makes hub.toml. With --hostname it is ready to run: on port 25, unless --behind says or shows
    that another mail server has it, and with a certificate of its own (by openssl).
    """
    from siteagent.cli.newhub import NewHub
    from siteagent.cli.onboarding import Site, add

    if atrn == (deliver_to is not None):
        raise UsageError(
            f"cannot add {name}",
            "its way of getting the mail is not said" if not atrn else "it has two ways of getting the mail",
            fix="give --deliver-to HOST:PORT where the hub can connect to it, or else --atrn; one of the two",
        )
    path = context.path(hub=True)
    if hostname is not None:
        _judge_hostname(name, hostname, path)
    site = Site(name=name, domains=domains or (name,), deliver_to=deliver_to, account=account)
    new = NewHub(hostname, alone=hostname is not None and behind is None and holder_of(25) is None)
    try:
        configuration, password_file = add(path, site, new)
    except OSError as error:
        raise CannotCreate(f"cannot write {path}", (error.strerror or str(error)).lower()) from error
    context.talk(f"added {name} to {path}; its password is in {password_file}")
    context.talk("A running hub takes it in by itself.")
    _print_site(context, configuration, site, password_file.read_text().strip(), behind=behind)
    return int(ExitCode.DONE)


def _judge_hostname(name: str, hostname: str, path: Path) -> None:
    from siteagent.config import names

    if names.host_name(hostname) is None:
        why = f"--hostname {hostname!r} is no name of a host"
        raise UsageError(f"cannot add {name}", why, fix="give the hub's name in DNS, such as hub.example")
    if path.exists():
        why = f"--hostname is for the first site, and {path} is there already"
        raise UsageError(f"cannot add {name}", why, fix=f'set hostname = "{hostname}" in that file')


@click.command("show-node", short_help="Print again what a site must set up.")
@click.argument("name")
@click.option("--behind", type=click.Choice(["postfix"]), help="Also print how the mail server in front is set up.")
@click.pass_obj
def show_node(context: Context, name: str, behind: str | None) -> int:
    """Print again what `hub add-node` printed of a site, as hub.toml has it by now: its configuration, DNS records."""
    from siteagent.cli.onboarding import Site

    configuration = context.configuration(hub=True)
    node = next((each for each in configuration.node if each.name == name), None)
    if node is None:
        known = ", ".join(each.name for each in configuration.node) or "none"
        raise UsageError(f"cannot show {name}", "there is no site of that name", fix=f"known: {known}")
    password = "ITS-PASSWORD"
    if node.password_file is not None:
        try:
            password = node.password_file.read_text("utf-8").strip()
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            context.alarm(f"note: {node.password_file}: {why}; put the password in yourself")
    _print_site(context, configuration, Site.of(node), password, behind=behind)
    return int(ExitCode.DONE)


def _print_site(
    context: Context, configuration: HubConfiguration, site: Site, password: str, *, behind: str | None
) -> None:
    from siteagent.cli.onboarding import postfix_recipe, records, site_configuration

    context.out(site_configuration(configuration, site, password))
    context.out(records(configuration, site))
    if behind == "postfix":
        context.out(postfix_recipe(configuration, site))
    lacks = site.missing(configuration)
    for warning in lacks:
        context.alarm(f"note: {warning}")
    if lacks:
        context.alarm(f"then: `siteagent hub show-node {site.name}` prints the lines above anew")
