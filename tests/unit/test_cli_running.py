"""`cli.running`: the user that a command runs as, its log, its signals."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from siteagent.cli.context import Context
from siteagent.cli.main import main
from siteagent.cli.running import become_owner, imports_as_owner, log_writer, signals
from siteagent.config import files
from siteagent.config.sections import LogFormat, LogLevel
from siteagent.errors import PermissionProblem
from tests.site import STARTED, bring, free_port, played, provider, write

ROOT = Path(__file__).resolve().parent.parent.parent
NOBODY = 65534
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: chown and setuid")


@pytest.fixture(autouse=True)
def own_umask() -> Iterator[None]:
    """Commands set it for the whole process."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A directory that other users can reach: pytest's own are for their owner alone."""
    with tempfile.TemporaryDirectory(prefix="siteagent-test-") as name:
        place = Path(name)
        place.chmod(0o755)
        yield place


def as_a_child(work: Callable[[], int]) -> int:
    """Runs `work` in a copy of this process, which may give root up. What it imports is there: Python may be root's."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = work()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def owners(directory: Path) -> dict[str, int]:
    return {str(path.relative_to(directory)): path.stat().st_uid for path in directory.rglob("*")}


@root_only
def test_root_goes_on_as_the_owner_of_the_state_directory_and_leaves_no_file_of_its_own(reachable: Path) -> None:
    port = free_port()
    (tmp := reachable / "as-root").mkdir()
    with played(STARTED) as isp:
        write(tmp, provider(port=isp.port))
        assert main(["--config", str(tmp / "siteagent.toml"), "ask"]) == 0  # everything is imported now
    with played(STARTED, then=lambda: bring(port, "one")) as isp:
        path = write(reachable, provider(port=isp.port, first_connection_seconds=5), listen=[f"127.0.0.1:{port}"])
        for folder in ("state", "mail"):
            (reachable / folder).mkdir(exist_ok=True)
            os.chown(reachable / folder, NOBODY, NOBODY)
        assert as_a_child(lambda: main(["--config", str(path), "ask"])) == 0
    found = owners(reachable / "state") | owners(reachable / "mail")
    assert found and set(found.values()) == {NOBODY}, found
    assert any(name.startswith("alice/new/") for name in found)


def test_a_program_that_the_owner_cannot_read_is_a_matter_of_permission(tmp_path: Path) -> None:
    with (
        pytest.raises(PermissionProblem, match="may not read the program"),
        imports_as_owner(program=tmp_path / "none"),
    ):
        raise ImportError("No module named 'shlex'")


def test_a_module_that_is_missing_for_everybody_is_a_bug() -> None:
    with pytest.raises(ImportError), imports_as_owner():
        raise ImportError("No module named 'shlex'")


@root_only
def test_root_has_bound_a_low_port_before_it_gives_itself_up(reachable: Path) -> None:
    path = write(reachable, provider(port=1), listen=["127.0.0.1:0"])
    (reachable / "state").mkdir()
    os.chown(reachable / "state", NOBODY, NOBODY)
    program = (
        "import os, sys\nfrom pathlib import Path\n"
        "from siteagent.cli.running import become_owner\nfrom siteagent.config import files\n"
        "(own,) = become_owner(files.load(Path(sys.argv[1])))\n"
        "print(os.geteuid(), own.getsockname()[0], become_owner(files.load(Path(sys.argv[1]))))\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, timeout=20)
    assert done.stdout.split() == [str(NOBODY), "127.0.0.1", "[]"], done.stderr


def test_who_owns_the_state_directory_binds_nothing_ahead(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        path = write(tmp_path, provider(port=1))
        (tmp_path / "state").mkdir()
        assert become_owner(files.load(path)) == []
        (tmp_path / "new").touch(mode=0o666)
        assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o600, "what it writes is nobody else's"
    finally:
        os.umask(before)


# --- the log ----------------------------------------------------------------------------------------------------------


def logged(context: Context, tmp_path: Path, *, reload_to: tuple[LogFormat, LogLevel] | None = None) -> str:
    configuration = files.load(write(tmp_path, provider(port=1), more='[log]\nlevel = "warning"\n'))
    stream = io.StringIO()
    log = log_writer(context, configuration, stream=stream)
    if reload_to is not None:
        log.reconfigure(format=reload_to[0], level=reload_to[1])
    from datetime import UTC, datetime

    from siteagent.events import Severity

    for severity in (Severity.DEBUG, Severity.INFO, Severity.WARNING):
        log.note(datetime(2026, 11, 22, tzinfo=UTC), severity.value, severity=severity)
    return stream.getvalue()


def test_the_configuration_says_what_is_logged(tmp_path: Path) -> None:
    assert len(logged(Context(), tmp_path).splitlines()) == 1


def test_verbose_logs_everything_and_quiet_what_went_wrong(tmp_path: Path) -> None:
    assert len(logged(Context(verbose=True), tmp_path).splitlines()) == 3
    assert len(logged(Context(quiet=True), tmp_path).splitlines()) == 1


def test_log_format_on_the_command_line_wins(tmp_path: Path) -> None:
    assert logged(Context(log_format="json"), tmp_path).startswith("{")


def test_a_reload_changes_what_the_command_line_left_open(tmp_path: Path) -> None:
    text = logged(Context(), tmp_path, reload_to=(LogFormat.JSON, LogLevel.DEBUG))
    assert text.startswith("{") and len(text.splitlines()) == 3


def test_what_the_command_line_said_outlives_a_reload(tmp_path: Path) -> None:
    text = logged(Context(verbose=True, log_format="json"), tmp_path, reload_to=(LogFormat.TEXT, LogLevel.ERROR))
    assert text.startswith("{") and len(text.splitlines()) == 3


# --- signals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_each_signal_asks_to_stop_and_none_kills(number: signal.Signals) -> None:
    told: list[str] = []

    async def scene() -> None:
        with signals(stop=told.append):
            for _ in range(2):
                os.kill(os.getpid(), number)
                await asyncio.sleep(0.02)

    asyncio.run(scene())
    assert told == [number.name] * 2


def test_sighup_reloads() -> None:
    told: list[str] = []

    async def scene() -> None:
        with signals(stop=told.append, reload=lambda: told.append("reload")):
            os.kill(os.getpid(), signal.SIGHUP)
            await asyncio.sleep(0.02)

    asyncio.run(scene())
    assert told == ["reload"]


def test_afterwards_ctrl_c_is_python_s_again() -> None:
    async def scene() -> None:
        with signals(stop=lambda why: None):
            pass

    asyncio.run(scene())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_without_signals_of_the_loop_the_handlers_are_set_by_hand_and_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows."""
    told: list[str] = []

    async def scene() -> None:
        def refuses(*arguments: object) -> None:
            raise NotImplementedError

        monkeypatch.setattr(asyncio.get_running_loop(), "add_signal_handler", refuses, raising=False)
        before = signal.getsignal(signal.SIGTERM)
        with signals(stop=told.append):
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(0.02)
        assert signal.getsignal(signal.SIGTERM) is before

    asyncio.run(scene())
    assert told == ["SIGTERM"]


def test_what_was_imported_is_out_of_the_garbage_collectors_way() -> None:
    program = (
        "import gc\nfrom siteagent.__main__ import main\n"
        "from siteagent.cli.running import imports_as_owner\n"
        "with imports_as_owner():\n"
        "    assert not gc.isenabled()\n"
        "    import siteagent.agent.parts\n"
        "print(gc.isenabled(), gc.get_freeze_count() > 20_000)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "True True\n", done.stderr


def test_garbage_that_grew_old_is_found_however_much_was_imported() -> None:
    program = (
        "import collections, gc\nfrom siteagent.__main__ import main\n"
        "from siteagent.cli.running import imports_as_owner\n"
        "with imports_as_owner():\n"
        "    import siteagent.agent.parts\n"
        "class Transport:\n"
        "    def __init__(self): self.itself = self\n"
        "sessions = collections.deque(maxlen=100)\n"
        "before = gc.get_stats()[2]['collections']\n"
        "for _ in range(3000):\n"
        "    sessions.append(Transport())\n"
        "    for _ in range(40): Transport()\n"
        "print(gc.get_stats()[2]['collections'] - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert int(done.stdout) >= 1, done.stderr


def test_a_running_agent_loads_nothing_that_only_people_need() -> None:
    people = {"click", "rich", "dns", "tempfile", "shutil"}
    program = "import sys, siteagent.agent.parts\n" + f"print(sorted({people} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stdout + done.stderr
