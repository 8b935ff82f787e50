"""The main job over STARTTLS, verified both ways, and with a provider that wants to know who asks."""

from __future__ import annotations

import re

import pytest
from tests.e2e.lab import Lab, Tap, Trust, wait_for
from tests.e2e.messages import CAROL, shapes, simple

pytestmark = [pytest.mark.netns, pytest.mark.postfix]

TABLES = {"link": "settle_seconds = 0.1", "provider.isp": "quiet_seconds = 1"}
SENT = [*simple(3), *simple(2, recipients=(CAROL,), first=10)]
ACCOUNT = ("office", "s3cret word")


def test_over_starttls_with_verified_certificates_both_ways_all_fifty_arrive(lab: Lab) -> None:
    isp = lab.provider(require_tls=True)
    isp.queue(shapes())
    with lab.agent(tables=TABLES) as agent, Tap(lab.site, isp.line.device) as tap:
        isp.line.up()
        ended = agent.wait_for_round("isp")
        assert (ended["outcome"], ended["messages"], isp.waiting()) == ("drained", 50, 0)
        assert agent.wrong(shapes()) == []
        assert tap.said(b"STARTTLS") and not tap.said(b"ETRN") and not tap.said(b"MAIL FROM"), "all of it encrypted"
    assert "Verified TLS connection established to 198.51.100.2" in isp.maillog(), "the site was verified"
    filed = agent.files("alice")[0].read_bytes()
    assert re.search(rb"^\tby mail.office.example with ESMTPS ", filed, re.MULTILINE)


def test_s42_a_provider_whose_certificate_nobody_we_trust_signed_is_not_asked(lab: Lab) -> None:
    isp = lab.provider(tls=True, account=ACCOUNT)
    isp.queue(SENT)
    stranger = Trust(lab.directory / "stranger")
    tables = {**TABLES, "provider.isp": f'retry_seconds = [0, 60]\ntls_ca_file = "{stranger.authority}"'}
    with lab.agent(tables=tables) as agent, Tap(lab.site, isp.line.device) as tap:
        isp.line.up()
        ended = agent.wait_for_round("isp")
        (failed,) = agent.events("ask.failed")
        assert failed["stage"] == "starttls" and "certificate" in failed["reason"]
        assert ended["outcome"] in ("failed", "refused") and isp.waiting() == len(SENT)
        assert not tap.said(b"AUTH") and not tap.said(b"ETRN")
    assert "AUTH" not in isp.maillog()


def test_s42_a_provider_of_another_name_is_not_asked(lab: Lab) -> None:
    isp = lab.provider(tls=True)
    isp.queue(SENT)
    other = f'host = "{isp.address}"\nretry_seconds = [0, 60]'
    with lab.agent(tables={**TABLES, "provider.isp": other}) as agent:
        isp.line.up()
        assert agent.wait_for_round("isp")["outcome"] in ("failed", "refused")
        (failed,) = agent.events("ask.failed")
        assert failed["stage"] == "starttls" and isp.address in failed["reason"]
    assert isp.waiting() == len(SENT)


def test_a_provider_that_wants_auth_gets_it_inside_tls_alone(lab: Lab) -> None:
    isp = lab.provider(tls=True, account=ACCOUNT)
    isp.queue(SENT)
    with lab.agent(tables=TABLES) as agent, Tap(lab.site, isp.line.device) as tap:
        isp.line.up()
        ended = agent.wait_for_round("isp")
        assert (ended["outcome"], ended["messages"], isp.waiting()) == ("drained", len(SENT), 0)
        assert not tap.said(b"AUTH") and not tap.said(b"ETRN")
        assert agent.wrong(SENT) == []
        assert ACCOUNT[1] not in agent.log(), "S57"


def test_every_way_to_log_in_works(lab: Lab) -> None:
    isp = lab.provider(tls=True, account=ACCOUNT)
    isp.line.up()
    for mechanism in ("plain", "login", "cram-md5"):
        one = {"provider.isp": f'auth = "{mechanism}"\nfirst_connection_seconds = 0.3'}
        done = lab.agent(tables={**TABLES, **one}, name=mechanism).command("ask")
        assert done.returncode == 0, done.stderr
        assert "office.example: started (250 " in done.stderr


def test_a_wrong_password_is_a_refusal_that_says_what_to_mend(lab: Lab) -> None:
    isp = lab.provider(tls=True, account=ACCOUNT)
    isp.queue(SENT)
    agent = lab.agent(tables=TABLES)
    (agent.directory / "isp.password").write_text("wrong\n")
    with agent:
        isp.line.up()
        ended = agent.wait_for_round("isp")
        (failed,) = agent.events("ask.failed")
        assert (ended["outcome"], failed["stage"], failed["code"]) == ("refused", "auth", 535)
        assert failed["fix"], "the operator is told what to do"
        assert isp.waiting() == len(SENT)
        # The password is read anew for each ask: mending the file is enough.
        (agent.directory / "isp.password").write_text(ACCOUNT[1])
        done = agent.command("ask")
        assert done.returncode == 0, done.stderr
        wait_for(lambda: isp.waiting() == 0, "nothing left at the provider")
        assert agent.settle(SENT) == []
