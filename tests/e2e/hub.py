"""The hub under test: `siteagent hub run` as a process in a provider's namespace, watched from outside."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.e2e.messages import NODES, Shape
from tests.e2e.net import Line, Namespace, wait_for
from tests.e2e.postfix import Terms, smtp
from tests.e2e.trust import Trust

ROOT = Path(__file__).resolve().parent.parent.parent
MAIL_PORT, ODMR_PORT, ODMR_TLS_PORT = 25, 366, 367
ACCOUNT, PASSWORD = "office", "sesame"


class Hub:
    """One hub at the far end of `line`. As a provider it can be given to the lab's agent.

    `nodes` maps a node to further TOML lines of its table; without `deliver_to` in them it is fetched by ATRN.
    """

    def __init__(
        self,
        line: Line,
        directory: Path,
        trust: Trust | None,
        *,
        nodes: Mapping[str, str] | None = None,
        more: str = "",
        name: str = "hub",
    ) -> None:
        self.name, self.line, self.directory = name, line, directory
        self.host = f"{name}.example"
        self.namespace: Namespace = line.provider
        self.terms = Terms(nodes=tuple(nodes or dict.fromkeys(NODES, "")), trust=trust, account=(ACCOUNT, PASSWORD))
        self.state = directory / "state"
        self.configuration = directory / "hub.toml"
        self.log_file = directory / "hub.log"
        self.environment: dict[str, str] = {}  # more of it, for what is started from now on
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True)
        self.line.site.knows(self.host, line.provider_address)
        self._write(nodes or dict.fromkeys(NODES, ""), more)

    @property
    def address(self) -> str:
        return self.line.provider_address

    def _write(self, nodes: Mapping[str, str], more: str) -> None:
        secret = self.directory / "office.password"
        secret.touch(mode=0o600)
        secret.write_text(PASSWORD + "\n")
        tls = ""
        if self.terms.trust is not None:
            certificate, key = self.terms.trust.certificate(self.host)
            tls = f'tls_certificate = "{certificate}"\ntls_key = "{key}"\n'
        text = (
            f'hostname = "{self.host}"\nstate_directory = "{self.state}"\n'
            f'[listener]\nlisten = ["0.0.0.0:{MAIL_PORT}"]\n{tls}'
            f'[odmr]\nlisten = ["0.0.0.0:{ODMR_PORT}"]\n'
            + (f'listen_tls = ["0.0.0.0:{ODMR_TLS_PORT}"]\n' if tls else "")
            + '[log]\nformat = "json"\n'
        )
        for node, lines in nodes.items():
            text += (
                f'[[node]]\nname = "{node}"\ndomains = ["{node}"]\n'
                f'account = "{ACCOUNT}"\npassword_file = "office.password"\n{lines}\n'
            )
        self.configuration.write_text(text + more)

    # --- running ------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Hub:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        seen = len(self.events("hub.ready"))
        with self.log_file.open("ab") as output:
            environment = {**os.environ, **self.environment}
            self._process = self.namespace.start(*self._argv("run"), output=output, env=environment, cwd=ROOT)
        wait_for(lambda: len(self.events("hub.ready")) > seen, "hub.ready", seconds=30)

    @property
    def pid(self) -> int:
        assert self._process is not None, "it was never started"
        return self._process.pid

    def kill(self) -> None:
        """kill -9, and wait for the end."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def terminate(self, *, seconds: float = 40) -> int:
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(timeout=seconds)

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        argv = self.namespace.argv(*self._argv(*arguments))
        return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, cwd=ROOT)

    def _argv(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "siteagent", "--config", str(self.configuration), "hub", *arguments]

    # --- what it says -------------------------------------------------------------------------------------------------

    def events(self, name: str | None = None) -> list[dict[str, Any]]:
        if not self.log_file.exists():
            return []
        found = []
        for line in self.log_file.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                if name in (None, entry.get("event")):
                    found.append(entry)
        return found

    def log_tail(self, lines: int = 30) -> str:
        return "\n".join(self.log_file.read_text(errors="replace").splitlines()[-lines:])

    def held(self) -> int:
        """Messages, as `hub status --json` tells: half a second late at most."""
        return int(json.loads(self.command("status", "--json").stdout)["queue"]["messages"])

    def wait_for_held(self, count: int, *, seconds: float = 30) -> None:
        wait_for(lambda: self.held() == count, f"{count} messages held", seconds=seconds, every=0.3)

    # --- mail ---------------------------------------------------------------------------------------------------------

    def submit(self, messages: Iterable[Shape]) -> int:
        """Mail from the world, by SMTP."""
        count = 0
        with smtp(self.namespace, "127.0.0.1", MAIL_PORT, "world.example") as world:
            for message in messages:
                world.sendmail(message.sender, message.recipients, message.on_the_wire(), ["BODY=8BITMIME"])
                count += 1
        return count

    queue = submit
