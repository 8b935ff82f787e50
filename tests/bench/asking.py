"""How soon we ask, how long all takes, what a slow line carries. Figures for people; nothing is asserted.

    python tests/bench/asking.py latency [--times 50]    link-up to the first byte of ETRN, settle time taken off
    python tests/bench/asking.py drain [--times 5]       50 messages, link-up to the last file, and a bare sink's time
    python tests/bench/asking.py slow                    ten messages of 20 kB on 33,600 bit/s: the line's share used
    python tests/bench/asking.py flaps                   200 flaps in 60 s: rounds started, sessions, what is left over

Needs root and Debian's postfix, as the end-to-end tests do.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from tests.e2e.agent import Agent  # noqa: E402
from tests.e2e.lab import Lab, Namespace, PostfixProvider, Sink, Tap, wait_for  # noqa: E402
from tests.e2e.messages import shapes, simple  # noqa: E402
from tests.e2e.net import tool  # noqa: E402

SETTLE = 0.1
RATE = 33_600


class KernelTime:
    """When the kernel said that a line came up: `ip -ts monitor` in the site, its latest default route."""

    def __init__(self, namespace: Namespace, output: Path) -> None:
        self._file = output.open("wb")
        self._path = output
        self._process = namespace.start("ip", "-ts", "monitor", "route", "link", output=self._file)
        time.sleep(0.2)

    def last_route(self) -> float:
        """Seconds since the epoch of the latest default route."""
        from datetime import datetime

        found = re.findall(r"\[(\S+)\] (?!Deleted)default via", self._path.read_text())
        return datetime.fromisoformat(found[-1]).astimezone().timestamp()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def latency(times: int) -> None:
    with Lab() as lab:
        isp = lab.provider()
        tables = {"link": f"settle_seconds = {SETTLE}", "provider.isp": "first_connection_seconds = 0.2"}
        with lab.agent(tables=tables, measured=False) as agent, Tap(lab.site, isp.line.device) as tap:
            kernel = KernelTime(lab.site, lab.directory / "kernel")
            took = []
            for number in range(times):
                seen = len(tap.said(b"ETRN "))
                isp.line.up()
                wait_for(lambda seen=seen: len(tap.said(b"ETRN ")) > seen, "ETRN", seconds=10)
                took.append((tap.said(b"ETRN ")[seen].at - kernel.last_route() - SETTLE) * 1000)
                agent.wait_for_round("isp", beyond=number)
                isp.line.down()
                agent.wait_for(lambda n=number: len(agent.events("link.down")) > n, "link.down")
            kernel.close()
    took.sort()
    p95 = took[int(len(took) * 0.95) - 1]
    print(f"link-up to ETRN, {times} times: median {statistics.median(took):.1f} ms, p95 {p95:.1f} ms")


def _drained_by_us(lab: Lab, isp: PostfixProvider) -> float:
    sent = shapes()
    isp.queue(sent)
    name = f"agent{len(lab.agents)}"
    with lab.agent(tables={"link": f"settle_seconds = {SETTLE}"}, measured=False, name=name) as agent:
        before = time.time()
        isp.line.up()
        wait_for(lambda: isp.waiting() == 0, "all gone", seconds=120, every=0.1)
        agent.wait_for_round("isp", seconds=120)
        last = max(path.stat().st_ctime for path in agent.files())
        problems = agent.wrong(sent)
        agent.terminate()
    isp.line.down()
    assert not problems, problems
    return last - before - SETTLE


def _drained_by_a_sink(lab: Lab, isp: PostfixProvider) -> float:
    isp.queue(shapes())
    with Sink(lab.site) as sink:
        before = time.time()
        isp.line.up()
        for node in isp.terms.nodes:
            isp.etrn(node)
        wait_for(lambda: len(sink.taken) == 50, "fifty", seconds=120, every=0.002)
        took = time.time() - before
        wait_for(lambda: isp.waiting() == 0, "all gone", seconds=120, every=0.1)
    isp.line.down()
    return took


def drain(times: int) -> None:
    ours, sinks = [], []
    for _ in range(times):
        with Lab() as lab:
            isp = lab.provider()
            sinks.append(_drained_by_a_sink(lab, isp))
            ours.append(_drained_by_us(lab, isp))
    a, b = statistics.median(ours), statistics.median(sinks)
    print(f"50 messages, {times} times: siteagent {a:.3f} s, bare sink {b:.3f} s, ratio {a / b:.2f}")
    print("  ours", [round(each, 3) for each in ours], "sinks", [round(each, 3) for each in sinks])


def slow() -> None:
    with Lab() as lab:
        isp = lab.provider()
        isp.queue(simple(10, octets=20_000))
        isp.line.rate(RATE)
        with lab.agent(measured=False) as agent, Tap(lab.site, isp.line.device) as tap:
            counted: list[tuple[float, int]] = []
            done = threading.Event()
            counter = threading.Thread(target=_count, args=(isp, counted, done))
            counter.start()
            isp.line.up()
            ended = agent.wait_for_round("isp", seconds=300)
            done.set()
            counter.join()
            greeting = next(p.at for p in tap.packets if p.source_port == 25 and p.source == isp.line.site_address)
            ours = [p for p in tap.packets if p.source_port == 25 and p.source == isp.line.site_address]
            last = max(p.at for p in ours if b"250 2." in p.head)
    begin = next(octets for at, octets in counted if at >= greeting)
    end = next(octets for at, octets in counted if at >= last)
    seconds = last - greeting
    share = (end - begin) * 8 / (RATE * seconds)
    print(
        f"{ended['messages']} messages of 20 kB: {end - begin} octets in {seconds:.1f} s, by tc at the provider's end,"
    )
    print(f"  {share:.1%} of what {RATE} bit/s carry")


def _count(isp: PostfixProvider, counted: list[tuple[float, int]], done: threading.Event) -> None:
    """What tc has sent at the provider's end, every tenth of a second."""
    while not done.wait(0.1):
        shown = json.loads(
            tool("tc", "-n", isp.namespace.name, "-s", "-j", "qdisc", "show", "dev", isp.line.far_device)
        )
        counted.append((time.time(), shown[0]["bytes"]))


def flaps() -> None:
    with Lab() as lab:
        isp = lab.provider()
        tables = {"link": "settle_seconds = 0.5", "provider.isp": "first_connection_seconds = 2"}
        with lab.agent(tables=tables, measured=False) as agent:
            begin = time.monotonic()
            for number in range(200):
                isp.line.up()
                time.sleep(max(0.0, begin + (number + 0.5) * 0.3 - time.monotonic()))
                isp.line.down()
                time.sleep(max(0.0, begin + (number + 1) * 0.3 - time.monotonic()))
            took = time.monotonic() - begin
            # It ended down, and stays so until that counts: else the last "up" may be no news.
            agent.wait_for(lambda: agent.events("link.down")[-1:] == last_word(agent), "down", seconds=10)
            during = len(agent.events("round.started"))
            isp.line.up()
            agent.wait_for(lambda: len(agent.events("round.started")) > during, "a round", seconds=10)
            agent.wait_for_round("isp", beyond=during, seconds=30)
            ups = len(agent.events("link.up"))
            started, ended = len(agent.events("round.started")), len(agent.events("round.ended"))
    print(f"200 flaps in {took:.0f} s: {during} rounds while it flapped, {started - during} when it stayed up;")
    print(f"  {ups} times up as it settled, {started} rounds, {ended} of them ended")


def last_word(agent: Agent) -> list[dict[str, object]]:
    """The latest that was told of the line."""
    told = [*agent.events("link.up"), *agent.events("link.down")]
    return sorted(told, key=lambda event: str(event["time"]))[-1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["latency", "drain", "slow", "flaps"])
    parser.add_argument("--times", type=int, default=None)
    options = parser.parse_args()
    match options.what:
        case "latency":
            latency(options.times or 50)
        case "drain":
            drain(options.times or 5)
        case "slow":
            slow()
        case "flaps":
            flaps()


if __name__ == "__main__":
    main()
