"""What systemd, shellcheck and dash say of the files that install-service puts in place."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from siteagent.config.load import parse
from siteagent.config.sections import Configuration
from siteagent.host import install
from siteagent.host.install import Interpreter, Wishes

HOOKS = Path(__file__).parents[2] / "systemd" / "hooks"
SCRIPTS = [*sorted(HOOKS.iterdir()), HOOKS.parent / "start"]
TEXT = (
    'state_directory = "/var/lib/siteagent"\n[[provider]]\nhost = "mx.isp.example"\nnodes = ["office.example"]\n'
    'username = "office"\nname = "isp"\n'
    '[[mailbox]]\naddresses = ["alice@office.example"]\nmaildir = "/var/mail/siteagent/alice"\n'
    '[[mailbox]]\nname = "bob"\naddresses = ["bob@office.example"]\nmaildir = "/home/bob/my Maildir"\n'
    '[[mailbox]]\nname = "eve"\naddresses = ["eve@office.example"]\nmaildir = "/srv/mail/100%/eve"\n'
)
HOSTILE = (
    "eth0; touch PWNED",
    "$(touch PWNED)",
    "`touch PWNED`",
    "../../etc/passwd",
    "..",
    ".hidden",
    "-rf",
    "a b",
    "a\nb",
    "",
    "*",
    "é",
    "x" * 5000,
)


def _analyze(*argv: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "SYSTEMD_COLORS": "0"}
    return subprocess.run(["systemd-analyze", *argv], capture_output=True, text=True, env=environment)


def _installed(root: Path, *, listener: str = "", hub: bool = False) -> Path:
    """The directory of the units; the program's place, which depends on the root, is put right."""
    value = None if hub else parse(TEXT + listener, path="", kind=Configuration)
    source = Path("/etc/siteagent/siteagent.toml")
    opt = Interpreter(Path("/opt/siteagent/bin/python"))
    install.write(install.plan(Wishes(interpreter=opt, configuration=value, source=source, root=root, hub=hub)), root)
    units = root / "etc/systemd/system"
    for unit in units.glob("*.service"):
        unit.write_text(unit.read_text().replace("ExecStart=/usr", f"ExecStart={root}/usr"))
    return units


@pytest.mark.tools("systemd-analyze")
@pytest.mark.parametrize(
    ("listener", "hub", "threshold"),
    [
        ("", False, 16),
        ('[listener]\nopen = "asked"\n', False, 18),
        ("[listener]\nlisten = []\n", False, 16),
        ("", True, 18),
    ],
    ids=["sockets", "open-asked", "ask-only", "hub"],
)
def test_systemd_has_nothing_against_the_units_and_finds_them_closed(
    tmp_path: Path, listener: str, hub: bool, threshold: int
) -> None:
    units = _installed(tmp_path, listener=listener, hub=hub)
    found = sorted(units.glob("*.service")) + sorted(units.glob("*.socket"))
    # The exit code is 0 whatever it complains of: what it says counts.
    assert _analyze("verify", *found).stderr == ""
    for unit in units.glob("*.service"):
        judged = _analyze("security", "--offline=true", "--no-pager", f"--threshold={threshold}", unit)
        assert judged.returncode == 0, judged.stdout[-300:]


@pytest.mark.tools("systemd-analyze")
def test_a_misspelt_directive_in_the_drop_in_would_be_seen(tmp_path: Path) -> None:
    units = _installed(tmp_path)
    drop_in = units / "siteagent.service.d/10-site.conf"
    drop_in.write_text(drop_in.read_text().replace("LoadCredential", "LoadCredentail"))
    assert "LoadCredentail" in _analyze("verify", units / "siteagent.service").stderr


@pytest.mark.netns  # root
@pytest.mark.tools("systemd-tmpfiles", "systemd-sysusers")
def test_the_directories_and_the_user_come_to_be(tmp_path: Path) -> None:
    _installed(tmp_path)
    for argv in (
        ["systemd-sysusers", f"--root={tmp_path}", "siteagent.conf"],
        ["systemd-tmpfiles", f"--root={tmp_path}", "--create", "siteagent.conf"],
    ):
        done = subprocess.run(argv, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert "siteagent:x:" in (tmp_path / "etc/passwd").read_text()
    hook_directory = (tmp_path / "run/siteagent-hook").stat()
    assert (hook_directory.st_uid, hook_directory.st_mode & 0o777) == (0, 0o755)
    assert (tmp_path / "var/mail/siteagent").stat().st_mode & 0o777 == 0o750
    assert (tmp_path / "srv/mail/100%").is_dir()


@pytest.mark.tools("shellcheck")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_has_nothing_against_what_we_ship(script: Path) -> None:
    done = subprocess.run(["shellcheck", "--shell=sh", "--norc", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def _hook(script: str, directory: Path, *argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a hook under dash as pppd would: no PATH but the system's, no terminal, from the root."""
    text = (HOOKS / script).read_text().replace("/usr/lib/siteagent/link-hook", str(HOOKS / "link-hook"))
    base = {"PATH": "/usr/bin:/bin", "SITEAGENT_HOOK_DIRECTORY": str(directory)}
    return subprocess.run(
        ["dash", "-c", text, script, *argv],
        cwd=directory.parent,
        env={**base, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


@pytest.mark.tools("dash")
@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_interface_name_stays_a_name(tmp_path: Path, name: str) -> None:
    hints = tmp_path / "hints"
    hints.mkdir()
    for done in (
        _hook("link-hook", hints, name, "test"),
        _hook("networkmanager", hints, name, "up"),
        _hook("ppp", hints, name, PPP_IFACE=name),
        _hook("networkd", hints, IFACE=name),
        _hook("ifupdown", hints, IFACE=name or "lo"),
    ):
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.rglob("PWNED"))
    assert {path.name for path in tmp_path.rglob("*")} <= {"hints", "any", "-rf"}


@pytest.mark.tools("dash")
@pytest.mark.parametrize(
    ("script", "argv", "environment"),
    [
        ("networkmanager", ("ppp0", "up"), {}),
        ("networkmanager", ("ppp0", "connectivity-change"), {"CONNECTIVITY_STATE": "FULL"}),
        ("ppp", ("ppp0", "/dev/ttyS0", "115200", "192.0.2.1", "192.0.2.2", "isp"), {}),
        ("ppp", (), {"PPP_IFACE": "ppp0"}),
        ("networkd", (), {"IFACE": "ppp0"}),
        ("ifupdown", (), {"IFACE": "ppp0", "METHOD": "ppp"}),
        ("link-hook", ("ppp0",), {}),
    ],
)
def test_each_hook_leaves_a_hint_of_its_interface(
    tmp_path: Path, script: str, argv: tuple[str, ...], environment: dict[str, str]
) -> None:
    hints = tmp_path / "hints"
    hints.mkdir()
    _hook(script, hints, *argv, **environment)
    assert [path.name for path in hints.iterdir()] == ["ppp0"]


@pytest.mark.tools("dash")
@pytest.mark.parametrize(
    ("script", "argv", "environment"),
    [
        ("networkmanager", ("ppp0", "down"), {}),
        ("networkmanager", ("ppp0", "connectivity-change"), {"CONNECTIVITY_STATE": "PORTAL"}),
        ("ifupdown", (), {"IFACE": "lo"}),
        ("ifupdown", (), {"IFACE": "--all"}),
        ("ifupdown", (), {"IFACE": "eth0", "METHOD": "NetworkManager"}),
    ],
)
def test_what_is_no_news_leaves_none(
    tmp_path: Path, script: str, argv: tuple[str, ...], environment: dict[str, str]
) -> None:
    hints = tmp_path / "hints"
    hints.mkdir()
    assert _hook(script, hints, *argv, **environment).returncode == 0
    assert list(hints.iterdir()) == []


@pytest.mark.tools("dash")
def test_s53_a_hook_follows_no_link_and_never_fails_its_caller(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    hints = tmp_path / "hints"
    for place in (tmp_path / "absent", tmp_path / "link", tmp_path / "file"):
        if place.name == "link":
            (tmp_path / "real").mkdir()
            place.symlink_to(tmp_path / "real")
        elif place.name == "file":
            place.write_text("")
        assert _hook("link-hook", place, "ppp0").returncode == 0
    assert list((tmp_path / "real").iterdir()) == []
    hints.mkdir()
    (hints / "ppp0").symlink_to(victim)
    assert _hook("link-hook", hints, "ppp0").returncode == 0
    assert victim.read_text() == "precious"
    assert not (hints / "ppp0").is_symlink()


@pytest.mark.skipif(sys.platform == "win32", reason="the manual is man(7)'s")
@pytest.mark.tools("man")
@pytest.mark.parametrize("page", ["siteagent.1", "siteagent.toml.5"])
def test_man_has_nothing_against_our_pages(page: str) -> None:
    path = HOOKS.parents[1] / "docs" / "man" / page
    done = subprocess.run(
        ["man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z", path],
        capture_output=True,
        text=True,
        env={**os.environ, "MANPAGER": "cat"},
    )
    assert (done.returncode, done.stderr) == (0, "")
