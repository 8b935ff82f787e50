"""A changed configuration, taken in while the agent runs: by SIGHUP, or because the file changed.

All or nothing: with one problem the old configuration stays whole. The state directory and the listening ports cannot
change under a running agent; a reload that changes them is rejected and says so. Everything else counts from the next
session and the next round on; a provider that was removed finishes its round.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from siteagent.agent.parts import Agent
from siteagent.config import files
from siteagent.config.load import Problems
from siteagent.config.sections import Configuration
from siteagent.errors import SiteAgentError
from siteagent.events import ConfigRejected, ConfigReloaded
from siteagent.host import systemd

_FIXED = "cannot change while the agent runs; restart it"


class Reloader:
    """Watches over the file of one agent. Made before the agent runs; on the loop's thread."""

    def __init__(self, agent: Agent, path: Path) -> None:
        self._agent = agent
        self._path = path
        self._stamp = files.stamp(path)
        self._lock = asyncio.Lock()
        agent.on_folder_changed = self.look
        agent.watched_folders.append(path.parent)

    def look(self) -> None:
        """Reloads if the file is another than it was."""
        stamp = files.stamp(self._path)
        if stamp != self._stamp:
            self._stamp = stamp  # at once: a burst of looks is one reload
            self._agent.background(self.reload())

    async def reload(self) -> None:
        """Reads the file and takes it in, or says why not. While the agent starts, waits until it has."""
        await self._agent.ready.wait()
        async with self._lock:
            self._stamp = files.stamp(self._path)
            systemd.notify(systemd.reloading())
            try:
                problems = await self._taken_in()
                told = ConfigRejected(path=str(self._path), problems=problems) if problems else None
                self._agent.teller.emit(told or ConfigReloaded(path=str(self._path)))
            finally:
                systemd.notify("READY=1")

    async def _taken_in(self) -> tuple[str, ...]:
        """What is wrong with it; () where it is in force now."""
        try:
            configuration = await asyncio.to_thread(files.load, self._path)
            problems = _fixed_changes(self._agent.configuration, configuration)
            if not problems:
                await self._agent.apply(configuration)
        except Problems as error:
            return tuple(str(problem) for problem in error.problems)
        except SiteAgentError as error:
            return (f"{error.what}: {error.why}",)
        return problems


def _fixed_changes(old: Configuration, new: Configuration) -> tuple[str, ...]:
    pairs = (
        ("state_directory", old.state_directory, new.state_directory),
        ("[listener] listen", old.listener.listen, new.listener.listen),
        ("[listener] open", old.listener.open, new.listener.open),
        ("whether mail is received here (method, with listen = [])", old.ask_only, new.ask_only),
    )
    return tuple(f"{name}: {_FIXED}" for name, before, after in pairs if before != after)
