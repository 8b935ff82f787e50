"""``status.json``: what a running program shows of itself, replaced in one step, by one writer at a time.

Two writes never meet: each goes through one thread, in the order in which it was asked for, so that the last word is
the one that stands, and a write whose asker was cancelled ends before the next one begins. Trouble with the disk is
said once, and stops nobody.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from siteagent.store.durable import replace_file

FILE = "status.json"


class Snapshot:
    """Of one state directory. `note` is told of trouble. On the loop's thread."""

    def __init__(self, state_directory: Path, *, note: Callable[[str], None]) -> None:
        self._path = state_directory / FILE
        self._note = note
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="status")
        self._troubles: dict[Path, str] = {}

    async def write(self, document: Mapping[str, Any]) -> bool:
        """Puts `document` there; False: it could not be written, and is still to be."""
        return await self.put(self._path, json.dumps(document, ensure_ascii=False) + "\n")

    async def put(self, path: Path, text: str) -> bool:
        """The same for another file that shows the same things in another form."""
        # What a peer said may hold what UTF-8 cannot say: it becomes an escape, as JSON has them.
        data = text.encode("utf-8", "backslashreplace")
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._writer, lambda: replace_file(path, data, mode=0o644))
        except OSError as error:
            trouble = f"cannot write {path}: {error.strerror or error}"
            if trouble != self._troubles.get(path):
                self._troubles[path] = trouble
                self._note(trouble)
            return False
        self._troubles.pop(path, None)
        return True

    def close(self) -> None:
        """Waits for what is being written."""
        self._writer.shutdown(wait=True)
