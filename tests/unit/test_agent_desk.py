"""`agent.desk`: whose a round and a session are. Reloading is proved in the twin of `agent.reload`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from siteagent.agent.desk import Desk, Once
from siteagent.config.sections import Configuration, Provider
from siteagent.events import Line
from siteagent.inbound.reception import Owner

ISP = Provider(name="isp", host="mx.isp.example", nodes=("office.example", "branch.example"))
OTHER = Provider(name="other", host="mx.other.example", nodes=("depot.example",))


def test_without_names_a_round_on_demand_is_about_everything() -> None:
    assert [Once("r").share(provider) for provider in (ISP, OTHER)] == [ISP, OTHER]


def test_a_named_provider_leaves_the_others_out() -> None:
    once = Once("r", providers=("other",))
    assert [once.share(provider) for provider in (ISP, OTHER)] == [None, OTHER]


def test_a_named_node_leaves_other_nodes_and_whoever_has_none_of_it_out() -> None:
    once = Once("r", nodes=("branch.example",))
    share = once.share(ISP)
    assert share is not None and (share.nodes, share.name, share.host) == (("branch.example",), "isp", ISP.host)
    assert once.share(OTHER) is None


# --- whose a session is -----------------------------------------------------------------------------------------------


@dataclass
class FakeRunner:
    """As much of a runner as attribution looks at."""

    name: str
    expecting: bool = False
    asked_at: float | None = None
    round: str | None = None
    session_came: bool = False
    line: Line | None = None


class FakePeering:
    def __init__(self, *names: str) -> None:
        self.names = names
        self.hosts: dict[str, str] = {}
        self.told: list[tuple[str, ...]] = []

    def candidates(self, peer: str) -> tuple[str, ...]:
        return self.names

    def asked_at(self, peer: str, names: Sequence[str]) -> tuple[str, ...]:
        return tuple(name for name in names if self.hosts.get(name) == peer)

    def reconfigure(self, providers: Sequence[Provider]) -> None:
        self.told.append(tuple(provider.name for provider in providers))


def desk(peering: FakePeering, *runners: FakeRunner) -> Desk:
    unused: Any = None
    made = Desk(
        Configuration(provider=(ISP, OTHER), mailbox=()),
        teller=unused,
        filer=unused,
        resolver=unused,
        peering=cast(Any, peering),
        receives=True,
        background=unused,
        transcript=None,
    )
    made.runners = cast(Any, {runner.name: runner for runner in runners})
    return made


def waiting(name: str, asked_at: float) -> FakeRunner:
    return FakeRunner(name, expecting=True, asked_at=asked_at, round=f"round-of-{name}")


def test_a_session_belongs_to_the_round_of_the_only_candidate() -> None:
    owner = desk(FakePeering("isp"), waiting("isp", 1.0), waiting("other", 2.0)).owner("192.0.2.1")
    assert owner == Owner(provider="isp", round="round-of-isp")


def test_without_a_round_it_is_still_the_only_candidates() -> None:
    assert desk(FakePeering("isp"), FakeRunner("isp")).owner("192.0.2.1") == Owner(provider="isp", round=None)


def test_at_a_tie_it_belongs_to_the_round_that_waits() -> None:
    owner = desk(FakePeering("isp", "other"), FakeRunner("isp"), waiting("other", 1.0)).owner("192.0.2.1")
    assert owner == Owner(provider="other", round="round-of-other")


def test_at_a_tie_of_two_that_wait_it_belongs_to_the_latest_ask() -> None:
    owner = desk(FakePeering("isp", "other"), waiting("isp", 5.0), waiting("other", 1.0)).owner("192.0.2.1")
    assert owner == Owner(provider="isp", round="round-of-isp")


def test_at_a_tie_of_none_that_waits_it_is_nobodys() -> None:
    owner = desk(FakePeering("isp", "other"), FakeRunner("isp"), FakeRunner("other")).owner("192.0.2.1")
    assert owner == Owner(provider=None, round=None)


def test_in_a_round_on_demand_a_provider_that_is_not_asked_keeps_its_name() -> None:
    assert desk(FakePeering("other"), waiting("isp", 1.0)).owner("192.0.2.1") == Owner(provider="other", round=None)


def test_who_comes_from_an_address_of_ours_is_nobody_though_peers_has_its_network() -> None:
    ours = Line("wg0", "10.0.0.2")
    runner = FakeRunner("isp", expecting=True, asked_at=1.0, round="r", line=ours)
    assert desk(FakePeering("isp"), runner).owner("10.0.0.2") == Owner(provider=None, round=None)
    assert desk(FakePeering("isp"), runner).owner("10.0.0.1") == Owner(provider="isp", round="r")


def test_a_provider_on_this_very_machine_is_itself() -> None:
    peering = FakePeering("isp")
    peering.hosts = {"isp": "127.0.0.1"}
    runner = FakeRunner("isp", expecting=True, asked_at=1.0, round="r", line=Line("lo", "127.0.0.1"))
    assert desk(peering, runner).owner("127.0.0.1") == Owner(provider="isp", round="r")
