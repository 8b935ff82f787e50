"""How fast a queue is pushed into a site: by the hub, and by Postfix, into the same site in the same run.

    python tests/bench/push.py                    # 2,000 messages of 4 kB, one and five connections, five rounds
    python tests/bench/push.py --short            # small and once: whether it runs, not how fast

The site is the whole agent, which files into a Maildir. Before each push the queue is filled while the site is not
sent to: of the hub, whose mail waits for ETRN anyway, and of Postfix by `defer_transports`, taken away before the
clock runs. Then it is released: the hub by ETRN, Postfix by `postqueue -f`, with as many connections as
`max_connections` of the node and `default_destination_concurrency_limit` (and the initial one) say. "filed" is from
there until the last file stands in the site's ``new/``. Sides take turns; every figure is the median of the rounds,
and only ratios of one run mean anything. Nothing else should run meanwhile. Needs Debian's postfix, and root.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.bench.loads import smtp_source
from tests.bench.sides import DOMAIN, Postfix, Served, Side, Trouble, environment, running
from tests.e2e.net import wait_for

ROOT = Path(__file__).resolve().parents[2]
CONNECTIONS = (1, 5)
_PATIENCE_SECONDS = 180.0
_LOOK_SECONDS = 0.005


@dataclass(frozen=True, slots=True)
class Pushed:
    """One push. Seconds until all is filed, CPU seconds of the sender."""

    side: str
    connections: int
    messages: int
    filed: float
    cpu: float


class HubSender(Side):
    """`siteagent hub run` with one node, which is the site."""

    name = "hub"
    keeps = False

    def __init__(self, directory: Path, site: Side, *, connections: int) -> None:
        super().__init__(directory)
        self._site, self._connections = site, connections
        self._log = directory / "hub.log"

    def start(self) -> None:
        self.directory.mkdir(parents=True)
        configuration = self.directory / "hub.toml"
        configuration.write_text(
            f"""
hostname = "hub.example"
state_directory = "{self.directory}/state"
[listener]
listen = ["127.0.0.1:0"]
[log]
format = "json"
[[node]]
name = "{DOMAIN}"
domains = ["{DOMAIN}"]
deliver_to = "127.0.0.1:{self._site.port}"
max_connections = {self._connections}
etrn_without_auth = true
"""
        )
        argv = [sys.executable, "-m", "siteagent", "--config", str(configuration), "hub", "run"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(argv, cwd=ROOT, stderr=log, env=environment())
        wait_for(lambda: b'"hub.ready"' in self._log.read_bytes(), "hub.ready", seconds=30)
        line = next(line for line in self._log.read_text().splitlines() if '"hub.ready"' in line)
        self.port = int(json.loads(line)["listening"][0].rpartition(":")[2])

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(60)

    def pids(self) -> list[int]:
        return [self._process.pid]

    def fill(self, messages: int, octets: int) -> None:
        _load(self.port, messages, octets)

    def release(self) -> None:
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as own, own.makefile("rb") as file:
            file.readline()
            for line in (b"EHLO asker.example\r\n", f"ETRN {DOMAIN}\r\n".encode()):
                own.sendall(line)
                while (answer := file.readline())[3:4] == b"-":
                    pass
            if not answer.startswith(b"250"):
                raise Trouble(f"the hub answers ETRN by {answer.decode(errors='replace').strip()}")


class PostfixSender(Postfix):
    """Postfix with the site as the only place that its mail goes to."""

    def __init__(self, directory: Path, site: Side, *, connections: int) -> None:
        settings = {
            "virtual_mailbox_domains": "",
            "relay_domains": DOMAIN,
            "transport_maps": f"inline:{{{DOMAIN}=smtp:[127.0.0.1]:{site.port}}}",
            "default_destination_concurrency_limit": str(connections),
            "initial_destination_concurrency": str(connections),
        }
        super().__init__(directory, settings={**settings, "defer_transports": "smtp"})
        self._open_settings = settings

    def fill(self, messages: int, octets: int) -> None:
        self._set(defer=True)
        _load(self.port, messages, octets)
        wait_for(lambda: self._waiting("deferred") == messages, "all deferred", seconds=_PATIENCE_SECONDS, every=0.1)
        self._set(defer=False)

    def release(self) -> None:
        path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
        words = ["postqueue", "-c", str(self.etc), "-f"]
        subprocess.run(words, check=True, timeout=60, env={**os.environ, "PATH": path})

    def _set(self, *, defer: bool) -> None:
        main = self.etc / "main.cf"
        lines = [line for line in main.read_text().splitlines() if not line.startswith("defer_transports")]
        main.write_text("\n".join([*lines, f"defer_transports = {'smtp' if defer else ''}"]) + "\n")
        os.utime(main, (time.time() - 60,) * 2)  # it waits for fresh files to settle
        self.reload()
        time.sleep(1.0)  # its queue manager begins anew

    def _waiting(self, queue: str) -> int:
        return sum(len(files) for _, _, files in os.walk(self.queue / queue))


Sender = HubSender | PostfixSender


def _load(port: int, messages: int, octets: int) -> None:
    argv = [smtp_source() or "smtp-source", "-d", "-m", str(messages), "-s", "4", "-l", str(octets)]
    argv += ["-f", "sender@elsewhere.example", "-t", f"box@{DOMAIN}", f"127.0.0.1:{port}"]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        raise Trouble(f"smtp-source: {done.stderr[:500]}")


def push(sender: Sender, site: Side, *, connections: int, messages: int, octets: int) -> Pushed:
    """Fills the sender's queue, releases it and waits until the site has filed all. Raises Trouble."""
    site.empty()
    sender.fill(messages, octets)
    os.sync()
    time.sleep(0.5)
    before = sender.cpu_seconds()
    began = time.perf_counter()
    sender.release()
    while site.filed() < messages:
        if time.perf_counter() - began > _PATIENCE_SECONDS:
            raise Trouble(f"{sender.name}: {site.filed()} of {messages} are filed")
        time.sleep(_LOOK_SECONDS)
    filed = time.perf_counter() - began
    time.sleep(0.5)  # what follows a filed message is part of its price
    return Pushed(sender.name, connections, messages, filed, sender.cpu_seconds() - before)


def run(
    place: Path,
    *,
    messages: int = 2_000,
    octets: int = 4_096,
    rounds: int = 5,
    connections: Sequence[int] = CONNECTIONS,
) -> list[Pushed]:
    """Every push of every round."""
    results = []
    site = Served("ours", place / "site")
    with running(site):
        for number in connections:
            senders: list[Sender] = [HubSender(place / f"hub{number}", site, connections=number)]
            if (reason := Postfix.missing()) is None:
                senders.append(PostfixSender(place / f"postfix{number}", site, connections=number))
            else:
                print(f"without Postfix: {reason}", file=sys.stderr)
            with running(*senders):
                for turn in range(rounds):
                    for sender in senders[:: 1 if turn % 2 == 0 else -1]:
                        one = push(sender, site, connections=number, messages=messages, octets=octets)
                        results.append(one)
                        print(f"round {turn + 1}: {one}", file=sys.stderr, flush=True)
    return results


def rows(results: Sequence[Pushed]) -> list[tuple[str, ...]]:
    """The table, its head first."""
    lines = [
        ("connections", "hub, messages/s", "Postfix, messages/s", "hub / Postfix", "CPU s per 1,000: hub", "Postfix")
    ]
    for connections in dict.fromkeys(one.connections for one in results):
        rates, cpus = {}, {}
        for side in ("hub", "postfix"):
            own = [one for one in results if (one.side, one.connections) == (side, connections)]
            if own:
                rates[side] = median(one.messages / one.filed for one in own)
                cpus[side] = median(one.cpu / one.messages * 1000 for one in own)
        ratio = f"{rates['hub'] / rates['postfix']:.2f}" if len(rates) == 2 else "-"
        rate, cpu = ({side: f"{value:.{n}f}" for side, value in of.items()} for of, n in ((rates, 0), (cpus, 2)))
        lines.append(
            (str(connections), rate["hub"], rate.get("postfix", "-"), ratio, cpu["hub"], cpu.get("postfix", "-"))
        )
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--messages", type=int, default=2_000, metavar="N", help="default: 2000")
    parser.add_argument("--octets", type=int, default=4_096, metavar="N", help="default: 4096")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="default: 5")
    parser.add_argument("--connections", type=int, nargs="+", default=list(CONNECTIONS), metavar="N")
    parser.add_argument("--short", action="store_true", help="small and once")
    parser.add_argument("--directory", type=Path, metavar="DIR", help="on the disk to be used; default: /var/tmp")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every single value there")
    options = parser.parse_args(argv)
    if options.short:
        options.messages, options.rounds, options.connections = 20, 1, [2]
    if smtp_source() is None:
        print("needs smtp-source (Debian's package postfix)", file=sys.stderr)
        return 78
    place = Path(tempfile.mkdtemp(prefix="siteagent-bench-", dir=options.directory or "/var/tmp"))
    place.chmod(0o755)  # Postfix gives up its rights and must still get here
    try:
        results = run(
            place,
            messages=options.messages,
            octets=options.octets,
            rounds=options.rounds,
            connections=options.connections,
        )
    except Trouble as trouble:
        print(f"error: {trouble}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(place, ignore_errors=True)
    lines = rows(results)
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        print(*(cell.rjust(width) for cell, width in zip(line, widths, strict=True)), sep="  ")
    if options.json:
        options.json.write_text(json.dumps([asdict(one) for one in results], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
