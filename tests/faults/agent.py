"""The agent under test: `siteagent run` as a process on loopback, with its state and its Maildirs where the lab wants.

Only what an operator has is used: the configuration file, signals, the log, the requests, the Maildirs, and the
spool's tables read by somebody else.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from siteagent.errors import SiteAgentError
from siteagent.store import requests
from siteagent.store.spool import SpoolReader
from tests import site
from tests.faults.lies import ROOT, environment, program
from tests.faults.mail import BOXES, DOMAIN
from tests.faults.provider import Provider, trust
from tests.letters import left_behind


class AgentProcess:
    """One agent, to be started and ended as often as wanted. Its configuration and log are in `place`."""

    def __init__(
        self,
        place: Path,
        provider: Provider,
        *,
        state: Path | None = None,
        mail: Path | None = None,
        lies: Sequence[str] = (),
    ) -> None:
        self.state, self.mail = state or place / "state", mail or place / "mail"
        self.address = ""
        self._log = place / "agent.log"
        self._lies = lies
        self._process: subprocess.Popen[bytes] | None = None
        place.mkdir(exist_ok=True)
        self._toml = self._write(place, provider)
        provider.site = lambda: self.address

    def _write(self, place: Path, provider: Provider) -> Path:
        secret = place / "isp.password"
        secret.touch(mode=0o600)
        secret.write_text("sesame\n")
        more: dict[str, Any] = {}
        if provider.method == "atrn":
            more = {"username": "office", "password_file": secret, "tls": "implicit", "tls_ca_file": trust().authority}
        asked = site.provider(
            port=provider.port, method=provider.method, first_connection_seconds=5, retry_seconds=[0, 1], **more
        )
        boxes = [
            f'[[mailbox]]\nname = "{box}"\naddresses = ["{box}@{DOMAIN}"]\nmaildir = "{self.mail / box}"'
            for box in (*BOXES, "postmaster")
        ]
        delivery = '[delivery]\npostmaster = "postmaster"'  # who gets the agent's own notes
        return site.write(
            place,
            asked,
            top={"state_directory": self.state},
            listener={"min_free_bytes": 0},
            more="\n".join(['[log]\nformat = "json"', delivery, *boxes]),
            mailbox=False,
        )

    # --- life ---------------------------------------------------------------------------------------------------------

    def launch(self, under: Sequence[str] = ()) -> None:
        """Starts it, `under` another program where one is given."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*under, *program("--config", self._toml, "run")],
                cwd=ROOT,
                stderr=log,
                env=environment(self._lies),
                start_new_session=True,
            )

    async def start(self) -> None:
        """Until it says that it is ready."""
        before = len(self.events("agent.ready"))
        self.launch()
        ready = await self.until(lambda: self.events("agent.ready")[before:], "agent.ready")
        self.address = ready[0]["listening"][0]

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def ended(self) -> int | None:
        """Its exit code, -9 for a kill; None while it runs."""
        return self._process.poll() if self._process is not None else 0

    def kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(20)

    async def terminate(self) -> int:
        assert self._process is not None
        self._process.terminate()
        return await asyncio.to_thread(self._process.wait, 40)

    @property
    def places(self) -> list[Path]:
        """The directories and databases that hold mail."""
        boxes = [self.mail / box / folder for box in BOXES for folder in ("tmp", "new", "cur")]
        return [self.state / "spool.sqlite", self.state / "spool.sqlite-wal", self.state / "bodies", *boxes]

    # --- what it does -------------------------------------------------------------------------------------------------

    def events(self, name: str) -> list[dict[str, Any]]:
        """Of all its lives, whole lines of the log only."""
        lines = self._log.read_text(errors="replace").splitlines(keepends=True) if self._log.exists() else []
        found = []
        for line in lines:
            with contextlib.suppress(ValueError):
                entry = json.loads(line) if line.endswith("}\n") else {}
                found += [entry] if entry.get("event") == name else []
        return found

    async def until(self, condition: Callable[[], Any], what: str, *, seconds: float = 30) -> Any:
        """The first true value of `condition`. Raises AssertionError where it ends before, or takes too long."""
        deadline = asyncio.get_running_loop().time() + seconds
        while not (value := condition()):
            late = asyncio.get_running_loop().time() > deadline
            assert not late and self.ended is None, f"{what} did not come\n{self.log_end()}"
            await asyncio.sleep(0.01)
        return value

    def log_end(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-12:])

    def owed(self) -> set[str]:
        """The ids of the messages in the spool."""
        with contextlib.suppress(SiteAgentError):
            return {owed.message for owed in SpoolReader(self.state).waiting()}
        return {"?"}  # busy, or on its way: ask again

    async def filed(self) -> None:
        """Until the spool owes nothing."""
        await self.until(lambda: not self.owed(), "an empty spool")

    def retry(self) -> None:
        """`siteagent queue retry`."""
        requests.leave(self.state, requests.Request(id=requests.new_id(), kind=requests.RETRY_QUEUE))

    def left_behind(self) -> list[str]:
        return left_behind(self.state, *(self.mail / box for box in BOXES))
