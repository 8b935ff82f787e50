"""The hook directory: hints by name, nothing followed, nothing believed, whatever lies in it."""

from __future__ import annotations

import asyncio
import os
import stat
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from siteagent.errors import CannotCreate, PermissionProblem, UsageError
from siteagent.link.backend import Unavailable
from siteagent.link.hookdir import ANY, MAX_ENTRIES, HookDirectory, leave_hint, opened

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX modes, symlinks and FIFOs")
root = pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs root, to give files away")


def hooks(directory: Path, notes: list[str] | None = None) -> HookDirectory:
    """A source on `directory` (made) that has seen what is there already."""
    directory.mkdir(mode=0o755, exist_ok=True)
    source = HookDirectory(directory, rescan_seconds=0.2, note=(notes if notes is not None else []).append)
    source.scan()
    return source


def test_a_hint_is_told_once_by_the_name_of_its_interface(tmp_path: Path) -> None:
    source = hooks(tmp_path / "hints")
    leave_hint(tmp_path / "hints", "ppp0", "up")
    assert source.scan() == ["ppp0"]
    assert source.scan() == []


def test_a_hint_over_an_older_one_is_a_new_hint(tmp_path: Path) -> None:
    source = hooks(tmp_path / "hints")
    for _ in range(3):
        leave_hint(tmp_path / "hints", "ppp0", "up")
        assert source.scan() == ["ppp0"]


def test_a_hint_without_an_interface_is_a_hint_about_any(tmp_path: Path) -> None:
    source = hooks(tmp_path / "hints")
    leave_hint(tmp_path / "hints", "", "up")
    assert source.scan() == [ANY]


def test_what_was_there_before_the_start_is_no_hint(tmp_path: Path) -> None:
    directory = tmp_path / "hints"
    directory.mkdir(mode=0o755)
    leave_hint(directory, "ppp0", "up")
    assert HookDirectory(directory, rescan_seconds=1, note=lambda text: None).scan() == []


def test_a_touched_file_is_a_hint(tmp_path: Path) -> None:
    directory = tmp_path / "hints"
    directory.mkdir(mode=0o755)
    (directory / "eth0").touch()
    source = hooks(directory)
    os.utime(directory / "eth0", ns=(1, 1))
    assert source.scan() == ["eth0"]


def test_leaving_a_hint_leaves_one_file_and_no_temporary_one(tmp_path: Path) -> None:
    leave_hint(tmp_path, "ppp0", "up")
    assert [path.name for path in tmp_path.iterdir()] == ["ppp0"]


@pytest.mark.parametrize("interface", ["../x", "a/b", ".hidden", "a\nb", "a b", "x" * 65, "é", "\0"])
def test_a_hint_for_what_cannot_be_an_interface_is_refused(tmp_path: Path, interface: str) -> None:
    with pytest.raises(UsageError):
        leave_hint(tmp_path, interface, "up")
    assert list(tmp_path.iterdir()) == []


def test_a_hint_into_a_missing_directory_says_so(tmp_path: Path) -> None:
    with pytest.raises(CannotCreate, match="no such directory"):
        leave_hint(tmp_path / "none", "ppp0", "up")


@root
def test_a_hint_where_one_may_not_write_is_a_permission_problem() -> None:
    # Not tmp_path: nobody else may walk through that.
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o755)
        os.seteuid(65534)
        try:
            with pytest.raises(PermissionProblem):
                leave_hint(Path(made), "ppp0", "up")
        finally:
            os.seteuid(0)
        assert os.listdir(made) == []


@posix
@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o775, 0o757])
def test_s53_a_directory_that_others_can_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    directory = tmp_path / "hints"
    directory.mkdir()
    directory.chmod(mode)
    with pytest.raises(Unavailable, match="others can write"), opened(directory):
        pass


@root
def test_s53_a_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "hints"
    directory.mkdir(mode=0o755)
    os.chown(directory, 65534, 65534)
    with pytest.raises(Unavailable, match="another user"), opened(directory):
        pass


@posix
def test_s53_a_directory_that_is_a_symlink_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o755)
    (tmp_path / "hints").symlink_to(tmp_path / "real")
    with pytest.raises(Unavailable), opened(tmp_path / "hints"):
        pass


@posix
def test_s53_symlinks_fifos_directories_and_odd_names_are_no_hints_and_stay(tmp_path: Path) -> None:
    directory = tmp_path / "hints"
    source = hooks(directory)
    secret = tmp_path / "secret"
    secret.write_text("x")
    (directory / "link0").symlink_to(secret)
    (directory / "dangling").symlink_to(tmp_path / "nowhere")
    os.mkfifo(directory / "fifo0")
    (directory / "dir0").mkdir()
    (directory / "new\nline").touch()
    (directory / ".tmp").touch()
    (directory / "esc\x1b[2J").touch()
    (directory / os.fsdecode(b"\xff\xfe")).touch()
    (directory / "eth0").touch()
    began = time.monotonic()
    assert source.scan() == ["eth0"]
    assert time.monotonic() - began < 1
    assert len(list(directory.iterdir())) == 9
    assert secret.read_text() == "x"


def test_s53_a_hundred_thousand_files_take_bounded_time_and_are_said(tmp_path: Path) -> None:
    notes: list[str] = []
    directory = tmp_path / "hints"
    source = hooks(directory, notes)
    for number in range(100_000):
        os.close(os.open(directory / f"f{number}", os.O_CREAT | os.O_WRONLY))
    began = time.monotonic()
    assert source.scan() in ([ANY], [])
    for _ in range(20):
        source.scan()
    seconds = (time.monotonic() - began) / 21
    assert seconds < 0.1
    assert notes and str(MAX_ENTRIES) in notes[0]
    os.utime(directory, ns=(1, 1))
    assert source.scan() == [ANY]
    assert source.scan() == []


def test_a_missing_directory_is_made_where_its_parent_is_ours(tmp_path: Path) -> None:
    with opened(tmp_path / "hints"):
        pass
    assert (tmp_path / "hints").is_dir()
    if os.name == "posix":
        assert (tmp_path / "hints").stat().st_mode & 0o022 == 0


@root
def test_a_missing_directory_is_not_made_in_a_place_of_others(tmp_path: Path) -> None:
    os.chown(tmp_path, 65534, 65534)
    with pytest.raises(Unavailable), opened(tmp_path / "hints"):
        pass
    assert not (tmp_path / "hints").exists()


# --- the source as it runs --------------------------------------------------------------------------------------------


def run_with(source: HookDirectory, play: Callable[[asyncio.Queue[str]], Awaitable[None]]) -> None:
    async def main() -> None:
        pokes: asyncio.Queue[str] = asyncio.Queue()
        task = asyncio.create_task(source.run(pokes.put_nowait))
        try:
            async with asyncio.timeout(20):
                await play(pokes)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())


async def watching(source: HookDirectory) -> None:
    while source._observer is None:
        await asyncio.sleep(0.005)
    await asyncio.sleep(0.1)


def test_a_hint_is_heard_at_once_and_not_at_the_next_tick(tmp_path: Path) -> None:
    directory = tmp_path / "hints"
    source = HookDirectory(directory, rescan_seconds=1000, note=lambda text: None)

    async def play(pokes: asyncio.Queue[str]) -> None:
        await watching(source)
        for interface in ("ppp0", "eth0", "ppp0"):
            leave_hint(directory, interface, "up")
            assert await pokes.get() == f"hook:{interface}"

    run_with(source, play)


def test_reading_the_hints_does_not_wake_us(tmp_path: Path) -> None:
    directory = tmp_path / "hints"
    scans = 0

    class Counting(HookDirectory):
        def scan(self) -> list[str]:
            nonlocal scans
            scans += 1
            return super().scan()

    source = Counting(directory, rescan_seconds=1000, note=lambda text: None)

    async def play(pokes: asyncio.Queue[str]) -> None:
        await watching(source)
        leave_hint(directory, "ppp0", "up")
        await pokes.get()
        for _ in range(10):
            (directory / "ppp0").read_text()
            list(directory.iterdir())
            await asyncio.sleep(0.05)

    run_with(source, play)
    assert scans <= 5


def test_without_a_watcher_the_tick_finds_the_hint(tmp_path: Path) -> None:
    directory = tmp_path / "hints"

    class Deaf(HookDirectory):
        async def _keep_watching(self, bell: asyncio.Event) -> None:
            return

    source = Deaf(directory, rescan_seconds=0.05, note=lambda text: None)

    async def play(pokes: asyncio.Queue[str]) -> None:
        await asyncio.sleep(0.1)
        leave_hint(directory, "ppp0", "up")
        assert await pokes.get() == "hook:ppp0"

    run_with(source, play)


def test_a_directory_exchanged_for_another_is_watched_again(tmp_path: Path) -> None:
    directory = tmp_path / "hints"
    source = HookDirectory(directory, rescan_seconds=0.1, note=lambda text: None)

    async def play(pokes: asyncio.Queue[str]) -> None:
        await watching(source)
        first = source._observer
        directory.rename(tmp_path / "old")
        directory.mkdir(mode=0o755)
        while source._observer in (None, first):
            await asyncio.sleep(0.01)
        leave_hint(directory, "ppp0", "up")
        assert await pokes.get() == "hook:ppp0"

    run_with(source, play)


@posix
def test_s53_a_directory_opened_to_others_while_we_run_is_no_longer_heard_until_it_is_safe(tmp_path: Path) -> None:
    directory = tmp_path / "hints"
    notes: list[str] = []
    source = HookDirectory(directory, rescan_seconds=0.05, note=notes.append)

    async def play(pokes: asyncio.Queue[str]) -> None:
        await watching(source)
        directory.chmod(0o777)
        leave_hint(directory, "evil0", "up")
        while not notes:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        assert pokes.empty()
        directory.chmod(0o755)
        leave_hint(directory, "ppp0", "up")
        assert await pokes.get() in ("hook:ppp0", "hook:evil0")

    run_with(source, play)
    assert "chmod go-w" in notes[0]


def test_stopping_ends_the_watchers_threads(tmp_path: Path) -> None:
    import threading

    before = set(threading.enumerate())
    source = HookDirectory(tmp_path / "hints", rescan_seconds=1, note=lambda text: None)

    async def play(pokes: asyncio.Queue[str]) -> None:
        await watching(source)

    run_with(source, play)
    left = [thread.name for thread in threading.enumerate() if thread not in before and thread.is_alive()]
    # watchdog keeps one reader of inotify for the life of the process.
    assert [name for name in left if "notify" not in name.lower()] == []


def test_watchdog_is_not_imported_before_the_source_starts() -> None:
    import subprocess

    code = "import sys, siteagent.link.watch, siteagent.link.hookdir; sys.exit('watchdog' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_a_directory_that_is_made_is_for_everybody_to_read_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        with opened(tmp_path / "hints"):
            assert stat.S_IMODE((tmp_path / "hints").stat().st_mode) == 0o755
    finally:
        os.umask(before)
