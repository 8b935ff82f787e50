"""Who we are: a command that root starts goes on as the owner of the state directory.

Otherwise one `sudo siteagent ask` would leave files of root's that the service cannot read.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from siteagent.errors import PermissionProblem


def owner_to_become(state_directory: Path) -> int | None:
    """The user id that root should go on as; None where we are not root, or root is the owner."""
    if sys.platform == "win32" or os.geteuid() != 0:
        return None
    try:
        owner = state_directory.stat().st_uid
    except OSError:
        return None
    return owner or None


def become(owner: int) -> None:
    """Gives root up for `owner`, with that user's groups, for good. Raises PermissionProblem."""
    if sys.platform != "win32":
        import pwd

        try:
            entry = pwd.getpwuid(owner)
            os.initgroups(entry.pw_name, entry.pw_gid)
            os.setgid(entry.pw_gid)
            os.setuid(owner)
        except (KeyError, OSError) as error:
            raise PermissionProblem(
                "cannot become the owner of the state directory",
                f"user {owner}: {getattr(error, 'strerror', None) or 'there is no such user'}",
                fix="run it as that user",
            ) from error
        os.environ["HOME"], os.environ["USER"] = entry.pw_dir, entry.pw_name


def share(secrets: Iterable[Path], state_directory: Path) -> None:
    """Lets the owner of the state directory read what root has just made: root's, 0640, of that user's group.

    Nothing where we are not root, or the service is not installed yet (`install-service` does the same then).
    """
    owner = owner_to_become(state_directory)
    if sys.platform == "win32" or owner is None:
        return
    group = state_directory.stat().st_gid
    for path in secrets:
        with contextlib.suppress(FileNotFoundError):
            os.chown(path, 0, group)
            path.chmod(path.stat().st_mode & 0o700 | 0o040)
