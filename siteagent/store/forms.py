"""The form of a node's name that a provider turned out to want: ``#name`` where the configuration writes ``name``.

One small JSON file in the state directory. Losing it costs one refused ETRN a node; so trouble with the disk is told,
and nothing waits for it. A node that is no longer asked for stays in the file and does no harm.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from siteagent.store.durable import replace_file

FILE = "name-forms.json"
_LARGEST_FILE = 1 << 20


class NameForms:
    """Provider -> node as configured -> name to send. `known` and `learn` never block; `save` does."""

    def __init__(self, path: Path, *, note: Callable[[str], None] = lambda text: None) -> None:
        self._path = path
        self._note = note
        self._lock = threading.Lock()
        self._forms = self._read()

    def known(self, provider: str) -> Mapping[str, str]:
        """What to send in place of a node's own name."""
        return dict(self._forms.get(provider, {}))

    def learn(self, provider: str, node: str, sent: str) -> bool:
        """`sent` worked for `node`; empty or the node itself: its own name did. Whether there is something to save."""
        forms = self._forms.setdefault(provider, {})
        wanted = None if sent in ("", node) else sent
        if forms.get(node) == wanted:
            return False
        if wanted is None:
            del forms[node]
        else:
            forms[node] = wanted
        return True

    def save(self) -> None:
        """Write the file anew, atomically. A disk that refuses is told, and what was learned counts until we end."""
        with self._lock:
            data = json.dumps(self._forms, indent=1, sort_keys=True).encode() + b"\n"
            try:
                replace_file(self._path, data, mode=0o644)
            except OSError as error:
                self._note(f"cannot write {self._path}: {error.strerror or error}")

    def _read(self) -> dict[str, dict[str, str]]:
        """What is there and makes sense; a file that does not is as good as none."""
        try:
            with self._path.open("rb") as file:
                found = json.loads(file.read(_LARGEST_FILE))
        except (OSError, ValueError):
            return {}
        if not isinstance(found, dict):
            return {}
        return {
            provider: {node: sent for node, sent in forms.items() if isinstance(sent, str) and sent}
            for provider, forms in found.items()
            if isinstance(forms, dict)
        }
