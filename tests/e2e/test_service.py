"""The agent as a service: reloaded, stopped under load, started twice, hinted at, without netlink, as asker only."""

from __future__ import annotations

import signal
import time

import pytest
from tests.e2e.agent import Agent
from tests.e2e.lab import Lab, PostfixProvider, Sink, smtp, wait_for
from tests.e2e.messages import ALICE, simple

pytestmark = [pytest.mark.netns, pytest.mark.postfix]

TABLES = {"link": "settle_seconds = 0.1", "provider.isp": "quiet_seconds = 1\nfirst_connection_seconds = 1"}
ERIN = "erin@office.example"


def answer_to(isp: PostfixProvider, recipient: str) -> int:
    """What the site answers the provider to mail for `recipient`."""
    with smtp(isp.namespace, isp.line.site_address, 25, isp.host) as client:
        client.mail("a@world.example")
        return client.rcpt(recipient)[0]


# --- reload -----------------------------------------------------------------------------------------------------------


def with_erin(agent: Agent) -> str:
    """A configuration that has one mailbox more."""
    return agent.configuration.read_text() + (
        f'\n[[mailbox]]\nname = "erin"\naddresses = ["{ERIN}"]\nmaildir = "{agent.mail / "erin"}"\n'
    )


def test_a_changed_file_counts_from_the_next_session_on(lab: Lab) -> None:
    isp = lab.provider()
    isp.line.up()
    with lab.agent(tables=TABLES) as agent:
        agent.wait_for_round("isp")
        assert answer_to(isp, ERIN) == 550
        agent.configuration.write_text(with_erin(agent))
        agent.wait_for(lambda: agent.events("config.reloaded"), "config.reloaded", seconds=10)
        assert answer_to(isp, ERIN) == 250
        assert answer_to(isp, ALICE) == 250
        assert not agent.events("link.down") and len(agent.rounds()) == 1, "a reload is no line coming up"


def test_sighup_reloads_though_the_file_is_the_same(lab: Lab) -> None:
    with lab.agent(providers=[lab.provider()], tables=TABLES) as agent:
        agent.signal(signal.SIGHUP)
        agent.wait_for(lambda: agent.events("config.reloaded"), "config.reloaded", seconds=10)


def test_s55_a_bad_reload_keeps_the_old_one_and_tells_all_that_is_wrong(lab: Lab) -> None:
    isp = lab.provider()
    isp.line.up()
    with lab.agent(tables=TABLES) as agent:
        agent.wait_for_round("isp")
        good = agent.configuration.read_text()
        agent.configuration.write_text(with_erin(agent).replace("quiet_seconds", "quite_seconds") + "[hooks]\nx = 1\n")
        agent.wait_for(lambda: agent.events("config.rejected"), "config.rejected", seconds=10)
        problems = agent.events("config.rejected")[-1]["problems"]
        assert any("quite_seconds" in problem and "quiet_seconds" in problem for problem in problems), problems
        assert any("x" in problem and "hooks" in problem for problem in problems), problems
        assert answer_to(isp, ERIN) == 550 and answer_to(isp, ALICE) == 250
        agent.configuration.write_text(good)
        agent.wait_for(lambda: agent.events("config.reloaded"), "the good one again", seconds=10)


def test_a_reload_that_changes_where_we_listen_is_rejected_as_a_whole(lab: Lab) -> None:
    isp = lab.provider()
    isp.line.up()
    with lab.agent(tables=TABLES) as agent:
        agent.wait_for_round("isp")
        agent.configuration.write_text(with_erin(agent).replace("0.0.0.0:25", "0.0.0.0:26"))
        agent.wait_for(lambda: agent.events("config.rejected"), "config.rejected", seconds=10)
        (problem,) = agent.events("config.rejected")[-1]["problems"]
        assert "[listener] listen" in problem and "restart" in problem
        assert answer_to(isp, ERIN) == 550, "nothing of it counts"
        assert agent.namespace.listens(25) and not agent.namespace.listens(26)


# --- start and stop ---------------------------------------------------------------------------------------------------


def test_s64_sigterm_under_load_finishes_what_arrives_and_ends_with_0(lab: Lab) -> None:
    isp = lab.provider()
    sent = simple(40, octets=200_000)
    isp.queue(sent)
    with lab.agent(tables=TABLES, measured=False) as agent:
        isp.line.rate(12_000_000)
        isp.line.up()
        agent.wait_for(lambda: len(agent.events("message.accepted")) >= 3, "part of the mail")
        before = len(agent.events("message.accepted"))
        began = time.monotonic()
        assert agent.terminate(seconds=30) == 0
        took = time.monotonic() - began
        after = len(agent.events("message.accepted")) - before
        print(f"ended {took:.1f} s after SIGTERM; of {len(sent)} messages {before} taken before it, {after} after it")
        assert 0 < after < len(sent) - before, "nothing was arriving, or nothing was left: this proves nothing"
        cut_short = [event for event in agent.events("session.closed") if "in a message" in event["reason"]]
        assert not cut_short, "what was arriving was finished"
        assert agent.rounds()[-1]["outcome"] == "incomplete" and agent.events("agent.stopping")
        assert agent.status()["state"] == "stopped"
        assert not [problem for problem in agent.wrong(sent) if not problem.endswith(" is missing")]
        isp.line.rate(None)
        isp.wait_for_deferred()
        agent.start()
        agent.wait_for(lambda: isp.waiting() == 0, "nothing left at the provider")
        assert agent.settle(sent) == [] and agent.leftovers() == []


def test_s37_a_second_agent_on_the_same_state_ends_at_once_and_names_the_first(lab: Lab) -> None:
    with lab.agent(providers=[lab.provider()], tables=TABLES) as agent:
        began = time.monotonic()
        second = agent.command("run")
        assert time.monotonic() - began < 10, "two seconds, on a machine with nothing else to do"
        assert second.returncode == 73
        assert f"process {agent.pid} already works with {agent.state}" in second.stderr
        assert agent.running() and agent.status()["pid"] == agent.pid


def test_a_configuration_that_is_wrong_ends_the_start_with_78_and_all_problems(lab: Lab) -> None:
    agent = lab.agent(providers=[lab.provider()], tables={"limits": "comand_seconds = 3\nsilence_seconds = -1"})
    done = agent.command("run")
    assert done.returncode == 78
    assert "comand_seconds" in done.stderr and "silence_seconds" in done.stderr
    assert str(agent.configuration) in done.stderr


# --- what tells it that the line is there -----------------------------------------------------------------------------


def test_without_netlink_polling_finds_the_line(lab: Lab) -> None:
    isp = lab.provider()
    isp.queue(simple(2))
    tables = {**TABLES, "link": 'settle_seconds = 0.1\nbackend = "poll"\npoll_seconds = 1'}
    with lab.agent(tables=tables) as agent:
        agent.wait_for_first_look()
        isp.line.up()
        assert agent.wait_for_round("isp", seconds=15)["outcome"] == "drained"
        assert agent.events("link.up")[0]["cause"] == "poll"


def test_a_hint_by_link_up_makes_it_look_at_once(lab: Lab) -> None:
    isp = lab.provider()
    isp.queue(simple(2))
    hints = lab.directory / "hints"
    hints.mkdir(mode=0o755)
    link = f'settle_seconds = 0.1\nbackend = "poll"\npoll_seconds = 600\nhook_directory = "{hints}"'
    with lab.agent(tables={**TABLES, "link": link}) as agent:
        agent.wait_for_first_look()
        isp.line.up()
        time.sleep(1)
        assert not agent.events("link.up"), "nobody has told it"
        assert agent.command("link-up", isp.line.device).returncode == 0
        assert agent.wait_for_round("isp", seconds=15)["outcome"] == "drained"
        assert agent.events("link.up")[0]["cause"].startswith("hook")


# --- ask-only ---------------------------------------------------------------------------------------------------------


def test_with_nothing_to_listen_on_it_asks_and_another_server_receives(lab: Lab) -> None:
    isp = lab.provider()
    sent = simple(3)
    isp.queue(sent)
    with Sink(lab.site) as server, lab.agent(tables={**TABLES, "listener": "listen = []"}, mailboxes={}) as agent:
        isp.line.up()
        ended = agent.wait_for_round("isp")
        assert (ended["outcome"], ended["messages"], ended["sessions"]) == ("asked", 0, 0)
        wait_for(lambda: isp.waiting() == 0, "the other server has it all")
        assert len(server.taken) == len(sent)
        assert agent.status()["listener"] == {"addresses": [], "open": False}
        done = agent.command("ask")
        assert done.returncode == 0 and done.stdout.startswith("isp: asked")
