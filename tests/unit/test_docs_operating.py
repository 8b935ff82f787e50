"""The pages for operators name what there is: events with their fields, commands, warnings."""

from __future__ import annotations

import re
from pathlib import Path

import attrs
import pytest
from siteagent.cli.main import COMMANDS
from siteagent.events import by_name
from siteagent.status import KINDS

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ["operating.md", "monitoring.md", "reading-mail.md", "known-issues.md", "contributing.md"]
_LINE = re.compile(r"^    (debug|info|warning|error) ([a-z]+\.[a-z]+)((?: [a-z_]+=(?:\"[^\"]*\"|\S+))*)$", re.MULTILINE)


def test_every_log_line_of_the_symptoms_is_one_that_the_agent_writes() -> None:
    found = _LINE.findall((DOCS / "operating.md").read_text("utf-8"))
    assert len(found) >= 10
    for severity, name, rest in found:
        cls = by_name()[name]
        assert cls.severity == severity, name
        known = [field.name for field in attrs.fields(cls)]
        written = re.findall(r" ([a-z_]+)=", rest)
        assert [each for each in known if each in written] == written, name


@pytest.mark.parametrize("page", PAGES)
def test_every_command_that_is_named_exists(page: str) -> None:
    text = (DOCS / page).read_text("utf-8")
    named = set(re.findall(r"(?:`|    (?:sudo )?)siteagent ([a-z][a-z-]+)", text))
    assert named <= set(COMMANDS), named - set(COMMANDS)


def test_every_warning_is_explained_and_no_other() -> None:
    text = (DOCS / "monitoring.md").read_text("utf-8").partition("## Warnings")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `([a-z-]+)` \|", text, re.MULTILINE)) == set(KINDS)


def test_the_recipe_of_the_refusal_is_the_recipe_of_the_page() -> None:
    from siteagent.host.install import RECIPE

    text = (DOCS / "operating.md").read_text("utf-8")
    for word in ("venv /opt/siteagent", "/opt/siteagent/bin/pip install siteagent", "install-service"):
        assert word in RECIPE and word in text
