"""`siteagent init`: what it writes, what it never does."""

from __future__ import annotations

import io
import os
import stat
import sys
from pathlib import Path

import pytest
from siteagent.cli.init import Answers, configuration_text
from siteagent.cli.main import main
from siteagent.config.files import load

ENOUGH = ("--provider", "mx.isp.example", "--node", "office.example", "--mailbox", "alice=alice@office.example")


@pytest.fixture(autouse=True)
def _state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))


def init(folder: Path, *arguments: str) -> int:
    root = () if "--maildir-root" in arguments else ("--maildir-root", str(folder / "mail"))
    return main(["--config", str(folder / "siteagent.toml"), "init", *root, *arguments])


def test_flags_alone_write_a_configuration_that_checks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert init(tmp_path, *ENOUGH, "--yes", "--hostname", "mail.office.example", "--peer", "192.0.2.0/24") == 0
    value = load(tmp_path / "siteagent.toml")
    assert value.hostname == "mail.office.example"
    assert value.provider[0].peers == ("192.0.2.0/24",)
    assert value.mailbox[0].maildir == tmp_path / "mail" / "alice"
    assert capsys.readouterr().out.startswith("ok: ")


def test_unknown_recipients_wait_until_the_first_mail_was_seen(tmp_path: Path) -> None:
    init(tmp_path, *ENOUGH, "--yes")
    assert load(tmp_path / "siteagent.toml").delivery.unknown_recipient == "defer"


def test_every_option_of_the_file_is_explained_above_it(tmp_path: Path) -> None:
    init(tmp_path, *ENOUGH, "--yes")
    rows = (tmp_path / "siteagent.toml").read_text("utf-8").splitlines()
    above = rows[rows.index('host = "mx.isp.example"') - 1]
    assert above == "# Name or address of the server to ask."


def test_the_next_two_commands_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    init(tmp_path, *ENOUGH, "--yes")
    after = capsys.readouterr().out.split("next:\n")[1].splitlines()
    assert [row.partition("#")[0].split()[-1] for row in after] == ["test", "run"]


def test_all_flags_reach_the_file(tmp_path: Path) -> None:
    (tmp_path / "p").write_text("x")
    (tmp_path / "p").chmod(0o600)
    more = ("--method", "atrn", "--username", "u", "--password-file", "p", "--tls", "implicit", "--node", "b.example")
    assert init(tmp_path, *ENOUGH, *more, "--mailbox", "bob=bob@office.example,b@office.example", "--yes") == 0
    value = load(tmp_path / "siteagent.toml")
    provider = value.provider[0]
    assert (provider.method, provider.tls, provider.username, provider.nodes) == (
        "atrn",
        "implicit",
        "u",
        ("office.example", "b.example"),
    )
    assert [box.name for box in value.mailbox] == ["alice", "bob"]


@pytest.mark.parametrize(("given", "reader"), [("dovecot", None), ("root", "root")])
def test_dovecot_reads_as_our_user_and_others_by_name(tmp_path: Path, given: str, reader: str | None) -> None:
    assert init(tmp_path, *ENOUGH, "--reader", given, "--yes") == 0
    assert load(tmp_path / "siteagent.toml").mailbox[0].reader == reader


def test_an_existing_file_is_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "siteagent.toml"
    path.write_text("mine")
    assert init(tmp_path, *ENOUGH, "--yes") == 73
    assert path.read_text() == "mine"
    assert "--force" in capsys.readouterr().err


def test_force_keeps_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "siteagent.toml"
    path.write_text("mine")
    assert init(tmp_path, *ENOUGH, "--yes", "--force") == 0
    assert (tmp_path / "siteagent.toml.bak").read_text() == "mine"
    assert load(path)


def test_a_file_that_appears_between_the_questions_and_the_writing_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "siteagent.toml"

    class Slow(io.StringIO):
        def readline(self, size: int = -1, /) -> str:  # type: ignore[override]
            path.write_text("theirs")
            return super().readline(size)

    monkeypatch.setattr(sys, "stdin", Slow("\n\n\n"))
    assert init(tmp_path, *ENOUGH) == 73
    assert path.read_text() == "theirs"
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []


def test_questions_are_asked_on_stderr_and_again_where_an_answer_will_not_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = "a b\nmx.isp.example\noffice.example\n\n192.0.2.0/24\nal/ice\nalice\n\n\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(answers))
    assert init(tmp_path) == 0
    value = load(tmp_path / "siteagent.toml")
    assert (value.provider[0].host, value.provider[0].peers) == ("mx.isp.example", ("192.0.2.0/24",))
    captured = capsys.readouterr()
    assert value.mailbox[0].addresses == ("alice@office.example",)
    assert "'a b' will not do: give a name or an address, such as mx.isp.example" in captured.err
    assert "'al/ice' will not do: 'al/ice' is no name for a mailbox" in captured.err
    assert "?" not in captured.out


def test_ctrl_c_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(io.StringIO):
        def readline(self, size: int = -1, /) -> str:  # type: ignore[override]
            raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stdin", Interrupted())
    assert init(tmp_path, *ENOUGH) == 130
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_while_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(handle: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    assert init(tmp_path, *ENOUGH, "--yes") == 130
    assert [entry.name for entry in tmp_path.iterdir() if entry.is_file()] == []


@pytest.mark.parametrize("missing", ["--provider", "--mailbox", "--node"])
def test_yes_names_the_flag_that_is_missing(tmp_path: Path, missing: str, capsys: pytest.CaptureFixture[str]) -> None:
    at = ENOUGH.index(missing)
    rest = [*ENOUGH[:at], *ENOUGH[at + 2 :]]
    if missing == "--node":  # with a literal for a name, and no mailbox, there is no domain to guess
        rest = ["--provider", "mx.isp.example", "--ask-only"]
    assert init(tmp_path, *rest, "--yes", "--hostname", "[192.0.2.1]") == 64
    assert f"fix: give {missing}" in capsys.readouterr().err
    assert not (tmp_path / "siteagent.toml").exists()


def test_without_a_node_the_domain_of_the_first_mailbox_is_asked_for(tmp_path: Path) -> None:
    given = [word for word in ENOUGH if word not in ("--node", "office.example")]
    assert init(tmp_path, *given, "--yes", "--hostname", "mail.elsewhere.example") == 0
    assert load(tmp_path / "siteagent.toml").provider[0].nodes == ("office.example",)


def test_asking_only_and_atrn_exclude_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ("--method", "atrn", "--username", "u", "--ask-only", "--yes")
    assert init(tmp_path, "--provider", "hub.example", "--node", "office.example", *more) == 64
    assert "--ask-only and --method atrn exclude each other" in capsys.readouterr().err


def test_the_domain_of_our_name_is_what_is_asked_for_by_default(tmp_path: Path) -> None:
    given = [word for word in ENOUGH if word not in ("--node", "office.example")]
    init(tmp_path, *given, "--yes", "--hostname", "mail.office.example")
    assert load(tmp_path / "siteagent.toml").provider[0].nodes == ("office.example",)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--provider", "a b"),
        ("--hostname", "a b"),
        ("--peer", "x/y"),
        ("--mailbox", "alice"),
        ("--mailbox", "al/ice=a@b.example"),
        ("--mailbox", "alice=nonsense"),
        ("--method", "atrn"),
        ("--mailbox", "bob=alice@office.example"),
    ],
)
def test_answers_that_make_no_configuration_write_nothing(
    tmp_path: Path, arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert init(tmp_path, *ENOUGH, *arguments, "--yes") == 64
    assert not (tmp_path / "siteagent.toml").exists()
    assert "cannot write a configuration" in capsys.readouterr().err


def test_a_configuration_that_cannot_work_yet_is_kept_and_its_problems_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--method", "atrn", "--username", "u", "--password-file", "absent")
    assert init(tmp_path, *ENOUGH, *more, "--yes") == 78
    assert (tmp_path / "siteagent.toml").exists()
    assert "which cannot be used yet" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="file modes are POSIX's")
def test_everybody_may_read_the_configuration_and_nobody_the_maildirs(tmp_path: Path) -> None:
    init(tmp_path, *ENOUGH, "--yes")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("siteagent.toml", "mail")]
    assert modes == [0o644, 0o750]


def test_beside_another_server_a_configuration_asks_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--provider", "mx.isp.example", "--node", "office.example", "--ask-only", "--yes")
    assert init(tmp_path, *arguments) == 0
    value = load(tmp_path / "siteagent.toml")
    assert value.ask_only and value.mailbox == () and value.listener.listen == ()
    after = capsys.readouterr().out.split("next:\n")[1].splitlines()
    assert [row.partition("#")[0].split()[-1] for row in after] == ["ask", "run"]


def test_a_port_is_taken_over_from_a_provider_that_was_looked_at() -> None:
    answers = Answers(provider="mx.isp.example", nodes=["office.example"], port=2525)
    answers.mailboxes = [("alice", ["alice@office.example"])]
    assert "\nport = 2525\n" in configuration_text(answers)


def test_the_whole_machines_file_names_the_services_state_so_that_everybody_finds_it() -> None:
    answers = Answers(provider="mx.isp.example", nodes=["office.example"], state_directory="/var/lib/siteagent")
    answers.mailboxes = [("alice", ["alice@office.example"])]
    assert '\nstate_directory = "/var/lib/siteagent"\n' in configuration_text(answers)
