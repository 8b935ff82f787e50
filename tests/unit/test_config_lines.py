"""Lines of keys: compared with texts whose lines are known by how they were made."""

from __future__ import annotations

import tomllib
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from siteagent.config.document import toml
from siteagent.config.lines import KeyPath, lines_of, nearest_line

TEXT = '''# a comment with [brackets] and = signs
a = 1
"quoted key" = "x # no comment"  # comment
long = """
[not.a.table]
b = 2 \\"""
"""""
raw = \'\'\'
'it's\'\'\'
list = [ # why
  1,
  "two]",

  [3, {x = "}"}],
]
in.line = {y = 1, z = ["p", "q"]}
[table]
key = true
[[many]]
n = 1
[many.sub]
m = 2
[[many]]
[[many.inner]]
k = 1979-05-27 07:32:00
[[many.inner]]
'''


def test_every_form_of_key_gets_its_line() -> None:
    lines = lines_of(TEXT)
    expected: dict[KeyPath, int] = {
        ("a",): 2,
        ("quoted key",): 3,
        ("long",): 4,
        ("raw",): 8,
        ("list",): 10,
        ("list", 0): 11,
        ("list", 1): 12,
        ("list", 2): 14,
        ("list", 2, 1, "x"): 14,
        ("in",): 16,
        ("in", "line", "z", 1): 16,
        ("table", "key"): 18,
        ("many", 0): 19,
        ("many", 0, "sub", "m"): 22,
        ("many", 1): 23,
        ("many", 1, "inner", 0, "k"): 25,
        ("many", 1, "inner", 1): 26,
    }
    assert {path: lines.get(path) for path in expected} == expected


def test_line_ends_of_windows_change_no_line() -> None:
    assert lines_of(TEXT.replace("\n", "\r\n")) == lines_of(TEXT)


def test_what_is_not_written_has_the_line_around_it() -> None:
    lines = lines_of(TEXT)
    assert [nearest_line(lines, path) for path in (("table", "absent"), ("many", 1, "x"), ("nothing",), ())] == [
        17,
        23,
        1,
        1,
    ]


VALUES = st.recursive(
    st.text(max_size=8) | st.integers(-9, 9) | st.booleans(), lambda inner: st.lists(inner, max_size=3), max_leaves=5
)
KEYS = st.text("abc-_1", min_size=1, max_size=4) | st.text(min_size=1, max_size=4)


@settings(max_examples=150)
@given(st.dictionaries(KEYS, st.dictionaries(KEYS, VALUES, max_size=4), max_size=4), st.integers(0, 3))
def test_any_tables_have_the_lines_they_were_written_on(tables: dict[str, dict[str, Any]], gap: int) -> None:
    rows: list[str] = []
    expected: dict[KeyPath, int] = {}
    for name, table in tables.items():
        rows += ["# [x] \" ' =" for _ in range(gap)]
        rows.append(f"[{_quoted(name)}]")
        expected[name,] = len(rows)
        for key, value in table.items():
            rows.append(f"{_quoted(key)}={toml(value)} # {{")
            expected[name, key] = len(rows)
    text = "\n".join(rows)
    assert tomllib.loads(text) == tables
    lines = lines_of(text)
    assert {path: lines[path] for path in expected} == expected


def _quoted(key: str) -> str:
    return toml(key)
