"""The link watch against a real kernel: namespaces, cables, addresses and routes that come and go.

The watch runs in a child inside the namespace, as an unprivileged user; the commands are timed from outside (one
clock, CLOCK_MONOTONIC, for both).
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.netns

SETTLE = 0.5
REPOSITORY = Path(__file__).parents[2]

CHILD = r"""
import asyncio, json, os, sys, time
from pathlib import Path
from siteagent.config.sections import Backend, Link
from siteagent.events import Event
from siteagent.link import backend, hookdir, netlink, oracle, poll, watch
# Whoever is nobody may not be able to read the interpreter's library: all that is imported lazily comes first.
import concurrent.futures.thread, watchdog.events, watchdog.observers
options = json.loads(sys.argv[1])
os.setgroups([]); os.setgid(65534); os.setuid(65534)
def say(**words):
    print(json.dumps({"at": time.monotonic(), **words}), flush=True)
section = Link(settle_seconds=options["settle"], poll_seconds=options["poll"], backend=Backend(options["backend"]))
w = watch.Watch(section, targets=lambda: [watch.Target("isp", tuple(options["addresses"]))],
    emit=lambda event: say(name=event.name, **event.values()),
    hook_directory=Path(options["hints"]), note=lambda text: say(name="note", text=text))
w.on_nudge = lambda cause: say(name="nudge", cause=cause)
looks = 0
class Counting(oracle.NetlinkOracle):
    def lines(self, addresses):
        global looks
        looks += 1
        return super().lines(addresses)
w._oracle = Counting()
async def main():
    task = asyncio.create_task(w.run())
    await asyncio.sleep(0.3)
    say(name="ready")
    loop = asyncio.get_running_loop()
    while line := (await loop.run_in_executor(None, sys.stdin.readline)).strip():
        if line == "block":
            say(name="blocking"); time.sleep(2); say(name="unblocked")
        usage = os.times()
        rss = next(row.split()[1] for row in open("/proc/self/status") if row.startswith("VmRSS"))
        say(name="usage", looks=looks, cpu=usage.user + usage.system, rss_kb=int(rss))
    task.cancel()
asyncio.run(main())
"""


class Host:
    """Two namespaces with a cable between them, `va` here and `vb` at the provider, and a watch in ours."""

    def __init__(self) -> None:
        self.name = f"sa{os.getpid()}"
        self.far = f"{self.name}p"
        self.children: list[subprocess.Popen[str]] = []
        self.told: queue.Queue[dict[str, Any]] = queue.Queue()
        self.hints = Path(tempfile.mkdtemp(prefix="siteagent-hints-"))
        self.hints.chmod(0o755)

    def lay(self) -> None:
        for namespace in (self.name, self.far):
            run("ip", "netns", "add", namespace)
        run("ip", "-n", self.name, "link", "add", "va", "type", "veth", "peer", "name", "vb", "netns", self.far)
        run("ip", "-n", self.far, "link", "set", "vb", "up")

    def tear(self) -> None:
        for child in self.children:
            child.kill()
            child.wait()
        for namespace in (self.name, self.far):
            subprocess.run(["ip", "netns", "del", namespace], capture_output=True)
        shutil.rmtree(self.hints, ignore_errors=True)

    def watch(
        self,
        *,
        poll: float = 1000,
        backend: str = "auto",
        addresses: tuple[str, ...] = ("203.0.113.9",),
        first: str | None = None,
    ) -> None:
        """Start the watch; `first` is the event that its first look tells."""
        options = {
            "settle": SETTLE,
            "poll": poll,
            "backend": backend,
            "addresses": addresses,
            "hints": str(self.hints),
        }
        child = subprocess.Popen(
            ["ip", "netns", "exec", self.name, sys.executable, "-c", CHILD, json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"},
        )
        self.children.append(child)
        threading.Thread(target=self._listen, args=(child,), daemon=True).start()
        if first is not None:
            assert self.expect(first)["cause"] == "start"
        self.expect("ready")

    def watch_up(self) -> None:
        """Watch a line that is up already: the first look tells it."""
        self.watch(first="link.up")

    def _listen(self, child: subprocess.Popen[str]) -> None:
        assert child.stdout is not None
        for line in child.stdout:
            self.told.put(json.loads(line))

    def expect(self, name: str, seconds: float = 10) -> dict[str, Any]:
        told = self.told.get(timeout=seconds)
        assert told["name"] == name, told
        return told

    def expect_silence(self, seconds: float) -> None:
        with pytest.raises(queue.Empty):
            raise AssertionError(self.told.get(timeout=seconds))

    def ask(self, order: str = "usage") -> dict[str, Any]:
        child = self.children[-1]
        assert child.stdin is not None
        child.stdin.write(order + "\n")
        child.stdin.flush()
        return self.expect("blocking" if order == "block" else "usage")

    def ip(self, *words: str) -> float:
        """Run ip(8) in our namespace; the time when it returned."""
        run("ip", "-n", self.name, *words)
        return time.monotonic()

    def batch(self, lines: list[str]) -> float:
        subprocess.run(["ip", "-n", self.name, "-batch", "-"], input="\n".join(lines), text=True, check=True)
        return time.monotonic()

    def up(self, address: str = "10.9.0.1") -> float:
        self.ip("addr", "add", f"{address}/24", "dev", "va")
        self.ip("link", "set", "va", "up")
        return self.ip("route", "add", "default", "via", "10.9.0.254")


def run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, text=True)


@pytest.fixture
def host() -> Iterator[Host]:
    host = Host()
    try:
        host.lay()
        yield host
    finally:
        host.tear()


def delay(told: dict[str, Any], since: float) -> float:
    """Seconds beyond the settle time."""
    return float(told["at"]) - since - SETTLE


def test_a_line_that_comes_up_is_told_within_100_ms_after_the_settle_time(host: Host) -> None:
    host.watch()
    host.expect_silence(0.5)
    since = host.up()
    told = host.expect("link.up")
    assert (told["interface"], told["source"], told["gateway"]) == ("va", "10.9.0.1", "10.9.0.254")
    assert told["cause"] == "netlink"
    assert -0.1 < delay(told, since) < 0.1


def test_a_cable_pulled_is_told_though_address_and_route_stay(host: Host) -> None:
    host.watch()
    host.up()
    host.expect("link.up")
    run("ip", "-n", host.far, "link", "set", "vb", "down")
    # The kernel itself takes up to a second to admit that the carrier is gone.
    assert host.expect("link.down")["interface"] == "va"
    run("ip", "-n", host.far, "link", "set", "vb", "up")
    assert host.expect("link.up")["source"] == "10.9.0.1"


def test_s49_a_new_address_without_a_down_is_a_change(host: Host) -> None:
    host.watch()
    host.up()
    host.expect("link.up")
    since = host.batch(
        [
            "addr del 10.9.0.1/24 dev va",
            "addr add 10.9.0.7/24 dev va",
            "route replace default via 10.9.0.254",
        ]
    )
    told = host.expect("link.changed")
    assert told["source"] == "10.9.0.7"
    assert delay(told, since) < 0.1


def test_s46_a_route_lost_and_back_within_the_settle_time_is_not_told(host: Host) -> None:
    host.watch()
    host.up()
    host.expect("link.up")
    for _ in range(7):
        host.ip("route", "del", "default")
        time.sleep(0.1)
        host.ip("route", "add", "default", "via", "10.9.0.254")
        time.sleep(0.2)
    host.expect_silence(1.5)


@pytest.mark.parametrize("kind", ["unreachable", "blackhole", "prohibit"])
def test_a_route_that_only_refuses_is_no_way(host: Host, kind: str) -> None:
    host.up()
    host.ip("route", "replace", kind, "default")
    host.watch()
    host.expect_silence(1)


def test_an_ipv6_line_counts_once_its_address_is_not_tentative_any_more(host: Host) -> None:
    host.watch(addresses=("2001:db8:9::9",))
    host.ip("link", "set", "va", "up")
    host.ip("addr", "add", "2001:db8::1/64", "dev", "va")
    host.ip("route", "add", "default", "via", "2001:db8::fe", "dev", "va")
    told = host.expect("link.up")
    assert (told["source"], told["gateway"]) == ("2001:db8::1", "2001:db8::fe")
    host.expect_silence(1)


def test_an_interface_without_anybody_behind_it_is_no_way(host: Host) -> None:
    host.ip("tuntap", "add", "tun0", "mode", "tun")
    host.ip("addr", "add", "10.8.0.1/24", "dev", "tun0")
    host.ip("link", "set", "tun0", "up")
    host.ip("route", "add", "default", "dev", "tun0")
    host.watch()
    host.expect_silence(1)


def test_an_ignored_interface_is_no_way_out(host: Host) -> None:
    host.ip("link", "set", "va", "name", "docker7")
    host.ip("addr", "add", "10.9.0.1/24", "dev", "docker7")
    host.ip("link", "set", "docker7", "up")
    host.ip("route", "add", "default", "via", "10.9.0.254")
    host.watch()
    host.expect_silence(1)


def test_loopback_leads_to_loopback_and_nowhere_else(host: Host) -> None:
    host.ip("link", "set", "lo", "up")
    host.watch(addresses=("127.0.0.1",), first="link.up")
    host.watch(addresses=("203.0.113.9",))
    host.expect_silence(1)


def test_a_hint_that_finds_the_line_as_it_was_is_one_nudge(host: Host) -> None:
    from siteagent.link.hookdir import leave_hint

    host.up()
    host.watch_up()
    since = time.monotonic()
    leave_hint(host.hints, "va", "test")
    leave_hint(host.hints, "va", "test")
    told = host.expect("nudge")
    assert told["cause"] == "hook:va"
    assert delay(told, since) < 0.2
    host.expect_silence(1)


def test_a_storm_of_routes_overruns_the_buffer_and_the_state_is_right_afterwards(host: Host) -> None:
    host.up()
    host.watch_up()
    before = host.ask()
    host.ask("block")  # The loop reads nothing while the kernel talks.
    storm = [f"route add 10.77.{n // 250}.{n % 250}/32 dev va" for n in range(3000)]
    # The last word, lost in the overrun: the default route is gone.
    host.batch([*storm, "route del default"])
    host.expect("unblocked")
    after = host.expect("usage")
    assert host.expect("link.down")["interface"] == "va"
    host.expect_silence(1)
    after = host.ask()
    assert after["looks"] - before["looks"] < 200
    assert after["rss_kb"] - before["rss_kb"] < 4096


def test_a_storm_of_routes_that_concern_nobody_is_cheap_and_not_told(host: Host) -> None:
    host.up()
    host.watch_up()
    before = host.ask()
    host.batch([f"route add 10.77.{n // 250}.{n % 250}/32 dev va" for n in range(3000)])
    host.batch([f"route del 10.77.{n // 250}.{n % 250}/32 dev va" for n in range(3000)])
    host.expect_silence(1)
    after = host.ask()
    assert after["cpu"] - before["cpu"] < 2
    assert after["looks"] - before["looks"] < 500


def test_polling_alone_finds_the_line_too(host: Host) -> None:
    host.watch(backend="poll", poll=1)
    host.up()
    assert host.expect("link.up")["cause"] == "poll"
