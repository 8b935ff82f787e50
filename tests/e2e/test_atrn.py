"""Site and hub over ATRN: the site fetches over its own connection, and nobody can connect to it."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.far import FarLine
from tests.e2e.hub import ACCOUNT, ODMR_PORT, ODMR_TLS_PORT, PASSWORD, Hub
from tests.e2e.lab import Agent, Lab, nothing_left, wait_for
from tests.e2e.messages import ALICE, BOB, CAROL, Shape, marked, shapes, simple

pytestmark = [pytest.mark.netns]

_PLAIN_TLS = 'method = "atrn"\nport = {port}\ntls = "{tls}"\nfirst_connection_seconds = 20\nquiet_seconds = 2'


@pytest.fixture
def lab() -> Iterator[Lab]:
    with nothing_left(), Lab() as made:
        yield made


def site_of(lab: Lab, hub: Hub, *, tls: str = "required", retry: str = "") -> Agent:
    port = ODMR_TLS_PORT if tls == "implicit" else ODMR_PORT
    table = _PLAIN_TLS.format(port=port, tls=tls) + retry
    return lab.agent(providers=[hub], tables={f"provider.{hub.name}": table, "listener": "listen = []"})  # type: ignore[list-item]


@pytest.mark.parametrize("tls", ["required", "implicit"])
def test_fifty_messages_of_every_shape_come_over_the_connection_that_the_site_made(lab: Lab, tls: str) -> None:
    sent = shapes()
    with Hub(lab.line(), lab.directory / "hub", lab.trust) as hub:
        hub.submit(sent)
        with site_of(lab, hub, tls=tls) as agent:
            hub.line.up()
            ended = agent.wait_for_round("hub")
            assert not agent.settle(sent)
        assert (ended["outcome"], ended["sessions"]) == ("drained", 1)
        hub.wait_for_held(0)


def test_with_nothing_waiting_the_round_ends_with_nothing(lab: Lab) -> None:
    with Hub(lab.line(), lab.directory / "hub", lab.trust) as hub, site_of(lab, hub) as agent:
        hub.line.up()
        assert agent.wait_for_round("hub")["outcome"] == "nothing"


def in_a_round(agent: Agent) -> bool:
    return len(agent.events("round.started")) > len(agent.events("round.ended"))


def cut_five_times(hub: Hub, agent: Agent, *, octets: int) -> None:
    """Five times the line dies silently, each time `octets` further on, and comes back later."""
    for cut in range(5):
        hub.line.cut_after(60_000 + octets * cut)
        hub.line.up()
        # The connection of before may run into the cut too, while the hub believes in it and says 450 to the new one.
        agent.wait_for(lambda: hub.line.is_cut() and in_a_round(agent), "the cut", seconds=60)
        hub.line.down()
        agent.wait_for(lambda n=cut: len(agent.events("round.ended", outcome="link-lost")) > n, "it was seen")
        hub.line.heal()
    hub.line.up()


def test_a_line_that_is_cut_five_times_in_a_big_message_loses_and_doubles_nothing(lab: Lab) -> None:
    before, after = simple(20), simple(20, first=500, recipients=(BOB, CAROL))
    big = marked(octets=1_000_000)
    sent: list[Shape] = [*before, big, *after]
    with Hub(lab.line(), lab.directory / "hub", lab.trust) as hub:
        hub.submit(sent)
        retry = "\nretry_seconds = [1]"  # five times as often as the hub gives up a silent connection
        with site_of(lab, hub, retry=retry) as agent:
            cut_five_times(hub, agent, octets=150_000)
            assert not agent.settle(sent, seconds=90)
        hub.wait_for_held(0)


def five_hundred() -> list[Shape]:
    """From 2 kB to 5 MB, 70 MB in all; one in ten for two mailboxes of two nodes."""
    sent = [*simple(400), *simple(50, octets=20_000, first=1_000, recipients=(ALICE, CAROL))]
    for first, count, octets in ((2_000, 30, 300_000), (3_000, 15, 1_000_000), (4_000, 5, 5_000_000)):
        sent += simple(count, octets=octets, first=first, recipients=(BOB,))
    return sent[::2] + sent[1::2][::-1]  # big ones at both ends and between


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("tls", ["required", "implicit"])
def test_five_hundred_messages_up_to_5_mb_survive_five_cuts(lab: Lab, tls: str) -> None:
    sent = five_hundred()
    with Hub(lab.line(), lab.directory / "hub", lab.trust) as hub:
        assert hub.submit(sent) == 500
        with site_of(lab, hub, tls=tls, retry="\nretry_seconds = [0, 1]") as agent:
            assert not _connects(hub), "the hub cannot reach the site"
            cut_five_times(hub, agent, octets=2_500_000)
            assert not agent.settle(sent, seconds=180)
            print(f"{tls}: {len(agent.rounds())} rounds, {len(agent.events('message.duplicate'))} duplicates refused")
        hub.wait_for_held(0)


def _connects(hub: Hub) -> bool:
    try:
        hub.namespace.connect(hub.line.site_address, 25, seconds=0.5).close()
    except OSError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.tools("fetchmail")
@pytest.mark.timeout(600)
def test_five_hundred_messages_up_to_5_mb_survive_five_cuts_in_clear_by_fetchmail(lab: Lab) -> None:
    """On a line without TLS siteagent logs in nowhere; fetchmail does, by CRAM-MD5, and hands the connection to us."""
    sent = five_hundred()
    lab.site.knows(f"mail.office.example {socket.gethostname()}", "127.0.0.1")
    with Hub(lab.line(), lab.directory / "hub", None) as hub:
        hub.submit(sent)
        control = lab.directory / "fetchmailrc"
        control.touch(mode=0o600)
        control.write_text(
            f"set no bouncemail\npoll {hub.address} protocol ODMR port {ODMR_PORT} timeout 3\n  user {ACCOUNT} "
            f"password {PASSWORD}\n  fetchdomains office.example,branch.example smtphost 127.0.0.1\n"
        )
        never = 'peers = ["127.0.0.1"]\ninterfaces = ["none"]'
        tables = {"provider.hub": never, "listener": 'listen = ["127.0.0.1:25"]'}
        with lab.agent(providers=[hub], tables=tables) as agent:  # type: ignore[list-item]
            for cut in range(5):
                hub.line.cut_after(60_000 + 2_500_000 * cut)
                hub.line.up()
                with _fetching(lab, control):
                    wait_for(hub.line.is_cut, "the cut", seconds=60)
                    hub.line.down()
                hub.line.heal()
                time.sleep(5)  # so long the hub believes the connection before
            hub.line.up()
            with _fetching(lab, control):
                assert not agent.settle(sent, seconds=180)
        hub.wait_for_held(0)


@contextlib.contextmanager
def _fetching(lab: Lab, control: Path) -> Iterator[None]:
    """fetchmail at work; killed at the end, since it has no clock of its own once the connection is turned."""
    argv = ["fetchmail", "-v", "--nodetach", "--fetchmailrc", control, "--pidfile", control.with_suffix(".pid")]
    environment = {"HOME": str(control.parent), "PATH": "/usr/bin:/bin", "USER": "x"}
    with control.with_suffix(".log").open("ab") as output:
        process = lab.site.start(*argv, output=output, env=environment)
        try:
            yield
        finally:
            process.kill()
            process.wait()


def test_a_hub_that_is_killed_in_the_middle_sends_the_rest_after_its_restart(lab: Lab) -> None:
    sent = [*simple(300, octets=20_000)]
    hub = Hub(lab.line(), lab.directory / "hub", lab.trust)
    with hub:
        hub.submit(sent)
        hub.line.rate(8_000_000)
        with site_of(lab, hub, retry="\nretry_seconds = [0, 1]") as agent:
            hub.line.up()
            agent.wait_for(lambda: len(agent.events("message.accepted")) > 30, "some mail", seconds=30)
            hub.kill()
            assert agent.wait_for_round("hub")["outcome"] == "incomplete"
            hub.start()
            agent.command("ask", seconds=60)
            assert not agent.settle(sent, seconds=60)
        hub.wait_for_held(0)


def test_five_small_messages_from_far_away_cost_ten_round_trips_and_18_kb_at_most(lab: Lab, is_long: bool) -> None:
    """Everything counts: TCP's handshake and TLS's, every header of IP, from the first packet to the last FIN."""
    sent = simple(5, octets=1_830)
    assert all(len(message.on_the_wire()) > 2_000 for message in sent)
    with (
        FarLine(lab.site, lab.namespace("far"), delay_seconds=0.3 if is_long else 0.1) as line,
        Hub(line, lab.directory / "hub", lab.trust) as hub,
    ):
        hub.submit(sent)
        with site_of(lab, hub, tls="implicit") as agent:
            agent.wait_for_first_look()
            line.up()
            ended = agent.wait_for_round("hub")
            assert (ended["outcome"], ended["messages"]) == ("drained", 5)
            assert not agent.settle(sent)
        trips = line.seconds / (2 * line.delay_seconds)
        print(f"{line.octets} octets in {line.packets} packets, {trips:.2f} round trips of {2 * line.delay_seconds} s")
        assert line.octets <= 18_000
        assert trips <= (10 if is_long else 11.5)  # a busy machine adds its own to short ones
