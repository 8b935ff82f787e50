"""`silence`: what is told of a provider that agrees and does not come, and when."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from siteagent.config.sections import Provider
from siteagent.events import (
    AskAnswered,
    Event,
    NodeOutcome,
    Outcome,
    RoundEnded,
    RoundStarted,
    SessionOpened,
    WarningRaised,
)
from siteagent.silence import NOTHING_WAITED, Around, Explainer, Facts, explanation
from siteagent.status import Warnings

NOW = datetime(2026, 11, 22, 8, tzinfo=UTC)
ISP = Provider(host="mx.isp.example", nodes=("office.example",), name="isp", reached_as="office.dyn.example")


def facts(**others: Any) -> Facts:
    values: dict[str, Any] = {
        "provider": ISP, "in_a_row": 3, "last_came": NOW - timedelta(hours=1), "now": NOW, "source": "198.51.100.7",
        "reached": ("198.51.100.7",), "port": 25, "answers_ourselves": True,
    }  # fmt: skip
    return Facts(**{**values, **others})


def likely(**others: Any) -> str:
    cause = explanation(facts(**others))
    return "" if cause is None else cause.likely


def test_a_provider_that_came_lately_and_a_site_without_fault_is_no_news() -> None:
    assert explanation(facts()) is None


def test_nothing_was_waiting_stands_first() -> None:
    text = likely(last_came=None)
    assert text.index(NOTHING_WAITED) < text.index("it does not know where we are")


@pytest.mark.parametrize(
    ("fact", "said"),
    [
        ({"source": "100.64.1.2", "reached": None}, "shared by the carrier"),
        ({"source": "192.168.1.2", "reached": None}, "192.168.1.2 is private"),
        ({"reached": ("198.51.100.99",)}, "leads to 198.51.100.99, and we are 198.51.100.7"),
        ({"reached": ()}, "office.dyn.example has no address"),
        ({"answers_ourselves": False}, "our port 25 takes no connection at 198.51.100.7"),
        ({"blocked": "5.7.1 Client host rejected"}, "5.7.1 Client host rejected"),
        ({"last_came": NOW - timedelta(days=9)}, NOTHING_WAITED),
    ],
)
def test_what_was_found_is_told(fact: dict[str, Any], said: str) -> None:
    assert said in likely(**fact)


def test_behind_a_nat_the_name_leads_to_the_nat_and_that_is_no_fault() -> None:
    assert "leads to" not in likely(source="192.168.1.2", reached=("203.0.113.1",))


def test_a_provider_that_counted_mail_did_not_hold_nothing() -> None:
    text = likely(counted=True)
    assert text and NOTHING_WAITED not in text


def test_the_form_of_the_name_is_asked_about_where_it_never_came() -> None:
    assert "#name" in (explanation(facts(last_came=None)) or facts()).ask  # type: ignore[union-attr]
    hashed = Provider(host="h", nodes=("#office",), name="isp")
    assert "#name" not in explanation(facts(last_came=None, provider=hashed)).ask  # type: ignore[union-attr]


# --- when -----------------------------------------------------------------------------------------------------------


class Bench:
    def __init__(self, **around: Any) -> None:
        self.warnings = Warnings()
        self.events: list[Event] = []
        self.looks = 0
        self._work: list[Coroutine[Any, Any, None]] = []

        async def resolve(host: str) -> tuple[str, ...]:
            return ("198.51.100.7",)

        values: dict[str, Any] = {
            "provider": lambda name: ISP, "source": lambda name: "198.51.100.7", "resolve": resolve,
            "port": lambda: None, "wall": lambda: NOW, "raise_": self.warnings.raise_, "clear": self.warnings.clear,
            "emit": self.events.append, "at": lambda peer: (),
        }  # fmt: skip
        self.explainer = Explainer(Around(**{**values, **around}), self.run)

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        self.looks += 1
        asyncio.run(work)

    def round(self, outcome: Outcome, *codes: int, came: bool = False, promised: int | None = None) -> None:
        started = RoundStarted(round="r", provider="isp", cause="link", method="etrn", nodes=("n",), interface="ppp0")
        self.explainer.observe(started)
        for code in codes or (250,):
            outcome_of_node = NodeOutcome.STARTED if code < 400 else NodeOutcome.REFUSED
            answered = AskAnswered(
                round="r", provider="isp", node="n", outcome=outcome_of_node, code=code, text="listed",
                promised=promised, seconds=0.1,
            )  # fmt: skip
            self.explainer.observe(answered)
        if came:
            self.explainer.observe(SessionOpened(session="s", provider="isp", round="r", peer="p"))
        self.explainer.observe(
            RoundEnded(
                round="r",
                provider="isp",
                outcome=outcome,
                sessions=0,
                messages=0,
                files=0,
                duplicates=0,
                refused=0,
                bytes=0,
                wire_bytes=0,
                seconds=1.0,
                link_interface="ppp0",
            )
        )

    @property
    def raised(self) -> list[str]:
        return [event.text for event in self.events if isinstance(event, WarningRaised)]


def test_the_first_silent_round_ever_is_looked_into() -> None:
    bench = Bench()
    bench.round(Outcome.SILENT)
    assert bench.looks == 1 and len(bench.raised) == 1


def test_after_that_the_third_in_a_row_is() -> None:
    bench = Bench()
    bench.round(Outcome.DRAINED, came=True)
    for looks in (0, 0, 1, 1, 1):
        bench.round(Outcome.SILENT)
        assert bench.looks == looks
    assert bench.raised == [], "it came an hour ago, and nothing is wrong here"


def test_a_round_that_brought_something_begins_the_count_anew() -> None:
    bench = Bench()
    bench.round(Outcome.DRAINED, came=True)
    for _ in range(2):
        bench.round(Outcome.SILENT)
    bench.round(Outcome.DRAINED, came=True)
    for _ in range(2):
        bench.round(Outcome.SILENT)
    assert bench.looks == 0


def test_mail_that_came_clears_the_warning() -> None:
    bench = Bench()
    bench.round(Outcome.SILENT)
    bench.round(Outcome.DRAINED, came=True)
    assert [event.name for event in bench.events] == ["warning.raised", "warning.cleared"]


def test_silence_after_a_count_is_looked_into_at_once() -> None:
    bench = Bench()
    bench.round(Outcome.DRAINED, came=True)
    bench.round(Outcome.SILENT, 253)
    assert bench.looks == 1 and "counted mail for us" in bench.raised[0]


def test_what_an_earlier_run_saw_counts() -> None:
    bench = Bench()
    bench.explainer.restore({"isp": NOW - timedelta(days=1)}, frozenset({"isp"}))
    bench.round(Outcome.SILENT)
    assert bench.looks == 0


def test_a_port_that_is_closed_to_ourselves_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    bench = Bench(source=lambda name: "127.0.0.1", port=lambda: port)
    bench.round(Outcome.SILENT)
    assert f"our port {port} takes no connection" in bench.raised[0]


def test_a_port_that_is_open_is_no_cause() -> None:
    with socket.create_server(("127.0.0.1", 0)) as opened:
        port = opened.getsockname()[1]
        bench = Bench(source=lambda name: "127.0.0.1", port=lambda: port)
        bench.round(Outcome.SILENT)
    assert "takes no connection" not in bench.raised[0]


def test_a_count_for_one_node_is_not_forgotten_over_the_answer_for_the_next() -> None:
    bench = Bench()
    bench.round(Outcome.DRAINED, came=True)
    bench.round(Outcome.SILENT, 253, 250)
    assert bench.looks == 1 and "counted mail for us" in bench.raised[0]


def test_the_count_of_an_earlier_round_says_nothing_about_this_one() -> None:
    bench = Bench()
    bench.round(Outcome.DRAINED, 253, came=True)
    bench.round(Outcome.SILENT, 250)
    assert bench.looks == 0


def test_a_count_of_none_is_no_count() -> None:
    bench = Bench()
    bench.round(Outcome.DRAINED, came=True)
    bench.round(Outcome.SILENT, 253, promised=0)
    assert bench.looks == 0


def test_554_for_one_node_of_several_is_found() -> None:
    bench = Bench()
    bench.round(Outcome.SILENT, 554, 250)
    assert 'it refuses our address ("listed")' in bench.raised[0]


def test_a_session_of_another_provider_at_the_same_address_ends_the_silence() -> None:
    """Which of two providers of one address it was cannot be told; nobody need be alarmed about the other."""
    bench = Bench(at=lambda peer: ("isp", "twin"))
    bench.round(Outcome.SILENT)
    bench.explainer.observe(SessionOpened(session="s", provider="twin", round="q", peer="192.0.2.1"))
    assert [event.name for event in bench.events] == ["warning.raised", "warning.cleared"]


def test_trying_our_own_port_is_no_visit_of_the_provider() -> None:
    """`peers` may hold a network that we are in ourselves."""

    async def scene() -> list[Event]:
        bench = Bench(source=lambda name: "127.0.0.1", port=lambda: port, at=lambda peer: ("isp",))

        async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            bench.explainer.observe(SessionOpened(session="s", provider="isp", round=None, peer="127.0.0.1"))
            writer.write(b"220 us\r\n")
            await reader.read()
            writer.close()

        server = await asyncio.start_server(greet, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        looks: list[Coroutine[Any, Any, None]] = []
        bench.explainer.background = looks.append
        bench.round(Outcome.SILENT)
        await looks.pop()
        server.close()
        return bench.events

    assert [event.name for event in asyncio.run(scene())] == ["warning.raised"]


def test_a_port_that_closes_behind_the_round_is_not_knocked_at() -> None:
    """``open = "asked"``: while the name is looked up, the listener goes."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        ports: list[int | None] = [closed.getsockname()[1]]

    async def resolve(host: str) -> tuple[str, ...]:
        ports[0] = None
        return ("127.0.0.1",)

    named = Provider(host="h", nodes=("n",), name="isp", reached_as="office.dyn.example")
    bench = Bench(source=lambda name: "127.0.0.1", port=lambda: ports[0], resolve=resolve, provider=lambda name: named)
    bench.round(Outcome.SILENT)
    assert len(bench.raised) == 1 and "takes no connection" not in bench.raised[0]
