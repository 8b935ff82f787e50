"""The site that is looked at: its configuration, and the means to look, which tests replace.

Everything slow or outward stands here as a function or a finished answer; the checks only judge.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from siteagent.config import paths
from siteagent.config.draft import Draft, Problem, Problems
from siteagent.config.files import survey as survey_file
from siteagent.config.passwords import password
from siteagent.config.sections import Configuration, Provider
from siteagent.doctor import records
from siteagent.doctor.survey import Survey, certificate_of, survey
from siteagent.errors import SiteAgentError, TemporaryError
from siteagent.events import Line
from siteagent.host import systemd
from siteagent.link.backend import Oracle, standard_oracle
from siteagent.link.oracle import allowed
from siteagent.store.lock import RUN, holder_work, lock_holder


def _disk(path: Path) -> tuple[int, int]:
    """(free, all) octets of the file system that `path`, or what of it exists, is on."""
    while not path.exists() and path != path.parent:
        path = path.parent
    usage = shutil.disk_usage(path)
    return usage.free, usage.total


@dataclass(slots=True, kw_only=True)
class Site:
    """What the checks are given. `draft`: the problems of file and disk; `holder`: the process of a running agent."""

    path: Path
    configuration: Configuration
    draft: Draft = field(default_factory=Draft)
    judged_as: str = ""
    holder: int | None = None
    document: Mapping[str, Any] = field(default_factory=dict)
    oracle: Oracle | None = None
    look_up: records.LookUp = records.look_up
    disk: Callable[[Path], tuple[int, int]] = _disk
    enabled: Callable[[str], str | None] = systemd.enabled
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    root: Path = Path("/")
    addresses: dict[str, list[str] | str] = field(default_factory=dict)
    lines: dict[str, Line | None] = field(default_factory=dict)
    surveys: dict[str, Survey] = field(default_factory=dict)
    certificates: dict[str, bytes] = field(default_factory=dict)

    @property
    def state(self) -> Path:
        assert self.configuration.state_directory is not None
        return self.configuration.state_directory

    @property
    def problems(self) -> Sequence[Problem]:
        return self.draft.problems

    def wrong(self, *tails: str) -> list[Problem]:
        """The problems of options whose key ends so."""
        return [problem for problem in self.problems if problem.key.rpartition(".")[2] in tails]


def opened(path: Path, *, document: Mapping[str, Any]) -> Site:
    """The site of the configuration in `path`, not looked at yet.

    Raises Problems where the configuration cannot even be read in part; what `files.survey` raises.
    """
    value, draft = survey_file(path, kind=Configuration)
    if value is None:
        raise Problems(str(path), draft.problems)
    judged_as = paths.inspect(path, value, draft)
    site = Site(path=path, configuration=value, draft=draft, judged_as=judged_as, document=document)
    holder = lock_holder(site.state)
    if holder is not None and holder_work(site.state) == RUN:
        site.holder = holder
    site.oracle = standard_oracle(lambda text: None)
    site.look_up = records.patient(records.look_up)
    return site


async def look_around(site: Site) -> None:
    """Everything that goes over the network, providers side by side: fills in addresses, lines and surveys."""
    await asyncio.gather(*(_look_at(site, provider) for provider in site.configuration.provider))


async def _look_at(site: Site, provider: Provider) -> None:
    found = await asyncio.to_thread(_addresses, provider.host)
    site.addresses[provider.name] = found
    if isinstance(found, str):
        return
    line = site.lines[provider.name] = _line(site, provider, found)
    if line is None:
        return
    hostname = site.configuration.hostname
    try:
        secret = await asyncio.to_thread(password, provider)
    except SiteAgentError:
        secret = None  # another check tells of it
    seen = site.surveys[provider.name] = await survey(
        provider, addresses=found, line=line, hostname=hostname, password=secret
    )
    if seen.certificate or "starttls" in seen.features or seen.error is not None:
        site.certificates[provider.name] = seen.certificate or await certificate_of(
            provider, addresses=found, line=line, hostname=hostname
        )


def _addresses(host: str) -> list[str] | str:
    """The addresses of `host` as this host resolves it, as the agent will; a sentence where it has none."""
    try:
        rows = socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        return str(getattr(error, "strerror", None) or error).lower()
    return list(dict.fromkeys(str(row[4][0]) for row in rows))


def _line(site: Site, provider: Provider, addresses: Sequence[str]) -> Line | None:
    assert site.oracle is not None
    section = site.configuration.link
    patterns = provider.interfaces or section.interfaces
    try:
        ways = site.oracle.lines(addresses)
    except OSError:
        return None
    return next((way for way in ways if allowed(way.interface, patterns, section.ignore_interfaces)), None)


def ways_without_patterns(site: Site, addresses: Sequence[str]) -> tuple[Line, ...]:
    """Every way out, also by interfaces that do not count."""
    assert site.oracle is not None
    try:
        return site.oracle.lines(addresses)
    except OSError:
        return ()


def names_of(site: Site, name: str) -> list[str] | str:
    """The addresses of `name` as an outsider finds them; a sentence where there are none."""
    try:
        found = records.addresses(name, site.look_up)
    except records.NoSuchName:
        return "there is no such name"
    except TemporaryError as error:
        return error.why
    return found or "it has no address"


def greeting(address: str, port: int, *, seconds: float = 5.0) -> str:
    """The first line that a server says there. Raises OSError."""
    deadline = time.monotonic() + seconds
    with socket.create_connection((address, port), timeout=seconds) as connection:
        heard = b""
        while b"\n" not in heard and len(heard) < 600:
            connection.settimeout(max(0.1, deadline - time.monotonic()))
            part = connection.recv(600)
            if not part:
                break
            heard += part
    return heard.split(b"\n", 1)[0].decode("ascii", "replace").strip()
