"""A soak: days of rounds in an hour, with flaps, kills, cut sessions and full disks: what leaks, and what is lost?

    python tests/faults/soak.py --minutes 60         # the long form; its figures stand in docs/reliability.md
    python tests/faults/soak.py --cycles 8           # whether it runs; memory is not judged
    python tests/faults/soak.py --seed 4711          # the same order of events again

Three programs live through it. A steady agent takes mail from a real Postfix by ETRN and is never ended; a hub holds
mail and gives it by ATRN, and is never ended; a mortal agent fetches from the hub and dies by kill -9 now and then. A
cycle is: mail comes while both lines are down, the lines come up, an event happens, the rounds end, a reader takes the
mail out of the Maildirs, the lines go down. The time is compressed by the number of rounds: an office asks about 96
times a day, the soak some 15 times a minute. Days pass in rounds and not on the clock.

Prints descriptors, threads and memory of the two that live on, at rest, as medians of a tenth of the run at its start
(after the first twentieth), its middle and its end. Exit code 1 where anything was lost, doubled or
changed, where a traceback was logged, or where descriptors or memory at the end are more than 5 % above the start
(S65). Needs root and Debian's postfix.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.bench.growth import write_memory, write_past
from tests.e2e.hub import ODMR_PORT, Hub
from tests.e2e.lab import Agent, Lab, LabError, PostfixProvider, nothing_left
from tests.e2e.messages import ALICE, BOB, CAROL, DAVE, simple
from tests.faults.account import Account
from tests.faults.growth import Report, Sample, tell

STEADY_BOXES = {"alice": (ALICE,), "bob": (BOB,)}
MORTAL_BOXES = {"carol": (CAROL,), "dave": (DAVE,)}
SIZES = (800, 2_000, 20_000, 100_000, 300_000, 600_000)  # below and above what the spool keeps in its database
EVENTS = {"nothing": 12, "flap": 3, "kill": 3, "cut": 2, "spool full": 1, "mailboxes full": 1}
"""What happens in a cycle, and how often of all."""
DISK = "64m"
PAST = 30_000
"""Messages that the two have behind them when they start: else the page caches of their databases (three megabytes in
all) fill while they are watched, and that looks like a leak."""
SPARING = "quiet_seconds = 1\nretry_seconds = [0, 5]"  # a hub hears ten asks a minute
QUICK = "quiet_seconds = 1\nfirst_connection_seconds = 4\nretry_seconds = [0, 0.5, 1]"


class Soak:
    """The laboratory with the three programs, and the cycles they go through."""

    def __init__(self, lab: Lab, report: Report) -> None:
        self._report = report
        self._chance = random.Random(report.seed)
        self._number = 0
        self._began = time.monotonic()
        self.isp: PostfixProvider = lab.provider("isp", nodes=["office.example"], timeout_seconds=3)
        self.hub = Hub(lab.line(), lab.directory / "hub", lab.trust, nodes={"branch.example": ""})
        limits = "silence_seconds = 3\ncommand_seconds = 3"
        self._place = lab.directory
        self.steady = lab.agent(
            [self.isp],
            mailboxes=STEADY_BOXES,
            name="steady",
            measured=False,
            tables={
                "provider.isp": QUICK,
                "link": _link(lab, "steady", self.isp.line.device),
                "limits": limits,
                "listener": "min_free_bytes = 1_000_000",
            },
        )
        self.mortal = lab.agent(
            [self.hub],  # type: ignore[list-item]
            mailboxes=MORTAL_BOXES,
            name="mortal",
            measured=False,
            tables={
                "provider.hub": f'{SPARING}\nmethod = "atrn"\nport = {ODMR_PORT}\ntls = "required"',
                "link": _link(lab, "mortal", self.hub.line.device),
                "listener": "listen = []",
                "limits": limits,
            },
        )
        write_past(self.steady.state, PAST)
        write_memory(self.hub.state, PAST)
        self._accounts = {"steady": Account(STEADY_BOXES), "mortal": Account(MORTAL_BOXES)}

    def cycle(self, event: str) -> None:
        """One of `EVENTS`, from lines that are down to lines that are down."""
        self._mail()
        act = {
            "flap": self._flap,
            "kill": self._kill,
            "cut": self._cut,
            "spool full": self._full_spool,
            "mailboxes full": self._full_mailboxes,
        }.get(event)
        if act is None:
            self._round()
        else:
            act()
        self._rest()
        self._report.cycles[event] += 1

    # --- what happens -------------------------------------------------------------------------------------------------

    def _mail(self) -> None:
        for who, addresses, provider in (
            ("steady", ((ALICE,), (BOB,), (ALICE, BOB)), self.isp),
            ("mortal", ((CAROL,), (DAVE,), (CAROL, DAVE)), self.hub),
        ):
            fresh = []
            for _ in range(self._chance.randint(0, 6)):
                self._number += 1
                size, recipients = self._chance.choice(SIZES), self._chance.choice(addresses)
                fresh += simple(1, octets=size, recipients=recipients, first=100_000 + self._number)
            self._accounts[who].send(fresh)
            if provider is self.isp:
                self.isp.submit(fresh)
                self.isp.wait_for_deferred()
            else:
                self.hub.submit(fresh)

    def _up(self) -> None:
        for line in (self.isp.line, self.hub.line):
            line.up()

    def _round(self) -> None:
        """The lines come up, and each agent ends a round."""
        before = {agent: len(agent.rounds()) for agent in (self.steady, self.mortal)}
        self._up()
        for agent, ended in before.items():
            agent.wait_for(lambda a=agent, n=ended: len(a.rounds()) > n, "a round", seconds=60)

    def _flap(self) -> None:
        for _ in range(self._chance.randint(1, 5)):
            self._up()
            time.sleep(self._chance.uniform(0.1, 0.8))
            self.isp.line.down()
            self.hub.line.down()
            time.sleep(self._chance.uniform(0.05, 0.5))
        self._down()
        self._round()

    def _kill(self) -> None:
        """The mortal agent dies at any moment of its round, and comes back."""
        self._up()
        time.sleep(self._chance.uniform(0, 1.5))
        self.mortal.kill()
        self._count(self.mortal)
        self.mortal.start()
        for agent in (self.steady, self.mortal):
            agent.wait_for(agent.rounds, "a round", seconds=60)

    def _cut(self) -> None:
        """Nothing comes through any more after so many octets; a moment later the line is down."""
        for line in (self.isp.line, self.hub.line):
            line.cut_after(self._chance.randint(500, 400_000))
        self._up()
        time.sleep(self._chance.uniform(1, 3))
        self._down()
        for line in (self.isp.line, self.hub.line):
            line.heal()
        self._round()

    def _full_spool(self) -> None:
        with self._ballast("state"):
            self._round()
        self._down()
        self._round()

    def _full_mailboxes(self) -> None:
        with self._ballast("mail"):
            self._round()
        if self.steady.events("filing.failed"):
            done = self.steady.command("queue", "retry")
            if done.returncode != 0:
                self._report.problems.append(f"queue retry: exit code {done.returncode}: {done.stderr.strip()}")
            self._filed(self.steady)

    @contextlib.contextmanager
    def _ballast(self, disk: str) -> Iterator[None]:
        path = self._place / "steady" / disk / "ballast"
        with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        yield
        path.unlink()

    # --- between two cycles -------------------------------------------------------------------------------------------

    def _down(self) -> None:
        for agent, line in ((self.steady, self.isp.line), (self.mortal, self.hub.line)):
            line.down()
            agent.wait_for(lambda a=agent: not a.status().get("link", {}).get("up", True), "link.down", seconds=20)

    def _filed(self, agent: Agent) -> None:
        agent.wait_for(lambda: agent.status().get("queue", {}).get("messages") == 0, "all filed", seconds=60)

    def _rest(self) -> None:
        """Lines down, sessions over, mail read, figures taken, logs begun anew."""
        self._down()
        for agent in (self.steady, self.mortal):
            agent.wait_for(lambda a=agent: not a.status().get("sessions_open", [1]), "no session", seconds=30)
        at = time.monotonic() - self._began
        for who, pid in (("steady agent", self.steady.pid), ("hub", self.hub.pid)):
            self._report.samples[who].append(Sample.of(pid, at))
        self._read()
        for program in (self.steady, self.mortal, self.hub):
            self._count(program)

    def _read(self) -> None:
        for who, agent in (("steady", self.steady), ("mortal", self.mortal)):
            self._accounts[who].read(agent)

    def _count(self, program: Agent | Hub) -> None:
        """Counts what the log says, and begins it anew: a log of an hour would be read again at every look."""
        text = program.log_file.read_text(errors="replace")
        os.truncate(program.log_file, 0)
        if "Traceback" in text:
            self._report.problems.append(f"{program.directory.name} logged a traceback:\n{text[-3000:]}")
        for line in text.splitlines():
            with contextlib.suppress(ValueError):
                entry: dict[str, Any] = json.loads(line)
                self._report.events[entry["event"]] += 1
                if entry["event"] == "round.ended":
                    self._report.outcomes[f"{entry['provider']}: {entry['outcome']}"] += 1

    # --- the end ------------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Lets come what is still at the providers, and closes the account."""
        deadline = time.monotonic() + 120
        while (self.isp.waiting() or self.hub.held()) and time.monotonic() < deadline:
            self._round()
            self._down()
            self.isp.wait_for_deferred()
        for agent in (self.steady, self.mortal):
            self._filed(agent)
        self._read()
        for who, agent in (("steady", self.steady), ("mortal", self.mortal)):
            account = self._accounts[who]
            self._report.problems += account.problems()
            self._report.problems += [f"left behind: {path}" for path in agent.leftovers()]
            self._report.sent += account.sent
            self._report.filed += account.files
        self._report.seconds = time.monotonic() - self._began
        for program in (self.steady, self.mortal, self.hub):
            code = program.terminate()
            if code != 0:
                self._report.problems.append(f"{program.directory.name} ended with {code}")
            self._count(program)


def _link(lab: Lab, who: str, device: str) -> str:
    """Each agent has one line that counts, and its own place for hints."""
    hints = lab.directory / who / "hints"
    return f'settle_seconds = 0.2\ninterfaces = ["{device}"]\nhook_directory = "{hints}"'


@contextlib.contextmanager
def _small_disks(lab: Lab) -> Iterator[None]:
    """The steady agent's state and its mail, each on a file system that is soon full."""
    places = [lab.directory / "steady" / name for name in ("state", "mail")]
    with contextlib.ExitStack() as stack:
        for place in places:
            place.mkdir(parents=True)
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK},mode=0700", "none", str(place)], check=True)
            stack.callback(subprocess.run, ["umount", "--lazy", str(place)], check=False)
        yield


def soak(*, seed: int, minutes: float | None, cycles: int | None) -> Report:
    report = Report(seed)
    chance = random.Random(seed)
    until = None if minutes is None else time.monotonic() + minutes * 60
    # Every kind of event once at first, so that a short run meets different ones.
    plan = [
        *chance.sample(list(EVENTS), len(EVENTS)),
        *chance.choices(list(EVENTS), weights=list(EVENTS.values()), k=100_000),
    ][:cycles]
    with nothing_left(), Lab() as lab, _small_disks(lab):
        run = Soak(lab, report)
        with run.hub, run.steady, run.mortal:
            for number, event in enumerate(plan):
                if until is not None and time.monotonic() > until:
                    break
                try:
                    run.cycle(event)
                except LabError as problem:
                    report.problems.append(f"cycle {number + 1} ({event}): {problem}")
                    report.problems.append(lab.tails())
                    break
                if number % 50 == 49:
                    _say(f"cycle {number + 1}: {json.dumps(asdict(report.samples['steady agent'][-1]))}")
            run.finish()
    report.problems += report.growth()
    return report


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, metavar="N", help="how long; default: as many cycles as asked for")
    parser.add_argument(
        "--cycles", type=int, metavar="N", help="how many at most; default: 8, or no end with --minutes"
    )
    parser.add_argument("--seed", type=int, default=None, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every sample there")
    options = parser.parse_args(argv)
    seed = random.SystemRandom().randrange(1_000_000) if options.seed is None else options.seed
    cycles = options.cycles or (None if options.minutes else 8)
    report = soak(seed=seed, minutes=options.minutes, cycles=cycles)
    tell(report)
    if options.json:
        options.json.write_text(json.dumps(report.document(), indent=1))
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
