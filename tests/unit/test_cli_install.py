"""`install-service` and `uninstall-service` as commands: what they show, refuse and leave."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import pytest
from siteagent.cli.main import main

TEXT = """\
hostname = "mail.office.example"
state_directory = "{0}/state"
[[provider]]
host = "192.0.2.1"
nodes = ["office.example"]
[[mailbox]]
addresses = ["alice@office.example"]
maildir = "{0}/mail/alice"
"""

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the units are Linux' own")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "mail").mkdir()
    file = tmp_path / "siteagent.toml"
    file.write_text(TEXT.format(tmp_path))
    return file


def run(path: Path, *arguments: str) -> int:
    return main(["--config", str(path), *arguments])


def files(root: Path) -> list[str]:
    return sorted(str(found.relative_to(root)) for found in root.rglob("*") if found.is_file())


def test_a_dry_run_names_everything_and_writes_nothing(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "root"
    assert run(path, "install-service", "--dry-run", "--root", str(root)) == 0
    said = capsys.readouterr().out
    assert not root.exists()
    assert "write  /etc/systemd/system/siteagent.service  0644\n" in said
    assert "run    systemctl enable siteagent.socket siteagent.service  # at every boot\n" in said
    assert f"-o siteagent -g siteagent {tmp_path}/mail/alice" in said


def test_what_is_installed_below_a_root_is_removed_again_without_a_trace(path: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    assert run(path, "install-service", "--root", str(root)) == 0
    assert "usr/lib/siteagent/start" in files(root)
    assert (
        f"ReadWritePaths=-{tmp_path}/mail/alice"
        in (root / "etc/systemd/system/siteagent.service.d/10-site.conf").read_text()
    )
    assert run(path, "uninstall-service", "--root", str(root)) == 0
    assert files(root) == []


def test_hooks_none_installs_none_but_the_one_that_others_call(path: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    run(path, "install-service", "--root", str(root), "--hooks", "none")
    assert [name for name in files(root) if "siteagent" in name.rpartition("/")[2] and "ip-up" in name] == []
    assert "usr/lib/siteagent/link-hook" in files(root)


def test_a_host_without_systemd_is_told_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    if Path("/run/systemd/system").is_dir():
        pytest.skip("this host has a systemd of its own, which it must not touch")
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with tempfile.TemporaryDirectory(dir="/srv") as place:  # services do not see /tmp
        path = Path(place) / "siteagent.toml"
        path.write_text(TEXT.format(place))
        code = run(path, "install-service")
    said = capsys.readouterr().err
    assert code in (64, 78)  # 78: this very Python lies in a home
    assert "not started by systemd" in said or "cannot install this siteagent as a service" in said


def test_a_configuration_that_services_see_another_tmp_for_is_refused(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(path, "install-service") == 64
    assert f"its configuration is {path}, which services cannot see" in capsys.readouterr().err


def test_a_configuration_that_is_not_there_is_told_before_anything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "none.toml", "install-service") == 78
    assert "run `siteagent init` as root first" in capsys.readouterr().err


def test_a_configuration_in_a_home_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    place = Path("/root/.siteagent-test.toml")
    place.write_text(TEXT.format("/var/lib/x"))
    try:
        assert run(place, "install-service", "--dry-run") == 64
        assert "which services cannot see" in capsys.readouterr().err
    finally:
        place.unlink()


def test_the_hub_has_a_service_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "hub.toml"
    file.write_text(
        f'hostname = "hub.example"\nstate_directory = "{tmp_path}/hub"\n'
        '[[node]]\nname = "office.example"\ndomains = ["office.example"]\ndeliver_to = "office.example:25"\n'
    )
    root = tmp_path / "root"
    assert run(file, "install-service", "--hub", "--root", str(root)) == 0
    found = files(root)
    assert "etc/systemd/system/siteagent-hub.service" in found
    assert "etc/systemd/system/siteagent.service" not in found
