"""`mailbox add` and `mailbox list`: one more mailbox in the configuration, its Maildir made and granted.

The file stays the operator's: a table is put behind the last mailbox, every other byte stays as it was, and nothing is
written that could not be read.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import sys
from pathlib import Path

import click

from siteagent.cli.context import Context
from siteagent.cli.history import table
from siteagent.config import document, files, names
from siteagent.config.draft import Problems
from siteagent.config.load import parse
from siteagent.config.sections import Configuration, Mailbox, plain_name
from siteagent.errors import CannotCreate, ExitCode, PermissionProblem, UsageError

_HEADER = re.compile(r"\s*\[")
_OURS = re.compile(r"\s*\[\[\s*mailbox\s*\]\]")


@click.group("mailbox")
def mailbox() -> None:
    """Add a mailbox to the configuration, or list them."""


@mailbox.command("list", short_help="List the mailboxes.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.pass_obj
def show(context: Context, as_json: bool) -> None:
    """List the mailboxes: their addresses, where they are, who reads them, what lies in them."""
    boxes = context.configuration().mailbox
    if as_json:
        rows = [
            {
                "name": box.name,
                "addresses": list(box.addresses),
                "maildir": str(box.maildir),
                "reader": box.reader,
                "new": _count(box, "new"),
                "cur": _count(box, "cur"),
            }
            for box in boxes
        ]
        context.out(json.dumps({"version": 1, "mailboxes": rows}, ensure_ascii=False))
        return
    if not boxes:
        context.talk("no mailbox: another mail server receives here (`listen = []`)")
        return
    context.out(
        table(
            ("name", "new", "seen", "addresses", "maildir", "reader"),
            [
                (
                    box.name,
                    _shown(_count(box, "new")),
                    _shown(_count(box, "cur")),
                    ", ".join(box.addresses),
                    str(box.maildir),
                    box.reader or "whoever runs as our user",
                )
                for box in boxes
            ],
            right={1, 2},
        )
    )


def _count(box: Mailbox, part: str) -> int | None:
    """Messages there; None where we may not look."""
    try:
        with os.scandir(box.maildir / part) as entries:
            return sum(not entry.name.startswith(".") for entry in entries)
    except FileNotFoundError:
        return 0
    except OSError:
        return None


def _shown(count: int | None) -> str:
    return "?" if count is None else str(count)


# --- add --------------------------------------------------------------------------------------------------------------


@mailbox.command("add", short_help="Add a mailbox.")
@click.argument("name")
@click.argument("addresses", nargs=-1, required=True, metavar="ADDRESS...")
@click.option(
    "--maildir", type=click.Path(path_type=Path, readable=False), help="Where; default: beside the first one."
)
@click.option("--reader", metavar="dovecot|USER", help="A local user who reads it; default: as the first one.")
@click.pass_obj
def add(context: Context, name: str, addresses: tuple[str, ...], maildir: Path | None, reader: str | None) -> None:
    """Add a mailbox: to the configuration, on the disk, and say what Dovecot and the provider must know.

    A running agent takes the changed file by itself.
    """
    path = context.path()
    old = context.configuration()
    what = f"cannot add mailbox {name}"
    if not plain_name(name):
        raise UsageError(what, "that is no name for a mailbox", fix="use letters, digits, '.', '-' and '_'")
    for address in addresses:
        if names.mail_address(address) is None:
            raise UsageError(what, f"{address} is no mail address", fix="give name@domain, or @domain for all of one")
    if any(box.name == name for box in old.mailbox):
        raise UsageError(what, "there is one of that name", fix=f"add the addresses to it in {path}")
    if old.ask_only and not old.mailbox:
        why = "another mail server receives here (`listen = []`), and no mail would ever come to it"
        raise UsageError(what, why, fix="add the mailbox to that server; or set listen of [listener] first")
    if sys.platform != "win32" and reader not in (None, "dovecot") and not _is_user(reader or ""):
        raise UsageError(what, f"there is no user {reader} here", fix="name a local user with --reader, or dovecot")
    box = _wanted(old, name, addresses, maildir=maildir, reader=reader)
    text = _with_mailbox(_read(path), box)
    _refuse_problems(what, text, path)
    _replace(path, text)
    context.talk(f"added to {path}")
    value = files.load(path)
    made = next(each for each in value.mailbox if each.name == name)
    _make(context, value, made)
    _tell(context, value, made, known=set(old.delivery.domains or _domains(old)))


def _wanted(
    old: Configuration, name: str, addresses: tuple[str, ...], *, maildir: Path | None, reader: str | None
) -> Mailbox:
    first = old.mailbox[0] if old.mailbox else None
    if reader is None and first is not None and first.reader is not None and maildir is None:
        reader = name if _is_user(name) and first.reader == first.name else None
    reader = None if reader == "dovecot" else reader
    if maildir is None:
        root = first.maildir.parent if first is not None else Path("/var/mail/siteagent")
        home = Path("~").joinpath() if reader is None else _home(reader)
        in_home = first is not None and first.reader is not None and _home(first.reader) in first.maildir.parents
        maildir = home / "Maildir" if reader is not None and in_home else root / name
    return Mailbox(name=name, addresses=addresses, maildir=maildir.absolute(), reader=reader)


def _is_user(name: str) -> bool:
    from siteagent.host.install import home_of

    return home_of(name) is not None


def _home(user: str) -> Path:
    from siteagent.host.install import home_of

    return home_of(user) or Path("/nonexistent")


def _read(path: Path) -> str:
    return path.read_bytes().decode("utf-8-sig")


def _with_mailbox(text: str, box: Mailbox) -> str:
    """`text` with one more table behind the last mailbox; at the end where that cannot be told."""
    rows = ["[[mailbox]]", f"name = {document.toml(box.name)}", f"addresses = {document.toml(list(box.addresses))}"]
    rows.append(f"maildir = {document.toml(str(box.maildir))}")
    if box.reader is not None:
        rows.append(f"reader = {document.toml(box.reader)}")
    lines = text.splitlines()
    ours = [number for number, line in enumerate(lines) if _OURS.match(line)]
    if ours:
        end = next((n for n in range(ours[-1] + 1, len(lines)) if _HEADER.match(lines[n])), len(lines))
        # Comments and blank lines above the next table are that table's.
        while end > ours[-1] + 1 and (not lines[end - 1].strip() or lines[end - 1].lstrip().startswith("#")):
            end -= 1
        gap = [""] if end < len(lines) and lines[end].strip() else []
        placed = "\n".join([*lines[:end], "", *rows, *gap, *lines[end:]])
        if _adds_one(text, placed):
            return placed.rstrip("\n") + "\n"
    return text.rstrip("\n") + "\n\n" + "\n".join(rows) + "\n"


def _adds_one(before: str, after: str) -> bool:
    """Nothing changed but one mailbox more: a bracket at the start of a line may stand inside a text of many lines."""
    import tomllib

    try:
        old, new = tomllib.loads(before), tomllib.loads(after)
    except tomllib.TOMLDecodeError:
        return False
    boxes = new.pop("mailbox", [])
    known = old.pop("mailbox", [])
    return old == new and boxes[:-1] == known


def _refuse_problems(what: str, text: str, path: Path) -> None:
    try:
        parse(text, path=str(path), kind=Configuration)
    except Problems as problems:
        wrong = "; ".join(problem.sentence for problem in problems.problems)
        raise UsageError(what, wrong, fix="nothing was changed: give other names, or edit the file") from None


def _replace(path: Path, text: str) -> None:
    """In one step, with the mode and owner that it had. Raises PermissionProblem, CannotCreate."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        status = path.stat()
        with temporary.open("x", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(status.st_mode & 0o7777)
        if sys.platform != "win32" and os.geteuid() == 0:
            os.chown(temporary, status.st_uid, status.st_gid)
        temporary.replace(path)
    except PermissionError as error:
        raise PermissionProblem(f"cannot change {path}", "permission denied", fix="run it as its owner") from error
    except OSError as error:
        raise CannotCreate(f"cannot change {path}", (error.strerror or str(error)).lower()) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _make(context: Context, value: Configuration, box: Mailbox) -> None:
    """The Maildir, for whoever the agent runs as and the reader; or the commands that do it."""
    if sys.platform == "win32":
        return  # the agent makes it
    else:
        from siteagent.host import install
        from siteagent.host.grants import maildir_commands

        assert value.state_directory is not None
        try:
            user = value.state_directory.owner()
        except (OSError, KeyError):
            user = "siteagent" if os.geteuid() == 0 and install.home_of("siteagent") else _own_name()
        commands = list(maildir_commands(box, home=install.home_of, group_of=install.group_of, user=user))
        if os.geteuid() == 0:
            install.run(commands, context.detail)
            context.talk(f"made {box.maildir}")
        elif box.reader is not None:
            context.talk("to be run as root, so that agent and reader share the Maildir:")
            for command in commands:
                context.talk(f"  {shlex.join(command.argv)}")
        else:
            for part in ("tmp", "new", "cur"):
                (box.maildir / part).mkdir(mode=0o700, parents=True, exist_ok=True)
            context.talk(f"made {box.maildir}")


def _own_name() -> str:
    if sys.platform == "win32":
        return ""
    else:
        import pwd

        return pwd.getpwuid(os.geteuid()).pw_name


def _tell(context: Context, value: Configuration, box: Mailbox, *, known: set[str]) -> None:
    from siteagent.host.grants import below, in_a_home
    from siteagent.host.units import MAIL_ROOT

    reader = box.reader or "the user that siteagent runs as"
    context.out(f"Dovecot: mail_location = maildir:{box.maildir} (as {reader}; docs/reading-mail.md)")
    fresh = sorted({address.rpartition("@")[2] for address in box.addresses} - known)
    if fresh:
        context.out(f"provider: it must take mail for {', '.join(fresh)} now (`siteagent provider-sheet`)")
    context.out("provider: send it the new list of addresses (`siteagent recipients`), if it has one")
    installed = Path("/etc/systemd/system/siteagent.service").exists()
    if installed and (in_a_home(box.maildir) or not below(box.maildir, [MAIL_ROOT])):
        context.out("service: run `siteagent install-service` again, so that it may write there")


def _domains(value: Configuration) -> list[str]:
    return [address.rpartition("@")[2] for box in value.mailbox for address in box.addresses]


__all__ = ["ExitCode", "mailbox"]
