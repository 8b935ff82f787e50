"""kill -9 at random moments of a flush: what was answered 250 is there, the rest comes again, and nothing twice.

The page cache survives a kill: what a power cut would take is not shown here.
"""

from __future__ import annotations

import os
import random
import time

import pytest
from tests.e2e.agent import Agent
from tests.e2e.lab import Lab, PostfixProvider, wait_for
from tests.e2e.messages import ALICE, BOB, CAROL, DAVE, Shape, simple

pytestmark = [pytest.mark.netns, pytest.mark.postfix]

SIZES = (1_000, 20_000, 100_000, 300_000, 600_000)  # below and above what the spool keeps in its database
RECIPIENTS = ((ALICE,), (BOB,), (ALICE, BOB, CAROL), (DAVE,))
MESSAGES_A_ROUND = 10
TABLES = {"link": "settle_seconds = 0.1", "provider.isp": "quiet_seconds = 1"}


def letters(number: int, chance: random.Random) -> list[Shape]:
    """What comes in before kill `number`."""
    first = 1000 + number * MESSAGES_A_ROUND
    return [
        simple(1, octets=chance.choice(SIZES), recipients=chance.choice(RECIPIENTS), first=first + n)[0]
        for n in range(MESSAGES_A_ROUND)
    ]


def killed_in_a_flush(agent: Agent, isp: PostfixProvider, moment: float) -> tuple[int, int]:
    """One life of the agent, ended `moment` seconds after its first session opened.

    How many files it brought, and how many messages the provider holds still.
    """
    sessions, files = len(agent.events("session.opened")), len(agent.files())
    agent.start(ready=False)
    wait_for(lambda: len(agent.events("session.opened")) > sessions, "a session", seconds=20, every=0.005)
    time.sleep(moment)
    agent.kill()
    return len(agent.files()) - files, isp.wait_for_deferred()


def run(lab: Lab, *, kills: int) -> None:
    seed = int(os.environ.get("SITEAGENT_SEED", random.SystemRandom().randrange(1_000_000)))
    print(f"SITEAGENT_SEED={seed}")
    chance = random.Random(seed)
    isp = lab.provider()
    isp.line.up()
    isp.line.rate(40_000_000)
    agent = lab.agent(tables=TABLES, measured=False)
    sent: list[Shape] = []
    in_the_middle = 0
    for number in range(kills):
        fresh = letters(number, chance)
        isp.queue(fresh)
        sent += fresh
        moment = chance.uniform(0, 0.8)
        files, waiting = killed_in_a_flush(agent, isp, moment)
        in_the_middle += files > 0 and waiting > 0
        print(f"kill {number + 1} after {moment:.3f} s: {files} files came, {waiting} messages wait")
        assert not [w for w in agent.wrong(sent) if not w.endswith(" is missing")], "never half, never twice"
    assert in_the_middle, "no kill fell into the middle of a flush: this proves nothing"
    rounds = len(agent.rounds())
    with agent:
        agent.wait_for(lambda: isp.waiting() == 0, "nothing left at the provider", seconds=60)
        assert agent.wait_for_round("isp", beyond=rounds)["outcome"] == "drained"
        assert agent.settle(sent) == []
        assert agent.leftovers() == []
        assert agent.status()["queue"]["messages"] == 0
        assert agent.terminate() == 0
    print(f"{len(agent.events('message.duplicate'))} came again because their 250 was not heard")
    assert "Traceback" not in agent.log()


def test_s27_killed_six_times_in_a_row_everything_is_there_once(lab: Lab) -> None:
    run(lab, kills=6)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_s27_killed_twenty_times_in_a_row_everything_is_there_once(lab: Lab) -> None:
    run(lab, kills=20)
