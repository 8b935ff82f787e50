"""`siteagent hub`: a new site, and what is told of a hub that runs or does not."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
import trustme
from siteagent.cli.main import main
from siteagent.config import files
from siteagent.host.certificates import fingerprint, first_of


def run(tmp_path: Path, *arguments: str) -> int:
    return main(["--config", str(tmp_path / "hub.toml"), "hub", *arguments])


def test_a_new_site_gets_its_table_its_password_and_a_configuration_to_paste(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "add-node", "office.example", "--deliver-to", "office.dyn.example:25") == 0
    (node,) = files.load(tmp_path / "hub.toml", hub=True).node
    assert (node.name, node.deliver_to, node.account) == ("office.example", "office.dyn.example:25", "office")
    secret = tmp_path / "office.password"
    assert secret.stat().st_mode & 0o777 == 0o600
    out = capsys.readouterr().out
    assert secret.read_text().strip() in out
    assert "office.example.  IN MX 10" in out
    tomllib.loads(out.partition("# --- DNS")[0])


def test_a_second_site_leaves_what_people_wrote_as_it_is(tmp_path: Path) -> None:
    run(tmp_path, "add-node", "office.example", "--atrn")
    path = tmp_path / "hub.toml"
    path.write_text("# ours\n" + path.read_text())
    assert run(tmp_path, "add-node", "other.example", "--atrn") == 0
    assert path.read_text().startswith("# ours\n")
    assert [node.name for node in files.load(path, hub=True).node] == ["office.example", "other.example"]


def test_a_site_that_is_there_already_changes_nothing(tmp_path: Path) -> None:
    run(tmp_path, "add-node", "office.example", "--atrn")
    before = (tmp_path / "hub.toml").read_text()
    assert run(tmp_path, "add-node", "office.example", "--atrn") == 64
    assert (tmp_path / "hub.toml").read_text() == before


def test_a_site_that_would_not_be_right_leaves_no_password_behind(tmp_path: Path) -> None:
    assert run(tmp_path, "add-node", "office.example", "--deliver-to", "nonsense") == 78
    assert list(tmp_path.iterdir()) == []


def test_how_its_mail_gets_there_must_be_said(tmp_path: Path) -> None:
    assert run(tmp_path, "add-node", "office.example") == 64


def test_the_recipe_for_a_postfix_in_front_names_the_domains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, "add-node", "office.example", "--domain", "*.office.example", "--atrn", "--behind", "postfix")
    out = capsys.readouterr().out
    assert "relay_domains = $mydestination office.example" in out
    assert ".office.example=smtp:[127.0.0.1]:2525" in out


def test_a_hub_that_does_not_run_is_said_so_by_3_and_what_it_holds_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, "add-node", "office.example", "--atrn")
    path = tmp_path / "hub.toml"
    path.write_text(f'state_directory = "{tmp_path}/state"\n' + path.read_text())
    capsys.readouterr()
    assert run(tmp_path, "status", "--json") == 3
    assert json.loads(capsys.readouterr().out)["queue"] == {"messages": 0, "bytes": 0}
    assert run(tmp_path, "release", "office.example") == 75
    assert run(tmp_path, "queue") == 0


def test_what_a_new_hub_lacks_is_told_with_what_to_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "hub.toml").write_text('hostname = "[192.0.2.1]"\n[listener]\nlisten = ["127.0.0.1:2525"]\n')
    run(tmp_path, "add-node", "office.example", "--deliver-to", "office.dyn.example:25")
    err = capsys.readouterr().err
    assert "set hostname =" in err
    assert "no site can ask for its mail, since the hub listens on 127.0.0.1:2525 alone" in err
    assert "tls_certificate" in err


def test_a_hub_with_name_address_and_certificate_lacks_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    issued = trustme.CA().issue_cert("hub.example")
    issued.private_key_pem.write_to_path(str(tmp_path / "hub.key"))
    issued.cert_chain_pems[0].write_to_path(str(tmp_path / "hub.pem"))
    (tmp_path / "hub.toml").write_text(
        'hostname = "hub.example"\n[listener]\nlisten = ["127.0.0.1:2525", "0.0.0.0:26"]\n'
        'tls_certificate = "hub.pem"\ntls_key = "hub.key"\n'
    )
    run(tmp_path, "add-node", "office.example", "--deliver-to", "office.dyn.example:25")
    out, err = capsys.readouterr()
    pin = fingerprint(first_of(issued.cert_chain_pems[0].bytes()))
    (provider,) = tomllib.loads(out.partition("# --- DNS")[0].replace("# tls_fing", "tls_fing"))["provider"]
    assert (provider["host"], provider["port"], provider["tls_fingerprint"]) == ("hub.example", 26, pin)
    assert "note:" not in err


def test_a_site_that_would_not_be_right_is_told_without_the_name_of_a_passing_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, "add-node", "office.example", "--deliver-to", "nonsense")
    err = capsys.readouterr().err
    assert err.startswith('error: cannot add office.example: node.deliver_to: found "nonsense"')


def test_without_hub_toml_the_command_that_writes_one_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "run") == 78
    assert "run `siteagent hub add-node`" in capsys.readouterr().err


def test_where_no_hub_has_run_there_is_nothing_to_drop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "hub.toml").write_text(f'state_directory = "{tmp_path}/state"\n')
    assert run(tmp_path, "drop", "1") == 64
    assert "nothing is held here" in capsys.readouterr().err


def test_a_hub_toml_that_cannot_be_read_is_told_before_a_site_is_added(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "hub.toml").write_bytes(b"x\xff = 1\n")
    assert run(tmp_path, "add-node", "office.example", "--atrn") == 78
    assert "which is no UTF-8" in capsys.readouterr().err
    assert not (tmp_path / "office.password").exists()
