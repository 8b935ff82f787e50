"""A site that needs half a second for each message, and a Postfix that opens as many sessions as it likes.

What is refused stays at the provider until the next ETRN. So nobody is refused, and one ETRN empties the queue.

The site is slow where slow sites are: in the sync behind each 250. strace holds back that one system call on that one
file; who comes while one is at work waits for its end and then for the next, which all who wait share.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

import pytest
from tests.e2e.agent import Agent
from tests.e2e.lab import Lab, Tap, wait_for
from tests.e2e.messages import ALICE, BOB, simple

pytestmark = [pytest.mark.netns, pytest.mark.postfix, pytest.mark.tools("strace")]

SECONDS_A_SYNC = 0.3
TABLES = {"link": "settle_seconds = 0.2", "provider.isp": "quiet_seconds = 1"}


@contextmanager
def slow_disk(agent: Agent, seconds: float) -> Iterator[None]:
    """Every sync of the spool's log takes so much longer."""
    (log,) = agent.state.glob("*spool*-wal")
    words = agent.directory / "strace.out"
    with words.open("wb") as output:
        tracer = subprocess.Popen(
            [
                *(
                    "strace",
                    "-f",
                    "-p",
                    str(agent.pid),
                    "-P",
                    str(log),
                    "-o",
                    "/dev/null",
                    "-e",
                    "trace=fsync,fdatasync",
                ),
                *("-e", f"inject=fsync,fdatasync:delay_enter={round(seconds * 1_000_000)}"),
            ],
            stdin=subprocess.DEVNULL,
            stderr=output,
        )
    try:
        wait_for(lambda: b"attached" in words.read_bytes(), "strace is there")
        yield
    finally:
        tracer.terminate()
        tracer.wait(timeout=20)


def test_two_hundred_messages_at_half_a_second_each_need_one_etrn_and_no_421(lab: Lab) -> None:
    sent = [*simple(100, recipients=(ALICE,)), *simple(100, recipients=(BOB,), first=100)]
    isp = lab.provider(nodes=["office.example"])
    isp.queue(sent)
    with lab.agent(tables=TABLES, measured=False) as agent, slow_disk(agent, SECONDS_A_SYNC):
        with Tap(lab.site, isp.line.device) as tap:
            began = time.monotonic()
            isp.line.up()
            ended = agent.wait_for_round("isp", seconds=90)
            took = time.monotonic() - began
        assert (ended["outcome"], ended["messages"], isp.waiting()) == ("drained", 200, 0)
        assert len(tap.said(b"ETRN ")) == 1
        assert not tap.said(b"421") and not agent.events("session.refused") and " 421 " not in isp.maillog()
        seconds = median(event["seconds"] for event in agent.events("message.accepted"))
        print(f"{took:.1f} s, {ended['sessions']} sessions, median to a 250: {seconds:.2f} s")
        assert seconds >= 0.5, "the site was not slow: this proves nothing"
        assert agent.wrong(sent) == []


def test_s4_connections_above_the_places_wait_for_their_greeting_and_none_is_refused(lab: Lab) -> None:
    sent = simple(9, recipients=(ALICE,))
    isp = lab.provider(nodes=["office.example"])
    isp.queue(sent)
    tables = {**TABLES, "listener": "max_connections_per_peer = 4"}
    with lab.agent(tables=tables, measured=False) as agent, slow_disk(agent, 0.1):
        isp.line.up()
        most = 0
        while not agent.rounds():
            most = max(most, len(agent.status().get("sessions_open", [])))
            time.sleep(0.05)
        (ended,) = agent.rounds()
        assert most == 4, "never more than there are places"
        assert (ended["outcome"], ended["messages"], isp.waiting()) == ("drained", 9, 0)
        assert not agent.events("session.refused") and " 421 " not in isp.maillog()
        assert agent.wrong(sent) == []
