"""Where each key of a TOML text stands: tomllib reads values and forgets their lines, people need them.

Runs after tomllib has accepted the text, and leans on that: it tells strings, brackets and comments apart and
decides nothing about validity. A path is a tuple of keys and indices: ``("provider", 0, "nodes", 1)``. Pure.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right
from collections.abc import Mapping

KeyPath = tuple[str | int, ...]

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
# TOML 1.0, "String": a multi-line string ends at its first three quotes, and takes up to two more into its content.
_STRING = re.compile(
    r'"""(?:\\.|[^\\])*?""""{0,2}|' r"'''.*?''''{0,2}|" r'"(?:\\.|[^"\\\n])*"|' r"'[^'\n]*'", re.DOTALL
)
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_BARE_VALUE = re.compile(r"[^,\]}#\n]+")


def lines_of(text: str) -> dict[KeyPath, int]:
    """The line, from 1, of every key, table header and list element of `text`, which tomllib has accepted."""
    return _Scan(text).run()


def nearest_line(lines: Mapping[KeyPath, int], path: KeyPath) -> int:
    """The line of `path`, or of the innermost thing around it that is written down; 1 for the file itself."""
    while path:
        if path in lines:
            return lines[path]
        path = path[:-1]
    return 1


class _Scan:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._ends = [i for i, character in enumerate(text) if character == "\n"]
        self._found: dict[KeyPath, int] = {}
        self._tables: dict[KeyPath, int] = {}  # path of an array of tables -> how many there are so far

    def run(self) -> dict[KeyPath, int]:
        here: KeyPath = ()
        self._skip(_BLANK)
        while self._at < len(self._text):
            if self._text[self._at] == "[":
                here = self._header()
            else:
                self._pair(here)
            self._skip(_BLANK)
        return self._found

    def _skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self._text, self._at)
        assert match is not None, "these patterns match the empty string"
        self._at = match.end()

    def _take(self, pattern: re.Pattern[str]) -> str | None:
        match = pattern.match(self._text, self._at)
        if match is None:
            return None
        self._at = match.end()
        return match[0]

    def _note(self, path: KeyPath, position: int) -> None:
        line = bisect_right(self._ends, position - 1) + 1 if position else 1
        for length in range(1, len(path) + 1):
            self._found.setdefault(path[:length], line)

    def _key(self) -> list[str]:
        parts: list[str] = []
        while True:
            self._skip(_SPACE)
            quoted = self._take(_STRING)
            if quoted is not None:
                parts.append(tomllib.loads(f"key = {quoted}")["key"])
            else:
                parts.append(self._take(_BARE_KEY) or "")
            self._skip(_SPACE)
            if self._text[self._at] != ".":
                return parts
            self._at += 1

    def _header(self) -> KeyPath:
        start = self._at
        many = self._text.startswith("[[", start)
        self._at += 2 if many else 1
        path: KeyPath = ()
        parts = self._key()
        for i, part in enumerate(parts):
            path = (*path, part)
            if many and i == len(parts) - 1:
                self._tables[path] = self._tables.get(path, 0) + 1
            if path in self._tables:
                path = (*path, self._tables[path] - 1)
        self._note(path, start)
        self._at += 2 if many else 1
        return path

    def _pair(self, here: KeyPath) -> None:
        start = self._at
        path = here + tuple(self._key())
        self._note(path, start)
        self._at += 1  # the equals sign
        self._skip(_SPACE)
        self._value(path)

    def _value(self, path: KeyPath) -> None:
        opening = self._text[self._at]
        if opening not in "[{":
            if self._take(_STRING) is None:
                self._take(_BARE_VALUE)
            return
        closing = "]" if opening == "[" else "}"
        self._at += 1
        index = 0
        while True:
            self._skip(_BLANK)
            if self._text[self._at] == closing:
                self._at += 1
                return
            if opening == "[":
                self._note((*path, index), self._at)
                self._value((*path, index))
                index += 1
            else:
                self._pair(path)
            self._skip(_BLANK)
            if self._text[self._at] == ",":
                self._at += 1
