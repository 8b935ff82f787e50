"""Running an agent from a command: the log, the signals, the user that it runs as."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from siteagent.cli.context import Context
from siteagent.config.sections import Configuration, HubConfiguration, LogFormat, LogLevel
from siteagent.errors import PermissionProblem
from siteagent.host import allocator, identity, systemd
from siteagent.logs import LogWriter

_UMASK = 0o077
_WINDOWS_LOG = (5_000_000, 5)


def become_owner(configuration: Configuration, *, bind_ports: bool = True) -> list[socket.socket]:
    """As root: binds the listening ports, then goes on as the owner of the state directory; else nothing.

    Returns the sockets for the agent: those of systemd, those bound before root was given up, or none. Raises
    CannotCreate for a taken port, PermissionProblem.
    """
    os.umask(_UMASK)
    sockets = systemd.sockets()
    assert configuration.state_directory is not None
    owner = identity.owner_to_become(configuration.state_directory)
    if owner is None:
        return sockets
    if not sockets and bind_ports:
        from siteagent.inbound.listener import bind

        sockets = bind(configuration.listener.listen)
    identity.become(owner)
    return sockets


@contextlib.contextmanager
def imports_as_owner(*, program: Path = Path(os.__file__)) -> Iterator[None]:
    """For imports behind `become_owner`: a Python in root's home cannot be read by whom root became.

    No garbage is looked for meanwhile, and never again in what was made until the end: an import makes what stays, and
    a full collection would stop the loop for it, once in a while, as long as the agent runs.

    Raises PermissionProblem where `program` cannot be read any more.
    """
    gc.disable()
    try:
        yield
    except ImportError as error:
        if sys.platform == "win32" or os.access(program, os.R_OK):
            raise
        raise PermissionProblem(
            "cannot go on as the owner of the state directory",
            f"user {os.geteuid()} may not read the program itself, in {program.parent}",
            fix="install siteagent where everybody may read it, not in root's home",
        ) from error
    finally:
        gc.collect()  # half a megabyte, for as long as the agent runs
        allocator.give_back()
        gc.freeze()
        gc.collect()  # the next one waits for a quarter of what this one kept, and not of all the imports
        gc.enable()


def log_writer(
    context: Context, configuration: Configuration | HubConfiguration, *, stream: TextIO | None = None
) -> LogWriter:
    """The log as the configuration has it, and the command line on top: -v, -q, --log-format."""
    section = configuration.log
    level = LogLevel.DEBUG if context.verbose else LogLevel.WARNING if context.quiet else section.level
    return _PinnedLog(
        stream or sys.stderr,
        pinned_format=LogFormat(context.log_format) if context.log_format else None,
        pinned_level=level if context.verbose or context.quiet else None,
        format=LogFormat(context.log_format) if context.log_format else section.format,
        level=level,
        file=Path(section.file) if section.file else None,
        rotate=_WINDOWS_LOG if sys.platform == "win32" else None,
    )


class _PinnedLog(LogWriter):
    """What the command line said outlives a reload."""

    def __init__(
        self, stream: TextIO, *, pinned_format: LogFormat | None, pinned_level: LogLevel | None, **options: Any
    ) -> None:
        super().__init__(stream, **options)
        self._pinned = pinned_format, pinned_level

    def reconfigure(self, *, format: LogFormat, level: LogLevel) -> None:
        pinned_format, pinned_level = self._pinned
        super().reconfigure(format=pinned_format or format, level=pinned_level or level)


@contextlib.contextmanager
def signals(*, stop: Callable[[str], None], reload: Callable[[], None] | None = None) -> Iterator[None]:
    """SIGTERM and SIGINT end, SIGHUP reloads, while the block runs."""
    loop = asyncio.get_running_loop()
    wanted: list[tuple[str, Callable[[], None]]] = [
        ("SIGTERM", lambda: stop("SIGTERM")),
        ("SIGINT", lambda: stop("SIGINT")),
    ]
    if reload is not None:
        wanted.append(("SIGHUP", reload))
    found: Sequence[tuple[int, Callable[[], None]]] = [
        (getattr(signal, name), action) for name, action in wanted if hasattr(signal, name)
    ]
    by_hand: dict[int, Any] = {}
    for number, action in found:
        try:
            loop.add_signal_handler(number, action)
        except NotImplementedError:  # Windows: the handler runs in the main thread, between two steps of the loop

            def handler(number: int, frame: object, action: Callable[[], None] = action) -> None:
                loop.call_soon_threadsafe(action)

            by_hand[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, _ in found:
            if number in by_hand:
                signal.signal(number, by_hand[number])
            else:
                loop.remove_signal_handler(number)
