"""A changed hub.toml, taken in while the hub runs. All or nothing: with one problem the old one stays whole.

Where it listens and where its state is cannot change under a running hub. A node that is taken out keeps its mail: it
is held and shown, and goes when the node is back or by ``siteagent hub drop``.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from siteagent.config import files
from siteagent.config.draft import Problems
from siteagent.config.sections import HubConfiguration
from siteagent.errors import SiteAgentError
from siteagent.events import ConfigRejected, ConfigReloaded
from siteagent.host import systemd
from siteagent.hub.server import Hub

_FIXED = "cannot change while the hub runs; restart it"


class Reloader:
    """Watches over the file of one hub. On the loop's thread."""

    def __init__(self, hub: Hub, path: Path) -> None:
        self._hub = hub
        self._path = path
        self._stamp = files.stamp(path)
        self._lock = asyncio.Lock()

    def look(self) -> None:
        """Reloads if the file is another than it was."""
        if files.stamp(self._path) != self._stamp:
            self._hub.background(self.reload())

    async def reload(self) -> None:
        """Reads the file and takes it in, or says why not."""
        async with self._lock:
            self._stamp = files.stamp(self._path)
            systemd.notify(systemd.reloading())
            try:
                configuration = await asyncio.to_thread(files.load, self._path, hub=True)
                problems = _fixed_changes(self._hub.configuration, configuration)
                if not problems:
                    await self._hub.apply(configuration)
            except Problems as error:
                problems = tuple(str(problem) for problem in error.problems)
            except SiteAgentError as error:
                problems = (f"{error.what}: {error.why}",)
            if problems:
                self._hub.emit(ConfigRejected(path=str(self._path), problems=problems))
            else:
                self._hub.emit(ConfigReloaded(path=str(self._path)))
            systemd.notify("READY=1")


def _fixed_changes(old: HubConfiguration, new: HubConfiguration) -> tuple[str, ...]:
    pairs = (
        ("state_directory", old.state_directory, new.state_directory),
        ("hostname", old.hostname, new.hostname),
        ("[listener] listen", old.listener.listen, new.listener.listen),
        ("[odmr]", old.odmr, new.odmr),
        ("[limits]", old.limits, new.limits),
    )
    return tuple(f"{name}: {_FIXED}" for name, before, after in pairs if before != after)
