"""What lets a local reader and the agent share a Maildir: directories, their owners, and POSIX ACLs.

The narrowest that works (measured with real users): the agent may pass through what stands above the Maildir, write in
``tmp/`` and ``new/``, look into ``cur/``; the reader may do everything in it, with files that the agent made too, by
the default ACL of ``tmp/``. Nobody joins anybody's group. Nothing here runs a command: a `Command` says what to run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from siteagent.config.sections import Mailbox

USER = "siteagent"
PARTS = ("tmp", "new", "cur")
HOMES = (Path("/home"), Path("/root"), Path("/run/user"))


@dataclass(frozen=True, slots=True)
class Command:
    """A command to run as root, and what for. `quietly`: that it cannot be run here is no failure."""

    argv: tuple[str, ...]
    why: str
    quietly: bool = False


def below(path: Path, places: Sequence[Path]) -> bool:
    """Whether `path` is one of `places` or lies in one."""
    return any(path == place or place in path.parents for place in places)


def in_a_home(path: Path) -> bool:
    """Whether `path` lies where ``ProtectHome=`` of systemd.exec(5) hides it."""
    return below(path, HOMES)


def maildir_commands(
    mailbox: Mailbox,
    *,
    group_of: Callable[[str], str],
    home: Callable[[str], Path | None],
    exists: Callable[[Path], bool] = Path.is_dir,
    user: str = USER,
) -> Iterator[Command]:
    """Makes and shares the Maildir of `mailbox`, in order; may be done again.

    `home`: a local user's, None where there is none; `group_of`: a user's own group; `user`: whom the agent runs as.

    A Maildir in the reader's own home belongs to the reader, any other to `user`, whom the agent runs as.
    """
    place, reader = mailbox.maildir, mailbox.reader
    own_home = home(reader) if reader is not None else None
    owner = reader if reader is not None and own_home is not None and below(place, [own_home]) else user
    paths = tuple(str(place / part) for part in PARTS)
    missing = [path for path in (str(place), *paths) if not exists(Path(path))]
    if missing:
        mode = "0700" if owner != user or reader is None else "0770"
        why = f"the Maildir of {mailbox.name}, which belongs to {owner}"
        # In the group of the owner, which `install` does not choose by itself.
        yield Command(("install", "-d", "-m", mode, "-o", owner, "-g", group_of(owner), *missing), why)
    if reader is None:
        return
    tmp, new, cur = paths
    passed = [str(parent) for parent in (own_home, *_between(place, own_home)) if parent is not None and owner != user]
    above = [str(place.parent)] if owner == user else passed
    other = user if owner == reader else reader
    if above:
        yield _acl((f"u:{other}:--x",), above, f"{other} may pass through to the Maildir of {mailbox.name}")
    if owner == reader:
        yield _acl((f"u:{user}:r-x",), [str(place), cur], f"{user} may look whether {reader} took a message already")
        yield _acl((f"u:{user}:rwx",), [tmp, new], f"{user} may file mail")
    else:
        yield _acl((f"u:{reader}:rwx",), [str(place), *paths], f"{reader} may read, sort and delete the mail")
    yield _acl((f"d:u:{reader}:rw-", "d:g::---", "d:o::---"), [tmp], f"{reader} may read and delete what {user} files")


def _between(place: Path, home: Path | None) -> Iterator[Path]:
    """The directories between a home and a Maildir in it."""
    if home is not None:
        yield from (parent for parent in place.parents if home in parent.parents)


def _acl(entries: Sequence[str], paths: Sequence[str], why: str) -> Command:
    return Command(("setfacl", "-m", ",".join(entries), *paths), why)
