"""`siteagent check` and `siteagent recipients`."""

from __future__ import annotations

from pathlib import Path

import pytest
from siteagent.cli.main import main
from siteagent.cli.setup import notes, valid_addresses
from siteagent.config.load import parse
from siteagent.config.sections import Configuration

PROVIDER = '[[provider]]\nhost = "mx.isp.example"\nnodes = ["office.example"]\n'
MAILBOX = '[[mailbox]]\naddresses = ["Alice@office.example", "sales@office.example"]\nmaildir = "alice"\n'


@pytest.fixture(autouse=True)
def _state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))


def written(folder: Path, text: str) -> str:
    path = folder / "siteagent.toml"
    path.write_text(text, "utf-8")
    path.chmod(0o644)
    return str(path)


def addresses(text: str) -> list[str]:
    value = parse(PROVIDER + text, path="x", kind=Configuration)
    return valid_addresses(value.delivery, value.mailbox)


def test_a_good_configuration_is_ok_and_summed_up_on_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, 'hostname = "mail.office.example"\n' + PROVIDER + 'peers = ["192.0.2.0/24"]\n' + MAILBOX)
    assert main(["--config", path, "check"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(f"ok: {path} ")
    for word in ("mail.office.example", "mx.isp.example:25", "192.0.2.0/24", "0.0.0.0:25", str(tmp_path / "alice")):
        assert word in captured.out
    assert captured.err == ""


def test_check_writes_nothing(tmp_path: Path) -> None:
    path = written(tmp_path, PROVIDER + MAILBOX)
    main(["--config", path, "check"])
    assert [entry.name for entry in tmp_path.iterdir()] == ["siteagent.toml"]


def test_s55_text_and_disk_are_told_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, PROVIDER + "prot = 25\n" + MAILBOX.replace('"alice"', '"none/alice"'))
    assert main(["--config", path, "check"]) == 78
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        f"error: cannot use {path}: 2 problems",
        f"  {path}:4: provider.prot: found an unknown key; did you mean port?",
        f"  {path}:7: mailbox.maildir: found no directory {tmp_path / 'none'}; "
        f"allowed: a Maildir whose parent exists: mkdir -p {tmp_path / 'none'}",
    ]


def test_permissions_alone_are_77(tmp_path: Path) -> None:
    path = written(tmp_path, PROVIDER + MAILBOX)
    Path(path).chmod(0o666)
    assert main(["--config", path, "check"]) == 77


def test_the_hub_is_checked_by_a_flag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = '[[node]]\nname = "office"\ndomains = ["office.example"]\ndeliver_to = "office.example:25"\n'
    path = written(tmp_path, text)
    assert main(["--config", path, "check", "--hub"]) == 0
    assert "office: office.example -> office.example:25" in capsys.readouterr().out


def test_what_is_allowed_but_hardly_meant_is_noted() -> None:
    text = PROVIDER + 'tls_ca_file = "ca.pem"\n' + MAILBOX
    said = notes(parse(text, path="x", kind=Configuration))
    assert ["no `peers`" in note for note in said] == [True, False]
    assert ["verifies nothing" in note for note in said] == [False, True]


def test_every_address_is_listed_once_and_postmaster_with_them() -> None:
    assert addresses(MAILBOX) == ["alice@office.example", "sales@office.example", "postmaster@office.example"]


def test_a_whole_domain_stands_for_its_addresses() -> None:
    assert addresses(MAILBOX.replace("sales@", "@")) == ["@office.example"]


def test_a_mailbox_for_unknown_names_makes_whole_domains() -> None:
    assert addresses(MAILBOX + '[delivery]\nunknown_recipient = "Alice"\n') == ["@office.example"]


def test_a_domain_of_other_letters_is_listed_as_it_travels() -> None:
    assert addresses(MAILBOX.replace("office", "b\u00fccher"))[0] == "alice@xn--bcher-kva.example"


@pytest.mark.parametrize(
    ("form", "rows"),
    [
        ("plain", ["@b.example", "a@office.example", "postmaster@office.example"]),
        ("postfix", ["@b.example OK", "a@office.example OK", "postmaster@office.example OK"]),
        ("exim", ["*@b.example", "a@office.example", "postmaster@office.example"]),
    ],
)
def test_recipients_are_printed_for_the_provider(
    form: str, rows: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, PROVIDER + '[[mailbox]]\naddresses = ["a@office.example", "@b.example"]\nmaildir = "a"\n')
    assert main(["--config", path, "recipients", "--format", form]) == 0
    assert capsys.readouterr().out.splitlines() == rows


def test_where_another_server_receives_no_empty_list_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = '[[provider]]\nhost = "mx.isp.example"\nnodes = ["office.example"]\n[listener]\nlisten = []\n'
    path = written(tmp_path, text)
    assert main(["--config", path, "recipients"]) == 64
    assert main(["--config", path, "check"]) == 0
    out, err = capsys.readouterr()
    assert "another mail server receives here" in err
    assert "may connect" not in out
