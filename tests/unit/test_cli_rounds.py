"""`ask` as a command: exit codes, words, JSON; alone, and with an agent that runs."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from siteagent.cli import rounds
from siteagent.cli.context import Context
from siteagent.cli.main import INTERRUPTED, main
from siteagent.config import files
from siteagent.rounds import policy
from siteagent.store import lock, requests
from tests import site
from tests.site import (
    ALICE,
    FAILED,
    NODE,
    NOTHING,
    REFUSED,
    STARTED,
    bring,
    free_port,
    played,
    provider,
    running,
    write,
)


@pytest.fixture(autouse=True)
def own_umask() -> Iterator[None]:
    """Commands set it for the whole process."""
    before = os.umask(0o022)
    yield
    os.umask(before)


class Said:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def rounds(self) -> dict[str, Any]:
        return {each["provider"]: each for each in json.loads(self.out)["rounds"]}


@pytest.fixture
def say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*arguments: str) -> Said:
        code = main(["--config", str(tmp_path / "siteagent.toml"), *arguments])
        captured = capsys.readouterr()
        return Said(code, captured.out, captured.err)

    return call


# --- alone ------------------------------------------------------------------------------------------------------------


def test_drained_is_0_and_the_mail_is_there(tmp_path: Path, say: Any) -> None:
    port = free_port()
    with played(STARTED, then=lambda: bring(port, "one", "two")) as isp:
        path = write(tmp_path, provider(port=isp.port), listen=[f"127.0.0.1:{port}"])
        said = say("ask")
    assert (said.code, said.out.split(",")[:2]) == (0, ["isp: drained", " 2 messages"]), said.err
    assert len(site.filed(files.load(path))) == 2


def test_nothing_is_0_and_needs_no_explanation(tmp_path: Path, say: Any) -> None:
    with played(NOTHING) as isp:
        write(tmp_path, provider(port=isp.port))
        said = say("ask")
    assert said.code == 0 and said.out.startswith("isp: nothing")
    assert "siteagent test" not in said.err


def test_silence_is_0_with_a_line_on_stderr_that_says_what_it_can_mean(tmp_path: Path, say: Any) -> None:
    with played(STARTED) as isp:
        write(tmp_path, provider(port=isp.port))
        said = say("ask")
    assert said.code == 0 and said.out.startswith("isp: silent")
    assert "isp agreed and then nobody connected" in said.err and "siteagent test isp" in said.err


def test_refused_is_69(tmp_path: Path, say: Any) -> None:
    with played(REFUSED) as isp:
        write(tmp_path, provider(port=isp.port))
        said = say("ask")
    assert (said.code, said.out.split(",")[0]) == (69, "isp: refused"), said.err


def test_no_answer_is_75(tmp_path: Path, say: Any) -> None:
    write(tmp_path, provider(port=free_port()))
    said = say("ask")
    assert (said.code, said.out.split(",")[0]) == (75, "isp: failed"), said.err


def test_a_session_that_breaks_off_is_75(tmp_path: Path, say: Any) -> None:
    port = free_port()

    def hang_up() -> None:
        with socket.create_connection(("127.0.0.1", port), 5) as peer:
            peer.recv(100)
            for command in ("EHLO mx.isp.example", "MAIL FROM:<a@far.example>", f"RCPT TO:<{ALICE}>", "DATA"):
                peer.sendall(command.encode() + b"\r\n")
                peer.recv(1000)
            peer.sendall(b"Subject: half of ")

    with played(STARTED, then=hang_up) as isp:
        write(tmp_path, provider(port=isp.port), listen=[f"127.0.0.1:{port}"])
        said = say("ask")
    assert (said.code, said.out.split(",")[0]) == (75, "isp: incomplete"), said.err


def test_no_line_is_75(tmp_path: Path, say: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "GRACE_SECONDS", 0.2)
    write(tmp_path, provider(port=free_port(), interfaces=["ppp*"]))
    said = say("ask")
    assert said.code == 75 and "there is no line to isp" in said.out


def test_of_several_providers_the_worst_counts(tmp_path: Path, say: Any) -> None:
    with played(NOTHING) as good, played(REFUSED) as bad:
        peers = {"peers": ["127.0.0.1"]}
        write(
            tmp_path,
            provider("good", port=good.port, **peers),
            provider("bad", port=bad.port, nodes=["other.example"], **peers),
            provider("dead", port=free_port(), nodes=["third.example"], **peers),
        )
        said = say("ask", "--json")
    assert {name: each["outcome"] for name, each in said.rounds.items()} == {
        "good": "nothing",
        "bad": "refused",
        "dead": "failed",
    }
    assert said.code == 69


def test_json_is_one_document_with_a_version_and_nothing_else_on_stdout(tmp_path: Path, say: Any) -> None:
    with played(NOTHING) as isp:
        write(tmp_path, provider(port=isp.port))
        said = say("ask", "--json")
    document = json.loads(said.out)
    assert document["version"] == 1
    (only,) = document["rounds"]
    assert (only["provider"], only["outcome"], only["cause"]) == ("isp", "nothing", "request")
    assert [node["node"] for node in only["nodes"]] == [NODE]


def test_a_short_round_of_one_provider_is_not_begun_again_while_another_is_waited_for(tmp_path: Path, say: Any) -> None:
    with played(FAILED) as quick, played(STARTED) as slow:
        write(
            tmp_path,
            provider("quick", port=quick.port, retry_seconds=[0, 1], peers=["127.0.0.1"]),
            provider("slow", port=slow.port, nodes=["b.example"], first_connection_seconds=1.3, peers=["127.0.0.1"]),
        )
        said = say("ask", "--json")
        assert said.out, said.err
        assert quick.connections == 1, "the next try is the agent's, and there is none"
    assert {name: each["outcome"] for name, each in said.rounds.items()} == {"quick": "failed", "slow": "silent"}


def test_an_unknown_provider_is_64_with_the_nearest_name(tmp_path: Path, say: Any) -> None:
    write(tmp_path, provider(port=1))
    said = say("ask", "ips")
    assert said.code == 64 and "did you mean isp?" in said.err


def test_an_unknown_node_is_64_with_the_nearest_name(tmp_path: Path, say: Any) -> None:
    write(tmp_path, provider(port=1))
    said = say("ask", "--node", "ofice.example")
    assert said.code == 64 and f"did you mean {NODE}?" in said.err


def test_a_taken_port_is_73_naming_its_holder(tmp_path: Path, say: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        write(tmp_path, provider(port=1), listen=[f"127.0.0.1:{port}"])
        said = say("ask")
    assert said.code == 73
    assert f"cannot listen on 127.0.0.1:{port}" in said.err and f"(pid {os.getpid()})" in said.err


def test_after_a_start_that_failed_the_lock_is_free_and_no_thread_is_left(tmp_path: Path, say: Any) -> None:
    before = {thread.name for thread in threading.enumerate()}
    with socket.create_server(("127.0.0.1", 0)) as held:
        write(tmp_path, provider(port=1), listen=[f"127.0.0.1:{held.getsockname()[1]}"])
        say("ask")
    assert lock.lock_holder(tmp_path / "state") is None
    assert {thread.name for thread in threading.enumerate()} <= before


def test_a_state_directory_that_cannot_be_made_is_73(tmp_path: Path, say: Any) -> None:
    (tmp_path / "file").write_text("")
    write(tmp_path, provider(port=1), top={"state_directory": "file/state"})
    said = say("ask")
    assert said.code == 73 and "cannot make the state directory" in said.err


def test_sigint_ends_a_round_that_is_alone_and_says_incomplete(tmp_path: Path, say: Any) -> None:
    import signal

    with played(STARTED, then=lambda: os.kill(os.getpid(), signal.SIGINT)) as isp:
        write(tmp_path, provider(port=isp.port, first_connection_seconds=30))
        began = time.monotonic()
        said = say("ask")
    assert time.monotonic() - began < 5
    assert (said.code, said.out.split(",")[0]) == (75, "isp: incomplete"), said.err


def test_a_second_sigterm_changes_nothing(tmp_path: Path, say: Any) -> None:
    import signal

    def twice() -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)

    with played(STARTED, then=twice) as isp:
        write(tmp_path, provider(port=isp.port, first_connection_seconds=30))
        assert say("ask").code == 75


def test_ask_alone_ends_when_its_timeout_is_up(tmp_path: Path, say: Any) -> None:
    with played(STARTED) as isp:
        write(tmp_path, provider(port=isp.port, first_connection_seconds=30))
        began = time.monotonic()
        said = say("ask", "--timeout", "1")
    assert 0.9 < time.monotonic() - began < 5
    assert (said.code, "the time of the request is up" in said.out) == (75, True)


# --- two at once ------------------------------------------------------------------------------------------------------


def test_another_ask_at_work_is_waited_for(tmp_path: Path, say: Any) -> None:
    with played(NOTHING) as isp:
        write(tmp_path, provider(port=isp.port))
        state = tmp_path / "state"
        state.mkdir()
        held = lock.acquire(state, purpose="ask", work=lock.ASK)
        timer = threading.Timer(0.4, held.release)
        timer.start()
        said = say("ask")
    assert said.code == 0 and "is at work; waiting for it" in said.err


def test_another_ask_that_goes_on_for_longer_than_timeout_is_75(tmp_path: Path, say: Any) -> None:
    write(tmp_path, provider(port=1))
    state = tmp_path / "state"
    state.mkdir()
    held = lock.acquire(state, purpose="ask", work=lock.ASK)
    try:
        said = say("ask", "--timeout", "1")
    finally:
        held.release()
    assert said.code == 75 and "is asking still" in said.err


# --- with an agent ----------------------------------------------------------------------------------------------------


def test_a_running_agent_does_the_round_and_ask_follows_it(tmp_path: Path, say: Any) -> None:
    with played(NOTHING) as isp:
        path = write(tmp_path, provider(port=isp.port))
        with running(path) as agent:
            assert agent.site is not None
            wait_for(lambda: agent.site.of("round.ended"))
            said = say("ask", "--json")
            assert said.rounds["isp"]["id"] == agent.site.of("round.ended")[-1].round
    assert (said.code, said.rounds["isp"]["outcome"], said.rounds["isp"]["cause"]) == (0, "nothing", "request")
    assert list((tmp_path / "state" / "requests").iterdir()) == []


def wait_for(condition: Any, seconds: float = 10) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_request_that_is_not_taken_up_in_5_s_is_75_and_taken_back(
    tmp_path: Path, say: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "_TAKEN_SECONDS", 0.3)  # the figure, not the way
    write(tmp_path, provider(port=1))
    deaf = _deaf_agent(tmp_path)
    try:
        said = say("ask")
    finally:
        deaf.release()
    assert said.code == 75 and "did not take the request up" in said.err
    assert list((tmp_path / "state" / "requests").iterdir()) == []


def _deaf_agent(tmp_path: Path, **view: Any) -> lock.Lock:
    """Holds the lock as a running agent does, and never looks at requests."""
    state = tmp_path / "state"
    state.mkdir()
    requests.make_folder(state)
    document = {
        "version": 1, "state": "running", "pid": os.getpid(), "link": {}, "listener": {"addresses": [], "open": True},
        "providers": [{"name": "isp", "state": "resting", "next_ask": None, "last_round": None} | view],
        "warnings": [], "sessions_open": [], "queue": {"messages": 0},
    }  # fmt: skip
    (state / "status.json").write_text(json.dumps(document))
    return lock.acquire(state, purpose="run the agent")


def test_a_request_that_the_agent_took_and_forgot_does_not_hang_whoever_asked(
    tmp_path: Path, say: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "_TAKEN_SECONDS", 0.3)
    write(tmp_path, provider(port=1))
    deaf = _deaf_agent(tmp_path)
    taker = threading.Timer(0.1, lambda: requests.take(tmp_path / "state"))
    taker.start()
    try:
        assert say("ask").code == 75
    finally:
        deaf.release()


def test_a_provider_that_the_running_agent_does_not_know_is_78(
    tmp_path: Path, say: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "_TAKEN_SECONDS", 0.3)
    write(tmp_path, provider(port=1))
    deaf = _deaf_agent(tmp_path, name="other")
    taker = threading.Timer(0.1, lambda: requests.take(tmp_path / "state"))
    taker.start()
    try:
        said = say("ask")
    finally:
        deaf.release()
    assert said.code == 78 and "does not know isp" in said.err


def test_a_request_in_line_behind_another_round_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, say: Any
) -> None:
    monkeypatch.setattr(rounds, "_TAKEN_SECONDS", 0.3)
    write(tmp_path, provider(port=1))
    deaf = _deaf_agent(tmp_path, state="receiving")
    began = time.monotonic()
    threading.Timer(1.0, deaf.release).start()
    said = say("ask")
    assert time.monotonic() - began > 0.9, "it was at work all the time"
    assert said.code == 75 and "the agent ended meanwhile" in said.err


def test_an_end_that_another_round_has_followed_is_still_found(tmp_path: Path, say: Any) -> None:
    """Two who ask for different nodes: the second one's round begins in the very step that ends the first."""
    nodes = ["a.example", "b.example"]
    with played(STARTED) as isp:
        path = write(tmp_path, provider(port=isp.port, nodes=nodes))
        with running(path) as agent:
            assert agent.site is not None
            wait_for(lambda: agent.site.of("round.ended"))
            second = requests.Request(id="second", nodes=("b.example",))
            leaver = threading.Timer(0.2, lambda: requests.leave(tmp_path / "state", second))
            leaver.start()
            said = say("ask", "--node", "a.example", "--json")
            wait_for(lambda: len(agent.site.of("round.ended")) >= 3)
    assert said.code == 0
    assert [node["node"] for node in said.rounds["isp"]["nodes"]] == ["a.example"]


def test_ctrl_c_takes_the_request_back_and_is_130(tmp_path: Path, say: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import signal

    write(tmp_path, provider(port=1))
    deaf = _deaf_agent(tmp_path)
    threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    try:
        said = say("ask")
    finally:
        deaf.release()
    assert (said.code, "interrupted" in said.err) == (INTERRUPTED, True)
    assert list((tmp_path / "state" / "requests").iterdir()) == []


def test_sockets_that_were_bound_before_are_closed_once_an_agent_runs(tmp_path: Path) -> None:
    write(tmp_path, provider(port=1))
    deaf = _deaf_agent(tmp_path)
    bound = socket.create_server(("127.0.0.1", 0))
    threading.Timer(0.3, deaf.release).start()
    with pytest.raises(Exception, match="the agent ended meanwhile"):
        rounds.ask(
            Context(quiet=True), files.load(tmp_path / "siteagent.toml"), rounds.Wanted(("isp",)), sockets=[bound]
        )
    assert bound.fileno() == -1


# --- a port that systemd holds for the service ------------------------------------------------------------------------


def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, active: bool) -> Path:
    """A stand-in first in PATH. Returns the file that it touches when the service is started."""
    folder, started = tmp_path / "bin", tmp_path / "started"
    folder.mkdir()
    script = folder / "systemctl"
    script.write_text(
        "#!/bin/sh\n"
        f'case "$*" in\n  "is-active --quiet siteagent.socket") exit {0 if active else 3};;\n'
        f'  "--no-ask-password start siteagent.service") : > {started};;\n  *) exit 1;;\nesac\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return started


def test_where_siteagent_socket_holds_the_port_its_service_is_started_and_followed(
    tmp_path: Path, say: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = systemctl(tmp_path, monkeypatch, active=True)
    held: list[lock.Lock] = []

    def service() -> None:
        wait_for(started.exists)
        held.append(lock.acquire(tmp_path / "state", purpose="run the agent"))
        wait_for(lambda: list((tmp_path / "state" / "requests").glob("*.json")))
        held[0].release()

    thread = threading.Thread(target=service)
    thread.start()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        write(tmp_path, provider(port=1), listen=[f"127.0.0.1:{taken.getsockname()[1]}"])
        said = say("ask")
    thread.join()
    assert "its service was started" in said.err
    assert (said.code, "the agent ended meanwhile" in said.err) == (75, True), "it was followed"


def test_a_service_of_another_state_directory_is_no_help(
    tmp_path: Path, say: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    systemctl(tmp_path, monkeypatch, active=True)
    monkeypatch.setattr(rounds, "_SERVICE_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        write(tmp_path, provider(port=1), listen=[f"127.0.0.1:{taken.getsockname()[1]}"])
        assert say("ask").code == 73


def test_without_siteagent_socket_no_service_is_started(
    tmp_path: Path, say: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = systemctl(tmp_path, monkeypatch, active=False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        write(tmp_path, provider(port=1), listen=[f"127.0.0.1:{taken.getsockname()[1]}"])
        assert say("ask").code == 73
    assert not started.exists()


def test_a_round_whose_mail_comes_to_another_server_claims_no_number() -> None:
    said = rounds.summary("isp", {"outcome": "asked", "messages": 0, "bytes": 0})
    assert said == "isp: asked; what it holds comes to the mail server that receives here"
