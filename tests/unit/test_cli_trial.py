"""`test`: a marked message, followed hop by hop; the first one that fails is named."""

from __future__ import annotations

import os
import re
import signal
import smtplib
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from siteagent.cli import rounds, trial
from siteagent.cli.main import main
from siteagent.config.sections import Provider
from tests.site import ALICE, REFUSED, STARTED, free_port, played, provider, write

TAKES = """\
S: 220 mx.isp.example ESMTP
C: EHLO *
S: 250-mx.isp.example
S: 250 8BITMIME
C: MAIL FROM:<>*
S: 250 ok
C: RCPT TO:<*
S: 250 ok
C: DATA
S: 354 go on
"""
REFUSES = TAKES.partition("C: RCPT")[0] + "C: RCPT TO:<*\nS: 550 5.7.1 relaying denied\nC: *\nS: 250 ok"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The pauses, not the way."""
    monkeypatch.setattr(trial, "_DIRECT_SECONDS", 0.05)
    monkeypatch.setattr(trial, "_BETWEEN_ASKS_SECONDS", 0.05)
    monkeypatch.setattr(trial, "_ASKS", 1)
    before = os.umask(0o022)
    yield
    os.umask(before)


def message_dialogue() -> str:
    lines = ["C: From: *", "C: To: *", "C: Subject: *", "C: Date: *", "C: Message-ID: *", "C: X-Siteagent-Test: *"]
    lines += ["C: Auto-Submitted: *", "C: ", "C: This message *", "C: .", "S: 250 queued as 1"]
    return TAKES + "\n".join(lines)


def run(tmp_path: Path, *dialogues: str, brings: bool = False, arguments: tuple[str, ...] = (), **options: Any) -> int:
    port = free_port()
    with played(*dialogues) as isp:
        write(
            tmp_path,
            provider(port=isp.port, **{"first_connection_seconds": 1 if brings else 0.2, **options}),
            listen=[f"127.0.0.1:{port}"],
        )
        over = threading.Event()

        def bring_it() -> None:
            while not over.wait(0.01):
                if any(line.startswith("ETRN") for line in isp.heard):
                    time.sleep(0.05)
                    mark = next(line for line in isp.heard if line.startswith("X-Siteagent-Test"))
                    with smtplib.SMTP("127.0.0.1", port, local_hostname="mx.isp.example", timeout=5) as client:
                        client.sendmail("", [ALICE], f"Subject: x\r\n{mark}\r\n\r\nHello.\r\n")
                    return

        follower = threading.Thread(target=bring_it, daemon=True)
        if brings:
            follower.start()
        code = main(["--config", str(tmp_path / "siteagent.toml"), "test", *arguments])
        over.set()
        if brings:
            follower.join(5)
    return code


def test_each_hop_is_told_with_its_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, message_dialogue(), STARTED, brings=True) == 0
    took, asked, connected, there = capsys.readouterr().out.splitlines()
    assert took.startswith(f"1. isp took the message for {ALICE} (250 queued as 1) after ")
    assert asked.startswith("2. asked isp (office.example: 250 Queuing started) after ")
    assert connected.startswith("3. isp connected and brought 1 message after ")
    assert there.startswith(f"4. it is in the Maildir of {ALICE} after ")


def test_a_hop_has_its_own_time_and_not_that_of_the_rounds_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, message_dialogue(), STARTED, brings=True, quiet_seconds=4) == 0
    times = [float(re.findall(r"after (\d+\.\d) s", row)[-1]) for row in capsys.readouterr().out.splitlines()]
    assert times == sorted(times) and times[-1] - times[1] < 3, times


def test_a_provider_that_does_not_take_it_is_the_first_hop_that_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, REFUSES) == 69
    said = capsys.readouterr().err
    assert f"isp does not take mail for {ALICE}" in said and "relaying denied" in said


def test_a_provider_that_refuses_to_be_asked_is_69(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, message_dialogue(), REFUSED) == 69
    assert "isp refuses to be asked" in capsys.readouterr().err


def test_a_provider_that_never_calls_is_75_and_the_fix_says_what_to_ask(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, message_dialogue(), STARTED) == 75
    said = capsys.readouterr().err
    assert "isp does not call" in said and "ask the provider where it sends mail for office.example" in said


def test_of_several_providers_one_must_be_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, provider("a", port=1), provider("b", port=2, nodes=["b.example"]))
    assert main(["--config", str(tmp_path / "siteagent.toml"), "test"]) == 64
    assert "name one of them: a, b" in capsys.readouterr().err


def test_where_only_whole_domains_are_known_an_address_is_wanted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = '[[mailbox]]\nname = "all"\naddresses = ["@office.example"]\nmaildir = "mail/all"\n'
    write(tmp_path, provider(port=1), more=more, mailbox=False)
    assert main(["--config", str(tmp_path / "siteagent.toml"), "test"]) == 64
    assert "--to ADDRESS" in capsys.readouterr().err


def test_where_another_server_receives_it_cannot_be_followed_and_nothing_is_sent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = '[[provider]]\nhost = "127.0.0.1"\nport = 1\nnodes = ["office.example"]\n[listener]\nlisten = []\n'
    (tmp_path / "siteagent.toml").write_text(f'state_directory = "{tmp_path}/state"\n{text}')
    assert main(["--config", str(tmp_path / "siteagent.toml"), "test", "--to", "bob@office.example"]) == 64
    assert "another mail server receives here" in capsys.readouterr().err


def test_what_is_no_address_is_not_sent_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, provider(port=1))
    assert main(["--config", str(tmp_path / "siteagent.toml"), "test", "--to", "bob"]) == 64
    assert "bob is no mail address" in capsys.readouterr().err


def test_ctrl_c_ends_it_and_nobody_is_asked_again(tmp_path: Path) -> None:
    with played(message_dialogue(), STARTED, STARTED) as isp:
        write(tmp_path, provider(port=isp.port, first_connection_seconds=20), listen=["127.0.0.1:0"])

        def interrupt() -> None:
            while not any(line.startswith("ETRN") for line in isp.heard):
                time.sleep(0.02)
            time.sleep(0.2)
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=interrupt, daemon=True).start()
        assert main(["--config", str(tmp_path / "siteagent.toml"), "test"]) == 130
        assert sum(line.startswith("ETRN") for line in isp.heard) == 1


@pytest.mark.parametrize(("seconds_before", "messages", "early"), [(5, 0, True), (5, 1, False), (-1, 0, False)])
def test_a_round_that_asked_before_the_message_was_there_does_not_count(
    seconds_before: int, messages: int, early: bool
) -> None:
    started = datetime.now(UTC) - timedelta(seconds=seconds_before)
    latest = {"started": started.strftime("%Y-%m-%dT%H:%M:%SZ"), "messages": messages}
    here = trial._Trial("mark", ALICE, None, time.monotonic())
    asked = rounds.Asked({"isp": latest})
    section = Provider(name="isp", host="mx.isp.example", nodes=("office.example",))
    assert trial._asked_too_early(asked, section, here) is early
