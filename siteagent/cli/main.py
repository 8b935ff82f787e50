"""The command line: global options, the table of commands, and how errors end.

A command's module is imported when that command is called, not before: ``siteagent status`` pays for nothing that
the demo needs. Commands return an exit code (or None for 0) and raise `SiteAgentError`; `main` says it and ends with
its code. The global options are taken before and behind the command's name.
"""

from __future__ import annotations

import errno
import gc
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from siteagent import __version__
from siteagent.cli.context import Context
from siteagent.errors import ExitCode, PermissionProblem, SiteAgentError, StorageError, UsageError

__all__ = ["COMMANDS", "Context", "group", "main"]

INTERRUPTED = 130  # 128 + SIGINT, as shells say it
BROKEN_PIPE = 141  # 128 + SIGPIPE: whoever read our output left

# click 8.2 and later: a group without a command is answered by its help.
_NO_ARGUMENTS: type[click.ClickException] | tuple[()] = getattr(click.exceptions, "NoArgsIsHelpError", ())

# Name -> where it lives, and its line in --help. In the order in which people meet them.
COMMANDS: Mapping[str, tuple[str, str]] = {
    "demo": ("siteagent.cli.demo:demo", "See the whole way of the mail, in five seconds and without a network."),
    "probe": ("siteagent.cli.probe:probe", "Look at a provider: can it hold mail and send it when asked?"),
    "init": ("siteagent.cli.init:init", "Write a configuration from a few questions."),
    "check": ("siteagent.cli.setup:check", "Read the configuration and tell every problem of it, offline."),
    "run": ("siteagent.cli.service:run", "Run the agent, in the foreground."),
    "ask": ("siteagent.cli.ask:ask", "Ask the providers now and wait until the mail is there."),
    "test": ("siteagent.cli.trial:test", "Send a message to ourselves by the provider and follow it."),
    "link-up": ("siteagent.cli.service:link_up", "Tell a running agent to look at the network again."),
    "status": ("siteagent.cli.status:status", "Does mail flow? One screen."),
    "queue": ("siteagent.cli.status:queue", "Mail that was accepted and waits to be filed."),
    "history": ("siteagent.cli.status:history", "The rounds so far, and what each brought."),
    "doctor": ("siteagent.cli.doctor:doctor", "Look whether mail can flow; of what cannot, say why and what to do."),
    "mailbox": ("siteagent.cli.mailbox:mailbox", "Add a mailbox to the configuration, or list them."),
    "recipients": ("siteagent.cli.setup:recipients", "Every valid address, for the provider's recipient check."),
    "provider-sheet": ("siteagent.cli.sheet:provider_sheet", "What to send to the provider."),
    "install-service": ("siteagent.cli.install:install_service", "Install the service that starts at boot."),
    "uninstall-service": ("siteagent.cli.install:uninstall_service", "Take the service away; mail stays."),
    "hub": ("siteagent.cli.hub:hub", "The provider half: hold mail for sites and release it on ETRN."),
}


class LazyGroup(click.Group):
    """A group whose commands are rows of a table, imported when called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        try:
            command: click.Command = getattr(import_module(module), attribute)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
            raise click.UsageError(f"the command {cmd_name} is not part of this installation", ctx) from None
        finally:
            gc.enable()  # `__main__` switched it off for the imports
        _take_global_options(command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from difflib import get_close_matches

            close = get_close_matches(args[0], COMMANDS, n=1)
            guess = f"; did you mean {close[0]}?" if close else ""
            raise click.UsageError(f"there is no command {args[0]!r}{guess}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


def _set(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    """A callback that puts an option into our `Context`, where it was given."""

    def callback(ctx: click.Context, parameter: click.Parameter, value: Any) -> None:
        if value not in (None, False):
            setattr(ctx.ensure_object(Context), name, value)

    return callback


def _global_options() -> list[click.Option]:
    return [
        click.Option(
            ["--config"],
            type=click.Path(path_type=Path, readable=False),
            metavar="FILE",
            help="The configuration file to use.",
            expose_value=False,
            callback=_set("config_path"),
        ),
        click.Option(
            ["-v", "--verbose"], is_flag=True, help="Tell more.", expose_value=False, callback=_set("verbose")
        ),
        click.Option(
            ["-q", "--quiet"],
            is_flag=True,
            help="Tell only what went wrong.",
            expose_value=False,
            callback=_set("quiet"),
        ),
        click.Option(
            ["--log-format"],
            type=click.Choice(["text", "json"]),
            help="The form of log lines.",
            expose_value=False,
            callback=_set("log_format"),
        ),
        click.Option(
            ["--color"],
            type=click.Choice(["auto", "always", "never"]),
            help="Colour; auto: on a terminal, unless NO_COLOR is set.",
            expose_value=False,
            callback=_set("color"),
        ),
    ]


def _take_global_options(command: click.Command) -> None:
    """Let `command`, and what is below it, take the global options too; its own of the same name win."""
    taken = {text for parameter in command.params for text in parameter.opts}
    for option in _global_options():
        if taken.isdisjoint(option.opts):
            option.hidden = True
            command.params.append(option)
    if isinstance(command, click.Group):
        for below in command.commands.values():
            _take_global_options(below)


def _print_version(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        click.echo(f"siteagent {__version__}")
        ctx.exit()


COMPLETE = "_SITEAGENT_COMPLETE"  # set by the shells' completions, as click names it


@click.group(
    cls=LazyGroup,
    params=_global_options(),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done, 2 or 64 usage, 69 provider unavailable, 73 cannot create, 74 input/output, "
    "75 temporary, 77 permission, 78 configuration. Treat any other as failure.",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version and end.",
)
@click.pass_context
def group(ctx: click.Context) -> None:
    """Fetch mail from a provider that holds it, whenever the line is there, and file it into Maildirs."""
    ctx.ensure_object(Context)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code. `arguments` without the program's name, default: those of the process."""
    _forgive_narrow_encodings()
    if COMPLETE in os.environ:
        group.main(prog_name="siteagent")  # does not return
    context = Context()
    try:
        with group.make_context(
            "siteagent", list(sys.argv[1:] if arguments is None else arguments), obj=context
        ) as ctx:
            code = _exit_code(group.invoke(ctx))
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except click.exceptions.Exit as exit_:
        return exit_.exit_code
    except click.ClickException as error:
        return _misread(error, context)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        return INTERRUPTED
    except SiteAgentError as error:
        return _told(error, context)
    except OSError as error:
        if error.errno == errno.EPIPE:
            # Python flushes stdout once more at its end, and would complain there.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return BROKEN_PIPE
        return _told(_translated(error), context, trace=True)
    except Exception as error:
        return _bug(error, context)


def _exit_code(returned: object) -> int:
    return int(returned) if isinstance(returned, int) else int(ExitCode.DONE)


def _misread(error: click.ClickException, context: Context) -> int:
    """A command line that is none, in the words of the house."""
    if isinstance(error, _NO_ARGUMENTS):
        error.show(file=sys.stderr)
        return error.exit_code
    said = error.format_message().rstrip(".")
    place = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx is not None else "siteagent"
    why = said[:1].lower() + said[1:]
    fix = f"`{place} --help` tells what it takes"
    return _told(UsageError("cannot read the command line", why, fix=fix), context, code=error.exit_code)


def _told(error: SiteAgentError, context: Context, *, trace: bool = False, code: int | None = None) -> int:
    label = click.style("error:", fg="red", bold=True)
    context.alarm(f"{label} {error}")
    if trace:
        context.detail(traceback.format_exc())
    return int(error.exit_code) if code is None else code


def _translated(error: OSError) -> SiteAgentError:
    """An error of the operating system that nobody on the way had words for."""
    kind = PermissionProblem if isinstance(error, PermissionError) else StorageError
    where = f"cannot use {error.filename}" if error.filename else "cannot go on"
    return kind(where, (error.strerror or str(error)).lower(), fix="run it again with -v to see where it happened")


def _bug(error: Exception, context: Context) -> int:
    """Something that we did not foresee: keep the trace for whoever repairs it, and do not frighten the operator."""
    import tempfile

    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    context.alarm(f"{click.style('error:', fg='red', bold=True)} this is a bug in siteagent: {said}")
    trace = traceback.format_exc()
    if context.verbose:
        context.alarm(trace)
        return int(ExitCode.BUG)
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="siteagent-bug-", suffix=".txt", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as file:
            file.write(f"siteagent {__version__}, Python {sys.version}, {sys.platform}\n{trace}")
        context.alarm(f"  fix: report it with {file.name}")
    except OSError:
        context.alarm("  fix: run it again with -v and report what it prints")
    return int(ExitCode.BUG)


def _forgive_narrow_encodings() -> None:
    """A terminal that cannot show a letter of somebody's name gets an escape instead, and we no exception."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
