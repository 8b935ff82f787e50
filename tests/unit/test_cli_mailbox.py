"""`siteagent mailbox`: the file keeps what people wrote, and gains exactly one table."""

from __future__ import annotations

import json
import os
import stat
import sys
import tempfile
from pathlib import Path

import pytest
from siteagent.cli.main import main
from siteagent.config.files import load

TEXT = """\
# Our office. Do not touch on Fridays.
hostname = "mail.office.example"
state_directory = "{0}/state"

[[provider]]
host = "192.0.2.1"   # the old one
nodes = ["office.example"]

[[mailbox]]
addresses = ["alice@office.example"]
maildir = "{0}/mail/alice"
# alice wants her reports kept

# Hooks hang up the line.
[journal]
keep_days = 30
"""


def written(place: Path) -> Path:
    (place / "mail").mkdir()
    (place / "state").mkdir()
    file = place / "siteagent.toml"
    file.write_text(TEXT.format(place))
    file.chmod(0o640)
    return file


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return written(tmp_path)


def run(path: Path, *arguments: str) -> int:
    return main(["--config", str(path), "mailbox", *arguments])


def test_a_mailbox_is_added_and_every_other_line_stays(path: Path, tmp_path: Path) -> None:
    before = path.read_text().splitlines()
    assert run(path, "add", "bob", "bob@office.example", "b@office.example") == 0
    after = path.read_text().splitlines()
    fresh = [
        "[[mailbox]]",
        'name = "bob"',
        'addresses = ["bob@office.example", "b@office.example"]',
        f'maildir = "{tmp_path}/mail/bob"',
    ]
    start = after.index('name = "bob"') - 1
    assert after[start : start + 4] == fresh
    left = after[:start] + after[start + 4 :]
    assert [line for line in left if line] == [line for line in before if line]
    assert after.index("[journal]") > start > after.index(f'maildir = "{tmp_path}/mail/alice"')


def test_the_maildir_is_made_and_the_mode_of_the_file_stays(path: Path, tmp_path: Path) -> None:
    run(path, "add", "bob", "bob@office.example")
    for part in ("tmp", "new", "cur"):
        assert (tmp_path / "mail/bob" / part).is_dir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_what_the_provider_and_dovecot_must_know_is_said(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(path, "add", "bob", "bob@branch.example")
    said = capsys.readouterr().out
    assert f"mail_location = maildir:{tmp_path}/mail/bob" in said
    assert "it must take mail for branch.example now" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("alice", "a@office.example"), "there is one of that name"),
        (("bob", "alice@office.example"), "alice@office.example"),
        (("bob", "nobody"), "nobody is no mail address"),
        (("../bob", "bob@office.example"), "no name for a mailbox"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_written(
    path: Path, arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = path.read_bytes()
    assert run(path, "add", *arguments) == 64
    assert words in capsys.readouterr().err
    assert path.read_bytes() == before


def test_s50_a_mailbox_from_the_command_line_stays_in_its_place(path: Path) -> None:
    """The name is a directory's: nothing that leads elsewhere is one."""
    for name in ("..", "a/b", ".hidden", "a\nb", "", "-x"):
        assert run(path, "add", "--", name, "x@office.example") in (2, 64)
    assert [box.name for box in load(path).mailbox] == ["alice"]


def test_a_bracket_inside_a_long_text_is_no_table(path: Path) -> None:
    text = path.read_text().replace(
        "keep_days = 30\n", 'keep_days = 30\n[hooks]\nround_ended = ["echo", """\\\n[[mailbox]]"""]\n'
    )
    path.write_text(text)
    assert run(path, "add", "bob", "bob@office.example") == 0
    value = load(path)
    assert [box.name for box in value.mailbox] == ["alice", "bob"]
    assert value.hooks.commands["round_ended"] == ("echo", "[[mailbox]]")


def test_the_list_counts_what_lies_there(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mail/alice/new").mkdir(parents=True)
    (tmp_path / "mail/alice/new/1").write_text("x")
    assert run(path, "list", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["version"] == 1
    (box,) = document["mailboxes"]
    assert (box["name"], box["new"], box["cur"], box["reader"]) == ("alice", 1, 0, None)
    assert run(path, "list") == 0
    assert "alice@office.example" in capsys.readouterr().out


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="root's own test; run it as root")
def test_a_maildir_made_by_root_belongs_to_the_owner_of_the_state() -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as made:  # pytest's own directories are closed to other users
        place = Path(made)
        place.chmod(0o755)
        path = written(place)
        os.chown(place / "state", 5, 5)
        assert run(path, "add", "bob", "bob@office.example") == 0
        assert (place / "mail/bob/new").stat().st_uid == 5


def test_where_another_server_receives_no_mailbox_is_added(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asking_only = path.read_text().partition("[[mailbox]]")[0] + "[listener]\nlisten = []\n"
    path.write_text(asking_only)
    assert run(path, "add", "bob", "bob@office.example") == 64
    assert "another mail server receives here" in capsys.readouterr().err
    assert path.read_text() == asking_only


@pytest.mark.skipif(sys.platform == "win32", reason="readers are local users of POSIX systems")
def test_a_reader_who_is_nobody_is_refused_before_anything_is_written(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = path.read_text()
    assert run(path, "add", "bob", "bob@office.example", "--reader", "no-such-user") == 64
    assert "there is no user no-such-user here" in capsys.readouterr().err
    assert path.read_text() == before


def test_where_another_server_receives_the_list_says_so(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.write_text(path.read_text().partition("[[mailbox]]")[0] + "[listener]\nlisten = []\n")
    assert run(path, "list") == 0
    captured = capsys.readouterr()
    assert captured.out == "" and "another mail server receives here" in captured.err
