"""Who may do what in a Maildir that the agent shares with its reader."""

from __future__ import annotations

import grp
import os
import pwd
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from siteagent.config.sections import Mailbox
from siteagent.host.grants import Command, below, in_a_home, maildir_commands


def commands(maildir: str, reader: str | None, *, there: bool = False, roots: tuple[str, ...] = ()) -> list[Command]:
    box = Mailbox(name="alice", addresses=("alice@office.example",), maildir=Path(maildir), reader=reader)
    return list(
        maildir_commands(
            box,
            home=lambda user: Path("/home") / user,
            group_of=lambda user: user,
            exists=lambda path: there,
            roots=lambda path: str(path) in roots,
        )
    )


def lines(found: list[Command]) -> list[str]:
    return [shlex.join(command.argv) for command in found]


def test_without_a_reader_the_maildir_is_ours_alone() -> None:
    assert lines(commands("/var/mail/siteagent/alice", None)) == [
        "runuser -u siteagent -- install -d -m 0700 /var/mail/siteagent/alice /var/mail/siteagent/alice/tmp "
        "/var/mail/siteagent/alice/new /var/mail/siteagent/alice/cur"
    ]


def test_in_a_directory_of_roots_root_makes_the_maildir_and_its_owner_the_rest() -> None:
    assert lines(commands("/srv/alice", None, roots=("/srv",))) == [
        "install -d -m 0700 -o siteagent -g siteagent /srv/alice",
        "runuser -u siteagent -- install -d -m 0700 /srv/alice/tmp /srv/alice/new /srv/alice/cur",
    ]
    assert "setfacl -m u:alice:--x /srv" in lines(commands("/srv/alice", "alice", roots=("/srv",)))


def test_a_maildir_in_the_readers_home_belongs_to_the_reader_and_we_may_only_file() -> None:
    found = lines(commands("/home/alice/mail/Maildir", "alice"))
    assert found[0].startswith("runuser -u alice -- install -d -m 0700 /home/alice/mail/Maildir ")
    assert found[1:] == [
        f"runuser -u alice -- setfacl -m {entries} {path}"
        for entries, path in (
            ("u:siteagent:--x", "/home/alice"),
            ("u:siteagent:--x", "/home/alice/mail"),
            ("u:siteagent:r-x", "/home/alice/mail/Maildir"),
            ("u:siteagent:r-x", "/home/alice/mail/Maildir/cur"),
            ("u:siteagent:rwx", "/home/alice/mail/Maildir/tmp"),
            ("u:siteagent:rwx", "/home/alice/mail/Maildir/new"),
            ("d:u:alice:rw-,d:g::---,d:o::---", "/home/alice/mail/Maildir/tmp"),
        )
    ]


def test_a_maildir_of_ours_lets_its_reader_in_and_nobody_else() -> None:
    found = lines(commands("/var/mail/siteagent/alice", "alice"))
    assert "runuser -u siteagent -- setfacl -m u:alice:--x /var/mail/siteagent" in found
    assert all("o::r" not in line and "o::w" not in line for line in found)


def test_a_maildir_that_stands_already_keeps_its_modes() -> None:
    assert not [line for line in lines(commands("/home/alice/Maildir", "alice", there=True)) if "install" in line]


def test_homes_are_known_by_whole_names() -> None:
    assert in_a_home(Path("/home/alice")) and in_a_home(Path("/root"))
    assert not in_a_home(Path("/homes/alice")) and not below(Path("/roots"), [Path("/root")])


# --- with real users --------------------------------------------------------------------------------------------------


@pytest.fixture
def place() -> Iterator[Path]:
    """In /var/tmp itself: pytest's own directories are closed to other users."""
    path = Path(subprocess.run(["mktemp", "-d", "/var/tmp/sa-XXXXXX"], capture_output=True, text=True).stdout.strip())
    path.chmod(0o755)
    yield path
    subprocess.run(["rm", "-rf", "--", str(path)])


def _as(user: str, script: str) -> subprocess.CompletedProcess[str]:
    uid = pwd.getpwnam(user).pw_uid
    return subprocess.run(
        ["setpriv", f"--reuid={uid}", f"--regid={pwd.getpwnam(user).pw_gid}", "--clear-groups", "sh", "-c", script],
        capture_output=True,
        text=True,
    )


@pytest.mark.netns  # root
@pytest.mark.tools("setfacl", "setpriv")
@pytest.mark.parametrize("own_home", [True, False])
def test_what_the_agent_files_its_reader_can_read_move_and_delete_and_nobody_else(place: Path, own_home: bool) -> None:
    agent, reader, stranger = "games", "nobody", "daemon"  # users that every Debian has
    home = place / "home"
    home.mkdir()
    os.chown(home, pwd.getpwnam(reader).pw_uid, -1)
    home.chmod(0o700)
    root = home if own_home else place / "mail"
    root.mkdir(exist_ok=True)
    if not own_home:
        os.chown(root, pwd.getpwnam(agent).pw_uid, -1)
        root.chmod(0o750)
    box = Mailbox(name="box", addresses=("a@b.example",), maildir=root / "Maildir", reader=reader)
    found = maildir_commands(
        box,
        home=lambda user: home,
        group_of=lambda user: grp.getgrgid(pwd.getpwnam(user).pw_gid).gr_name,
        user=agent,
    )
    for command in found:
        done = subprocess.run(command.argv, capture_output=True, text=True)
        assert done.returncode == 0, (command.argv, done.stderr)
    maildir = box.maildir
    filed = _as(
        agent, f"umask 077; cd {maildir}; echo hello >tmp/1; chmod 660 tmp/1; mv tmp/1 new/1; ls cur new >/dev/null"
    )
    assert filed.returncode == 0, filed.stderr
    assert _as(stranger, f"cat {maildir}/new/1").returncode != 0
    read = _as(reader, f"cd {maildir}; cat new/1; mv new/1 cur/1:2,S; echo more >>cur/1:2,S; rm cur/1:2,S")
    assert (read.returncode, read.stdout) == (0, "hello\n"), read.stderr


@pytest.mark.netns  # root
@pytest.mark.tools("setfacl", "getfacl")
@pytest.mark.parametrize("part", ["tmp", "new", "Maildir"])
@pytest.mark.parametrize("own_home", [True, False])
def test_a_link_that_a_user_plants_gives_nobody_a_right_where_it_leads(place: Path, part: str, own_home: bool) -> None:
    """X5: who may write there puts a link in the way and waits for root to install the service again."""
    agent, reader = "games", "nobody"
    owner = pwd.getpwnam(reader if own_home else agent)
    victim, there = place / "etc", place / "box"
    victim.mkdir(mode=0o755)
    there.mkdir()
    maildir = there / "Maildir"
    made = [maildir] if part == "Maildir" else [maildir, *(maildir / each for each in ("tmp", "new", "cur"))]
    if part != "Maildir":
        for each in made:
            each.mkdir(mode=0o700)
        (maildir / part).rmdir()
        (maildir / part).symlink_to(victim)
    else:
        for each in ("tmp", "new", "cur"):
            (victim / each).mkdir()
        maildir.symlink_to(victim)
    for each in (there, *made):
        os.chown(each, owner.pw_uid, owner.pw_gid, follow_symlinks=False)
    before = subprocess.run(["getfacl", "-R", str(victim)], capture_output=True, text=True).stdout
    box = Mailbox(name="box", addresses=("a@b.example",), maildir=maildir, reader=reader)
    home = there if own_home else place / "elsewhere"
    ended = [
        subprocess.run(command.argv, capture_output=True, text=True).returncode
        for command in maildir_commands(box, home=lambda user: home, group_of=lambda user: "nogroup", user=agent)
    ]
    assert any(ended), "it is told"
    assert subprocess.run(["getfacl", "-R", str(victim)], capture_output=True, text=True).stdout == before
