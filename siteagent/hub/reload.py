"""The hub's part of `host.reload`: what cannot change under a running hub.

A node that is taken out keeps its mail: it is held and shown, and goes when the node is back or by ``siteagent hub
drop``.
"""

from __future__ import annotations

from pathlib import Path

from siteagent.config import files
from siteagent.config.sections import HubConfiguration
from siteagent.host import reload
from siteagent.host.reload import Fixed
from siteagent.hub.server import Hub


class Reloader(reload.Reloader[HubConfiguration]):
    """On the loop's thread."""

    def __init__(self, hub: Hub, path: Path) -> None:
        def fixed(new: HubConfiguration) -> Fixed:
            old = hub.configuration
            return (
                ("state_directory", old.state_directory, new.state_directory),
                ("hostname", old.hostname, new.hostname),
                ("[listener] listen", old.listener.listen, new.listener.listen),
                ("[odmr]", old.odmr, new.odmr),
                ("[limits]", old.limits, new.limits),
            )

        def load(path: Path) -> HubConfiguration:
            return files.load(path, hub=True)

        program = reload.Program(
            name="hub",
            load=load,
            fixed=fixed,
            apply=hub.apply,
            emit=hub.emit,
            background=hub.background,
        )
        super().__init__(program, path)
