"""The plug of the link watch: what a source and an oracle are, and which of them a host gets.

A source only says "look again" and is never believed; one oracle looks. A new way to notice changes is one class
with `Source`'s three members and one row in `_NOTICERS`. Importing this module loads no backend: each is imported
when it is chosen.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, cast

from siteagent.config.sections import Backend
from siteagent.errors import ExitCode, SiteAgentError
from siteagent.events import Line

Poke = Callable[[str], None]
"""Say "look again" and why; on the event loop's thread."""

Note = Callable[[str], None]
"""Tell the operator one line, once."""

START = "start"
POLL = "poll"
WAKE = "wake"


class Unavailable(SiteAgentError):
    """This source or oracle cannot work here and now: not a bug. It is said once, and tried again now and then."""

    exit_code = ExitCode.UNAVAILABLE
    temporary = True


class Source(Protocol):
    """Notices that something may have changed."""

    @property
    def name(self) -> str:
        """One word: the cause in events, and what the supervisor calls it."""
        ...

    @property
    def nudges(self) -> bool:
        """Somebody means it: a poke is worth telling even if the way to the provider is found unchanged."""
        ...

    async def run(self, poke: Poke) -> None:
        """Poke until cancelled, releasing everything then. A first poke, when watching began, closes the gap before.

        Raises `Unavailable` where the host does not let it work; anything else is restarted with back-off.
        """
        ...


class Oracle(Protocol):
    """Knows the ways out. Sends no packet."""

    def lines(self, addresses: Sequence[str]) -> tuple[Line, ...]:
        """Every usable way to one of `addresses`, in their order, none twice.

        Takes microseconds: called on the event loop. Raises OSError where it cannot tell.
        """
        ...


_NOTICERS: dict[Backend, str] = {
    Backend.NETLINK: "siteagent.link.netlink:NetlinkSource",
    Backend.WINDOWS: "siteagent.link.windows:WindowsSource",
}
"""Backend -> a Source class without arguments. `poll` needs none: the tick always runs."""


def chosen(backend: Backend, platform: str = sys.platform) -> Backend:
    """What `auto` means on `platform`."""
    if backend is not Backend.AUTO:
        return backend
    if platform.startswith("linux"):
        return Backend.NETLINK
    return Backend.WINDOWS if platform == "win32" else Backend.POLL


def standard_sources(backend: Backend, *, poll_seconds: float, hook_directory: Path, note: Note) -> list[Source]:
    """The sources of this host: the system's own, the hook directory, and the tick that outlives both."""
    from siteagent.link.hookdir import HookDirectory
    from siteagent.link.poll import Tick

    sources: list[Source] = [Tick(poll_seconds), HookDirectory(hook_directory, rescan_seconds=poll_seconds, note=note)]
    entry = _NOTICERS.get(chosen(backend))
    if entry is not None:
        module, _, attribute = entry.partition(":")
        try:
            noticer = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            note(f"the {backend.value} backend cannot be used here ({error}): polling every {poll_seconds:g} s instead")
        else:
            sources.append(cast(Source, noticer()))
    return sources


def standard_oracle(note: Note) -> Oracle:
    """The best judge that this host allows."""
    from siteagent.link import oracle

    return oracle.standard(note)
