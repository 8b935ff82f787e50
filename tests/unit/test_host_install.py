"""`install-service` as a plan, and the plan carried out below a directory."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest
from siteagent.config.files import load
from siteagent.config.load import parse
from siteagent.config.sections import Configuration
from siteagent.errors import CannotCreate, ConfigurationError, UsageError
from siteagent.host import install
from siteagent.host.grants import Command
from siteagent.host.install import Interpreter, Plan, Wishes

OPT = Interpreter(Path("/opt/siteagent/bin/python"))
TEXT = (
    'state_directory = "/var/lib/siteagent"\n[[provider]]\nhost = "mx.isp.example"\nnodes = ["office.example"]\n'
    '[[mailbox]]\naddresses = ["alice@office.example"]\nmaildir = "/var/mail/siteagent/alice"\n'
)

HUB_TEXT = (
    'state_directory = "/var/lib/siteagent-hub"\n[[node]]\nname = "office.example"\ndomains = ["office.example"]\n'
    'account = "office"\npassword_file = "office.password"\n'
)


def wishes(root: Path | None, *, text: str = TEXT, hooks: tuple[str, ...] | None = None, hub: bool = False) -> Wishes:
    value = None if hub else parse(text, path="", kind=Configuration)
    source = Path("/etc/siteagent/siteagent.toml")
    return Wishes(interpreter=OPT, configuration=value, source=source, root=root, hooks=hooks, hub=hub)


def installed(root: Path, **more: object) -> Plan:
    made = install.plan(wishes(root, **more))  # type: ignore[arg-type]
    install.write(made, root)
    return made


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_everything_that_the_plan_names_is_written_and_nothing_else(tmp_path: Path) -> None:
    made = installed(tmp_path)
    assert files(tmp_path) == {str(file.path)[1:] for file in made.files}
    assert "etc/systemd/system/siteagent.socket" in files(tmp_path)


def test_programs_can_be_run_and_texts_cannot(tmp_path: Path) -> None:
    os.umask(0o077)
    installed(tmp_path, hooks=("networkmanager",))
    modes = {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in files(tmp_path)}
    runnable = {name for name, mode in modes.items() if mode == 0o755}
    assert runnable == {
        "usr/lib/siteagent/start",
        "usr/lib/siteagent/link-hook",
        "etc/NetworkManager/dispatcher.d/90-siteagent",
    }
    assert all(mode in (0o644, 0o755) for mode in modes.values())


def test_an_empty_root_is_a_package_and_carries_every_hook(tmp_path: Path) -> None:
    installed(tmp_path)
    assert {
        "etc/ppp/ip-up.d/siteagent",
        "etc/ppp/ipv6-up.d/siteagent",
        "etc/networkd-dispatcher/routable.d/siteagent",
        "etc/network/if-up.d/siteagent",
        "etc/NetworkManager/dispatcher.d/90-siteagent",
    } <= files(tmp_path)


def test_a_system_gets_the_hooks_of_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "usr/lib").mkdir(parents=True)
    (tmp_path / "usr/lib/os-release").write_text("ID=debian\n")
    (tmp_path / "etc/ppp").mkdir(parents=True)
    installed(tmp_path)
    assert "etc/ppp/ip-up.d/siteagent" in files(tmp_path)
    assert "etc/NetworkManager/dispatcher.d/90-siteagent" not in files(tmp_path)


def test_hooks_are_named_auto_none_or_by_a_list() -> None:
    assert install.named_hooks("auto") is None
    assert install.named_hooks("none") == ()
    assert install.named_hooks("nm, ppp") == ("networkmanager", "ppp")
    with pytest.raises(UsageError) as caught:
        install.named_hooks("wifi")
    assert caught.value.fix == "known: networkmanager, ppp, networkd, ifupdown; auto, none"


@pytest.mark.parametrize("place", ["/home/joe/venv/bin/python", "/root/.local/bin/python"])
@pytest.mark.parametrize("root", [None, Path("/tmp/x")])
def test_an_interpreter_that_services_cannot_see_is_refused_with_the_recipe(place: str, root: Path | None) -> None:
    with pytest.raises(ConfigurationError) as caught:
        install.plan(Wishes(interpreter=Interpreter(Path(place)), root=root))
    assert "which services cannot see" in caught.value.why
    assert "python3 -m venv /opt/siteagent" in str(caught.value.fix)


def test_one_that_only_leads_there_is_refused_on_this_host_and_warned_of_for_another(tmp_path: Path) -> None:
    leads = Interpreter(Path("/opt/siteagent/bin/python"), (Path("/root/.pyenv"),))
    with pytest.raises(ConfigurationError):
        install.plan(Wishes(interpreter=leads))
    assert "/root/.pyenv" in install.plan(Wishes(interpreter=leads, root=tmp_path)).notes[0]


def test_the_wrapper_names_the_cure_where_the_python_is_gone(tmp_path: Path) -> None:
    installed(tmp_path)
    done = subprocess.run(["sh", str(tmp_path / "usr/lib/siteagent/start"), "run"], capture_output=True, text=True)
    assert done.returncode == 78
    assert "<3>cannot start siteagent: /opt/siteagent/bin/python is gone" in done.stderr
    assert "python3 -m venv --clear /opt/siteagent && /opt/siteagent/bin/pip install siteagent" in done.stderr


def test_uninstalling_leaves_what_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "etc/siteagent").mkdir(parents=True)
    (tmp_path / "etc/siteagent/siteagent.toml").write_text(TEXT)
    installed(tmp_path)
    own = tmp_path / "etc/systemd/system/siteagent.service.d/20-mine.conf"
    own.write_text("[Service]\nNice=5\n")
    install.remove(install.removal(hub=False, root=tmp_path), tmp_path)
    assert files(tmp_path) == {"etc/siteagent/siteagent.toml", str(own.relative_to(tmp_path))}


def test_uninstalling_one_of_two_leaves_what_both_need(tmp_path: Path) -> None:
    installed(tmp_path)
    installed(tmp_path, hub=True)
    install.remove(install.removal(hub=True, root=tmp_path), tmp_path)
    assert "usr/lib/siteagent/start" in files(tmp_path)
    assert not [name for name in files(tmp_path) if "hub" in name]


def test_installing_again_takes_away_what_is_no_longer_wanted(tmp_path: Path) -> None:
    installed(tmp_path)
    installed(tmp_path, text=TEXT + '[listener]\nopen = "asked"\n', hooks=())
    assert not [name for name in files(tmp_path) if "ppp" in name or name.endswith(".socket")]


def test_uninstalling_what_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing says that it is installed"):
        install.removal(hub=False, root=tmp_path)


def test_a_list_of_files_that_leads_out_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "usr/lib/siteagent").mkdir(parents=True)
    (tmp_path / "usr/lib/siteagent/installed").write_text("/usr/lib/siteagent/../../../etc/passwd\nrelative\n/usr/x\n")
    assert Path("/usr/x") in install.removal(hub=False, root=tmp_path).removed
    assert not [path for path in install.removal(hub=False, root=tmp_path).removed if "passwd" in str(path)]


def test_the_socket_is_stopped_before_the_service(tmp_path: Path) -> None:
    installed(tmp_path)
    (command,) = install.removal(hub=False, root=tmp_path).commands
    assert command.argv[-2:] == ("siteagent.socket", "siteagent.service")


def test_a_command_that_does_not_succeed_ends_the_installation() -> None:
    said: list[str] = []
    with pytest.raises(CannotCreate, match="cannot run false"):
        install.run(
            [Command(("true",), "first"), Command(("false",), "then"), Command(("true",), "never")], said.append
        )
    assert said == ["true  # first", "false  # then"]


def test_a_reader_without_setfacl_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    made = install.plan(wishes(tmp_path, text=TEXT + 'reader = "root"\n'))
    assert "apt install acl" in made.notes[-1]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="needs root")
def test_what_root_left_while_trying_it_out_is_handed_over_to_the_service(tmp_path: Path) -> None:
    place = tmp_path / "state"
    place.mkdir()
    made = install.plan(wishes(tmp_path / "root", text=TEXT.replace("/var/lib/siteagent", str(place))))
    assert ("chown", "-R", "siteagent:siteagent", str(place)) in [command.argv for command in made.commands]
    os.chown(place, 5, 5)
    again = install.plan(wishes(tmp_path / "root", text=TEXT.replace("/var/lib/siteagent", str(place))))
    assert not [command for command in again.commands if command.argv[0] == "chown"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("hub", [False, True])
def test_a_password_that_root_put_beside_the_configuration_can_be_read_by_the_service(
    tmp_path: Path, hub: bool
) -> None:
    secret = tmp_path / "office.password"
    secret.touch(mode=0o600)
    text = (
        HUB_TEXT
        if hub
        else TEXT.replace("[[mailbox]]", 'username = "u"\npassword_file = "office.password"\n[[mailbox]]')
    )
    (tmp_path / "conf.toml").write_text(text)
    value = load(tmp_path / "conf.toml", hub=True) if hub else load(tmp_path / "conf.toml")
    wanted = Wishes(
        interpreter=OPT, configuration=value, source=tmp_path / "conf.toml", root=tmp_path / "root", hub=hub
    )
    commands = [command.argv for command in install.plan(wanted).commands]
    user = "siteagent-hub" if hub else "siteagent"
    assert ("chgrp", user, str(secret)) in commands and ("chmod", "0640", str(secret)) in commands
    assert commands.index(("chmod", "0640", str(secret))) < len(commands) - 1, "before the service starts"
    secret.chmod(0o640)
    assert not [c for c in install.plan(wanted).commands if c.argv[0] in ("chgrp", "chmod")], "once is enough"
