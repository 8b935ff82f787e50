"""`host.systemd`: what systemd is told, and what it tells."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from siteagent.host import systemd


@pytest.mark.parametrize("abstract", [False, True])
def test_notify_reaches_whoever_listens(tmp_path: Path, abstract: bool) -> None:
    place = f"@siteagent-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind("\0" + place[1:] if abstract else place)
        assert systemd.notify("READY=1", environment={"NOTIFY_SOCKET": place})
        assert listening.recv(100) == b"READY=1"


@pytest.mark.parametrize("place", ["", "relative", "/nowhere/at/all"])
def test_where_nobody_listens_nothing_happens(place: str) -> None:
    assert not systemd.notify("READY=1", environment={"NOTIFY_SOCKET": place})


def test_without_systemd_nothing_happens() -> None:
    assert not systemd.notify("READY=1", environment={})


def test_a_listener_that_reads_nothing_does_not_hold_us_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(systemd, "_SEND_SECONDS", 0.05)
    place = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(place))
        sent = (systemd.notify("WATCHDOG=1", environment={"NOTIFY_SOCKET": str(place)}) for _ in range(100_000))
        assert not all(sent), "its queue is full, and we go on"


def test_the_watchdog_is_fed_twice_in_its_time() -> None:
    assert systemd.watchdog_seconds({"WATCHDOG_USEC": "30000000"}) == 15.0
    assert systemd.watchdog_seconds({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}) == 15.0


@pytest.mark.parametrize(
    "environment",
    [{}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "soon"}, {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}],
)
def test_no_watchdog_or_one_for_another_process_is_not_fed(environment: dict[str, str]) -> None:
    assert systemd.watchdog_seconds(environment) is None


def test_a_reload_says_when_it_began() -> None:
    first, second = systemd.reloading().splitlines()
    assert first == "RELOADING=1" and second.partition("=")[0] == "MONOTONIC_USEC" and int(second.partition("=")[2])


def test_sockets_for_another_process_are_not_ours_and_no_child_sees_the_variables() -> None:
    environment = {"LISTEN_FDS": "1", "LISTEN_PID": "1", "LISTEN_FDNAMES": "smtp"}
    assert systemd.sockets(environment) == []
    assert environment == {}


@pytest.mark.parametrize("count", ["", "x", "-1", "0"])
def test_a_count_that_is_none_gives_no_sockets(count: str) -> None:
    assert systemd.sockets({"LISTEN_FDS": count, "LISTEN_PID": str(os.getpid())}) == []


def test_passed_sockets_are_taken_unblocking_and_not_inherited() -> None:
    program = (
        "import os, socket\n"
        "held = socket.create_server(('127.0.0.1', 0))\n"
        "os.dup2(held.fileno(), 3)\n"
        "from siteagent.host import systemd\n"
        "environment = {'LISTEN_FDS': '1', 'LISTEN_PID': str(os.getpid())}\n"
        "(own,) = systemd.sockets(environment)\n"
        "print(own.getsockname() == held.getsockname(), own.getblocking(), os.get_inheritable(3))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20)
    assert done.stdout.split() == ["True", "False", "False"], done.stderr
