"""What a whole agent costs when the worst comes: memory, stalls, round trips. A process of its own, real sockets.

The long form (``--long``) has the sizes of the claims; without it they are as small as still shows the fault.
"""

from __future__ import annotations

import contextlib
import resource
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.bench.loads import DelayedLine, round_trips
from tests.bench.sides import DOMAIN, Postfix, Served, running

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what a process holds")

KIB, MIB = 1 << 10, 1 << 20
IDLE_BYTES, MOST_BYTES = 40_000_000, 64_000_000
ENVELOPE = f"MAIL FROM:<a@b.example>\r\nRCPT TO:<box@{DOMAIN}>\r\n".encode()


@contextlib.contextmanager
def agent(directory: Path, options: str = "") -> Iterator[Served]:
    """A running agent; `options`: lines of its [listener]."""
    served = Served("ours", directory / "agent", options=options)
    with running(served):
        yield served


def resident(pid: int, *, most: bool = False) -> int:
    """Octets of memory that a process has now, or (`most`) has ever had at once."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmHWM:" if most else "VmRSS:")[2].split()[0]) * KIB


class Peer:
    """A blocking client that reads nothing before it wants to."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self.file = self.socket.makefile("rb")
        assert self.reply().startswith(b"220")
        assert self.say(b"EHLO peer.example\r\n").startswith(b"250")

    def send(self, octets: bytes, times: int = 1) -> None:
        for _ in range(times):
            self.socket.sendall(octets)

    def reply(self) -> bytes:
        said = b""
        while True:
            line = self.file.readline()
            said += line
            if line[3:4] != b"-":
                return said

    def say(self, octets: bytes) -> bytes:
        self.send(octets)
        return self.reply()

    def data(self) -> None:
        assert self.say(ENVELOPE).startswith(b"250")
        assert self.reply().startswith(b"250")
        assert self.say(b"DATA\r\n").startswith(b"354")

    def message(self, octets: int) -> bytes:
        """Sends one of `octets`, unlike any other; the answer to its end."""
        self.data()
        self.send(b"Subject: %d %d\r\n\r\n" % (time.monotonic_ns(), threading.get_ident()))
        block = (b"x" * 70 + b"\r\n") * 910
        self.send(block, octets // len(block))
        return self.say(b".\r\n")

    def close(self) -> None:
        self.file.close()
        self.socket.close()


def test_an_idle_agent_holds_less_than_40_mb(tmp_path: Path) -> None:
    with agent(tmp_path) as served:
        print(f"{resident(served.pid) / 1e6:.1f} MB")
        assert resident(served.pid) < IDLE_BYTES


def test_no_shape_of_s08_to_s13_takes_the_agent_over_64_mb(tmp_path: Path, is_long: bool) -> None:
    with agent(tmp_path, "max_message_bytes = 50000000") as served:
        peer = Peer(served.port)
        assert peer.say(b"NOOP " + b"x" * 32 * MIB + b"\r\n").startswith(b"500")  # S8
        assert peer.say(b"MAIL FROM:<a@b.example> SIZE=50000001\r\n").startswith(b"552")  # S10
        peer.data()
        peer.send(b"x" * MIB, 1024 if is_long else 128)  # S9
        assert peer.say(b"\r\n.\r\n").startswith(b"554")
        assert peer.message(60_000_000).startswith(b"552")  # S10
        peer.data()
        peer.send(b"\r\n" * 32 * KIB, 16)  # S11
        peer.send(b"x" * 100_000)  # S12
        assert peer.say(b"\r\n.\r\n").startswith(b"250")
        peer.send(b"MAIL FROM:<a@b.example>\r\n")
        recipients = threading.Thread(
            target=peer.send, args=(b"".join(b"RCPT TO:<u%d@%b>\r\n" % (n, DOMAIN.encode()) for n in range(1000)), 100)
        )  # S13; in a thread, since what is answered must be read meanwhile
        recipients.start()
        codes = [peer.reply()[:3] for _ in range(100_001)]
        recipients.join()
        assert (codes.count(b"250"), codes.count(b"452")) == (1001, 99_000)
        peer.close()
        print(f"{resident(served.pid, most=True) / 1e6:.1f} MB")
        assert resident(served.pid, most=True) < MOST_BYTES


def test_ten_large_messages_at_once_stay_under_64_mb(tmp_path: Path, is_long: bool) -> None:
    size = 50_000_000 if is_long else 8_000_000
    answers: list[bytes] = []

    def send(port: int) -> None:
        peer = Peer(port)
        answers.append(peer.message(size)[:3])
        peer.close()

    with agent(tmp_path) as served:
        threads = [threading.Thread(target=send, args=(served.port,)) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(f"{resident(served.pid, most=True) / 1e6:.1f} MB")
        assert answers == [b"250"] * 10
        assert resident(served.pid, most=True) < MOST_BYTES


def test_the_loop_never_stalls_for_20_ms_while_50_mb_arrive(tmp_path: Path) -> None:
    stalls = []
    with agent(tmp_path) as served:
        for _ in range(5):  # a busy machine may take the processor away for longer; the loop does so each time
            peer = Peer(served.port)
            served.watch()
            assert peer.message(50_000_000).startswith(b"250")
            stalls.append(served.longest_stall())
            peer.close()
            if stalls[-1] < 20:
                break
    print(f"{stalls} ms")
    assert min(stalls) < 20


def test_2000_idle_connections_cost_16_kib_each_and_hold_nothing_up(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 5000:
        pytest.skip("needs 5,000 open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 5000), hard))
    idle: list[socket.socket] = []
    try:
        with agent(tmp_path, "max_connections = 3000\nmax_connections_per_peer = 3000") as served:
            first = Peer(served.port)
            assert first.message(4096).startswith(b"250")
            before = resident(served.pid)
            for _ in range(2000):
                idle.append(socket.create_connection(("127.0.0.1", served.port), timeout=30))
                assert idle[-1].recv(100).startswith(b"220")
            each = (resident(served.pid) - before) / 2000
            began = time.monotonic()
            second = Peer(served.port)
            assert second.message(4096).startswith(b"250")
            seconds = time.monotonic() - began
            print(f"{each / KIB:.1f} KiB each, {seconds:.3f} s")
            assert each < 16 * KIB
            assert seconds < 1
            first.close()
            second.close()
            for own in idle:
                own.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_client_that_can_bdat_needs_two_round_trips_a_message_at_most(tmp_path: Path) -> None:
    with agent(tmp_path) as served:
        trips = round_trips(served, delay_seconds=0.05, messages=5, bdat=True)
    print(f"{trips:.2f}")
    assert trips is not None and trips <= 2


@pytest.mark.postfix
def test_postfix_needs_four_round_trips_a_message_at_most_for_a_flush_of_twenty(tmp_path: Path, is_long: bool) -> None:
    if reason := Postfix.missing():
        pytest.skip(reason)
    tmp_path.chmod(0o755)
    for parent in list(tmp_path.parents)[:2]:
        parent.chmod(0o755)  # Postfix gives up its rights and must still get there
    with agent(tmp_path) as served, DelayedLine.to(served.port, delay_seconds=0.3 if is_long else 0.03) as line:
        there = f"[127.0.0.1]:{line.port}"
        isp = Postfix(
            tmp_path / "isp",
            settings={
                "myhostname": "mx.isp.example",
                "virtual_mailbox_domains": "",
                "relay_domains": DOMAIN,
                "relay_transport": f"smtp:{there}",
                # One after another, as over a line that has room for one.
                "smtp_destination_concurrency_limit": "1",
                "smtp_connection_cache_destinations": there,
            },
        )
        with running(isp):
            world = Peer(isp.port)
            for _ in range(20):
                assert world.message(2000).startswith(b"250")
            world.close()
            until = time.monotonic() + 90
            while served.filed() < 20 and time.monotonic() < until:
                time.sleep(0.02)
            print(f"{line.turns} turns of {line.connections} connections")
            assert served.filed() == 20, isp.log()[-2000:]
            # The greeting and the introduction, and those of a connection that Postfix opens anew, are among them.
            assert line.connections < 5
            assert line.turns <= 4 * 20
