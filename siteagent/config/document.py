"""What people read about the options, printed from their definitions: the commented sample, docs/configuration.md.

tests/unit/test_config_document.py keeps the page fresh, and says how to write it anew. Pure.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import attrs

from siteagent.config.convert import allowed_for, element_type, field_types, is_section, options_of
from siteagent.config.sections import Configuration, HubConfiguration

_WIDTH = 100


def sample(kind: type[Configuration] | type[HubConfiguration]) -> str:
    """The whole file with every option: what is required with an example's value, the rest as a comment."""
    return render(kind, {})


def render(
    kind: type[Configuration] | type[HubConfiguration],
    values: Mapping[str, Any],
    *,
    head: str = "",
    brief: bool = False,
) -> str:
    """A commented configuration that sets `values` (tables as mappings, lists of tables as lists of them).

    Options that are not in `values` stand in it as comments, with their default or an example. Where `values` has
    nothing for a table that must exist, its required options get an example's value. `brief` leaves out the tables
    that `values` does not name, and the names that may still change.
    """
    rows = [*_comment(head), ""] if head else []
    tables_of_kind: Mapping[str, Any] = field_types(kind)  # type: ignore[arg-type]
    for name, table in tables_of_kind.items():
        several = element_type(table)
        if brief and name not in values and is_section(several or table):
            continue
        if is_section(several):
            tables = values.get(name) or [_required(several)]
            rows += _rendered_tables(name, several, tables, brief=brief)
        elif is_section(table):
            rows += ["", *_comment(_summary(table)), f"[{name}]"]
            rows += _rendered(table, values.get(name, {}), brief=brief)
        else:
            rows += _option(kind, name, values)
    return "\n".join(rows).strip("\n") + "\n"


def _rendered_tables(name: str, cls: type, tables: list[Mapping[str, Any]], *, brief: bool) -> list[str]:
    rows = ["", *_comment(_summary(cls))]
    for i, table in enumerate(tables):
        # One explanation is enough: the second provider shows what is its own.
        rows += ["", f"[[{name}]]"] if i else [f"[[{name}]]"]
        rows += (
            _rendered(cls, table, brief=brief) if i == 0 else [f"{key} = {toml(value)}" for key, value in table.items()]
        )
    return rows


def _required(cls: type) -> dict[str, Any]:
    names = [option.name for option in options_of(cls) if option.default is attrs.NOTHING]
    return {name: _Sample(_example(cls, name)) for name in names}


class _Sample(str):
    """TOML text that is printed as it is."""

    __slots__ = ()


def _rendered(cls: type, values: Mapping[str, Any], *, brief: bool) -> list[str]:
    rows = []
    for option in options_of(cls):
        if brief and option.metadata["tentative"] and option.name not in values:
            continue
        if option.name == "commands":
            rows += [*_comment(option.metadata["doc"]), '#round_ended = ["/etc/siteagent/hang-up"]']
        else:
            rows += _option(cls, option.name, values)
    return rows


def _option(cls: type, name: str, values: Mapping[str, Any]) -> list[str]:
    metadata = _metadata(cls, name)
    rows = _comment(metadata["doc"])
    if name in values:
        value = values[name]
        return [*rows, f"{name} = {value if isinstance(value, _Sample) else toml(value)}"]
    default = metadata["shown"]
    if default is not None and metadata["sample"] is not None:
        rows += _comment(f"Default: {default}.")
    return [*rows, f"#{name} = {_example(cls, name)}"]


def _metadata(cls: type, name: str) -> Mapping[str, Any]:
    return next(option.metadata for option in options_of(cls) if option.name == name)


def _example(cls: type, name: str) -> str:
    option = next(option for option in options_of(cls) if option.name == name)
    if option.metadata["sample"] is not None:
        return str(option.metadata["sample"])
    if option.metadata["shown"] is not None:
        return str(option.metadata["shown"])
    return toml(option.default)


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, _WIDTH - 2)]


def _summary(cls: type) -> str:
    return " ".join((cls.__doc__ or "").split("\n\n")[0].split()).replace("``", "`")


def toml(value: Any) -> str:
    """`value` as TOML writes it: text, numbers, truth and lists of them."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, StrEnum):
        return toml(value.value)
    if isinstance(value, int | float):
        return str(int(value)) if value == int(value) else str(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml(item) for item in value) + "]"
    # JSON's escapes are all TOML's too, but DEL is plain in JSON and forbidden in TOML.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


# --- docs/configuration.md --------------------------------------------------------------------------------------------

_INTRODUCTION = """\
# Configuration

<!-- Printed from siteagent/config/sections.py by siteagent/config/document.py; changes belong there. -->

One TOML file. The first of these that exists is used:

1. `--config FILE`, then `$SITEAGENT_CONFIG` (for the hub `$SITEAGENT_HUB_CONFIG`): no other is looked for then
2. `siteagent.toml` in `$CONFIGURATION_DIRECTORY`, as systemd sets it
3. `/etc/siteagent/siteagent.toml` on Linux
4. `siteagent.toml` in the user's configuration directory (`~/.config/siteagent` on Linux), or that of the whole system
   for root and Windows services (`C:\\ProgramData\\siteagent\\config`)

For the hub the file is called `hub.toml`. Relative paths are relative to the file; `~` is the home of whoever runs it.

Required are a provider's `host` and `nodes`, and one mailbox with `addresses` and `maildir` (none where
`listen = []`). Everything else has a default. `siteagent init` writes a file with these and explains the rest in it;
`siteagent check` reads a file and tells everything that is wrong with it at once: unknown keys and what was probably
meant, wrong types, names that do not exist, doubles, paths and their permissions.

    siteagent.toml:9: provider.prot: found an unknown key; did you mean port?

A password stands in a file of its own that its owner alone can read (`chmod 600`; or root's, 0640, read through the
service's group), or comes as the systemd credential `siteagent.<name>.password`. It never stands in this file.

While the agent runs, a changed file counts from the next session and round on. One that has a problem is rejected as
a whole, and so is one that changes `state_directory` or the listener's `listen` or `open`: the old one stays in force,
and `siteagent status` warns until a changed file is taken in.

Options marked * may still be renamed before 1.0.
"""


def describe() -> str:
    """The text of docs/configuration.md."""
    rows = [_INTRODUCTION, "## siteagent.toml", "", *_described(Configuration)]
    rows += ["## hub.toml", "", "`[listener]`, `[limits]` and `[log]` are those of siteagent.toml.", ""]
    shared = set(field_types(Configuration).values())
    rows += _described(HubConfiguration, without=[k for k, v in field_types(HubConfiguration).items() if v in shared])
    return "\n".join(rows).rstrip("\n") + "\n"


def _described(kind: type, *, without: list[str] | None = None) -> list[str]:
    rows: list[str] = []
    plain = [name for name, table in field_types(kind).items() if not is_section(element_type(table) or table)]
    rows += [*_table_of(kind, plain), ""]
    for name, table in field_types(kind).items():
        if name in plain or name in (without or ()):
            continue
        several = element_type(table)
        cls = several or table
        heading = f"[[{name}]]" if several else f"[{name}]"
        options = [option.name for option in options_of(cls)]
        rows += [f"### `{heading}`", "", _summary(cls), "", *_table_of(cls, options), ""]
    return rows


def _table_of(cls: type, names: list[str]) -> list[str]:
    rows = ["| option | default | what it means |", "|---|---|---|"]
    for name in names:
        if name == "commands":
            rows.append(
                "| an event, such as `round_ended` | none | A command as a list; no shell. See docs/hooks.md. |"
            )
            continue
        option = next(option for option in options_of(cls) if option.name == name)
        metadata = option.metadata
        star = " *" if metadata["tentative"] else ""
        allowed = allowed_for(cls, name)
        said = metadata["doc"] + (f" Allowed: {allowed}." if _tells_more(cls, name, allowed) else "")
        rows.append(f"| `{name}`{star} | {_default(option)} | {_cell(said)} |")
    return rows


def _tells_more(cls: type, name: str, allowed: str) -> bool:
    kind = field_types(cls)[name]
    choices = isinstance(kind, type) and issubclass(kind, StrEnum)
    return choices or bool(_metadata(cls, name)["allowed"])


def _default(option: attrs.Attribute[Any]) -> str:
    shown = option.metadata["shown"]
    if shown is not None:
        text = str(shown)
        return _cell(text if "`" in text or " " in text.replace(", ", "") else f"`{text}`")
    if option.default is attrs.NOTHING:
        return "**required**"
    if option.default is None:
        return "none"
    return _cell(f"`{toml(option.default)}`")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
