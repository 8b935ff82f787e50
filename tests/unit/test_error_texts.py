"""The errors that people meet most, word for word: what, why, fix; lower case, no stack trace."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from siteagent.cli.main import main
from siteagent.store import lock

Arrange = Callable[[Path], list[str]]

TEXT = """\
hostname = "mail.office.example"
state_directory = "{0}/state"
[[provider]]
name = "isp"
host = "192.0.2.1"
nodes = ["office.example"]
[listener]
listen = ["127.0.0.1:{1}"]
[[mailbox]]
addresses = ["alice@office.example"]
maildir = "{0}/mail/alice"
"""


def _configuration(place: Path, text: str = TEXT, *, port: int = 0) -> list[str]:
    (place / "mail").mkdir(exist_ok=True)
    (place / "siteagent.toml").write_text(text.format(place, port))
    return ["--config", str(place / "siteagent.toml")]


def no_configuration(place: Path) -> list[str]:
    return ["--config", str(place / "siteagent.toml"), "run"]


def misspelt_key(place: Path) -> list[str]:
    return [*_configuration(place, TEXT.replace("nodes =", "node =")), "check"]


def no_parent_for_the_maildir(place: Path) -> list[str]:
    return [*_configuration(place, TEXT.replace("/mail/", "/nail/")), "check"]


def password_for_all_to_read(place: Path) -> list[str]:
    (place / "secret").write_text("x\n")
    (place / "secret").chmod(0o644)
    return [
        *_configuration(place, TEXT.replace("nodes =", 'username = "u"\npassword_file = "secret"\nnodes =')),
        "check",
    ]


def port_taken(place: Path) -> list[str]:
    taken = socket.create_server(("127.0.0.1", 0))
    _kept.append(taken)
    return [*_configuration(place, port=taken.getsockname()[1]), "run"]


def a_second_agent(place: Path) -> list[str]:
    (place / "state").mkdir()
    held = lock.acquire(place / "state", purpose="run the agent")
    _kept.append(held)
    return [*_configuration(place), "run"]


def unknown_provider(place: Path) -> list[str]:
    return [*_configuration(place), "ask", "ips"]


def unknown_command(place: Path) -> list[str]:
    return ["stauts"]


def no_such_option(place: Path) -> list[str]:
    return ["probe"]


def no_toml(place: Path) -> list[str]:
    return [*_configuration(place, TEXT + "[listener]\nmax_recipients = 200\n"), "check"]


def provider_that_is_down(place: Path) -> list[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    text = TEXT.replace('host = "192.0.2.1"', f'host = "127.0.0.1"\nport = {port}')
    return [*_configuration(place, text), "ask"]


def init_again(place: Path) -> list[str]:
    return [*_configuration(place), "init", "--yes"]


def unknown_hook(place: Path) -> list[str]:
    return [*_configuration(place), "install-service", "--hooks", "wifi", "--dry-run"]


_kept: list[object] = []

EXPECTED: list[tuple[Arrange, int, str]] = [
    (
        no_configuration,
        78,
        "error: cannot read PLACE/siteagent.toml: there is no such file\n"
        "  fix: run `siteagent init`, which writes one, or give --config FILE\n",
    ),
    (
        misspelt_key,
        78,
        "error: cannot use PLACE/siteagent.toml: 2 problems\n"
        "  PLACE/siteagent.toml:3: provider.nodes: found nothing, and it is required; allowed: a list of at least one "
        "name, none twice, without blanks or letters beyond ASCII\n"
        "  PLACE/siteagent.toml:6: provider.node: found an unknown key; did you mean nodes?\n",
    ),
    (
        no_parent_for_the_maildir,
        78,
        "error: cannot use PLACE/siteagent.toml: 1 problem\n"
        "  PLACE/siteagent.toml:11: mailbox.maildir: found no directory PLACE/nail; allowed: a Maildir whose parent "
        "exists: mkdir -p PLACE/nail\n",
    ),
    (
        password_for_all_to_read,
        77,
        "error: cannot use PLACE/siteagent.toml: 1 problem\n"
        "  PLACE/siteagent.toml:7: provider.password_file: found PLACE/secret: mode 0644; allowed: a file that its "
        "owner alone can read: chmod 600 PLACE/secret\n",
    ),
    (
        port_taken,
        73,
        "error: cannot listen on 127.0.0.1:PORT: HOLDER has it\n"
        "  fix: stop that program, or set `listen` in [listener]\n",
    ),
    (
        a_second_agent,
        73,
        f"error: cannot run the agent: process {os.getpid()} already works with PLACE/state\n"
        "  fix: stop that one, or give this one a state_directory of its own\n",
    ),
    (
        unknown_provider,
        64,
        "error: cannot ask provider ips: there is none of that name in the configuration\n"
        "  fix: did you mean isp? known: isp\n",
    ),
    (
        unknown_command,
        2,
        "error: cannot read the command line: there is no command 'stauts'; did you mean status?\n"
        "  fix: `siteagent --help` tells what it takes\n",
    ),
    (
        no_such_option,
        2,
        "error: cannot read the command line: missing argument 'DOMAIN|HOST'\n"
        "  fix: `siteagent probe --help` tells what it takes\n",
    ),
    (
        no_toml,
        78,
        "error: cannot use PLACE/siteagent.toml: 1 problem\n"
        "  PLACE/siteagent.toml:12: found [listener] a second time; allowed: each table once; one of several has [[two "
        "brackets]]\n",
    ),
    (
        provider_that_is_down,
        75,
        "isp: port PORT of 127.0.0.1: connection refused\n"
        "  fix: nothing yet, the next ask may do better; if it lasts, check host and port of provider isp, and whether "
        "this line lets that port out (`siteagent probe`)\n",
    ),
    (
        init_again,
        73,
        "error: cannot write PLACE/siteagent.toml: it exists already\n"
        "  fix: edit it, or use --force, which keeps the old one as a .bak\n",
    ),
    (
        unknown_hook,
        64,
        "error: cannot install hooks: there is none for 'wifi'\n"
        "  fix: known: networkmanager, ppp, networkd, ifupdown; auto, none\n",
    ),
]


@pytest.mark.parametrize(("arrange", "code", "expected"), EXPECTED, ids=[row[0].__name__ for row in EXPECTED])
def test_what_people_meet_most_is_said_in_these_words(
    tmp_path: Path, arrange: Arrange, code: int, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = arrange(tmp_path)
    umask = os.umask(0o022)  # commands set it for the whole process
    try:
        assert main(arguments) == code
    finally:
        os.umask(umask)
        for thing in _kept:
            close = getattr(thing, "close", None) or thing.release  # type: ignore[attr-defined]
            close()
        _kept.clear()
    said = capsys.readouterr().err.replace(str(tmp_path), "PLACE")
    said = re.sub(r"127\.0\.0\.1:\d+: .* has it", "127.0.0.1:PORT: HOLDER has it", said)
    said = re.sub(r"port \d+ of", "port PORT of", said)
    assert said.endswith(expected), json.dumps(said)
    assert "Traceback" not in said
