"""A changed configuration, taken in while the program runs: by SIGHUP, or because the file changed.

All or nothing: with one problem the old configuration stays whole. What cannot change under a running program (its
state directory, where it listens) makes a reload that changes it a rejected one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from siteagent.config import files
from siteagent.config.draft import Problems
from siteagent.errors import SiteAgentError
from siteagent.events import ConfigRejected, ConfigReloaded, Emit
from siteagent.host import systemd

_Configuration = TypeVar("_Configuration")
Fixed = Sequence[tuple[str, object, object]]
"""(what it is called, as it is, as it would be) of all that cannot change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program(Generic[_Configuration]):
    """What is reloaded. `apply` raises SiteAgentError where it cannot; the old one is in force then.

    `name` is what people call it; `load` blocks.
    """

    name: str
    load: Callable[[Path], _Configuration]
    fixed: Callable[[_Configuration], Fixed]
    apply: Callable[[_Configuration], Awaitable[None]]
    emit: Emit
    background: Callable[[Coroutine[Any, Any, None]], None]


class Reloader(Generic[_Configuration]):
    """Watches over the file of one program. On the loop's thread."""

    def __init__(self, program: Program[_Configuration], path: Path) -> None:
        """The file as it is now counts as the one in force."""
        self._program = program
        self._path = path
        self._stamp = files.stamp(path)
        self._lock = asyncio.Lock()

    def look(self) -> None:
        """Reloads if the file is another than it was."""
        stamp = files.stamp(self._path)
        if stamp != self._stamp:
            self._stamp = stamp  # at once: a burst of looks is one reload
            self._program.background(self.reload())

    async def reload(self) -> None:
        """Reads the file and takes it in, or says why not."""
        async with self._lock:
            self._stamp = files.stamp(self._path)
            systemd.notify(systemd.reloading())
            try:
                problems = await self._taken_in()
                told = ConfigRejected(path=str(self._path), problems=problems) if problems else None
                self._program.emit(told or ConfigReloaded(path=str(self._path)))
            finally:
                systemd.notify("READY=1")

    async def _taken_in(self) -> tuple[str, ...]:
        """What is wrong with it; () where it is in force now."""
        program = self._program
        try:
            configuration = await asyncio.to_thread(program.load, self._path)
            fixed = [name for name, before, after in program.fixed(configuration) if before != after]
            if not fixed:
                await program.apply(configuration)
        except Problems as error:
            return tuple(str(problem) for problem in error.problems)
        except SiteAgentError as error:
            return (f"{error.what}: {error.why}",)
        return tuple(f"{name}: cannot change while the {program.name} runs; restart it" for name in fixed)
