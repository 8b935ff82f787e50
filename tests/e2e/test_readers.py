"""Who reads the Maildirs: Dovecot by docs/reading-mail.md's own configuration, mutt and mbsync, while mail arrives."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import imaplib
import itertools
import os
import pty
import pwd
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from siteagent.config.sections import Mailbox
from siteagent.delivery.filer import Filer
from siteagent.delivery.maildir import Maildir, header_lines
from siteagent.host.grants import maildir_commands
from siteagent.store.spool import Spool
from tests.letters import envelope

pytestmark = [pytest.mark.netns, pytest.mark.tools("dovecot", "mbsync", "mutt", "setfacl")]  # netns: root

PAGE = (Path(__file__).parents[2] / "docs" / "reading-mail.md").read_text("utf-8")
AGENT, READER = "games", "news"  # users that every Debian has; the agent's is `siteagent` on the page
MESSAGES = 60
ADDRESS = "alice@office.example"


def _content(number: int) -> bytes:
    shapes = (b"plain\n", b"From the start\n.dot\n\n", b"\xc3\xa4 8bit \xff\n", b"x" * 5000 + b"\n", b"bare\rreturn\n")
    return b"Subject: message %d\nMessage-ID: <%d@x.test>\n\n" % (number, number) + shapes[number % len(shapes)]


def _printed(name: str) -> str:
    match = re.search(rf"<!-- dovecot: {name} -->\n```\n(.*?)```", PAGE, re.DOTALL)
    assert match is not None
    return match[1]


@dataclass
class Site:
    """A Maildir that the agent fills, and a Dovecot that serves it."""

    directory: Path
    box: Mailbox
    port: int
    log: Path

    def imap(self) -> imaplib.IMAP4:
        connection = imaplib.IMAP4("127.0.0.1", self.port, timeout=20)
        connection.login("alice" if self.box.reader is None else READER, "secret")
        connection.select("INBOX")
        return connection

    def fill(self, first: int, count: int) -> int:
        """Files messages as the agent's user, in a process of its own; its pid. Modules are loaded before."""
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            entry = pwd.getpwnam(AGENT)
            os.setgroups([])
            os.setgid(entry.pw_gid)
            os.setuid(entry.pw_uid)
            os.umask(0o077)
            asyncio.run(_file(self.directory / "state", self.box, range(first, first + count)))
            code = 0
        finally:
            os._exit(code)


async def _file(state: Path, box: Mailbox, numbers: range) -> None:
    spool = Spool(state)
    told: list[object] = []
    filer = Filer(spool, {box.name: Maildir(box)}, emit=told.append)
    spool.on_committed, spool.place = filer.accept, filer.place
    spool.open()
    for number in numbers:
        letter = envelope((ADDRESS, box.name), session=f"s{number}", sender="a@x.test")
        writer = spool.body(letter)
        writer.write(_content(number))
        await spool.commit(letter, await writer.finish())
        await asyncio.sleep(0.01)
    while len(told) < len(numbers):
        await asyncio.sleep(0.01)
    await filer.close()
    await spool.close()


def _group(user: str) -> str:
    return grp.getgrgid(pwd.getpwnam(user).pw_gid).gr_name


@contextlib.contextmanager
def _dovecot(directory: Path, settings: str, users: str) -> Iterator[tuple[int, Path]]:
    """Debian's Dovecot with `settings`, on a port of its own, all of it below `directory`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log, file = directory / "dovecot.log", directory / "dovecot.conf"
    (directory / "users").write_text(users)
    (directory / "users").chmod(0o644)
    file.write_text(
        f"base_dir = {directory}/run\nstate_dir = {directory}/run\nlog_path = {log}\nprotocols = imap\nssl = no\n"
        "disable_plaintext_auth = no\nlisten = 127.0.0.1\nfirst_valid_uid = 1\nfirst_valid_gid = 1\n"
        f"service imap-login {{\n  inet_listener imap {{\n    port = {port}\n  }}\n"
        f"  inet_listener imaps {{\n    port = 0\n  }}\n}}\n{settings}"
    )
    process = subprocess.Popen(["dovecot", "-F", "-c", str(file)], stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 10
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            assert process.poll() is None, process.stderr and process.stderr.read().decode()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield port, log
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


@pytest.fixture(params=["one-user", "own-maildirs"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    """In /tmp itself: pytest's own directories are closed to other users."""
    directory = Path(tempfile.mkdtemp(prefix="sa-readers-", dir="/tmp"))
    directory.chmod(0o755)
    agent, reader = pwd.getpwnam(AGENT), pwd.getpwnam(READER)
    for name, owner, mode in (("state", agent, 0o700), ("mail", agent, 0o750), ("home", reader, 0o700)):
        (directory / name).mkdir()
        os.chown(directory / name, owner.pw_uid, owner.pw_gid)
        (directory / name).chmod(mode)
    settings = _printed(request.param)
    if request.param == "one-user":
        box = Mailbox(name="alice", addresses=(ADDRESS,), maildir=directory / "mail" / "alice")
        settings = settings.replace("/var/mail/siteagent", f"{directory}/mail")
        settings = settings.replace("/etc/dovecot/siteagent-users", f"{directory}/users")
        # Debian's user is called as ours; the group of another may have another name.
        settings = re.sub(r"gid( ?)=( ?)siteagent", rf"gid\1=\2{_group(AGENT)}", settings).replace("siteagent", AGENT)
        users = "alice:{PLAIN}secret\n"
    else:
        box = Mailbox(name="alice", addresses=(ADDRESS,), maildir=directory / "home" / "Maildir", reader=READER)
        # PAM and the system's users are the host's: the same answers come from a file here.
        for driver in ("pam", "passwd"):
            settings = settings.replace(f"driver = {driver}\n", f"driver = passwd-file\n  args = {directory}/users\n")
        users = f"{READER}:{{PLAIN}}secret:{reader.pw_uid}:{reader.pw_gid}::{directory}/home::\n"
    for command in maildir_commands(box, home=lambda user: directory / "home", group_of=_group, user=AGENT):
        subprocess.run(command.argv, check=True)
    # Everything that the child needs is loaded before it gives root up: our Python may be root's alone.
    asyncio.run(_file(directory / "loaded", replace_place(box, directory / "loaded-mail"), range(1)))
    try:
        with _dovecot(directory, settings, users) as (port, log):
            yield Site(directory, box, port, log)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def replace_place(box: Mailbox, place: Path) -> Mailbox:
    return Mailbox(name=box.name, addresses=box.addresses, maildir=place)


def _fetched(connection: imaplib.IMAP4) -> dict[bytes, tuple[bytes, int]]:
    """Message-ID -> (whole message, RFC822.SIZE)."""
    found: dict[bytes, tuple[bytes, int]] = {}
    kind, data = connection.fetch("1:*", "(RFC822.SIZE BODY.PEEK[])")
    assert kind == "OK"
    for row in data:
        if isinstance(row, tuple):
            size = re.search(rb"RFC822.SIZE (\d+)", row[0])
            identity = re.search(rb"Message-ID: <(\d+)@", row[1])
            assert size is not None and identity is not None
            found[identity[1]] = (row[1], int(size[1]))
    return found


def test_dovecot_serves_what_was_sent_while_it_arrives_and_has_no_complaint(site: Site) -> None:
    filling = site.fill(0, MESSAGES)
    connection = site.imap()
    moved: set[bytes] = set()
    deadline = time.monotonic() + 60
    for look in itertools.count():
        connection.noop()
        _, (count,) = connection.search(None, "ALL")
        numbers = count.split()
        if numbers and look % 3 == 0:
            # As people do: read it, mark it, which renames the file in cur/.
            connection.store(numbers[-1], "+FLAGS", r"(\Seen \Flagged)")
            moved.add(numbers[-1])
        if len(numbers) == MESSAGES:
            break
        assert time.monotonic() < deadline, (len(numbers), site.log.read_text())
        time.sleep(0.05)
    _, status = os.waitpid(filling, 0)
    assert status == 0
    fetched = _fetched(connection)
    assert len(fetched) == MESSAGES and moved
    for number in range(MESSAGES):
        whole, size = fetched[b"%d" % number]
        sent = header_lines("a@x.test", ADDRESS, envelope().received) + _content(number)
        # IMAP's lines end with CRLF; a bare CR in a message stays as it came.
        assert whole == sent.replace(b"\n", b"\r\n"), number
        assert size == len(whole)
    connection.logout()
    complaints = [row for row in site.log.read_text().splitlines() if re.search(r"Error|Warning|Panic|Fatal", row)]
    assert complaints == []


def test_mutt_opens_it_and_mbsync_copies_it(site: Site, tmp_path: Path) -> None:
    assert os.waitpid(site.fill(0, 8), 0)[1] == 0
    copy = tmp_path / "copy"
    copy.mkdir()
    user = "alice" if site.box.reader is None else READER
    (tmp_path / "mbsyncrc").write_text(
        f"IMAPAccount site\nHost 127.0.0.1\nPort {site.port}\nUser {user}\nPass secret\nSSLType None\n"
        "AuthMechs LOGIN\n\nIMAPStore far\nAccount site\n\n"
        f"MaildirStore near\nPath {copy}/\nInbox {copy}/INBOX\nSubFolders Verbatim\n\n"
        f"Channel c\nFar :far:\nNear :near:\nPatterns INBOX\nCreate Near\nSync Pull\nSyncState {tmp_path}/\n"
    )
    done = subprocess.run(["mbsync", "-c", str(tmp_path / "mbsyncrc"), "c"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    copied = [path for part in ("new", "cur") for path in (copy / "INBOX" / part).iterdir()]
    assert len(copied) == 8
    owner = READER if site.box.reader else AGENT
    mutt = ["mutt", "-n", "-F", "/dev/null", "-e", f"set folder={site.box.maildir}", "-f", str(site.box.maildir)]
    assert b"Msgs:8" in _on_a_terminal(_as(owner, mutt))
    # Opened by its reader, all of it is read.
    assert len(list((site.box.maildir / "cur").iterdir())) + len(list((site.box.maildir / "new").iterdir())) == 8


def _as(user: str, argv: list[str]) -> list[str]:
    entry = pwd.getpwnam(user)
    return ["setpriv", f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--clear-groups", *argv]


def _on_a_terminal(argv: list[str]) -> bytes:
    """What a program of the whole screen shows until it is told to quit."""
    leader, follower = pty.openpty()
    subprocess.run(["stty", "rows", "24", "cols", "100"], stdin=follower)
    environment = {"PATH": "/usr/bin:/bin", "TERM": "xterm", "HOME": "/nonexistent", "LANG": "C.UTF-8"}
    process = subprocess.Popen(
        argv, stdin=follower, stdout=follower, stderr=follower, start_new_session=True, env=environment
    )
    os.close(follower)
    shown, deadline = b"", time.monotonic() + 15
    quit_said = False
    with contextlib.suppress(OSError):
        os.set_blocking(leader, False)
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(BlockingIOError):
                shown += os.read(leader, 65_536)
            if b"Msgs:" in shown and not quit_said:
                quit_said = True
                os.write(leader, b"x")
            time.sleep(0.05)
    process.kill()
    process.wait(10)
    os.close(leader)
    return shown
