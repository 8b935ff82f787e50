"""The bad line: a real Postfix sends by a line that is cut at every stage of a session, loses, crawls, flaps, moves.

    python tests/faults/badline.py                     # every row
    python tests/faults/badline.py --sample 3          # three rows, chosen by the seed, which is printed
    python tests/faults/badline.py --rows dot --rows banner    # the rows with such a word in their names
    python tests/faults/badline.py --rows TLS --octets 3000 90000   # after so many octets, whatever they mean

The cuts work on packets between two network namespaces: from the packet on that holds the named octets, nothing gets
through on that connection, either way, and no end is told. The rows of a mail session are tried with a Postfix that
pipelines, as it comes, and with one that sends one command at a time, where QUIT is a packet of its own. After each cut
the line goes down, is healed and comes up again until the provider's queue is empty; then all that was sent must lie in
the Maildirs once, as it was sent, also what earlier rows sent.

One line a row: packets swallowed, how the cut round ended, files before the line was healed, rounds until all was
there, and messages sent, lost, doubled and known again (the provider sent them twice, they were filed once). Exit code
1 where anything was lost, doubled or changed, or where a cut swallowed nothing. Needs root and Debian's postfix.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.e2e.lab import Agent, Lab, LabError, Line, PostfixProvider, nothing_left
from tests.e2e.messages import ALICE, BOB, CUT_HERE, Shape, marked, simple
from tests.faults.account import Account

NODE = "office.example"
SITE = "office.dyn.example"
"""The name by which the provider finds the site: its address may change."""
BOXES = {"alice": (ALICE,), "bob": (BOB,)}
END_OF_DATA = "\r\n.\r\n"
MOST_ROUNDS = 8
PATIENCE = 120.0
"""Seconds for a round: a handshake of TLS that was cut off holds it for sixty."""


@dataclass(frozen=True, slots=True)
class Cut:
    """One point of a dialogue at which the line dies. `dialogue`: "ask" is ours to the provider, "mail" the other."""

    dialogue: str
    point: str
    put: Callable[[Line], None]

    @property
    def name(self) -> str:
        return f"{self.dialogue}: {self.point}"


def _before(marker: str, *, leaving: bool = False) -> Callable[[Line], None]:
    return lambda line: line.cut_at(marker, leaving=leaving)


def _after(octets: int) -> Callable[[Line], None]:
    return lambda line: line.cut_after(octets)


CUTS = (
    Cut("ask", "the provider's banner", _before("220 mx.isp")),
    Cut("ask", "our EHLO", _before("EHLO mail.office", leaving=True)),
    Cut("ask", "ETRN", _before(f"ETRN {NODE}", leaving=True)),
    Cut("ask", "between ETRN and its 250", _before("Queuing started")),
    Cut("mail", "our banner", _before("220 mail.office", leaving=True)),
    Cut("mail", "EHLO", _before("EHLO mx.isp")),
    Cut("mail", "our answer to EHLO", _before("250-mail.office", leaving=True)),
    Cut("mail", "MAIL", _before("MAIL FROM:<")),
    Cut("mail", "between DATA and 354", _before("354 ", leaving=True)),
    Cut("mail", "mid-DATA", _before(CUT_HERE)),
    Cut("mail", "the final dot", _before(END_OF_DATA)),
    Cut("mail", "between the dot and its 250", lambda line: line.deafen_at(END_OF_DATA)),
    Cut("mail", "the 250 itself", _before("250 2.0.0 ok, kept", leaving=True)),
    Cut("mail", "QUIT", _before("QUIT\r\n")),
    Cut("mail", "our answer to QUIT", _before("221 2.0.0 bye", leaving=True)),
)
RANDOM_CUTS = 5


@dataclass(slots=True)
class Row:
    """What one row saw."""

    name: str
    swallowed: int = 0
    outcome: str = ""
    before: int = 0
    rounds: int = 0
    sent: int = 0
    lost: int = 0
    doubled: int = 0
    known: int = 0
    problems: tuple[str, ...] = ()


class Bench:
    """One provider, one agent, one line, gone through row after row."""

    def __init__(self, lab: Lab, *, pipelining: bool = True, tls: bool = False, timeout_seconds: int = 2) -> None:
        settings = {"transport_maps": f"inline:{{{{{NODE}=relay:[{SITE}]}}}}"}
        if not pipelining:
            settings["smtp_discard_ehlo_keywords"] = "pipelining"
        self.isp: PostfixProvider = lab.provider(
            nodes=[NODE], timeout_seconds=timeout_seconds, tls=tls, settings=settings
        )
        self.line = self.isp.line
        self.line.provider.knows(SITE, self.line.site_address)
        seconds = timeout_seconds + 1
        self.agent: Agent = lab.agent(
            mailboxes=BOXES,
            measured=False,
            tables={
                "link": "settle_seconds = 0.2",
                "provider.isp": "quiet_seconds = 1\nfirst_connection_seconds = 3",
                "limits": f"silence_seconds = {seconds}\ncommand_seconds = {seconds}\nconnect_seconds = 3\n"
                f"etrn_reply_seconds = {seconds}",
            },
        )
        self.account = Account(BOXES)
        self._number = 0

    def row(self, name: str, during: Callable[[Row], None], mail: Sequence[Shape] | None = None) -> Row:
        """Mail waits, `during` happens on the line (and is healed), and all must come."""
        row = Row(name)
        sent = self._mail() if mail is None else mail
        lost, doubled = set(self.account.lost), set(self.account.doubled)
        changed = len(self.account.changed)
        self.account.send(sent)
        row.sent = len(sent)
        rounds, known = len(self.agent.rounds()), len(self.agent.events("message.duplicate"))
        try:
            self.isp.queue(sent)
            during(row)
            row.before = self.account.read(self.agent)
            self.line.heal()
            self._fetch_the_rest()
        except LabError as problem:
            row.problems = (str(problem),)
            self.line.heal()
            self.line.rate(None)
            self.line.down()
        self.account.read(self.agent)
        row.rounds = len(self.agent.rounds()) - rounds
        row.known = len(self.agent.events("message.duplicate")) - known
        row.lost = len(set(self.account.lost) - lost)
        row.doubled = len(set(self.account.doubled) - doubled)
        row.problems += (*self.account.changed[changed:], *map(str, self.agent.leftovers()))
        if "Traceback" in self.agent.log():
            row.problems += ("the agent logged a traceback",)
        return row

    def cut(self, cut: Cut, *, name: str = "") -> Row:
        def during(row: Row) -> None:
            rounds = len(self.agent.rounds())
            cut.put(self.line)
            self.line.up()
            row.outcome = str(self.agent.wait_for_round("isp", beyond=rounds, seconds=PATIENCE)["outcome"])
            self._quiet()
            row.swallowed = self.line.dropped()
            self.down()

        row = self.row(name or cut.name, during)
        if not row.swallowed:
            row.problems += ("the cut swallowed nothing: this row proves nothing",)
        return row

    def down(self) -> None:
        self.line.down()
        self.agent.wait_for(lambda: not self.agent.status().get("link", {}).get("up"), "link.down")

    def _mail(self) -> list[Shape]:
        """A message that the middle of is marked, and three small ones, one of them for both mailboxes."""
        self._number += 10
        return [
            marked(1000 + self._number, octets=150_000),
            *simple(1, recipients=(ALICE,), first=self._number),
            *simple(1, recipients=(BOB,), first=self._number + 1),
            *simple(1, recipients=(ALICE, BOB), first=self._number + 2),
        ]

    def _quiet(self) -> None:
        """Until Postfix has given up and the agent has no session any more."""
        self.isp.wait_for_deferred()
        events = self.agent.events
        self.agent.wait_for(lambda: len(events("session.closed")) == len(events("session.opened")), "all ended")

    def _fetch_the_rest(self) -> None:
        for _ in range(MOST_ROUNDS):
            rounds = len(self.agent.rounds())
            self.line.up()
            self.agent.wait_for_round("isp", beyond=rounds, seconds=PATIENCE)
            self._quiet()
            self.down()
            if not self.isp.waiting():
                return
        raise LabError(f"after {MOST_ROUNDS} rounds {self.isp.waiting()} messages are still at the provider")


# --- weather: what is not one cut -------------------------------------------------------------------------------------


def loss(bench: Bench, row: Row) -> None:
    """30 % of the packets, either way, until the queue is empty."""
    bench.line.lose(0.3)
    for _ in range(MOST_ROUNDS):
        rounds = len(bench.agent.rounds())
        bench.line.up()
        row.outcome = str(bench.agent.wait_for_round("isp", beyond=rounds, seconds=240)["outcome"])
        bench.isp.wait_for_deferred(seconds=120)
        row.swallowed = bench.line.dropped()
        bench.down()
        if not bench.isp.waiting():
            return


def slow(bench: Bench, row: Row) -> None:
    """33,600 bit/s, as a modem."""
    rounds = len(bench.agent.rounds())
    bench.line.rate(33_600)
    bench.line.up()
    row.outcome = str(bench.agent.wait_for_round("isp", beyond=rounds, seconds=240)["outcome"])
    bench.down()
    bench.line.rate(None)


def flaps(bench: Bench, row: Row) -> None:
    """Ten times up for a moment, on a line so slow that a message is always under way."""
    chance = random.Random(row.sent)
    bench.line.rate(800_000)
    for _ in range(10):
        bench.line.up()
        time.sleep(chance.uniform(0.3, 1.5))
        bench.line.down()
        time.sleep(chance.uniform(0.1, 0.6))
    bench.line.rate(None)
    row.outcome = ", ".join(sorted({str(ended["outcome"]) for ended in bench.agent.rounds()[-10:]}))


def move(bench: Bench, row: Row) -> None:
    """In the middle of a message the site has another address, which its name soon leads to."""
    bench.line.rate(800_000)
    rounds = len(bench.agent.rounds())
    bench.line.up()
    bench.agent.wait_for(lambda: bench.agent.status().get("sessions_open"), "a session")
    middle = bench.agent.wait_for(
        lambda: [one for one in bench.agent.status()["sessions_open"] if one["bytes"] > 20_000], "part of a message"
    )
    network = bench.line.site_address.rpartition(".")[0]
    bench.line.up(f"{network}.{int(bench.line.site_address.rpartition('.')[2]) + 1}")
    bench.line.provider.forgets(SITE)
    bench.line.provider.knows(SITE, bench.line.site_address)
    bench.line.rate(None)
    ended = bench.agent.wait_for_round("isp", beyond=rounds + 1, seconds=120)
    row.outcome = f"{bench.agent.rounds()[rounds]['outcome']}, then {ended['outcome']}"
    if not middle or not bench.agent.events("link.changed"):
        row.problems += ("the address did not change in the middle of a session",)
    bench.isp.wait_for_deferred(seconds=120)
    bench.down()


WEATHER: dict[str, tuple[Callable[[Bench, Row], None], int]] = {
    "30 % of all packets lost": (loss, 10_000),
    "33,600 bit/s": (slow, 20_000),
    "ten flaps": (flaps, 100_000),
    "another address in mid-session": (move, 300_000),
}
"""What happens, and how large each of three messages is."""


# --- all of it --------------------------------------------------------------------------------------------------------


def rows(seed: int, *, octets: Sequence[int] = ()) -> dict[str, tuple[str, Callable[[Bench], Row]]]:
    """Every row there is: its name, the kind of bench that it needs, and what to do there.

    `octets`: after how many of them, in IP packets to the site, lines with TLS are cut; by default chosen by the seed.
    """
    chance = random.Random(seed)
    made: dict[str, tuple[str, Callable[[Bench], Row]]] = {}

    def add(kind: str, name: str, cut: Cut) -> None:
        made[name] = (kind, lambda bench: bench.cut(cut, name=name))

    for cut in CUTS:
        add("pipelining", cut.name, cut)
    for cut in CUTS:
        if cut.dialogue == "mail":
            add("one by one", f"{cut.name}, one by one", cut)
    for count in octets or [chance.randint(300, 160_000) for _ in range(RANDOM_CUTS)]:
        add("tls", f"after {count} octets, with TLS", Cut("mail", "", _after(count)))
    for number, (name, (during, size)) in enumerate(WEATHER.items()):
        mail = simple(3, octets=size, recipients=(ALICE, BOB), first=50_000 + 10 * number)
        made[name] = (
            "weather",
            lambda bench, name=name, during=during, mail=mail: bench.row(name, lambda row: during(bench, row), mail),
        )
    return made


def _bench(lab: Lab, kind: str) -> Bench:
    match kind:
        case "tls":
            return Bench(lab, tls=True)
        case "weather":
            return Bench(lab, timeout_seconds=20)
        case _:
            return Bench(lab, pipelining=kind == "pipelining")


def run(chosen: dict[str, tuple[str, Callable[[Bench], Row]]]) -> list[Row]:
    """The chosen rows, told as they end."""
    print(f"{'the line is cut at':44}{'swallowed':>10} {'outcome':24}{'before':>7}{'rounds':>7}", end="")
    print(f"{'sent':>6}{'lost':>6}{'doubled':>8}{'known':>7}")
    seen: list[Row] = []
    for kind in dict.fromkeys(kind for kind, _ in chosen.values()):
        with nothing_left(), Lab() as lab:
            bench = _bench(lab, kind)
            with bench.agent:
                for of, act in chosen.values():
                    if of == kind:
                        row = act(bench)
                        _tell(row)
                        seen.append(row)
                        if row.problems:
                            print(lab.tails(), file=sys.stderr)
    return seen


def _tell(row: Row) -> None:
    print(f"{row.name:44}{row.swallowed:10} {row.outcome:24}{row.before:7}{row.rounds:7}", end="")
    print(f"{row.sent:6}{row.lost:6}{row.doubled:8}{row.known:7}", flush=True)
    for problem in row.problems:
        print(f"    PROBLEM {problem}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", action="append", metavar="WORDS", help="only rows whose name has these words in it")
    parser.add_argument("--sample", type=int, metavar="N", help="only so many rows, chosen by the seed")
    parser.add_argument("--seed", type=int, metavar="N")
    parser.add_argument(
        "--octets", type=int, nargs="+", default=[], metavar="N", help="cut lines with TLS after so many"
    )
    options = parser.parse_args(argv)
    seed = random.SystemRandom().randrange(1_000_000) if options.seed is None else options.seed
    print(f"seed {seed}")
    chosen = rows(seed, octets=options.octets)
    if options.rows:
        chosen = {name: row for name, row in chosen.items() if any(words in name for words in options.rows)}
    if options.sample:
        names = set(random.Random(seed).sample(list(chosen), min(options.sample, len(chosen))))
        chosen = {name: row for name, row in chosen.items() if name in names}
    seen = run(chosen)
    lost, doubled = sum(row.lost for row in seen), sum(row.doubled for row in seen)
    print(f"{len(seen)} rows, {sum(row.sent for row in seen)} messages: {lost} lost, {doubled} doubled,", end="")
    print(f" {sum(len(row.problems) for row in seen)} other problems")
    return 1 if lost or doubled or not seen or any(row.problems for row in seen) else 0


if __name__ == "__main__":
    sys.exit(main())
