"""From the text of a configuration to its sections, or to every problem of it at once.

Three steps: tomllib reads the text, ``config.convert`` makes sections, ``config.rules`` judges what one option means
for another. Only a text that is no TOML ends at its first problem, since nothing after it can be trusted. Pure: what
must be looked up on the host is added by ``config.files``.
"""

from __future__ import annotations

import re
import tomllib
from typing import TypeVar

from siteagent.config import hub_rules, rules
from siteagent.config.convert import sections_of
from siteagent.config.draft import Draft, Problem, Problems
from siteagent.config.lines import lines_of
from siteagent.config.sections import Configuration, HubConfiguration

__all__ = ["Draft", "Problem", "Problems", "examine", "parse"]

_Kind = TypeVar("_Kind", Configuration, HubConfiguration)
_DECLARED_TWICE = re.compile(r"Cannot declare \((.*)\) twice")
_PLACE = re.compile(r"\s*\((?:at line (\d+), column (\d+)|at end of document)\)$")


def parse(text: str, *, path: str, kind: type[_Kind]) -> _Kind:
    """The configuration that `text` writes down; `path` is what problems call the file.

    Raises:
        Problems: with every problem, where there is one.
    """
    value, draft = examine(text, kind=kind)
    if value is None or draft.problems:
        raise Problems(path, draft.problems)
    return value


def examine(text: str, *, kind: type[_Kind]) -> tuple[_Kind | None, Draft]:
    """As much of a configuration as `text` gives, and its problems; None where it is no TOML.

    A value with a problem holds its default or is empty: fit for finding further problems, and for nothing else.
    """
    draft = Draft()
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        draft.problems.append(_no_toml(text, str(error)))
        return None, draft
    except RecursionError:
        draft.problems.append(Problem(1, "", "lists or tables a thousand deep", "valid TOML"))
        return None, draft
    draft.lines = lines_of(text)
    value = sections_of(kind, table, draft)
    if isinstance(value, Configuration):
        rules.judge(value, draft)
    else:
        hub_rules.judge_hub(value, draft)
    return value, draft


def _no_toml(text: str, message: str) -> Problem:
    place = _PLACE.search(message)
    line = int(place[1]) if place and place[1] else text.count("\n") + 1
    said = _PLACE.sub("", message)
    row = [*text.split("\n"), ""][line - 1]
    if table := _DECLARED_TWICE.match(said):
        name = ".".join(re.findall(r"'([^']*)'", table[1]))
        return Problem(line, "", f"[{name}] a second time", "each table once; one of several has [[two brackets]]")
    if said.startswith("Cannot overwrite"):
        return Problem(
            line, "", f"{row.partition('=')[0].strip() or 'a key'} a second time", "each key once in a table"
        )
    found = f"no TOML: {said[:1].lower()}{said[1:]}"
    # The commonest one on Windows: tomllib's own words do not mention paths.
    if "\\" in row:
        return Problem(line, "", found, "'single quotes' around text with backslashes, such as a path")
    return Problem(line, "", found, "one key = value a line, text in quotes")
