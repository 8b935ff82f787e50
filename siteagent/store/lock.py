"""One agent a state directory: a lock that the operating system takes back when its holder dies.

The file stays; what counts is the lock on it (`flock`, on Windows a locked byte), so a kill -9 or a reboot leaves
nothing stale. Its content, the holder's process id, is for people and for `status`.

The file is its owner's alone: whoever can open a file can lock it too, and would keep the agent from starting. For
everybody else's `status` the same stands in a second one, which is believed where that very process lives.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path

from siteagent.errors import CannotCreate, PermissionProblem

RUN = "run"
ASK = "ask"
_NAME = "lock"
_TOLD = "pid"  # "4711 run 123456": the process, its work, when it began in the kernel's ticks
# Far behind the process id: on Windows a locked byte cannot be read by others.
_LOCKED_BYTE = 1 << 20
_TRIES = 30
_BETWEEN_TRIES_SECONDS = 0.01


class Lock:
    """Held until `release`, or until the process ends. Made by `acquire`."""

    def __init__(self, handle: int, state_directory: Path) -> None:
        self._handle = handle
        self._told = state_directory / _TOLD

    def release(self) -> None:
        if self._handle >= 0:
            with contextlib.suppress(OSError):
                self._told.unlink()
            with contextlib.suppress(OSError):
                os.ftruncate(self._handle, 0)
            os.close(self._handle)
            self._handle = -1


def acquire(state_directory: Path, *, purpose: str, work: str = RUN) -> Lock:
    """Takes the lock of `state_directory` for `purpose` ("run the agent"); `work` is the same in a word.

    Raises CannotCreate naming the process that holds it, PermissionProblem where the directory is not ours.
    """
    path = state_directory / _NAME
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
    except PermissionError as error:
        raise PermissionProblem(
            f"cannot {purpose}",
            f"{path}: {error.strerror}",
            fix=f"run it as the owner of {state_directory}, or as root",
        ) from error
    except OSError as error:
        raise CannotCreate(f"cannot {purpose}", f"{path}: {error.strerror}", fix="set state_directory") from error
    try:
        free = _try_patiently(handle)
        holder = None if free else _read_holder(handle)
    except OSError as error:
        os.close(handle)
        raise CannotCreate(
            f"cannot {purpose}", f"cannot lock {path}: {error.strerror}", fix="set state_directory to a local disk"
        ) from error
    if not free:
        os.close(handle)
        raise CannotCreate(
            f"cannot {purpose}",
            f"process {holder or 'of unknown number'} already works with {state_directory}",
            fix="stop that one, or give this one a state_directory of its own",
        )
    with contextlib.suppress(OSError):  # a full disk: the text is for people, the lock is what counts
        if sys.platform != "win32":
            os.fchmod(handle, 0o600)
        os.ftruncate(handle, 0)
        os.write(handle, f"{os.getpid()} {work}\n".encode())
        _tell(state_directory / _TOLD, f"{os.getpid()} {work} {_begun(os.getpid())}\n")
    return Lock(handle, state_directory)


def _tell(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o644)
    try:
        if sys.platform != "win32":
            os.fchmod(handle, 0o644)  # whoever runs `status` looks at it, whatever our umask
        os.write(handle, text.encode())
    finally:
        os.close(handle)


def _begun(pid: int) -> str:
    """When a process began, as no second one of its number can have; "-" where nobody tells."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return "-"


def _told_holder(state_directory: Path) -> int | None:
    """What the holder told everybody, if it lives still."""
    try:
        pid, _, begun = (state_directory / _TOLD).read_text("ascii").split()
        if begun != "-" and Path("/proc/self/stat").exists():
            return int(pid) if _begun(int(pid)) == begun else None
        os.kill(int(pid), 0)
    except PermissionError:
        return int(pid)  # it lives, and is somebody else's
    except (OSError, ValueError):
        return None
    return int(pid)


def lock_holder(state_directory: Path) -> int | None:
    """The process id of the agent that works with `state_directory`, 0 where it cannot be read, None if none does."""
    try:
        handle = os.open(state_directory / _NAME, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    except PermissionError:
        # On Windows no file is shut to others by a mode, and os.kill would be no question.
        return _told_holder(state_directory) if sys.platform != "win32" else None
    except OSError:
        return None
    try:
        if _try_lock(handle, shared=True):
            return None
        return _read_holder(handle) or 0
    except OSError:
        return 0
    finally:
        os.close(handle)


def _try_patiently(handle: int) -> bool:
    """`lock_holder` takes the lock for an instant to find out; that must not turn an agent away."""
    for _ in range(_TRIES):
        if _try_lock(handle):
            return True
        time.sleep(_BETWEEN_TRIES_SECONDS)
    return False


def _try_lock(handle: int, *, shared: bool = False) -> bool:
    """False: somebody holds it. Raises OSError where the file system has no locks."""
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(handle, _LOCKED_BYTE, os.SEEK_SET)
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
            if shared:
                os.lseek(handle, _LOCKED_BYTE, os.SEEK_SET)
                msvcrt.locking(handle, msvcrt.LK_UNLCK, 1)
            os.lseek(handle, 0, os.SEEK_SET)
        else:
            import fcntl

            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            if shared:
                fcntl.flock(handle, fcntl.LOCK_UN)
    except (BlockingIOError, PermissionError):
        return False
    return True


def holder_work(state_directory: Path) -> str:
    """What the holder of the lock is at: RUN or ASK. Only told where `lock_holder` tells of one."""
    words: list[str] = []
    for name in (_NAME, _TOLD):
        with contextlib.suppress(OSError):
            words = (state_directory / name).read_text("ascii", "replace")[:32].split()
            break
    return words[1] if len(words) > 1 else RUN


def _read_holder(handle: int) -> int | None:
    os.lseek(handle, 0, os.SEEK_SET)
    words = os.read(handle, 32).split()
    return int(words[0]) if words and words[0].isdigit() else None
