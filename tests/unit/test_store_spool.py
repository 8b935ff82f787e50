"""Accepted mail, from the first octet to the last delivery, over restarts."""

import asyncio
import errno
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from siteagent.store.spool import Filing, Placement, Spool, SpoolFailed, SpoolFull, SpoolReader
from tests.faulty import FaultyDatabase, FaultyDisk
from tests.letters import LARGE, content, envelope, files, left_behind, put, taken_in

START = datetime(2026, 11, 22, 8, tzinfo=UTC)


class Office:
    """A spool on a real disk that can be closed and opened again, and what it handed out."""

    def __init__(self, path: Path) -> None:
        self.state, self.tmp = path / "state", path / "alice" / "tmp"
        self.state.mkdir()
        self.tmp.mkdir(parents=True)
        self.disk, self.database = FaultyDisk(), FaultyDatabase()
        self.wall, self.monotonic = START, 0.0
        self.owed: list[Filing] = []
        self.spool = self.fresh()
        self.spool.open()

    def fresh(self, **changes: Any) -> Spool:
        options: dict[str, Any] = {
            "disk": self.disk,
            "connect": self.database,
            "wall": lambda: self.wall,
            "monotonic": lambda: self.monotonic,
            "on_committed": self.owed.extend,
        }
        return Spool(self.state, **{**options, **changes})

    def restart(self) -> list[Filing]:
        self.spool.close_now()
        self.spool = self.fresh()
        return self.spool.open()

    def put(self, letter: Any, data: bytes) -> Any:
        return asyncio.run(put(self.spool, letter, data))


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    made = Office(tmp_path)
    yield made
    made.spool.close_now()


def test_what_is_committed_is_handed_out_with_its_content(office: Office) -> None:
    letter = envelope("alice@x", "sales@x", "bob@x", recipients=(("alice@x", "a"), ("sales@x", "a"), ("bob@x", "b")))
    office.put(letter, b"Subject: x\n\nhello\n")
    assert [(f.target, f.addresses, f.data) for f in office.owed] == [
        ("a", ("alice@x", "sales@x"), b"Subject: x\n\nhello\n"),
        ("b", ("bob@x",), b"Subject: x\n\nhello\n"),
    ]


@pytest.mark.parametrize("size", [10, LARGE])
def test_a_restart_hands_out_again_what_is_owed(office: Office, size: int) -> None:
    letter = envelope("alice@x", "bob@x")
    office.put(letter, content(size))
    office.spool.filed([(office.owed[0].id, "alice")])
    (waiting,) = office.restart()
    assert (waiting.message, waiting.target, waiting.recovered) == (letter.message, "bob", True)
    data = waiting.file.read_bytes() if waiting.file else office.spool.load(waiting)
    assert data == content(size)


def test_content_that_was_let_go_can_be_loaded(office: Office) -> None:
    office.put(envelope(), b"content\n")
    assert office.spool.load(office.owed[0]) == b"content\n"


def test_content_that_is_not_there_is_an_error_of_the_spool(office: Office) -> None:
    office.put(envelope(), b"content\n")
    office.spool.filed([(office.owed[0].id, "alice")])
    asyncio.run(put(office.spool, envelope(), b"rides along\n"))
    with pytest.raises(SpoolFailed):
        office.spool.load(office.owed[0])


# --- large messages ---------------------------------------------------------------------------------------------------


def test_a_large_message_for_one_mailbox_goes_straight_there(office: Office) -> None:
    office.spool.place = lambda letter: Placement(office.tmp, b"Head: 1\n", 0o600)
    letter = envelope("alice@x")
    office.put(letter, content(LARGE))
    assert files(office.tmp) == {letter.message: b"Head: 1\n" + content(LARGE)}
    assert (office.owed[0].file, office.owed[0].head) == (office.tmp / letter.message, 8)


def test_a_large_message_for_two_stands_beside_the_database_until_both_have_it(office: Office) -> None:
    office.spool.place = lambda letter: Placement(office.tmp, b"Head: 1\n", 0o600)
    office.put(envelope("alice@x", "bob@x"), content(LARGE))
    assert len(files(office.state / "bodies")) == 1
    office.spool.filed([(office.owed[0].id, "alice")])
    office.put(envelope(), b"rides along\n")
    assert len(files(office.state / "bodies")) == 1
    office.spool.filed([(office.owed[0].id, "bob")])
    office.put(envelope(), b"rides along too\n")
    assert files(office.state / "bodies") == {}


def test_files_whose_transaction_never_came_go_at_the_next_start(office: Office) -> None:
    office.put(envelope(), content(LARGE))
    asyncio.run(taken_in(office.spool, envelope(), content(LARGE)))
    assert len(files(office.state / "bodies")) == 2
    (waiting,) = office.restart()
    assert [waiting.message] == list(files(office.state / "bodies"))


def test_a_state_directory_may_be_moved(office: Office, tmp_path: Path) -> None:
    office.put(envelope(), content(LARGE))
    office.spool.close_now()
    office.state = office.state.rename(tmp_path / "moved")
    office.spool = office.fresh()
    (waiting,) = office.spool.open()
    assert waiting.file is not None and waiting.file.read_bytes() == content(LARGE)


def test_s26_the_file_of_a_large_message_is_durable_before_its_transaction(office: Office) -> None:
    order: list[str] = []
    office.disk.before = lambda operation, place: order.append(operation) if operation.startswith("sync") else None
    office.database.before = lambda sql: order.append(sql) if sql in ("BEGIN IMMEDIATE", "COMMIT") else None
    office.put(envelope(), content(LARGE))
    assert order == ["sync_file", "sync_folder", "BEGIN IMMEDIATE", "COMMIT"]


def test_s26_the_place_of_large_messages_is_durable_at_each_start(office: Office) -> None:
    office.disk.effects.clear()
    office.restart()
    assert office.disk.of("sync_folder") == [
        ("sync_folder", str(office.state)),
        ("sync_folder", str(office.state.parent)),
    ]


# --- doubles ----------------------------------------------------------------------------------------------------------


def test_s33_the_same_in_a_later_session_is_taken_and_filed_once(office: Office) -> None:
    first = envelope("alice@x", session="s1")
    office.put(first, b"same\n")
    again = office.put(envelope("alice@x", session="s2"), b"same\n")
    assert (again.duplicates, again.first) == (("alice@x",), first.message)
    assert len(office.owed) == 1


def test_s33_over_a_restart_too(office: Office) -> None:
    office.put(envelope("alice@x", session="s1"), b"same\n")
    office.restart()
    assert office.put(envelope("alice@x", session="s2"), b"same\n").duplicates == ("alice@x",)


def test_s33_recipients_may_come_in_other_groups(office: Office) -> None:
    office.put(envelope("alice@x", "bob@x", session="s1"), b"same\n")
    again = office.put(envelope("bob@x", "carol@x", session="s2"), b"same\n")
    assert again.duplicates == ("bob@x",)
    assert [f.target for f in office.owed] == ["alice", "bob", "carol"]
    third = office.put(envelope("alice@x", "carol@x", session="s3"), b"same\n")
    assert third.duplicates == ("alice@x", "carol@x")
    assert len(office.owed) == 3


def test_s33_other_bytes_are_another_message(office: Office) -> None:
    for session, data in (("s1", b"Message-ID: <1@x>\n\none\n"), ("s2", b"Message-ID: <1@x>\n\ntwo\n")):
        assert office.put(envelope("alice@x", session=session), data).duplicates == ()
    assert len(office.owed) == 2


def test_s33_a_large_double_leaves_no_file(office: Office) -> None:
    office.spool.place = lambda letter: Placement(office.tmp, b"", 0o600)
    first = envelope("alice@x", session="s1")
    office.put(first, content(LARGE))
    assert office.put(envelope("alice@x", session="s2"), content(LARGE)).duplicates == ("alice@x",)
    assert list(files(office.tmp)) == [first.message]


def test_s33_both_copies_of_one_batch_make_one(office: Office) -> None:
    async def run() -> list[Any]:
        letters = [envelope("alice@x", session=f"s{n}") for n in range(20)]
        return await asyncio.gather(*(put(office.spool, letter, b"same\n") for letter in letters))

    results = asyncio.run(run())
    assert sorted(len(result.duplicates) for result in results) == [0] + [1] * 19
    assert len(office.owed) == 1


@pytest.mark.parametrize("years", [20, -20])
def test_s62_a_clock_that_jumps_twenty_years_expires_nothing(office: Office, years: int) -> None:
    office.put(envelope("alice@x", session="s1"), b"same\n")
    for _ in range(3):
        office.wall = START + timedelta(days=365 * years)
        office.put(envelope("bob@x"), b"%d\n" % id(office.wall))
        assert len(office.restart()) >= 1
    assert office.put(envelope("alice@x", session="s2"), b"same\n").duplicates == ("alice@x",)


# --- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operation", "number", "kind"),
    [("create", errno.ENOSPC, SpoolFull), ("create", errno.EMFILE, SpoolFailed), ("write", errno.EDQUOT, SpoolFull),
     ("write", errno.EROFS, SpoolFailed), ("sync_file", errno.EIO, SpoolFailed),
     ("sync_folder", errno.EIO, SpoolFailed)],
)  # fmt: skip
def test_s28_s29_a_large_message_that_cannot_be_kept_leaves_nothing_and_the_next_works(
    office: Office, operation: str, number: int, kind: type[Exception]
) -> None:
    office.disk.fail(operation, errno=number)
    with pytest.raises(SpoolFailed) as caught:
        office.put(envelope("alice@x"), content(LARGE))
    assert type(caught.value) is kind
    assert left_behind(office.state) == []
    assert SpoolReader(office.state).waiting() == []
    office.put(envelope("alice@x", session="s2"), content(LARGE))
    assert len(office.owed) == 1


def test_s28_a_failed_sync_of_the_database_leaves_nothing_and_the_next_works(office: Office) -> None:
    office.database.fail("COMMIT", late=True)
    with pytest.raises(SpoolFailed):
        office.put(envelope("alice@x"), content(LARGE))
    office.put(envelope("alice@x", session="s2"), b"next\n")
    assert left_behind(office.state) == []
    assert [owed.bytes for owed in SpoolReader(office.state).waiting()] == [5]


def test_s32_several_recipients_are_taken_for_all_or_none(office: Office) -> None:
    office.database.fail("INSERT INTO delivery")
    with pytest.raises(SpoolFailed):
        office.put(envelope("alice@x", "bob@x", session="s1"), b"same\n")
    assert SpoolReader(office.state).waiting() == []
    again = office.put(envelope("alice@x", "bob@x", session="s2"), b"same\n")
    assert again.duplicates == ()
    assert [f.target for f in office.owed] == ["alice", "bob"]


def test_s36_a_peer_that_drops_during_the_commit_changes_nothing(office: Office) -> None:
    reached, gate = threading.Event(), threading.Event()

    def hold(sql: str) -> None:
        if sql == "COMMIT":
            reached.set()
            assert gate.wait(20)

    office.database.before = hold

    async def run() -> None:
        task = asyncio.create_task(put(office.spool, envelope("alice@x"), b"whole\n"))
        await asyncio.to_thread(reached.wait, 20)
        task.cancel()
        await asyncio.wait([task])
        gate.set()

    asyncio.run(run())
    (waiting,) = office.restart()
    assert office.spool.load(waiting) == b"whole\n"


def test_room_is_what_the_disk_has_less_the_floor(office: Office) -> None:
    free = office.disk.free_bytes(office.state)
    assert office.spool.room(0, keep_free=free // 2)
    assert not office.spool.room(free, keep_free=free // 2)


def test_room_looks_at_the_disk_once_a_second_at_most(office: Office) -> None:
    office.disk.effects.clear()
    for _ in range(100):
        office.spool.room(1, keep_free=1)
    assert len(office.disk.of("free_bytes")) == 1
    office.monotonic += 1.5
    office.spool.room(1, keep_free=1)
    assert len(office.disk.of("free_bytes")) == 2


def test_s31_a_disk_that_does_not_answer_has_no_room(office: Office) -> None:
    office.disk.fail("free_bytes", times=9)
    assert not office.spool.room(1, keep_free=0)


def test_closing_waits_for_large_messages_and_commits(office: Office) -> None:
    async def run() -> None:
        tasks = [asyncio.create_task(put(office.spool, envelope(), content(LARGE, str(n)))) for n in range(5)]
        await asyncio.wait(tasks)
        await office.spool.close()

    asyncio.run(run())
    assert len(office.restart()) == 5


def test_a_postponed_delivery_tells_its_reason_to_people(office: Office) -> None:
    office.put(envelope("alice@x"), b"x\n")
    office.spool.postponed(office.owed[0], tries=1, next_try=START.timestamp(), reason="full: \udc80")
    office.restart()
    (owed,) = SpoolReader(office.state).waiting()
    assert (owed.reason, owed.tries, owed.next_try) == ("full: ?", 1, START)
