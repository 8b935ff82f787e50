"""Hooks: commands run as promised, and nothing that they do is noticed elsewhere."""

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from siteagent.config.sections import Hooks as Section
from siteagent.events import (
    AgentStopping,
    Event,
    HookFailed,
    LinkDown,
    MessageAccepted,
    MessageStored,
    Outcome,
    RoundEnded,
    Stamped,
)
from siteagent.hooks import OUTPUT_BYTES, QUEUED, VALUE_BYTES, Hooks, environment

AT = datetime(2026, 11, 22, 8, tzinfo=UTC)
ENDED = RoundEnded(
    round="r1", provider="isp", outcome=Outcome.DRAINED, sessions=1, messages=3, files=3, duplicates=0, refused=0,
    bytes=9, wire_bytes=9, seconds=2.5, link_interface="ppp0",
)  # fmt: skip
BASE = {"PATH": os.environ["PATH"], "LANG": "de_DE.UTF-8", "SECRET": "of the agent"}


def down(cause: str) -> LinkDown:
    return LinkDown(provider="isp", interface="ppp0", cause=cause)


def accepted(sender: str, *recipients: str) -> MessageAccepted:
    return MessageAccepted(
        message="m", session="s", provider=None, round=None, sender=sender, recipients=recipients, bytes=1,
        wire_bytes=1, seconds=0,
    )  # fmt: skip


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-S", "-c", code)


def run(
    commands: dict[str, tuple[str, ...]],
    *events: Event,
    timeout: float = 20.0,
    during: Callable[[Hooks], Awaitable[None]] | None = None,
    close_seconds: float = 20.0,
) -> tuple[list[HookFailed], list[str]]:
    """Let hooks observe `events`, wait for the end of all; what they emitted and what the commands wrote."""
    emitted: list[Event] = []
    notes: list[str] = []

    async def main() -> None:
        section = Section(commands=commands, timeout_seconds=timeout)
        hooks = Hooks(section, emitted.append, note=notes.append, base=BASE, term_seconds=0.3)
        for event in events:
            hooks.observe(Stamped(AT, event))
        if during is not None:
            await during(hooks)
        await hooks.close(seconds=close_seconds)

    asyncio.run(main())
    assert all(isinstance(event, HookFailed) for event in emitted)
    return emitted, notes  # type: ignore[return-value]


def waits_for(path: Path) -> str:
    return f"import os, time\nwhile not os.path.exists({str(path)!r}): time.sleep(0.01)"


def gone(pid: int) -> bool:
    """Whether the process is dead; an orphan that nobody has buried yet is."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.005)


# --- the environment --------------------------------------------------------------------------------------------------


def test_s54_the_environment_is_path_lang_the_event_and_its_fields_alone(tmp_path: Path) -> None:
    out = tmp_path / "environment"
    code = f"import os, json; json.dump(dict(os.environ), open({str(out)!r}, 'w'))"
    failed, _ = run({"round_ended": python(code)}, ENDED)
    found = json.loads(out.read_text())
    found.pop("LC_CTYPE", None)  # Python's own, PEP 538
    assert not failed
    assert found == environment(ENDED, BASE)
    assert {name for name in found if not name.startswith("SITEAGENT_")} == {"PATH", "LANG"}
    assert found["SITEAGENT_EVENT"] == "round.ended"
    assert found["SITEAGENT_LINK_INTERFACE"] == "ppp0"
    assert found["SITEAGENT_OUTCOME"] == "drained"


def test_lists_are_joined_by_a_space_and_absence_is_empty() -> None:
    found = environment(accepted("a@x", "b@y", "c@y"), BASE)
    assert (found["SITEAGENT_RECIPIENTS"], found["SITEAGENT_PROVIDER"]) == ("b@y c@y", "")


def test_s54_control_bytes_are_removed_from_values() -> None:
    found = environment(accepted("a\r\nb\x00c\x1b[0m\x7f\x9b\u2028\ud800d@x"), BASE)
    assert found["SITEAGENT_SENDER"] == "abc[0md@x"


def test_a_thousand_recipients_do_not_keep_a_command_from_starting() -> None:
    many = tuple(f"{'x' * 200}{number}@office.example" for number in range(1000))
    failed, _ = run({"message_accepted": python("pass")}, accepted("a@x", *many))
    assert not failed
    assert len(environment(accepted("a@x", *many), BASE)["SITEAGENT_RECIPIENTS"]) <= VALUE_BYTES


def test_the_event_of_hook_failed_stays_its_own_name() -> None:
    event = HookFailed(hook="round.ended", command="x", reason="y")
    assert environment(event, BASE)["SITEAGENT_EVENT"] == "hook.failed"


# --- running ----------------------------------------------------------------------------------------------------------


def test_s54_no_shell_sees_the_arguments(tmp_path: Path) -> None:
    argument = f"$(touch {tmp_path}/owned); `touch {tmp_path}/owned`"
    _, notes = run({"round_ended": (*python("import sys; print(sys.argv[1])"), argument)}, ENDED)
    assert notes == [f"round_ended: {argument}"]
    assert not (tmp_path / "owned").exists()


def test_an_event_without_a_command_starts_nothing() -> None:
    failed, notes = run({"round_ended": python("print(1)")}, AgentStopping(reason="x"))
    assert (failed, notes) == ([], [])


def test_commands_of_one_kind_run_one_at_a_time_and_in_order(tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = (
        "import os\n"
        f"f = open({str(out)!r}, 'a')\n"
        "for word in ('begin', 'end'): f.write(word + os.environ['SITEAGENT_CAUSE'] + ' '); f.flush()"
    )
    run({"link_down": python(code)}, *(down(str(number)) for number in range(4)))
    assert out.read_text().split() == [f"{word}{number}" for number in range(4) for word in ("begin", "end")]


def test_s54_a_command_is_its_own_session_and_process_group() -> None:
    _, notes = run({"round_ended": python("import os; print(os.getpid(), os.getpgid(0), os.getsid(0))")}, ENDED)
    pid, group, session = notes[0].split()[1:]
    assert pid == group == session


def test_s54_a_hanging_hook_delays_neither_observe_nor_the_loop_nor_another_kind(tmp_path: Path) -> None:
    go, other = tmp_path / "go", tmp_path / "other"
    slowest = 0.0

    async def during(hooks: Hooks) -> None:
        nonlocal slowest
        for number in range(50):
            begin = time.perf_counter()
            hooks.observe(Stamped(AT, down(str(number))))
            await asyncio.sleep(0)
            slowest = max(slowest, time.perf_counter() - begin)
        hooks.observe(Stamped(AT, ENDED))
        await until(other.exists)  # while the first link_down still hangs
        go.touch()

    commands = {"link_down": python(waits_for(go)), "round_ended": python(f"open({str(other)!r}, 'w')")}
    failed, _ = run(commands, down("first"), during=during)
    assert not failed
    assert slowest < 0.5


# --- going wrong ------------------------------------------------------------------------------------------------------


def test_s54_a_failing_hook_is_reported_with_its_last_words() -> None:
    failed, notes = run({"round_ended": python("print('no modem'); raise SystemExit(3)")}, ENDED)
    assert notes == ["round_ended: no modem"]
    assert [(each.hook, each.reason) for each in failed] == [("round.ended", "ended with status 3: no modem")]


def test_a_command_that_does_not_exist_is_reported() -> None:
    failed, _ = run({"round_ended": ("/nonexistent/hang-up", "now")}, ENDED)
    assert [(each.command, each.reason) for each in failed] == [
        ("/nonexistent/hang-up now", "cannot be run: No such file or directory")
    ]


def test_a_command_ended_by_a_signal_is_reported() -> None:
    failed, _ = run({"round_ended": python("import os; os.kill(os.getpid(), 9)")}, ENDED)
    assert [each.reason for each in failed] == ["was ended by signal 9"]


def test_after_a_failing_hook_the_next_of_its_kind_runs() -> None:
    code = "import os, sys; print(os.environ['SITEAGENT_CAUSE']); sys.exit(1)"
    failed, notes = run({"link_down": python(code)}, down("a"), down("b"))
    assert (len(failed), notes) == (2, ["link_down: a", "link_down: b"])


def test_s54_a_hook_over_its_time_is_ended_with_its_whole_group(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    # Both ignore SIGTERM: only the SIGKILL of the whole group ends them.
    code = (
        "import os, signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = os.fork()\n"
        f"if child: f = open({str(pids)!r}, 'w'); f.write(f'{{os.getpid()}} {{child}}'); f.close()\n"
        "time.sleep(600)"
    )
    failed, _ = run({"round_ended": python(code)}, ENDED, timeout=1.0)
    assert [each.reason for each in failed] == ["took longer than 1 s and was ended"]
    left = [int(pid) for pid in pids.read_text().split()]
    assert len(left) == 2
    asyncio.run(until(lambda: all(gone(pid) for pid in left)))


def test_a_hook_over_its_time_may_end_itself_on_sigterm() -> None:
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *a: (print('put down', flush=True), sys.exit(0)))\n"
        "print('up', flush=True)\ntime.sleep(600)"
    )
    failed, notes = run({"round_ended": python(code)}, ENDED, timeout=1.0)
    assert notes[-1] == "round_ended: put down"
    assert failed[0].reason == "took longer than 1 s and was ended: put down"


def test_a_child_left_behind_does_not_hold_the_queue(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    # The child keeps the output open, as a program put into the background does.
    code = (
        "import os, time\nchild = os.fork()\n"
        f"if child: open({str(pid)!r}, 'w').write(str(child)); print('left it'); os._exit(0)\n"
        "time.sleep(600)"
    )
    begin = time.monotonic()
    try:
        failed, _ = run({"round_ended": python(code)}, ENDED, timeout=15.0)
        assert not failed
        assert time.monotonic() - begin < 10
        assert not gone(int(pid.read_text()))
    finally:
        os.kill(int(pid.read_text()), 9)


def test_s54_output_is_capped_and_read_to_its_end() -> None:
    shout = "for n in range(40): print('x' * 10_000)"
    failed, notes = run({"round_ended": python(shout)}, ENDED)
    assert not failed  # a closed pipe would have ended it
    assert sum(len(note) for note in notes) < OUTPUT_BYTES + 1000
    assert notes[-1] == "round_ended: (its output is longer; the rest is not kept)"


def test_what_waits_is_bounded_and_what_is_skipped_is_said(tmp_path: Path) -> None:
    go = tmp_path / "go"
    go.touch()
    failed, notes = run({"link_down": ("echo", "ran")}, *(down(str(n)) for n in range(QUEUED + 5)))
    assert len(notes) == QUEUED
    assert "100 events wait" in failed[0].reason and "5 events were skipped" in failed[1].reason
    assert len(failed) == 2


def test_a_failing_hook_on_hook_failed_does_not_start_itself_again() -> None:
    emitted: list[Event] = []

    async def main() -> None:
        def collect(event: Event) -> None:
            emitted.append(event)
            hooks.observe(Stamped(AT, event))

        hooks = Hooks(Section(commands={"hook_failed": ("false",)}), collect, base=BASE)
        collect(HookFailed(hook="round.ended", command="x", reason="y"))
        await until(lambda: len(emitted) > 1)
        await hooks.close()

    asyncio.run(main())
    assert len(emitted) == 2


def test_close_lets_what_waits_finish() -> None:
    _, notes = run({"agent_stopping": ("echo", "bye")}, AgentStopping(reason="x"))
    assert notes == ["agent_stopping: bye"]


def test_close_ends_what_does_not_finish(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    code = f"import os, time\nopen({str(pid)!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)"

    async def during(hooks: Hooks) -> None:
        await until(lambda: pid.exists() and pid.read_text() != "")

    failed, _ = run({"round_ended": python(code)}, ENDED, during=during, close_seconds=0.1)
    assert [each.reason for each in failed] == ["was ended because the agent stops"]
    assert gone(int(pid.read_text()))


def test_a_closed_part_runs_nothing_more() -> None:
    async def main() -> list[str]:
        notes: list[str] = []
        hooks = Hooks(Section(commands={"round_ended": ("echo", "x")}), lambda event: None, note=notes.append)
        await hooks.close()
        hooks.observe(Stamped(AT, ENDED))
        await asyncio.sleep(0)
        return notes

    assert asyncio.run(main()) == []


def test_a_reload_counts_from_the_next_command_on() -> None:
    async def main() -> list[str]:
        notes: list[str] = []
        hooks = Hooks(Section(), lambda event: None, note=notes.append, base=BASE)
        hooks.reconfigure(Section(commands={"message_stored": ("echo", "new")}))
        hooks.observe(Stamped(AT, MessageStored(message="m", mailbox="alice", file="f", bytes=1)))
        await hooks.close()
        return notes

    assert asyncio.run(main()) == ["message_stored: new"]


@pytest.mark.parametrize("value", [True, False])
def test_booleans_are_words(value: bool) -> None:
    from siteagent.events import SessionClosed

    event = SessionClosed(
        session="s", provider=None, round=None, peer="192.0.2.1", messages=0, bytes=0, wire_bytes=0, seconds=0,
        clean=value, reason="",
    )  # fmt: skip
    assert environment(event, BASE)["SITEAGENT_CLEAN"] == ("true" if value else "false")
