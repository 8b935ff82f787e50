"""From nothing to mail with the commands that a new user is told, in the order in which they are told.

What a command prints is used as it was printed: only places on the disk are changed, so that nothing of the host's own
is touched.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.e2e.lab import Lab
from tests.e2e.messages import Shape
from tests.e2e.net import Namespace, wait_for
from tests.e2e.postfix import smtp

pytestmark = pytest.mark.netns

ROOT = Path(__file__).resolve().parents[2]


class Host:
    """Somebody at the keyboard of one host: its namespace, its /etc/siteagent and state below `place`."""

    def __init__(self, namespace: Namespace, place: Path) -> None:
        self.namespace, self.place = namespace, place
        self.etc = place / "etc"
        self.log = place / "log"
        place.mkdir()
        named = {
            "SITEAGENT_CONFIG": str(self.etc / "siteagent.toml"),
            "SITEAGENT_HUB_CONFIG": str(self.etc / "hub.toml"),
            "STATE_DIRECTORY": str(place / "state"),
        }
        self.env = {**os.environ, **named}

    def says(self, *words: str, code: int = 0, shell: str | None = None) -> str:
        """The output of `siteagent WORDS` (or of a line for the shell), stdout and then stderr."""
        argv = ["sh", "-c", shell] if shell is not None else [sys.executable, "-m", "siteagent", *words]
        done = subprocess.run(
            self.namespace.argv(*argv),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            env=self.env,
            cwd=ROOT,
        )
        assert done.returncode == code, f"{words or shell}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout if words[:2] == ("hub", "add-node") else done.stdout + done.stderr

    def starts(self, *words: str, until: str) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as output:
            argv = [sys.executable, "-m", "siteagent", *words]
            process = self.namespace.start(*argv, output=output, env=self.env, cwd=ROOT)
        wait_for(lambda: until in self.log.read_text(), until, seconds=30)
        return process

    def pastes(self, printed: str) -> None:
        """Does what the numbered lines of `hub add-node` say, with the host's places moved below ours."""
        here = printed.replace("/etc/siteagent", str(self.etc)).replace("/var/mail/siteagent", str(self.place / "mail"))
        self.etc.mkdir()
        (self.etc / "siteagent.toml").write_text(here)
        for row in here.splitlines():
            if row.startswith(("# 2.", "# 3.")):
                command = row.partition(": ")[2] or row.partition(". ")[2]
                program = f"{sys.executable} -m siteagent"
                self.says(shell=command.replace("sudo siteagent", program).replace("sudo ", ""))


def letter(recipient: str) -> Shape:
    body = f"From: <a@world.example>\nTo: <{recipient}>\nSubject: hello\n\nHello.\n"
    return Shape("hello", "a@world.example", (recipient,), body.encode())


def mail_of(place: Path) -> list[Path]:
    return [path for path in place.rglob("new/*") if b"Hello." in path.read_bytes()]


def in_haste(configuration: Path) -> None:
    """Waiting for quiet proves nothing here."""
    text = configuration.read_text()
    configuration.write_text(text.replace("[[provider]]\n", "[[provider]]\nquiet_seconds = 1\n"))


@pytest.mark.tools("openssl")
@pytest.mark.parametrize(
    "way",
    [
        pytest.param(("--deliver-to", "office.dyn.example:25"), id="etrn", marks=pytest.mark.slow),
        pytest.param(("--atrn",), id="atrn"),
    ],
)
def test_a_hub_and_a_site_come_up_by_one_command_and_one_paste(lab: Lab, way: tuple[str, ...]) -> None:
    line = lab.line()
    line.up()
    line.site.knows("hub.example", line.provider_address)
    line.provider.knows("office.dyn.example", line.site_address)
    hub, site = Host(line.provider, lab.directory / "hub"), Host(line.site, lab.directory / "site")
    printed = hub.says("hub", "add-node", "office.example", *way, "--hostname", "hub.example")
    hub.says("check", "--hub")
    hub.starts("hub", "run", until="hub.ready")
    site.pastes(printed)
    in_haste(site.etc / "siteagent.toml")
    with smtp(line.provider, line.provider_address, 25, "world.example") as world:
        world.sendmail("a@world.example", ["bob@office.example"], letter("bob@office.example").on_the_wire())
    assert "drained, 1 message" in site.says("ask")
    assert len(mail_of(site.place)) == 1


@pytest.mark.postfix
def test_a_site_comes_up_by_probe_and_init_against_a_postfix(lab: Lab) -> None:
    isp = lab.provider("isp", nodes=("office.example",))
    isp.queue([letter("alice@office.example")])
    isp.line.up()
    site = Host(lab.site, lab.directory / "site")
    told = site.says("probe", isp.host)
    assert "layout A" in told
    command = next(row.strip() for row in told.splitlines() if row.strip().startswith("siteagent init"))
    mail = str(site.place / "mail")
    more = ["--mailbox", "alice=alice@office.example", "--maildir-root", mail, "--yes"]
    told = site.says(*command.split()[1:], *more)
    assert "asks whenever the line comes up" in told and "siteagent provider-sheet" in told
    in_haste(site.etc / "siteagent.toml")
    assert "drained, 1 message" in site.says("ask")
    assert len(mail_of(site.place)) == 1
