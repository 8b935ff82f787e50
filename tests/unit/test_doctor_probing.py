"""The verdict of `probe`: what was seen, and which layout that makes."""

from __future__ import annotations

import asyncio

import pytest
from siteagent.cli.main import main
from siteagent.doctor.probing import Probe, Seen, probe, verdict
from siteagent.doctor.records import NoSuchName
from siteagent.doctor.survey import Survey
from siteagent.errors import TemporaryError
from siteagent.wire.reply import Reply

UNKNOWN = Reply(502, "5.5.1", "unknown command")
NOT_ALLOWED = Reply(459, "", "siteagent-doctor.invalid: service unavailable")


def seen(port: int = 25, *, etrn: Reply | None = NOT_ALLOWED, features: str = "etrn") -> Seen:
    survey = Survey(software="Postfix", features=dict.fromkeys(features.split(), ""), etrn=etrn)
    return Seen("mx.isp.example", port, survey)


def made(*ports: Seen, kind: str = "public", source: str | None = "203.0.113.7", **more: object) -> Probe:
    values: dict[str, object] = {"hosts": {"mx.isp.example": ["198.51.100.1"]}, **more}
    found = Probe("office.example", source=source, kind=kind, seen=list(ports))
    for name, value in values.items():
        setattr(found, name, value)
    return found


CLOSED = Seen("mx.isp.example", 25, None, "refused")


@pytest.mark.parametrize(
    ("found", "layout", "words"),
    [
        (made(seen()), "A", "can be asked by ETRN"),
        (made(seen(), kind="private"), "A", "can be asked by ETRN"),
        (made(seen(features="")), "A", "can be asked"),  # hidden, and done
        (made(seen(), kind="shared"), None, "shared by the carrier"),
        (made(seen(366, etrn=UNKNOWN, features="atrn auth"), kind="shared"), "C", "ATRN"),
        (made(seen(features="etrn atrn"), kind="shared"), "C", "ATRN"),
        (made(CLOSED), None, "no port of it answers"),
        (made(seen(etrn=UNKNOWN, features="starttls")), None, "cannot do it"),
        (made(seen(), ours=["mail.office.example"], mx=["mail.office.example", "mx.isp.example"]), "B", "its backup"),
        (made(ours=["mail.office.example"], mx=["mail.office.example"]), None, "no backup"),
        (made(source=None, kind=""), None, "there is no line"),
        (made(hosts={}, trouble="there is no such name as x"), None, "no such name"),
    ],
)
def test_what_was_seen_makes_one_verdict(found: Probe, layout: str | None, words: str) -> None:
    said, sentences = verdict(found)
    assert said == layout
    assert words in sentences[0]


def test_a_provider_that_cannot_is_followed_by_what_can() -> None:
    _, sentences = verdict(made(seen(etrn=UNKNOWN, features="")))
    assert "siteagent hub" in sentences[1] and "Exim" in sentences[1]


def test_a_verdict_ends_in_the_command_to_go_on_with() -> None:
    assert "siteagent init --provider mx.isp.example --method etrn" in verdict(made(seen()))[1]


def test_where_a_domain_was_looked_at_the_command_asks_for_it() -> None:
    for more in ({}, {"ours": ["mail.office.example"]}):
        mx = ["mail.office.example", "mx.isp.example"]
        command = next(row for row in verdict(made(seen(), mx=mx, **more))[1] if row.startswith("siteagent init"))
        assert command.startswith("siteagent init --provider mx.isp.example --node office.example --")


def test_the_document_tells_each_port() -> None:
    document = made(seen(), CLOSED).document()
    assert document["layout"] == "A"
    assert [(row["port"], row["open"], row["etrn"]) for row in document["ports"]] == [
        (25, True, True),
        (25, False, False),
    ]


def _probe(wanted: str, records: dict[tuple[str, str], list[str]], *, dead: bool = False) -> Probe:
    def look_up(name: str, kind: str) -> list[str]:
        if dead:
            raise TemporaryError("cannot look up", "no answer")
        if not any(known == name for known, _ in records):
            raise NoSuchName(name)
        return records.get((name, kind), [])

    return asyncio.run(
        probe(wanted, hostname="here.example", look_up=look_up, source_to=lambda addresses: "192.0.2.9", ports=())
    )


def test_of_a_domain_the_exchanges_are_looked_at_best_first() -> None:
    found = _probe(
        "office.example",
        {
            ("office.example", "MX"): ["20 b.example.", "10 A.example."],
            ("a.example", "A"): ["192.0.2.1"],
            ("b.example", "A"): ["192.0.2.2"],
        },
    )
    assert (found.mx, list(found.hosts)) == (["a.example", "b.example"], ["a.example", "b.example"])


def test_a_host_of_our_own_is_known_by_its_address() -> None:
    found = _probe("mail.example", {("mail.example", "A"): ["192.0.2.9"]})
    assert found.ours == ["mail.example"]


def test_a_name_that_is_not_there_is_said() -> None:
    assert _probe("nowhere.example", {}).trouble == "there is no such name as nowhere.example"


def test_an_address_needs_no_dns() -> None:
    assert _probe("192.0.2.1", {}, dead=True).hosts == {"192.0.2.1": ["192.0.2.1"]}


def test_what_is_no_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", "not a name"]) == 64
    assert "cannot probe 'not a name'" in capsys.readouterr().err
