"""Whole rounds of an agent in this process, against providers that play a script and then connect in."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path
from typing import Any

import pytest
from tests import scripted
from tests.asking import trust
from tests.reference.provider_dialogues import DIALOGUES, NODES
from tests.site import ALICE, conversation, free_port, provider, site, write

STARTED = conversation(("ETRN *", "250 Queuing started"))


def scene(function: Any) -> Any:
    """An async test as a plain function."""
    from functools import wraps

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(function(*args, **kwargs))

    return run


def deliver(port: int, messages: int = 1, connections: int | str = 1) -> str:
    return f"\n! deliver 127.0.0.1:{port} {ALICE} {messages} {connections}"


@scene
async def test_a_provider_that_connects_in_with_several_sessions_at_once_is_drained(tmp_path: Path) -> None:
    port = free_port()
    async with scripted.Provider(STARTED + deliver(port, 7, 3)) as isp:
        path = write(tmp_path, provider(port=isp.port), listen=[f"127.0.0.1:{port}"])
        async with site(path) as made:
            ended = await made.ended()
            assert (ended.outcome.value, ended.sessions, ended.messages) == ("drained", 3, 7)
            assert len(made.filed()) == 7 and {answer[:3] for answer in isp.delivered} == {"250"}
            assert ended.wire_bytes > ended.ask_bytes > 100


@pytest.mark.parametrize(
    "name", [name for name, entry in DIALOGUES.items() if entry.nodes == NODES and not entry.impatient]
)
def test_each_server_is_met_by_a_whole_round(tmp_path: Path, name: str) -> None:
    """The agent asks each of them; where it agreed, its mail is taken, and the round says what came of it."""
    entry = DIALOGUES[name]

    async def run() -> None:
        port = free_port()
        dialogues = [entry.text, *entry.connections]
        waiting = sum(count or 0 for count in entry.promised) or 6
        if entry.agrees:
            dialogues[-1] += deliver(port, waiting, entry.calls)
        async with scripted.Provider(*dialogues) as isp:
            path = write(tmp_path, provider(port=isp.port, nodes=list(NODES)), listen=[f"127.0.0.1:{port}"])
            async with site(path) as made:
                ended = await made.ended()
                owed = any(outcome in ("retry", "unknown") for outcome, _ in entry.answers)
                if entry.agrees:
                    assert ended.outcome.value == ("incomplete" if owed else "drained")
                    assert ended.messages == len(made.filed()) == waiting
                    assert len(isp.heard) == len(dialogues), "asked once"
                else:
                    assert ended.outcome.value in ("refused", "failed", "nothing")

    asyncio.run(run())


@scene
async def test_the_hang_up_waits_for_the_other_provider_on_the_line(tmp_path: Path) -> None:
    told, hook, port = tmp_path / "told", tmp_path / "hook", free_port()
    hook.write_text(f'#!/bin/sh\necho "$SITEAGENT_PROVIDER $SITEAGENT_LINK_INTERFACE $SITEAGENT_OUTCOME" >> {told}\n')
    hook.chmod(0o755 | stat.S_IXUSR)
    slow = conversation(("ETRN *", "250 Queuing started")).replace("S: 220", "! wait 0.6\nS: 220")
    nothing = conversation(("ETRN *", "251 no messages"))
    async with scripted.Provider(nothing) as quick, scripted.Provider(slow) as late:
        path = write(
            tmp_path,
            provider("quick", port=quick.port),
            provider("late", port=late.port),
            listen=[f"127.0.0.1:{port}"],
            more=f'[hooks]\nround_ended = ["{hook}"]',
        )
        async with site(path) as made:
            await made.ended(1)
            await asyncio.sleep(0.2)
            assert not told.exists(), "the other one is not done"
            await made.ended(2)
            await made.until(lambda: told.exists() and len(told.read_text().splitlines()) == 2)
    assert told.read_text().splitlines() == ["quick demo0 nothing", "late demo0 silent"]


@scene
async def test_the_form_of_a_name_that_worked_is_sent_at_once_after_a_restart(tmp_path: Path) -> None:
    first = conversation(
        ("ETRN office.example", "501 argument must begin with #"), ("ETRN #office.example", "251 none")
    )
    then = conversation(("ETRN #office.example", "251 none"))
    async with scripted.Provider(first, then) as isp:
        path = write(tmp_path, provider(port=isp.port, learn_name_form=True))
        for _ in range(2):
            async with site(path) as made:
                assert (await made.ended()).outcome.value == "nothing"
        assert isp.problems == []


@scene
async def test_outside_the_hours_nobody_is_asked_until_somebody_wants_it(tmp_path: Path) -> None:
    from datetime import datetime, timedelta

    later = datetime.now().astimezone() + timedelta(hours=3)
    hours = f'[windows]\nask = ["{later:%H:%M}-{later + timedelta(minutes=30):%H:%M}"]'
    async with scripted.Provider(conversation(("ETRN *", "251 none"))) as isp:
        path = write(tmp_path, provider(port=isp.port), more=hours)
        async with site(path) as made:
            await made.until(lambda: made.agent.desk.runners["isp"].next_ask is not None)
            await asyncio.sleep(0.1)
            assert isp.heard == []
            assert made.agent.desk.runners["isp"].next_ask > datetime.now().astimezone() + timedelta(hours=2)
            from siteagent.store import requests

            requests.leave(made.agent.state_directory, requests.Request(id=requests.new_id(), kind=requests.ASK))
            assert (await made.ended()).outcome.value == "nothing"


@scene
async def test_auto_says_which_way_it_asks_and_why(tmp_path: Path) -> None:
    async with scripted.Provider(STARTED) as isp:
        path = write(tmp_path, provider(port=isp.port, method="auto"))
        async with site(path) as made:
            await made.ended()
            (chosen,) = made.of("method.chosen")
            assert (chosen.method, chosen.port) == ("etrn", isp.port) and chosen.reason


@scene
async def test_auto_fetches_at_once_by_atrn_where_etrn_is_refused_and_again_after_a_restart(tmp_path: Path) -> None:
    hello = "S: 220 mx\nC: EHLO *\nS: 250-mx\nS: 250-ETRN\nS: 250-ATRN\nS: 250 AUTH PLAIN\n"
    login = "C: AUTH PLAIN *\nS: 235 ok\n"
    by_etrn = f"{hello}{login}C: ETRN office.example\nS: 502 not here\nC: QUIT\nS: 221 bye\n! close"
    by_atrn = f"{hello}{login}C: ATRN office.example\nS: 250 turning\nC: 220 *\nS: QUIT\nC: 221 *\n! close"
    (tmp_path / "password").write_text("sesame\n")
    (tmp_path / "password").chmod(0o600)
    trusted = trust(tmp_path)
    account = {"method": "auto", "username": "office", "password_file": "password"}
    account |= {"tls": "implicit", "tls_ca_file": str(trusted.authority)}
    async with scripted.Provider(by_etrn, by_atrn, by_atrn, tls=trusted.server, implicit=True) as isp:
        path = write(tmp_path, provider(port=isp.port, **account))
        async with site(path) as made:
            assert [(await made.ended(number)).outcome.value for number in (1, 2)] == ["refused", "drained"]
            assert [event.method for event in made.of("method.chosen")] == ["etrn", "atrn"]
        async with site(path) as made:
            assert (await made.ended()).outcome.value == "drained"
            assert [event.method for event in made.of("method.chosen")] == ["atrn"]
        assert isp.problems == []


def before(tmp_path: Path, body: str) -> str:
    script = tmp_path / "before"
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(0o755)
    return f'[hooks]\nbefore_ask = ["{script}"]'


@scene
async def test_the_operators_command_runs_before_anybody_is_asked(tmp_path: Path) -> None:
    told = '"$SITEAGENT_PROVIDER $SITEAGENT_SOURCE $SITEAGENT_ATTEMPT"'
    more = before(tmp_path, f"sleep 0.2; echo {told} > {tmp_path}/ran")
    async with scripted.Provider(conversation(("ETRN *", "251 none"))) as isp:
        path = write(tmp_path, provider(port=isp.port), more=more)
        async with site(path) as made:
            await made.until(lambda: made.of("round.started"))
            assert isp.heard == []
            assert (await made.ended()).outcome.value == "nothing"
            assert (tmp_path / "ran").read_text() == "isp 127.0.0.1 1\n"


@scene
async def test_exit_code_75_of_it_delays_the_ask_and_is_no_failure(tmp_path: Path) -> None:
    more = before(tmp_path, "[ $SITEAGENT_ATTEMPT = 3 ] || exit 75")
    async with scripted.Provider(conversation(("ETRN *", "251 none"))) as isp:
        path = write(tmp_path, provider(port=isp.port), more=more)
        async with site(path, up=False) as made:
            made.agent.desk._askers["isp"].delay_seconds = 0.05
            made.switch.up = True
            made.agent.watch.poke("test")
            assert (await made.ended()).outcome.value == "nothing"
            assert made.of("hook.failed") == []


@scene
async def test_any_other_failure_of_it_is_told_and_the_provider_is_asked(tmp_path: Path) -> None:
    async with scripted.Provider(conversation(("ETRN *", "251 none"))) as isp:
        path = write(tmp_path, provider(port=isp.port), more=before(tmp_path, "exit 3"))
        async with site(path) as made:
            assert (await made.ended()).outcome.value == "nothing"
            assert "status 3" in made.of("hook.failed")[0].reason
