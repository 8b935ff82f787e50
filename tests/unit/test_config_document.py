"""What is printed from the definitions of the options."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from siteagent.config.document import describe, render, sample
from siteagent.config.load import parse
from siteagent.config.sections import Configuration, HubConfiguration

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_docs_configuration_md_is_fresh() -> None:
    anew = "python -c 'from siteagent.config.document import describe as d; print(d(), end=str())'"
    assert (DOCS / "configuration.md").read_text("utf-8") == describe(), f"run: {anew} > docs/configuration.md"


def test_the_sample_is_a_configuration() -> None:
    value = parse(sample(Configuration), path="sample", kind=Configuration)
    assert value.provider[0].host == "mx.isp.example"


@pytest.mark.parametrize("kind", [Configuration, HubConfiguration])
def test_every_line_that_the_sample_comments_out_is_an_option_with_a_value(
    kind: type[Configuration] | type[HubConfiguration],
) -> None:
    # Not every example goes with every other; each must be TOML by itself.
    for line in re.findall(r"^#(\w+ = .*)$", sample(kind), re.MULTILINE):
        tomllib.loads(line)


def test_values_come_back_from_the_rendered_text_as_they_went_in() -> None:
    values = {
        "hostname": "mail.office.example",
        "provider": [
            {"host": "a.example", "nodes": ["x"], "quiet_seconds": 2.5},
            {"host": "b.example", "nodes": ['say "hi"', "back\\slash", "\u00fc"], "defer_above_bytes": 10},
        ],
        "delivery": {"unknown_recipient": "defer"},
    }
    read = tomllib.loads(render(Configuration, values, brief=True))
    assert {key: table for key, table in read.items() if table} == values
