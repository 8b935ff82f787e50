"""The hub as a whole: what it takes, what it holds over a restart, what it does by hand and by itself."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from siteagent.config.convert import changed
from siteagent.errors import CannotCreate
from tests.hub import Running, hub, node
from tests.unit.test_hub_push import odd_site, smtp

MAIL = b"Subject: %d\r\n\r\nhello\r\n"


def mails(count: int, first: int = 0) -> list[bytes]:
    return [MAIL % n for n in range(first, first + count)]


def filled(tmp_path: Path, count: int, **options: Any) -> None:
    async def run() -> None:
        async with hub(tmp_path, [node(deliver_to="127.0.0.1:1", **options)]) as running:
            await running.fill(mails(count))

    asyncio.run(run())


def restarted(tmp_path: Path, **options: Any) -> Running:
    async def run() -> Running:
        async with hub(tmp_path, [node(deliver_to="127.0.0.1:1", **options)]) as running:
            return running

    return asyncio.run(run())


def test_what_was_acknowledged_is_there_after_a_restart_in_its_order(tmp_path: Path) -> None:
    filled(tmp_path, 20)
    running = restarted(tmp_path)
    assert running.hub.queue.count("office.example") == 20
    assert running.of("hub.ready")[0].messages == 20
    taken = running.hub.queue.take("office.example", 20)
    assert taken == sorted(taken)


def test_a_damaged_row_is_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    filled(tmp_path, 3)
    with sqlite3.connect(tmp_path / "state" / "spool.sqlite") as connection:
        connection.execute("UPDATE message SET size='many' WHERE id=2")
    running = restarted(tmp_path)
    (damage,) = running.of("spool.damaged")
    assert "2" in damage.what
    assert running.hub.queue.count("office.example") == 2
    assert [warning["name"] for warning in running.hub.document()["warnings"]] == ["damaged"]


COLUMNS = ["name", "accepted", "session", "sender", "received", "flags", "size", "bare", "file", "head", "body"]
VALUES = ["NULL", "''", "x'ff00fe'", "-1", "1e300", "9223372036854775807", "-9223372036854775808", "'\u2603\n'"]


@pytest.mark.parametrize("table", ["message", "delivery"])
def test_whatever_stands_in_a_row_the_others_go_and_the_hub_is_fine(tmp_path: Path, table: str) -> None:
    """Every column, every kind of wrong value, one message each; between them stand good ones."""
    columns = COLUMNS if table == "message" else ["target", "addresses", "tries", "next_try", "reason"]
    cases = [(column, value) for column in columns for value in VALUES]
    filled(tmp_path, 2 * len(cases))
    with sqlite3.connect(tmp_path / "state" / "spool.sqlite") as connection:
        connection.execute("PRAGMA writable_schema=ON")
        schema = "UPDATE sqlite_master SET sql=replace(replace(sql, ' NOT NULL', ''), ' DEFAULT 0', '') WHERE name=?"
        connection.execute(schema, (table,))
    damaged = 0
    with sqlite3.connect(tmp_path / "state" / "spool.sqlite") as connection:
        key = "id" if table == "message" else "message"
        ids = [identity for (identity,) in connection.execute("SELECT id FROM message ORDER BY id")]
        for (column, value), identity in zip(cases, ids[1::2], strict=True):
            with contextlib.suppress(sqlite3.IntegrityError):
                connection.execute(f"UPDATE {table} SET {column}={value} WHERE {key}=?", (identity,))
                damaged += 1
    assert damaged > len(cases) * 0.8
    contents: list[bytes] = []

    async def run() -> Running:
        async with (
            odd_site(smtp(contents=contents)) as address,
            hub(tmp_path, [node(deliver_to=address, etrn_without_auth=True, max_connections=1)]) as running,
        ):
            running.hub.front.release("office.example", account=None, peer="p")
            await running.released()
            await running.hub.expiry.look()
            json.dumps(running.hub.document())
            return running

    running = asyncio.run(run())
    assert running.notes == []
    subjects = {content.partition(b"Subject: ")[2].partition(b"\r\n")[0] for content in contents}
    assert {b"%d" % n for n in range(0, 2 * len(cases), 2)} <= subjects, "every good one went"
    document = json.loads((tmp_path / "state" / "status.json").read_text())
    assert document["state"] == "stopped"
    assert running.of("spool.damaged") or table == "delivery"


def test_two_hubs_do_not_share_a_state_directory(tmp_path: Path) -> None:
    async def run() -> None:
        async with hub(tmp_path, [node(deliver_to="127.0.0.1:1")]):
            with pytest.raises(CannotCreate, match="already works"):
                async with hub(tmp_path, [node(deliver_to="127.0.0.1:1")]):
                    pass

    asyncio.run(run())


def test_what_is_over_max_queue_bytes_is_asked_to_come_later(tmp_path: Path) -> None:
    async def run() -> None:
        nodes = [node(deliver_to="127.0.0.1:1", max_queue_bytes=100), node("other.example", deliver_to="127.0.0.1:1")]
        async with hub(tmp_path, nodes) as running:
            await running.fill([b"Subject: x\r\n\r\n" + b"y" * 200 + b"\r\n"])
            peer = await running.peer()
            assert await peer.code("MAIL FROM:<a@b.example>") == 250
            assert await peer.code("RCPT TO:<alice@office.example>") == 452
            assert await peer.code("RCPT TO:<alice@other.example>") == 250
            await peer.close()
            assert [warning["name"] for warning in running.hub.document()["warnings"]] == ["full"]

    asyncio.run(run())


def test_a_list_of_recipients_decides_at_rcpt_and_one_that_is_missing_takes_everybody(tmp_path: Path) -> None:
    listed = tmp_path / "recipients"
    listed.write_text("# people\nalice@office.example OK\n")

    async def run() -> None:
        nodes = [
            node(deliver_to="127.0.0.1:1", recipients_file=listed),
            node("other.example", deliver_to="127.0.0.1:1", recipients_file=tmp_path / "nowhere"),
        ]
        async with hub(tmp_path, nodes) as running:
            peer = await running.peer()
            await peer.code("MAIL FROM:<a@b.example>")
            assert await peer.code("RCPT TO:<alice@office.example>") == 250
            assert await peer.code("RCPT TO:<mallory@office.example>") == 550
            assert await peer.code("RCPT TO:<whoever@other.example>") == 250
            assert any("nowhere" in note for note in running.notes)
            await peer.close()

    asyncio.run(run())


def test_a_list_of_recipients_that_is_being_written_refuses_nobody(tmp_path: Path) -> None:
    """It counts when it stayed the same from one look to the next, and an empty one never."""
    listed = tmp_path / "recipients"
    listed.write_text("alice@office.example\n")

    async def run() -> None:
        async with hub(tmp_path, [node(deliver_to="127.0.0.1:1", recipients_file=listed)]) as running:

            def takes(address: str) -> bool:
                return running.hub.table.route(address) == "office.example"

            for text in ("bob@office.example\n", "bob@office.example\ncarol@office.example\n"):
                listed.write_text(text)
                await running.hub.look_at_lists()
                assert takes("alice@office.example"), "half of it is not believed"
            await running.hub.look_at_lists()
            assert not takes("alice@office.example")
            assert takes("carol@office.example")
            listed.write_text("")
            for _ in range(2):
                await running.hub.look_at_lists()
            assert takes("alice@office.example")
            assert any("lists nobody" in note for note in running.notes)

    asyncio.run(run())


def test_a_message_for_two_nodes_is_held_for_each_once(tmp_path: Path) -> None:
    async def run() -> None:
        nodes = [node(deliver_to="127.0.0.1:1"), node("other.example", deliver_to="127.0.0.1:1")]
        async with hub(tmp_path, nodes) as running:
            to = ("alice@office.example", "bob@office.example", "carol@other.example")
            await running.fill(mails(1), to=to)
            await running.until(lambda: running.hub.queue.totals()[0] == 2)
            assert [running.hub.queue.count(n.name) for n in nodes] == [1, 1]

    asyncio.run(run())


def test_a_changed_configuration_counts_from_the_next_session(tmp_path: Path) -> None:
    async def run() -> None:
        async with hub(tmp_path, [node(deliver_to="127.0.0.1:1")]) as running:
            await running.fill(mails(1))
            new = changed(running.hub.configuration, node=(node("new.example", deliver_to="127.0.0.1:1"),))
            await running.hub.apply(new)
            peer = await running.peer()
            await peer.code("MAIL FROM:<a@b.example>")
            assert await peer.code("RCPT TO:<alice@office.example>") == 550
            assert await peer.code("RCPT TO:<alice@new.example>") == 250
            await peer.close()
            shown = {entry["name"]: entry["messages"] for entry in running.hub.document()["nodes"]}
            assert shown == {"new.example": 0, "office.example": 1}, "what is held stays, and is shown"

    asyncio.run(run())


def test_the_status_file_tells_what_is_held_and_that_it_stopped(tmp_path: Path) -> None:
    filled(tmp_path, 2)
    document = json.loads((tmp_path / "state" / "status.json").read_text())
    assert document["state"] == "stopped"
    assert document["queue"]["messages"] == 2
    assert document["nodes"][0]["oldest"]


def test_a_graceful_stop_breaks_a_push_off_and_loses_nothing(tmp_path: Path) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(30)

    async def run() -> float:
        server = await asyncio.start_server(silent, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        began = asyncio.get_running_loop().time()
        async with hub(tmp_path, [node(deliver_to=f"127.0.0.1:{port}", etrn_without_auth=True)]) as running:
            await running.fill(mails(3))
            peer = await running.peer()
            await peer.code("ETRN office.example")
            await running.until(lambda: running.hub.document()["nodes"][0]["releasing"])
            await peer.close()
        server.close()
        return asyncio.get_running_loop().time() - began

    assert asyncio.run(run()) < 5
    assert restarted(tmp_path).hub.queue.count("office.example") == 3


def test_a_push_in_which_nothing_moves_gives_way_to_a_site_that_asks_again(tmp_path: Path) -> None:
    connections = 0

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await asyncio.sleep(30)

    async def run() -> None:
        server = await asyncio.start_server(silent, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        nodes = [node(deliver_to=f"127.0.0.1:{port}", etrn_without_auth=True, max_connections=1)]
        async with hub(tmp_path, nodes) as running:
            await running.fill(mails(1))
            peer = await running.peer()
            await peer.code("ETRN office.example")
            await running.until(lambda: connections == 1)
            await peer.code("ETRN office.example")
            await asyncio.sleep(0.05)
            assert connections == 1, "it may be slow, and not dead"
            running.hub._pusher._running["office.example"].begun -= 61
            await peer.code("ETRN office.example")
            await running.until(lambda: connections == 2)
            assert "asked again" in running.of("push.ended")[0].reason
            await peer.close()
        server.close()

    asyncio.run(run())


def test_one_stranger_does_not_take_all_places(tmp_path: Path) -> None:
    """A quarter of the house is for one address; the next one hears 421, and others are greeted as ever."""

    async def run() -> None:
        options = {"max_connections": 16, "max_connections_per_peer": 3}
        async with hub(tmp_path, [node(deliver_to="127.0.0.1:1")], listener=options) as running:
            host, _, port = running.hub.addresses[0].rpartition(":")
            crowd = [await asyncio.open_connection(host, int(port)) for _ in range(30)]
            refused = [reader for reader, _ in crowd if await first_word(reader) == b"421"]
            assert len(refused) == 26
            reader, writer = await asyncio.open_connection(host, int(port), local_addr=("127.0.0.2", 0))
            assert await first_word(reader) == b"220"
            for _, other in [*crowd, (reader, writer)]:
                other.close()

    async def first_word(reader: asyncio.StreamReader) -> bytes:
        try:
            async with asyncio.timeout(0.5):
                return await reader.readexactly(3)
        except TimeoutError:
            return b"waits"

    asyncio.run(run())
