"""Which program holds a TCP port: for the error message, so that nobody has to look it up.

Linux only (``/proc/net/tcp`` and the descriptors of processes we may look into); elsewhere, and where we may not look,
the answer is None.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

_LISTEN = "0A"


def holder_of(port: int) -> str | None:
    """``master (pid 4711)``, or None. Reads /proc: only for errors."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for row in Path(table).read_text("ascii").splitlines()[1:]:
                fields = row.split()
                if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                    inodes.add(f"socket:[{fields[9]}]")
    if not inodes:
        return None
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            for handle in (process / "fd").iterdir():
                with contextlib.suppress(OSError):
                    if str(handle.readlink()) in inodes:
                        name = (process / "comm").read_text("utf-8", "replace").strip()
                        return f"{name} (pid {process.name})"
    return None
