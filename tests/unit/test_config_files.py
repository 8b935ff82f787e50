"""The configuration as a file of this host: found, read, completed; passwords; what lies where it points."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
import trustme
from siteagent.config import files, paths
from siteagent.config.draft import Problems
from siteagent.config.sections import Configuration, HubConfiguration, Provider
from siteagent.errors import ConfigurationError, PermissionProblem

PROVIDER = '[[provider]]\nhost = "mx.isp.example"\nnodes = ["office.example"]\n'
MAILBOX = '[[mailbox]]\naddresses = ["alice@office.example"]\nmaildir = "alice"\n'
posix = pytest.mark.skipif(sys.platform == "win32", reason="file modes are POSIX's")
root = pytest.mark.skipif(sys.platform == "win32" or os.geteuid() != 0, reason="needs root")


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("SITEAGENT_CONFIG", "SITEAGENT_HUB_CONFIG", "CONFIGURATION_DIRECTORY", "CREDENTIALS_DIRECTORY",
                 "LISTEN_PID", "LISTEN_FDS"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))


def written(folder: Path, text: str) -> Path:
    path = folder / "siteagent.toml"
    path.write_text(text, "utf-8")
    path.chmod(0o644)
    return path


def told(path: Path) -> list[str]:
    """What `check` would say: "line key: found"."""
    value, draft = files.survey(path, kind=Configuration)
    assert value is not None
    paths.inspect(path, value, draft)
    return [
        f"{problem.line} {problem.key}: {problem.found}" for problem in sorted(draft.problems, key=lambda p: p.line)
    ]


# --- finding ----------------------------------------------------------------------------------------------------------


def test_an_explicit_file_wins_even_if_it_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SITEAGENT_CONFIG", str(written(tmp_path, "")))
    assert files.find(tmp_path / "other.toml") == tmp_path / "other.toml"


def test_the_environment_comes_before_the_directory_of_systemd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SITEAGENT_CONFIG", "/named.toml")
    monkeypatch.setenv("CONFIGURATION_DIRECTORY", str(written(tmp_path, "").parent))
    assert files.find(None) == Path("/named.toml")


def test_the_directory_of_systemd_counts_where_the_file_is_in_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = written(tmp_path, "")
    monkeypatch.setenv("CONFIGURATION_DIRECTORY", f"/nowhere{os.pathsep}{tmp_path}")
    assert files.find(None) == path
    assert files.find(None, hub=True) != path


def test_the_hub_has_a_variable_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SITEAGENT_HUB_CONFIG", "/hub.toml")
    assert files.find(None, hub=True) == Path("/hub.toml")
    assert files.find(None) != Path("/hub.toml")


# --- reading ----------------------------------------------------------------------------------------------------------


def test_relative_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    text = PROVIDER + MAILBOX + '[hooks]\nround_ended = ["./hang-up", "x"]\n[log]\nfile = "a.log"\n'
    value = files.load(written(tmp_path, 'state_directory = "s"\n' + text))
    assert value.state_directory == tmp_path / "s"
    assert value.mailbox[0].maildir == tmp_path / "alice"
    assert value.hooks.commands["round_ended"] == (str(tmp_path / "hang-up"), "x")
    assert value.log.file == str(tmp_path / "a.log")


def test_a_program_without_a_slash_is_left_to_path(tmp_path: Path) -> None:
    value = files.load(written(tmp_path, PROVIDER + MAILBOX + '[hooks]\nround_ended = ["true"]\n'))
    assert value.hooks.commands["round_ended"] == ("true",)


def test_the_state_directory_is_the_one_of_systemd_by_default(tmp_path: Path) -> None:
    assert files.load(written(tmp_path, PROVIDER + MAILBOX)).state_directory == tmp_path / "state"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the places of Linux")
def test_who_is_not_root_finds_the_services_state_by_the_hosts_own_configuration(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("STATE_DIRECTORY")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert files.default_state_directory(Path("/etc/siteagent/siteagent.toml")) == Path("/var/lib/siteagent")
    assert files.default_state_directory(Path("/etc/siteagent/hub.toml"), hub=True) == Path("/var/lib/siteagent-hub")
    assert Path.home() in files.default_state_directory(tmp_path / "siteagent.toml").parents


def test_the_state_directory_is_known_while_something_else_is_wrong(tmp_path: Path) -> None:
    path = written(tmp_path, 'state_directory = "s"\n[[provider]]\nhost = 7\n')
    assert files.state_directory(path) == tmp_path / "s"


def test_a_hostname_without_a_dot_gives_way_to_the_address_literal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "office")
    assert files.own_hostname().startswith("[")
    monkeypatch.setattr(socket, "gethostname", lambda: "mail.office.example")
    assert files.own_hostname() == "mail.office.example"


def test_a_missing_file_is_told_with_the_command_that_writes_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no such file") as caught:
        files.load(tmp_path / "none.toml")
    assert "siteagent init" in str(caught.value.fix)


def test_a_directory_in_place_of_the_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="directory"):
        files.load(tmp_path)


def test_a_byte_order_mark_is_no_problem(tmp_path: Path) -> None:
    path = written(tmp_path, "")
    path.write_bytes(b"\xef\xbb\xbf" + (PROVIDER + MAILBOX).encode())
    assert files.load(path)


def test_what_is_no_utf_8_is_told_with_its_line(tmp_path: Path) -> None:
    path = written(tmp_path, "")
    path.write_bytes(b"# ok\n# b\xfccher\n")
    with pytest.raises(Problems) as caught:
        files.load(path)
    assert caught.value.problems[0].line == 2


def test_a_port_held_by_systemd_cannot_open_on_demand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = written(tmp_path, PROVIDER + MAILBOX + '[listener]\nopen = "asked"\n')
    assert files.load(path)
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", "1")
    with pytest.raises(Problems, match=r"8: listener\.open"):
        files.load(path)


def test_a_stamp_changes_with_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "a")
    before = files.stamp(path)
    assert before == files.stamp(path)
    written(tmp_path, "ab")
    assert files.stamp(path) != before
    path.unlink()
    assert files.stamp(path) is None


def test_a_replaced_file_of_the_same_size_and_time_has_another_stamp(tmp_path: Path) -> None:
    path = written(tmp_path, "a")
    before, status = files.stamp(path), path.stat()
    other = tmp_path / "other"
    other.write_text("b")
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(path)
    assert files.stamp(path) != before


# --- passwords --------------------------------------------------------------------------------------------------------


def provider(secret: Path | None, **more: str) -> Provider:
    return Provider(host="mx", nodes=("a",), name="isp", username="u", password_file=secret, **more)


def secret(folder: Path, content: bytes = b"hunter2\n", mode: int = 0o600) -> Path:
    path = folder / "isp.password"
    path.write_bytes(content)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("content", [b"hunter2", b"hunter2\n", b"hunter2\r\n# a comment\n"])
def test_a_password_is_the_first_line_of_its_file(tmp_path: Path, content: bytes) -> None:
    assert files.password(provider(secret(tmp_path, content))) == "hunter2"


@posix
@pytest.mark.parametrize("mode", [0o644, 0o604, 0o620, 0o602])
def test_s55_a_password_that_others_can_reach_is_not_used(tmp_path: Path, mode: int) -> None:
    with pytest.raises(PermissionProblem, match=f"{mode:04o}"):
        files.password(provider(secret(tmp_path, mode=mode)))


@posix
def test_s55_a_secret_readable_by_others_is_told_with_file_and_line_among_the_rest(tmp_path: Path) -> None:
    secret(tmp_path, mode=0o644)
    text = PROVIDER + 'username = "u"\npassword_file = "isp.password"\nprot = 25\n' + MAILBOX
    with pytest.raises(Problems) as caught:
        files.load(written(tmp_path, text))
    assert [(problem.line, problem.key) for problem in caught.value.problems] == [
        (5, "provider.password_file"),
        (6, "provider.prot"),
    ]
    assert caught.value.exit_code == 78


@posix
def test_s55_a_secret_readable_by_others_alone_ends_with_77(tmp_path: Path) -> None:
    secret(tmp_path, mode=0o644)
    with pytest.raises(Problems) as caught:
        files.load(written(tmp_path, PROVIDER + 'username = "u"\npassword_file = "isp.password"\n' + MAILBOX))
    assert caught.value.exit_code == 77


@root
def test_a_password_of_root_may_be_read_through_the_group_of_the_service(tmp_path: Path) -> None:
    path = secret(tmp_path, mode=0o640)
    os.chown(path, 0, 12345)
    assert files.password(provider(path)) == "hunter2"


@posix
def test_a_fifo_in_place_of_a_password_does_not_stop_us(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "isp.password", 0o600)
    with pytest.raises(ConfigurationError, match="regular file"):
        files.password(provider(tmp_path / "isp.password"))


def test_an_empty_password_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="empty"):
        files.password(provider(secret(tmp_path, b"\n")))


def test_a_credential_of_systemd_is_a_password(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "siteagent.isp.password").write_text("from systemd\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert files.password(provider(None)) == "from systemd"


def test_a_login_without_a_password_is_told_at_its_line(tmp_path: Path) -> None:
    with pytest.raises(Problems) as caught:
        files.load(written(tmp_path, PROVIDER + 'username = "u"\n' + MAILBOX))
    assert [(problem.line, problem.found) for problem in caught.value.problems] == [(4, "no password with it")]


def test_a_login_with_a_credential_needs_no_password_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "siteagent.mx.isp.example.password").write_text("x")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert files.load(written(tmp_path, PROVIDER + 'username = "u"\n' + MAILBOX))


def test_nobody_logs_in_without_an_account() -> None:
    assert files.password(Provider(host="mx", nodes=("a",))) is None


# --- what lies on the disk --------------------------------------------------------------------------------------------


def test_a_maildir_whose_parent_is_missing_is_told(tmp_path: Path) -> None:
    path = written(tmp_path, PROVIDER + MAILBOX.replace('"alice"', '"none/alice"'))
    assert told(path) == [f"6 mailbox.maildir: no directory {tmp_path / 'none'}"]


def test_a_maildir_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "alice").touch()
    path = written(tmp_path, PROVIDER + MAILBOX)
    assert told(path) == [f"6 mailbox.maildir: {tmp_path / 'alice'}, which is no directory"]


def test_a_maildir_that_will_be_made_is_fine(tmp_path: Path) -> None:
    assert told(written(tmp_path, PROVIDER + MAILBOX)) == []


@posix
def test_a_linked_new_is_told(tmp_path: Path) -> None:
    (tmp_path / "alice/tmp").mkdir(parents=True)
    (tmp_path / "alice/new").symlink_to(tmp_path)
    path = written(tmp_path, PROVIDER + MAILBOX)
    assert told(path) == [f"6 mailbox.maildir: {tmp_path / 'alice/new'}, which is a symbolic link"]


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() != 0, reason="giving a link away takes root")
def test_s50_a_maildir_that_a_users_link_leads_elsewhere_is_told(tmp_path: Path) -> None:
    for part in ("tmp", "new", "cur"):
        (tmp_path / "elsewhere" / part).mkdir(parents=True, mode=0o700)
    (tmp_path / "alice").symlink_to(tmp_path / "elsewhere")
    path = written(tmp_path, PROVIDER + MAILBOX)
    assert told(path) == []
    os.chown(tmp_path / "alice", 12345, 12345, follow_symlinks=False)
    (problem,) = told(path)
    assert f"{tmp_path}/alice, a symbolic link of user 12345" in problem


@root
def test_a_new_that_belongs_to_somebody_else_is_told(tmp_path: Path) -> None:
    (tmp_path / "alice/new").mkdir(parents=True)
    os.chown(tmp_path / "alice/new", 12345, 12345)
    path = written(tmp_path, PROVIDER + MAILBOX)
    assert told(path) == [f"6 mailbox.maildir: {tmp_path / 'alice/new'}, which belongs to user 12345"]


@root
def test_root_looks_as_the_owner_of_the_state_directory_and_is_root_again(tmp_path: Path) -> None:
    for place in (tmp_path, *list(tmp_path.parents)[:2]):
        place.chmod(0o755)
    (tmp_path / "state").mkdir()
    os.chown(tmp_path / "state", 12345, 12345)
    path = written(tmp_path, PROVIDER + MAILBOX)
    assert told(path) == [f"6 mailbox.maildir: a Maildir in {tmp_path}, where we may not write"]
    assert (os.geteuid(), os.getegid()) == (0, 0)


def test_a_reader_whom_nobody_knows_is_told(tmp_path: Path) -> None:
    path = written(tmp_path, PROVIDER + MAILBOX + 'reader = "nobody-of-this-name"\n')
    assert told(path) == ['7 mailbox.reader: "nobody-of-this-name", whom nobody knows here']


def test_a_hook_that_cannot_be_run_is_told(tmp_path: Path) -> None:
    (tmp_path / "hang-up").write_text("#!/bin/sh\n")
    path = written(tmp_path, PROVIDER + MAILBOX + '[hooks]\nround_ended = ["./hang-up"]\n')
    assert told(path) == [f"8 hooks.round_ended: {tmp_path / 'hang-up'}, which cannot be run"]


@posix
def test_a_configuration_that_everybody_may_write_is_told(tmp_path: Path) -> None:
    path = written(tmp_path, PROVIDER + MAILBOX)
    path.chmod(0o646)
    assert told(path) == ["1 : mode 0646 of the file itself"]


def test_a_missing_password_file_is_told_once(tmp_path: Path) -> None:
    path = written(tmp_path, PROVIDER + 'username = "u"\npassword_file = "p"\n' + MAILBOX)
    assert told(path) == [f"5 provider.password_file: {tmp_path / 'p'}: no such file or directory"]


def pem(folder: Path, certificate: trustme.LeafCert, name: str, *, key: trustme.LeafCert | None = None) -> str:
    certificate.cert_chain_pems[0].write_to_path(folder / f"{name}.pem")
    (key or certificate).private_key_pem.write_to_path(folder / f"{name}.key")
    (folder / f"{name}.key").chmod(0o600)
    return f'[listener]\ntls_certificate = "{name}.pem"\ntls_key = "{name}.key"\n'


def test_a_certificate_with_its_key_is_fine(tmp_path: Path) -> None:
    text = pem(tmp_path, trustme.CA().issue_cert("mail.office.example"), "own")
    assert told(written(tmp_path, PROVIDER + MAILBOX + text)) == []


def test_a_certificate_with_the_key_of_another_is_told(tmp_path: Path) -> None:
    ca = trustme.CA()
    text = pem(tmp_path, ca.issue_cert("a.example"), "own", key=ca.issue_cert("b.example"))
    assert told(written(tmp_path, PROVIDER + MAILBOX + text)) == [
        "9 listener.tls_key: own.key and own.pem, which do not go together (key values mismatch)"
    ]


@posix
def test_a_key_that_everybody_can_read_is_told(tmp_path: Path) -> None:
    text = pem(tmp_path, trustme.CA().issue_cert("a.example"), "own")
    (tmp_path / "own.key").chmod(0o644)
    assert told(written(tmp_path, PROVIDER + MAILBOX + text)) == [
        f"9 listener.tls_key: {tmp_path / 'own.key'}: mode 0644"
    ]


def test_a_ca_file_without_a_certificate_is_told(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    path = written(tmp_path, PROVIDER + 'tls_ca_file = "ca.pem"\n' + MAILBOX)
    assert told(path) == [f"4 provider.tls_ca_file: {tmp_path / 'ca.pem'}, which holds no certificates"]
    assert isinstance(ssl.OPENSSL_VERSION, str)


def test_a_hub_is_read_with_a_state_directory_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("STATE_DIRECTORY")
    text = '[[node]]\nname = "a"\ndomains = ["a.example"]\ndeliver_to = "a.example:25"\n'
    hub = files.load(written(tmp_path, text), hub=True)
    assert isinstance(hub, HubConfiguration)
    assert "siteagent-hub" in str(hub.state_directory)


def test_reading_a_configuration_imports_nothing_slow(tmp_path: Path) -> None:
    path = written(tmp_path, PROVIDER + MAILBOX)
    heavy = "{'platformdirs', 'idna', 'difflib', 'cattrs', 'ssl', 'click', 'rich', 'asyncio'}"
    program = (
        f"import sys; from siteagent.config.files import load; import pathlib; load(pathlib.Path({str(path)!r}))\n"
    )
    program += f"print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
