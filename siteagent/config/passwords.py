"""The passwords that a configuration points to: in a file that nobody else can read, or a credential of systemd's.

A password is read when it is needed and kept nowhere; no error and no problem quotes one.
"""

from __future__ import annotations

import os
import stat as modes
import sys
from pathlib import Path

from siteagent.config.draft import Draft
from siteagent.config.lines import KeyPath
from siteagent.config.sections import Auth, Node, Provider
from siteagent.errors import ConfigurationError, PermissionProblem

_LARGEST_SECRET = 4096


def credential_name(section: Provider | Node) -> str:
    """The systemd credential that holds the password of `section`."""
    return f"siteagent.{section.name}.password"


def _credential(section: Provider | Node) -> Path | None:
    """The credential as a file, if systemd gave us one."""
    place = os.environ.get("CREDENTIALS_DIRECTORY")
    if not place or "/" in section.name:
        return None
    path = Path(place) / credential_name(section)
    try:
        path.stat()
    except PermissionError:
        return path  # `password` tells what is wrong with it
    except (OSError, ValueError):
        return None
    return path


def _credential_is_promised(section: Provider | Node) -> bool:
    """The service gets its credential where a command of the operator's does not: in the store or in a drop-in."""
    name = credential_name(section)
    stores = ("/etc/credstore", "/run/credstore", "/etc/credstore.encrypted", "/run/credstore.encrypted")
    units = [
        *Path("/etc/systemd/system").glob("siteagent*.service*/*.conf"),
        *Path("/run/systemd/system").glob("siteagent*.service*/*.conf"),
    ]
    try:
        return any((Path(store) / name).exists() for store in stores) or any(
            name in unit.read_text("utf-8", "replace") for unit in units
        )
    except OSError:
        return True  # we may not look there, so we cannot say that it is missing


def judge_secret(section: Provider | Node, at: KeyPath, draft: Draft) -> None:
    """Report what is wrong with the password of `section`, as far as we may look: absent, or open to others."""
    path = section.password_file
    if path is None:
        wanted = isinstance(section, Provider) and section.username is not None and section.auth is not Auth.EXTERNAL
        trouble = any(draft.wrong(*at, key) for key in ("password_file", "username", "auth", "name", "method"))
        if wanted and not trouble and not _credential(section) and not _credential_is_promised(section):
            allowed = f'password_file = "FILE", or the systemd credential {credential_name(section)}'
            draft.report((*at, "username"), found="no password with it", allowed=allowed)
        return
    if draft.wrong(*at, "password_file"):
        return
    try:
        status = path.stat()
    except PermissionError:
        return  # whoever runs the agent may read it; `password` tells if not
    except (OSError, ValueError) as error:
        found = f"{path}: {str(getattr(error, 'strerror', None) or error).lower()}"
        draft.report((*at, "password_file"), found=found, allowed="a file that holds the password")
        return
    wrong = _exposure(status)
    if wrong is not None:
        allowed = f"a file that its owner alone can read: chmod 600 {path}"
        draft.report((*at, "password_file"), found=f"{path}: {wrong}", allowed=allowed, permission=True)
    elif not modes.S_ISREG(status.st_mode):
        draft.report((*at, "password_file"), found=f"{path}, no regular file", allowed="a file with the password")


def _exposure(status: os.stat_result) -> str | None:
    """Who else can read or change a secret, in words; None where nobody can."""
    if sys.platform == "win32":
        return None  # its modes say nothing: access is in the ACL of the directory, set at installing
    mode = modes.S_IMODE(status.st_mode)
    # root:siteagent 0640 is how a service reads what it must not change.
    through_group = status.st_uid == 0 and status.st_gid != 0
    if mode & (0o037 if through_group else 0o077):
        return f"mode {mode:04o}"
    if status.st_uid not in (0, os.geteuid()) and os.geteuid() != 0:
        return f"owned by user {status.st_uid}"
    return None


def password(section: Provider | Node, path: Path | None = None) -> str | None:
    """The password of a provider or node, None where none is configured; `path` instead of its `password_file`.

    Blocking. Raises:
        PermissionProblem: somebody else can read the file, or we cannot.
        ConfigurationError: it is missing or empty, or a login needs it and there is none.
    """
    path = path or section.password_file
    source = path or _credential(section)
    account = section.username if isinstance(section, Provider) else section.account
    what = f"cannot log in for {section.name}"
    if source is None:
        if account is None or (isinstance(section, Provider) and section.auth is Auth.EXTERNAL):
            return None
        fix = f"set password_file, or give the service the credential {credential_name(section)}"
        raise ConfigurationError(what, "there is no password", fix=fix)
    what = f"cannot use the password in {source}"
    try:
        # Not blocking: a FIFO in its place must not stop us.
        descriptor = os.open(source, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            regular = modes.S_ISREG(status.st_mode)
            raw = file.read(_LARGEST_SECRET) if regular else b""
    except PermissionError:
        raise PermissionProblem(what, "permission denied", fix=f"give {source} to the user we run as") from None
    except OSError as error:
        raise ConfigurationError(what, error.strerror or str(error)) from None
    wrong = _exposure(status) if path is not None else None
    if wrong is not None:
        raise PermissionProblem(what, f"others can read or change it ({wrong})", fix=f"chmod 600 {source}")
    secret = raw.split(b"\n", 1)[0].removesuffix(b"\r").decode("utf-8", "replace")
    if not secret:
        raise ConfigurationError(what, "it is empty" if regular else "it is no regular file")
    return secret
