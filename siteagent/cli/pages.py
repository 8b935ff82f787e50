"""Pages of ``docs/`` that are printed from the code; a test of each keeps the file fresh.

Print them anew with ``python -m siteagent.cli.pages``, in the root of the repository.
"""

from __future__ import annotations

import types
import typing
from datetime import datetime
from enum import Enum
from pathlib import Path

import attrs

from siteagent.events import Event, Severity, by_name, summary

_EVENTS_HEAD = """\
# Events

<!-- Printed from siteagent/events.py by `python -m siteagent.cli.pages`; edit there. -->

Everything that happens has one name and one set of fields, wherever it is met: a line of the log, a row of the journal,
the environment of a hook.

- **Log, text**: `2026-11-22T08:00:00Z info round.ended round=.. provider=isp outcome=drained ...`. Absent fields, empty
  lists and texts at their default are left out; lists are joined by a comma; a value in quotes is a JSON string. Under
  systemd the time is the journal's own.
- **Log, JSON** (`format = "json"`): one object a line with `time`, `level`, `event` and every field; a field of one of
  these names gets an underscore behind it.
- **Hooks**: `SITEAGENT_EVENT` holds the name, `SITEAGENT_<FIELD>` each field. Absent is empty, lists are joined by a
  blank, control characters are removed. In `[hooks]` the name is written with `_` for `.`, as in
  `round_ended = ["/etc/siteagent/hang-up"]`.

Durations are `seconds`, sizes `bytes` (octets). `round`, `session` and `message` are ids; `message` is the unique part
of the Maildir file name. Values beyond 4000 characters are cut in the log.
"""

_TYPES = {str: "text", int: "number", float: "number", bool: "true or false", datetime: "time"}


def events_page() -> str:
    """The whole of ``docs/events.md``."""
    parts = [_EVENTS_HEAD, "| event | severity | what happened |\n|---|---|---|"]
    parts[1] += "".join(
        f"\n| [`{name}`](#{_anchor(name)}) | {cls.severity} | {summary(cls)} |" for name, cls in by_name().items()
    )
    parts += [_section(cls) for cls in by_name().values()]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _anchor(name: str) -> str:
    return name.replace(".", "")


def _section(cls: type[Event]) -> str:
    severity = "" if cls.severity is Severity.INFO else f" Severity: {cls.severity}."
    rows = [f"## {cls.name}", f"{summary(cls)}{severity}", "| field | value | in a hook |\n|---|---|---|"]
    hints = typing.get_type_hints(cls)
    for field in attrs.fields(cls):
        optional = "" if field.default is attrs.NOTHING or field.default is None else f", else {_shown(field.default)}"
        # `hook.failed` has a field `event`, whose variable is taken by the name of the event itself.
        variable = f"SITEAGENT_{field.name.upper()}" if field.name != "event" else "-"
        mark = f"`{variable}`" if variable != "-" else variable
        rows[2] += f"\n| `{field.name}` | {_described(hints[field.name])}{optional} | {mark} |"
    return "\n\n".join(rows)


def _shown(default: object) -> str:
    return "empty" if default in ("", ()) else str(default)


def _described(hint: object) -> str:
    if isinstance(hint, types.UnionType):
        inner = [_described(each) for each in typing.get_args(hint) if each is not type(None)]
        return " or ".join(inner) + (", or absent" if type(None) in typing.get_args(hint) else "")
    if typing.get_origin(hint) is tuple:
        return "list of texts"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return ", ".join(f"`{member.value}`" for member in hint)
    assert isinstance(hint, type)
    return _TYPES[hint]


if __name__ == "__main__":
    Path("docs/events.md").write_text(events_page(), encoding="utf-8")
