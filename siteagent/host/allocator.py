"""What the C library keeps of freed memory: bounded for processes that live for months. Other libraries are left alone.

glibc gives each thread a heap of its own, and no other thread uses what was freed there; and below the size of the
largest block that was ever freed, blocks lie in those heaps, where what was made behind them holds them. A process with
twenty threads then grows for hours, as one thread after the other meets its largest piece of work.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import sys
from collections.abc import Callable

# <malloc.h>
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8

# Above what a large message takes for a moment, again and again, while it comes in: with glibc's own 128 KiB for both
# the same pages went to the system and came back for every part, and messages of 10 MB took twice the time.
_LARGE_BYTES = 512 * 1024
_FREE_AT_THE_TOP_BYTES = 1024 * 1024

GIVE_BACK_SECONDS = 30.0


def is_glibc() -> bool:
    if sys.platform != "linux":
        return False
    with contextlib.suppress(OSError, ValueError):  # ValueError: musl has no such name
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    return False


def settle() -> None:
    """One heap for all threads, and bounds that stay. Before the first thread: one that has a heap keeps it."""
    if is_glibc():
        library = ctypes.CDLL(None)
        # One lock is enough: all but a little of what allocates here holds Python's own.
        library.mallopt(_M_ARENA_MAX, 1)
        library.mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        library.mallopt(_M_TRIM_THRESHOLD, _FREE_AT_THE_TOP_BYTES)


def give_back() -> None:
    """Gives the system whole pages that lie free between what lives. Takes milliseconds, and other threads wait."""
    if is_glibc():
        ctypes.CDLL(None).malloc_trim(0)


class Returner:
    """Gives back half a minute after something was done: again while there is work, and never for an idle process.

    On the loop's thread; the giving back itself is in another.
    """

    def __init__(self, *, seconds: float = GIVE_BACK_SECONDS, give_back: Callable[[], None] = give_back) -> None:
        self._seconds = seconds
        self._give_back = give_back
        self._due: asyncio.TimerHandle | None = None

    def worked(self) -> None:
        """Something was done for which memory was taken."""
        if self._due is None:
            self._due = asyncio.get_running_loop().call_later(self._seconds, self._give)

    def close(self) -> None:
        if self._due is not None:
            self._due.cancel()

    def _give(self) -> None:
        self._due = None
        asyncio.get_running_loop().run_in_executor(None, self._give_back)
