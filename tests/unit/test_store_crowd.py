"""`store.crowd`: the same tables as event by event, in fewer statements."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st
from siteagent.events import (
    Event,
    MessageAccepted,
    MessageDuplicate,
    MessageStored,
    Outcome,
    RoundEnded,
    RoundStarted,
    SessionOpened,
)
from siteagent.store import ledger
from siteagent.store.crowd import Crowd

AT = datetime(2026, 11, 22, 8, tzinfo=UTC)
rounds = st.sampled_from(["r1", "r2"])
some_round = st.none() | rounds
messages = st.sampled_from([f"m{n}" for n in range(6)])
senders = st.sampled_from(["", "a@x.example", "\udcff@x.example"])
events: st.SearchStrategy[Event] = st.one_of(
    st.builds(
        RoundStarted,
        round=rounds,
        provider=st.just("isp"),
        cause=st.just("link-up"),
        method=st.just("etrn"),
        interface=st.just("ppp0"),
        nodes=st.just(("x.example",)),
    ),
    st.builds(
        SessionOpened, session=st.just("s"), provider=st.just("isp"), round=some_round, peer=st.just("192.0.2.1")
    ),
    st.builds(
        MessageAccepted,
        message=messages,
        session=st.just("s"),
        provider=st.just("isp"),
        round=some_round,
        sender=senders,
        recipients=st.just(("b@x.example",)),
        bytes=st.integers(0, 9),
        wire_bytes=st.integers(0, 9),
        seconds=st.just(0.1),
    ),
    st.builds(
        MessageDuplicate,
        message=messages,
        session=st.just("s"),
        provider=st.just("isp"),
        round=some_round,
        sender=senders,
        recipients=st.just(("b@x.example",)),
        first=st.just("m0"),
    ),
    st.builds(
        MessageStored,
        message=messages,
        mailbox=st.just("box"),
        file=st.just("/x/new/1"),
        bytes=st.integers(0, 9),
        round=some_round,
        provider=st.just("isp"),
    ),
    st.builds(
        RoundEnded,
        round=rounds,
        provider=st.just("isp"),
        outcome=st.just(Outcome.DRAINED),
        reason=st.just(""),
        sessions=st.just(1),
        messages=st.just(1),
        files=st.just(1),
        duplicates=st.just(0),
        refused=st.just(0),
        bytes=st.just(1),
        wire_bytes=st.just(1),
        ask_bytes=st.just(0),
        link_interface=st.just("ppp0"),
        seconds=st.just(1.0),
    ),
)


def fresh() -> sqlite3.Connection:
    db = sqlite3.connect(":memory:", isolation_level=None)
    for step in ledger.STEPS:
        db.executescript(step)
    return db


def at(number: int) -> datetime:
    return AT + timedelta(seconds=number)


def together(db: sqlite3.Connection, happened: Sequence[Event]) -> None:
    crowd = Crowd(db)
    for number, event in enumerate(happened):
        if not crowd.take(at(number), event):
            crowd.flush()
            ledger.write(db, at(number), event)
    crowd.flush()


@given(st.lists(events, max_size=30))
def test_the_tables_are_those_of_event_by_event(happened: list[Event]) -> None:
    alone, crowd = fresh(), fresh()
    for number, event in enumerate(happened):
        ledger.write(alone, at(number), event)
    together(crowd, happened)
    assert list(crowd.iterdump()) == list(alone.iterdump())


def test_a_hundred_messages_cost_a_dozen_statements() -> None:
    db, statements = fresh(), list[str]()
    happened: list[Event] = []
    for number in range(100):
        accepted = MessageAccepted(
            message=f"m{number}",
            session="s",
            provider="isp",
            round="r1",
            sender="a@x.example",
            recipients=("b@x.example",),
            bytes=1,
            wire_bytes=1,
            seconds=0.1,
        )
        stored = MessageStored(
            message=f"m{number}", mailbox="box", file="/x/new/1", bytes=1, round="r1", provider="isp"
        )
        happened += [accepted, stored]
    db.set_trace_callback(statements.append)
    together(db, happened)
    assert len(statements) <= 12
    assert db.execute("SELECT messages, bytes FROM totals").fetchone() == (100, 100)
