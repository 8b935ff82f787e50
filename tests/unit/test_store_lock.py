"""One agent a state directory, for exactly as long as its process lives."""

import contextlib
import errno
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from siteagent.errors import CannotCreate, ExitCode, PermissionProblem
from siteagent.store import lock

HOLDER = """
import sys
from pathlib import Path
from siteagent.store import lock
held = lock.acquire(Path(sys.argv[1]), purpose="run the agent", work=sys.argv[2])
print("held", flush=True)
sys.stdin.read()
held.release()
"""


@contextmanager
def another_process(directory: Path, work: str = lock.RUN) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(directory), work], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdin is not None
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.stdin.close()
        process.wait(10)
        process.stdout.close()


def test_s37_the_second_agent_is_told_who_the_first_is_within_two_seconds(tmp_path: Path) -> None:
    with another_process(tmp_path) as first:
        begun = time.monotonic()
        with pytest.raises(CannotCreate, match=f"process {first.pid} already works with {tmp_path}") as caught:
            lock.acquire(tmp_path, purpose="run the agent")
        assert time.monotonic() - begun < 2
        assert caught.value.exit_code == ExitCode.CANNOT_CREATE
        assert caught.value.fix


def test_s37_a_kill_leaves_no_stale_lock(tmp_path: Path) -> None:
    with another_process(tmp_path) as first:
        first.kill()
        first.wait(10)
        assert (tmp_path / "lock").read_text().startswith(str(first.pid))
        assert lock.lock_holder(tmp_path) is None
        lock.acquire(tmp_path, purpose="run the agent").release()


def test_s37_a_lock_file_from_before_a_reboot_does_not_block(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("1 run\n")
    held = lock.acquire(tmp_path, purpose="run the agent")
    assert (tmp_path / "lock").read_text() == f"{os.getpid()} run\n"
    held.release()


def test_the_holder_is_known_to_others_while_it_lives(tmp_path: Path) -> None:
    assert lock.lock_holder(tmp_path) is None
    with another_process(tmp_path, lock.ASK) as first:
        assert lock.lock_holder(tmp_path) == first.pid
        assert lock.holder_work(tmp_path) == lock.ASK
    assert lock.lock_holder(tmp_path) is None


def test_looking_at_the_lock_turns_no_agent_away(tmp_path: Path) -> None:
    import threading

    (tmp_path / "lock").write_bytes(b"")
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(0.0005):
            lock.lock_holder(tmp_path)

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            lock.acquire(tmp_path, purpose="run the agent").release()
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_a_released_lock_is_free_and_empty(tmp_path: Path) -> None:
    held = lock.acquire(tmp_path, purpose="run the agent")
    held.release()
    held.release()
    assert (tmp_path / "lock").read_bytes() == b""
    lock.acquire(tmp_path, purpose="run the agent").release()


@contextmanager
def nobody() -> Iterator[None]:
    """Root as another user for a moment."""
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A state directory that everybody may look into, as the service's: pytest's own are closed."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as made:
        Path(made).chmod(0o755)
        yield Path(made)


AS_ROOT = pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() != 0, reason="root becomes another user for a moment"
)


@AS_ROOT
def test_nobody_else_can_take_the_lock_and_so_keep_the_agent_from_starting(open_place: Path) -> None:
    """X5: a shared lock needs no more than a descriptor, and would stand in the way of ours."""
    import fcntl

    lock.acquire(open_place, purpose="run the agent").release()
    with nobody():
        for name in os.listdir(open_place):
            with contextlib.suppress(PermissionError):
                fcntl.flock(os.open(open_place / name, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)
    lock.acquire(open_place, purpose="run the agent").release()
    held = lock.acquire(open_place, purpose="run the agent")
    assert (open_place / "lock").stat().st_mode & 0o777 == 0o600
    held.release()


@AS_ROOT
def test_who_may_not_look_at_the_lock_is_told_of_the_holder_while_it_lives(open_place: Path) -> None:
    with nobody():
        assert lock.lock_holder(open_place) is None
    with another_process(open_place, lock.ASK) as first:
        with nobody():
            assert lock.lock_holder(open_place) == first.pid
            assert lock.holder_work(open_place) == lock.ASK
        first.kill()
        first.wait(10)
        with nobody():
            assert lock.lock_holder(open_place) is None, "what it told is older than its death"
    told = open_place / "pid"
    told.write_text(f"{os.getpid()} run 1\n")  # its number was given to another process since
    with nobody():
        assert lock.lock_holder(open_place) is None
    lock.acquire(open_place, purpose="run the agent").release()
    assert not told.exists()


@pytest.mark.skipif(os.name != "posix", reason="POSIX")
def test_a_child_process_does_not_inherit_the_lock(tmp_path: Path) -> None:
    held = lock.acquire(tmp_path, purpose="run the agent")
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False)
    held.release()
    try:
        lock.acquire(tmp_path, purpose="run the agent").release()
    finally:
        child.communicate(b"\n")


@pytest.mark.skipif(os.name != "posix", reason="POSIX")
def test_a_foreign_state_directory_is_a_problem_of_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    child = os.fork()
    if child == 0:  # root may write anywhere: so as somebody else
        status = 1
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setuid(65534)
            lock.acquire(tmp_path, purpose="run the agent")
        except PermissionProblem:
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_missing_state_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(CannotCreate, match="no/lock"):
        lock.acquire(tmp_path / "no", purpose="run the agent")


@pytest.mark.skipif(os.name != "posix", reason="flock")
def test_a_file_system_without_locks_is_not_called_another_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    def refuse(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(CannotCreate, match="No locks available"):
        lock.acquire(tmp_path, purpose="run the agent")
