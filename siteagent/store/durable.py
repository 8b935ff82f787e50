"""What it takes to make a file survive: write whole, sync, publish by rename, sync the directory.

Every effect on disk that a promise leans on goes through one `Disk`, so that tests hand in one that fails where they
choose. All of it blocks, and belongs in a thread.

The laws (``docs/architecture.md``): a file is synced before it is published; its directory is synced before anybody is
told; a failed fsync condemns the file, and nobody calls fsync on it a second time, since the kernel has already
forgotten which pages were dirty (the PostgreSQL "fsyncgate" of 2018).

Traps: on Windows directories cannot be opened and synced, and a rename is only durable with MOVEFILE_WRITE_THROUGH;
a virus scanner may hold a new file for a moment.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

# The kernel's limit of buffers in one writev (UIO_MAXIOV).
_MOST_BUFFERS = 1024
_WINDOWS_SHARING_VIOLATIONS = frozenset({5, 32})
_WINDOWS_PATIENCE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Folder:
    """An open directory. `handle` is a descriptor on POSIX and -1 on Windows, where the path has to do."""

    path: Path
    handle: int


def foreign_link(path: Path) -> Path | None:
    """The first part of `path` that is a link which neither root nor we made: its maker chooses where `path` leads.

    None where there is none, and where we may not look.
    """
    if sys.platform == "win32":
        return None  # making one takes an administrator
    else:
        for part in (*reversed(path.parents), path):
            try:
                status = part.lstat()
            except OSError:
                return None  # whoever uses the path meets that too
            if stat.S_ISLNK(status.st_mode) and status.st_uid not in (0, os.geteuid()):
                return part
        return None


class Disk:
    """The real disk. Methods raise OSError as the system gives it; `no_room` tells the kinds apart."""

    def open_folder(self, path: Path, *, owners: Iterable[int] | None = None) -> Folder:
        """Opens `path`, which must be a directory itself (not a link to one) and belong to one of `owners`.

        Raises OSError; ELOOP or ENOTDIR for a link, EPERM for a foreign owner.
        """
        if sys.platform == "win32":
            if not path.is_dir() or path.is_symlink():
                raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
            return Folder(path, -1)
        else:
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            if owners is not None and os.fstat(handle).st_uid not in set(owners):
                os.close(handle)
                raise OSError(errno.EPERM, "it belongs to somebody else", str(path))
            return Folder(path, handle)

    def close_folder(self, folder: Folder) -> None:
        if folder.handle >= 0:
            os.close(folder.handle)

    def create(self, folder: Folder, name: str, mode: int) -> int:
        """A new file, open for writing: never an existing one, never through a link. Returns its descriptor."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
        flags |= getattr(os, "O_BINARY", 0)
        if folder.handle < 0:
            return os.open(folder.path / name, flags, mode)
        handle = os.open(name, flags, mode, dir_fd=folder.handle)
        if mode & 0o077 and sys.platform != "win32":
            try:
                os.fchmod(handle, mode)  # the umask of a service is 027 or 077, and the reader is in nobody's group
            except OSError:
                os.close(handle)
                os.unlink(name, dir_fd=folder.handle)
                raise
        return handle

    def write(self, handle: int, buffers: Sequence[bytes]) -> None:
        """All of `buffers`, whatever the number of calls it takes."""
        waiting = [memoryview(part) for part in buffers if part]
        while waiting:
            if sys.platform == "win32":
                written = os.write(handle, waiting[0])
            else:
                written = os.writev(handle, waiting[:_MOST_BUFFERS])
            if written <= 0:
                raise OSError(errno.EIO, "nothing was written")
            while waiting and written >= len(waiting[0]):
                written -= len(waiting[0])
                del waiting[0]
            if written:
                waiting[0] = waiting[0][written:]

    def start_write_back(self, handle: int) -> None:
        """A hint: send the dirty pages on their way, so that the fsyncs of a batch wait together and not in turn."""
        if sys.platform == "linux":
            with contextlib.suppress(OSError):
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)

    def sync_file(self, handle: int) -> None:
        if sys.platform == "darwin":
            import fcntl

            fcntl.fcntl(handle, fcntl.F_FULLFSYNC)  # fsync leaves it in the drive's cache there
        else:
            os.fsync(handle)

    def close(self, handle: int) -> None:
        os.close(handle)

    def publish(self, source: Folder, name: str, target: Folder, new_name: str) -> None:
        """Moves a synced file from `source` into `target`, in one step. The new name must be unique by its making."""
        if target.handle >= 0:
            os.rename(name, new_name, src_dir_fd=source.handle, dst_dir_fd=target.handle)
        else:
            _move_on_windows(source.path / name, target.path / new_name)

    def touch(self, folder: Folder, name: str) -> None:
        """Makes the file young again. Raises FileNotFoundError where there is none."""
        if folder.handle >= 0:
            os.utime(name, dir_fd=folder.handle, follow_symlinks=False)
        else:
            os.utime(folder.path / name)

    def sync_folder(self, folder: Folder) -> None:
        if folder.handle >= 0:
            os.fsync(folder.handle)

    def remove(self, folder: Folder, name: str) -> None:
        """Raises FileNotFoundError where there is none."""
        if folder.handle >= 0:
            os.unlink(name, dir_fd=folder.handle)
        else:
            (folder.path / name).unlink()

    def modified(self, folder: Folder, name: str) -> float:
        """When the file (a link: the link) was last written, in seconds since 1970. Raises FileNotFoundError."""
        if folder.handle >= 0:
            return os.stat(name, dir_fd=folder.handle, follow_symlinks=False).st_mtime
        return (folder.path / name).lstat().st_mtime

    def names(self, folder: Folder) -> list[str]:
        return os.listdir(folder.handle) if folder.handle >= 0 else os.listdir(folder.path)

    def free_bytes(self, path: Path) -> int:
        """What an unprivileged writer may still use of the file system that `path` is on."""
        if sys.platform == "win32":
            import shutil

            return shutil.disk_usage(path).free
        else:
            figures = os.statvfs(path)
            # A file system without inodes to give (btrfs) reports 0 of 0: that is not "none left".
            if figures.f_files and not figures.f_favail:
                return 0
            return figures.f_bavail * figures.f_frsize


def no_room(error: OSError) -> bool:
    """Whether `error` means "not now, for want of space": full disk, quota, file size limit."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def remove_quietly(path: Path) -> None:
    """Takes a file away that nobody was promised; what cannot be removed now is an orphan for the next start."""
    with contextlib.suppress(OSError):
        path.unlink()


def make_directories(path: Path, *, mode: int, disk: Disk) -> None:
    """Makes `path` and what is missing above it, each made durable by a sync of the directory it stands in."""
    if path.is_dir():
        return
    make_directories(path.parent, mode=mode, disk=disk)
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=mode)
    parent = disk.open_folder(path.parent.resolve())
    try:
        disk.sync_folder(parent)
    finally:
        disk.close_folder(parent)


def replace_file(path: Path, data: bytes, *, mode: int, durable: bool = False) -> None:
    """Puts `data` at `path` in one step: a reader finds the old content or the new, never half of one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    handle = os.open(temporary, flags, mode)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            if sys.platform != "win32":
                os.fchmod(handle, mode)
            if durable:
                file.flush()
                os.fsync(handle)
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    if durable and sys.platform != "win32":
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _move_on_windows(source: Path, target: Path) -> None:
    """MoveFileExW with MOVEFILE_REPLACE_EXISTING | MOVEFILE_WRITE_THROUGH, waiting a moment for virus scanners."""
    if sys.platform == "win32":
        deadline = time.monotonic() + _WINDOWS_PATIENCE_SECONDS
        move = ctypes.WinDLL("kernel32", use_last_error=True).MoveFileExW
        while not move(str(source), str(target), 0x1 | 0x8):
            code = ctypes.get_last_error()
            if code not in _WINDOWS_SHARING_VIOLATIONS or time.monotonic() > deadline:
                raise ctypes.WinError(code)
            time.sleep(0.05)
    else:
        source.replace(target)
