"""The hub among others' programs: Postfix on either side, fetchmail and msmtp as askers; kill -9."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.hub import ACCOUNT, MAIL_PORT, ODMR_PORT, PASSWORD, Hub
from tests.e2e.lab import Lab, Sink, nothing_left, smtp, wait_for
from tests.e2e.messages import CAROL, NODES, difference, expected, shapes, simple

pytestmark = [pytest.mark.netns]

_OPEN = 'deliver_to = "198.51.100.2:25"\netrn_without_auth = true'


@pytest.fixture
def lab() -> Iterator[Lab]:
    with nothing_left(), Lab() as made:
        yield made


def hub_of(lab: Lab, nodes: dict[str, str] | None = None, more: str = "") -> Hub:
    return Hub(lab.line(), lab.directory / "hub", None, nodes=nodes or dict.fromkeys(NODES, _OPEN), more=more)


def needs(tool: str) -> str:
    found = shutil.which(tool)
    if found is None:
        pytest.skip(f"{tool} missing: python3 tests/check.py --system-packages")
    return found


def as_filed(wire: bytes) -> bytes:
    return b"Return-Path: <a@world.example>\nDelivered-To: x\nReceived: from y\n\tby z; now\n" + wire


@pytest.mark.postfix
def test_a_real_postfix_pushes_into_the_hub(lab: Lab) -> None:
    sent = shapes()
    isp = lab.provider()  # in front: its "site" is the hub, in the namespace that the line leads to
    hub = Hub(isp.line, lab.directory / "hub", None, nodes=dict.fromkeys(NODES, _OPEN))
    hub.configuration.write_text(hub.configuration.read_text().replace(f"0.0.0.0:{MAIL_PORT}", "127.0.0.1:2600"))
    with hub:
        text = (isp.etc / "main.cf").read_text()
        ways = ", ".join(f"{{{node}=smtp:[127.0.0.1]:2600}}" for node in NODES)
        (isp.etc / "main.cf").write_text(text + f"transport_maps = inline:{{{ways}}}\n")
        isp.stop()
        isp.start()
        isp.submit(sent)
        wait_for(lambda: len(hub.events("message.accepted")) >= len(sent), "all at the hub", seconds=60)
        wait_for(lambda: hub.held() >= len(sent), "all of them held", every=0.3)
        wait_for(lambda: isp.waiting() == 0, "Postfix's queue empty")


@pytest.mark.postfix
def test_the_hub_pushes_into_a_real_postfix_byte_for_byte(lab: Lab) -> None:
    """The Postfix at the far end is the site; behind it a sink keeps the very bytes."""
    sent = shapes()
    isp = lab.provider()
    nodes = dict.fromkeys(NODES, 'deliver_to = "127.0.0.1:2525"\netrn_without_auth = true')
    hub = Hub(isp.line, lab.directory / "hub", None, nodes=nodes)
    hub.configuration.write_text(hub.configuration.read_text().replace(f"0.0.0.0:{MAIL_PORT}", "127.0.0.1:2600"))
    with hub, Sink(lab.site) as sink:
        isp.line.up()

        with smtp(hub.namespace, "127.0.0.1", 2600, "world.example") as world:
            for message in sent:
                world.sendmail(message.sender, message.recipients, message.on_the_wire(), ["BODY=8BITMIME"])
            for node in NODES:
                assert world.docmd("ETRN", node)[0] == 250
        copies = sum(len({address.rpartition("@")[2] for address in shape.recipients}) for shape in sent)
        wait_for(lambda: len(sink.taken) >= copies, f"all {copies} through Postfix", seconds=30)
        hub.wait_for_held(0)
    wanted = {shape.name: shape for shape in sent}
    for taken in sink.taken:
        content = expected(as_filed(taken.content()), hops=2)
        name = content.partition(b"X-Shape: ")[2].partition(b"\n")[0].decode()
        assert difference(wanted[name].as_filed(), content) is None, name


def test_fetchmail_starts_our_queue_by_etrn(lab: Lab) -> None:
    fetchmail = needs("fetchmail")
    with hub_of(lab) as hub, Sink(lab.site) as sink:
        hub.submit(simple(5))
        hub.line.up()
        control = rc(
            lab, f"poll {hub.address} protocol ETRN\n  user nobody password none fetchdomains office.example\n"
        )
        done = run_fetchmail(lab, fetchmail, control)
        assert done.returncode in (0, 1), done.stderr + done.stdout
        wait_for(lambda: len(sink.taken) == 5, "five messages")
        assert "250" in done.stdout or "ueuing" in done.stdout


def test_fetchmail_fetches_by_odmr_over_its_own_connection(lab: Lab) -> None:
    fetchmail = needs("fetchmail")
    with hub_of(lab, dict.fromkeys(NODES, "")) as hub, Sink(lab.site) as sink:
        hub.submit(simple(5))
        hub.submit(simple(2, recipients=(CAROL,), first=10))
        hub.line.up()
        control = rc(
            lab,
            f"poll {hub.address} protocol ODMR port {ODMR_PORT}\n  user {ACCOUNT} password {PASSWORD}\n"
            "  fetchdomains office.example smtphost 127.0.0.1\n",
        )
        done = run_fetchmail(lab, fetchmail, control)
        wait_for(lambda: len(sink.taken) == 5, f"five messages\n{done.stdout}{done.stderr}")
        wait_for(lambda: hub.held() == 2, "the other node's are held")


def rc(lab: Lab, text: str) -> Path:
    # It wants to know its own full name before anything else.
    lab.site.knows(f"mail.office.example {socket.gethostname()}", "127.0.0.1")
    path = lab.directory / "fetchmailrc"
    path.touch(mode=0o600)
    path.write_text("set no bouncemail\n" + text)
    return path


def run_fetchmail(lab: Lab, fetchmail: str, control: Path) -> subprocess.CompletedProcess[str]:
    home = control.parent
    argv = lab.site.argv(
        fetchmail, "-v", "-v", "--nodetach", "--fetchmailrc", control, "--pidfile", home / "fetchmail.pid"
    )
    return subprocess.run(
        argv, capture_output=True, text=True, timeout=60, env={"HOME": str(home), "PATH": "/usr/bin:/bin", "USER": "x"}
    )


def test_msmtp_starts_our_queue(lab: Lab) -> None:
    msmtp = needs("msmtp")
    with hub_of(lab) as hub, Sink(lab.site) as sink:
        hub.submit(simple(3))
        hub.line.up()
        for name, code in (("office.example", 0), ("@office.example", 0), ("nobody.example", 69)):
            argv = lab.site.argv(
                msmtp, f"--rmqs={name}", f"--host={hub.address}", "--port=25", "--tls=off", "-C", "/dev/null"
            )
            done = subprocess.run(argv, capture_output=True, text=True, timeout=30)
            assert done.returncode == code, (name, done.stderr)
        wait_for(lambda: len(sink.taken) == 3, "three messages")


def test_kill_9_while_mail_comes_in_and_goes_out_loses_nothing_that_was_acknowledged(lab: Lab) -> None:
    hub = hub_of(lab)
    sent = simple(400, octets=3000)
    acknowledged = 0
    with hub, Sink(lab.site) as sink:
        hub.line.up()
        for attempt in range(6):
            part = sent[acknowledged:]
            try:
                acknowledged += submit_until_it_breaks(hub, part, kill_after=60 if attempt < 5 else None)
            finally:
                if attempt < 5:
                    hub.start()
            hub.command("release", *NODES)
        assert acknowledged == len(sent)
        hub.wait_for_held(0, seconds=60)
    names = [taken.content().partition(b"X-Shape: ")[2].partition(b"\n")[0].decode() for taken in sink.taken]
    assert {shape.name for shape in sent} <= set(names)


def submit_until_it_breaks(hub: Hub, messages: list, *, kill_after: int | None) -> int:
    """How many were answered 250; after `kill_after` the hub is killed while it works on a push."""

    count = 0
    with smtp(hub.namespace, "127.0.0.1", MAIL_PORT, "world.example") as world:
        for message in messages:
            world.sendmail(message.sender, message.recipients, message.on_the_wire())
            count += 1
            if count == kill_after:
                world.docmd("ETRN", "office.example")
                time.sleep(0.01)
                hub.kill()
                world.quit = lambda: (221, b"")  # type: ignore[method-assign]
                break
    return count


def test_release_drop_queue_and_status_by_hand(lab: Lab) -> None:
    with hub_of(lab) as hub, Sink(lab.site) as sink:
        hub.submit([*simple(2), *simple(1, recipients=(CAROL,), first=5)])
        shown = hub.command("queue")
        assert shown.stdout.count("office.example") == 2
        ident = next(line.split()[0] for line in shown.stdout.splitlines() if "branch.example" in line)
        dropped = hub.command("drop", ident)
        assert dropped.returncode == 0, dropped.stderr
        hub.wait_for_held(2)
        hub.line.up()
        assert hub.command("release", "office.example").returncode == 0
        wait_for(lambda: len(sink.taken) == 2, "two messages")
        assert hub.command("release", "nobody.example").returncode == 64
        assert hub.command("status").returncode == 0
        assert hub.terminate() == 0
        hub_status = hub.command("status")
        assert (hub_status.returncode, "does not run" in hub_status.stdout) == (3, True)
        assert hub.command("release", "office.example").returncode == 75
