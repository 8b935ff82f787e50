"""The laboratory: a site, its lines, real providers at their far ends, and the agent under test.

    with Lab() as lab:
        isp = lab.provider("isp", nodes=NODES)
        isp.queue(shapes())
        with lab.agent(providers=[isp]) as agent:
            isp.line.up()
            agent.wait_for_round("isp")
        assert not agent.wrong(shapes())

Needs root (network namespaces) and Debian's postfix. Leaves nothing: no process, no namespace, no file. With
SITEAGENT_LAB_KEEP set, the files stay, and their place is printed. A test that fails in the block gets the tails of
all logs as notes.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from tests.e2e.agent import Agent
from tests.e2e.messages import MAILBOXES, NODES
from tests.e2e.net import LabError, Line, Namespace, Tap, nothing_left, sweep, wait_for
from tests.e2e.postfix import PostfixProvider, Terms, smtp
from tests.e2e.sink import Sink, Taken
from tests.e2e.trust import Trust

__all__ = [
    "Agent",
    "Lab",
    "LabError",
    "Line",
    "Namespace",
    "PostfixProvider",
    "Sink",
    "Taken",
    "Tap",
    "Terms",
    "Trust",
    "nothing_left",
    "smtp",
    "wait_for",
]


class Lab:
    """One site, and what a test builds around it. Everything begins with its line down."""

    def __init__(self) -> None:
        sweep()
        # In /tmp itself: pytest's directories are closed to Postfix's user, and a socket's path must stay short.
        self.directory = Path(tempfile.mkdtemp(prefix=f"sa{os.getpid()}-", dir="/tmp"))
        self.directory.chmod(0o755)
        self.lines: list[Line] = []
        self.providers: list[PostfixProvider] = []
        self.agents: list[Agent] = []
        self._namespaces: list[Namespace] = []
        self.site = self.namespace("site")
        self._trust: Trust | None = None

    def __enter__(self) -> Lab:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        if problem is not None:
            with contextlib.suppress(Exception):
                problem.add_note(self.tails())
        self.close()

    @property
    def trust(self) -> Trust:
        """The certificate authority of this laboratory, made when first wanted."""
        if self._trust is None:
            self._trust = Trust(self.directory / "trust")
        return self._trust

    def line(self) -> Line:
        """A line with nobody at its far end yet (a namespace of its own, that a test may put anything into)."""
        number = len(self.lines)
        line = Line(self.site, self.namespace(f"far{number}"), number)
        self.lines.append(line)
        return line

    def provider(
        self,
        name: str = "isp",
        *,
        nodes: Sequence[str] = NODES,
        tls: bool = False,
        require_tls: bool = False,
        account: tuple[str, str] | None = None,
        timeout_seconds: int | None = None,
        site_port: int = 25,
        settings: Mapping[str, str] | None = None,
    ) -> PostfixProvider:
        """A running Postfix on a line of its own. See `Terms` for what the options mean."""
        terms = Terms(
            nodes=tuple(nodes),
            site_port=site_port,
            timeout_seconds=timeout_seconds,
            trust=self.trust if tls or require_tls else None,
            require_tls=require_tls,
            account=account,
            settings=dict(settings or {}),
        )
        provider = PostfixProvider(name, self.line(), self.directory / name, terms)
        self.providers.append(provider)
        provider.start()
        return provider

    def agent(
        self,
        providers: Sequence[PostfixProvider] | None = None,
        *,
        mailboxes: Mapping[str, Sequence[str]] = MAILBOXES,
        settings: str = "",
        tables: Mapping[str, str] | None = None,
        name: str = "agent",
        measured: bool = True,
    ) -> Agent:
        """An agent of the site, configured for `providers` (default: all), not started. See `Agent`."""
        agent = Agent(
            self.site,
            self.directory / name,
            providers=self.providers if providers is None else providers,
            mailboxes=mailboxes,
            settings=settings,
            tables=tables or {},
            measured=measured,
        )
        self.agents.append(agent)
        return agent

    def tails(self) -> str:
        """The end of every log."""
        parts = [f"--- {agent.directory.name}\n{agent.log_tail()}" for agent in self.agents]
        parts += [f"--- postfix of {provider.name}\n{provider.log_tail()}" for provider in self.providers]
        return "\n".join(parts)

    def close(self) -> None:
        """Leave nothing. Goes on where a part resists, and raises what it met at the end."""
        problems: list[Exception] = []
        for end in (
            *(agent.kill for agent in self.agents),
            *(provider.stop for provider in self.providers),
            *(namespace.close for namespace in reversed(self._namespaces)),
        ):
            try:
                end()
            except Exception as problem:
                problems.append(problem)
        if os.environ.get("SITEAGENT_LAB_KEEP"):
            (self.directory / "keep").touch()
            print(f"laboratory kept in {self.directory}")
        else:
            shutil.rmtree(self.directory, ignore_errors=True)
        if problems:
            raise ExceptionGroup("the laboratory could not be cleared", problems)

    def namespace(self, role: str) -> Namespace:
        namespace = Namespace(role)
        self._namespaces.append(namespace)
        return namespace
