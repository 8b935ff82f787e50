"""Network namespaces, the line between them that really goes down, and a tap on it.

Names begin with ``sa`` and the pid of the test process, so that what a killed run left behind is known and swept by
the next one. A device's name never begins with ``veth``: the agent ignores those.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

T = TypeVar("T")

NAMES = Path("/run/netns")
FILES = Path("/etc/netns")  # `ip netns exec` shows what lies in NAME/ here as if it lay in /etc
CLONE_NEWNET = 0x40000000
ETH_P_ALL, ETH_P_IP = 0x0003, 0x0800
SO_TIMESTAMPNS = 35  # asm-generic/socket.h; the kernel's own time of each packet, on the wall clock


class LabError(Exception):
    """The laboratory itself does not work, or what was waited for did not come."""


def wait_for(condition: Callable[[], T], what: str, *, seconds: float = 30, every: float = 0.02) -> T:
    """The first true value of `condition`. Raises LabError naming `what` and the last value after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise LabError(f"{what}: not within {seconds} s (last: {value!r})")
        time.sleep(every)
    return value


def tool(*argv: str | Path, timeout: float = 60) -> str:
    """Run to the end and return what it printed. Raises LabError with its words where it fails."""
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired as problem:
        raise LabError(f"{' '.join(map(str, argv))}: no end within {timeout} s") from problem
    if done.returncode != 0:
        raise LabError(f"{' '.join(map(str, argv))}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


class Namespace:
    """One host's network, with its own loopback, its own /etc/hosts and no DNS."""

    def __init__(self, role: str) -> None:
        self.name = f"sa{os.getpid()}-{role}"
        self._files = FILES / self.name
        tool("ip", "netns", "add", self.name)
        try:
            self.ip("link", "set", "lo", "up")
            self._files.mkdir(parents=True, exist_ok=True)
            (self._files / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
            (self._files / "hosts").write_text("127.0.0.1 localhost\n")
        except BaseException:
            self.close()
            raise

    def ip(self, *argv: str) -> str:
        return tool("ip", "-n", self.name, *argv)

    def knows(self, name: str, address: str) -> None:
        """From now on `name` resolves to `address` here, also for programs that run already."""
        # In place: a program sees the very file that was there when it started.
        with (self._files / "hosts").open("a") as hosts:
            hosts.write(f"{address} {name}\n")

    def forgets(self, name: str) -> None:
        """From now on `name` is not known here, until it is told anew."""
        hosts = self._files / "hosts"
        hosts.write_text("".join(row for row in hosts.read_text().splitlines(True) if row.split()[1:] != [name]))

    def argv(self, *argv: str | Path) -> list[str]:
        """The command line that runs `argv` in here. `ip` becomes the command: one process, one pid."""
        return ["ip", "netns", "exec", self.name, *map(str, argv)]

    def run(self, *argv: str | Path, timeout: float = 60) -> str:
        return tool(*self.argv(*argv), timeout=timeout)

    def start(
        self, *argv: str | Path, output: IO[bytes], env: dict[str, str] | None = None, cwd: Path | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a program in here, in a process group of its own."""
        return subprocess.Popen(
            self.argv(*argv),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=env,
            cwd=cwd,
            start_new_session=True,
        )

    def inside(self, work: Callable[[], T]) -> T:
        """Do `work` in a thread that lives in here; sockets that it makes stay in here wherever they are used."""
        outcome: list[T] = []
        problem: list[BaseException] = []

        def enter() -> None:
            try:
                libc = ctypes.CDLL(None, use_errno=True)
                with (NAMES / self.name).open() as door:
                    if libc.setns(door.fileno(), CLONE_NEWNET) != 0:
                        raise OSError(ctypes.get_errno(), f"cannot enter {self.name}")
                outcome.append(work())
            except BaseException as caught:
                problem.append(caught)

        thread = threading.Thread(target=enter, name=f"in {self.name}")
        thread.start()
        thread.join()
        if problem:
            raise problem[0]
        return outcome[0]

    def connect(self, address: str, port: int, *, seconds: float = 10) -> socket.socket:
        return self.inside(lambda: socket.create_connection((address, port), timeout=seconds))

    def listen(self, address: str, port: int) -> socket.socket:
        return self.inside(lambda: socket.create_server((address, port), backlog=100))

    def listens(self, port: int) -> bool:
        return f":{port} " in self.run("ss", "-Hltn", f"sport = :{port}")

    def processes(self) -> list[int]:
        return self.processes_in(self.name)

    @staticmethod
    def processes_in(name: str) -> list[int]:
        listed = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout
        return [int(pid) for pid in listed.split() if int(pid) != os.getpid()]

    def close(self) -> None:
        """End what still runs in here, and be gone."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(LabError):
            wait_for(lambda: not self.processes(), f"{self.name} empty", seconds=5)
        subprocess.run(["ip", "netns", "delete", self.name], capture_output=True)
        shutil.rmtree(self._files, ignore_errors=True)


def existing() -> list[str]:
    """The namespaces of ours that are there now, of this process and of dead ones."""
    return sorted(path.name for path in NAMES.glob("sa*") if re.fullmatch(r"sa\d+-.+", path.name))


def sweep() -> None:
    """Remove what runs that were killed have left: namespaces with all that runs in them, then directories."""
    for name in existing():
        if _orphaned(name):
            left = Namespace.__new__(Namespace)
            left.name, left._files = name, FILES / name
            left.close()
    for path in Path("/tmp").glob("sa*-*"):
        if _orphaned(path.name) and path.is_dir() and not (path / "keep").exists():
            shutil.rmtree(path, ignore_errors=True)


def _orphaned(name: str) -> bool:
    pid = re.match(r"sa(\d+)-", name)
    return pid is not None and not Path(f"/proc/{pid[1]}").exists()


class Line:
    """The line between a site and one provider, seen from the site. It begins down, like a modem nobody has dialled.

    ``down`` and ``up`` switch the site's interface, ``unplug`` and ``plug`` its carrier. The cuts work on TCP alone,
    stay until `heal`, and are seen by neither end: bytes simply stop arriving.
    """

    def __init__(self, site: Namespace, provider: Namespace, number: int) -> None:
        network = ("198.51.100", "203.0.113", "192.0.2")[number]
        self.site, self.provider = site, provider
        self.device, self.far_device = f"line{number}", f"cable{number}"
        self.site_address, self.provider_address = f"{network}.2", f"{network}.1"
        self._metric = str(100 + number)
        site.ip("link", "add", self.device, "type", "veth", "peer", self.far_device, "netns", provider.name)
        for namespace, device, address in (
            (site, self.device, self.site_address),
            (provider, self.far_device, self.provider_address),
        ):
            # One packet is one segment, as on a real line: cuts fall where they are put.
            namespace.ip("link", "set", device, "gso_max_segs", "1")
            namespace.ip("address", "add", f"{address}/24", "dev", device)
        provider.ip("link", "set", self.far_device, "up")
        self._patience(milliseconds=100, probes=1)
        self._chains = (("INPUT", "-i", f"in-{self.device}"), ("OUTPUT", "-o", f"out-{self.device}"))
        for hook, flag, chain in self._chains:
            self._iptables("-N", chain)
            self._iptables("-A", hook, flag, self.device, "-p", "tcp", "-j", chain)

    def up(self, address: str | None = None) -> None:
        """Let the line come up, with another `address` for the site where one is given."""
        if address is not None and address != self.site_address:
            self.site.ip("address", "flush", "dev", self.device)
            self.site.ip("address", "add", f"{address}/24", "dev", self.device)
            self.site_address = address
        self.site.ip("link", "set", self.device, "up")
        way = ["default", "via", self.provider_address, "dev", self.device, "metric", self._metric]
        self.site.ip("route", "replace", *way)

    def down(self) -> None:
        self.site.ip("link", "set", self.device, "down")

    def plug(self) -> None:
        self.provider.ip("link", "set", self.far_device, "up")

    def unplug(self) -> None:
        self.provider.ip("link", "set", self.far_device, "down")

    def rate(self, bits_per_second: int | None) -> None:
        """Both ways at most so fast; None: as fast as it goes."""
        if bits_per_second is not None:
            self._patience(milliseconds=1000, probes=3)  # the kernel's own: answers may queue behind mail now
        for namespace, device in ((self.site, self.device), (self.provider, self.far_device)):
            qdisc = ["tc", "-n", namespace.name, "qdisc"]
            if bits_per_second is None:
                subprocess.run([*qdisc, "delete", "dev", device, "root"], capture_output=True)
            else:
                shape = ["tbf", "rate", f"{bits_per_second}bit", "burst", "1540", "latency", "2s"]
                tool(*qdisc, "replace", "dev", device, "root", *shape)

    def cut_after(self, octets: int) -> None:
        """Let `octets` (of IP packets) in from now on, then nothing more, either way, on a connection that tries."""
        arriving, leaving = (chain for _, _, chain in self._chains)
        # Whoever was cut before stays dead, and hears no RST: as behind a router that has forgotten the connection.
        self._iptables("-A", arriving, "-m", "connmark", "--mark", "1", "-j", "DROP")
        self._iptables("-A", arriving, "-m", "quota", "--quota", str(octets), "-j", "RETURN")
        self._iptables("-A", arriving, "-j", "CONNMARK", "--set-mark", "1")
        self._iptables("-A", arriving, "-j", "DROP")
        self._iptables("-A", leaving, "-m", "connmark", "--mark", "1", "-j", "DROP")

    def is_cut(self) -> bool:
        """Whether `cut_after` has begun to swallow."""
        return self._swallowed(self._chains[0][2])[-1] > 0

    def cut_at(self, marker: str, *, leaving: bool = False) -> None:
        """The connection on which a packet with `marker` wants in (or out) is dead from that packet on, either way."""
        self._mark(self._chains[leaving][2], marker, "1")
        for _, _, chain in self._chains:
            self._iptables("-A", chain, "-m", "connmark", "--mark", "1", "-j", "DROP")

    def deafen_at(self, marker: str) -> None:
        """The packet with `marker` gets in, and so does what was under way; nothing more gets out after it.

        With the marker in a message's last lines, the site has all of it, and its 250 is never heard.
        """
        arriving, leaving = (chain for _, _, chain in self._chains)
        self._mark(arriving, marker, "2")
        self._iptables("-A", leaving, "-m", "connmark", "--mark", "2", "-j", "DROP")

    def lose(self, share: float) -> None:
        """Drop so large a share of the packets, either way, at random."""
        match = ["-m", "statistic", "--mode", "random", "--probability", f"{share}"]
        for _, _, chain in self._chains:
            self._iptables("-A", chain, *match, "-j", "DROP")

    def dropped(self) -> int:
        """How many packets the cuts have swallowed."""
        return sum(count for _, _, chain in self._chains for count in self._swallowed(chain))

    def _swallowed(self, chain: str) -> list[int]:
        """By each rule of `chain` that drops, in their order."""
        rules = self._iptables("-L", chain, "-v", "-x", "-n")
        return [int(count) for count in re.findall(r"^\s*(\d+)\s+\d+\s+DROP\b", rules, re.MULTILINE)]

    def heal(self) -> None:
        """Take all cuts away. A connection that was cut stays what its ends make of it."""
        for _, _, chain in self._chains:
            self._iptables("-F", chain)

    def _patience(self, *, milliseconds: int, probes: int) -> None:
        """How soon the provider finds that nobody is there: connections to a line that is down fail that quickly."""
        timing = ("retrans", str(milliseconds), "mcast_probes", str(probes))
        self.provider.ip("ntable", "change", "name", "arp_cache", "dev", self.far_device, *timing)

    def _mark(self, chain: str, marker: str, mark: str) -> None:
        match = ["-m", "string", "--algo", "bm", "--hex-string", f"|{marker.encode().hex()}|"]
        self._iptables("-A", chain, *match, "-j", "CONNMARK", "--set-mark", mark)

    def _iptables(self, *argv: str) -> str:
        return self.site.run("iptables", "-w", "10", *argv)


@dataclass(frozen=True, slots=True)
class Packet:
    """One TCP segment that carried data. `at`: when the kernel saw it, in seconds on the wall clock."""

    at: float
    source: str
    source_port: int
    target: str
    target_port: int
    octets: int
    head: bytes


class Tap:
    """Listens on a device and keeps the beginning of every TCP segment with data, and counts all IP bytes."""

    HEAD = 256

    def __init__(self, namespace: Namespace, device: str) -> None:
        self.packets: list[Packet] = []
        self.octets = 0
        self._socket = namespace.inside(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self._socket.bind((device, ETH_P_ALL))  # ETH_P_IP would hear only what comes in
        self._socket.setblocking(False)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._listen, name=f"tap on {device}", daemon=True)
        self._thread.start()

    def __enter__(self) -> Tap:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._socket.close()

    def said(self, words: bytes) -> list[Packet]:
        """The segments that begin with `words` (at the start of a line of SMTP: a command or reply)."""
        return [packet for packet in self.packets if packet.head.upper().startswith(words.upper())]

    def _listen(self) -> None:
        while not self._ended.is_set():
            if not select.select([self._socket], [], [], 0.05)[0]:
                continue
            try:
                data, extras, _, where = self._socket.recvmsg(65536, 64)
            except OSError as problem:
                if problem.errno in (errno.ENETDOWN, errno.EAGAIN):
                    continue  # a device that is down says so once, and is listened to again when it comes up
                raise
            if where[1] == ETH_P_IP:
                self.octets += len(data)
                self._keep(data, extras)

    def _keep(self, data: bytes, extras: Sequence[tuple[int, int, bytes]]) -> None:
        if len(data) < 40 or data[9] != socket.IPPROTO_TCP:
            return
        begin = (data[0] & 15) * 4
        total = int.from_bytes(data[2:4], "big")
        body = begin + (data[begin + 12] >> 4) * 4
        if total <= body:
            return
        at = time.time()
        for _, kind, value in extras:
            if kind == SO_TIMESTAMPNS:
                whole, nanoseconds = struct.unpack("qq", value[:16])
                at = whole + nanoseconds / 1e9
        ports = struct.unpack(">HH", data[begin : begin + 4])
        source, target = socket.inet_ntoa(data[12:16]), socket.inet_ntoa(data[16:20])
        head = data[body : min(total, body + self.HEAD)]
        self.packets.append(Packet(at, source, ports[0], target, ports[1], total - body, head))


@contextlib.contextmanager
def nothing_left() -> Iterator[None]:
    """What is inside must leave no namespace behind. Other test processes may have theirs meanwhile."""
    before = existing()
    yield
    own = {name for name in existing() if name.startswith(f"sa{os.getpid()}-")}
    if left := sorted(own - set(before)):
        raise LabError(f"namespaces left behind: {', '.join(left)}")
