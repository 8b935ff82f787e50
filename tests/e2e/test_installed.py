"""The wheel, installed as a service: started by systemd's socket, woken by a hook."""

from __future__ import annotations

import asyncio
import io
import os
import shutil
import signal
import smtplib
import socket
import subprocess
import sys
import time
import venv
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from siteagent.agent.parts import Agent
from siteagent.config.files import load
from siteagent.config.sections import LogFormat, LogLevel
from siteagent.events import AgentReady, Event, Line, MessageStored, Outcome, RoundEnded, RoundStarted
from siteagent.logs import LogWriter

ROOT = Path(__file__).parents[2]
HOOK = ROOT / "systemd" / "hooks" / "link-hook"
MESSAGE = b"From: a@x.test\r\nTo: alice@office.example\r\nSubject: by the service\r\n\r\nhello\r\n"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait(condition: Callable[[], object], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with what `install-service` wrote from a built wheel; its program is ``usr/lib/siteagent/start``."""
    base = tmp_path_factory.mktemp("installed")
    built = subprocess.run(
        [sys.executable, "-c", f"from hatchling.build import build_wheel; print(build_wheel({str(base)!r}))"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    venv.create(base / "venv", with_pip=False, symlinks=True)
    python = base / "venv/bin/python"
    (packages,) = (base / "venv/lib").glob("python3.*/site-packages")
    with zipfile.ZipFile(base / built.stdout.split()[-1]) as wheel:
        wheel.extractall(packages)
    # The dependencies are those that the tests run with.
    (packages / "dependencies.pth").write_text("".join(f"{place}\n" for place in sys.path if "site-packages" in place))
    done = subprocess.run(
        [python, "-I", "-m", "siteagent", "install-service", "--root", base / "root"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return base / "root"


@pytest.fixture
def notified(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(tmp_path / "notify"))
        told.settimeout(10)
        yield told


def _configuration(directory: Path, *, port: int = 25, more: str = "") -> Path:
    path = directory / "siteagent.toml"
    path.write_text(
        f'hostname = "mail.office.example"\nstate_directory = "{directory}/state"\n'
        f'[link]\nsettle_seconds = 0.2\npoll_seconds = 60\nhook_directory = "{directory}/hints"\n{more}'
        f'[[provider]]\nname = "isp"\nhost = "127.0.0.1"\nport = {port}\nnodes = ["office.example"]\n'
        f'[listener]\nlisten = ["127.0.0.1:25"]\n'
        f'[[mailbox]]\naddresses = ["alice@office.example"]\nmaildir = "{directory}/alice"\n'
    )
    return path


@pytest.mark.tools("systemd-socket-activate")
def test_a_socket_of_systemd_starts_the_installed_command_and_it_takes_a_message(
    installed: Path, tmp_path: Path, notified: socket.socket
) -> None:
    port = _free_port()
    # Nobody asks here: the provider's port is ours, and closed.
    configuration = _configuration(tmp_path, port=_free_port())
    argv: Sequence[str | Path] = [
        "systemd-socket-activate",
        "-l",
        f"127.0.0.1:{port}",
        "--fdname=smtp",
        "-E",
        f"NOTIFY_SOCKET={tmp_path}/notify",
        "-E",
        "WATCHDOG_USEC=400000",
        installed / "usr/lib/siteagent/start",
        "--config",
        configuration,
        "run",
    ]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
    try:
        assert _wait(lambda: _listens(port))
        with smtplib.SMTP("127.0.0.1", port, timeout=20) as client:
            client.sendmail("a@x.test", ["alice@office.example"], MESSAGE)
        assert _wait(lambda: list((tmp_path / "alice/new").glob("*")))
        (filed,) = (tmp_path / "alice/new").iterdir()
        assert b"Subject: by the service" in filed.read_bytes()
        said = [notified.recv(4096).decode() for _ in range(2)]
        assert said[0].startswith("READY=1\nMAINPID=")
        assert said[1] == "WATCHDOG=1"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        _, log = process.communicate(timeout=20)
    assert process.returncode == 0, log.decode()


def _listens(port: int) -> bool:
    needle = f":{port:04X} 00000000:0000 0A"
    return needle in Path("/proc/net/tcp").read_text()


class _Way:
    """An oracle whose line comes up when a test says so, and which nobody but a hint makes look."""

    def __init__(self) -> None:
        self.up = False

    def lines(self, addresses: Sequence[str]) -> tuple[Line, ...]:
        return (Line("ppp0", "127.0.0.1", None),) if self.up else ()


@pytest.mark.tools("dash")
def test_from_a_hook_to_the_round_it_takes_under_a_tenth_of_a_second_beyond_settle(tmp_path: Path) -> None:
    # Polled every minute and without netlink: the hook alone can be what wakes the agent.
    configuration = load(_configuration(tmp_path, port=_free_port(), more='backend = "poll"\n'))
    way = _Way()
    seen: list[tuple[float, Event]] = []
    log = LogWriter(io.StringIO(), format=LogFormat.TEXT, level=LogLevel.INFO, file=None, rotate=None)

    async def work() -> float:
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            agent = Agent(
                configuration,
                log=log,
                sockets=[listening],
                oracle=way,
                observe=lambda event: seen.append((time.monotonic(), event)),
            )
            running = asyncio.ensure_future(agent.run())
            while not any(isinstance(event, AgentReady) for _, event in seen):
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.5)  # the hook directory is watched
            way.up = True
            hook = await asyncio.create_subprocess_exec(
                "dash",
                str(HOOK),
                "ppp0",
                "up",
                env={"PATH": "/usr/bin:/bin", "SITEAGENT_HOOK_DIRECTORY": str(tmp_path / "hints")},
            )
            began = time.monotonic()
            await hook.wait()
            while not any(isinstance(event, RoundStarted) for _, event in seen) and time.monotonic() < began + 5:
                await asyncio.sleep(0.001)
            agent.stop("test")
            await running
            return next(at for at, event in seen if isinstance(event, RoundStarted)) - began

    taken = asyncio.run(work())
    print(f"{taken * 1000:.0f} ms, settle 200 ms")
    assert 0.2 <= taken < 0.3


@pytest.mark.skipif(shutil.which("man") is None, reason="man missing: python3 tests/check.py --system-packages")
def test_the_manual_is_installed_where_man_finds_it(installed: Path) -> None:
    done = subprocess.run(
        ["man", "-M", installed / "usr/local/share/man", "-w", "siteagent"], capture_output=True, text=True
    )
    assert done.stdout.strip().endswith("man1/siteagent.1")


def test_a_warning_of_a_running_agent_is_a_note_in_the_postmasters_maildir(tmp_path: Path) -> None:
    configuration = load(_configuration(tmp_path, port=_free_port(), more='backend = "poll"\n'))
    log = LogWriter(io.StringIO(), format=LogFormat.TEXT, level=LogLevel.INFO, file=None, rotate=None)
    seen: list[Event] = []

    async def work() -> None:
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            agent = Agent(configuration, log=log, sockets=[listening], oracle=_Way(), observe=seen.append)
            running = asyncio.ensure_future(agent.run())
            await agent.ready.wait()
            for _ in range(2):
                refusal = {"round": "r", "provider": "isp", "outcome": Outcome.REFUSED, "reason": "554 go away"}
                figures = dict.fromkeys(
                    ("sessions", "messages", "files", "duplicates", "refused", "bytes", "wire_bytes"), 0
                )
                agent.teller.emit(RoundEnded(**refusal, **figures, seconds=1.0, link_interface="ppp0"))  # type: ignore[arg-type]
            while not any(isinstance(event, MessageStored) for event in seen):
                await asyncio.sleep(0.01)
            agent.stop("test")
            await running

    asyncio.run(asyncio.wait_for(work(), 20))
    (note,) = (tmp_path / "alice/new").iterdir()
    text = note.read_text()
    assert "Subject: siteagent: A provider refuses to send our mail\n" in text
    assert "554 go away" in text and "run `siteagent doctor`" in text
