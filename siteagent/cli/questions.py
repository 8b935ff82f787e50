"""The questions of `init`: how they are asked, and what will do as an answer.

Asked on stderr, read from stdin. On a terminal the line can be edited, and earlier answers come back with the arrows.
An answer that will not do is told why, and the question comes again.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Sequence

import click

from siteagent.cli.context import Context
from siteagent.config import names
from siteagent.config.sections import Method, plain_name
from siteagent.errors import UsageError

MAILBOX_FORM = "NAME=ADDRESS[,ADDRESS...]"
Refuse = Callable[[str], str | None]
"""Why an answer will not do; None where it does."""


class Questions:
    """Asks; silent: takes the default, or says which option is missing."""

    def __init__(self, context: Context, *, silent: bool) -> None:
        self._context = context
        self.silent = silent

    def __call__(self, option: str, question: str, *, default: str | None = None, refuse: Refuse | None = None) -> str:
        if self.silent:
            if default is None:
                fix = f"give {option}: `siteagent init --help` tells what it is"
                raise UsageError("cannot write a configuration", f"{option} is missing", fix=fix)
            return default
        while True:
            line = _answered(f"{question} {f'[{default}] ' if default else ''}")
            if not line:
                fix = f"give {option}, or --yes for the defaults"
                raise UsageError("cannot write a configuration", f"no answer for {option}", fix=fix)
            answer = line.strip() or (default or "")
            if not answer and default is None:
                self._context.alarm("  this one is needed")
                continue
            why = refuse(answer) if refuse is not None and answer else None
            if why is None:
                return answer
            self._context.alarm(f"  {answer!r} will not do: {why}")


def on_a_terminal() -> bool:
    """Whether somebody sits there who could answer."""
    return sys.stdin is not None and sys.stdin.isatty()


def _answered(prompt: str) -> str:
    """One line of an answer; "" at its end."""
    try:
        if on_a_terminal() and sys.stdout is not None and sys.stdout.isatty():
            with contextlib.suppress(ImportError):  # Windows has none, and edits lines by itself
                import readline  # noqa: F401 - importing it is what makes `input` edit
            return input(prompt) + "\n"
        click.echo(prompt, nl=False, err=True)
        line = sys.stdin.readline() if sys.stdin is not None else ""
    except EOFError:
        line = ""
    except KeyboardInterrupt:
        click.echo(err=True)  # the cursor stands behind the question
        raise
    except UnicodeDecodeError:
        return "\N{REPLACEMENT CHARACTER}\n"  # not our encoding: no answer that will do
    if not line:
        click.echo(err=True)
    return line


# --- what will do -----------------------------------------------------------------------------------------------------


def no_host(text: str) -> str | None:
    return None if names.host(text) else "give a name or an address, such as mx.isp.example"


def no_nodes(text: str) -> str | None:
    wrong = [word for word in text.split() if not word.isascii()]
    return f"{wrong[0]} is no name to ask for, such as office.example" if wrong else None


def no_method(text: str) -> str | None:
    known = [method.value for method in Method]
    return None if text in known else f"one of {', '.join(known)}"


def no_peers(text: str) -> str | None:
    wrong = [word for word in text.replace(",", " ").split() if not names.peer(word)]
    return f"{wrong[0]} is no address, network, name or spf:DOMAIN, such as 203.0.113.0/24" if wrong else None


def no_reader(is_user: Callable[[str], bool]) -> Refuse:
    def refuse(text: str) -> str | None:
        if text == "dovecot" or is_user(text):
            return None
        return "there is no such user here; Dovecot, and whoever reads behind it, is dovecot"

    return refuse


def neither(*words: str) -> Refuse:
    """Only these, or the beginning of one."""

    def refuse(text: str) -> str | None:
        good = any(word.startswith(text.lower()) for word in words)
        return None if good else f"{' or '.join(words)}"

    return refuse


# --- mailboxes --------------------------------------------------------------------------------------------------------

Boxes = list[tuple[str, list[str]]]


def mailbox(text: str) -> tuple[str, list[str]]:
    """``alice=alice@office.example,sales@office.example``. Raises UsageError."""
    name, equals, rest = text.partition("=")
    addresses = [address.strip() for address in rest.split(",") if address.strip()]
    good = all(names.mail_address(address) for address in addresses)
    if not equals or not plain_name(name) or not addresses or not good:
        raise UsageError(
            "cannot write a configuration",
            f"--mailbox {text!r} is not {MAILBOX_FORM}",
            fix="for example: --mailbox alice=alice@office.example,sales@office.example",
        )
    return name, addresses


def asked_mailboxes(ask: Questions, domain: str | None) -> Boxes:
    """Mailboxes until an empty line, in the ways that people write them; `domain` completes a bare name."""
    boxes: Boxes = []

    def refuse(text: str) -> str | None:
        try:
            _add(list(boxes), text, domain)
        except ValueError as error:
            return str(error)
        return None

    short = f", or just the name for NAME@{domain}" if domain else ""
    while True:
        if boxes:
            text = ask("--mailbox", "And another? (empty: that is all)", default="", refuse=refuse)
        else:
            text = ask("--mailbox", f"Who gets mail here? One mailbox, as {MAILBOX_FORM}{short}:", refuse=refuse)
        if not text:
            return boxes
        _add(boxes, text, domain)


def _add(boxes: Boxes, text: str, domain: str | None) -> None:
    """Adds the mailboxes that stand in one line. Raises ValueError with why it will not do."""
    for word in re.sub(r"\s*([,=])\s*", r"\1", text).split():
        name, equals, rest = word.partition("=")
        if not equals:
            name, rest = word.partition("@")[0], word
        addresses = [_completed(address, domain) for address in rest.split(",") if address]
        if not plain_name(name):
            raise ValueError(f"{name!r} is no name for a mailbox: letters, digits, '.', '-' and '_'")
        if any(known == name for known, _ in boxes):
            raise ValueError(f"there is a mailbox {name} already")
        taken = [address for address in addresses if address in _addresses(boxes)]
        if taken:
            raise ValueError(f"{taken[0]} is another mailbox's already")
        wrong = [address for address in addresses if names.mail_address(address) is None]
        if wrong or not addresses:
            raise ValueError(
                f"{wrong[0] if wrong else word} is no mail address; for example alice=alice@office.example"
            )
        boxes.append((name, addresses))


def _completed(address: str, domain: str | None) -> str:
    return f"{address}@{domain}" if domain and "@" not in address else address


def _addresses(boxes: Boxes) -> Sequence[str]:
    return [address for _, addresses in boxes for address in addresses]
