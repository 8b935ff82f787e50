"""`siteagent provider-sheet`: everything that a provider must know, and the settings of its server."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from siteagent.cli.main import main


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "mail").mkdir()
    file = tmp_path / "siteagent.toml"
    file.write_text(
        f'hostname = "mail.office.example"\nstate_directory = "{tmp_path}/state"\n'
        '[[provider]]\nname = "isp"\nhost = "mx.isp.example"\nnodes = ["office.example"]\n'
        'reached_as = "office.dyn.example"\n'
        f'[[mailbox]]\naddresses = ["alice@office.example"]\nmaildir = "{tmp_path}/mail/alice"\n'
    )
    return file


def printed(path: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["--config", str(path), "provider-sheet", *arguments]) == 0
    return capsys.readouterr().out


def test_the_sheet_says_everything_that_has_cost_somebody_mail(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = printed(path, capsys)
    for words in (
        "by ETRN (RFC 1985) for: office.example",
        "takes it at office.dyn.example, port 25",
        "Keep what you cannot deliver",
        "Hold the mail until we ask",
        "never park it on 127.0.0.1",
        "every network that you send from",
        "  alice@office.example\n  postmaster@office.example",
    ):
        assert words in said, words


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ("postfix", "transport_maps = inline:{office.example=site:[office.dyn.example]:25}"),
        ("postfix", "defer_transports = site"),
        ("exim", "route_list = * office.dyn.example::25 byname"),
        ("exim", "queue_smtp_domains"),
        ("sendmail", "confTO_QUEUERETURN"),
    ],
)
def test_each_server_has_its_settings(path: Path, form: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert words in printed(path, capsys, "--for", form)


def test_atrn_needs_no_name_of_ours(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    secret = tmp_path / "p"
    secret.write_text("x")
    secret.chmod(0o600)
    text = path.read_text().replace("reached_as = ", 'method = "atrn"\nusername = "office"\nreached_as = ')
    path.write_text(text.replace("reached_as", f'password_file = "{secret}"\nreached_as'))
    said = printed(path, capsys)
    assert 'logs in as "office" and fetches it by ATRN' in said and "127.0.0.1" not in said


def test_a_backup_is_asked_to_be_one(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = path.read_text().partition("[[mailbox]]")[0]
    path.write_text(text + "[listener]\nlisten = []\n")
    said = printed(path, capsys)
    assert "be the backup for the mail of office.example" in said
    assert "our mail server takes it at office.dyn.example, port 25" in said
    assert "no other MX" not in said and "(all)" not in said and "turned away" not in said


def test_a_provider_that_is_not_there_is_said(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", str(path), "provider-sheet", "ipx"]) == 64
    assert "known: isp" in capsys.readouterr().err


@pytest.mark.tools("postconf")
def test_postfix_takes_the_settings_that_are_printed(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = printed(path, capsys, "--for", "postfix").partition("main.cf")[2]
    settings = [row.strip() for row in said.splitlines() if " = " in row and row.startswith("  ")]
    assert len(settings) == 8
    etc = tmp_path / "etc"
    etc.mkdir()
    (etc / "main.cf").write_text("compatibility_level = 3.6\n" + "\n".join(settings) + "\n")
    (etc / "master.cf").write_text("site unix - - n - - smtp\n")
    done = subprocess.run(["postconf", "-c", str(etc), "-n"], capture_output=True, text=True)
    assert "warning" not in done.stderr and "unused parameter" not in done.stderr, done.stderr
    found = subprocess.run(
        ["postmap", "-c", str(etc), "-q", "office.example", "inline:{office.example=site:[office.dyn.example]:25}"],
        capture_output=True,
        text=True,
    )
    assert found.stdout.strip() == "site:[office.dyn.example]:25", found.stderr
