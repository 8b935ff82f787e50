"""What is owed, written and read back."""

import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from siteagent.store import owed, tables
from siteagent.store.body import Body
from tests.letters import envelope

AT = datetime(2026, 11, 22, 8, 0, 0, 123456, tzinfo=UTC)


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    opened = tables.connect(tmp_path)
    yield opened
    opened.close()


def insert(connection: sqlite3.Connection, identity: int = 1, **changes: object) -> list[owed.Filing]:
    body = Body(3, 1, b"d" * 32, b"a\n\n")
    letter = envelope("alice@x", "sales@x", "bob@x", smtputf8=True, **changes)
    addresses = {"alice": ["alice@x", "sales@x"], "bob": ["bob@x"]}
    return owed.insert(connection, identity, envelope=letter, body=body, accepted=AT, addresses=addresses)


def test_a_restart_reads_what_was_handed_out_but_for_the_content(connection: sqlite3.Connection) -> None:
    import dataclasses

    fresh = insert(connection)
    expected = [dataclasses.replace(filing, data=None, recovered=True) for filing in fresh]
    assert owed.owed_from_before(connection) == expected


def test_the_last_delivery_takes_its_message_with_it(connection: sqlite3.Connection) -> None:
    insert(connection)
    owed.settle(connection, [(1, "alice")])
    assert connection.execute("SELECT count(*) FROM message").fetchone() == (1,)
    owed.settle(connection, [(1, "bob")])
    assert connection.execute("SELECT count(*) FROM message").fetchone() == (0,)


def test_settling_tells_which_file_nobody_needs_any_more(connection: sqlite3.Connection) -> None:
    body = Body(3, 1, b"d" * 32, None, Path("/somewhere/bodies/x"))
    for identity, target in ((1, "alice"), (2, "bob")):
        owed.insert(connection, identity, envelope=envelope(), body=body, accepted=AT, addresses={target: ["a@x"]})
    assert owed.settle(connection, [(1, "alice"), (2, "not-bob")]) == [Path("/somewhere/bodies/x")]


def test_settling_twice_is_as_good_as_once(connection: sqlite3.Connection) -> None:
    insert(connection)
    for _ in range(2):
        owed.settle(connection, [(1, "alice"), (1, "bob")])
    assert owed.owed_from_before(connection) == []


def test_people_see_what_waits_and_why(connection: sqlite3.Connection, tmp_path: Path) -> None:
    insert(connection)
    connection.execute(
        "UPDATE delivery SET tries=2, next_try=?, reason='full' WHERE target='bob'", (owed.microseconds(AT),)
    )
    alice, bob = owed.SpoolReader(tmp_path).waiting()
    assert (alice.mailbox, alice.reason, alice.tries, alice.next_try) == ("alice", None, 0, None)
    assert (bob.mailbox, bob.reason, bob.tries, bob.next_try) == ("bob", "full", 2, AT)
    assert bob.accepted == AT


def test_people_see_nothing_where_there_is_no_spool_yet(tmp_path: Path) -> None:
    assert owed.SpoolReader(tmp_path / "none").waiting() == []


def test_a_hundred_deliveries_are_settled_at_once_and_the_others_stay(connection: sqlite3.Connection) -> None:
    messages = [
        owed.Message(identity, envelope(), Body(3, 1, b"d" * 32, b"a\n\n"), AT, {"alice": ["alice@x"], "bob": ["b@x"]})
        for identity in range(1, 101)
    ]
    owed.insert_all(connection, messages)
    owed.settle(connection, [(identity, "alice") for identity in range(1, 101)] + [(50, "bob")])
    assert [(filing.id, filing.target) for filing in owed.owed_from_before(connection)] == [
        (identity, "bob") for identity in range(1, 101) if identity != 50
    ]


def test_settling_never_reads_the_whole_table(connection: sqlite3.Connection) -> None:
    plans: list[str] = []

    def plan(statement: str) -> None:
        if statement.startswith(("DELETE", "SELECT file")):
            plans.append(statement)

    insert(connection)
    connection.set_trace_callback(plan)
    owed.settle(connection, [(1, "alice"), (1, "bob")])
    connection.set_trace_callback(None)
    assert len(plans) == 3
    for statement in plans:
        rows = connection.execute(f"EXPLAIN QUERY PLAN {statement}").fetchall()
        assert not [row for row in rows if row[3] in ("SCAN delivery", "SCAN message")], statement
