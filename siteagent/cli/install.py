"""`install-service` and `uninstall-service`: a service of this host, from where the program lies now."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from siteagent.cli.context import Context
from siteagent.config.sections import Configuration, HubConfiguration
from siteagent.errors import ConfigurationError, ExitCode, PermissionProblem, UsageError

if TYPE_CHECKING:
    from siteagent.host.install import Plan

_ROOT_HELP = "Write below DIR and run nothing: for packages and images."


@click.command("install-service")
@click.option("--dry-run", is_flag=True, help="Say what would be written and run; -v prints the files too.")
@click.option("--root", type=click.Path(path_type=Path, readable=False), metavar="DIR", help=_ROOT_HELP)
@click.option(
    "--hooks",
    default="auto",
    show_default=True,
    metavar="auto|none|LIST",
    help="Which programs tell of a new line: networkmanager, ppp, networkd, ifupdown, with commas.",
)
@click.option("--hub", is_flag=True, help="Install the hub instead of the agent.")
@click.pass_obj
def install_service(context: Context, dry_run: bool, root: Path | None, hooks: str, hub: bool) -> int:
    """Install siteagent as a service that starts at boot, with hooks that wake it when the line comes up.

    On Linux units of systemd, run by the user `siteagent`; on Windows tasks of the Task Scheduler. May be repeated:
    after changing Maildirs, readers, ports or `open` it should be.
    """
    if sys.platform == "win32":
        return _install_on_windows(context, dry_run=dry_run, root=root, hub=hub)
    else:
        from siteagent.cli.completion import completions
        from siteagent.cli.manual import pages
        from siteagent.host import install

        value, source = _configured(context, hub=hub, needed=root is None and not dry_run)
        wishes = install.Wishes(
            interpreter=install.Interpreter.ours(),
            hooks=install.named_hooks(hooks),
            root=root.absolute() if root is not None else None,
            hub=hub,
            shared={**{f"man/{place}": text for place, text in pages().items()}, **completions()},
            configuration=value,
            source=source,
        )
        made = install.plan(wishes)
        if dry_run:
            _show(context, made)
            return ExitCode.DONE
        if root is None:
            _refuse_without_systemd()
        install.write(made, wishes.root)
        for file in made.files:
            context.detail(f"wrote {file.path}")
        for note in made.notes:
            context.talk(f"note: {note}")
        if root is not None:
            context.out(f"wrote {len(made.files)} files below {root}; on the host itself, run then:")
            for command in made.commands:
                context.out(f"  {shlex.join(command.argv)}")
            return ExitCode.DONE
        install.run(made.commands, context.talk)
        context.out("\ninstalled, and running. next:")
        context.out(f"  {'siteagent hub status' if hub else 'siteagent doctor'}   # is everything as it should be?")
        context.out("  journalctl -u siteagent" + ("-hub" if hub else "") + "   # the log")
        return ExitCode.DONE


@click.command("uninstall-service")
@click.option("--dry-run", is_flag=True, help="Say what would be removed and run.")
@click.option(
    "--root", type=click.Path(path_type=Path, readable=False), metavar="DIR", help="Remove below DIR, and run nothing."
)
@click.option("--hub", is_flag=True, help="Remove the hub's.")
@click.pass_obj
def uninstall_service(context: Context, dry_run: bool, root: Path | None, hub: bool) -> int:
    """Take away what install-service put in place. Mail, configuration, state and users stay."""
    if sys.platform == "win32":
        return _uninstall_on_windows(context, dry_run=dry_run, hub=hub)
    else:
        from siteagent.host import install

        base = root.absolute() if root is not None else None
        made = install.removal(hub=hub, root=base)
        if dry_run:
            _show(context, made)
            return ExitCode.DONE
        if root is None:
            _refuse_without_systemd()
            install.run(made.commands, context.talk)
        install.remove(made, base)
        if root is None:
            install.run(
                [install.Command(("systemctl", "daemon-reload"), "systemd forgets them", quietly=True)], context.talk
            )
        context.out(f"removed {len(made.removed)} files")
        for note in made.notes:
            context.talk(f"note: {note}")
        return ExitCode.DONE


def _configured(
    context: Context, *, hub: bool, needed: bool
) -> tuple[Configuration | HubConfiguration | None, Path | None]:
    """The configuration that the service will use, where there is one. Raises what `files.load` raises."""
    path = context.path(hub=hub).absolute()
    if not needed and not path.exists():
        return None, None
    value: Configuration | HubConfiguration
    try:
        value = context.configuration(hub=True) if hub else context.configuration()
    except ConfigurationError as error:
        if not path.exists() and error.fix is not None:
            error.fix = "run `siteagent init` as root first: the service is installed for its configuration"
        raise
    from siteagent.host.grants import below, in_a_home
    from siteagent.host.install import TEMPORARY

    # Written for another root it may be a copy that lies here for the moment.
    if in_a_home(path) or (needed and below(path, TEMPORARY)):
        raise UsageError(
            "cannot install the service",
            f"its configuration is {path}, which services cannot see",
            fix="move it to /etc/siteagent/, or give --config FILE",
        )
    return value, path


def _refuse_without_systemd() -> None:
    if not Path("/run/systemd/system").is_dir():
        raise UsageError(
            "cannot install the service",
            "this host was not started by systemd",
            fix="have your init run `siteagent run` as a user of its own, or use --root DIR to write the files only",
        )
    if sys.platform != "win32" and os.geteuid() != 0:
        raise PermissionProblem("cannot install the service", "that takes root", fix="run it with sudo, or --dry-run")


def _show(context: Context, made: Plan) -> None:
    for path in made.removed:
        context.out(f"remove {path}")
    for file in made.files:
        context.out(f"write  {file.path}  {file.mode:04o}")
        if context.verbose:
            context.out("".join(f"    {row}\n" for row in file.text.splitlines()))
    for command in made.commands:
        context.out(f"run    {shlex.join(command.argv)}  # {command.why}")
    for note in made.notes:
        context.talk(f"note: {note}")


# --- Windows ----------------------------------------------------------------------------------------------------------


def _install_on_windows(context: Context, *, dry_run: bool, root: Path | None, hub: bool) -> int:
    from siteagent.host import windows

    made = windows.plan(Path(sys.executable), configuration=context.path(hub=hub).absolute(), hub=hub)
    if dry_run:
        for name in made.files:
            context.out(f"write  {name}")
        for command in made.commands:
            context.out(f"run    {windows.shown(command)}")
        return ExitCode.DONE
    windows.write(made, root or made.directory)
    if root is None:
        windows.run(made.commands, context.talk, directory=made.directory)
        context.out("installed, and running. next:\n  siteagent doctor   # is everything as it should be?")
    return ExitCode.DONE


def _uninstall_on_windows(context: Context, *, dry_run: bool, hub: bool) -> int:
    from siteagent.host import windows

    for command in windows.removal(hub=hub):
        context.out(f"run    {windows.shown(command)}")
    if not dry_run:
        windows.run(windows.removal(hub=hub), context.talk)
    return ExitCode.DONE
