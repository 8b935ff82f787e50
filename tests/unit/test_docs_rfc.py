"""docs/rfc.md stays true: every rule has its row, every place and every test that it names is there."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "rfc.md"
ROW = re.compile(r"^\| ([A-Z]\d+) \|(.*)\|$", re.MULTILINE)
SENTENCES = {3, *range(38, 50), *range(58, 62)}
RULES = {
    *(f"E{n}" for n in range(1, 24)),
    *(f"H{n}" for n in range(1, 17)),
    *(f"O{n}" for n in range(1, 25)),
    *(f"C{n}" for n in range(1, 17)),
    *(f"S{n}" for n in SENTENCES),
}


def rows() -> dict[str, list[str]]:
    """Id to section, rule, support, place, test."""
    found = {}
    for number, rest in ROW.findall(PAGE.read_text("utf-8")):
        assert number not in found, f"{number} stands twice"
        found[number] = [cell.strip() for cell in rest.split("|")]
    return found


def all_tests() -> set[str]:
    """The name of every test there is."""
    return {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text("utf-8"), re.MULTILINE)
    }


def test_every_rule_has_its_row() -> None:
    assert set(rows()) == RULES


@pytest.mark.parametrize("number", sorted(RULES))
def test_the_place_and_the_test_of_a_rule_are_there(number: str) -> None:
    section, rule, support, place, test = rows()[number]
    assert section and rule and support
    path, _, name = place.strip("`").partition(": ")
    text = (ROOT / "siteagent" / path).read_text("utf-8")
    assert not name or re.search(rf"^\s*(?:async def|def|class) {name}\b|^{name}\b.*=", text, re.MULTILINE), place
    assert test.strip("`") in all_tests(), test


def test_every_sentence_of_the_page_is_in_the_name_of_a_test() -> None:
    named = {int(number) for name in all_tests() for number in re.findall(r"_s(\d+)_", name)}
    assert named >= SENTENCES


def test_what_docs_providers_md_names_as_a_test_is_one() -> None:
    named = re.findall(r"`(test_\w+)`", (ROOT / "docs" / "providers.md").read_text("utf-8"))
    assert named and set(named) <= all_tests()


def test_what_explains_a_difference_from_aiosmtpd_stands_in_docs_dialect_md() -> None:
    listed = tomllib.loads((ROOT / "tests" / "reference" / "aiosmtpd_suite.toml").read_text("utf-8"))["explained"]
    page = " ".join((ROOT / "docs" / "dialect.md").read_text("utf-8").split())
    assert listed and [entry["by"] for entry in listed if entry["by"] not in page] == []
