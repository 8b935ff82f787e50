"""``siteagent init``: a few questions, and a commented configuration that `check` has nothing against.

Each question is also an option. Nothing is written before the last answer, and the file appears whole or not at all.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from siteagent.cli.context import Context
from siteagent.cli.questions import (
    MAILBOX_FORM,
    Boxes,
    Questions,
    asked_mailboxes,
    mailbox,
    neither,
    no_host,
    no_method,
    no_nodes,
    no_peers,
    no_reader,
    on_a_terminal,
)
from siteagent.cli.setup import checked, notes
from siteagent.config import document, files, names
from siteagent.config.draft import Problems
from siteagent.config.load import parse
from siteagent.config.sections import Configuration, Method, Tls
from siteagent.errors import CannotCreate, PermissionProblem, UsageError

_HEAD = (
    "Written by `siteagent init`. A line that begins with # is a comment, or an option that has its default. "
    "`siteagent check` tells what is wrong with this file; docs/configuration.md has every option."
)
# What the program that holds port 25 calls itself -> what people call it.
_SERVERS = {"master": "Postfix", "exim4": "Exim", "exim": "Exim", "sendmail-mta": "Sendmail", "sendmail": "Sendmail"}


@dataclass(slots=True)
class Answers:
    """What `init` must know. `mailboxes`: name and addresses."""

    hostname: str = ""
    provider: str = ""
    nodes: list[str] = field(default_factory=list)
    method: str = "etrn"
    username: str | None = None
    password_file: str | None = None
    peers: list[str] = field(default_factory=list)
    tls: str | None = None
    mailboxes: Boxes = field(default_factory=list)
    reader: str | None = None
    maildir_root: Path = field(default_factory=Path)
    port: int | None = None
    state_directory: str | None = None
    listen: list[str] | None = None
    ask_only: bool = False


@click.command()
@click.option("--hostname", help="Our own name in the mail system, such as mail.office.example.")
@click.option("--provider", metavar="HOST", help="The server that holds the mail.")
@click.option("--node", "nodes", multiple=True, metavar="NAME", help="What to ask for: mostly the domain. Repeatable.")
@click.option("--method", type=click.Choice([method.value for method in Method]), help="How to ask.")
@click.option("--username", help="The account at the provider, which ATRN needs.")
@click.option("--password-file", metavar="FILE", help="A file with its password, relative to the configuration.")
@click.option("--peer", "peers", multiple=True, metavar="NETWORK", help="Where the provider connects from. Repeatable.")
@click.option("--tls", type=click.Choice([tls.value for tls in Tls]), help="How the line to the provider is protected.")
@click.option("--mailbox", "mailboxes", multiple=True, metavar=MAILBOX_FORM, help="A mailbox. Repeatable.")
@click.option(
    "--reader", metavar="dovecot|USER", help="Who reads the Maildirs: Dovecot (as our user), or a local user."
)
@click.option(
    "--maildir-root", type=click.Path(path_type=Path, readable=False), help="The directory that holds the Maildirs."
)
@click.option(
    "--ask-only", is_flag=True, help="Another mail server receives here: only ask, with no mailbox and no listener."
)
@click.option("--system/--user", "system", default=None, help="For this whole machine (the service), or just for you.")
@click.option(
    "--probe/--no-probe", "look", default=None, help="Look at the provider first; on a terminal that is the default."
)
@click.option("--yes", is_flag=True, help="Ask nothing: take the options, and defaults for the rest.")
@click.option("--force", is_flag=True, help="Replace an existing configuration; the old one stays as FILE.bak.")
@click.pass_obj
def init(context: Context, /, *, yes: bool, force: bool, system: bool | None, look: bool | None, **given: Any) -> None:
    """Look at a provider, write a configuration from a few questions, and check it.

    Every question is also an option. Nothing is written before the last answer; Ctrl-C leaves everything as it was.
    """
    if given["ask_only"] and given["method"] not in (None, Method.ETRN.value):
        why = f"--ask-only and --method {given['method']} exclude each other: ATRN brings the mail to siteagent itself"
        raise UsageError("cannot write a configuration", why, fix="leave one of the two out")
    ask = Questions(context, silent=yes)
    given["ask_only"] = given["ask_only"] or _another_receives(context, ask, given)
    path, system = _place(context, ask, system=system)
    if not force and os.path.lexists(path):
        fix = "edit it, or use --force, which keeps the old one as a .bak"
        raise CannotCreate(f"cannot write {path}", "it exists already", fix=fix)
    look = on_a_terminal() and not yes if look is None else look
    answers = _gathered(context, given, ask=ask, look=look)
    if system:
        answers.state_directory = "/var/lib/siteagent"  # the service's, which everybody's `status` then finds
    if not answers.ask_only and not _may_listen():
        answers.listen = ["0.0.0.0:2525", "[::]:2525"]
        context.talk("note: port 25 is root's alone; listening on 2525, to which your router must lead the provider")
    text = configuration_text(answers)
    _refuse_bad_answers(text)
    _make_directory(path.absolute().parent, mode=0o755)
    made = not answers.ask_only and _make_directory(answers.maildir_root, mode=0o750)
    _write(path, text, force=force)
    if made:
        _give_to_owner(answers.maildir_root, files.state_directory(path))
    again = "" if yes else " (to answer otherwise: `siteagent init --force`, which keeps this one as a .bak)"
    context.talk(f"wrote {path}{again}")
    try:
        context.out(checked(path))
    except Problems as problems:
        problems.what = f"wrote {path}, which cannot be used yet"
        context.talk("next: put right what follows, then run `siteagent check`")
        raise
    value = files.load(path)
    for note in notes(value):
        context.talk(f"note: {note}")
    command = "siteagent" if context.config_path is None else f"siteagent --config {shlex.quote(str(path))}"
    context.out("\nnext:")
    if answers.ask_only:
        context.out(f"  {command} ask    # asks now; the mail comes to the server that listens here")
    else:
        context.out(
            f"  {command} test   # sends a message to {value.mailbox[0].addresses[0]} by the provider, and follows it"
        )
    context.out(f"  {command} run    # the agent: asks whenever the line comes up")
    if system and sys.platform != "win32":
        context.talk("then: `siteagent install-service` has it start with the machine")
    context.talk("the provider must know of it too: `siteagent provider-sheet` prints what to send there")


# --- questions --------------------------------------------------------------------------------------------------------


def _place(context: Context, ask: Questions, *, system: bool | None) -> tuple[Path, bool]:
    """The file to write, and whether it is the whole machine's. Raises PermissionProblem, UsageError."""
    if context.config_path is not None or os.environ.get("SITEAGENT_CONFIG"):
        return context.path(), False
    root = sys.platform == "win32" or os.geteuid() == 0
    if system is None:
        question = "For this whole machine (the service), or just for you: machine or me?"
        default = "machine" if root else "me"
        answer = (
            default
            if root
            else ask("--system or --user", question, default=default, refuse=neither("machine", "me", "you"))
        )
        system = answer.startswith("m") and answer != "me"
    if system and not root:
        why = "only root may write there"
        raise PermissionProblem(f"cannot write {files.place(system=True)}", why, fix="run `sudo siteagent init`")
    if not system and root and sys.platform != "win32":
        why = "root's own commands look in /etc/siteagent"
        raise UsageError("cannot write a configuration for root alone", why, fix="leave out --user, or give --config")
    # An existing one that would be found first is the one to be told of.
    return (context.path() if root or context.path().exists() else files.place(system=system)), system


def _another_receives(context: Context, ask: Questions, given: dict[str, Any]) -> bool:
    """Layout B: whether the mail server that has port 25 here shall go on receiving."""
    from siteagent.inbound.holder import holder_of

    holder = holder_of(25)
    if holder is None or holder.startswith(("systemd (", "siteagent (")) or given["mailboxes"]:
        return False
    if ask.silent:
        context.talk(f"note: {holder} listens on port 25 here; --ask-only lets it receive, and siteagent only ask")
        return False
    server = _SERVERS.get(holder.partition(" ")[0], holder)
    question = f"{server} listens on port 25 here. Shall it receive the mail, and siteagent only ask: yes or no?"
    return ask("--ask-only", question, default="yes", refuse=neither("yes", "no")).lower().startswith("y")


def _may_listen() -> bool:
    if sys.platform != "linux" or os.geteuid() == 0:
        return True
    try:
        return int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) <= 25
    except (OSError, ValueError):
        return False


def _probed(context: Context, answers: Answers, ask: Questions) -> str:
    """Looks at the provider that was named, and takes over what it shows; the method that it suggests."""
    from siteagent.cli.probe import looked_at, picture
    from siteagent.doctor.probing import verdict

    context.talk(f"looking at {answers.provider} ... (--no-probe leaves this out)")
    named = answers.provider
    found = looked_at(named)
    layout, sentences = verdict(found)
    for row in [*picture(found), *(each for each in sentences if not each.startswith("siteagent init"))]:
        context.talk(f"  {row}")
    best = found.best
    if layout is None or best is None:
        context.talk("  you can go on, and try `siteagent probe` and `siteagent doctor` later")
        return "etrn"
    if best.host != named:
        answers.provider = best.host
        if found.mx and not answers.nodes:
            answers.nodes = _asked_nodes(ask, named)
    if best.port not in (25, 366):
        answers.port = best.port
    return "atrn" if layout == "C" else "etrn"


def _asked_nodes(ask: Questions, default: str | None) -> list[str]:
    question = "For which domain does it hold mail (or for which name, as agreed with it)?"
    return ask("--node", question, default=default, refuse=no_nodes).split()


def _gathered(context: Context, given: dict[str, Any], *, ask: Questions, look: bool) -> Answers:
    """Options first, then questions (silent: defaults). Raises UsageError for what is missing or malformed."""
    answers = Answers(hostname=given["hostname"] or "", tls=given["tls"], peers=list(given["peers"]))
    answers.mailboxes = [mailbox(text) for text in given["mailboxes"]]
    answers.provider = given["provider"] or ask(
        "--provider", "Which server holds your mail (its name or address, or your mail domain)?", refuse=no_host
    )
    answers.nodes = list(given["nodes"])
    method = _probed(context, answers, ask) if look else "etrn"
    answers.nodes = answers.nodes or _asked_nodes(ask, _domain_of(answers))
    if given["ask_only"]:
        answers.ask_only, answers.listen = True, []
        _gather_login(answers, given, ask)
        return answers
    answers.method = given["method"] or ask(
        "--method", "Can the provider connect to you (etrn), or not (atrn)?", default=method, refuse=no_method
    )
    _gather_login(answers, given, ask)
    if not answers.peers and answers.method != Method.ATRN.value:
        question = "From which addresses or networks does it connect? (empty: those of its name)"
        answers.peers = ask("--peer", question, default="", refuse=no_peers).replace(",", " ").split()
    if not answers.mailboxes:
        answers.mailboxes = asked_mailboxes(ask, next((n for n in answers.nodes if names.mail_domain(n)), None))
    reader = given["reader"] or ask(
        "--reader", "Who reads them: dovecot, or which local user?", default="dovecot", refuse=no_reader(_is_user)
    )
    answers.reader = None if reader == "dovecot" else reader
    root = given["maildir_root"] or Path(
        ask("--maildir-root", "In which directory shall the Maildirs be?", default=str(_default_maildir_root()))
    )
    answers.maildir_root = root.expanduser().absolute()
    return answers


def _domain_of(answers: Answers) -> str | None:
    """The domain that is most likely meant: that of the mailboxes, else that of our own name."""
    for _, addresses in answers.mailboxes:
        return addresses[0].rpartition("@")[2]
    own = answers.hostname or files.own_hostname()
    labels = own.split(".") if names.host_name(own) else []
    return ".".join(labels[1:] if len(labels) > 2 else labels) or None


def _is_user(name: str) -> bool:
    from siteagent.host.install import home_of

    return sys.platform == "win32" or home_of(name) is not None


def _gather_login(answers: Answers, given: dict[str, Any], ask: Questions) -> None:
    answers.username = given["username"]
    if answers.username is None and answers.method == Method.ATRN.value:
        answers.username = ask("--username", "As which account?")
    answers.password_file = given["password_file"]
    if answers.username is not None and answers.password_file is None:
        answers.password_file = ask(
            "--password-file", "Which file holds its password (chmod 600)?", default="provider.password"
        )


def _default_maildir_root() -> Path:
    system = sys.platform != "win32" and os.geteuid() == 0
    return Path("/var/mail/siteagent") if system else Path.home() / "siteagent-mail"


# --- the file ---------------------------------------------------------------------------------------------------------


def configuration_text(answers: Answers) -> str:
    """The commented file that `answers` lead to."""
    provider: dict[str, Any] = {"host": answers.provider, "nodes": answers.nodes, "method": answers.method}
    if answers.port is not None:
        provider["port"] = answers.port
    if answers.username is not None:
        provider |= {"username": answers.username, "password_file": answers.password_file}
    if answers.tls is not None:
        provider["tls"] = answers.tls
    if answers.peers:
        provider["peers"] = answers.peers
    tables: dict[str, Any] = {"link": {}, "provider": [provider]}
    tables["listener"] = {"listen": answers.listen} if answers.listen is not None else {}
    if not answers.ask_only:
        tables["delivery"] = {"unknown_recipient": "defer"}
        tables["mailbox"] = [_mailbox_table(name, addresses, answers) for name, addresses in answers.mailboxes]
    tables["hooks"] = {}
    if answers.state_directory is not None:
        tables["state_directory"] = answers.state_directory
    if answers.hostname:
        tables["hostname"] = answers.hostname
    return document.render(Configuration, tables, head=_HEAD, brief=True)


def _mailbox_table(name: str, addresses: list[str], answers: Answers) -> dict[str, Any]:
    table: dict[str, Any] = {"name": name, "addresses": addresses, "maildir": str(answers.maildir_root / name)}
    if answers.reader is not None:
        table["reader"] = answers.reader
    return table


def _refuse_bad_answers(text: str) -> None:
    """Nothing is written that could not be read. Raises UsageError with what is wrong, in the words of `check`."""
    try:
        parse(text, path="", kind=Configuration)
    except Problems as problems:
        wrong = "; ".join(problem.sentence for problem in problems.problems)
        fix = "nothing was written: run it again with another answer there"
        raise UsageError("cannot write a configuration", wrong, fix=fix) from None


def _make_directory(path: Path, *, mode: int) -> bool:
    """True where it was not there yet. Raises CannotCreate."""
    try:
        if path.is_dir():
            return False
        path.mkdir(mode=mode, parents=True)
    except OSError as error:
        raise CannotCreate(f"cannot make {path}", (error.strerror or str(error)).lower()) from None
    return True


def _give_to_owner(directory: Path, state: Path) -> None:
    """Root made it, and the agent, which runs as the owner of `state`, is to write in it."""
    if sys.platform != "win32" and os.geteuid() == 0:
        with contextlib.suppress(OSError):
            owner = state.stat()
            os.chown(directory, owner.st_uid, owner.st_gid)


def _write(path: Path, text: str, *, force: bool) -> None:
    """`path` holds all of `text`, or stays as it was, whenever we are interrupted. Raises CannotCreate."""
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.absolute().parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).chmod(0o644)  # it holds no secret, and everybody's `status` reads it
            if force and path.exists():
                _keep(path)
                Path(temporary).replace(path)
            else:
                _publish_new(Path(temporary), path)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except FileExistsError:
        raise CannotCreate(f"cannot write {path}", "it exists already", fix="use --force") from None
    except OSError as error:
        raise CannotCreate(f"cannot write {path}", (error.strerror or str(error)).lower()) from None


def _keep(path: Path) -> None:
    """The old file under a second name; `path` itself never goes missing."""
    backup = path.with_name(path.name + ".bak")
    backup.unlink(missing_ok=True)
    try:
        os.link(path, backup)
    except OSError:  # a file system without links
        backup.write_bytes(path.read_bytes())


def _publish_new(temporary: Path, path: Path) -> None:
    """A link refuses an existing name, which a rename would replace: two `init` at once do not overwrite each other."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:
        with contextlib.suppress(FileNotFoundError):
            path.lstat()
            raise FileExistsError(17, "it exists already", str(path)) from None
        temporary.rename(path)
