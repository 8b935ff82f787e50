"""What is concluded from the way out, the provider's answers and DNS."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import trustme
from siteagent.config.load import parse
from siteagent.config.sections import Configuration
from siteagent.doctor import outward
from siteagent.doctor.findings import Finding
from siteagent.doctor.records import NoSuchName
from siteagent.doctor.site import Site
from siteagent.doctor.survey import Survey
from siteagent.doctor.table import CHECKS, examined
from siteagent.errors import TemporaryError
from siteagent.events import Line
from siteagent.host.certificates import first_of
from siteagent.uplink.broken import Broken
from siteagent.wire.reply import Reply

NOW = datetime(2026, 11, 22, tzinfo=UTC)
SOURCE = "8.8.4.4"
NOT_ALLOWED = Reply(459, "", "siteagent-doctor.invalid: service unavailable")


class Ways:
    def __init__(self, *lines: Line) -> None:
        self._lines = lines

    def lines(self, addresses: object) -> tuple[Line, ...]:
        return self._lines


def site(more: str = "", *, source: str | None = SOURCE, records: dict[str, Any] | None = None, **values: Any) -> Site:
    text = (
        f'state_directory = "/nonexistent"\n[[provider]]\nname = "isp"\nhost = "mx.isp.example"\n'
        f'nodes = ["office.example"]\npeers = ["8.8.8.0/24"]\n{more}\n'
        '[[mailbox]]\naddresses = ["alice@office.example"]\nmaildir = "/nonexistent/alice"\n'
    )

    def look_up(name: str, kind: str) -> list[str]:
        found = (records or {}).get(name, NoSuchName(name))
        if isinstance(found, Exception):
            raise found
        return list(found.get(kind, ()))

    made = Site(path=Path("x.toml"), configuration=parse(text, path="", kind=Configuration), look_up=look_up, **values)
    made.now = lambda: NOW
    made.oracle = Ways()
    made.addresses["isp"] = ["8.8.8.8"]
    made.lines["isp"] = Line("ppp0", source, None) if source else None
    return made


def statuses(found: Any) -> list[tuple[str, str]]:
    return [(finding.name, finding.status.value) for finding in found]


def one(found: Any) -> Finding:
    (finding,) = found
    assert isinstance(finding, Finding)
    return finding


# --- the way out ------------------------------------------------------------------------------------------------------


def test_a_name_that_does_not_resolve_is_told() -> None:
    made = site()
    made.addresses["isp"] = "name or service not known"
    assert "mx.isp.example: name or service not known" in one(outward.way_out(made)).found


def test_a_line_that_the_patterns_rule_out_names_the_option() -> None:
    made = site(source=None)
    made.oracle = Ways(Line("wlan0", SOURCE, None))
    finding = one(outward.way_out(made))
    assert (finding.status, "wlan0" in finding.found) == ("fail", True)
    assert 'add "wlan0" to interfaces' in finding.fix


def test_no_route_at_all_is_told() -> None:
    assert "no route to 8.8.8.8" in one(outward.way_out(site(source=None))).found


@pytest.mark.parametrize(("source", "status"), [("8.8.4.4", "ok"), ("192.168.1.5", "warn"), ("100.66.0.1", "fail")])
def test_what_kind_of_address_we_have(source: str, status: str) -> None:
    assert one(outward.own_address(site(source=source))).status == status


def test_by_atrn_nobody_needs_to_reach_us() -> None:
    secret = Path(__file__)
    more = f'method = "atrn"\nusername = "u"\npassword_file = "{secret}"'
    assert list(outward.own_address(site(more, source="100.66.0.1"))) == []


# --- the provider -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("etrn", "features", "status", "words"),
    [
        (NOT_ALLOWED, "etrn", "ok", "offers ETRN"),
        (NOT_ALLOWED, "", "ok", "offers ETRN"),
        (Reply(250, "", "OK"), "etrn", "ok", "offers ETRN"),
        (Reply(502, "", "no"), "", "fail", "does not know ETRN"),
        (Reply(500, "", "what"), "atrn", "fail", "does not know ETRN"),
        (Reply(554, "5.7.1", "Client host rejected"), "etrn", "fail", "refuses this address"),
        (Reply(530, "5.7.0", "Authentication required"), "etrn", "fail", "wants a login"),
        (Reply(458, "", "authentication required"), "etrn", "fail", "wants a login"),
    ],
)
def test_what_the_provider_answers(etrn: Reply, features: str, status: str, words: str) -> None:
    made = site()
    made.surveys["isp"] = Survey(etrn=etrn, features=dict.fromkeys(features.split(), ""))
    finding = one(outward.providers(made))
    assert finding.status == status and words in finding.found
    assert bool(finding.fix) == (status != "ok")


def test_the_line_to_pin_a_certificate_can_be_pasted() -> None:
    made = site()
    issued = trustme.CA().issue_cert("mx.isp.example", not_after=datetime(2030, 1, 1, tzinfo=UTC))
    made.surveys["isp"] = Survey(etrn=NOT_ALLOWED, encrypted=True)
    made.certificates["isp"] = first_of(issued.cert_chain_pems[0].bytes())
    finding = list(outward.providers(made))[1]
    assert 'tls = "required", tls_fingerprint = "sha256:' in finding.found


def test_a_certificate_that_is_not_trusted_comes_with_the_line_that_trusts_it() -> None:
    made = site('username = "office"\ntls = "required"')
    issued = trustme.CA().issue_cert("mx.isp.example", not_after=datetime(2030, 1, 1, tzinfo=UTC))
    made.surveys["isp"] = Survey(
        error=Broken(made.configuration.provider[0], "starttls", "its certificate is not trusted", temporary=False)
    )
    made.certificates["isp"] = first_of(issued.cert_chain_pems[0].bytes())
    finding = list(outward.providers(made))[1]
    assert 'tls_fingerprint = "sha256:' in finding.found


# --- DNS --------------------------------------------------------------------------------------------------------------

REACHED = 'reached_as = "office.dyn.example"'


@pytest.mark.parametrize(
    ("record", "status", "words"),
    [
        ({"A": [SOURCE]}, "ok", "which is here"),
        ({"A": ["8.8.1.1"]}, "fail", "we are at 8.8.4.4"),
        ({"A": ["127.0.0.1"]}, "fail", "parked"),
        ({"A": ["0.0.0.0"]}, "fail", "parked"),
        (NoSuchName("x"), "fail", "no such name"),
        ({}, "warn", "no address"),
    ],
)
def test_where_the_name_leads_by_which_the_provider_finds_us(record: Any, status: str, words: str) -> None:
    finding = one(outward.reached_as(site(REACHED, records={"office.dyn.example": record})))
    assert (finding.status, words in finding.found) == (status, True), finding


def test_behind_a_router_the_provider_tells_our_address_if_it_says_one() -> None:
    made = site(REACHED, source="192.168.1.5", records={"office.dyn.example": {"A": ["8.8.1.1"]}})
    assert one(outward.reached_as(made)).status == "warn"
    made.surveys["isp"] = Survey(seen_as="8.8.1.1")
    assert one(outward.reached_as(made)).status == "ok"


@pytest.mark.parametrize(
    ("record", "status"),
    [
        ({"MX": ["10 mx.isp.example."]}, "ok"),
        ({"MX": ["10 other.example."]}, "warn"),
        (NoSuchName("x"), "warn"),
        (TemporaryError("x", "no answer"), "warn"),
    ],
)
def test_whether_the_mail_of_the_domain_goes_to_the_provider(record: Any, status: str) -> None:
    records = {"office.example": record, "other.example": {"A": ["8.8.1.1"]}}
    assert one(outward.mx(site(records=records))).status == status


def test_an_exchange_of_another_name_at_the_providers_address_is_the_provider() -> None:
    records = {"office.example": {"MX": ["10 in.isp.example."]}, "in.isp.example": {"A": ["8.8.8.8"]}}
    assert one(outward.mx(site(records=records))).status == "ok"


def test_a_silent_round_is_no_fault_and_is_explained() -> None:
    last = {"outcome": "silent", "messages": 0, "started": "2026-11-22T08:00:00Z", "reason": ""}
    made = site(document={"providers": [{"name": "isp", "last_round": last}]})
    finding = one(outward.last_rounds(made))
    assert finding.status == "ok" and "Postfix, Exim and Sendmail say 250" in finding.found


# --- the table --------------------------------------------------------------------------------------------------------


def test_a_check_that_breaks_is_a_finding_and_not_the_end() -> None:
    made = site()
    made.addresses = None  # type: ignore[assignment]
    found = list(examined(made))
    broken = [finding for finding, _ in found if "this check broke" in finding.found]
    assert broken and len(found) > len(broken)


def test_every_check_says_why_it_matters() -> None:
    assert all(check.why and check.why[0].islower() and not check.why.endswith(".") for check in CHECKS)
    assert len({check.why for check in CHECKS}) == len(CHECKS)
