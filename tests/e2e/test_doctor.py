"""`doctor` on a healthy site, and on the same site with one fault planted at a time: found, explained, nothing else."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import pty
import pwd
import select
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
import trustme
from tests.e2e.lab import Agent, Lab, PostfixProvider
from tests.e2e.net import Namespace

pytestmark = [pytest.mark.netns, pytest.mark.postfix, pytest.mark.tools("setfacl")]

NAMES = {"moved.dyn.example": "203.0.113.99", "parked.dyn.example": "127.0.0.1"}
MINE = "reached_as = 'office.dyn.example'"


@dataclass
class Healthy:
    """A site where all is well; `listener` and `tables` are what its configuration says beyond the laboratory's."""

    lab: Lab
    isp: PostfixProvider
    agent: Agent
    through: tuple[str, ...] = ()

    def configure(self, provider: str = MINE, **tables: str) -> None:
        self.agent.write_configuration(tables={"provider.isp": provider, **tables})

    def examined(self) -> tuple[int, dict[str, dict[str, str]]]:
        done = self.agent.command("doctor", "--json", through=self.through)
        assert done.stdout, done.stderr
        document = json.loads(done.stdout)
        assert document["version"] == 1
        return done.returncode, {check["name"]: check for check in document["checks"]}


@contextmanager
def _resolver(namespace: Namespace, records: dict[tuple[str, int], str]) -> Iterator[None]:
    """A DNS server where the namespace's resolv.conf looks for it."""
    asked = namespace.inside(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    asked.bind(("127.0.0.1", 53))

    def serve() -> None:
        while True:
            data, peer = asked.recvfrom(4096)
            if not data:
                return
            query = dns.message.from_wire(data)
            (question,) = query.question
            answer = dns.message.make_response(query)
            name = question.name.to_text(omit_final_dot=True)
            record = records.get((name, question.rdtype))
            if record is not None:
                answer.answer.append(dns.rrset.from_text(question.name, 60, "IN", question.rdtype, record))
            elif not any(known == name for known, _ in records):
                answer.set_rcode(dns.rcode.NXDOMAIN)
            asked.sendto(answer.to_wire(), peer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield
    finally:
        asked.sendto(b"", ("127.0.0.1", 53))
        thread.join(5)
        asked.close()


@pytest.fixture(scope="module")
def healthy(shared_lab: Lab) -> Iterator[Healthy]:
    isp = shared_lab.provider(tls=True)
    agent = shared_lab.agent(providers=[isp], mailboxes={"alice": ["alice@office.example"]})
    isp.line.up()
    site = Healthy(shared_lab, isp, agent)
    site.configure()
    names = {isp.host: isp.address, "office.dyn.example": isp.line.site_address, **NAMES}
    records = {(name, dns.rdatatype.A): address for name, address in names.items()}
    records["office.example", dns.rdatatype.MX] = f"10 {isp.host}."
    for part in ("tmp", "new", "cur"):
        (agent.maildir("alice") / part).mkdir(parents=True)
    with _resolver(shared_lab.site, records):
        yield site
    agent.kill()


def red(checks: dict[str, dict[str, str]]) -> dict[str, str]:
    return {name: check["fix"] for name, check in checks.items() if check["status"] == "fail"}


def test_a_healthy_site_is_green_without_a_running_agent(healthy: Healthy) -> None:
    code, checks = healthy.examined()
    assert (code, red(checks)) == (0, {})
    assert checks["agent"]["status"] == "warn"
    assert checks["provider isp"]["found"].startswith("looks like Postfix; offers ETRN")


def test_a_healthy_site_is_green_with_a_running_agent_and_its_listener_is_reached(healthy: Healthy) -> None:
    with healthy.agent as agent:
        agent.wait_for(lambda: agent.status().get("state") == "running", "running")
        code, checks = healthy.examined()
    assert (code, red(checks)) == (0, {})
    assert checks["agent"]["found"].startswith("running as process")
    assert checks[f"listener at {healthy.isp.line.site_address}:25"]["found"] == "it answers"


def test_people_read_what_why_and_fix(healthy: Healthy) -> None:
    done = healthy.agent.command("doctor")
    assert done.returncode == 0
    assert (
        "warn  agent: not running\n        why: somebody must ask when the line comes up\n        fix: " in done.stdout
    )
    assert "nothing failed" in done.stderr


# --- faults -----------------------------------------------------------------------------------------------------------


@contextmanager
def _password_readable_by_others(site: Healthy) -> Iterator[None]:
    secret = site.agent.directory / "secret"
    secret.write_text("x\n")
    secret.chmod(0o644)
    site.configure(f"{MINE}\nusername = 'office'\npassword_file = '{secret}'")
    yield


@contextmanager
def _port_taken(site: Healthy) -> Iterator[None]:
    with site.lab.site.listen("0.0.0.0", 25):
        yield


@contextmanager
def _somebody_elses_maildir(site: Healthy) -> Iterator[None]:
    new = site.agent.maildir("alice") / "new"
    uid = pwd.getpwnam("games").pw_uid
    os.chown(new, uid, uid)
    try:
        yield
    finally:
        os.chown(new, 0, 0)


@contextmanager
def _reader_shut_out(site: Healthy) -> Iterator[None]:
    site.configure(**{"mailbox.alice": "reader = 'nobody'"})
    yield


@contextmanager
def _server(site: Healthy, *replies: bytes) -> Iterator[int]:
    """Somebody else at the provider's address: a greeting, an answer to EHLO, an answer to everything after."""
    listening = site.isp.namespace.listen(site.isp.address, 2500)
    ended = threading.Event()

    def serve() -> None:
        while not ended.is_set():
            with contextlib.suppress(OSError):
                connection, _ = listening.accept()
                with connection, connection.makefile("rb") as said:
                    connection.sendall(replies[0])
                    for number, row in enumerate(said, start=1):
                        connection.sendall(b"221 bye\r\n" if row.startswith(b"QUIT") else replies[min(number, 2)])

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield 2500
    finally:
        ended.set()
        # `accept` does not notice a close from another thread; a connection wakes it.
        with contextlib.suppress(OSError), site.lab.site.connect(site.isp.address, 2500, seconds=2):
            pass
        listening.close()
        thread.join(5)


@contextmanager
def _provider_without_etrn(site: Healthy) -> Iterator[None]:
    with _server(site, b"220 mail ESMTP OpenSMTPD\r\n", b"250 mail\r\n", b"500 5.5.1 unknown\r\n") as port:
        site.configure(f"{MINE}\nport = {port}\ntls = 'off'")
        yield


@contextmanager
def _provider_refuses_our_address(site: Healthy) -> Iterator[None]:
    refusal = b"554 5.7.1 <[198.51.100.2]>: Client host rejected: Access denied\r\n"
    with _server(site, b"220 mail ESMTP Postfix\r\n", b"250-mail\r\n250 ETRN\r\n", refusal) as port:
        site.configure(f"{MINE}\nport = {port}\ntls = 'off'")
        yield


@contextmanager
def _name_elsewhere(site: Healthy) -> Iterator[None]:
    site.configure("reached_as = 'moved.dyn.example'")
    yield


@contextmanager
def _name_parked(site: Healthy) -> Iterator[None]:
    site.configure("reached_as = 'parked.dyn.example'")
    yield


@contextmanager
def _expired_certificate(site: Healthy) -> Iterator[None]:
    past = datetime.datetime(2020, 1, 2, tzinfo=datetime.UTC)
    issued = trustme.CA().issue_cert("mail.office.example", not_after=past)
    certificate, key = site.agent.directory / "old.pem", site.agent.directory / "old.key"
    certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(str(key))
    key.chmod(0o600)
    site.configure(listener=f"tls_certificate = '{certificate}'\ntls_key = '{key}'")
    yield


@contextmanager
def _shared_address(site: Healthy) -> Iterator[None]:
    line, here, there = site.isp.line, site.lab.site, site.isp.namespace
    here.ip("address", "add", "100.64.9.2/32", "dev", line.device)
    here.ip("route", "replace", f"{line.provider_address}/32", "dev", line.device, "src", "100.64.9.2")
    there.ip("route", "replace", "100.64.9.2/32", "dev", line.far_device)
    site.configure("")
    try:
        yield
    finally:
        here.ip("route", "delete", f"{line.provider_address}/32", "dev", line.device)
        here.ip("address", "delete", "100.64.9.2/32", "dev", line.device)
        there.ip("route", "delete", "100.64.9.2/32", "dev", line.far_device)


@contextmanager
def _hook_missing(site: Healthy) -> Iterator[None]:
    """The list of what was installed names a hook, and it is gone. The host's /usr/lib is seen through ours."""
    library = site.agent.directory / "usr-lib" / "siteagent"
    library.mkdir(parents=True)
    (library / "installed").write_text("/etc/ppp/ip-up.d/siteagent\n/usr/lib/siteagent/installed\n")
    # In the mount namespace that `ip netns exec` makes for each command.
    mount = f"mount -t overlay overlay -o lowerdir={library.parent}:/usr/lib /usr/lib"
    site.through = ("sh", "-c", f'{mount} && exec "$@"', "sh")
    try:
        yield
    finally:
        site.through = ()


@contextmanager
def _disk_nearly_full(site: Healthy) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(site.agent.state)], check=True)
    try:
        (site.agent.state / "filler").write_bytes(bytes(15_500_000))
        yield
    finally:
        subprocess.run(["umount", str(site.agent.state)], check=True)


Plant = Callable[[Healthy], AbstractContextManager[Any]]
FAULTS: list[tuple[Plant, str, str]] = [
    (_password_readable_by_others, "password", "chmod 600"),
    (_port_taken, "port 0.0.0.0:25", "listen = [] (ask-only)"),
    (_somebody_elses_maildir, "maildir", "a Maildir of ours"),
    (_reader_shut_out, "maildir alice", "install-service"),
    (_provider_without_etrn, "provider isp", "ask the provider for a server that does"),
    (_provider_refuses_our_address, "provider isp", "ask it to admit the address"),
    (_name_elsewhere, "name moved.dyn.example", "update the name"),
    (_name_parked, "name parked.dyn.example", "never loopback"),
    (_expired_certificate, "our certificate", "renew it"),
    (_shared_address, "address 100.64.9.2", 'set method = "atrn"'),
    (_hook_missing, "service file /etc/ppp/ip-up.d/siteagent", "install-service"),
    (_disk_nearly_full, "disk of state", "make room there"),
]


@pytest.mark.parametrize(("plant", "name", "fix"), FAULTS, ids=[plant.__name__[1:] for plant, _, _ in FAULTS])
def test_a_planted_fault_is_found_with_its_cure_and_nothing_else_is_red(
    healthy: Healthy, plant: Plant, name: str, fix: str
) -> None:
    with ExitStack() as stack:
        stack.callback(healthy.configure)
        stack.enter_context(plant(healthy))
        code, checks = healthy.examined()
    found = red(checks)
    assert list(found) == [name], checks
    assert fix in found[name]
    assert code == 69


# --- probe and init ---------------------------------------------------------------------------------------------------


def test_probe_tells_the_layout_and_how_to_go_on(healthy: Healthy) -> None:
    done = healthy.agent.command("probe", "office.example")
    assert done.returncode == 0, done.stdout
    assert f"port     {healthy.isp.host}:25    Postfix: ETRN, STARTTLS" in done.stdout
    assert f"layout A: {healthy.isp.host} port 25 can be asked by ETRN" in done.stdout


def test_init_on_a_terminal_begins_with_the_look_and_bears_a_persons_habits(healthy: Healthy, tmp_path: Path) -> None:
    """A typo corrected with the arrow keys, an answer that will not do, empty ones for the defaults."""
    file = tmp_path / "fresh" / "siteagent.toml"
    answers = [
        ("Which server", "not a name\r"),
        ("Which server", "ofice.example" + "\x1b[D" * 11 + "f\x05\r"),
        ("does it hold mail", "\r"),
        ("connect to you", "\r"),
        ("From which addresses", "\r"),
        ("Who gets mail here", "\r"),
        ("Who gets mail here", "alice=alice@office.example\r"),
        ("And another", "\r"),
        ("Who reads them", "\r"),
        ("which directory", f"{tmp_path}/mail\r"),
    ]
    code, said = _typed(healthy, ["--config", str(file), "init"], answers)
    assert code == 0, said
    text = file.read_text()
    assert f'host = "{healthy.isp.host}"' in text and 'nodes = ["office.example"]' in text
    assert "layout A" in said and "will not do" in said


def test_ctrl_c_in_init_leaves_nothing(healthy: Healthy, tmp_path: Path) -> None:
    file = tmp_path / "fresh" / "siteagent.toml"
    code, said = _typed(healthy, ["--config", str(file), "init"], [("Which server", "\x03")])
    assert (code, list(tmp_path.iterdir())) == (130, [])
    assert "interrupted" in said


def _typed(site: Healthy, arguments: list[str], answers: list[tuple[str, str]]) -> tuple[int, str]:
    """Runs a command in the site's namespace on a terminal, typing each answer when its question is there."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        site.lab.site.argv(sys.executable, "-m", "siteagent", *arguments),
        stdin=follower,
        stdout=follower,
        stderr=follower,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - Ctrl-C needs a terminal of its own
        env={**os.environ, "TERM": "xterm", "INPUTRC": "/dev/null"},
    )
    os.close(follower)
    said, seen = "", 0
    waiting = list(answers)
    deadline = time.monotonic() + 30
    with contextlib.suppress(OSError):  # EIO: the terminal's other end is gone
        while time.monotonic() < deadline:
            if select.select([leader], [], [], 0.1)[0]:
                part = os.read(leader, 4096).decode(errors="replace")
                if not part:
                    break
                said += part
            elif waiting and waiting[0][0] in said[seen:]:
                seen = len(said)
                os.write(leader, waiting.pop(0)[1].encode())
    os.close(leader)
    return process.wait(10), said
