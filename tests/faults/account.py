"""What was sent and what a reader found: each message once in each mailbox, as it was sent.

Over many events, with Maildirs that are emptied between them: a copy that turns up a hundred events later is a double
all the same, and a message that never turns up is lost.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tests.e2e.agent import Agent
from tests.e2e.messages import Shape, difference, note_of, take_trace


class Account:
    """`boxes` maps the mailboxes to their addresses. Mail of the site's own (warnings as notes) is passed over."""

    def __init__(self, boxes: Mapping[str, Sequence[str]]) -> None:
        self._owner = {address: name for name, addresses in boxes.items() for address in addresses}
        self._awaited: dict[tuple[str, str], Shape] = {}
        self._found: Counter[tuple[str, str]] = Counter()
        self.changed: list[str] = []
        self.sent = 0

    def send(self, shapes: Iterable[Shape]) -> None:
        for shape in shapes:
            self.sent += 1
            self._awaited |= {(self._owner[address], shape.name): shape for address in shape.recipients}

    def read(self, agent: Agent) -> int:
        """Takes the mail out of the agent's Maildirs, as a reader does who keeps nothing there. How many files."""
        count = 0
        for name in agent.mailboxes:
            for path in (agent.maildir(name) / "new").glob("*"):
                if not note_of(path):
                    count += 1
                    self._take(name, path)
                path.unlink()
        return count

    def _take(self, box: str, path: Path) -> None:
        try:
            _, content = take_trace(path.read_bytes())
        except AssertionError as problem:
            self.changed.append(f"{box}: {path.name}: {problem}")
            return
        label = re.search(rb"^X-Shape: (\S+)$", content, re.MULTILINE)
        key = (box, label[1].decode() if label else path.name)
        shape = self._awaited.pop(key, None)
        self._found[key] += 1
        if shape is not None and (changed := difference(shape.as_filed(), content)):
            self.changed.append(f"{box}: {key[1]}: {changed}")
        elif shape is None and self._found[key] == 1:
            self.changed.append(f"{box}: {key[1]} was never sent to it")

    @property
    def files(self) -> int:
        return self._found.total()

    @property
    def lost(self) -> list[str]:
        """What was sent and has not been found. What is still under way is among it."""
        return [f"{box}: {name}" for box, name in self._awaited]

    @property
    def doubled(self) -> list[str]:
        return [f"{box}: {name}, {count} times" for (box, name), count in self._found.items() if count > 1]

    def problems(self) -> list[str]:
        """Everything that is wrong once all must have come."""
        kinds = {"lost": self.lost, "doubled": self.doubled, "not as it was sent": self.changed}
        return [f"{kind}: {what}" for kind, those in kinds.items() for what in those]
