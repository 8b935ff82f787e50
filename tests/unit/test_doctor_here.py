"""Checks of the host itself that need no laboratory: who looks, and what was installed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from attrs import evolve
from siteagent.config.load import parse
from siteagent.config.sections import Configuration, Open
from siteagent.doctor import here
from siteagent.doctor.site import Site
from siteagent.host import install, units

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="systemd, and users of POSIX systems")

UNITS = "/etc/systemd/system/siteagent"
HOOK = "/etc/ppp/ip-up.d/siteagent"


def site(root: Path, *listed: str, state: Path | None = None) -> Site:
    """A host below `root` on which install-service put `listed` in place."""
    text = (
        f'state_directory = "{state or root / "state"}"\n[[provider]]\nhost = "mx.isp.example"\nnodes = ["a.example"]\n'
        '[[mailbox]]\naddresses = ["alice@a.example"]\nmaildir = "/nonexistent/alice"\n'
    )
    if listed:
        manifest = root / "usr/lib/siteagent/installed"
        manifest.parent.mkdir(parents=True)
        manifest.write_text("".join(f"{row}\n" for row in listed))
    for row in listed:
        place = root / row.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch(0o644)
        place.chmod(0o755 if row == HOOK else 0o644)
    made = Site(path=Path("x.toml"), configuration=parse(text, path="", kind=Configuration), root=root)
    made.enabled = lambda unit: "enabled"
    return made


def told(findings: object) -> list[tuple[str, str, str]]:
    return [(each.name, each.status.value, each.fix) for each in findings]  # type: ignore[attr-defined]


def test_where_nothing_was_installed_nothing_is_missed(tmp_path: Path) -> None:
    made = site(tmp_path)
    assert told(here.at_boot(made)) == told(here.hooks(made)) == []


@pytest.mark.parametrize(
    ("state", "fix"), [("disabled", "systemctl enable --now siteagent.socket"), ("masked", "systemctl unmask")]
)
def test_a_unit_that_the_next_boot_leaves_out_is_red(tmp_path: Path, state: str, fix: str) -> None:
    made = site(tmp_path, f"{UNITS}.service", f"{UNITS}.socket")
    assert told(here.at_boot(made)) == []
    made.enabled = lambda unit: state if unit == "siteagent.socket" else "enabled"
    ((name, status, cure),) = told(here.at_boot(made))
    assert (name, status) == ("unit siteagent.socket", "fail") and cure.startswith(fix)


@pytest.mark.parametrize("said", [None, "static", "enabled-runtime", "indirect"])
def test_what_systemd_does_not_say_is_not_red(tmp_path: Path, said: str | None) -> None:
    made = site(tmp_path, f"{UNITS}.service")
    made.enabled = lambda unit: said
    assert told(here.at_boot(made)) == []


def installed_for(root: Path, site: Site) -> None:
    path = site.path.absolute()
    endpoints = units.possible_here(units.socket_endpoints(site.configuration))
    for place, text in (
        (install.DROP_IN, units.drop_in(site.configuration, path)),
        (install.SOCKET, units.socket_unit(endpoints, str(path))),
    ):
        (root / str(place).lstrip("/")).write_text(text)


def test_a_service_that_was_installed_for_another_configuration_is_red(tmp_path: Path) -> None:
    made = site(tmp_path, str(install.DROP_IN), str(install.SOCKET))
    installed_for(tmp_path, made)
    assert told(here.as_configured(made)) == [("service", "ok", "")]
    again = "run `siteagent install-service` again"
    box = evolve(made.configuration.mailbox[0], maildir=Path("/home/alice/Maildir"))
    made.configuration = evolve(made.configuration, mailbox=(box,))
    assert told(here.as_configured(made)) == [("service", "fail", again)]
    installed_for(tmp_path, made)
    assert told(here.as_configured(made)) == [("service", "ok", "")]
    closed = evolve(made.configuration.listener, open=Open.ASKED)
    made.configuration = evolve(made.configuration, listener=closed)
    assert told(here.as_configured(made)) == [("service", "fail", again)]


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() != 0, reason="what is installed is root's")
@pytest.mark.parametrize(
    ("mode", "fate"),
    [(0o755, "ok"), (0o644, "fail"), (0o775, "fail"), (0o700, "fail"), (None, "fail")],
)
def test_a_hook_that_would_not_be_run_is_red(tmp_path: Path, mode: int | None, fate: str) -> None:
    made = site(tmp_path, HOOK)
    hook = tmp_path / HOOK.lstrip("/")
    hook.unlink() if mode is None else hook.chmod(mode)
    ((_, status, _),) = told(here.hooks(made))
    assert status == fate


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() != 0, reason="root becomes another user for a moment")
def test_who_is_neither_root_nor_the_agents_user_is_told_first(tmp_path: Path) -> None:
    state = Path("/")
    made = site(tmp_path, state=state)
    assert told(here.onlooker(made)) == []
    os.seteuid(65534)
    try:
        assert told(here.onlooker(made)) == [("who looks", "warn", "run it as root")]
    finally:
        os.seteuid(0)
