"""The journal: what is written, read, restored, migrated, pruned, and what a broken disk costs."""

import os
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from siteagent.errors import ConfigurationError, ExitCode, PermissionProblem, StorageError
from siteagent.events import (
    AgentReady,
    AskAnswered,
    AskFailed,
    Event,
    MessageAccepted,
    MessageDuplicate,
    MessageRefused,
    MessageStored,
    NodeOutcome,
    Outcome,
    RoundEnded,
    RoundStarted,
    SessionOpened,
    Stamped,
    WarningCleared,
    WarningRaised,
)
from siteagent.status import ListenerView, ProviderView, QueueView, StatusFold, Warnings
from siteagent.store import journal as module
from siteagent.store import ledger, schema
from siteagent.store.journal import Journal, JournalReader

AT = datetime(2026, 11, 22, 8, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return AT + timedelta(seconds=seconds)


def started(round: str = "r1", provider: str = "isp", requests: tuple[str, ...] = ()) -> RoundStarted:
    return RoundStarted(
        round=round, provider=provider, cause="link", method="etrn", nodes=("office.example",), interface="ppp0",
        requests=requests,
    )  # fmt: skip


def answered(round: str = "r1") -> AskAnswered:
    return AskAnswered(
        round=round, provider="isp", node="office.example", outcome=NodeOutcome.STARTED, code=250, text="Queuing",
        promised=3, seconds=0.5,
    )  # fmt: skip


def opened(round: str | None = "r1") -> SessionOpened:
    return SessionOpened(session="s", provider="isp", round=round, peer="203.0.113.9")


def accepted(message: str = "m1", round: str | None = "r1", sender: str = "a@x") -> MessageAccepted:
    return MessageAccepted(
        message=message, session="s", provider="isp", round=round, sender=sender, recipients=("b@y", "c@y"), bytes=100,
        wire_bytes=120, seconds=0.1,
    )  # fmt: skip


def stored(message: str = "m1", mailbox: str = "alice") -> MessageStored:
    return MessageStored(
        message=message, mailbox=mailbox, file=f"{message},S=100", bytes=100, round="r1", provider="isp"
    )


def duplicate(message: str) -> MessageDuplicate:
    return MessageDuplicate(
        message=message, session="s", provider="isp", round="r1", sender="a@x", recipients=("b@y",), first="m0"
    )


def refused(code: int = 452) -> MessageRefused:
    return MessageRefused(
        session="s", provider="isp", round="r1", sender="a@x", recipient="b@y", code=code, reason="too big", bytes=9000
    )


def ended(round: str = "r1", provider: str = "isp", messages: int = 3) -> RoundEnded:
    return RoundEnded(
        round=round, provider=provider, outcome=Outcome.DRAINED, sessions=2, messages=messages, files=4, duplicates=0,
        refused=0, bytes=12345, wire_bytes=15800, seconds=28.1, link_interface="ppp0", reason="quiet",
    )  # fmt: skip


def warned(text: str = "t") -> WarningRaised:
    return WarningRaised(warning="peer-refused", subject="isp", text=text, fix="f")


@contextmanager
def journal(path: Path, **more: object) -> Iterator[Journal]:
    opened = Journal(path, **({"keep_days": 90, "now": lambda: AT} | more))  # type: ignore[arg-type]
    opened.open()
    try:
        yield opened
    finally:
        opened.close()


def write(path: Path, *events: Event, step: float = 1.0, **more: object) -> JournalReader:
    """Record the events, a second apart, and close."""
    with journal(path, **more) as opened:
        for number, event in enumerate(events):
            opened.record(Stamped(at(number * step), event))
    return JournalReader(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


# --- the ledger -------------------------------------------------------------------------------------------------------


def test_a_round_is_told_with_everything_that_a_line_is_paid_by(path: Path) -> None:
    reader = write(path, started(requests=("q1",)), answered(), opened(), opened(), ended())
    (entry,) = reader.rounds()
    assert (entry.started, entry.asked, entry.code) == (at(0), at(0.5), 250)
    assert entry.first_connection_seconds == 1.5
    assert (entry.ended, entry.outcome, entry.sessions, entry.messages, entry.bytes, entry.wire_bytes) == (
        at(4), "drained", 2, 3, 12345, 15800,
    )  # fmt: skip
    assert (entry.requests, entry.interface, entry.reason, entry.seconds) == (("q1",), "ppp0", "quiet", 28.1)


def test_each_answer_for_a_node_is_kept(path: Path) -> None:
    (entry,) = write(path, started(), answered(), answered()).rounds()
    assert [(each.node, each.code, each.text, each.promised) for each in entry.answers] == [
        ("office.example", 250, "Queuing", 3)
    ] * 2


def test_a_conversation_that_failed_leaves_its_reason(path: Path) -> None:
    failed = AskFailed(round="r1", provider="isp", stage="connect", code=None, reason="no answer", temporary=True)
    (entry,) = write(path, started(), failed).rounds()
    assert (entry.reason, entry.outcome) == ("no answer", None)


def test_a_round_that_runs_shows_what_came_so_far(path: Path) -> None:
    (entry,) = write(path, started(), accepted("m1"), stored("m1"), accepted("m2"), duplicate("m3"), refused()).rounds()
    assert (entry.messages, entry.files, entry.duplicates, entry.refused, entry.bytes) == (3, 1, 1, 1, 200)
    assert (entry.ended, entry.outcome) == (None, None)


def test_a_round_in_which_the_agent_died_says_so_after_the_next_start(path: Path) -> None:
    write(path, started())
    (entry,) = write(path).rounds()
    assert entry.reason == "the agent ended before the round did"


def test_the_round_of_a_request_is_found(path: Path) -> None:
    reader = write(path, started("r1", requests=("q1", "q2")), ended("r1"), started("r2"), ended("r2"))
    found = reader.round_of_request("q2")
    assert found is not None and found.id == "r1"
    assert reader.round_of_request("q3") is None


def test_rounds_are_oldest_first_and_the_last_of_them(path: Path) -> None:
    reader = write(path, *(started(f"r{number}") for number in range(5)))
    assert [entry.id for entry in reader.rounds(limit=2)] == ["r3", "r4"]
    assert [entry.id for entry in reader.rounds(since=at(2))] == ["r2", "r3", "r4"]


def test_a_clock_set_back_does_not_change_the_order(path: Path) -> None:
    reader = write(path, *(started(f"r{number}") for number in range(3)), step=-3600.0)
    assert [entry.id for entry in reader.rounds(limit=2)] == ["r1", "r2"]


# --- messages ---------------------------------------------------------------------------------------------------------


def test_each_message_is_told_with_what_became_of_it(path: Path) -> None:
    entries = write(path, accepted("m1"), stored("m1", "alice"), stored("m1", "bob"), accepted("m2"), duplicate("m3"),
                    refused()).messages()  # fmt: skip
    assert [(each.kind, each.message) for each in entries] == [
        ("stored", "m1"), ("accepted", "m2"), ("duplicate", "m3"), ("refused", None),
    ]  # fmt: skip
    assert entries[0].files == (("alice", "m1,S=100"), ("bob", "m1,S=100"))
    assert entries[0].recipients == ("b@y", "c@y")
    assert (entries[3].code, entries[3].reason) == (452, "too big")


def test_mail_that_came_unasked_is_visible(path: Path) -> None:
    reader = write(path, accepted("m1"), accepted("m2", round=None))
    assert [each.message for each in reader.messages(unasked=True)] == ["m2"]


def test_bytes_that_are_no_text_do_not_cost_the_row(path: Path) -> None:
    (entry,) = write(path, accepted("m1", sender="a\udcff\x00@x")).messages()
    assert entry.sender.startswith("a\\udcff")


def test_an_event_that_cannot_be_kept_costs_itself_alone(path: Path) -> None:
    told: list[str] = []
    broken = accepted("m1")
    object.__setattr__(broken, "bytes", 1 << 70)
    reader = write(path, broken, accepted("m2"), report=told.append)
    assert [each.message for each in reader.messages()] == ["m2"]
    assert len(told) == 1 and told[0].startswith("the journal cannot keep message.accepted: OverflowError")


# --- restoring --------------------------------------------------------------------------------------------------------


def documented(fold: StatusFold) -> dict[str, object]:
    return fold.document(
        state="running", pid=1, since=AT, listener=ListenerView(), sessions=(), queue=QueueView(),
        providers=[ProviderView("isp", "down"), ProviderView("second", "down")],
    )  # fmt: skip


def test_the_status_after_a_restart_is_the_one_before_it(path: Path) -> None:
    events = [
        started("r0", "second"), ended("r0", "second"), started(requests=("q1",)), answered(), opened(), accepted(),
        refused(), ended(), warned(), accepted("m9", round=None),
    ]  # fmt: skip
    before = StatusFold()
    for number, event in enumerate(events):
        before.fold(Stamped(at(number), event))
    restored = write(path, *events).restore()
    after = StatusFold()
    after.restore(restored.past, rounds=restored.rounds, messages=restored.messages, bytes=restored.bytes)
    assert documented(after) == documented(before)
    assert after.ledger() == before.ledger()


def test_a_standing_warning_is_not_told_again_after_a_restart(path: Path) -> None:
    restored = write(path, warned("one"), warned("two")).restore()
    warnings = Warnings()
    warnings.restore(restored.past)
    assert warnings.raise_("peer-refused", "isp", "two", "f") is None


def test_a_cleared_warning_is_not_restored_and_can_stand_again(path: Path) -> None:
    cleared = WarningCleared(warning="peer-refused", subject="isp")
    assert write(path, warned(), cleared).restore().past == ()
    assert [each.event for each in write(path, warned("anew")).restore().past] == [warned("anew")]


def test_a_round_that_was_broken_off_is_not_shown_as_running_after_a_restart(path: Path) -> None:
    assert write(path, started()).restore().past == ()


def test_totals_count_a_transaction_once_and_only_ended_rounds(path: Path) -> None:
    restored = write(
        path, started(), accepted("m1"), duplicate("m1"), duplicate("m2"), ended(), started("r2")
    ).restore()
    assert (restored.rounds, restored.messages, restored.bytes) == (1, 2, 100)


def test_a_provider_that_was_long_silent_is_restored_too(path: Path) -> None:
    others = [event for number in range(40) for event in (started(f"r{number}"), ended(f"r{number}"))]
    past = write(path, started("old", "second"), ended("old", "second"), *others).restore().past
    assert "old" in {each.event.round for each in past if isinstance(each.event, RoundEnded)}


# --- reading ----------------------------------------------------------------------------------------------------------


def test_without_a_journal_there_is_no_history(path: Path) -> None:
    reader = JournalReader(path)
    assert (reader.rounds(), reader.messages(), reader.restore().rounds) == ([], [], 0)
    assert not path.exists()


def test_it_is_read_while_the_agent_writes(path: Path) -> None:
    with journal(path) as opened:
        opened.record(Stamped(AT, started()))
        assert opened.flush()
        assert [entry.id for entry in JournalReader(path).rounds()] == ["r1"]


def as_nobody(look: Callable[[], object], directory: Path) -> str:
    """What `look` returns, or raises, in a process of a user who may read in `directory` and not write there."""
    for each in (directory, *directory.parents):
        if each.stat().st_mode & 0o005 != 0o005:
            each.chmod(each.stat().st_mode | 0o005)
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            os.write(writing, repr(look()).encode())
        except BaseException as error:
            os.write(writing, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        said = answer.read().decode()
    os.waitpid(child, 0)
    return said


needs_root = pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="becoming another user needs root")


def ids(path: Path) -> list[str]:
    return [entry.id for entry in JournalReader(path).rounds()]


@needs_root
def test_it_is_read_by_somebody_who_may_not_write_beside_it(path: Path) -> None:
    write(path, started())
    path.chmod(0o644)
    assert as_nobody(lambda: ids(path), path.parent) == "['r1']"


@needs_root
def test_it_is_read_by_somebody_who_may_not_write_while_the_agent_runs(path: Path) -> None:
    with journal(path) as opened:
        opened.record(Stamped(AT, started()))
        assert opened.flush()
        for each in path.parent.iterdir():
            each.chmod(0o644)
        assert as_nobody(lambda: ids(path), path.parent) == "['r1']"


@needs_root
def test_what_a_killed_agent_left_in_its_log_is_read_without_writing(path: Path, tmp_path: Path) -> None:
    left = tmp_path / "left"
    left.mkdir()
    with journal(path) as opened:
        opened.record(Stamped(AT, started()))
        assert opened.flush()
        for suffix in ("", "-wal"):
            shutil.copyfile(f"{path}{suffix}", left / f"journal.sqlite{suffix}")
    for each in left.iterdir():
        each.chmod(0o644)
    assert as_nobody(lambda: ids(left / "journal.sqlite"), left) == "['r1']"
    assert sorted(each.name for each in left.iterdir()) == ["journal.sqlite", "journal.sqlite-wal"]


@needs_root
def test_who_may_not_read_it_is_told_whom_to_be(path: Path) -> None:
    write(path, started())
    path.chmod(0o600)
    said = as_nobody(lambda: ids(path), path.parent)
    assert said.startswith(f"PermissionProblem: cannot read the journal {path}: Permission denied\n  fix: run it as")


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="/proc/locks is Linux's")
def test_reading_it_leaves_the_locks_of_the_agent_that_writes_it(path: Path) -> None:
    def locks() -> set[str]:
        inode = f":{path.stat().st_ino}"
        lines = Path("/proc/locks").read_text().splitlines()
        return {line.partition(": ")[2] for line in lines if line.split()[-3].endswith(inode)}

    with journal(path) as written:
        written.record(Stamped(AT, started()))
        assert written.flush()
        held = locks()
        assert held, "SQLite holds the file while it is open"
        assert ids(path) == ["r1"]
        assert locks() == held


def test_it_is_not_for_everybody_to_read(path: Path) -> None:
    with journal(path) as opened:
        opened.record(Stamped(AT, started()))
        assert opened.flush()
        assert [file.stat().st_mode & 0o007 for file in path.parent.iterdir()] == [0, 0, 0]


# --- the schema number ------------------------------------------------------------------------------------------------


def number_of(path: Path) -> int:
    with closing(sqlite3.connect(path)) as db:
        return int(db.execute("PRAGMA user_version").fetchone()[0])


def test_a_newer_journal_is_refused_with_78_and_not_touched(path: Path) -> None:
    write(path, started(), steps=(*ledger.STEPS, "CREATE TABLE later (x)"))
    before = path.read_bytes()
    with pytest.raises(ConfigurationError) as caught:
        Journal(path, keep_days=90, now=lambda: AT).open()
    assert caught.value.exit_code is ExitCode.CONFIGURATION
    assert "schema 2, this one knows 1" in str(caught.value)
    with pytest.raises(ConfigurationError):
        JournalReader(path).rounds()
    assert path.read_bytes() == before


def test_an_older_journal_is_migrated_and_a_copy_is_kept(path: Path) -> None:
    told: list[str] = []
    write(path, started())
    steps = (*ledger.STEPS, "ALTER TABLE rounds ADD COLUMN price INTEGER; UPDATE rounds SET price = 7")
    write(path, report=told.append, steps=steps)
    kept = path.with_name("journal.sqlite.schema-1")
    assert (number_of(path), number_of(kept)) == (2, 1)
    with closing(sqlite3.connect(path)) as db, closing(sqlite3.connect(kept)) as copy:
        assert db.execute("SELECT id, price FROM rounds").fetchall() == [("r1", 7)]
        assert copy.execute("SELECT id FROM rounds").fetchall() == [("r1",)]
    assert told == [f"the journal was migrated to schema 2; a copy is kept as {kept}"]


def test_a_migration_that_fails_leaves_the_file_as_it_was(path: Path) -> None:
    write(path, started())
    steps = (*ledger.STEPS, "ALTER TABLE rounds ADD COLUMN price INTEGER; INSERT INTO nowhere VALUES (1)")
    with pytest.raises(StorageError):
        Journal(path, keep_days=90, now=lambda: AT, steps=steps).open()
    assert number_of(path) == 1
    assert [entry.id for entry in JournalReader(path).rounds()] == ["r1"]


def test_a_damaged_journal_is_set_aside_and_the_agent_starts(path: Path) -> None:
    told: list[str] = []
    path.write_bytes(b"this is no database, and long enough to be looked at" * 100)
    assert [entry.id for entry in write(path, started(), report=told.append).rounds()] == ["r1"]
    assert path.with_name("journal.sqlite.damaged").read_bytes().startswith(b"this is no database")
    assert len(told) == 1


def test_a_place_that_does_not_exist_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot open the journal .*/nowhere/journal\.sqlite: No such file"):
        Journal(tmp_path / "nowhere" / "journal.sqlite", keep_days=90, now=lambda: AT).open()


# --- the thread -------------------------------------------------------------------------------------------------------


def test_record_does_not_wait_for_a_locked_disk(path: Path) -> None:
    with journal(path) as opened, closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        done = threading.Event()

        def record() -> None:
            for number in range(1000):
                opened.record(Stamped(AT, accepted(f"m{number}")))
            done.set()

        threading.Thread(target=record, daemon=True).start()
        assert done.wait(3)  # sqlite's own patience is 5 s
        other.execute("COMMIT")
        assert opened.flush()
        assert JournalReader(path).restore().messages == 1000


def test_a_disk_that_refuses_for_a_while_costs_nothing_and_is_told_once(path: Path) -> None:
    told: list[str] = []
    with journal(path, report=told.append, pauses=(0.01,)) as opened:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("ALTER TABLE totals RENAME TO elsewhere")
            opened.record(Stamped(AT, accepted("m1")))
            opened.flush()
            opened.record(Stamped(AT, accepted("m2")))
            opened.flush()
            other.execute("ALTER TABLE elsewhere RENAME TO totals")
        opened.record(Stamped(AT, accepted("m3")))
        opened.flush()
    assert JournalReader(path).restore().messages == 3
    assert len(told) == 1 and "it is tried again" in told[0]


def test_closing_over_a_disk_that_refuses_ends_and_tells_what_is_lost(path: Path) -> None:
    told: list[str] = []
    with journal(path, report=told.append, pauses=(60.0,)) as opened:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("DROP TABLE totals")
        opened.record(Stamped(AT, accepted("m1")))
    assert told[-1] == "the journal lost 1 events"


def test_what_does_not_fit_is_dropped_and_counted(path: Path) -> None:
    full = Journal(path, keep_days=90, now=lambda: AT)  # not opened: nobody takes from its queue
    for number in range(module.QUEUED + 3):
        full.record(Stamped(AT, accepted(f"m{number}")))
    assert full.dropped == 3


def test_events_that_are_no_history_are_passed_over(path: Path) -> None:
    full = Journal(path, keep_days=90, now=lambda: AT)
    for _ in range(module.QUEUED + 3):
        full.record(Stamped(AT, AgentReady(hostname="h", listening=(), providers=(), seconds=0.1)))
    assert full.dropped == 0


def test_closing_twice_or_before_opening_is_harmless(path: Path) -> None:
    opened = Journal(path, keep_days=90, now=lambda: AT)
    opened.close()
    opened.open()
    opened.close()
    opened.close()


# --- pruning ----------------------------------------------------------------------------------------------------------


def pruned(path: Path, now: datetime, keep_days: int = 90) -> JournalReader:
    with journal(path, keep_days=keep_days, now=lambda: now) as opened:
        opened.flush()
    return JournalReader(path)


def days(number: float) -> datetime:
    return AT + timedelta(days=number)


def write_daily(path: Path, count: int) -> None:
    with journal(path, now=lambda: AT) as opened:
        for day in range(count):
            for event in (started(f"r{day}"), answered(f"r{day}"), accepted(f"m{day}", f"r{day}"), stored(f"m{day}")):
                opened.record(Stamped(days(day), event))
            opened.record(Stamped(days(day), ended(f"r{day}")))


def pruned_until(path: Path, last: float) -> JournalReader:
    """As an agent does that is started every few days until day `last`."""
    for day in range(3, int(last), 3):
        pruned(path, days(day))
    return pruned(path, days(last))


def test_what_is_older_than_keep_days_goes(path: Path) -> None:
    write_daily(path, 5)
    reader = pruned_until(path, 92.5)
    assert [entry.id for entry in reader.rounds()] == ["r3", "r4"]
    assert [each.message for each in reader.messages()] == ["m3", "m4"]
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT count(*) FROM answers").fetchone() == (2,)
        assert db.execute("SELECT count(*) FROM files").fetchone() == (2,)


def test_totals_outlive_pruning(path: Path) -> None:
    write_daily(path, 5)
    restored = pruned_until(path, 110).restore()
    assert (restored.rounds, restored.messages, restored.past) == (5, 5, ())


def test_a_standing_warning_is_never_too_old(path: Path) -> None:
    write(path, warned())
    assert [each.event for each in pruned_until(path, 200).restore().past] == [warned()]


def test_s62_a_clock_that_leaps_twenty_years_does_not_cost_the_history(path: Path) -> None:
    write_daily(path, 30)
    pruned_until(path, 31)
    leapt = [len(pruned(path, days(20 * 365 + hours / 24)).rounds()) for hours in range(12)]
    assert leapt == [30] * 12
    assert len(pruned(path, days(-20 * 365)).rounds()) == 30
    assert len(pruned(path, days(32)).rounds()) == 30


def test_after_a_long_rest_pruning_catches_up_step_by_step(path: Path) -> None:
    write_daily(path, 30)
    left = [len(pruned(path, days(365 + day)).rounds()) for day in range(20)]
    assert left == sorted(left, reverse=True)
    assert (left[0], left[-1]) == (30, 0)


CALLS: list[Callable[[JournalReader], object]] = [
    JournalReader.rounds,
    JournalReader.messages,
    JournalReader.restore,
    lambda reader: reader.round_of_request("q"),
]


@pytest.mark.parametrize("call", CALLS)
def test_a_file_that_is_no_journal_is_an_error_that_names_it(
    path: Path, call: Callable[[JournalReader], object]
) -> None:
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(StorageError, match="cannot read the journal"):
        call(JournalReader(path))


def test_a_journal_that_is_not_ours_is_a_question_of_rights(path: Path) -> None:
    error = Journal(path, keep_days=90, now=lambda: AT)._unusable(PermissionError(13, "Permission denied"))
    assert isinstance(error, PermissionProblem)


class Counting(JournalReader):
    """Counts SQLite's own steps, roughly: a measure that no busy machine changes."""

    steps = 0

    def _connect(self, stack: ExitStack) -> sqlite3.Connection:
        db = super()._connect(stack)

        def step() -> None:
            self.steps += 10

        db.set_progress_handler(step, 10)
        return db


_NUMBERS = "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < ?) "
_YEARS_AGO = "'2020-01-' || printf('%02d', 1 + i % 20) || 'T00:00:00.000000Z'"


def past(file: Path, *, messages: int = 1, rounds: int = 1) -> Counting:
    with closing(sqlite3.connect(file, isolation_level=None)) as db:
        schema.upgrade(db, file, ledger.STEPS)
        columns = "INSERT INTO messages (at, kind, session, round, sender, recipients)"
        db.execute(f"{_NUMBERS} {columns} SELECT {_YEARS_AGO}, 'refused', 's', 'r', 'a@x', '[]' FROM n", (messages,))
        columns = "INSERT INTO rounds (id, provider, cause, method, interface, nodes, requests, started)"
        db.execute(
            f"{_NUMBERS} {columns} SELECT 'r' || i, 'isp', 'link', 'etrn', 'ppp0', '[]', '[]', {_YEARS_AGO} FROM n",
            (rounds,),
        )
        db.execute(f"{_NUMBERS} INSERT INTO usage SELECT substr({_YEARS_AGO}, 1, 10), 'ppp0', 1, 1 FROM n", (20,))
    return Counting(file)


@pytest.mark.parametrize(
    "question",
    [
        lambda reader: reader.messages(5),
        lambda reader: reader.messages(since=AT),
        lambda reader: reader.messages(5, unasked=True),
        lambda reader: reader.messages(since=AT, unasked=True),
    ],
    ids=["the last", "since", "the last unasked", "unasked since"],
)
def test_asking_for_some_messages_does_not_read_all(
    tmp_path: Path, question: Callable[[JournalReader], object]
) -> None:
    few, many = past(tmp_path / "few", messages=100), past(tmp_path / "many", messages=10_000)
    question(few)
    question(many)
    assert many.steps <= few.steps + 200


def test_counting_the_rounds_of_each_day_reads_each_round_once(tmp_path: Path) -> None:
    reader = past(tmp_path / "file", rounds=2_000)
    usage = reader.usage()
    assert [(entry.day, entry.rounds, entry.messages) for entry in usage[:1]] == [("2020-01-01", 100, 0)]
    assert len(usage) == 20 and reader.steps < 2_000 * 60
