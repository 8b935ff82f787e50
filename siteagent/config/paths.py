"""What lies on the disk where a configuration points: Maildirs, certificates, keys, commands, state.

Only looks. Judges as the user whom the agent will run as: run as root, that is the owner of the state directory.
Threat model S50: a mailbox whose ``new/`` is a link, or somebody else's, is refused.
"""

from __future__ import annotations

import os
import stat as modes
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from siteagent.config.draft import Draft
from siteagent.config.lines import KeyPath
from siteagent.config.sections import Configuration, HubConfiguration, Mailbox
from siteagent.store.durable import foreign_link

_PARTS = ("tmp", "new", "cur")


def inspect(path: Path, value: Configuration | HubConfiguration, draft: Draft) -> str:
    """Report to `draft` what is wrong with the places that `value`, read from `path`, names; who that was judged as.

    Blocking. `value` as `files.survey` gives it; what `draft` holds a problem of already is left out.
    """
    _judge_own_file(path, draft)
    state = value.state_directory
    assert state is not None, "files.survey fills it in"
    with acting_as_owner(state) as who:
        if not draft.wrong("state_directory"):
            _judge_creatable(state, ("state_directory",), draft)
        _judge_certificate(value, draft)
        if value.log.file and not draft.wrong("log", "file"):
            _judge_creatable(Path(value.log.file).parent, ("log", "file"), draft)
        if isinstance(value, Configuration):
            if value.metrics.file is not None and not draft.wrong("metrics", "file"):
                _judge_creatable(value.metrics.file.parent, ("metrics", "file"), draft)
            _judge_site(value, draft)
        else:
            for i, node in enumerate(value.node):
                _judge_readable(node.recipients_file, ("node", i, "recipients_file"), draft)
                _judge_readable(node.password_file, ("node", i, "password_file"), draft)
    return who


def _judge_site(value: Configuration, draft: Draft) -> None:
    for i, provider in enumerate(value.provider):
        _judge_readable(provider.password_file, ("provider", i, "password_file"), draft)
        at: KeyPath = ("provider", i, "tls_ca_file")
        if _judge_readable(provider.tls_ca_file, at, draft):
            _judge_authorities(provider.tls_ca_file, at, draft)
    for i, mailbox in enumerate(value.mailbox):
        if not draft.wrong("mailbox", i, "maildir"):
            _judge_maildir(mailbox, ("mailbox", i), draft)
    if value.hooks.commands:
        import shutil  # 5 ms that the start of an agent without hooks need not wait for
    for event, command in value.hooks.commands.items():
        if shutil.which(command[0]) is None:
            draft.report(("hooks", event), found=f"{command[0]}, which cannot be run", allowed="an executable file")


@contextmanager
def acting_as_owner(state: Path) -> Iterator[str]:
    """Root acts as the owner of `state` inside; others as themselves. Gives the name. Not for threaded programs."""
    if sys.platform == "win32":
        yield os.environ.get("USERNAME", "?")
        return
    import pwd

    def name_of(uid: int) -> str:
        with suppress(KeyError):
            return pwd.getpwuid(uid).pw_name
        return str(uid)

    owner = None
    with suppress(OSError):
        owner = state.stat()
    if os.geteuid() != 0 or owner is None or owner.st_uid == 0:
        yield name_of(os.geteuid())
        return
    groups = os.getgroups()
    try:
        # As setpriv --init-groups: a Maildir may be open to us through a supplementary group alone.
        with suppress(KeyError):
            os.initgroups(pwd.getpwuid(owner.st_uid).pw_name, owner.st_gid)
        os.setegid(owner.st_gid)
        os.seteuid(owner.st_uid)
        yield name_of(owner.st_uid)
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def _may(path: Path, mode: int) -> bool:
    effective = os.access in os.supports_effective_ids
    return os.access(path, mode, effective_ids=effective)


def _judge_own_file(path: Path, draft: Draft) -> None:
    """Whoever may write the configuration may have commands run as us."""
    if sys.platform != "win32":
        with suppress(OSError):
            mode = modes.S_IMODE(path.stat().st_mode)
            if mode & 0o002:
                found = f"mode {mode:04o} of the file itself"
                draft.report(
                    (), found=found, allowed=f"a file that only its owner changes: chmod o-w {path}", permission=True
                )


def _judge_creatable(directory: Path, at: KeyPath, draft: Draft) -> None:
    """`directory` can be written, or made where it will be."""
    place = directory
    while not _there(place) and place != place.parent:
        place = place.parent
    if not place.is_dir():
        draft.report(at, found=f"{place}, which is no directory", allowed="a directory")
    elif not _may(place, os.W_OK | os.X_OK):
        draft.report(at, found=f"{place}, where we may not write", allowed="a place of our own", permission=True)


def _there(path: Path) -> bool:
    try:
        path.lstat()
    except PermissionError:
        return True
    except (OSError, ValueError):
        return False
    return True


def _judge_readable(path: Path | None, at: KeyPath, draft: Draft) -> bool:
    """`path` is a file that we may read; False also where there is nothing to look at."""
    if path is None or draft.wrong(*at):
        return False
    try:
        regular = path.is_file()
    except PermissionError:
        regular = True  # the next question says what is wrong
    if not regular:
        draft.report(at, found=f"{path}: there is no such file", allowed="a file that exists")
    elif not _may(path, os.R_OK):
        draft.report(at, found=f"{path}, which we may not read", allowed="a file that we may read", permission=True)
    else:
        return True
    return False


# --- certificates -----------------------------------------------------------------------------------------------------


def _judge_certificate(value: Configuration | HubConfiguration, draft: Draft) -> None:
    certificate, key = value.listener.tls_certificate, value.listener.tls_key
    readable = [
        _judge_readable(certificate, ("listener", "tls_certificate"), draft),
        _judge_readable(key, ("listener", "tls_key"), draft),
    ]
    if not all(readable) or certificate is None or key is None:
        return
    _judge_key_mode(key, draft)
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # A key with a passphrase would ask for it at the terminal, and nobody sits at a service's.
        context.load_cert_chain(certificate, key, password=lambda: "")
    except ssl.SSLError as error:
        said = (error.reason or str(error)).replace("_", " ").lower()
        allowed = "a PEM certificate with its own key, which has no passphrase"
        found = f"{key.name} and {certificate.name}, which do not go together ({said})"
        draft.report(("listener", "tls_key"), found=found, allowed=allowed)
    except (OSError, ValueError) as error:
        draft.report(("listener", "tls_key"), found=str(error), allowed="a PEM certificate and its key")


def _judge_key_mode(key: Path, draft: Draft) -> None:
    if sys.platform == "win32":
        return
    mode = modes.S_IMODE(key.stat().st_mode)
    # Through a group (ssl-cert) is how services share a key; everybody is nobody's intention.
    if mode & 0o007:
        allowed = f"a key that others cannot read: chmod o-rwx {key}"
        draft.report(("listener", "tls_key"), found=f"{key}: mode {mode:04o}", allowed=allowed, permission=True)


def _judge_authorities(path: Path | None, at: KeyPath, draft: Draft) -> None:
    import ssl

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except (ssl.SSLError, OSError, ValueError):
        draft.report(at, found=f"{path}, which holds no certificates", allowed="certificates in PEM form")


# --- Maildirs ---------------------------------------------------------------------------------------------------------


def _judge_maildir(mailbox: Mailbox, at: KeyPath, draft: Draft) -> None:
    reader = _judge_reader(mailbox, at, draft)
    at = (*at, "maildir")
    maildir = mailbox.maildir
    try:
        if (link := foreign_link(maildir)) is not None:
            found = f"{link}, a symbolic link of user {link.lstat().st_uid}, who chooses where it leads"
            draft.report(at, found=found, allowed="a Maildir in its own place", permission=True)
        elif not _there(maildir):
            _judge_parent(maildir.parent, at, draft)
        elif not maildir.is_dir():
            draft.report(at, found=f"{maildir}, which is no directory", allowed="a Maildir, or a name not yet taken")
        else:
            for part in _PARTS:
                _judge_part(maildir, part, reader, at=at, draft=draft)
    except PermissionError:
        draft.report(at, found=f"{maildir}, where we may not look", allowed="a Maildir of ours", permission=True)


def _judge_parent(parent: Path, at: KeyPath, draft: Draft) -> None:
    if not parent.is_dir():
        found = f"a Maildir in {parent}, which is no directory" if _there(parent) else f"no directory {parent}"
        draft.report(at, found=found, allowed=f"a Maildir whose parent exists: mkdir -p {parent}")
    elif not _may(parent, os.W_OK | os.X_OK):
        found = f"a Maildir in {parent}, where we may not write"
        draft.report(at, found=found, allowed="a place that we may write to", permission=True)


def _judge_part(maildir: Path, part: str, reader: int | None, *, at: KeyPath, draft: Draft) -> None:
    directory = maildir / part
    try:
        status = directory.lstat()
    except FileNotFoundError:
        if not _may(maildir, os.W_OK | os.X_OK):
            found = f"{maildir} without {part}/, which we may not make"
            draft.report(at, found=found, allowed="a Maildir that we may write to", permission=True)
        return
    if not modes.S_ISDIR(status.st_mode):
        kind = "a symbolic link" if modes.S_ISLNK(status.st_mode) else "no directory"
        draft.report(at, found=f"{directory}, which is {kind}", allowed="tmp, new and cur as real directories")
        return
    if sys.platform == "win32":
        return
    if status.st_dev != maildir.stat().st_dev:
        draft.report(at, found=f"{directory} on another file system", allowed="a Maildir on one file system")
    elif status.st_uid not in (os.geteuid(), reader):
        found = f"{directory}, which belongs to user {status.st_uid}"
        allowed = "a Maildir of ours, or of its `reader`"
        draft.report(at, found=found, allowed=allowed, permission=True)
    elif status.st_mode & 0o002:
        found = f"{directory}, which everybody may write to"
        draft.report(at, found=found, allowed=f"chmod o-w {directory}", permission=True)
    elif part != "cur" and not _may(directory, os.W_OK | os.X_OK):
        found = f"{directory}, where we may not write"
        draft.report(at, found=found, allowed="a Maildir that we may write to", permission=True)


def _judge_reader(mailbox: Mailbox, at: KeyPath, draft: Draft) -> int | None:
    """The uid of the reader, where there is one."""
    if mailbox.reader is None or sys.platform == "win32":
        return None
    import pwd

    try:
        return pwd.getpwnam(mailbox.reader).pw_uid
    except (KeyError, ValueError):
        draft.report((*at, "reader"), found=f'"{mailbox.reader}", whom nobody knows here', allowed="a local user")
        return None
