"""A file system whose power can be cut: ext4 in a file, shut down by its own ioctl, which flushes nothing."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def tool(*words: str | Path, check: bool = True) -> str:
    """Runs a system program. Raises AssertionError with its complaint."""
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "PATH": _PATH})
    if check and done.returncode:
        raise AssertionError(f"{' '.join(map(str, words))}: {done.stderr}")
    return done.stdout


class Ext4:
    """A fresh ext4 in a file, whose power can be cut."""

    def __init__(self, place: Path, name: str) -> None:
        self.image, self.path = place / f"{name}.img", place / name
        self.path.mkdir()
        with self.image.open("wb") as file:
            file.truncate(96 * 1024 * 1024)
        tool("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,nodiscard", str(self.image))
        self.mount()

    def mount(self) -> None:
        tool("mount", "-o", "loop", str(self.image), str(self.path))

    def cut(self) -> None:
        tool("xfs_io", "-x", "-c", "shutdown", str(self.path))

    def restore(self) -> None:
        """Mounts what reached the platters: a copy, since another mount namespace may still hold the dead one."""
        tool("umount", "-l", str(self.path), check=False)
        platters = self.image.with_suffix(".platters")
        tool("cp", "--sparse=always", str(self.image), str(platters))
        self.image.unlink()
        self.image = platters
        self.mount()

    def remove(self) -> None:
        tool("umount", "-l", str(self.path), check=False)
        self.image.unlink(missing_ok=True)


@contextmanager
def disks(place: Path, count: int) -> Iterator[list[Ext4]]:
    """`count` fresh ones below `place`, removed behind the block."""
    with ExitStack() as stack:
        made = []
        for number in range(count):
            made.append(Ext4(place, f"disk{number}"))
            stack.callback(made[-1].remove)
        yield made
