"""A machine that systemd boots: in namespaces of its own, on an overlay of this host's files that is thrown away.

What a container of Debian would be, without one to fetch: this host's /usr and /etc below, everything that is written
above, in memory; its own processes, mounts, network (a loopback alone) and control groups. systemd thinks that it is in
a container, and does for a service all that it does elsewhere: sandbox, system call filter, credentials, sockets.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import IO

SYSTEMD = Path("/lib/systemd/systemd")
PYTHON = Path("/usr/bin/python3")
# What siteagent needs, and what that needs.
DEPENDENCIES = ("aiosmtpd", "aiosmtplib", "atpublic", "attrs", "click", "dnspython", "idna", "platformdirs", "watchdog")
# Of what systemd starts at every boot, the little that a machine without devices has a use for.
_KEPT = {"systemd-journald.service", "systemd-sysusers.service", "systemd-tmpfiles-setup.service"}
_CGROUPS = Path("/sys/fs/cgroup")

_BOOT = r"""
set -e
root=$1
mount --make-rprivate /
mount -t proc proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount -t tmpfs -o mode=755 tmpfs "$root/sys"
mkdir -p "$root/sys/fs/cgroup"
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
else
    mount -t tmpfs -o mode=755 tmpfs "$root/sys/fs/cgroup"
    mkdir "$root/sys/fs/cgroup/systemd"
    mount -t cgroup -o none,name=systemd cgroup "$root/sys/fs/cgroup/systemd"
fi
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for device in null zero full random urandom tty; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
# Elsewhere systemd does so itself, for what it mounts into the services: their credentials.
mount --make-rshared /
hostname site
ip link set lo up
exec env -i container=oci PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot "$root" /lib/systemd/systemd \
    --unit=multi-user.target --log-target=console --show-status=0
"""


@cache
def why_not() -> str | None:
    """Why no machine can be booted here; None where one can."""
    if not SYSTEMD.exists() or not PYTHON.exists():
        return "systemd and Debian's python3 missing: python3 tests/check.py --system-packages"
    done = subprocess.run(
        [PYTHON, "-c", "import sys; print(*sys.version_info[:2])"], capture_output=True, text=True, check=True
    )
    if done.stdout.split() != [str(part) for part in sys.version_info[:2]]:
        return f"{PYTHON} is another Python than this one, whose packages it would run"
    return None


class Machine:
    """One booted machine. `siteagent` is installed at /opt/siteagent in it, from a wheel, as a user would."""

    def __init__(self, root: Path, process: subprocess.Popen[bytes], console: Path) -> None:
        self.root = root
        self._process = process
        self._console = console

    def run(self, *argv: str, user: str = "root", seconds: float = 60) -> subprocess.CompletedProcess[str]:
        """A command in it; as `user` with that user's own environment."""
        become = [] if user == "root" else ["runuser", "-u", user, "--"]
        path = "/opt/siteagent/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        environment = [
            "env",
            "-i",
            f"PATH={path}",
            f"HOME={'/root' if user == 'root' else f'/home/{user}'}",
            "LANG=C.UTF-8",
        ]
        return subprocess.run(
            [
                "nsenter",
                "-t",
                self._init(),
                "-m",
                "-p",
                "-u",
                "-i",
                "-n",
                "-C",
                "-r",
                "-w",
                *environment,
                *become,
                *argv,
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
        )

    def ok(self, *argv: str, user: str = "root", seconds: float = 60) -> str:
        """What a command says that must succeed."""
        done = self.run(*argv, user=user, seconds=seconds)
        assert done.returncode == 0, (argv, done.returncode, done.stdout, done.stderr, self.journal())
        return done.stdout

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        place = self.root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
        place.chmod(mode)

    def journal(self, unit: str = "siteagent") -> str:
        return self.run("journalctl", "--no-pager", "-o", "cat", "-u", unit).stdout

    def wait_for(self, condition: Callable[[], object], what: str, seconds: float = 30) -> None:
        until = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < until, f"{what} did not come:\n{self.console()}\n{self.journal()}"
            time.sleep(0.1)

    def is_up(self) -> bool:
        return self.run("systemctl", "is-system-running").stdout.strip() in ("running", "degraded")

    def begun(self) -> bool:
        """Its first process is systemd by now."""
        assert self._process.poll() is None, f"it did not boot: {self.console()}"
        return any(Path(f"/proc/{child}/comm").read_text() == "systemd\n" for child in self._children())

    def console(self) -> str:
        return self._console.read_text(errors="replace")[-3000:]

    def _init(self) -> str:
        """The pid, out here, of the process that is number 1 in there."""
        children = self._children()
        assert children, f"the machine is gone: {self.console()}"
        return children[0]

    def _children(self) -> list[str]:
        return Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()


@contextlib.contextmanager
def machine(directory: Path, wheel: Path) -> Iterator[Machine]:
    """Boots one with the wheel installed. `directory` must be empty."""
    root = directory / "root"
    root.mkdir()
    with _mounted("-t", "tmpfs", "tmpfs", str(directory)):
        for name in ("upper", "work", "root"):
            (directory / name).mkdir(exist_ok=True)
        layers = f"lowerdir=/,upperdir={directory}/upper,workdir={directory}/work"
        with _mounted("-t", "overlay", "overlay", "-o", layers, str(root)):
            _prepare(root, wheel)
            console = directory / "console"
            with console.open("wb") as output, _booted(root, output) as process:
                made = Machine(root, process, console)
                until = time.monotonic() + 20
                while not made.begun():
                    assert time.monotonic() < until, made.console()
                    time.sleep(0.05)
                made.wait_for(made.is_up, "the boot")
                yield made


@contextlib.contextmanager
def _mounted(*arguments: str) -> Iterator[None]:
    subprocess.run(["mount", *arguments], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", arguments[-1]], check=True)


def _prepare(root: Path, wheel: Path) -> None:
    for wants in root.glob("lib/systemd/system/*.target.wants/*"):
        if wants.name not in _KEPT:
            wants.unlink()
    for wants in root.glob("etc/systemd/system/*.wants/*"):
        wants.unlink()
    opt = root / "opt" / "siteagent"
    subprocess.run([PYTHON, "-m", "venv", "--without-pip", str(opt)], check=True)
    (opt / "pyvenv.cfg").write_text((opt / "pyvenv.cfg").read_text().replace(str(root), ""))
    (packages,) = opt.glob("lib/python3.*/site-packages")
    for name in DEPENDENCIES:
        for file in metadata.files(name) or ():
            if ".." not in file.parts:
                target = packages / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(str(file.locate()), target)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    command = opt / "bin" / "siteagent"
    command.write_text('#!/bin/sh\nexec /opt/siteagent/bin/python3 -I -m siteagent "$@"\n')
    command.chmod(0o755)


@contextlib.contextmanager
def _booted(root: Path, output: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """The machine's own group of control groups, and in it `unshare`, whose child is the machine's first process."""
    hierarchy = _CGROUPS if (_CGROUPS / "cgroup.controllers").exists() else _CGROUPS / "systemd"
    group = hierarchy / f"siteagent-test-{os.getpid()}"
    group.mkdir()
    join = f'echo $$ > {group}/cgroup.procs && exec "$@"'
    process = subprocess.Popen(
        ["sh", "-c", join, "sh", "unshare", "--cgroup", "--pid", "--fork", "--kill-child", "--mount", "--uts", "--ipc",
         "--net", "sh", "-c", _BOOT, "sh", str(root)],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait(20)
        _remove_group(group)


def _remove_group(group: Path) -> None:
    until = time.monotonic() + 10
    while True:
        try:
            for each in sorted(group.rglob("*/"), key=lambda path: -len(path.parts)):
                each.rmdir()
            group.rmdir()
            return
        except OSError:  # its last processes are going
            if time.monotonic() > until:
                raise
            time.sleep(0.1)
