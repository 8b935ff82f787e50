"""Which providers `ask` concerns, by the names and nodes it is given."""

from __future__ import annotations

import pytest
from siteagent.cli.ask import _who_has, chosen_providers
from siteagent.config.load import parse
from siteagent.config.sections import Configuration
from siteagent.errors import UsageError

CONFIGURATION = parse(
    """
    [[provider]]
    host = "mx.isp.example"
    name = "isp"
    nodes = ["office.example", "branch.example"]
    [[provider]]
    host = "mx.other.example"
    name = "other"
    nodes = ["depot.example"]
    [[mailbox]]
    name = "alice"
    addresses = ["alice@office.example"]
    maildir = "/var/mail/alice"
    """,
    path="siteagent.toml",
    kind=Configuration,
)
BOTH = ("isp", "other")


def test_without_a_name_all_are_asked_and_one_named_twice_once() -> None:
    assert chosen_providers(CONFIGURATION, ()) == BOTH
    assert chosen_providers(CONFIGURATION, ("other", "other")) == ("other",)


def test_a_node_is_asked_for_where_it_is_and_nowhere_else() -> None:
    assert _who_has(CONFIGURATION, BOTH, ()) == BOTH
    assert _who_has(CONFIGURATION, BOTH, ("depot.example",)) == ("other",)
    assert _who_has(CONFIGURATION, BOTH, ("depot.example", "branch.example")) == BOTH


def test_a_name_that_nobody_has_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="there is none of that name") as caught:
        chosen_providers(CONFIGURATION, ("ips",))
    assert "did you mean isp?" in (caught.value.fix or "")
    with pytest.raises(UsageError):
        _who_has(CONFIGURATION, ("isp",), ("depot.example",))
