"""Which mailbox an address leads to. Nothing is ever relayed."""

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from siteagent.config.sections import Delivery, Mailbox
from siteagent.delivery.routing import NOT_OURS, UNKNOWN, UNKNOWN_FOR_NOW, Routing, folded_domain, folded_local
from siteagent.wire.reply import Reply


def routing(*mailboxes: tuple[str, str], hostname: str = "mail.office.example", **delivery: Any) -> Routing:
    """`mailboxes`: (name, addresses by blanks)."""
    from pathlib import Path

    chosen = mailboxes or (("alice", "alice@office.example sales@office.example"), ("bob", "bob@branch.example"))
    made = [Mailbox(name=name, addresses=tuple(addresses.split()), maildir=Path("/none")) for name, addresses in chosen]
    return Routing(Delivery(**delivery), made, hostname=hostname)


@pytest.mark.parametrize(
    ("address", "mailbox"),
    [
        ("alice@office.example", "alice"),
        ("ALICE@Office.Example", "alice"),
        ("sales@office.example", "alice"),
        ("alice@office.example.", "alice"),
        ('"alice"@office.example', "alice"),
        ('"al\\ice"@office.example', "alice"),
        ("bob@branch.example", "bob"),
    ],
)
def test_an_address_leads_to_its_mailbox_however_it_is_written(address: str, mailbox: str) -> None:
    assert routing().route(address) == mailbox


@pytest.mark.parametrize("address", ["bob@office.example", "alice@branch.example", "ali@office.example"])
def test_a_name_that_we_do_not_know_is_refused_for_good(address: str) -> None:
    assert routing().route(address) == UNKNOWN
    assert UNKNOWN.code == 550


def test_unknown_names_may_be_deferred_or_taken_by_a_mailbox() -> None:
    assert routing(unknown_recipient="defer").route("who@office.example") == UNKNOWN_FOR_NOW
    assert routing(unknown_recipient="bob").route("who@office.example") == "bob"
    assert UNKNOWN_FOR_NOW.temporary


@pytest.mark.parametrize(
    "address",
    [
        "x@elsewhere.example",
        "alice@office.example.evil.test",
        "alice@evil.office.example",
        "x%elsewhere.example@office.example",
        "elsewhere.example!x@office.example",
        '"x@elsewhere.example"@office.example',
        '"x%elsewhere.example"@office.example',
        "@office.example:x@elsewhere.example",
        "alice@[192.0.2.1]",
        "alice@",
        "alice",
        "@",
        "",
        "alice@office.example@elsewhere.example",
    ],
)
@pytest.mark.parametrize("unknown", ["reject", "defer", "alice"])
def test_s3_nothing_is_relayed_whatever_the_spelling(address: str, unknown: str) -> None:
    answer = routing(unknown_recipient=unknown).route(address)
    assert answer == NOT_OURS
    assert (NOT_OURS.code, NOT_OURS.enhanced) == (550, "5.7.1")


@pytest.mark.parametrize("local", ["x%elsewhere.example", "elsewhere.example!x", '"x@elsewhere.example"'])
def test_s3_a_mailbox_that_takes_the_rest_takes_no_route(local: str) -> None:
    assert routing(("all", "@office.example")).route(f"{local}@office.example") == NOT_OURS


def test_a_mailbox_may_take_the_rest_of_a_domain() -> None:
    table = routing(("alice", "alice@office.example"), ("rest", "@office.example"))
    assert table.route("alice@office.example") == "alice"
    assert table.route("anybody@office.example") == "rest"


@pytest.mark.parametrize(
    ("separator", "address", "expected"),
    [
        ("+", "alice+lists@office.example", "alice"),
        ("+", "alice+a+b@office.example", "alice"),
        ("+", "+alice@office.example", UNKNOWN),
        ("-", "alice-lists@office.example", "alice"),
        ("", "alice+lists@office.example", UNKNOWN),
        ("+", "alice+@office.example", "alice"),
    ],
)
def test_a_subaddress_is_its_owners(separator: str, address: str, expected: object) -> None:
    assert routing(subaddress_separator=separator).route(address) == expected


def test_an_address_that_is_configured_whole_wins_over_its_owner() -> None:
    table = routing(("alice", "alice@office.example"), ("lists", "alice+lists@office.example"))
    assert table.route("alice+lists@office.example") == "lists"


@pytest.mark.parametrize(
    "address",
    ["postmaster", "Postmaster", "POSTMASTER@office.example", "postmaster@branch.example",
     "postmaster@mail.office.example", "postmaster@[192.0.2.1]"],
)  # fmt: skip
def test_the_postmaster_can_be_written_to_everywhere_here(address: str) -> None:
    assert routing().route(address) == "alice"
    assert routing(postmaster="bob").route(address) == "bob"


def test_the_postmaster_of_others_is_not_ours() -> None:
    assert routing().route("postmaster@elsewhere.example") == NOT_OURS


def test_a_postmaster_that_is_an_address_of_its_own_is_that_mailbox() -> None:
    table = routing(("alice", "alice@office.example"), ("desk", "postmaster@office.example"))
    assert table.route("postmaster@office.example") == "desk"
    assert table.route("postmaster") == "alice"


def test_domains_may_be_given_beyond_those_of_the_addresses() -> None:
    table = routing(domains=("office.example",))
    assert table.route("bob@branch.example") == NOT_OURS
    assert routing(domains=("office.example", "more.example")).route("x@more.example") == UNKNOWN


def test_international_domains_are_one_in_both_spellings() -> None:
    table = routing(("müller", "müller@büro.example"))
    for address in (
        "müller@büro.example",
        "müller@xn--bro-hoa.example",
        "MÜLLER@BÜRO.example",
        "mu\u0308ller@büro.example",
    ):
        assert table.route(address) == "müller"


LOCALS = st.text(max_size=12) | st.sampled_from(["alice", '"', "\\", "a%b", "a@b", "!", "alice+x"])
DOMAINS = st.text(max_size=12) | st.sampled_from(["office.example", "elsewhere.example", ".", "[::1]", "xn--", "..a"])


@given(LOCALS, DOMAINS)
def test_any_address_has_an_answer(local: str, domain: str) -> None:
    for unknown, mailbox in itertools.product(("reject", "alice"), ("alice@office.example", "@office.example")):
        answer = routing(("alice", mailbox), unknown_recipient=unknown).route(f"{local}@{domain}")
        assert answer == "alice" or (isinstance(answer, Reply) and answer.permanent)
        if folded_domain(f"{local}@{domain}".rpartition("@")[2]) not in ("office.example", "mail.office.example"):
            assert answer == NOT_OURS or folded_local(local) == "postmaster"


@given(st.text(max_size=20))
def test_folding_twice_is_folding_once(text: str) -> None:
    assert folded_domain(folded_domain(text)) == folded_domain(text)
