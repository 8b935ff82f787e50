"""`agent.parts`: the agent whole, on loopback: start, stop, what happens when a start fails half-way."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from siteagent.agent import parts
from siteagent.agent.desk import Once
from siteagent.config import files
from siteagent.delivery.maildir import Maildir
from siteagent.delivery.target import Delivered
from siteagent.errors import CannotCreate, ConfigurationError, PermissionProblem, SiteAgentError
from siteagent.events import Event
from siteagent.store import lock, requests
from siteagent.store.requests import Request
from tests import scripted, site
from tests.site import NOTHING, STARTED, Site, at, provider, write

ROOT = Path(__file__).resolve().parent.parent.parent


def failed_start(path: Path, kind: type[BaseException]) -> BaseException:
    """Starts the agent of `path`, which must fail; afterwards nothing of it may be left."""
    before = {thread.ident for thread in threading.enumerate()}

    async def work() -> None:
        async with site.site(path):
            raise AssertionError("it started")

    with pytest.raises(kind) as caught:
        asyncio.run(work())
    left = [t for t in threading.enumerate() if t.ident not in before and not t.daemon and "asyncio" not in t.name]
    assert left == [], "a thread that keeps the process from ending"
    assert lock.lock_holder(path.parent / "state") is None
    return caught.value


# --- a start that fails -----------------------------------------------------------------------------------------------


def test_s37_the_second_agent_is_told_who_the_first_is(tmp_path: Path) -> None:
    path = write(tmp_path, provider(port=1))

    async def scene(one: Site) -> None:
        with pytest.raises(CannotCreate, match=f"process {os.getpid()} already works with"):
            async with site.site(path):
                pass

    at(path, scene)


def test_a_taken_port_ends_the_start_and_leaves_nothing(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        error = failed_start(
            write(tmp_path, provider(port=1), listen=[f"127.0.0.1:{held.getsockname()[1]}"]), CannotCreate
        )
    assert f"(pid {os.getpid()})" in str(error)


def test_a_start_that_failed_does_not_overwrite_what_the_last_run_said(tmp_path: Path) -> None:
    status = tmp_path / "state" / "status.json"
    at(write(tmp_path, provider(port=1)), _nothing)
    before = status.read_bytes()
    with socket.create_server(("127.0.0.1", 0)) as held:
        failed_start(write(tmp_path, provider(port=1), listen=[f"127.0.0.1:{held.getsockname()[1]}"]), CannotCreate)
    assert status.read_bytes() == before


async def _nothing(one: Site) -> None:
    return


def test_a_bad_certificate_ends_the_start(tmp_path: Path) -> None:
    for name in ("cert.pem", "key.pem"):
        (tmp_path / name).write_text("no certificate")
        (tmp_path / name).chmod(0o600)
    path = write(tmp_path, provider(port=1), listener={"tls_certificate": "cert.pem", "tls_key": "key.pem"})
    failed_start(path, ConfigurationError)


def test_a_spool_that_cannot_be_opened_ends_the_start(tmp_path: Path) -> None:
    path = write(tmp_path, provider(port=1))
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "bodies").write_text("in the way")
    failed_start(path, (SiteAgentError, OSError))  # type: ignore[arg-type]


def test_a_start_that_is_cancelled_between_spool_and_listener_hides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last words need parts that are not there yet."""

    def breaks(*arguments: object, **options: object) -> None:
        raise RuntimeError("the fault that was planted")

    monkeypatch.setattr(parts, "Resolver", breaks)
    error = failed_start(write(tmp_path, provider(port=1)), RuntimeError)
    assert str(error) == "the fault that was planted"


def test_a_process_whose_start_fails_behind_the_spool_ends(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        path = write(tmp_path, provider(port=1), listen=[f"127.0.0.1:{held.getsockname()[1]}"])
        done = subprocess.run(
            [sys.executable, "-m", "siteagent", "--config", str(path), "run"],
            capture_output=True, text=True, timeout=20, cwd=ROOT,
        )  # fmt: skip
    assert done.returncode == 73 and "cannot listen on" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: to be another user for a moment")
def test_a_state_directory_that_is_not_ours_is_a_matter_of_permission() -> None:
    with tempfile.TemporaryDirectory(prefix="siteagent-test-") as name:  # pytest's own are for their owner alone
        place = Path(name)
        place.chmod(0o755)
        path = write(place, provider(port=1))
        path.chmod(0o644)
        (place / "state").mkdir()
        (place / "state").chmod(0o755)
        os.seteuid(65534)
        try:
            with pytest.raises(PermissionProblem, match="cannot use the state directory"):
                asyncio.run(_start(path))
        finally:
            os.seteuid(0)


async def _start(path: Path) -> None:
    async with site.site(path):
        pass


# --- a life -----------------------------------------------------------------------------------------------------------


def test_a_line_that_comes_up_leads_to_mail_in_the_maildir(tmp_path: Path) -> None:
    async def work() -> None:
        async with scripted.Provider(STARTED) as isp:
            path = write(tmp_path, provider(port=isp.port, first_connection_seconds=5))
            async with site.site(path, up=False) as one:
                assert one.of("link.up") == []
                one.switch.up = True
                one.agent.watch.poke("test")
                await one.until(lambda: one.of("ask.answered"))
                await one.bring("one", "two")
                ended = await one.ended()
                assert (ended.outcome.value, ended.messages, ended.sessions) == ("drained", 2, 1)
                assert len(one.filed()) == 2

    asyncio.run(work())


def test_mail_that_comes_unasked_is_filed_and_belongs_to_no_round(tmp_path: Path) -> None:
    async def scene(one: Site) -> None:
        await one.bring("unasked")
        await one.until(lambda: one.of("message.stored"))
        (accepted,) = one.of("message.accepted")
        assert (accepted.provider, accepted.round) == ("isp", None)

    at(write(tmp_path, provider(port=1)), scene, up=False)


def test_s1_a_stranger_hears_421_and_nothing_of_it_stays(tmp_path: Path) -> None:
    async def scene(one: Site) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", one.port)
        assert (await reader.read()).startswith(b"421 4.7.1 ")
        writer.close()
        assert one.of("session.refused")[0].expected == ()
        assert one.of("warning.raised") == []

    at(write(tmp_path, provider(port=1, peers=["192.0.2.1"])), scene, up=False)


def test_s1_a_stranger_while_a_round_waits_is_warned_of(tmp_path: Path) -> None:
    async def work() -> None:
        async with scripted.Provider(STARTED) as isp:
            path = write(tmp_path, provider(port=isp.port, first_connection_seconds=5, peers=["192.0.2.1"]))
            async with site.site(path) as one:
                await one.until(lambda: one.of("ask.answered"))
                reader, writer = await asyncio.open_connection("127.0.0.1", one.port, local_addr=("127.0.0.2", 0))
                await reader.read()
                writer.close()
                (refused,) = one.of("session.refused")
                assert refused.expected == ("isp",)
                (warning,) = one.of("warning.raised")
                assert warning.text == "isp seems to connect from 127.0.0.2 now" and '"127.0.0.2"' in warning.fix
                shown = [each["name"] for each in one.agent._document()["warnings"]]
                assert shown == ["peer-refused"]

    asyncio.run(work())


def test_status_says_running_then_stopped(tmp_path: Path) -> None:
    async def scene(one: Site) -> None:
        document = json.loads((tmp_path / "state" / "status.json").read_bytes())
        assert (document["state"], document["pid"], document["listener"]["open"]) == ("running", os.getpid(), True)

    at(write(tmp_path, provider(port=1)), scene, up=False)
    document = json.loads((tmp_path / "state" / "status.json").read_bytes())
    assert (document["state"], document["sessions_open"], document["listener"]["open"]) == ("stopped", [], False)


def test_status_tells_what_waits_to_be_filed_while_it_runs_and_when_it_stopped(tmp_path: Path) -> None:
    def waiting() -> tuple[object, ...]:
        document = json.loads((tmp_path / "state" / "status.json").read_bytes())
        queue = document["queue"]
        return document["state"], queue["messages"] >= 1, queue["oldest"] is not None, "alice" in str(queue["reason"])

    async def scene(one: Site) -> None:
        await one.bring("it cannot be filed")
        await one.until(lambda: one.of("filing.failed"))
        await one.until(lambda: waiting() == ("running", True, True, True))

    path = write(tmp_path, provider(port=1))
    (tmp_path / "mail" / "alice").write_text("in the way")
    at(path, scene, up=False)
    assert waiting() == ("stopped", True, True, True)


def test_what_is_being_filed_at_the_stop_does_not_wait_in_the_last_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = threading.Event()
    deliver = Maildir.deliver

    def slowly(*arguments: Any) -> list[Delivered]:
        begun.set()
        time.sleep(0.3)
        return deliver(*arguments)

    async def scene(one: Site) -> None:
        await one.bring("it takes its time")
        await one.until(begun.is_set)

    monkeypatch.setattr(Maildir, "deliver", slowly)
    path = write(tmp_path, provider(port=1))
    at(path, scene, up=False)
    document = json.loads((tmp_path / "state" / "status.json").read_bytes())
    assert (document["state"], document["queue"]["messages"]) == ("stopped", 0)
    assert len(site.filed(files.load(path))) == 1


def test_stop_ends_a_round_as_incomplete_and_says_why(tmp_path: Path) -> None:
    async def work() -> None:
        async with scripted.Provider(STARTED) as isp:
            path = write(tmp_path, provider(port=isp.port, first_connection_seconds=60))
            async with site.site(path) as one:
                await one.until(lambda: one.of("ask.answered"))
                one.agent.stop("SIGTERM")
                one.agent.stop("SIGTERM")
            (ended,) = one.of("round.ended")
            assert ended.outcome.value == "incomplete"
            assert [event.reason for event in one.of("agent.stopping")] == ["SIGTERM"]

    asyncio.run(work())


def test_stop_lets_a_message_that_is_under_way_finish(tmp_path: Path) -> None:
    async def scene(one: Site) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", one.port)

        async def say(line: str) -> bytes:
            writer.write(line.encode() + b"\r\n")
            return await reader.readline()

        await reader.readline()
        assert (await say("HELO mx.isp.example"))[:3] == b"250"
        for line in ("MAIL FROM:<a@far.example>", f"RCPT TO:<{site.ALICE}>", "DATA"):
            assert (await say(line))[:1] in (b"2", b"3")
        writer.write(b"Subject: half\r\n")
        await writer.drain()
        await asyncio.sleep(0.05)
        one.agent.stop("SIGTERM")
        await asyncio.sleep(0.05)
        assert (await say("\r\nthe rest\r\n."))[:3] == b"250"
        writer.close()

    path = write(tmp_path, provider(port=1))
    at(path, scene, up=False)
    assert [b"the rest\n" in content for content in site.filed(files.load(path))] == [True]


def test_a_stop_during_the_start_is_kept(tmp_path: Path) -> None:
    path = write(tmp_path, provider(port=1))

    async def work() -> None:
        import io

        from siteagent.logs import LogWriter

        agent = parts.Agent(files.load(path), log=LogWriter(io.StringIO()), oracle=site.Switch())
        running = asyncio.ensure_future(agent.run())
        await asyncio.sleep(0)
        agent.stop("SIGTERM")
        await asyncio.wait_for(running, 10)

    asyncio.run(work())


def test_a_part_that_falls_over_is_told_and_begun_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "_RESTART_SECONDS", (0.01,))
    began: list[int] = []

    async def scene(one: Site) -> None:
        async def falls() -> None:
            began.append(1)
            raise RuntimeError("the fault that was planted")

        one.agent._supervise("planted", falls)
        await one.until(lambda: len(began) >= 3)
        failed = one.of("part.failed")[0]
        assert (failed.part, failed.reason) == ("planted", "RuntimeError: the fault that was planted")
        await one.bring("in spite of it")

    at(write(tmp_path, provider(port=1)), scene, up=False)


def test_an_error_that_nobody_catches_is_a_line_of_the_log(tmp_path: Path) -> None:
    async def scene(one: Site) -> None:
        asyncio.get_running_loop().call_exception_handler({"message": "odd", "exception": ValueError("planted")})
        assert "odd: ValueError: planted" in one.log

    at(write(tmp_path, provider(port=1)), scene, up=False)


# --- requests ---------------------------------------------------------------------------------------------------------


def test_a_request_that_stood_there_before_the_start_is_taken(tmp_path: Path) -> None:
    async def work() -> None:
        async with scripted.Provider(NOTHING) as isp:
            path = write(tmp_path, provider(port=isp.port, retry_seconds=[300]))
            state = tmp_path / "state"
            state.mkdir()
            requests.make_folder(state)
            requests.leave(state, Request(id="early"))
            async with site.site(path) as one:
                await one.ended()
                views = json.loads((state / "status.json").read_bytes())["providers"]
                assert views[0]["last_round"]["requests"] == ["early"]

    asyncio.run(work())


def test_requests_are_answered_by_one_round_and_leave_no_file(tmp_path: Path) -> None:
    async def work() -> None:
        async with scripted.Provider(STARTED) as isp:
            path = write(tmp_path, provider(port=isp.port, retry_seconds=[300], first_connection_seconds=0.5))
            async with site.site(path) as one:
                for name in ("a", "b"):
                    requests.leave(tmp_path / "state", Request(id=name, providers=("isp",)))
                ended = await one.ended()
                await one.until(lambda: not list((tmp_path / "state" / "requests").iterdir()))
                document = one.agent._document()
                assert sorted(document["providers"][0]["last_round"]["requests"]) == ["a", "b"]
                assert ended.round == document["providers"][0]["last_round"]["id"]

    asyncio.run(work())


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (Request(id="a", providers=("other",)), "provider other, which is not in the configuration"),
        (Request(id="a", nodes=("other.example",)), "other.example, which no provider of the configuration has"),
    ],
)
def test_a_request_for_what_is_unknown_is_noted_and_starts_nothing(
    tmp_path: Path, request_: Request, said: str
) -> None:
    async def scene(one: Site) -> None:
        requests.leave(tmp_path / "state", request_)
        await one.until(lambda: said in one.log)
        assert one.of("round.started") == []

    at(write(tmp_path, provider(port=1)), scene, up=False)


# --- one round alone --------------------------------------------------------------------------------------------------


def test_a_life_for_one_round_ends_with_it_and_takes_no_requests(tmp_path: Path) -> None:
    async def work() -> list[Event]:
        async with scripted.Provider(NOTHING) as isp:
            path = write(tmp_path, provider(port=isp.port))
            async with site.site(path, once=Once("mine")) as one:
                assert lock.holder_work(tmp_path / "state") == lock.ASK
                requests.leave(tmp_path / "state", Request(id="other"))
                await one.ended()
        assert [view["last_round"]["requests"] for view in one.agent.last_document["providers"]] == [["mine"]]
        return one.events

    asyncio.run(work())
    assert [request.id for request in requests.take(tmp_path / "state")] == ["other"], "it waits for the next"


def test_hints_are_heard_in_the_hook_directory_of_the_configuration(tmp_path: Path) -> None:
    from siteagent.link.hookdir import leave_hint

    async def work() -> None:
        async with scripted.Provider(NOTHING) as isp:
            path = write(
                tmp_path, provider(port=isp.port), link={"hook_directory": "state/my-hints", "poll_seconds": 60}
            )
            async with site.site(path, up=False) as one:
                await one.until((tmp_path / "state" / "my-hints").is_dir)
                await asyncio.sleep(0.1)
                one.switch.up = True
                leave_hint(tmp_path / "state" / "my-hints", "demo0", "test")
                assert (await one.ended()).outcome.value == "nothing"
                (up,) = one.of("link.up")
                assert up.cause.startswith("hook")

    asyncio.run(work())
