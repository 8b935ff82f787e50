"""The agent's part of `host.reload`: what cannot change, and that a reload waits until the agent has started.

Everything else counts from the next session and the next round on; a provider that was removed finishes its round.
"""

from __future__ import annotations

from pathlib import Path

from siteagent.agent.parts import Agent
from siteagent.config import files
from siteagent.config.sections import Configuration
from siteagent.events import Event
from siteagent.host import reload
from siteagent.host.reload import Fixed


class Reloader(reload.Reloader[Configuration]):
    """Made before the agent runs; on the loop's thread."""

    def __init__(self, agent: Agent, path: Path) -> None:
        def fixed(new: Configuration) -> Fixed:
            old = agent.configuration
            return (
                ("state_directory", old.state_directory, new.state_directory),
                ("[listener] listen", old.listener.listen, new.listener.listen),
                ("[listener] open", old.listener.open, new.listener.open),
                ("whether mail is received here (method, with listen = [])", old.ask_only, new.ask_only),
            )

        def emit(event: Event) -> None:
            agent.teller.emit(event)  # which there is when the agent runs

        async def apply(new: Configuration) -> None:
            await agent.apply(new)

        program = reload.Program(
            name="agent",
            load=files.load,
            fixed=fixed,
            apply=apply,
            emit=emit,
            background=agent.background,
        )
        super().__init__(program, path)
        self._ready = agent.ready
        agent.on_folder_changed = self.look
        agent.watched_folders.append(path.parent)

    async def reload(self) -> None:
        await self._ready.wait()
        await super().reload()
