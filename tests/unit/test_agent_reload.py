"""`agent.reload`: a changed configuration, taken in whole or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from siteagent.agent.reload import Reloader
from siteagent.config import files
from siteagent.host import systemd
from tests import scripted, site
from tests.site import ALICE, NOTHING, STARTED, Site, Switch, free_port, provider, write

Scene = Callable[[Site, Reloader], Awaitable[None]]


def on(path: Path, scene: Scene, **options: Any) -> None:
    asyncio.run(reloading(path, scene, **options))


async def reloading(path: Path, scene: Scene, **options: Any) -> None:
    import io

    from siteagent.agent.parts import Agent
    from siteagent.events import Event
    from siteagent.logs import LogWriter

    log, events, switch = io.StringIO(), list[Event](), Switch(up=options.get("up", False))
    writer = LogWriter(log)
    agent = Agent(files.load(path), log=writer, observe=events.append, oracle=switch)
    reloader = Reloader(agent, path)
    one = Site(agent, events, log, writer, switch)
    running = asyncio.ensure_future(agent.run())
    await asyncio.wait_for(agent.ready.wait(), 20)
    try:
        await scene(one, reloader)
    finally:
        agent.stop("the test is over")
        await asyncio.wait_for(running, 60)


def test_a_changed_file_is_taken_in_without_a_signal(tmp_path: Path) -> None:
    path = write(tmp_path, provider(port=1))

    async def scene(one: Site, reloader: Reloader) -> None:
        write(tmp_path, provider(port=1), provider("second", port=2, nodes=["b.example"]))
        await one.until(lambda: one.of("config.reloaded"))
        assert sorted(one.agent.desk.runners) == ["isp", "second"]
        await asyncio.sleep(0.15)
        assert len(one.of("config.reloaded")) == 1, "one change, one reload"

    on(path, scene)


def test_a_burst_of_looks_is_one_reload(tmp_path: Path) -> None:
    path = write(tmp_path, provider(port=1))

    async def scene(one: Site, reloader: Reloader) -> None:
        write(tmp_path, provider(port=1, quiet_seconds=3))
        for _ in range(5):
            reloader.look()
        await one.until(lambda: one.of("config.reloaded"))
        await asyncio.sleep(0.15)
        assert len(one.of("config.reloaded")) == 1

    on(path, scene)


def test_another_mailbox_takes_mail_at_the_next_session(tmp_path: Path) -> None:
    path = write(tmp_path, provider(port=1))

    async def scene(one: Site, reloader: Reloader) -> None:
        bob = '[[mailbox]]\nname = "bob"\naddresses = ["bob@office.example"]\nmaildir = "mail/bob"\n'
        write(tmp_path, provider(port=1), more=bob)
        await reloader.reload()
        await one.bring("for bob", to="bob@office.example")
        await one.until(lambda: one.of("message.stored"))
        assert len(list((tmp_path / "mail" / "bob" / "new").iterdir())) == 1

    on(path, scene)


def test_s55_a_bad_reload_keeps_the_old_one_and_names_every_problem(tmp_path: Path) -> None:
    path = write(tmp_path, provider(port=1))

    async def scene(one: Site, reloader: Reloader) -> None:
        write(tmp_path, provider(port=1, hots="x"), top={"hostnam": "y"}, more='[[mailbox]]\nname = "bob"\n')
        await reloader.reload()
        (rejected,) = one.of("config.rejected")
        assert len(rejected.problems) >= 3 and any("hostname" in problem for problem in rejected.problems)
        await one.bring("goes on")
        assert one.of("config.reloaded") == []
        (warning,) = one.agent.teller.document()["warnings"]
        assert warning["name"] == "configuration" and rejected.problems[0] in warning["text"]
        write(tmp_path, provider(port=1))
        await reloader.reload()
        assert one.agent.teller.document()["warnings"] == []

    on(path, scene)


def test_a_file_that_is_gone_keeps_the_old_configuration(tmp_path: Path) -> None:
    path = write(tmp_path, provider(port=1))

    async def scene(one: Site, reloader: Reloader) -> None:
        path.unlink()
        await one.until(lambda: one.of("config.rejected"))
        assert "no such file" in one.of("config.rejected")[0].problems[0]
        await one.bring("goes on")

    on(path, scene)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"listen": [f"127.0.0.1:{free_port()}"]}, "[listener] listen"),
        ({"listener": {"open": "asked"}}, "[listener] open"),
        ({"top": {"state_directory": "elsewhere"}}, "state_directory"),
    ],
)
def test_what_cannot_change_rejects_the_reload_as_a_whole(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    path = write(tmp_path, provider(port=1))

    async def scene(one: Site, reloader: Reloader) -> None:
        write(tmp_path, provider("other", port=1), **change)
        await reloader.reload()
        (rejected,) = one.of("config.rejected")
        assert [problem.partition(":")[0] for problem in rejected.problems] == [named]
        assert list(one.agent.desk.runners) == ["isp"], "nothing of it counts"

    on(path, scene)


def test_a_bad_certificate_rejects_the_reload_and_the_old_one_stays(tmp_path: Path) -> None:
    path = write(tmp_path, provider(port=1))

    async def scene(one: Site, reloader: Reloader) -> None:
        for name in ("cert.pem", "key.pem"):
            (tmp_path / name).write_text("rubbish")
            (tmp_path / name).chmod(0o600)
        more = {"tls_certificate": "cert.pem", "tls_key": "key.pem"}
        write(tmp_path, provider("other", port=1), listener=more)
        await reloader.reload()
        assert "cannot use the certificate" in one.of("config.rejected")[0].problems[0]
        assert list(one.agent.desk.runners) == ["isp"] and one.agent.context.current is None

    on(path, scene)


def test_systemd_hears_ready_again_even_where_the_reload_breaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, provider(port=1))
    told: list[str] = []

    def notify(text: str) -> bool:
        told.append(text.partition("\n")[0])
        return True

    async def scene(one: Site, reloader: Reloader) -> None:
        async def breaks(configuration: object) -> None:
            raise RuntimeError("the fault that was planted")

        monkeypatch.setattr(systemd, "notify", notify)
        monkeypatch.setattr(one.agent, "apply", breaks)
        one.agent.background(reloader.reload())
        await one.until(lambda: "RuntimeError: the fault that was planted" in one.log)
        assert told == ["RELOADING=1", "READY=1"]

    on(path, scene)


def test_a_reload_during_the_start_waits_for_its_end(tmp_path: Path) -> None:
    import io

    from siteagent.agent.parts import Agent
    from siteagent.logs import LogWriter

    path = write(tmp_path, provider(port=1))

    async def work() -> None:
        log = io.StringIO()
        agent = Agent(files.load(path), log=LogWriter(log), oracle=Switch(up=False))
        reloader = Reloader(agent, path)
        running = asyncio.ensure_future(agent.run())
        agent.background(reloader.reload())
        await asyncio.wait_for(agent.ready.wait(), 20)
        async with asyncio.timeout(5):
            while "config.reloaded" not in log.getvalue():
                await asyncio.sleep(0.005)
        agent.stop("over")
        await running

    asyncio.run(work())


def test_another_link_section_is_no_line_that_comes_up(tmp_path: Path) -> None:
    async def work() -> None:
        async with scripted.Provider(NOTHING) as isp:
            path = write(tmp_path, provider(port=isp.port))

            async def scene(one: Site, reloader: Reloader) -> None:
                await one.ended()
                write(tmp_path, provider(port=isp.port), link={"poll_seconds": 7})
                await reloader.reload()
                await asyncio.sleep(0.1)
                assert (len(one.of("link.up")), len(one.of("round.started"))) == (1, 1)
                one.switch.up = False
                one.agent.watch.poke("test")
                await one.until(lambda: one.of("link.down"))

            await reloading(path, scene, up=True)

    asyncio.run(work())


# --- a provider that is removed ---------------------------------------------------------------------------------------


def leaving(tmp_path: Path, scene: Scene, **options: Any) -> None:
    """`scene` begins when the provider was asked and has not come; then it is taken out of the file."""

    async def work() -> None:
        async with scripted.Provider(STARTED) as isp, scripted.Provider(NOTHING) as other:
            stays = provider("stays", port=other.port, nodes=["b.example"], peers=["192.0.2.1"])
            goes = provider("goes", port=isp.port, **{"first_connection_seconds": 5, **options})
            path = write(tmp_path, stays, goes)

            async def begun(one: Site, reloader: Reloader) -> None:
                await one.until(lambda: any(event.provider == "goes" for event in one.of("ask.answered")))
                write(tmp_path, stays)
                await reloader.reload()
                assert len(one.of("config.reloaded")) == 1
                one.back = lambda: write(tmp_path, stays, goes)  # type: ignore[attr-defined]
                await scene(one, reloader)

            await reloading(path, begun, up=True)

    asyncio.run(work())


def outcomes(one: Site) -> list[str]:
    return [event.outcome.value for event in one.of("round.ended") if event.provider == "goes"]


def test_a_removed_provider_finishes_its_round_and_is_let_in_for_it(tmp_path: Path) -> None:
    async def scene(one: Site, reloader: Reloader) -> None:
        await one.bring("one")
        await one.until(lambda: outcomes(one))
        assert outcomes(one) == ["drained"]
        assert one.of("session.refused") == []
        await one.until(lambda: list(one.agent.desk.runners) == ["stays"])

    leaving(tmp_path, scene)


def test_when_its_round_is_over_a_removed_provider_is_a_stranger(tmp_path: Path) -> None:
    async def scene(one: Site, reloader: Reloader) -> None:
        await one.until(lambda: list(one.agent.desk.runners) == ["stays"])
        reader, writer = await asyncio.open_connection("127.0.0.1", one.port)
        assert (await reader.read())[:3] == b"421"
        writer.close()
        await asyncio.sleep(0.05)
        assert len(outcomes(one)) == 1, "no further round"

    leaving(tmp_path, scene, first_connection_seconds=0.3)


def test_a_provider_that_is_put_back_while_it_finishes_is_asked_again(tmp_path: Path) -> None:
    async def scene(one: Site, reloader: Reloader) -> None:
        one.back()  # type: ignore[attr-defined]
        await reloader.reload()
        await one.until(lambda: len(outcomes(one)) >= 2)

    leaving(tmp_path, scene, first_connection_seconds=0.3)


def test_warnings_about_a_removed_provider_do_not_stand_for_ever(tmp_path: Path) -> None:
    async def work() -> None:
        async with scripted.Provider(site.REFUSED) as isp:
            stays = provider("stays", port=isp.port, nodes=["b.example"], peers=["192.0.2.1"])
            path = write(tmp_path, stays, provider("goes", port=isp.port))

            async def scene(one: Site, reloader: Reloader) -> None:
                await one.until(lambda: len(one.of("warning.raised")) == 2)
                write(tmp_path, stays)
                await reloader.reload()
                assert [event.subject for event in one.of("warning.cleared")] == ["goes"]

            await reloading(path, scene, up=True)

    asyncio.run(work())


def test_mail_is_taken_all_the_time(tmp_path: Path) -> None:
    """Twenty reloads while a connection brings message after message."""
    path = write(tmp_path, provider(port=1))

    async def scene(one: Site, reloader: Reloader) -> None:
        bringing = asyncio.ensure_future(one.bring(*(str(n) for n in range(30)), to=ALICE))
        for n in range(20):
            write(tmp_path, provider(port=1, quiet_seconds=1 + n))
            await reloader.reload()
        await bringing
        await one.until(lambda: len(one.of("message.stored")) == 30)
        assert one.of("message.refused") == []

    on(path, scene)
