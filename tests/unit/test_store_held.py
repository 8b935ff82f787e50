"""What a hub's spool holds, read lightly; and rows that cannot be understood."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest
from siteagent.store import held, tables
from siteagent.store.spool import Envelope, Spool

N = "office.example"


def envelope(ident: str, *addresses: str) -> Envelope:
    return Envelope(
        message=ident,
        session="s",
        provider=None,
        round=None,
        sender="a@b.example",
        recipients=tuple((address, N) for address in addresses or ("alice@office.example",)),
        received=b"Received: x\n",
        smtputf8=False,
        eight_bit=False,
    )


def fill(directory: Path, count: int = 3, *, big: bool = False) -> None:
    async def run() -> None:
        spool = Spool(directory)
        spool.open()
        for n in range(count):
            writer = spool.body(envelope(f"m{n}", "alice@office.example", "bob@office.example"))
            writer.write(b"Subject: %d\n" % n + (b"x" * 400_000 if big else b""))
            await spool.commit(envelope(f"m{n}", "alice@office.example", "bob@office.example"), await writer.finish())
        await spool.close()

    asyncio.run(run())


def reopened(directory: Path) -> tuple[Spool, held.Index]:
    index = held.Index()
    spool = Spool(directory, recall=index)
    spool.open()
    return spool, index


def damage(directory: Path, statement: str) -> None:
    with sqlite3.connect(directory / tables.FILE) as connection:
        connection.execute(statement)


def test_the_index_knows_everything_that_is_owed_oldest_first(tmp_path: Path) -> None:
    fill(tmp_path)
    spool, index = reopened(tmp_path)
    spool.close_now()
    assert list(index.held) == [N]
    assert [one.size for one in index.held[N]] == [11] * 3
    assert [one.id for one in index.held[N]] == sorted(one.id for one in index.held[N])
    assert index.highest == index.held[N][-1].id


def test_what_is_fetched_comes_whole_and_in_order(tmp_path: Path) -> None:
    fill(tmp_path)
    spool, index = reopened(tmp_path)
    identities = [one.id for one in index.held[N]]
    found, damaged, looked = asyncio.run(
        spool.ask(lambda connection: held.fetch(connection, N, identities, most_bytes=10_000))
    )
    spool.close_now()
    assert [filing.data for filing in found] == [b"Subject: 0\n", b"Subject: 1\n", b"Subject: 2\n"]
    assert found[0].addresses == ("alice@office.example", "bob@office.example")
    assert (damaged, looked) == ({}, 3)


def test_fetching_ends_where_enough_octets_are_in_memory(tmp_path: Path) -> None:
    fill(tmp_path)
    spool, index = reopened(tmp_path)
    identities = [one.id for one in index.held[N]]
    found, _, looked = asyncio.run(spool.ask(lambda connection: held.fetch(connection, N, identities, most_bytes=15)))
    spool.close_now()
    assert (len(found), looked) == (2, 2)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE message SET sender=x'ff00' WHERE id=2",
        "UPDATE message SET body=NULL WHERE id=2",
        "UPDATE message SET size='many' WHERE id=2",
        "UPDATE message SET accepted='yesterday' WHERE id=2",
        "UPDATE delivery SET addresses='' WHERE message=2",
        "UPDATE delivery SET addresses='a' || char(13) || 'DATA' WHERE message=2",
        "UPDATE delivery SET target=x'00' WHERE message=2",
    ],
)
def test_a_damaged_row_is_set_aside_and_the_rest_goes_on(tmp_path: Path, statement: str) -> None:
    fill(tmp_path)
    damage(tmp_path, statement)
    spool, index = reopened(tmp_path)
    identities = [one.id for one in index.held[N]]
    found, damaged, _ = asyncio.run(
        spool.ask(lambda connection: held.fetch(connection, N, identities, most_bytes=10_000))
    )
    spool.close_now()
    assert [filing.id for filing in found] == [1, 3]
    assert len(index.damaged) + len(damaged) >= 1 or 2 not in identities


def test_the_file_of_a_damaged_row_is_not_taken_for_an_orphans(tmp_path: Path) -> None:
    fill(tmp_path, big=True)
    damage(tmp_path, "UPDATE message SET accepted='yesterday' WHERE id=2")
    spool, index = reopened(tmp_path)
    spool.close_now()
    assert len(index.damaged) == 1
    assert len(list((tmp_path / "bodies").iterdir())) == 3


def test_narrowing_is_there_after_a_restart(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    spool, _ = reopened(tmp_path)
    asyncio.run(spool.ask(lambda connection: held.narrow(connection, 1, N, ["bob@office.example"])))
    spool.close_now()
    spool, _ = reopened(tmp_path)
    filing = asyncio.run(spool.ask(lambda connection: held.filing(connection, 1, N)))
    spool.close_now()
    assert filing.addresses == ("bob@office.example",)


def test_what_is_dropped_is_gone_with_its_file(tmp_path: Path) -> None:
    fill(tmp_path, 2, big=True)
    spool, _ = reopened(tmp_path)
    deliveries = asyncio.run(spool.ask(lambda connection: held.named(connection, "m0")))
    files = asyncio.run(spool.ask(lambda connection: held.drop(connection, deliveries)))
    spool.close_now()
    assert [path.name for path in files] == ["m0"]
    _, index = reopened(tmp_path)
    assert [one.id for one in index.held[N]] == [2]


def test_the_summary_needs_nobody_to_run(tmp_path: Path) -> None:
    assert list(held.summary(tmp_path)) == []
    fill(tmp_path)
    ((node, messages, octets, oldest),) = held.summary(tmp_path)
    assert (node, messages, octets) == (N, 3, 33)
    assert oldest > 1_000_000_000
