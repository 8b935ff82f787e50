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
ROOT = "root"
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


def is_roots(place: Path) -> bool:
    """Whether `place` is there and belongs to root."""
    try:
        return place.stat().st_uid == 0
    except OSError:
        return False


def maildir_commands(
    mailbox: Mailbox,
    *,
    group_of: Callable[[str], str],
    home: Callable[[str], Path | None],
    exists: Callable[[Path], bool] = Path.is_dir,
    roots: Callable[[Path], bool] = is_roots,
    user: str = USER,
) -> Iterator[Command]:
    """Makes and shares the Maildir of `mailbox`, in order; may be done again.

    `home`: a local user's, None where there is none; `group_of`: a user's own group; `user`: whom the agent runs as;
    `roots`: whether a directory is root's.

    A Maildir in the reader's own home belongs to the reader, any other to `user`, whom the agent runs as. What lies in
    a directory of theirs is done as they: they may put a link there at any moment, and a grant that root made through
    it would be a grant on whatever it leads to.
    """
    place, reader = mailbox.maildir, mailbox.reader
    own_home = home(reader) if reader is not None else None
    owner = reader if reader is not None and own_home is not None and below(place, [own_home]) else user
    paths = tuple(str(place / part) for part in PARTS)
    missing = [path for path in (str(place), *paths) if not exists(Path(path))]
    mode = "0700" if owner != user or reader is None else "0770"
    why = f"the Maildir of {mailbox.name}, which belongs to {owner}"
    if str(place) in missing and roots(place.parent):
        # In the group of the owner, which `install` does not choose by itself.
        yield Command(("install", "-d", "-m", mode, "-o", owner, "-g", group_of(owner), str(place)), why)
        missing.remove(str(place))
    if missing:
        yield _as(owner, "install", "-d", "-m", mode, *missing, why=why)
    if reader is None:
        return
    tmp, new, cur = paths
    passed = [parent for parent in (own_home, *_between(place, own_home)) if parent is not None and owner != user]
    above = [place.parent] if owner == user else passed
    other = user if owner == reader else reader
    through = f"{other} may pass through to the Maildir of {mailbox.name}"
    for parent in above:
        yield _acl(ROOT if roots(parent) else owner, (f"u:{other}:--x",), str(parent), through)
    if owner == reader:
        for path in (str(place), cur):
            yield _acl(owner, (f"u:{user}:r-x",), path, f"{user} may look whether {reader} took it already")
        for path in (tmp, new):
            yield _acl(owner, (f"u:{user}:rwx",), path, f"{user} may file mail")
    else:
        for path in (str(place), *paths):
            yield _acl(owner, (f"u:{reader}:rwx",), path, f"{reader} may read, sort and delete the mail")
    entries = (f"d:u:{reader}:rw-", "d:g::---", "d:o::---")
    yield _acl(owner, entries, tmp, f"{reader} may read and delete what {user} files")


def _between(place: Path, home: Path | None) -> Iterator[Path]:
    """The directories between a home and a Maildir in it."""
    if home is not None:
        yield from (parent for parent in place.parents if home in parent.parents)


def _acl(whose: str, entries: Sequence[str], path: str, why: str) -> Command:
    """For one path: of several, setfacl(1) tells by its exit status about the last alone."""
    return _as(whose, "setfacl", "-m", ",".join(entries), path, why=why)


def _as(whose: str, *argv: str, why: str) -> Command:
    """Run as `whose`: root gives itself up for it (runuser(1))."""
    return Command(argv if whose == ROOT else ("runuser", "-u", whose, "--", *argv), why)
