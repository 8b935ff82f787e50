"""A line to somebody far away: every packet arrives a while after it was sent. Counts what it carries.

A tun device at each end, and threads that carry the packets between them. (The kernel's own delay, netem, is not in
every kernel.) For whoever takes a `Line`, as far as they need it.
"""

from __future__ import annotations

import collections
import contextlib
import fcntl
import os
import select
import socket
import struct
import threading
import time

from tests.e2e.net import Namespace

_TUNSETIFF = 0x400454CA
_IFF_TUN_NO_PI = 0x1001
_MTU = 1500
_RST = 4


class FarLine:
    """Between `site` and `provider`, `delay_seconds` each way; begins down. `octets` and `packets`: all of IP."""

    def __init__(self, site: Namespace, provider: Namespace, *, delay_seconds: float) -> None:
        self.site, self.provider, self.delay_seconds = site, provider, delay_seconds
        self.device, self.far_device = "far0", "near0"
        self.site_address, self.provider_address = "198.51.100.2", "198.51.100.1"
        self.octets = self.packets = 0
        self.first = self.last = 0.0
        self._ends = [_tun(site, self.device), _tun(provider, self.far_device)]
        self._stop, self._ended = os.pipe()
        for namespace, device, own, other in (
            (site, self.device, self.site_address, self.provider_address),
            (provider, self.far_device, self.provider_address, self.site_address),
        ):
            namespace.ip("address", "add", own, "peer", other, "dev", device)
        provider.ip("link", "set", self.far_device, "up")
        self._threads = []
        for source, target in (self._ends, self._ends[::-1]):
            waiting: collections.deque[tuple[float, bytes]] = collections.deque()
            there = threading.Semaphore(0)
            for work, end in ((self._take, source), (self._give, target)):
                thread = threading.Thread(target=work, args=(end, waiting, there), daemon=True)
                self._threads.append(thread)
                thread.start()

    def __enter__(self) -> FarLine:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._ended)
        for thread in self._threads:
            thread.join(10)
        for end in (*self._ends, self._stop):
            os.close(end)

    def up(self) -> None:
        self.site.ip("link", "set", self.device, "up")
        self.site.ip("route", "replace", "default", "dev", self.device)

    @property
    def seconds(self) -> float:
        """From the first packet to the last FIN: nobody waits for a RST, which is what closed sockets answer."""
        return self.last - self.first

    def _take(self, end: int, waiting: collections.deque[tuple[float, bytes]], there: threading.Semaphore) -> None:
        while True:
            ready, _, _ = select.select([end, self._stop], [], [])
            if self._stop in ready:
                waiting.append((0.0, b""))
                there.release()
                return
            with contextlib.suppress(OSError):  # the device is down
                packet = os.read(end, _MTU + 100)
                if packet[0] >> 4 == 4:  # not what IPv6 says to itself
                    waiting.append((time.monotonic() + self.delay_seconds, packet))
                    there.release()

    def _give(self, end: int, waiting: collections.deque[tuple[float, bytes]], there: threading.Semaphore) -> None:
        while True:
            there.acquire()
            due, packet = waiting.popleft()
            if not packet:
                return
            time.sleep(max(0.0, due - time.monotonic()))
            now = time.monotonic()
            self.octets += len(packet)
            self.packets += 1
            self.first = self.first or now - self.delay_seconds
            if not _is_reset(packet):
                self.last = now
            with contextlib.suppress(OSError):
                os.write(end, packet)


def _is_reset(packet: bytes) -> bool:
    begin = (packet[0] & 15) * 4
    return packet[9] == socket.IPPROTO_TCP and bool(packet[begin + 13] & _RST)


def _tun(namespace: Namespace, device: str) -> int:
    """A tun device of that name in `namespace`, for as long as what is returned stays open."""

    def make() -> int:
        handle = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        fcntl.ioctl(handle, _TUNSETIFF, struct.pack("16sH22x", device.encode(), _IFF_TUN_NO_PI))
        return handle

    return namespace.inside(make)
