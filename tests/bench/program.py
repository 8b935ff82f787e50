"""`siteagent run` and `siteagent hub run` as people run them, on loopback, on a directory that may hold a long past."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bench.sides import DOMAIN, Side, Trouble, environment
from tests.e2e.net import wait_for

ROOT = Path(__file__).resolve().parents[2]
_PATIENCE_SECONDS = 120.0


class Agent(Side):
    """One agent. `provider_port`: who is asked, on loopback; 1 where nobody is (it is never asked by itself).

    What is filed is counted by its log and not by looking into the Maildir, which may hold a hundred thousand files.
    """

    name = "agent"

    def __init__(self, directory: Path, *, provider_port: int = 1, nodes: Sequence[str] = (DOMAIN,)) -> None:
        super().__init__(directory)
        self.state = directory / "state"
        self.log = directory / "agent.log"
        self.start_seconds = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._stored, self._read = 0, 0
        self.state.mkdir(parents=True, exist_ok=True)
        self.configuration = directory / "siteagent.toml"
        self.configuration.write_text(
            f"""
hostname = "mail.{DOMAIN}"
state_directory = "{self.state}"
[link]
hook_directory = "{directory}/hints"
[[provider]]
name = "isp"
host = "127.0.0.1"
port = {provider_port}
nodes = {json.dumps(list(nodes))}
ask_every_seconds = 0
first_connection_seconds = 1
quiet_seconds = 1
retry_seconds = [0, 3600]
[listener]
listen = ["127.0.0.1:0"]
max_connections_per_peer = 100
[[mailbox]]
name = "box"
addresses = ["@{DOMAIN}"]
maildir = "{directory}/box"
[log]
format = "json"
"""
        )

    def start(self) -> None:
        """Runs it until it listens; `start_seconds` is how long that took, with the interpreter's own start."""
        began = time.perf_counter()
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(self._argv("run"), cwd=ROOT, stdout=log, stderr=log, env=environment())
        wait_for(lambda: self.events("agent.ready"), "agent.ready", seconds=_PATIENCE_SECONDS, every=0.002)
        self.start_seconds = time.perf_counter() - began
        self.port = int(self.events("agent.ready")[0]["listening"][0].rpartition(":")[2])
        self._stored, self._read = 0, 0

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(60)

    def pids(self) -> list[int]:
        assert self._process is not None
        return [self._process.pid]

    def empty(self) -> None:
        self.filed()
        self._stored = 0

    def filed(self) -> int:
        with self.log.open("rb") as log:
            log.seek(self._read)
            text = log.read()
        whole = text.rpartition(b"\n")[0]
        self._read += len(whole) + bool(whole)
        self._stored += whole.count(b'"message.stored"')
        return self._stored

    def events(self, name: str) -> list[dict[str, Any]]:
        found = []
        for line in self.log.read_bytes().splitlines():
            if f'"{name}"'.encode() in line:
                with contextlib.suppress(ValueError):
                    found.append(json.loads(line))
        return found

    def command(self, *arguments: str) -> float:
        """How long a command of siteagent's takes, with the interpreter's own start. Raises Trouble where it fails."""
        began = time.perf_counter()
        done = subprocess.run(
            self._argv(*arguments), cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, env=environment()
        )
        if done.returncode != 0:
            raise Trouble(f"siteagent {' '.join(arguments)}: {done.stderr.decode(errors='replace')[-500:]}")
        return time.perf_counter() - began

    def idle_cpu(self, seconds: float) -> float:
        """The share of a core that it takes while nothing happens."""
        before = self.cpu_seconds()
        time.sleep(seconds)
        return (self.cpu_seconds() - before) / seconds

    def _argv(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "siteagent", "--config", str(self.configuration), *arguments]


class Libraries(Side):
    """An interpreter with the two libraries of SMTP and nothing of ours: below this no program on them can get."""

    name = "libraries"
    keeps = False

    def start(self) -> None:
        program = "import asyncio, aiosmtpd.smtp, aiosmtplib, sys; print(flush=True); sys.stdin.read()"
        pipe = subprocess.PIPE
        self._process = subprocess.Popen([sys.executable, "-c", program], stdin=pipe, stdout=pipe, env=environment())
        assert self._process.stdout is not None
        self._process.stdout.readline()

    def stop(self) -> None:
        self._process.communicate()

    def pids(self) -> list[int]:
        return [self._process.pid]


class Hub(Side):
    """`siteagent hub run` with one node, which nobody asks for."""

    name = "hub"
    keeps = False

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self._configuration = directory / "hub.toml"
        self._log = directory / "hub.log"
        (directory / "password").touch(mode=0o600)
        (directory / "password").write_text("sesame\n")
        self._configuration.write_text(
            f'hostname = "hub.example"\nstate_directory = "{directory}/state"\n'
            f'[listener]\nlisten = ["127.0.0.1:0"]\n[log]\nformat = "json"\n'
            f'[[node]]\nname = "{DOMAIN}"\ndomains = ["{DOMAIN}"]\ndeliver_to = "127.0.0.1:1"\n'
            f"etrn_without_auth = true\n"
        )

    def start(self) -> None:
        argv = [sys.executable, "-m", "siteagent", "--config", str(self._configuration), "hub", "run"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(argv, cwd=ROOT, stdout=log, stderr=log, env=environment())
        wait_for(lambda: b'"hub.ready"' in self._log.read_bytes(), "hub.ready", seconds=60, every=0.002)
        line = next(line for line in self._log.read_text().splitlines() if '"hub.ready"' in line)
        self.port = int(json.loads(line)["listening"][0].rpartition(":")[2])

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(60)

    def pids(self) -> list[int]:
        return [self._process.pid]
