"""Site and hub over ATRN: the site fetches over its own connection, and nobody can connect to it."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from tests.e2e.far import FarLine
from tests.e2e.hub import ODMR_PORT, ODMR_TLS_PORT, Hub
from tests.e2e.lab import Agent, Lab, nothing_left
from tests.e2e.messages import BOB, CAROL, Shape, marked, shapes, simple

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


def test_a_line_that_is_cut_five_times_in_a_big_message_loses_and_doubles_nothing(lab: Lab) -> None:
    before, after = simple(20), simple(20, first=500, recipients=(BOB, CAROL))
    big = marked(octets=1_000_000)
    sent: list[Shape] = [*before, big, *after]
    with Hub(lab.line(), lab.directory / "hub", lab.trust) as hub:
        hub.submit(sent)
        retry = "\nretry_seconds = [0, 1]"
        with site_of(lab, hub, retry=retry) as agent:
            for cut in range(5):
                rounds = len(agent.rounds())
                hub.line.cut_after(60_000 + 150_000 * cut)
                hub.line.up()
                time.sleep(2.5)
                hub.line.down()
                agent.wait_for_round("hub", beyond=rounds, seconds=60)
                hub.line.heal()
            hub.line.up()
            assert not agent.settle(sent, seconds=90)
        hub.wait_for_held(0)


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
