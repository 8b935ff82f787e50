"""`run` and `link-up`, as processes: what an init system and a hook meet."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from siteagent.cli.main import main
from tests.site import free_port, provider, write

ROOT = Path(__file__).resolve().parent.parent.parent


class Process:
    def __init__(self, path: Path) -> None:
        self.log = path.parent / "log"
        with self.log.open("wb") as stream:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "siteagent", "--config", str(path), "run"], stderr=stream, cwd=ROOT
            )

    def until(self, said: str) -> None:
        self.wait_for(lambda: said in self.log.read_text())

    def wait_for(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < end and self.popen.poll() is None, self.log.read_text()
            time.sleep(0.02)


@contextmanager
def run(path: Path) -> Iterator[Process]:
    process = Process(path)
    try:
        yield process
    finally:
        process.popen.kill()
        process.popen.wait()


def test_run_reloads_at_sighup_and_ends_at_sigterm_with_0(tmp_path: Path) -> None:
    path = write(tmp_path, provider(port=free_port(), interfaces=["none"]))
    with run(path) as process:
        process.until("agent.ready")
        process.popen.send_signal(signal.SIGHUP)
        process.until("config.reloaded")
        process.popen.send_signal(signal.SIGTERM)
        process.popen.send_signal(signal.SIGTERM)
        assert process.popen.wait(20) == 0
        assert "agent.stopping reason=SIGTERM" in process.log.read_text()


def test_s37_a_second_run_exits_73_at_once_and_a_kill_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    path = write(tmp_path, provider(port=free_port(), interfaces=["none"]))
    with run(path) as process:
        process.until("agent.ready")
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        second = subprocess.run(
            [sys.executable, "-m", "siteagent", "--config", str(path), "run"],
            capture_output=True, text=True, timeout=20, cwd=ROOT,
        )  # fmt: skip
        assert (second.returncode, f"process {process.popen.pid} already works" in second.stderr) == (73, True)
        # 2 s of its own work, whatever else the machine has to do; that it waits for nothing the timeout above sees to.
        now = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime < 2
    with run(path) as process:  # the first was killed
        process.until("agent.ready")


@pytest.fixture
def link_up(tmp_path: Path) -> Iterator[Callable[..., int]]:
    before = os.umask(0o022)
    write(tmp_path, provider(port=1))
    yield lambda *arguments: main(["--config", str(tmp_path / "siteagent.toml"), "link-up", *arguments])
    os.umask(before)


def test_link_up_leaves_a_hint_in_the_hook_directory_of_the_configuration(
    tmp_path: Path, link_up: Callable[..., int]
) -> None:
    (tmp_path / "hints").mkdir()
    assert [link_up("ppp0"), link_up()] == [0, 0]
    assert sorted(os.listdir(tmp_path / "hints")) == ["any", "ppp0"]


def test_link_up_without_a_hook_directory_is_73_and_says_who_makes_it(
    link_up: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert link_up("ppp0") == 73
    assert "start the agent, which makes it" in capsys.readouterr().err


def test_link_up_with_what_can_be_no_interface_is_64(tmp_path: Path, link_up: Callable[..., int]) -> None:
    (tmp_path / "hints").mkdir()
    assert link_up("../../etc/passwd") == 64
    assert os.listdir(tmp_path / "hints") == []
