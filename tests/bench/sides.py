"""What is measured: servers that take mail on loopback and file it into a Maildir, each in a directory of its own."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

DOMAIN = "bench.example"
_SERVE = Path(__file__).with_name("serve.py")
_TICKS = os.sysconf("SC_CLK_TCK")
_PATIENCE_SECONDS = 60.0

_MASTER = """\
127.0.0.1:{port} inet n - n - - smtpd
pickup     unix  n - n 60 1    pickup
cleanup    unix  n - n - 0     cleanup
qmgr       unix  n - n 300 1   qmgr
rewrite    unix  - - n - -     trivial-rewrite
bounce     unix  - - n - 0     bounce
defer      unix  - - n - 0     bounce
trace      unix  - - n - 0     bounce
proxymap   unix  - - n - -     proxymap
virtual    unix  - n n - -     virtual
smtp       unix  - - n - -     smtp
scache     unix  - - n - 1     scache
error      unix  - - n - -     error
retry      unix  - - n - -     error
anvil      unix  - - n - 1     anvil
showq      unix  n - n - -     showq
tlsmgr     unix  - - n 1000? 1 tlsmgr
postlog    unix-dgram n - n - 1 postlogd
"""
_QUEUES = (
    *("active", "bounce", "corrupt", "defer", "deferred", "flush", "hold", "incoming", "maildrop", "pid", "private"),
    *("public", "saved", "trace"),
)


def environment() -> dict[str, str]:
    """For the programs of ours that are measured: not under coverage, and with compiled modules, as when installed."""
    left_out = ("COVERAGE_", "PYTHONDONTWRITEBYTECODE")
    return {key: value for key, value in os.environ.items() if not key.startswith(left_out)}


class Trouble(Exception):
    """The benchmark cannot go on."""


class Side:
    """One server. `keeps`: what it accepts becomes a file in `new`."""

    name = ""
    keeps = True

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = 0
        self.new = directory / "box" / "new"

    def start(self) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        raise NotImplementedError

    def pids(self) -> list[int]:
        """All of its processes, the one first that the others are children of."""
        raise NotImplementedError

    def filed(self) -> int:
        """How many files stand in the Maildir."""
        try:
            with os.scandir(self.new) as entries:
                return sum(1 for _ in entries)
        except FileNotFoundError:
            return 0

    def empty(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            put_aside(self.new)

    def cpu_seconds(self) -> float:
        """User and system time of all its processes, of those too that have ended."""
        ticks = 0
        for number, pid in enumerate(self.pids()):
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks += sum(map(int, fields[11 : 15 if number == 0 else 13]))
        return ticks / _TICKS

    def memory_bytes(self) -> int:
        """What all its processes hold, shared pages divided among them (PSS)."""
        total = 0
        for pid in self.pids():
            with contextlib.suppress(OSError, IndexError):
                text = Path(f"/proc/{pid}/smaps_rollup").read_text()
                total += int(text.partition("\nPss:")[2].split()[0]) * 1024
        return total


class Served(Side):
    """A Python side: `serve.py` in a process of its own."""

    def __init__(self, name: str, directory: Path, *, options: str = "") -> None:
        """`options`: lines of TOML for the table `listener` of ours."""
        super().__init__(directory)
        self.name = name
        self._options = options
        self.keeps = name != "nothing"
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self.directory.mkdir(parents=True)
        self._process = subprocess.Popen(
            [sys.executable, str(_SERVE), self.name, str(self.directory), self._options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        word, _, port = self._line().partition(" ")
        if word != "ready":
            raise Trouble(f"{self.name} does not start")
        self.port = int(port)

    def stop(self) -> None:
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def pids(self) -> list[int]:
        assert self._process is not None
        return [self._process.pid]

    @property
    def pid(self) -> int:
        return self.pids()[0]

    def watch(self) -> None:
        self._order("watch")

    def longest_stall(self) -> float:
        """Milliseconds since `watch`."""
        return float(self._order("longest"))

    def _order(self, word: str) -> str:
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()
        return self._line()

    def _line(self) -> str:
        assert self._process is not None and self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise Trouble(f"{self.name} is gone")
        return line.strip()


class Postfix(Side):
    """smtpd, and virtual(8) into a Maildir: Postfix as it comes but for where its directories are."""

    name = "postfix"

    def __init__(self, directory: Path, *, settings: Mapping[str, str] | None = None) -> None:
        super().__init__(directory)
        self.etc, self.queue = directory / "etc", directory / "queue"
        self._settings = dict(settings or {})

    @staticmethod
    def missing() -> str | None:
        """Why it cannot be run here."""
        if sys.platform != "linux" or os.geteuid() != 0:
            return "Postfix needs root on Linux"
        path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
        return None if shutil.which("postfix", path=path) else "Debian's package postfix is not installed"

    def start(self) -> None:
        for path in (self.etc, self.queue, self.directory / "data", self.directory / "box"):
            path.mkdir(parents=True)
        owner = pwd.getpwnam("nobody")
        os.chown(self.directory / "box", owner.pw_uid, owner.pw_gid)
        shutil.chown(self.directory / "data", "postfix")
        self._make_queue()
        self.port = _free_port()
        (self.etc / "master.cf").write_text(_MASTER.format(port=self.port))
        settings = {**self._main(owner), **self._settings}
        (self.etc / "main.cf").write_text("".join(f"{key} = {value}\n" for key, value in settings.items()))
        for name in ("main.cf", "master.cf"):
            os.utime(self.etc / name, (time.time() - 60,) * 2)  # it waits for fresh files to settle
        (self.queue / "quick-start").touch()
        self._postfix("start")
        until = time.monotonic() + _PATIENCE_SECONDS
        while not _listens(self.port):
            if time.monotonic() > until:
                raise Trouble(f"postfix does not start: {self.log()[-1000:]}")
            time.sleep(0.05)

    def stop(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            master = self.pids()[0]
            self._postfix("stop")
            until = time.monotonic() + _PATIENCE_SECONDS
            while Path(f"/proc/{master}").exists() and time.monotonic() < until:
                time.sleep(0.05)

    def reload(self) -> None:
        self._postfix("reload")

    def pids(self) -> list[int]:
        master = int((self.queue / "pid" / "master.pid").read_text())
        children = Path(f"/proc/{master}/task/{master}/children").read_text().split()
        return [master, *map(int, children)]

    def log(self) -> str:
        path = self.directory / "mail.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def _main(self, owner: pwd.struct_passwd) -> dict[str, str]:
        return {
            "compatibility_level": "3.6",
            "queue_directory": str(self.queue),
            "data_directory": str(self.directory / "data"),
            "maillog_file": str(self.directory / "mail.log"),
            "maillog_file_prefixes": str(self.directory),
            "myhostname": f"mail.{DOMAIN}",
            "mydestination": "",
            "alias_maps": "",
            "alias_database": "",
            "inet_interfaces": "127.0.0.1",
            "inet_protocols": "ipv4",
            "mynetworks": "127.0.0.0/8",
            "smtpd_peername_lookup": "no",
            "virtual_mailbox_domains": DOMAIN,
            "virtual_mailbox_base": str(self.directory),
            "virtual_mailbox_maps": "static:box/",
            "virtual_uid_maps": f"static:{owner.pw_uid}",
            "virtual_gid_maps": f"static:{owner.pw_gid}",
            "virtual_minimum_uid": "1",
            "virtual_mailbox_limit": "0",
            "mailbox_size_limit": "0",
            "message_size_limit": "0",
        }

    def _make_queue(self) -> None:
        """As Postfix's post-install makes it."""
        for name in _QUEUES:
            owner, group, mode = {
                "pid": ("root", "root", 0o755),
                "maildrop": ("postfix", "postdrop", 0o1730),
                "public": ("postfix", "postdrop", 0o2710),
            }.get(name, ("postfix", "root", 0o700))
            path = self.queue / name
            path.mkdir()
            shutil.chown(path, owner, group)
            path.chmod(mode)

    def _postfix(self, verb: str) -> None:
        path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
        # Into a file, not a pipe: the master keeps what it inherits.
        with (self.directory / "postfix.out").open("ab") as out:
            subprocess.run(
                ["postfix", "-c", str(self.etc), verb],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                timeout=60,
                env={**os.environ, "PATH": path},
                check=True,
            )


def put_aside(folder: Path) -> None:
    """Makes `folder` empty without deleting a file: what stood in it is cut to nothing and moved out of the way.

    On ext4 without a journal each new file first looks at every inode near it that was deleted in the last minutes:
    deleting a thousand files here was seen to cost the next load half of its CPU time.
    """
    status = folder.stat()
    aside = folder.with_name(f"{folder.name}-{time.monotonic_ns()}")
    folder.rename(aside)
    folder.mkdir()
    os.chown(folder, status.st_uid, status.st_gid)
    folder.chmod(status.st_mode & 0o7777)
    for entry in os.scandir(aside):
        os.truncate(entry, 0)


@contextlib.contextmanager
def running(*sides: Side) -> Iterator[None]:
    """All of `sides`, stopped at the end whatever happens."""
    with contextlib.ExitStack() as stack:
        for side in sides:
            stack.callback(side.stop)
            side.start()
        yield


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as own:
        return int(own.getsockname()[1])


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as own:
        return own.recv(3) == b"220"
    return False
