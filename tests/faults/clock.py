"""Time goes wrong: the wall clock leaps twenty years either way while mail comes (S62); the agent stands still (S63).

    python tests/faults/clock.py leap                    # the agent: 20 years on, 20 years back, and home again
    python tests/faults/clock.py leap --hub              # the hub: what it holds is not expired; 40 s a leap
    python tests/faults/clock.py stop --seconds 600      # SIGSTOP in the middle of a message for ten minutes

The clock is libfaketime's: time(), gettimeofday() and CLOCK_REALTIME leap, the monotonic clock does not, as on a host
whose clock is set. Files keep their real times, so that all that was written before looks twenty years off. Exit code 1
where anything was lost, doubled or expired, where a timer changed its pace, or where a process was busy with nothing.
Needs root, Debian's postfix and libfaketime.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.e2e.hub import Hub
from tests.e2e.lab import Agent, Lab, PostfixProvider, nothing_left, smtp
from tests.e2e.messages import ALICE, BOB, CUT_HERE, Shape, marked, simple
from tests.faults.account import Account

LEAPS = (20, -20, 0)
HUB_LEAPS = (-20, 20, -20)
BOXES = {"alice": (ALICE,), "bob": (BOB,)}
SILENT_SECONDS = 2.0
"""How long an accepted ask waits for a connection: the timer that is running while the clock leaps."""
_REST_SECONDS = 1.5
_BUSY = 0.5
"""In so many of the looks at it a program that turns in circles is seen at work, or waiting for a core."""


def library() -> str | None:
    """Where libfaketime is; None: not installed."""
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    return str(found[0]) if found else None


class Clock:
    """A wall clock for the programs that are started with `environment`."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "clock"
        self.set(0)
        self.environment = {
            "LD_PRELOAD": library() or "",
            "FAKETIME_TIMESTAMP_FILE": str(self._path),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }

    def set(self, years: int) -> None:
        """So many years off from now on (after a second at most)."""
        fresh = self._path.with_suffix(".new")
        fresh.write_text(f"{years * 365:+d}d\n")
        fresh.replace(self._path)


def at_work(pid: int, seconds: float) -> float:
    """In what share of many looks one of its threads wanted a core; whether it got one, depends on the neighbours."""
    looks = busy = 0
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        states = [path.read_text().rpartition(")")[2].split()[0] for path in Path(f"/proc/{pid}/task").glob("*/stat")]
        looks, busy = looks + 1, busy + ("R" in states)
        time.sleep(0.01)
    return busy / looks


class LeapingSite:
    """An agent whose clock leaps in the middle of a round, and of which one mailbox cannot be written."""

    def __init__(self, lab: Lab) -> None:
        self.problems: list[str] = []
        self.clock = Clock(lab.directory)
        self.isp: PostfixProvider = lab.provider(nodes=["office.example"])
        self.agent: Agent = lab.agent(
            mailboxes=BOXES,
            measured=False,
            tables={
                "link": "settle_seconds = 0.2",
                "provider.isp": f"quiet_seconds = 0.3\nfirst_connection_seconds = {SILENT_SECONDS}",
            },
        )
        self.agent.environment = self.clock.environment
        self._in_the_way = self.agent.maildir("bob")
        self._in_the_way.write_text("not a directory\n")
        self._account = Account(BOXES)
        self._number = 0
        self._first: Shape | None = None

    def begin(self) -> None:
        """Mail for both, and the same message again by another session: it is known."""
        self.agent.start()
        self.isp.line.up()
        self.agent.wait_for(self.agent.rounds, "a round")
        (self._first,) = self._bring([ALICE])
        self._bring([BOB])
        self._check_memory()

    def leap(self, years: int) -> None:
        """The clock leaps; then everything is as it was, before and after a restart in that time."""
        warned = self.agent.warnings()
        self._leap_in_a_round(years)
        expected = time.gmtime(time.time() + years * 365 * 86_400).tm_year
        seen = str(self.agent.rounds()[-1]["time"])
        self._expect(seen.startswith(str(expected)), f"the clock did not leap: {seen}")
        what = f"{years:+d} years"
        self._bring([ALICE])
        self._check_memory()
        self._check_queue(what)
        self._expect(self.agent.warnings() == warned, f"{what}: warns of {self.agent.warnings() - warned}")
        self._expect(self.agent.terminate() == 0, f"{what}: did not end with 0")
        rounds = len(self.agent.rounds())
        self.agent.start()
        self._check_memory()
        self._bring([ALICE])
        self._check_queue(f"{what}, after a restart")
        self.agent.wait_for_round("isp", beyond=rounds)

    def finish(self) -> list[str]:
        """The mailbox can be written after all; everything must be there once."""
        self._in_the_way.unlink()
        self.agent.environment = {}
        done = self.agent.command("queue", "retry")
        self._expect(done.returncode == 0, f"queue retry: {done.stderr.strip()}")
        self.agent.wait_for(lambda: self._owed() == 0, "all filed")
        files = [path.name for path in self.agent.files()]
        self._account.read(self.agent)
        self._expect(len(set(files)) == len(files), "a name was given twice")
        self._expect(self.agent.terminate() == 0, "did not end with 0")
        self._expect(
            "Traceback" not in self.agent.log(), "logged a traceback" + self.agent.log().partition("Traceback")[2]
        )
        return [*self.problems, *self._account.problems(), *map(str, self.agent.leftovers())]

    def _expect(self, claim: bool, otherwise: str) -> None:
        if not claim:
            self.problems.append(otherwise)

    def _owed(self) -> int:
        return int(self.agent.status()["queue"]["messages"])

    def _bring(self, recipients: Sequence[str]) -> list[Shape]:
        self._number += 1
        mail = simple(1, recipients=recipients, first=self._number)
        self._account.send(mail)
        self._hand_over(mail)
        return mail

    def _hand_over(self, mail: Sequence[Shape]) -> None:
        """As the provider does, byte for byte the same each time: Postfix would add another Received line."""
        top = b"Received: by mx.isp.example; Sun, 22 Nov 2026 08:00:00 +0000\r\n"
        with smtp(self.isp.namespace, self.isp.line.site_address, 25, self.isp.host) as session:
            for shape in mail:
                session.sendmail(shape.sender, shape.recipients, top + shape.on_the_wire(), ["BODY=8BITMIME"])

    def _check_memory(self) -> None:
        """The provider repeats the very first transaction: known, and not filed again."""
        assert self._first is not None
        known = len(self.agent.events("message.duplicate"))
        self._hand_over([self._first])
        found = len(self.agent.events("message.duplicate")) - known
        self._expect(found == 1, "a message was not known any more")

    def _check_queue(self, what: str) -> None:
        """What waits for its mailbox waits still; the rest is filed, at once or nearly."""
        deadline = time.monotonic() + 5
        while self._owed() != 1 and time.monotonic() < deadline:
            time.sleep(0.05)
        self._expect(self._owed() == 1, f"{what}: {self._owed()} messages wait, not 1")

    def _leap_in_a_round(self, years: int) -> None:
        """A round with nobody who comes ends when its timer says so, and after it nothing turns in circles."""
        rounds, started = len(self.agent.rounds()), len(self.agent.events("round.started"))
        downs = len(self.agent.events("link.down"))
        self.isp.line.down()
        self.agent.wait_for(lambda: len(self.agent.events("link.down")) > downs, "link.down")
        self.isp.line.up()
        self.agent.wait_for(lambda: len(self.agent.events("round.started")) > started, "a round")
        began = time.monotonic()
        time.sleep(0.5)
        self.clock.set(years)
        ended = self.agent.wait_for_round("isp", beyond=rounds)
        took, busy = time.monotonic() - began, at_work(self.agent.pid, _REST_SECONDS)
        print(
            f"{years:+d} years: the round took {took:.1f} s, {ended['outcome']}; at work {busy:.0%} of the time after"
        )
        in_time = SILENT_SECONDS - 0.5 < took < SILENT_SECONDS + 3
        self._expect(in_time, f"{years:+d} years: the round took {took:.1f} s, not {SILENT_SECONDS:.0f}")
        self._expect(ended["outcome"] == "silent", f"{years:+d} years: the round ended {ended['outcome']}")
        more = len(self.agent.rounds()) - rounds - 1
        self._expect(more == 0, f"{years:+d} years: {more} rounds more that nobody wanted")
        self._expect(busy < _BUSY, f"{years:+d} years: at work {busy:.0%} of the time with nothing to do")


def leap(leaps: Sequence[int] = LEAPS) -> list[str]:
    """What is wrong after the clock of an agent has leapt so. Empty: nothing."""
    with nothing_left(), Lab() as lab:
        site = LeapingSite(lab)
        site.begin()
        for years in leaps:
            site.leap(years)
        return site.finish()


def leap_of_the_hub(leaps: Sequence[int] = HUB_LEAPS) -> list[str]:
    """What it holds for thirty days is held, wherever the clock leaps while it runs, and home again while it is down.

    A way home from the past looks like years that it was away; of two of them the second would expire what came before
    the first.
    """
    problems: list[str] = []
    sent = simple(3)
    with nothing_left(), Lab() as lab:
        clock = Clock(lab.directory)
        hub = Hub(lab.line(), lab.directory / "hub", lab.trust, nodes={"office.example": ""})
        hub.environment = clock.environment
        with hub:
            hub.submit(sent)
            for years in leaps:
                clock.set(years)
                problems += _held_still(hub, len(sent), f"{years:+d} years")
                problems += [] if hub.terminate() == 0 else ["the hub did not end with 0"]
                clock.set(0)
                hub.start()
                problems += _held_still(hub, len(sent), f"{years:+d} years, and home while it was down")
            problems += ["the hub gave mail up"] if hub.events("message.returned") else []
    return problems


def _held_still(hub: Hub, count: int, when: str) -> list[str]:
    # It looks for what is too old 15 s after its start, then every hour.
    busy, status = at_work(hub.pid, 18), json.loads(hub.command("status", "--json").stdout)
    held, expired = status["queue"]["messages"], sum(node["expired"] for node in status["nodes"])
    print(f"{when}: {held} held, {expired} expired; at work {busy:.0%} of the time", flush=True)
    problems = [] if held == count else [f"{when}: {held} of {count} messages are held"]
    problems += [f"{when}: {expired} messages have expired"] if expired else []
    return problems + ([f"{when}: at work {busy:.0%} of the time"] if busy > _BUSY else [])


def stop(seconds: float, *, short: bool) -> list[str]:
    """SIGSTOP in mid-message for so long, then SIGCONT. `short`: all deadlines are seconds. What is wrong then."""
    sent = [marked(octets=400_000), *simple(8, recipients=(ALICE,)), *simple(8, recipients=(BOB,), first=20)]
    with nothing_left(), Lab() as lab:
        isp = lab.provider(nodes=["office.example"], timeout_seconds=2 if short else None)
        isp.queue(sent)
        tables = {"link": "settle_seconds = 0.2", "provider.isp": "quiet_seconds = 1"}
        if short:
            tables["limits"] = "silence_seconds = 3\ncommand_seconds = 3"
        with lab.agent(mailboxes=BOXES, tables=tables, measured=False) as agent:
            isp.line.rate(1_500_000)
            isp.line.up()
            agent.wait_for(
                lambda: [one for one in agent.status().get("sessions_open", []) if one["bytes"] > 50_000],
                f"the way to {CUT_HERE}",
            )
            agent.signal(signal.SIGSTOP)
            time.sleep(seconds)
            taken = len(agent.events("message.accepted"))
            agent.signal(signal.SIGCONT)
            isp.line.rate(None)
            return _after_the_stop(agent, isp, sent, taken)


def _after_the_stop(agent: Agent, isp: PostfixProvider, sent: Sequence[Shape], taken: int) -> list[str]:
    events, problems = agent.events, []
    agent.wait_for(agent.rounds, "the round ends", seconds=120)
    agent.wait_for(lambda: len(events("session.closed")) == len(events("session.opened")), "all ended", seconds=400)
    isp.wait_for_deferred(seconds=700)
    ended, waiting = agent.rounds()[0], isp.waiting()
    print(f"{taken} of {len(sent)} taken before; the round ended {ended['outcome']}; {waiting} were left", flush=True)
    half = [problem for problem in agent.wrong(sent) if not problem.endswith(" is missing")]
    if waiting and ended["outcome"] != "incomplete":
        problems.append(f"{waiting} messages were left at the provider, and the round says {ended['outcome']}")
    deadline = time.monotonic() + 120
    while isp.waiting() and time.monotonic() < deadline:
        agent.command("ask", seconds=120)
        isp.wait_for_deferred()
    problems += [*half, *agent.settle(sent), *map(str, agent.leftovers())]
    if agent.status()["queue"]["messages"]:
        problems.append("something waits to be filed")
    if agent.terminate() != 0:
        problems.append("did not end with 0")
    return problems + (["logged a traceback"] if "Traceback" in agent.log() else [])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["leap", "stop"])
    parser.add_argument("--hub", action="store_true", help="leap: the hub instead of the agent")
    parser.add_argument("--seconds", type=float, default=600, metavar="N", help="stop: for how long; default: 600")
    options = parser.parse_args(argv)
    if options.what == "leap" and library() is None:
        print("needs libfaketime: python3 tests/check.py --system-packages", file=sys.stderr)
        return 78
    if options.what == "stop":
        problems = stop(options.seconds, short=options.seconds < 60)
    else:
        problems = leap_of_the_hub() if options.hub else leap()
    for problem in problems:
        print(f"PROBLEM {problem}")
    print(f"{len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
