"""From the tables that tomllib gives to the classes of ``config.sections``, driven by their types and metadata.

Strict: a number in quotes is not a number. Never stops at a mistake: what cannot be used is reported to the `Draft`
and replaced by its default (or an empty value), so that the rest can still be judged. Pure.

Written by hand in place of cattrs: that costs 15 to 25 ms and 1 MB at start, takes "25" for 25, and knows neither
lines nor the nearest key.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import attrs

from siteagent import events
from siteagent.config import sections
from siteagent.config.draft import Draft, nearest, one_of, shown
from siteagent.config.lines import KeyPath

_T = TypeVar("_T")
# More than any disk, line or life; keeps sums and timers out of overflow.
_LARGEST_INTEGER = 2**62
_COMMAND = 'a command as a list, such as ["/etc/siteagent/hang-up", "now"]'
_LONGEST_SECONDS = 10 * 366 * 86400.0


class _Wrong(Exception):
    """`found` and `allowed` of a value that its type does not take; `allowed` empty: the option's own words."""

    def __init__(self, found: str, allowed: str = "", nearest: str | None = None) -> None:
        super().__init__(found)
        self.found = found
        self.allowed = allowed
        self.nearest = nearest


def options_of(cls: type) -> tuple[attrs.Attribute[Any], ...]:
    """The options of a section, in the order of its class."""
    # `sections.section` is attrs.define by another name, which mypy does not see through.
    return attrs.fields(cls)  # type: ignore[no-any-return]


def changed(value: _T, **changes: Any) -> _T:
    """A section like `value` but for `changes`."""
    return attrs.evolve(value, **changes)  # type: ignore[misc]


@cache
def field_types(cls: type) -> Mapping[str, Any]:
    """Option name to its type, ``None`` taken out of a union."""
    out = {}
    for name, kind in typing.get_type_hints(cls).items():
        arms = [arm for arm in typing.get_args(kind) if arm is not type(None)] if _is_union(kind) else [kind]
        out[name] = arms[0] if len(arms) == 1 else tuple(arms)
    return out


def _is_union(kind: Any) -> bool:
    return typing.get_origin(kind) in (typing.Union, types.UnionType)


def is_section(kind: Any) -> bool:
    """`kind` is a table of the file (and not a value such as `Endpoint`)."""
    return isinstance(kind, type) and attrs.has(kind) and kind is not sections.Endpoint


def element_type(kind: Any) -> Any:
    """X of ``tuple[X, ...]``, else None."""
    return typing.get_args(kind)[0] if typing.get_origin(kind) is tuple else None


def key_for_event(name: str) -> str:
    """``round.ended`` as a key of ``[hooks]``: ``round_ended``."""
    return name.replace(".", "_")


def sections_of(cls: type[_T], table: Mapping[str, Any], draft: Draft, path: KeyPath = ()) -> _T:
    """`table` as a `cls`. Problems go to `draft`; what had one holds its default, or an empty value of its type."""
    fields = {attribute.name: attribute for attribute in options_of(cls)}
    kinds: Mapping[str, Any] = field_types(cls)  # type: ignore[arg-type]
    rest = next((name for name, kind in kinds.items() if typing.get_origin(kind) is Mapping), None)
    values: dict[str, Any] = {}
    if rest is not None:
        values[rest] = _commands(table, draft, path, known=[name for name in fields if name != rest])
    for key in table:
        if key not in fields or key == rest:
            if rest is None:
                _unknown(cls, key, draft, (*path, key))
            continue
        value = _read(kinds[key], table[key], draft, (*path, key), fields[key].metadata)
        if value is not None:
            values[key] = value
    for name, attribute in fields.items():
        if name in values or attribute.default is not attrs.NOTHING:
            continue
        if name not in table:
            draft.report((*path, name), found="nothing, and it is required", allowed=allowed_for(cls, name))
        values[name] = _empty(kinds[name])
    return cls(**values)


def allowed_for(cls: type, name: str) -> str:
    """What an option takes, in words."""
    attribute = next(attribute for attribute in options_of(cls) if attribute.name == name)
    return attribute.metadata["allowed"] or _kind_in_words(field_types(cls)[name])


def _empty(kind: Any) -> Any:
    if element_type(kind) is not None:
        return ()
    return Path() if kind is Path else ""


def _kind_in_words(kind: Any) -> str:
    if isinstance(kind, tuple):
        return one_of(_kind_in_words(arm) for arm in kind)
    item = element_type(kind)
    if item is not None:
        return "a list of strings" if item is str else f"a list, each {_kind_in_words(item)}"
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return one_of(f'"{member.value}"' for member in kind)
    words = {str: "a string", Path: "a path", bool: "true or false", int: "a whole number", float: "a number"}
    return words.get(kind, "a table")


def _unknown(cls: type, key: str, draft: Draft, path: KeyPath) -> None:
    here = [attribute.name for attribute in options_of(cls)]
    # The very word one table away is a better guess than a like word in this one.
    guess = next((place for place in _places() if place.rpartition(".")[2] == key), None) or nearest(key, here)
    draft.report(path, found="an unknown key", allowed=one_of(here), nearest=guess)


@cache
def _places() -> tuple[str, ...]:
    """Every option as ``table.key``: what is written one table too high or too low is still recognised."""
    out = []
    for name, kind in field_types(sections.Configuration).items():
        table = element_type(kind) or kind
        if is_section(table):
            out += [f"{name}.{attribute.name}" for attribute in options_of(table)]
        else:
            out.append(name)
    return tuple(out)


def _commands(table: Mapping[str, Any], draft: Draft, path: KeyPath, *, known: list[str]) -> dict[str, tuple[str, ...]]:
    """The keys of ``[hooks]`` that name events."""
    allowed = [key_for_event(name) for name in events.by_name()]
    out = {}
    for key, value in table.items():
        if key in known:
            continue
        if key not in allowed:
            guess = nearest(key.replace(".", "_"), [*allowed, *known])
            draft.report((*path, key), found="no known event", allowed=one_of([*allowed, *known]), nearest=guess)
            continue
        command = _read(
            tuple[str, ...], value, draft, (*path, key), {"allowed": 'a command as a list: ["/bin/x", "y"]'}
        )
        if command is not None and (not command or not command[0]):
            draft.report((*path, key), found=shown(value), allowed='a command as a list: ["/bin/x", "y"]')
        elif command is not None:
            out[key] = command
    return out


def _read(kind: Any, value: Any, draft: Draft, path: KeyPath, metadata: Mapping[str, Any]) -> Any:
    """The value of one option, or None after a report."""
    item = element_type(kind)
    table = item if is_section(item) else kind
    if is_section(table):
        return _tables(table, value, draft, path, many=table is item)
    try:
        if item is None:
            out = _scalar(kind, value)
        else:
            before = len(draft.problems)
            out = _list(item, value, draft, path, metadata)
            if len(draft.problems) > before:
                return None
        check = metadata.get("check")
        if check is not None and not check(out):
            raise _Wrong(shown(value))
    except _Wrong as wrong:
        allowed = wrong.allowed or metadata.get("allowed") or _kind_in_words(kind)
        draft.report(path, found=wrong.found, allowed=allowed, nearest=wrong.nearest)
        return None
    return out


def _tables(cls: type, value: Any, draft: Draft, path: KeyPath, *, many: bool) -> Any:
    name = path[-1]
    if not many:
        if isinstance(value, Mapping):
            return sections_of(cls, value, draft, path)
        twice = isinstance(value, list)
        draft.report(path, found="a list of tables" if twice else shown(value), allowed=f"one table, [{name}]")
        return None
    if isinstance(value, Mapping):
        draft.report(path, found=f"[{name}]", allowed=f"[[{name}]], with two brackets")
        value = [value]
    if not isinstance(value, list) or not all(isinstance(table, Mapping) for table in value):
        draft.report(path, found=shown(value), allowed=f"tables, [[{name}]]")
        return None
    # A table with one pair of brackets has no index in the file: its lines are looked up without one.
    single = draft.wrong(*path)
    return tuple(sections_of(cls, table, draft, path if single else (*path, i)) for i, table in enumerate(value))


def _list(item: Any, value: Any, draft: Draft, path: KeyPath, metadata: Mapping[str, Any]) -> tuple[Any, ...]:
    if not isinstance(value, list):
        if item in (str, sections.Endpoint) and isinstance(value, str):
            raise _Wrong(shown(value), metadata.get("allowed") or "a list of strings", f"[{shown(value)}]")
        raise _Wrong(shown(value))
    out = []
    for i, element in enumerate(value):
        try:
            out.append(_scalar(item, element))
        except _Wrong as wrong:
            allowed = wrong.allowed or metadata.get("allowed") or _kind_in_words(item)
            draft.report((*path, i), found=wrong.found, allowed=allowed, nearest=wrong.nearest)
    return tuple(out)


def _scalar(kind: Any, value: Any) -> Any:
    if isinstance(kind, tuple):  # several types are possible: the one that the value has
        for arm in kind:
            if isinstance(value, str) == (arm is str):
                return _scalar(arm, value)
    if kind is bool:
        if not isinstance(value, bool):
            raise _Wrong(shown(value))
        return value
    if kind in (int, float):
        return _number(kind, value)
    return _from_text(kind, value)


def _number(kind: type, value: Any) -> int | float:
    accepted = (int,) if kind is int else (int, float)
    if isinstance(value, bool) or not isinstance(value, accepted):
        raise _Wrong(f"{shown(value)}, in quotes" if isinstance(value, str) else shown(value))
    if kind is int:
        if abs(value) > _LARGEST_INTEGER:
            raise _Wrong("a number beyond all measure")
        return int(value)
    if not -_LONGEST_SECONDS <= value <= _LONGEST_SECONDS:  # which is false for nan too
        raise _Wrong(shown(value))
    return float(value)


def _from_text(kind: Any, value: Any) -> Any:
    if not isinstance(value, str):
        raise _Wrong(shown(value))
    # A line break in a name would become a command to a peer or a second line in a log.
    if any(ord(character) < 32 or ord(character) == 127 for character in value):
        raise _Wrong(shown(value), "text without control characters")
    if kind is Path:
        if not value:
            raise _Wrong('""')
        return Path(value)
    if kind is sections.Endpoint:
        try:
            return sections.Endpoint.parse(value)
        except ValueError:
            raise _Wrong(shown(value)) from None
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        try:
            return kind(value)
        except ValueError:
            names = [member.value for member in kind]
            guess = nearest(value, names)
            raise _Wrong(shown(value), _kind_in_words(kind), f'"{guess}"' if guess else None) from None
    return value
