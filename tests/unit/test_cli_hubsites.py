"""`hub add-node` and `hub show-node`: from nothing to a hub that runs, and a site's part that can be pasted whole."""

from __future__ import annotations

import shutil
import ssl
import subprocess
import tomllib
from pathlib import Path

import pytest
from siteagent.cli.main import main
from siteagent.config import files
from siteagent.config.load import parse
from siteagent.config.sections import Configuration
from siteagent.host.certificates import fingerprint, first_of

ETRN = ("office.example", "--deliver-to", "office.dyn.example:25")


def run(tmp_path: Path, *arguments: str) -> int:
    return main(["--config", str(tmp_path / "hub.toml"), "hub", *arguments])


def test_all_that_is_printed_is_one_configuration_of_the_site(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, "add-node", *ETRN, "--hostname", "hub.example")
    value = parse(capsys.readouterr().out, path="", kind=Configuration)
    (provider,) = value.provider
    assert (value.hostname, provider.host, provider.reached_as) == (
        "office.dyn.example",
        "hub.example",
        "office.dyn.example",
    )


def test_the_command_that_puts_the_password_in_place_does_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, "add-node", "ship.example", "--atrn")
    printed = capsys.readouterr().out
    command = next(row for row in printed.splitlines() if row.startswith("# 2.")).partition(": ")[2]
    command = command.replace("sudo ", "").replace("/etc/siteagent", str(tmp_path / "site"))
    subprocess.run(["sh", "-c", command], check=True)
    copied = tmp_path / "site" / "ship.password"
    assert copied.read_text() == (tmp_path / "ship.password").read_text()
    assert copied.stat().st_mode & 0o777 == 0o600


@pytest.mark.tools("openssl")
def test_with_its_name_the_first_site_makes_a_hub_that_lacks_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "add-node", "ship.example", "--atrn", "--hostname", "hub.example") == 0
    out, err = capsys.readouterr()
    assert "note:" not in err
    value = files.load(tmp_path / "hub.toml", hub=True)
    assert value.hostname == "hub.example" and [each.port for each in value.odmr.listen] == [366, 366]
    ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(tmp_path / "hub.pem", tmp_path / "hub.key")
    assert (tmp_path / "hub.key").stat().st_mode & 0o777 == 0o600
    pin = fingerprint(first_of((tmp_path / "hub.pem").read_bytes()))
    assert tomllib.loads(out)["provider"][0]["tls_fingerprint"] == pin


@pytest.mark.tools("openssl")
def test_a_first_site_that_is_wrong_leaves_no_certificate_behind(tmp_path: Path) -> None:
    assert run(tmp_path, "add-node", "office.example", "--deliver-to", "x", "--hostname", "hub.example") == 78
    assert list(tmp_path.iterdir()) == []


def test_a_name_for_a_hub_that_has_a_file_already_is_refused_with_what_to_write(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, "add-node", *ETRN)
    capsys.readouterr()
    assert run(tmp_path, "add-node", "ship.example", "--atrn", "--hostname", "hub.example") == 64
    assert 'fix: set hostname = "hub.example" in that file' in capsys.readouterr().err
    assert run(tmp_path, "add-node", "ship.example", "--atrn", "--hostname", "a b") == 64


def test_behind_a_postfix_the_hub_leaves_port_25_alone(tmp_path: Path) -> None:
    run(tmp_path, "add-node", *ETRN, "--hostname", "hub.example", "--behind", "postfix")
    assert [str(each) for each in files.load(tmp_path / "hub.toml", hub=True).listener.listen] == ["127.0.0.1:2525"]


def test_what_was_printed_is_printed_again_as_the_file_has_it_by_then(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, "add-node", *ETRN)
    first, notes = capsys.readouterr()
    assert "then: `siteagent hub show-node office.example` prints the lines above anew" in notes
    path = tmp_path / "hub.toml"
    path.write_text('hostname = "hub.example"\n' + path.read_text().replace("127.0.0.1:2525", "0.0.0.0:26"))
    assert run(tmp_path, "show-node", "office.example") == 0
    again = capsys.readouterr().out
    assert (tmp_path / "office.password").read_text().strip() in again
    assert 'host = "hub.example"' in again and "port = 26" in again and again != first
    assert "office.example.  IN MX 10 hub.example." in again


def test_a_node_without_an_account_is_told_to_ask_without_a_login(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "hub.toml").write_text(
        'hostname = "hub.example"\n[listener]\nlisten = ["0.0.0.0:25"]\n[[node]]\nname = "office.example"\n'
        'domains = ["office.example"]\ndeliver_to = "office.dyn.example:25"\netrn_without_auth = true\n'
    )
    assert run(tmp_path, "show-node", "office.example") == 0
    (provider,) = parse(capsys.readouterr().out, path="", kind=Configuration).provider
    assert (provider.username, provider.tls) == (None, "opportunistic")


def test_a_password_that_we_may_not_read_leaves_its_place_open_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, "add-node", *ETRN)
    capsys.readouterr()
    read_text = Path.read_text

    def refused(path: Path, encoding: str | None = None) -> str:
        if path.name == "office.password":
            raise PermissionError(13, "Permission denied", str(path))
        return read_text(path, encoding)

    monkeypatch.setattr(Path, "read_text", refused)
    assert run(tmp_path, "show-node", "office.example") == 0
    out, notes = capsys.readouterr()
    assert "ITS-PASSWORD" in out
    assert f"{tmp_path / 'office.password'}: permission denied; put the password in yourself" in notes


def test_the_part_of_the_postfix_in_front_is_shown_again_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, "add-node", *ETRN)
    capsys.readouterr()
    assert run(tmp_path, "show-node", "office.example", "--behind", "postfix") == 0
    assert "office.example=smtp:[127.0.0.1]:2525" in capsys.readouterr().out


def test_a_node_that_is_not_there_cannot_be_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, "add-node", *ETRN)
    assert run(tmp_path, "show-node", "offise.example") == 64
    assert "known: office.example" in capsys.readouterr().err


def test_without_openssl_the_certificate_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert run(tmp_path, "add-node", "ship.example", "--atrn", "--hostname", "hub.example") == 0
    assert "without tls_certificate and tls_key" in capsys.readouterr().err
    assert not (tmp_path / "hub.pem").exists()
