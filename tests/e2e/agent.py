"""The agent under test: `siteagent run` as a process in the site's namespace, watched from outside.

Only what an operator has is used: the configuration file, signals, the log, ``status.json``, the Maildirs.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.e2e.messages import Shape, files_of, wrong_in
from tests.e2e.net import LabError, Namespace, wait_for
from tests.e2e.postfix import PostfixProvider

ROOT = Path(__file__).resolve().parent.parent.parent
HOSTNAME = "mail.office.example"

# Short where waiting proves nothing; `settings` and `tables` of the test win.
_PROVIDER = {"quiet_seconds": 2, "first_connection_seconds": 20, "retry_seconds": [0, 1, 2, 5], "ask_every_seconds": 0}
_LINK = {"settle_seconds": 0.5, "poll_seconds": 2}


class Agent:
    """One agent and its directory: configuration, state, Maildirs, log.

    `settings` is TOML for the top of the file, `tables` maps a table (``link``, ``listener``, ``limits``,
    ``provider.isp``, ``mailbox.alice`` ...) to further TOML lines of it; a key given there replaces ours. Without
    `measured` it runs outside coverage, at its own speed: for tests whose claim is a time or a size.
    """

    def __init__(
        self,
        namespace: Namespace,
        directory: Path,
        *,
        providers: Sequence[PostfixProvider],
        mailboxes: Mapping[str, Sequence[str]],
        settings: str = "",
        tables: Mapping[str, str] | None = None,
        measured: bool = True,
    ) -> None:
        self.namespace, self.directory = namespace, directory
        self.mailboxes = {name: tuple(addresses) for name, addresses in mailboxes.items()}
        self.configuration = directory / "siteagent.toml"
        self.state = directory / "state"
        self.mail = directory / "mail"
        self.log_file = directory / "agent.log"
        self._providers = list(providers)
        self._process: subprocess.Popen[bytes] | None = None
        self._measured = measured
        self.environment: dict[str, str] = {}  # more of it, for what is started from now on
        for path in (directory, self.state, self.mail):
            path.mkdir(parents=True, exist_ok=True)
        self.write_configuration(settings=settings, tables=tables or {})

    # --- configuration ------------------------------------------------------------------------------------------------

    def write_configuration(self, *, settings: str = "", tables: Mapping[str, str] | None = None) -> None:
        """Write the file anew; a running agent notices."""
        more = dict(tables or {})
        top = {"hostname": HOSTNAME, "state_directory": str(self.state)}
        parts = [_table("", top, settings), _table("[link]", _LINK, more.pop("link", ""))]
        for provider in self._providers:
            parts.append(_table("[[provider]]", self._provider(provider), more.pop(f"provider.{provider.name}", "")))
        listener: dict[str, Any] = {"listen": ["0.0.0.0:25"]}
        for provider in self._providers:
            if provider.terms.trust is not None:
                certificate, key = provider.terms.trust.certificate(HOSTNAME)
                listener |= {"tls_certificate": str(certificate), "tls_key": str(key)}
        parts.append(_table("[listener]", listener, more.pop("listener", "")))
        for name, addresses in self.mailboxes.items():
            box = {"name": name, "addresses": list(addresses), "maildir": str(self.maildir(name))}
            parts.append(_table("[[mailbox]]", box, more.pop(f"mailbox.{name}", "")))
        parts.append(_table("[log]", {"format": "json"}, more.pop("log", "")))
        parts += [_table(f"[{name}]", {}, text) for name, text in more.items()]
        fresh = self.configuration.with_suffix(".new")
        fresh.write_text("\n".join(parts), encoding="utf-8")
        fresh.replace(self.configuration)

    def _provider(self, provider: PostfixProvider) -> dict[str, Any]:
        terms = provider.terms
        entry: dict[str, Any] = {
            "name": provider.name,
            "host": provider.host,
            "nodes": list(terms.nodes),
            "peers": [provider.address],
            **_PROVIDER,
        }
        if terms.trust is not None:
            entry |= {"tls": "required", "tls_ca_file": str(terms.trust.authority)}
        if terms.account is not None:
            name, password = terms.account
            secret = self.directory / f"{provider.name}.password"
            secret.touch(mode=0o600)
            secret.write_text(password + "\n")
            entry |= {"username": name, "password_file": str(secret)}
        return entry

    # --- running ------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Agent:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self, *, ready: bool = True) -> None:
        """Run it; with `ready`, wait until it says agent.ready."""
        assert not self.running(), "it runs already"
        seen = len(self.events("agent.ready"))
        self._process = self.popen("run")
        if ready:
            self.wait_for(lambda: len(self.events("agent.ready")) > seen, "agent.ready", seconds=20)

    def popen(self, *arguments: str) -> subprocess.Popen[bytes]:
        """`siteagent --config ... ARGUMENTS` in the site's namespace, its output at the end of the log."""
        with self.log_file.open("ab") as output:
            return self.namespace.start(*self._argv(*arguments), output=output, env=self._environment(), cwd=ROOT)

    def command(
        self, *arguments: str, seconds: float = 60, user: str | None = None, through: Sequence[str] = ()
    ) -> subprocess.CompletedProcess[str]:
        """Another command of siteagent's with the same configuration; its exit code, stdout and stderr.

        As `user` where given, without any other group; that user must be able to reach this Python. `through`: a
        command that runs it.
        """
        become = list(through)
        if user is not None:
            entry = pwd.getpwnam(user)
            become += ["setpriv", f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--clear-groups"]
        return subprocess.run(
            self.namespace.argv(*become, *self._argv(*arguments)),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            env=self._environment(),
            cwd=ROOT,
        )

    def _environment(self) -> dict[str, str]:
        """Ours, without what would lead the agent to another configuration or state."""
        left_out = ["SITEAGENT_", "NO_COLOR", "STATE_DIRECTORY", "CONFIGURATION_DIRECTORY", "JOURNAL_STREAM", "NOTIFY_"]
        if not self._measured:
            left_out.append("COVERAGE_")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(tuple(left_out))}
        return {**kept, "PYTHONUNBUFFERED": "1", **self.environment}

    def _argv(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "siteagent", "--config", str(self.configuration), *arguments]

    @property
    def pid(self) -> int:
        assert self._process is not None, "it was never started"
        return self._process.pid

    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """kill -9, and wait for the end. Nothing where it does not run."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def terminate(self, *, seconds: float = 40) -> int:
        """SIGTERM; its exit code."""
        assert self._process is not None, "it was never started"
        self._process.terminate()
        try:
            return self._process.wait(timeout=seconds)
        except subprocess.TimeoutExpired as problem:
            raise LabError(f"the agent does not end within {seconds} s of SIGTERM") from problem

    def memory(self) -> int:
        """Resident octets."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024

    # --- what it says -------------------------------------------------------------------------------------------------

    def log(self) -> str:
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def log_tail(self, lines: int = 40) -> str:
        return "\n".join(self.log().splitlines()[-lines:])

    def events(self, name: str | None = None, **fields: object) -> list[dict[str, Any]]:
        """The log's events, oldest first, of all runs; of one `name`, and with these `fields` where given."""
        found = []
        for line in self.log().splitlines():
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                if isinstance(entry, dict) and name in (None, entry.get("event")):
                    found.append(entry)
        return [entry for entry in found if all(entry.get(key) == value for key, value in fields.items())]

    def status(self) -> dict[str, Any]:
        """``status.json``; empty where there is none yet."""
        with contextlib.suppress(FileNotFoundError):
            return dict(json.loads((self.state / "status.json").read_text()))
        return {}

    def provider_status(self, name: str) -> dict[str, Any]:
        return next((dict(entry) for entry in self.status().get("providers", []) if entry["name"] == name), {})

    def warnings(self) -> set[str]:
        return {entry["name"] for entry in self.status().get("warnings", [])}

    def wait_for(self, condition: Callable[[], Any], what: str, *, seconds: float = 30) -> Any:
        """As `wait_for`; gives up at once where the agent has ended."""

        def alive_and() -> Any:
            value = condition()
            if not value and not self.running():
                raise LabError(f"{what}: the agent has ended\n{self.log_tail()}")
            return value

        return wait_for(alive_and, what, seconds=seconds)

    def wait_for_first_look(self) -> None:
        """Until it has looked at the lines and resolved names: what comes up from now on came up while it ran."""
        self.wait_for((self.state / "names.json").exists, "names.json")

    def rounds(self, provider: str | None = None) -> list[dict[str, Any]]:
        """The ``round.ended`` of all runs."""
        return self.events("round.ended", **({} if provider is None else {"provider": provider}))

    def wait_for_round(self, provider: str, *, beyond: int = 0, seconds: float = 60) -> dict[str, Any]:
        """The first ``round.ended`` of `provider` after the `beyond` ones that there were."""
        what = f"round {beyond + 1} of {provider}"
        self.wait_for(lambda: len(self.rounds(provider)) > beyond, what, seconds=seconds)
        return self.rounds(provider)[beyond]

    # --- what it filed ------------------------------------------------------------------------------------------------

    def maildir(self, name: str) -> Path:
        return self.mail / name

    def files(self, name: str | None = None) -> list[Path]:
        """What readers see, in one mailbox or all."""
        names = self.mailboxes if name is None else (name,)
        return [path for one in names for path in files_of(self.maildir(one))]

    def leftovers(self) -> list[Path]:
        """What lies in the tmp/ of all Maildirs: nothing, when all is done."""
        return [path for name in self.mailboxes for path in (self.maildir(name) / "tmp").glob("*")]

    def wrong(self, sent: Iterable[Shape]) -> list[str]:
        """What is wrong with the Maildirs after `sent`. Empty: everything is there once, byte for byte."""
        maildirs = {name: self.maildir(name) for name in self.mailboxes}
        return wrong_in(maildirs, sent, addresses=self.mailboxes, postmaster=next(iter(self.mailboxes)))

    def settle(self, sent: Iterable[Shape], *, seconds: float = 30) -> list[str]:
        """As `wrong`, but given so long to become right."""
        everything = list(sent)
        deadline = time.monotonic() + seconds
        while (problems := self.wrong(everything)) and time.monotonic() < deadline and self.running():
            time.sleep(0.1)
        return problems


def _table(heading: str, values: Mapping[str, Any], more: str) -> str:
    """One TOML table: our `values`, except those whose key stands in `more`, then `more`."""
    given = {line.partition("=")[0].strip() for line in more.splitlines() if "=" in line}
    # JSON's strings, numbers, lists and true/false are TOML's.
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items() if key not in given]
    return "\n".join([*([heading] if heading else []), *lines, *more.strip().splitlines(), ""])
