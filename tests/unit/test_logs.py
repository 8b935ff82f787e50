"""The log: one event is one line whatever is in it, and no secret is in it."""

import io
import json
import os
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from siteagent.config.sections import LogFormat, LogLevel
from siteagent.events import (
    AskAnswered,
    AskFailed,
    HookFailed,
    LinkDown,
    MessageAccepted,
    MessageRefused,
    NodeOutcome,
    Outcome,
    RoundEnded,
    SessionOpened,
    Severity,
    Stamped,
)
from siteagent.logs import MAX_VALUE, LogWriter, line, quoted, under_journald

AT = datetime(2026, 11, 22, 8, 0, 0, 123456, tzinfo=UTC)


def ended(**changes: object) -> RoundEnded:
    values = {
        "round": "r1",
        "provider": "isp",
        "outcome": Outcome.DRAINED,
        "sessions": 2,
        "messages": 3,
        "files": 4,
        "duplicates": 0,
        "refused": 0,
        "bytes": 12345,
        "wire_bytes": 15800,
        "seconds": 28.1,
        "link_interface": "ppp0",
    }
    return RoundEnded(**{**values, **changes})  # type: ignore[arg-type]


def refused(reason: str = "", sender: str = "", recipient: str = "") -> MessageRefused:
    return MessageRefused(
        session="s", provider=None, round=None, sender=sender, recipient=recipient, code=550, reason=reason, bytes=0
    )


def text(event, **options) -> str:
    return line(Stamped(AT, event), format=LogFormat.TEXT, **options)


def parsed(event, **options) -> dict:
    return json.loads(line(Stamped(AT, event), format=LogFormat.JSON, **options))


def test_a_line_has_time_level_name_and_fields_in_the_order_of_the_class() -> None:
    assert text(ended()) == (
        "2026-11-22T08:00:00Z info round.ended round=r1 provider=isp outcome=drained sessions=2 messages=3 files=4"
        " duplicates=0 refused=0 bytes=12345 wire_bytes=15800 seconds=28.1 link_interface=ppp0 ask_bytes=0"
    )


def test_absent_fields_are_left_out_of_text_and_null_in_json() -> None:
    assert "provider" not in text(refused())
    assert parsed(refused())["provider"] is None


def test_the_null_sender_is_shown() -> None:
    assert 'sender=""' in text(refused())


def test_json_has_time_level_event_and_every_field() -> None:
    document = parsed(ended())
    assert list(document)[:4] == ["time", "level", "event", "round"]
    assert (document["time"], document["event"], document["outcome"]) == (
        "2026-11-22T08:00:00.123Z",
        "round.ended",
        "drained",
    )


def test_under_journald_a_line_has_a_priority_and_no_time() -> None:
    event = HookFailed(hook="round.ended", command="x", reason="y")
    assert text(event, with_time=False, with_priority=True).startswith("<3>error hook.failed ")


@given(st.text())
def test_a_quoted_value_is_a_json_string(value: str) -> None:
    shown = quoted(value)
    assert (json.loads(shown) if shown.startswith('"') else shown) == value


@given(st.text(), st.text(), st.text())
def test_s57_one_event_is_one_printable_line_whatever_is_in_it(reason: str, sender: str, recipient: str) -> None:
    event = refused(reason, sender, recipient)
    assert text(event).isprintable()
    assert re.fullmatch(r"[ -~]+", line(Stamped(AT, event), format=LogFormat.JSON))


@pytest.mark.parametrize(
    "bad", ["\r\n2026 info forged", "\x1b[2J", "\x9b2J", "\u2028x", "\u202ex", "\x00", "\x7f", "\ud800"]
)
def test_s57_line_ends_escapes_and_turned_text_do_not_reach_the_log(bad: str) -> None:
    shown = text(refused(reason=bad))
    assert shown.count("\n") == 0 and bad not in shown and shown.isprintable()


def test_s57_a_forged_field_stays_inside_its_quotes() -> None:
    assert 'reason="x\\" code=250 y=\\""' in text(refused(reason='x" code=250 y="'))


@pytest.mark.parametrize("format", list(LogFormat))
def test_s57_a_server_that_quotes_our_auth_command_back_does_not_put_the_password_into_the_log(format) -> None:
    event = AskFailed(
        round="r",
        provider="isp",
        stage="auth",
        code=501,
        temporary=False,
        reason="501 syntax error: AUTH PLAIN AG9mZmljZQBzM2NyZXQ=",
    )
    assert "AG9mZmljZQ" not in line(Stamped(AT, event), format=format)


def test_a_value_of_any_length_stays_within_what_journald_takes() -> None:
    event = MessageAccepted(
        message="m",
        session="s",
        provider=None,
        round=None,
        sender="x" * 100_000,
        recipients=tuple(f"user{n}@office.example" for n in range(5000)),
        bytes=1,
        wire_bytes=1,
        seconds=0,
    )
    assert len(text(event)) < 3 * MAX_VALUE
    assert len(line(Stamped(AT, event), format=LogFormat.JSON)) < 3 * MAX_VALUE


def test_the_marks_of_a_list_are_a_comma_and_absence_when_it_is_empty() -> None:
    event = AskAnswered(
        round="r",
        provider="isp",
        node="n",
        outcome=NodeOutcome.STARTED,
        code=250,
        text="ok",
        promised=None,
        seconds=0.25,
    )
    assert text(event).endswith("node=n outcome=started code=250 text=ok seconds=0.25")


# --- where lines go ---------------------------------------------------------------------------------------------------


def test_what_is_below_the_level_is_not_written() -> None:
    out = io.StringIO()
    log = LogWriter(out, level=LogLevel.WARNING, environment={})
    log.write(Stamped(AT, ended()))
    log.write(Stamped(AT, refused()))
    assert [row.split()[2] for row in out.getvalue().splitlines()] == ["message.refused"]


def test_journald_is_recognized_by_the_device_and_inode_of_the_stream(tmp_path: Path) -> None:
    with (tmp_path / "stderr").open("w") as stream:
        status = os.fstat(stream.fileno())
        assert under_journald(stream, {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"})
        assert not under_journald(stream, {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino + 1}"})
        assert not under_journald(stream, {})


def test_a_stream_without_a_descriptor_is_not_journald() -> None:
    assert not under_journald(io.StringIO(), {"JOURNAL_STREAM": "8:1"})


def test_a_writer_under_journald_leaves_the_time_to_it(tmp_path: Path) -> None:
    with (tmp_path / "stderr").open("w") as stream:
        status = os.fstat(stream.fileno())
        LogWriter(stream, environment={"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}).write(
            Stamped(AT, ended())
        )
    assert (tmp_path / "stderr").read_text().startswith("<6>info round.ended ")


def test_a_file_is_not_for_everybody_and_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "log"
    for _ in range(2):
        log = LogWriter(io.StringIO(), file=path)
        log.write(Stamped(AT, ended()))
        log.close()
    assert len(path.read_text().splitlines()) == 2
    assert path.stat().st_mode & 0o007 == 0


def test_a_file_that_was_moved_away_is_opened_anew(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = LogWriter(io.StringIO(), file=path)
    log.write(Stamped(AT, ended()))
    path.rename(tmp_path / "log.1")
    log.write(Stamped(AT, ended()))
    log.close()
    assert len(path.read_text().splitlines()) == 1


def test_a_full_file_is_shifted_and_the_oldest_goes(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = LogWriter(io.StringIO(), file=path, rotate=(1, 3))
    for number in range(5):
        log.write(Stamped(AT, ended(messages=number)))
    log.close()
    held = {each.name: re.findall(r" messages=(\d)", each.read_text()) for each in tmp_path.iterdir()}
    assert held == {"log": ["4"], "log.1": ["3"], "log.2": ["2"]}


class Broken(io.StringIO):
    broken = True

    def write(self, text: str) -> int:
        if self.broken:
            raise OSError(28, "No space left on device")
        return super().write(text)


def test_a_disk_that_refuses_costs_lines_and_says_how_many() -> None:
    out = Broken()
    log = LogWriter(out, environment={})
    log.write(Stamped(AT, ended()))
    log.write(Stamped(AT, ended()))
    out.broken = False
    log.write(Stamped(AT, ended()))
    rows = out.getvalue().splitlines()
    assert rows[0] == "2026-11-22T08:00:00Z warning log.lost lines=2"
    assert rows[1].split()[2] == "round.ended" and len(rows) == 2


class Later:
    """`call_later` by hand."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []

    def __call__(self, seconds: float, call: Callable[[], None]) -> None:
        self.calls.append(call)


def test_gathered_lines_are_written_together_and_in_order() -> None:
    out, later = io.StringIO(), Later()
    log = LogWriter(out, environment={})
    log.gather(later)
    log.write(Stamped(AT, opened()))
    log.write(Stamped(AT, opened()))
    assert out.getvalue() == "" and len(later.calls) == 1
    later.calls[0]()
    assert [row.split()[2] for row in out.getvalue().splitlines()] == ["session.opened"] * 2


def opened() -> SessionOpened:
    return SessionOpened(session="s1", provider="isp", round=None, peer="192.0.2.1")


def test_what_comes_in_no_crowds_is_written_at_once_and_behind_what_waits() -> None:
    out = io.StringIO()
    log = LogWriter(out, environment={})
    log.gather(Later())
    log.write(Stamped(AT, opened()))
    log.write(Stamped(AT, ended()))
    log.write(Stamped(AT, opened()))
    log.note(AT, "a note")
    rows = [row.split()[2] for row in out.getvalue().splitlines()]
    assert rows == ["session.opened", "round.ended", "session.opened", "note"]


@pytest.mark.parametrize("end", [LogWriter.close, lambda log: log.gather(None)])
def test_at_the_end_nothing_waits_any_more(end: Callable[[LogWriter], None]) -> None:
    out = io.StringIO()
    log = LogWriter(out, environment={})
    log.gather(Later())
    log.write(Stamped(AT, opened()))
    end(log)
    log.write(Stamped(AT, opened()))
    assert out.getvalue().count("session.opened") == (2 if end is not LogWriter.close else 1)


def test_lines_that_waited_are_lost_together_and_counted_one_by_one() -> None:
    out, later = Broken(), Later()
    log = LogWriter(out, environment={})
    log.gather(later)
    for _ in range(3):
        log.write(Stamped(AT, opened()))
    later.calls[0]()
    out.broken = False
    log.write(Stamped(AT, refused()))
    assert out.getvalue().splitlines()[0] == "2026-11-22T08:00:00Z warning log.lost lines=3"


def test_no_more_than_a_bound_of_lines_waits() -> None:
    out = io.StringIO()
    log = LogWriter(out, environment={})
    log.gather(Later())
    for _ in range(600):
        log.write(Stamped(AT, opened()))
    assert out.getvalue().count("\n") >= 100


def test_a_note_is_one_line_too() -> None:
    out = io.StringIO()
    LogWriter(out, environment={}).note(AT, "a\nb", severity=Severity.INFO)
    assert out.getvalue() == '2026-11-22T08:00:00Z info note text="a\\nb"\n'


def test_a_line_that_went_down_shows_its_cause() -> None:
    event = LinkDown(provider="isp", interface="ppp0", cause="netlink")
    assert text(event) == "2026-11-22T08:00:00Z info link.down provider=isp interface=ppp0 cause=netlink"
