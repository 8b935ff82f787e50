"""The laboratory measures what it claims to: its provider holds and releases, its line really goes down and is cut."""

from __future__ import annotations

import smtplib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e import messages
from tests.e2e.agent import ROOT
from tests.e2e.lab import Lab, LabError, Namespace, Sink, Tap, nothing_left, smtp, wait_for
from tests.e2e.messages import ALICE, BOB, NODES, difference, expected, marked, shapes, simple, wrong_in
from tests.e2e.net import existing

pytestmark = [pytest.mark.netns, pytest.mark.postfix]


@pytest.fixture
def lab() -> Iterator[Lab]:
    with nothing_left(), Lab() as made:
        yield made


def received(content: bytes) -> bytes:
    """What a sink took, as our agent would have filed it."""
    return b"Return-Path: <a@world.example>\nDelivered-To: x\nReceived: from y\n\tby z; now\n" + content


def test_mail_is_held_while_the_line_is_down_and_etrn_by_hand_releases_it(lab: Lab) -> None:
    isp = lab.provider()
    sent = shapes()
    isp.queue(sent)
    assert isp.waiting() == isp.deferred() == 50
    with Sink(lab.site) as sink:
        isp.line.up()
        time.sleep(1)
        assert sink.connections == 0, "nothing may come unasked"
        assert [isp.etrn(node) for node in NODES] == ["250 Queuing started"] * 2
        wait_for(lambda: isp.waiting() == 0, "queue empty", seconds=30)
    assert len(sink.taken) == 50
    original = {shape.name: shape for shape in sent}
    for taken in sink.taken:
        content = expected(received(taken.content()))
        name = content.partition(b"X-Shape: ")[2].partition(b"\n")[0].decode()
        assert difference(original.pop(name).as_filed(), content) is None, name
    assert not original


def test_etrn_releases_one_node_and_leaves_the_other(lab: Lab) -> None:
    isp = lab.provider()
    isp.queue([*simple(3), *simple(2, recipients=(messages.CAROL,), first=10)])
    with Sink(lab.site) as sink:
        isp.line.up()
        isp.etrn("branch.example")
        wait_for(lambda: len(sink.taken) == 2, "two messages")
        isp.wait_for_deferred()
        assert isp.waiting() == 3


def test_etrn_for_a_stranger_is_459(lab: Lab) -> None:
    isp = lab.provider()
    isp.line.up()
    assert isp.etrn("other.example").startswith("459 ")


def test_two_providers_run_at_once(lab: Lab) -> None:
    first = lab.provider("isp", nodes=["office.example"])
    second = lab.provider("other", nodes=["branch.example"])
    first.queue(simple(2))
    second.queue(simple(3, recipients=(messages.CAROL,)))
    with Sink(lab.site) as sink:
        first.line.up()
        second.line.up()
        second.etrn("branch.example")
        wait_for(lambda: second.waiting() == 0, "the second one's queue empty")
        assert (len(sink.taken), first.waiting()) == (3, 2)


def test_a_line_cut_in_the_middle_of_a_message_delivers_nothing_and_is_seen(lab: Lab) -> None:
    isp = lab.provider(timeout_seconds=2)
    isp.queue([marked()])
    with Sink(lab.site) as sink, Tap(lab.site, isp.line.device) as tap:
        isp.line.cut_at(messages.CUT_HERE)
        isp.line.up()
        isp.etrn("office.example")
        wait_for(isp.line.dropped, "packets swallowed")
        isp.wait_for_deferred()
        assert (sink.taken, isp.waiting()) == ([], 1)
        inward = sum(packet.octets for packet in tap.packets if packet.target_port == 25)
        assert inward > 900_000, "the cut fell before the middle"


def test_a_line_cut_after_so_many_octets_swallows_the_rest_until_healed(lab: Lab) -> None:
    isp = lab.provider(timeout_seconds=2)
    isp.queue([marked()])
    with Sink(lab.site) as sink:
        isp.line.up()
        isp.line.cut_after(1_000_000)
        isp.etrn("office.example")
        wait_for(isp.line.dropped, "packets swallowed")
        isp.wait_for_deferred()
        assert (sink.taken, isp.waiting()) == ([], 1)
        isp.line.heal()
        isp.etrn("office.example")
        wait_for(lambda: isp.waiting() == 0, "queue empty")
        assert len(sink.taken) == 1


def test_a_250_that_cannot_be_heard_makes_the_provider_send_again(lab: Lab) -> None:
    isp = lab.provider(timeout_seconds=2)
    isp.queue([marked()])
    with Sink(lab.site) as sink:
        isp.line.deafen_at(messages.DEAF_FROM_HERE)
        isp.line.up()
        isp.etrn("office.example")
        wait_for(lambda: len(sink.taken) == 1, "taken, and answered to nobody")
        isp.wait_for_deferred()
        assert isp.waiting() == 1
        isp.line.heal()
        isp.etrn("office.example")
        wait_for(lambda: isp.waiting() == 0, "queue empty")
        assert len(sink.taken) == 2
        assert sink.taken[0].wire.partition(b"X-Shape")[2] == sink.taken[1].wire.partition(b"X-Shape")[2]


def test_a_line_that_is_down_carries_nothing_and_one_that_came_up_does(lab: Lab) -> None:
    line = lab.line()
    with Sink(line.provider):
        with pytest.raises(OSError):
            lab.site.connect(line.provider_address, 25, seconds=1)
        line.up()
        lab.site.connect(line.provider_address, 25, seconds=5).close()
        line.unplug()
        with pytest.raises(OSError):
            lab.site.connect(line.provider_address, 25, seconds=1)


def test_a_rate_is_kept(lab: Lab) -> None:
    line = lab.line()
    line.up()
    line.rate(800_000)
    with Sink(lab.site) as sink:
        begun = time.monotonic()
        with smtp(line.provider, line.site_address, 25, "world.example") as world:
            world.sendmail("a@world.example", [ALICE], simple(1, octets=200_000)[0].on_the_wire())
        seconds = time.monotonic() - begun
        assert len(sink.taken) == 1
    assert 1.8 < seconds < 4, "200 kB at 100 kB/s take two seconds"


def test_the_tap_sees_what_was_said_and_when(lab: Lab) -> None:
    isp = lab.provider()
    with Tap(lab.site, isp.line.device) as tap:
        isp.line.up()
        before = time.time()
        isp.etrn("office.example")
        wait_for(lambda: tap.said(b"ETRN office.example"), "ETRN on the wire", seconds=2)
        (packet,) = tap.said(b"ETRN office.example")
        assert before < packet.at < time.time()
        assert (packet.target, packet.target_port) == (isp.address, 25)


def test_over_tls_the_provider_verifies_the_site_and_a_site_without_certificate_gets_nothing(lab: Lab) -> None:
    isp = lab.provider(require_tls=True, timeout_seconds=5)
    isp.queue(simple(1))
    isp.line.up()
    assert isp.etrn("office.example").startswith("530 5.7.0 Must issue a STARTTLS"), "no ETRN in clear"
    with smtp(lab.site, isp.address, 25, "site.example") as site, Sink(lab.site) as sink:
        site.starttls(context=lab.trust.client_context(isp.host))
        site.ehlo()
        assert site.docmd("ETRN", "office.example")[0] == 250
        wait_for(lambda: sink.connections > 0, "the provider connects")
        isp.wait_for_deferred()
        assert (sink.taken, isp.waiting()) == ([], 1)
    assert "TLS is required, but was not offered" in isp.maillog()


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5"])
def test_with_an_account_etrn_needs_auth(lab: Lab, mechanism: str) -> None:
    isp = lab.provider(tls=True, account=("office", "s3cret"))
    isp.line.up()
    assert isp.etrn("office.example").startswith("554 5.7.1")
    with smtp(lab.site, isp.address, 25, "site.example") as site:
        assert "AUTH" not in site.esmtp_features["etrn"] and "auth" not in site.esmtp_features
        site.starttls(context=lab.trust.client_context(isp.host))
        site.ehlo()
        site.user, site.password = "office", "s3cret"
        method = getattr(site, f"auth_{mechanism.lower().replace('-', '_')}")
        assert site.auth(mechanism, method)[0] == 235
        assert site.docmd("ETRN", "office.example")[0] == 250
    with smtp(lab.site, isp.address, 25, "site.example") as site:
        site.starttls(context=lab.trust.client_context(isp.host))
        site.ehlo()
        with pytest.raises(smtplib.SMTPAuthenticationError):
            site.login("office", "wrong")


def test_a_provider_that_stopped_keeps_its_queue_and_goes_on(lab: Lab) -> None:
    isp = lab.provider()
    isp.queue(simple(2))
    isp.stop()
    assert not isp.running() and not isp.namespace.processes()
    isp.start()
    assert isp.waiting() == 2


def test_what_a_killed_run_left_is_swept_by_the_next() -> None:
    killed = "import os; from tests.e2e.lab import Lab; lab = Lab(); lab.provider(); print(os.getpid()); os._exit(9)"
    done = subprocess.run([sys.executable, "-c", killed], cwd=ROOT, capture_output=True, text=True)
    name = f"sa{int(done.stdout)}-far0"
    assert name in existing() and Namespace.processes_in(name)
    Lab().close()
    assert name not in existing() and not Namespace.processes_in(name)


def test_the_agent_is_run_killed_watched_and_stopped_as_an_operator_would(lab: Lab) -> None:
    isp = lab.provider()
    sent = [*simple(4), *simple(2, recipients=(BOB, messages.CAROL), first=10)]
    isp.queue(sent)
    with lab.agent() as agent:
        agent.kill()
        assert not agent.running()
        agent.start()
        agent.wait_for(lambda: agent.status().get("pid") == agent.pid, "its own status.json")
        isp.line.up()
        ended = agent.wait_for_round("isp")
        assert (ended["outcome"], ended["messages"], isp.waiting()) == ("drained", 6, 0)
        assert agent.wrong(sent) == [] and agent.leftovers() == []
        assert len(agent.wrong(simple(5))) == 5, "one is missing, and four are of others"
        assert agent.terminate() == 0


def test_the_comparison_sees_a_missing_a_double_and_a_changed_message(tmp_path: Path) -> None:
    sent = simple(3, recipients=(ALICE, BOB))
    maildirs = {"alice": tmp_path / "alice", "bob": tmp_path / "bob"}
    addresses = {"alice": (ALICE,), "bob": (BOB,)}
    for name, maildir in maildirs.items():
        (maildir / "new").mkdir(parents=True)
        for shape in sent:
            top = f"Return-Path: <{shape.sender}>\nDelivered-To: {addresses[name][0]}\nReceived: a\nReceived: b\n"
            (maildir / "new" / shape.name).write_bytes(top.encode() + shape.as_filed())
    assert wrong_in(maildirs, sent, addresses=addresses) == []
    new = maildirs["alice"] / "new"
    whole = (new / sent[0].name).read_bytes()
    (new / "again").write_bytes(whole)
    (new / sent[1].name).unlink()
    (new / sent[2].name).write_bytes((new / sent[2].name).read_bytes()[:-1])
    problems = wrong_in(maildirs, sent, addresses=addresses)
    assert [word for word in ("twice", "missing", "changed") if not any(word in p for p in problems)] == []
    assert len(problems) == 3


def test_waiting_for_what_does_not_come_ends() -> None:
    with pytest.raises(LabError, match=r"pigs fly: not within 0\.1 s"):
        wait_for(lambda: False, "pigs fly", seconds=0.1)
