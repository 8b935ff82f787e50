"""`status`, `queue` and `history`, as people and their monitoring call them."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from siteagent.cli.history import parse_since, table
from siteagent.cli.status import history, pictures, queue, retry_queue, status
from siteagent.errors import ExitCode, StorageError, TemporaryError, UsageError
from siteagent.events import (
    AskAnswered,
    Event,
    LineUsed,
    MessageAccepted,
    MessageStored,
    NodeOutcome,
    Outcome,
    RoundEnded,
    RoundStarted,
    SessionOpened,
    Stamped,
    WarningRaised,
)
from siteagent.status import ListenerView, ProviderView, QueueView, StatusFold
from siteagent.store import lock, requests, tables
from siteagent.store.journal import FILE, Journal

AT = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)


@dataclass
class Asked:
    """Stands in for the context of the command line."""

    directory: Path
    out_lines: list[str] = field(default_factory=list)
    talk_lines: list[str] = field(default_factory=list)

    def state_directory(self) -> Path:
        return self.directory

    def out(self, text: str = "") -> None:
        self.out_lines.append(click.unstyle(text))

    def talk(self, text: str = "") -> None:
        self.talk_lines.append(text)

    def colored(self) -> bool:
        return False


@dataclass
class Said:
    code: int
    out: str
    talk: str

    @property
    def json(self) -> dict:
        return json.loads(self.out)


def call(command: click.Command, directory: Path, *arguments: str) -> Said:
    asked = Asked(directory)
    result = CliRunner().invoke(command, list(arguments), obj=asked, standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return Said(result.return_value, "\n".join(asked.out_lines), "\n".join(asked.talk_lines))


def started(round: str = "r1", requests: tuple[str, ...] = ()) -> RoundStarted:
    return RoundStarted(
        round=round, provider="isp", cause="link", method="etrn", nodes=("office.example",), interface="ppp0",
        requests=requests,
    )  # fmt: skip


def ended(round: str = "r1", outcome: Outcome = Outcome.DRAINED) -> RoundEnded:
    return RoundEnded(
        round=round, provider="isp", outcome=outcome, sessions=1, messages=3, files=4, duplicates=0, refused=0,
        bytes=12345, wire_bytes=15800, seconds=28.1, link_interface="ppp0",
    )  # fmt: skip


def answered() -> AskAnswered:
    return AskAnswered(
        round="r1", provider="isp", node="office.example", outcome=NodeOutcome.STARTED, code=250, text="Queuing",
        promised=None, seconds=0.5,
    )  # fmt: skip


def opened() -> SessionOpened:
    return SessionOpened(session="s", provider="isp", round="r1", peer="203.0.113.9")


def accepted(message: str, round: str | None = "r1") -> MessageAccepted:
    return MessageAccepted(
        message=message, session="s", provider="isp", round=round, sender="a@x", recipients=("b@y",), bytes=100,
        wire_bytes=120, seconds=0.1,
    )  # fmt: skip


def stored(message: str) -> MessageStored:
    return MessageStored(
        message=message, mailbox="alice", file=f"{message},S=100", bytes=100, round="r1", provider="isp"
    )


WARNED = WarningRaised(warning="peer-refused", subject="isp", text="isp seems to connect from elsewhere", fix="add it")


def remembered(directory: Path, *events: Event) -> None:
    journal = Journal(directory / FILE, keep_days=90, now=lambda: AT)
    journal.open()
    for number, event in enumerate(events):
        journal.record(Stamped(AT + timedelta(seconds=number), event))
    journal.close()


def written(directory: Path, *events: Event, pid: int, state: str = "running") -> None:
    """status.json as an agent of process `pid` wrote it."""
    fold = StatusFold()
    for event in events:
        fold.fold(Stamped(AT, event))
    document = fold.document(
        state=state, pid=pid, since=AT, listener=ListenerView(("0.0.0.0:25",), True), sessions=(), queue=QueueView(),
        providers=[ProviderView("isp", "resting")],
    )  # fmt: skip
    (directory / "status.json").write_text(json.dumps(document))


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[int]:
    """An agent holds the lock; its process id."""
    held = lock.acquire(tmp_path, purpose="run the agent")
    yield lock.lock_holder(tmp_path) or 0
    held.release()


# --- status -----------------------------------------------------------------------------------------------------------


def test_a_running_agent_is_0_and_its_snapshot_is_printed(tmp_path: Path, agent: int) -> None:
    written(tmp_path, started(), ended(), pid=agent)
    said = call(status, tmp_path, "--json")
    assert said.code == 0
    assert said.json == json.loads((tmp_path / "status.json").read_text())


def test_an_agent_that_does_not_run_is_3_whatever_its_file_says(tmp_path: Path) -> None:
    written(tmp_path, started(), ended(), pid=4711)
    said = call(status, tmp_path, "--json")
    assert said.code == 3
    assert (said.json["state"], said.json["listener"]["open"], said.json["sessions_open"]) == ("stopped", False, [])
    assert said.json["providers"][0]["last_round"]["outcome"] == "drained"


def test_the_first_line_says_that_the_agent_does_not_run(tmp_path: Path) -> None:
    written(tmp_path, started(), ended(), pid=4711)
    assert call(status, tmp_path).out.splitlines()[0] == "mail does not flow: the agent is not running"


def test_without_any_state_status_still_answers(tmp_path: Path) -> None:
    said = call(status, tmp_path / "nowhere", "--json")
    assert (said.code, said.json["version"], said.json["state"], said.json["providers"]) == (3, 1, "stopped", [])


def test_without_its_file_the_journal_tells_what_was_last(tmp_path: Path) -> None:
    remembered(tmp_path, started(), answered(), ended(), WARNED)
    document = call(status, tmp_path, "--json").json
    assert document["providers"][0]["last_round"]["outcome"] == "drained"
    assert document["totals"]["rounds"] == 1
    assert [each["name"] for each in document["warnings"]] == ["peer-refused"]


def test_a_file_of_the_agent_before_is_not_taken_for_this_ones(tmp_path: Path, agent: int) -> None:
    written(tmp_path, pid=agent + 1)
    said = call(status, tmp_path, "--json")
    assert (said.code, said.json["state"], said.json["pid"]) == (0, "starting", agent)


@pytest.mark.parametrize(("events", "code"), [((), 0), ((WARNED,), 1)])
def test_check_is_1_while_a_warning_stands(tmp_path: Path, agent: int, events: tuple[Event, ...], code: int) -> None:
    written(tmp_path, *events, pid=agent)
    assert call(status, tmp_path, "--check").code == code
    assert call(status, tmp_path).code == 0


def test_check_of_an_agent_that_does_not_run_is_3(tmp_path: Path) -> None:
    written(tmp_path, WARNED, pid=4711)
    assert call(status, tmp_path, "--check").code == 3


def test_what_waits_is_told_while_nobody_files_it(tmp_path: Path) -> None:
    written(tmp_path, pid=4711)
    owed(tmp_path)
    waiting = call(status, tmp_path, "--json").json["queue"]
    assert (waiting["messages"], waiting["reason"]) == (1, "No space\r\nleft")


@pytest.mark.parametrize("bad", [b"{", b"[]", b"{}", b"\xff"])
def test_a_file_that_is_no_status_is_an_error_that_names_it(tmp_path: Path, bad: bytes) -> None:
    (tmp_path / "status.json").write_bytes(bad)
    with pytest.raises(StorageError, match=r"cannot read .*status\.json"):
        call(status, tmp_path)


def test_a_screen_has_no_colour_codes_of_its_own(tmp_path: Path, agent: int) -> None:
    written(tmp_path, started(), ended(), pid=agent)
    assert all(row.isprintable() for row in call(status, tmp_path).out.splitlines())


def test_watching_shows_a_picture_only_when_something_changed(tmp_path: Path) -> None:
    written(tmp_path, pid=1)
    pauses = 0

    def pause() -> None:
        nonlocal pauses
        pauses += 1
        if pauses == 2:
            written(tmp_path, started(), ended(), pid=1)

    shown = pictures(tmp_path, pause=pause)
    assert [next(shown)[0]["totals"]["rounds"] for _ in range(2)] == [0, 1]
    assert pauses == 2


# --- queue ------------------------------------------------------------------------------------------------------------


def owed(directory: Path) -> None:
    micro = int(AT.timestamp() * 1_000_000)
    with closing(tables.connect(directory)) as db:
        db.execute(
            "INSERT INTO message (id, name, accepted, session, sender, received, flags, size, bare, body, head)"
            " VALUES (1, 'm1', ?, 's', '', x'', 0, 2000, 0, x'', 0)",
            (micro,),
        )
        db.execute("INSERT INTO delivery VALUES (1, 'alice', 'a@y', 3, ?, 'No space\r\nleft')", (micro + 60_000_000,))


def test_what_waits_is_listed_with_its_reason_and_the_next_try(tmp_path: Path) -> None:
    owed(tmp_path)
    (message,) = call(queue, tmp_path, "--json").json["messages"]
    assert message["next_try"] == (AT + timedelta(seconds=60)).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert {key: message[key] for key in ("message", "mailbox", "sender", "bytes", "reason", "tries")} == {
        "message": "m1", "mailbox": "alice", "sender": "", "bytes": 2000, "reason": "No space\r\nleft", "tries": 3,
    }  # fmt: skip


def test_the_table_of_what_waits_has_one_line_a_message(tmp_path: Path) -> None:
    owed(tmp_path)
    head, row = call(queue, tmp_path).out.splitlines()
    assert head.split()[:3] == ["accepted", "mailbox", "size"]
    assert "alice" in row and "2.0 kB" in row and "<>" in row and row.endswith("No space left")


def test_an_empty_queue_is_no_data_and_a_word(tmp_path: Path) -> None:
    said = call(queue, tmp_path)
    assert (said.code, said.out, said.talk) == (0, "", "nothing waits to be filed")
    assert call(queue, tmp_path, "--json").json == {"version": 1, "messages": []}


def test_retry_leaves_a_request_that_the_agent_takes(tmp_path: Path, agent: int) -> None:
    requests.make_folder(tmp_path)
    taken: list[requests.Request] = []
    done = threading.Event()

    def take() -> None:
        while not taken and not done.is_set():
            taken.extend(requests.take(tmp_path))

    taker = threading.Thread(target=take)
    taker.start()
    try:
        said = call(queue, tmp_path, "retry")
    finally:
        done.set()
        taker.join()
    assert said.code == 0
    assert [each.kind for each in taken] == ["retry-queue"]


def test_a_request_that_nobody_takes_is_withdrawn_and_75(tmp_path: Path, agent: int) -> None:
    requests.make_folder(tmp_path)
    with pytest.raises(TemporaryError) as caught:
        retry_queue(tmp_path, seconds=0.0)
    assert caught.value.exit_code is ExitCode.TEMPORARY
    assert list((tmp_path / "requests").iterdir()) == []


def test_retry_without_an_agent_leaves_nothing_and_is_75(tmp_path: Path) -> None:
    requests.make_folder(tmp_path)
    with pytest.raises(TemporaryError, match="the agent is not running"):
        call(queue, tmp_path, "retry")
    assert list((tmp_path / "requests").iterdir()) == []


# --- history ----------------------------------------------------------------------------------------------------------


def test_history_tells_each_round_with_what_it_brought(tmp_path: Path) -> None:
    remembered(tmp_path, started(requests=("q1",)), answered(), opened(), ended())
    (entry,) = call(history, tmp_path, "--json").json["rounds"]
    assert (entry["id"], entry["outcome"], entry["messages"], entry["bytes"]) == ("r1", "drained", 3, 12345)
    assert (entry["asked"], entry["code"], entry["first_connection_seconds"]) == (
        (AT + timedelta(seconds=0.5)).strftime("%Y-%m-%dT%H:%M:%SZ"), 250, 1.5,
    )  # fmt: skip
    assert entry["requests"] == ["q1"]
    assert [node["node"] for node in entry["nodes"]] == ["office.example"]


def test_a_round_that_the_agent_died_in_is_broken_off(tmp_path: Path) -> None:
    remembered(tmp_path, started())
    assert re.search(r" isp +link +not answered, broken off", call(history, tmp_path).out)


def test_the_table_of_rounds_is_plain_and_one_line_each(tmp_path: Path, agent: int) -> None:
    remembered(tmp_path, started(), answered(), opened(), ended(), started("r2"))
    head, first, second = call(history, tmp_path).out.splitlines()
    assert head.split()[:4] == ["started", "provider", "cause", "what"]
    assert re.search(
        r" isp +link +asked \d\d:\d\d:\d\d \(250\), first connection after 1\.5 s, 3 messages, 12\.3 kB"
        r" \(15\.8 kB on the wire\), drained \d\d:\d\d:\d\d$",
        first,
    )
    assert re.search(r" isp +link +not answered, running", second)


def test_rounds_are_limited_and_oldest_first(tmp_path: Path) -> None:
    remembered(tmp_path, *(event for n in range(30) for event in (started(f"r{n}"), ended(f"r{n}"))))
    assert [each["id"] for each in call(history, tmp_path, "--rounds", "2", "--json").json["rounds"]] == ["r28", "r29"]
    assert len(call(history, tmp_path, "--json").json["rounds"]) == 20


def test_since_is_not_limited(tmp_path: Path) -> None:
    remembered(tmp_path, *(event for n in range(30) for event in (started(f"r{n}"), ended(f"r{n}"))))
    assert len(call(history, tmp_path, "--since", "2d", "--json").json["rounds"]) == 30
    assert call(history, tmp_path, "--since", "10m", "--json").json["rounds"] == []


def test_messages_are_told_on_request_with_their_mailbox(tmp_path: Path) -> None:
    remembered(tmp_path, started(), accepted("m1"), stored("m1"), ended())
    (message,) = call(history, tmp_path, "--messages", "--json").json["messages"]
    assert (message["kind"], message["files"]) == ("stored", [{"mailbox": "alice", "file": "m1,S=100"}])
    assert "messages" not in call(history, tmp_path, "--json").json
    assert re.search(r"stored +100 B +a@x +alice$", call(history, tmp_path, "--messages").out)


def test_mail_that_came_unasked_is_always_told(tmp_path: Path) -> None:
    remembered(tmp_path, started(), accepted("m1"), ended(), accepted("m2", round=None))
    assert [each["message"] for each in call(history, tmp_path, "--json").json["unasked"]] == ["m2"]
    assert "came unasked" in call(history, tmp_path).out


def test_unasked_mail_without_any_round_is_told(tmp_path: Path) -> None:
    remembered(tmp_path, accepted("m2", round=None))
    assert "came unasked" in call(history, tmp_path).out


def test_without_a_round_history_says_so(tmp_path: Path) -> None:
    said = call(history, tmp_path)
    assert (said.code, said.out, said.talk) == (0, "", "no round yet")


NOW = datetime(2026, 11, 22, 9, 30, tzinfo=timezone(timedelta(hours=1)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-22T08:00", "2026-11-22T08:00+01:00"),
        ("2026-11-22T08:00:30Z", "2026-11-22T08:00:30+00:00"),
        ("2026-11-22", "2026-11-22T00:00+01:00"),
        ("08:00", "2026-11-22T08:00+01:00"),
        ("10:00", "2026-11-21T10:00+01:00"),
        ("2d", "2026-11-20T09:30+01:00"),
        ("90m", "2026-11-22T08:00+01:00"),
        ("1w", "2026-11-15T09:30+01:00"),
    ],
)
def test_since_understands_a_moment_a_clock_and_a_span(text: str, expected: str) -> None:
    assert parse_since(text, NOW) == datetime.fromisoformat(expected)


@pytest.mark.parametrize("text", ["", "yesterday", "25:00", "2x", "-2d", "999999w", "08:61", "2026-13-01"])
def test_what_is_no_time_is_a_question_of_usage(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_since(text, NOW)
    assert caught.value.exit_code is ExitCode.USAGE and "2d" in str(caught.value)


def test_a_table_leaves_out_empty_columns_and_control_characters() -> None:
    assert table(("a", "b", "c"), [("1", "", "x\x1b[2J\ny")], right=set()) == "a  c\n1  x [2J y"


# --- what a line cost -------------------------------------------------------------------------------------------------


def test_the_cost_of_a_line_is_added_up_by_days(tmp_path: Path) -> None:
    used = [
        LineUsed(interface="ppp0", seconds=60.0, wire_bytes=1000),
        LineUsed(interface="ppp0", seconds=3.5, wire_bytes=5),
    ]
    remembered(tmp_path, *used, started(), ended())
    (day,) = call(history, tmp_path, "--cost", "--json").json["lines"]
    assert day == {
        "day": AT.strftime("%Y-%m-%d"), "interface": "ppp0", "seconds": 63.5, "wire_bytes": 1005, "rounds": 1,
        "messages": 3,
    }  # fmt: skip
    assert re.search(r"ppp0 +1 min 04 s +1\.0 kB +1 +3$", call(history, tmp_path, "--cost").out)


def test_without_any_use_the_cost_is_a_word(tmp_path: Path) -> None:
    assert call(history, tmp_path, "--cost").talk == "no line was used yet"
