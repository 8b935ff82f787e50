"""The manual pages siteagent(1) and siteagent.toml(5), printed from the definitions of commands and options.

They stand in ``docs/man/``, from where the wheel takes them; a test keeps them fresh. Print them anew with
``python -m siteagent.cli.manual``, in the root of the repository. The language is man(7).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import click

from siteagent import __version__
from siteagent.cli.main import COMMANDS, group
from siteagent.config.convert import allowed_for, element_type, field_types, is_section, options_of
from siteagent.config.document import toml
from siteagent.config.sections import Configuration

_EXIT_CODES = (
    (
        "0",
        "Done. For `ask`: everything is there, or nothing was waiting, or nobody came (and stderr says so).",
    ),
    ("1", "A mistake of ours."),
    ("2, 64", "The command line asks for something that does not exist or does not go together."),
    ("3", "`status`: the agent is not running."),
    ("69", "The provider refuses, or cannot be used."),
    ("73", "Something that must exist could not be made: a directory, a lock, a listening port."),
    ("74", "Reading or writing our own state went wrong."),
    ("75", "It did not work now: no answer, the line was lost, mail was held back. Try again later."),
    ("77", "The operating system, or the mode of a file, does not let us."),
    ("78", "The configuration cannot be used."),
)
_FILES = (
    ("/etc/siteagent/siteagent.toml", "The configuration: siteagent.toml(5)."),
    ("/var/lib/siteagent/", "State of the service: the spool, the journal, status.json, requests/."),
    ("/var/mail/siteagent/", "The Maildirs, where nothing else is configured."),
    ("/run/siteagent-hook/", "A file put here is a hint that the network changed."),
)
_ENVIRONMENT = (
    ("SITEAGENT_CONFIG, SITEAGENT_HUB_CONFIG", "The configuration file to use where --config is not given."),
    ("NO_COLOR", "No colour."),
    ("STATE_DIRECTORY, CONFIGURATION_DIRECTORY, CREDENTIALS_DIRECTORY", "As systemd sets them for a service."),
)


def pages() -> dict[str, str]:
    """Place below a directory of manual pages -> text."""
    return {"man1/siteagent.1": commands_page(), "man5/siteagent.toml.5": options_page()}


def commands_page() -> str:
    """siteagent(1)."""
    rows = [
        *_head("SITEAGENT", 1),
        "siteagent \\- fetch mail from a provider that holds it, whenever the line is there",
    ]
    rows += [".SH SYNOPSIS", ".B siteagent", "[\\fIOPTIONS\\fR] \\fICOMMAND\\fR [\\fIARGUMENTS\\fR]", ".SH DESCRIPTION"]
    rows += _paragraphs(
        "siteagent is a mail agent for a host whose line to the world comes and goes. When the line comes up it asks "
        "the mail provider, by ETRN or ATRN, to send what it holds; its own listener takes the mail in and files it "
        "into Maildirs.\n\nData goes to standard output, talk to standard error."
    )
    context = click.Context(group, info_name="siteagent")
    rows += [".SH OPTIONS", "Before or behind the command.", *_options(group, context), ".SH COMMANDS"]
    for name in COMMANDS:
        try:
            command = group.get_command(context, name)
        except click.UsageError:
            continue  # a command that this tree does not hold
        assert command is not None
        rows += _command(command, click.Context(command, info_name=name, parent=context), name)
    rows += [".SH EXIT STATUS", *_list(_EXIT_CODES), "A code that is not listed here must be treated as failure."]
    rows += [".SH FILES", *_list(_FILES), ".SH ENVIRONMENT", *_list(_ENVIRONMENT)]
    rows += [".SH SEE ALSO", ".BR siteagent.toml (5),", ".BR maildir (5)"]
    return "\n".join(rows) + "\n"


def options_page() -> str:
    """siteagent.toml(5)."""
    rows = [*_head("SITEAGENT.TOML", 5), "siteagent.toml \\- the configuration of siteagent", ".SH DESCRIPTION"]
    rows += _paragraphs(
        "One TOML file; see siteagent(1) for where it is. Relative paths are relative to it. Required are a provider's "
        "host and nodes, and one mailbox with addresses and maildir (none where listen = []). An unknown key is an "
        "error. `siteagent init` writes a file, `siteagent check` tells everything that is wrong with one."
    )
    plain = [name for name, table in field_types(Configuration).items() if not is_section(element_type(table) or table)]
    rows += [".SH OPTIONS AT THE TOP", *_keys(Configuration, plain)]
    for name, table in field_types(Configuration).items():
        if name in plain:
            continue
        several = element_type(table)
        cls = several or table
        rows += [f".SH {'[[' if several else '['}{_text(name)}{']]' if several else ']'}"]
        rows += _paragraphs(inspect.cleandoc(cls.__doc__ or ""))
        rows += _keys(cls, [option.name for option in options_of(cls)])
    rows += [".SH SEE ALSO", ".BR siteagent (1)"]
    return "\n".join(rows) + "\n"


def _head(title: str, section: int) -> list[str]:
    # No date: the page changes with the definitions, and a build must give the same bytes tomorrow.
    return [
        '.\\" Printed by python -m siteagent.cli.manual; changes belong into the definitions.',
        f'.TH {title} {section} "" "siteagent {__version__}" "siteagent"',
        ".SH NAME",
    ]


def _command(command: click.Command, context: click.Context, name: str) -> Iterator[str]:
    arguments = " ".join(
        parameter.make_metavar(context) for parameter in command.params if isinstance(parameter, click.Argument)
    )
    yield f".SS {_text(f'{name} {arguments}'.strip())}"
    yield from _paragraphs(inspect.cleandoc(command.help or command.short_help or ""))
    yield from _options(command, context)
    if isinstance(command, click.Group):
        for below, inner in command.commands.items():
            yield from _command(inner, click.Context(inner, info_name=below, parent=context), f"{name} {below}")


def _options(command: click.Command, context: click.Context) -> Iterator[str]:
    for parameter in command.params:
        record = parameter.get_help_record(context) if isinstance(parameter, click.Option) else None
        if record is not None:
            yield from (".TP", f".B {_text(record[0])}", _text(record[1]) or "\\&")


def _keys(cls: type, names: list[str]) -> Iterator[str]:
    for name in names:
        if name == "commands":
            yield from (
                ".TP",
                ".B an event, such as round_ended",
                "A command as a list of words; no shell. Default: none.",
            )
            continue
        option = next(option for option in options_of(cls) if option.name == name)
        metadata = option.metadata
        said = metadata["doc"]
        allowed = allowed_for(cls, name)
        if metadata["allowed"] or '"' in allowed:
            said += f" Allowed: {allowed}."
        shown = metadata["shown"]
        if shown is None and option.default is not None and str(option.default) != "NOTHING":
            shown = toml(option.default)
        said += f" Default: {shown}." if shown is not None else " Required." if option.default is not None else ""
        yield from (".TP", f".B {_text(name)}", _text(said))


def _list(rows: tuple[tuple[str, str], ...]) -> Iterator[str]:
    for term, said in rows:
        yield from (".TP", f".B {_text(term)}", _text(said))
    yield ".PP"


def _paragraphs(text: str) -> Iterator[str]:
    for number, paragraph in enumerate(re.split(r"\n\s*\n", text.replace("\b", ""))):
        if number:
            yield ".PP"
        yield _text(" ".join(paragraph.split()))


def _text(text: str) -> str:
    """`text` as man(7) takes it, what stands in backquotes in bold; a dot or quote at the start is no request."""
    plain = text.replace("\\", "\\e").replace("-", "\\-").replace("``", "`")
    plain = re.sub(r"`([^`]+)`", r"\\fB\1\\fR", plain)
    return f"\\&{plain}" if plain.startswith((".", "'")) else plain


if __name__ == "__main__":
    for place, page in pages().items():
        target = Path("docs/man") / Path(place).name
        target.parent.mkdir(exist_ok=True)
        target.write_text(page, encoding="utf-8")
