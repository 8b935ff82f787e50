"""What is wrong with a configuration: one `Problem` a mistake, gathered in a `Draft` so that all are told at once.

Pure. A problem never quotes the value of a key that is not known: it may be a password in the wrong place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from siteagent.config.lines import KeyPath, nearest_line
from siteagent.errors import ConfigurationError, ExitCode

_SHOWN_AT_MOST = 60


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake. `line` from 1; `key` as ``provider.port``; `permission`: of the file system, not of the text."""

    line: int
    key: str
    found: str
    allowed: str
    nearest: str | None = None
    permission: bool = False

    @property
    def sentence(self) -> str:
        """The problem without its place."""
        subject = f"{self.key}: " if self.key else ""
        if self.nearest is not None and not self.permission:
            guess = f"; did you mean {self.nearest}?"
            # A list of twenty keys would bury the one that was meant.
            return f"{subject}found {self.found}{'' if _is_long(self.allowed) else f'; allowed: {self.allowed}'}{guess}"
        return f"{subject}found {self.found}" + (f"; allowed: {self.allowed}" if self.allowed else "")

    def __str__(self) -> str:
        return f"line {self.line}: {self.sentence}"


def _is_long(allowed: str) -> bool:
    return len(allowed) > 120


class Problems(ConfigurationError):
    """A configuration that cannot be used: every problem of it, in the order of the lines.

    Ends with 77 where permissions are all that is wrong, else with 78.
    """

    def __init__(self, path: str, problems: Iterable[Problem]) -> None:
        self.path = path
        self.problems: tuple[Problem, ...] = tuple(sorted(problems, key=lambda problem: problem.line))
        count = len(self.problems)
        super().__init__(f"cannot use {path}", "1 problem" if count == 1 else f"{count} problems")
        if self.problems and all(problem.permission for problem in self.problems):
            self.exit_code = ExitCode.PERMISSION

    def __str__(self) -> str:
        rows = [f"  {self.path}:{problem.line}: {problem.sentence}" for problem in self.problems]
        return "\n".join([f"{self.what}: {self.why}", *rows])


@dataclass(slots=True)
class Draft:
    """Collects problems while a text becomes sections. `lines` from `lines.lines_of`."""

    lines: Mapping[KeyPath, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    _wrong: set[KeyPath] = field(default_factory=set)

    def report(
        self, path: KeyPath, *, found: str, allowed: str, nearest: str | None = None, permission: bool = False
    ) -> None:
        """Add a problem of `path`. The first one of a path counts: what follows from it would only confuse."""
        if path in self._wrong:
            return
        self._wrong.add(path)
        key = ".".join(str(part) for part in path if isinstance(part, str))
        line = nearest_line(self.lines, path)
        self.problems.append(Problem(line, key, found, allowed, nearest, permission))

    def wrong(self, *path: str | int) -> bool:
        """Something at or below `path` has a problem already."""
        return any(other[: len(path)] == path for other in self._wrong)

    def written(self, *path: str | int) -> bool:
        """`path` stands in the file, and is no default."""
        return path in self.lines


def shown(value: Any) -> str:
    """A TOML value as an error quotes it: on one line, cut where it is long."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        import json  # only a mistake pays for the import

        text = json.dumps(value, ensure_ascii=not value.isprintable())
        return text if len(text) <= _SHOWN_AT_MOST else text[: _SHOWN_AT_MOST - 4] + '..."'
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, list | tuple):
        text = "[" + ", ".join(shown(item) for item in value) + "]"
        return text if len(text) <= _SHOWN_AT_MOST else f"a list of {len(value)}"
    return str(value)


def nearest(word: str, known: Sequence[str]) -> str | None:
    """The one of `known` that was probably meant, or None."""
    from difflib import get_close_matches  # likewise

    folded = {name.casefold().replace("-", "_"): name for name in known}
    close = get_close_matches(word.casefold().replace("-", "_"), folded, n=1, cutoff=0.6)
    return folded[close[0]] if close else None


def one_of(names: Iterable[str]) -> str:
    """``a, b or c``."""
    rows = list(names)
    return rows[0] if len(rows) == 1 else f"{', '.join(rows[:-1])} or {rows[-1]}"
