"""What systemd tells a service and wants to hear of it: sd_notify(3) and sd_listen_fds(3), without their library.

Does nothing, and says so by its return value, where systemd did not start us.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import MutableMapping

_FIRST_DESCRIPTOR = 3
_SEND_SECONDS = 1.0
_START_SECONDS = 60.0


def notify(text: str, *, environment: MutableMapping[str, str] = os.environ) -> bool:
    """Sends `text`, such as ``READY=1``, to systemd. False: there is none that listens."""
    place = environment.get("NOTIFY_SOCKET", "")
    if not place.startswith(("/", "@")) or not hasattr(socket, "AF_UNIX"):
        return False
    address = "\0" + place[1:] if place.startswith("@") else place
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | getattr(socket, "SOCK_CLOEXEC", 0)) as sender,
    ):
        sender.settimeout(_SEND_SECONDS)
        sender.connect(address)
        sender.sendall(text.encode())
        return True
    return False


def reloading() -> str:
    """What to send before a reload; READY=1 follows it (sd_notify(3))."""
    return f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}"


def watchdog_seconds(environment: MutableMapping[str, str] = os.environ) -> float | None:
    """How often ``WATCHDOG=1`` is due: half of what systemd waits; None where it does not watch us."""
    text = environment.get("WATCHDOG_USEC", "")
    pid = environment.get("WATCHDOG_PID", str(os.getpid()))
    if not text.isdigit() or pid != str(os.getpid()) or int(text) == 0:
        return None
    return int(text) / 2_000_000


def start_socket_service(name: str = "siteagent") -> bool:
    """Starts the service whose socket unit holds the ports now. Blocks. False: there is none, or we may not."""
    import shutil
    import subprocess

    if shutil.which("systemctl") is None:
        return False
    for words in (["is-active", "--quiet", f"{name}.socket"], ["--no-ask-password", "start", f"{name}.service"]):
        try:
            done = subprocess.run(
                ["systemctl", *words],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_START_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return False
        if done.returncode != 0:
            return False
    return True


def enabled(unit: str) -> str | None:
    """Whether systemd starts `unit` at boot, in its words: ``enabled``, ``disabled``, ``masked``; None: not here."""
    import shutil
    import subprocess
    from pathlib import Path

    if shutil.which("systemctl") is None or not Path("/run/systemd/system").is_dir():
        return None
    try:
        done = subprocess.run(
            ["systemctl", "is-enabled", unit], stdin=subprocess.DEVNULL, capture_output=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode("ascii", "replace").strip() or None


def sockets(environment: MutableMapping[str, str] = os.environ) -> list[socket.socket]:
    """The listening sockets that systemd passed. Takes the variables away, so that no child thinks they are its own."""
    count, pid = environment.pop("LISTEN_FDS", ""), environment.pop("LISTEN_PID", "")
    environment.pop("LISTEN_FDNAMES", None)
    if not count.isdigit() or pid != str(os.getpid()):
        return []
    found: list[socket.socket] = []
    for descriptor in range(_FIRST_DESCRIPTOR, _FIRST_DESCRIPTOR + int(count)):
        os.set_inheritable(descriptor, False)
        listening = socket.socket(fileno=descriptor)
        listening.setblocking(False)
        found.append(listening)
    return found
