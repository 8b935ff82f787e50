"""The installed service under a systemd that is process 1: its sandbox, its socket, its credential, its readers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e import booted
from tests.e2e.booted import Machine

pytestmark = [
    pytest.mark.slow,
    pytest.mark.netns,
    pytest.mark.mounts,
    pytest.mark.tools("nsenter", "unshare", "setfacl", "runuser", "systemctl"),
    pytest.mark.skipif(booted.why_not() is not None, reason=str(booted.why_not())),
]

ROOT = Path(__file__).parents[2]
SITE = """
hostname = "mail.office.example"
[[provider]]
name = "isp"
host = "127.0.0.1"
port = 2525
nodes = ["office.example"]
{provider}
first_connection_seconds = 5
quiet_seconds = 1
ask_every_seconds = 0
[[mailbox]]
name = "alice"
addresses = ["alice@office.example"]
maildir = "/var/mail/siteagent/alice"
[[mailbox]]
name = "bob"
addresses = ["bob@office.example"]
maildir = "/home/bob/Maildir"
reader = "bob"
"""
HUB = """
hostname = "hub.isp.example"
[listener]
listen = ["127.0.0.1:2525"]
[[node]]
name = "office.example"
domains = ["office.example"]
deliver_to = "127.0.0.1:25"
etrn_without_auth = true
"""
SEND = """
import smtplib, sys
with smtplib.SMTP("127.0.0.1", 2525) as client:
    for to in ("alice", "bob"):
        text = f"Subject: {sys.argv[1]} for {to}\\r\\n\\r\\nhi\\r\\n"
        client.sendmail("friend@far.example", [f"{to}@office.example"], text)
"""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine with a hub as the provider and the agent as the site, both installed as services."""
    base = tmp_path_factory.mktemp("booted")
    built = subprocess.run(
        [sys.executable, "-c", f"from hatchling.build import build_wheel; print(build_wheel({str(base)!r}))"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    place = base / "machine"
    place.mkdir()
    with booted.machine(place, base / built.stdout.split()[-1]) as made:
        made.ok("useradd", "--create-home", "bob")
        made.write("/etc/siteagent/hub.toml", HUB)
        made.write("/etc/siteagent/siteagent.toml", SITE.format(provider='tls = "off"'))
        made.ok("siteagent", "install-service", "--hub")
        made.ok("siteagent", "install-service")
        yield made


def settled(machine: Machine) -> None:
    machine.wait_for(
        lambda: 'state": "resting' in machine.run("siteagent", "status", "--json").stdout, "the round's end"
    )


def main_pid(machine: Machine) -> str:
    return machine.ok("systemctl", "show", "--property=MainPID", "--value", "siteagent").strip()


def test_it_runs_as_nobody_in_particular_in_a_sandbox(machine: Machine) -> None:
    status = machine.ok("cat", f"/proc/{main_pid(machine)}/status")
    rows = dict(row.split(":\t", 1) for row in status.splitlines() if ":\t" in row)
    assert rows["Uid"].split()[0] == machine.ok("id", "-u", "siteagent").strip() != "0"
    assert (rows["CapEff"], rows["CapBnd"], rows["NoNewPrivs"], rows["Seccomp"]) == ("0" * 16, "0" * 16, "1", "2")
    homes = machine.ok("ls", f"/proc/{main_pid(machine)}/root/home/bob")
    assert homes.split() == ["Maildir"], "of the homes it sees the Maildir alone"


def test_mail_comes_through_it_and_each_reader_reads_his_own(machine: Machine) -> None:
    settled(machine)
    machine.ok("python3", "-c", SEND, "first")
    assert "drained, 2 messages" in machine.ok("siteagent", "ask")
    read = "cat Maildir/new/*; mv Maildir/new/* Maildir/cur/; rm Maildir/cur/*"
    assert "Subject: first for bob" in machine.ok("sh", "-c", f"cd /home/bob; {read}", user="bob")
    assert machine.run("sh", "-c", "cat /var/mail/siteagent/alice/new/*", user="bob").returncode != 0
    assert "Subject: first for alice" in machine.ok("sh", "-c", "cat /var/mail/siteagent/alice/new/*")


def test_doctor_finds_nothing_red(machine: Machine) -> None:
    assert "FAIL" not in machine.ok("siteagent", "doctor")


def test_a_maildir_that_came_after_the_installing_is_red(machine: Machine) -> None:
    later = '[[mailbox]]\naddresses = ["new@office.example"]\nmaildir = "/srv/mail/new"\n'
    machine.ok("install", "-d", "-o", "siteagent", "/srv/mail")
    text = SITE.format(provider='tls = "off"')
    machine.write("/etc/siteagent/siteagent.toml", text + later)
    done = machine.run("siteagent", "doctor")
    assert [row.split(":")[0] for row in done.stdout.splitlines() if "FAIL" in row] == ["FAIL  service"]
    machine.write("/etc/siteagent/siteagent.toml", text)


def test_status_is_for_everybody_and_mail_is_not(machine: Machine) -> None:
    assert machine.ok("siteagent", "status", user="bob").splitlines()[2].startswith("agent       running")
    for command in ("ask", "history", "queue"):
        done = machine.run("siteagent", command, user="bob")
        assert done.returncode == 77 and "enied" in done.stderr, (command, done.stderr)


def test_a_reload_is_one_and_a_killed_agent_comes_back(machine: Machine) -> None:
    before = main_pid(machine)
    machine.ok("systemctl", "reload", "siteagent")
    machine.wait_for(lambda: "config.reloaded" in machine.journal(), "config.reloaded")
    assert main_pid(machine) == before
    machine.ok("kill", "-9", before)
    machine.wait_for(lambda: main_pid(machine) not in ("0", before), "another process")
    machine.wait_for(lambda: machine.run("siteagent", "status").returncode == 0, "it runs")


def test_the_socket_alone_starts_it_and_ask_says_so(machine: Machine) -> None:
    machine.ok("systemctl", "stop", "siteagent.socket", "siteagent")
    assert machine.run("siteagent", "status").returncode == 3
    machine.ok("systemctl", "start", "siteagent.socket")
    assert machine.run("systemctl", "is-active", "siteagent").stdout.strip() == "inactive"
    done = machine.run("siteagent", "ask")
    assert done.returncode == 0 and "siteagent.socket holds the port; its service was started" in done.stderr


def test_a_password_comes_as_a_credential(machine: Machine) -> None:
    machine.write("/etc/credstore/siteagent.isp.password", "sesame\n", 0o600)
    machine.write("/etc/siteagent/siteagent.toml", SITE.format(provider='username = "office"\ntls = "required"'))
    machine.ok("siteagent", "install-service")
    machine.wait_for(lambda: machine.run("siteagent", "status").returncode == 0, "it runs")
    given = f"/proc/{main_pid(machine)}/root/run/credentials/siteagent.service/siteagent.isp.password"
    assert machine.ok("cat", given) == "sesame\n"
    assert "sesame" not in machine.journal()
    machine.write("/etc/siteagent/siteagent.toml", SITE.format(provider='tls = "off"'))
    machine.ok("siteagent", "install-service")


def test_a_link_in_the_readers_maildir_stops_the_installing_and_gives_no_right(machine: Machine) -> None:
    machine.ok("sh", "-c", "cd /home/bob/Maildir && mv tmp kept && ln -s /etc/cron.d tmp", user="bob")
    done = machine.run("siteagent", "install-service")
    assert done.returncode == 73 and "Operation not permitted" in done.stderr, done.stderr
    assert "bob" not in machine.ok("getfacl", "-p", "/etc/cron.d")
    machine.ok("sh", "-c", "cd /home/bob/Maildir && rm tmp && mv kept tmp", user="bob")
    machine.ok("siteagent", "install-service")


def test_uninstalled_it_leaves_mail_state_and_configuration(machine: Machine) -> None:
    machine.ok("siteagent", "uninstall-service")
    assert machine.run("systemctl", "is-active", "siteagent", "siteagent.socket").stdout.split() == ["inactive"] * 2
    assert not list(machine.root.glob("etc/systemd/system/siteagent.*"))
    for kept in ("var/lib/siteagent/spool.sqlite", "var/mail/siteagent/alice/new", "etc/siteagent/siteagent.toml"):
        assert (machine.root / kept).exists(), kept
    assert "hub runs" in machine.ok("siteagent", "hub", "status"), "the other service stays"
