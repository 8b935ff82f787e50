"""Which node, and who may start it (RFC 1985 §5, RFC 2645 §5.2.1)."""

from __future__ import annotations

import pytest
from siteagent.config.sections import Node
from siteagent.hub.nodes import ATRN_REFUSED, ATRN_SYNTAX, SYNTAX, NodeTable
from siteagent.wire.reply import Reply


def node(name: str, **options: object) -> Node:
    return Node(name=name, **{"domains": (name,), **options})  # type: ignore[arg-type]


TABLE = NodeTable(
    [
        node("office.example", domains=("office.example", "*.office.example"), account="office"),
        node("branch.office.example", account="office"),
        node("other.example", account="other"),
        node("open.example", etrn_without_auth=True),
        node("sub.open.example", etrn_without_auth=True),
        node("closed.open.example", account="other"),
        node("boat", domains=("boat.example",), account="office"),
    ]
)


def names(found: list[Node] | Reply) -> list[str] | int:
    return found.code if isinstance(found, Reply) else [each.name for each in found]


@pytest.mark.parametrize(
    ("address", "leads_to"),
    [
        ("alice@office.example", "office.example"),
        ("alice@deep.below.office.example", "office.example"),
        ("alice@BRANCH.office.example", "branch.office.example"),
        ("alice@boat.example", "boat"),
        ("alice@far.example", 550),
        ("alice%far.example@office.example", 550),
        ("far.example!alice@office.example", 550),
        ("postmaster", 550),
    ],
)
def test_s3_mail_is_taken_for_the_domains_of_nodes_and_for_nothing_else(address: str, leads_to: str | int) -> None:
    found = TABLE.route(address)
    assert (found.code if isinstance(found, Reply) else found) == leads_to


def test_with_a_list_of_recipients_all_others_are_refused_but_the_postmaster() -> None:
    table = NodeTable([node("office.example")], recipients={"office.example": ("Alice@office.example",)})
    assert table.route("alice@office.example") == "office.example"
    assert table.route("postmaster@office.example") == "office.example"
    assert isinstance(table.route("bob@office.example"), Reply)


def test_a_domain_in_the_list_of_recipients_takes_all_of_it() -> None:
    table = NodeTable([node("office.example")], recipients={"office.example": ("@office.example",)})
    assert table.route("whoever@office.example") == "office.example"


@pytest.mark.parametrize(
    ("argument", "account", "started"),
    [
        ("office.example", "office", ["office.example"]),
        ("OFFICE.example", "office", ["office.example"]),
        ("boat.example", "office", ["boat"]),
        ("#boat", "office", ["boat"]),
        ("boat", "office", ["boat"]),
        ("boat", None, 501),
        ("localname", None, 501),
        ("@office.example", "office", ["office.example", "branch.office.example"]),
        ("@example", "office", 501),
        ("@open.example", None, ["open.example", "sub.open.example"]),
        ("@example.com", "office", 459),
        ("open.example", None, ["open.example"]),
        ("office.example", None, 459),
        ("office.example", "other", 459),
        ("nobody.example", "office", 459),
        ("nobody.example", None, 459),
        ("#nothing", "office", 459),
    ],
)
def test_etrn_starts_what_the_asker_may_start(argument: str, account: str | None, started: list[str] | int) -> None:
    assert names(TABLE.startable(argument, account=account)) == started


def test_s58_unknown_and_not_allowed_are_the_same_words() -> None:
    unknown = TABLE.startable("nobody.example", account="other")
    forbidden = TABLE.startable("office.example", account="other")
    anonymous = TABLE.startable("office.example", account=None)
    words = {bytes(r).replace(b"nobody", b"*").replace(b"office", b"*") for r in (unknown, forbidden, anonymous)}  # type: ignore[arg-type]
    assert len(words) == 1


@pytest.mark.parametrize(
    ("argument", "fetched"),
    [
        ("", ["office.example", "branch.office.example", "boat"]),
        ("office.example,boat.example", ["office.example", "boat"]),
        ("office.example,other.example", ATRN_REFUSED.code),
        ("nobody.example", ATRN_REFUSED.code),
        ("office.example, boat.example", ATRN_SYNTAX.code),
        ("office", ATRN_SYNTAX.code),
        ("office.example,", ATRN_SYNTAX.code),
        (",".join(["office.example"] * 10_000), ATRN_SYNTAX.code),
    ],
)
def test_s59_atrn_gives_all_of_its_domains_or_none(argument: str, fetched: list[str] | int) -> None:
    assert names(TABLE.fetchable(argument, account="office")) == fetched


def test_syntax_is_told_by_501() -> None:
    assert (SYNTAX.code, ATRN_SYNTAX.code) == (501, 501)
