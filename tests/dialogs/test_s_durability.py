"""S27 to S29, S31 to S35, S37: mail that was acknowledged survives kills and disks that fail.

Here are the spool and the filer alone, as fast as they go. S25 and S26, and the whole agent under kills and errors of
its system calls, are in tests/faults.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import resource
import selectors
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from siteagent.delivery.filer import Filer
from siteagent.delivery.maildir import Maildir
from siteagent.store.spool import Spool, SpoolFailed, SpoolFull, SpoolReader
from tests import storm
from tests.faults import strace
from tests.faults.disk import Ext4, tool
from tests.letters import HOST, LARGE, bodies, content, envelope, files, left_behind, maildir, put

ROOT = Path(__file__).resolve().parent.parent.parent
STRACE = pytest.mark.tools("strace")


def long_form(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--long"))


# --- a process that is ended ------------------------------------------------------------------------------------------


@dataclass
class Heard:
    """What a storm said: the answers its senders got."""

    acknowledged: set[int] = field(default_factory=set)
    refused: dict[int, str] = field(default_factory=dict)
    done: bool = False
    ready: bool = False

    @property
    def highest(self) -> int:
        return max((*self.acknowledged, *self.refused), default=-1)

    def take(self, line: str) -> None:
        match line.split():
            case ["ready"]:
                self.ready = True
            case ["done"]:
                self.done = True
            case ["ack", number]:
                self.acknowledged.add(int(number))
            case ["nak", number, kind]:
                self.refused[int(number)] = kind


class Process:
    """A storm at work."""

    def __init__(self, state: Path, mail: Path, *options: str, under: Sequence[str] = (), seed: str = "s") -> None:
        words = [*under, sys.executable, "-m", "tests.storm", str(state), str(mail), "--seed", seed, *options]
        self._process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, start_new_session=True
        )
        self.heard = Heard()
        self._rest = b""

    def listen(self, seconds: float, *, until: str = "done") -> Heard:
        """Takes in what it says, for so long, or until it says `until`, or ends."""
        assert self._process.stdout is not None
        end = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while (left := end - time.monotonic()) > 0 and not getattr(self.heard, until):
                if selector.select(left) and not self._read():
                    break
        return self.heard

    def _read(self) -> bool:
        assert self._process.stdout is not None
        data = os.read(self._process.stdout.fileno(), 65_536)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self.heard.take(line.decode())
        return bool(data)

    def end(self, number: int = signal.SIGKILL) -> Heard:
        """Ends it and takes in the answers that were on their way. Those were given."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, number)
        while self._read():
            pass
        assert self._process.stderr is not None and self._process.stdout is not None
        self.errors = self._process.stderr.read().decode()
        self._process.wait(20)
        self._process.stdout.close()
        self._process.stderr.close()
        return self.heard


def run(
    state: Path, mail: Path, *options: str, under: Sequence[str] = (), seed: str = "s", seconds: float = 60
) -> Heard:
    """A storm that is let come to its end."""
    process = Process(state, mail, *options, under=under, seed=seed)
    try:
        process.listen(60)
    finally:
        heard = process.end()
    assert heard.done, process.errors
    return heard


def recover(state: Path, mail: Path, heard: Heard, *, seed: str = "s") -> list[str]:
    """Starts again, then lets the provider send everything again. Returns what is wrong with the mailboxes."""
    run(state, mail, "--count", "0", seed=seed)
    wrong = problems(mail, heard, seed=seed, again=False)
    again = run(state, mail, "--again", str(heard.highest + 4), seed=seed)
    assert again.refused == {}, "the next message works"
    wrong += problems(mail, heard, seed=seed, again=True)
    left = left_behind(state, mail / "alice", mail / "bob")
    return wrong + [f"{name} was left behind" for name in left]


def problems(mail: Path, heard: Heard, *, seed: str, again: bool) -> list[str]:
    """Lost, doubled or broken messages: what was acknowledged must be there once, and with `again` everything."""
    wrong: list[str] = []
    for name in ("alice", "bob"):
        numbers: Counter[int] = Counter()
        for text in bodies_of(mail / name):
            found = re.match(rb"Subject: %b-(\d+)\n" % seed.encode(), text)
            if found is None or storm.message(seed, int(found[1])) != text:
                wrong.append(f"{name}: a broken file of {len(text)} octets")
            else:
                numbers[int(found[1])] += 1
        wanted = range(heard.highest + 4) if again else heard.acknowledged
        lost = [number for number in wanted if name in storm.targets(number) and not numbers[number]]
        twice = [number for number, copies in numbers.items() if copies > 1]
        wrong += [f"{name}: {number} is lost" for number in lost] + [f"{name}: {number} came twice" for number in twice]
    return wrong


def bodies_of(path: Path) -> list[bytes]:
    found = [*files(path / "new").values(), *files(path / "cur").values()]
    return [data.partition(b"\tnow\n")[2] for data in found]


# --- S27: kill -9 -----------------------------------------------------------------------------------------------------


def test_s27_killed_at_any_moment_nothing_is_lost_doubled_or_half(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    for number in range(100 if long_form(request) else 4):
        chance = random.Random(number)
        state, mail = tmp_path / f"state{number}", tmp_path / f"mail{number}"
        mail.mkdir()
        together = Heard()
        for start in range(3):  # killed again while it recovers, too
            process = Process(state, mail, *([] if start == 0 else ["--again", str(together.highest + 200)]))
            try:
                process.listen(20, until="ready")
                process.listen(chance.uniform(0, 0.3))
            finally:
                heard = process.end()
            together.acknowledged |= heard.acknowledged
            assert whole(mail) == []
        assert recover(state, mail, together) == []


def whole(mail: Path, seed: str = "s") -> list[str]:
    """The files of new/ that are not whole."""
    return [
        f"{name}: {len(text)} octets"
        for name in ("alice", "bob")
        for text in bodies_of(mail / name)
        if (found := re.match(rb"Subject: \w+-(\d+)\n", text)) is None or storm.message(seed, int(found[1])) != text
    ]


def test_s27_a_reader_that_moves_and_deletes_meanwhile_gets_nothing_twice(tmp_path: Path) -> None:
    """Mail that a reader took away between its publication and the kill does not come back."""
    state, mail = tmp_path / "state", tmp_path / "mail"
    mail.mkdir()
    taken: Counter[bytes] = Counter()
    highest = 0
    for start in range(8):
        process = Process(state, mail, *([] if start == 0 else ["--again", str(highest + 100)]))
        process.listen(20, until="ready")
        end = time.monotonic() + 0.15
        while time.monotonic() < end:
            process.listen(0.01)
            taken.update(taken_to_cur(mail / "alice"))
        highest = max(highest, process.end().highest)
        taken.update(taken_to_cur(mail / "alice"))  # of what was published last the spool has not heard
    run(state, mail, "--again", str(highest + 1))
    taken.update(files_in_new(mail / "alice"))
    assert [text[:30] for text, times in taken.items() if times > 1] == []
    assert len(taken) >= highest + 1


def taken_to_cur(path: Path) -> list[bytes]:
    """What a reader moves out of ``new/``, where nothing tells any more that it was published."""
    taken = files(path / "new")
    for name in taken:
        (path / "new" / name).rename(path / "cur" / f"{name}:2,S")
    return [data.partition(b"\tnow\n")[2] for data in taken.values()]


def files_in_new(path: Path) -> list[bytes]:
    return [data.partition(b"\tnow\n")[2] for data in files(path / "new").values()]


# --- S28: errors of the disk ------------------------------------------------------------------------------------------


@STRACE
def test_s28_a_file_whose_sync_failed_is_never_synced_again(tmp_path: Path) -> None:
    state, mail, log = tmp_path / "state", tmp_path / "mail", tmp_path / "log"
    mail.mkdir()
    run(state, mail, "--count", "0")
    under = ["strace", "-f", "-y", "-qq", "-o", str(log), "-e", "trace=fsync,close"]
    # Counted in each thread: with five large messages, one thread at least comes to the file of its second.
    heard = run(state, mail, "--count", "40", under=[*under, "-e", "inject=fsync:error=EIO:when=3..30"])
    failed: set[str] = set()  # open files
    condemned: set[str] = set()  # large messages' files, of which there is but one each
    for call in strace.calls(log):
        descriptor = re.match(r"\d+<[^>]*/tmp/1795[^>]*>", call.arguments)
        if descriptor is None:
            continue
        if call.name == "close":
            failed.discard(descriptor[0])
            continue
        name = descriptor[0].partition("<")[2]
        assert descriptor[0] not in failed, "an open file was synced again"
        assert name not in condemned, "a large message's file was given a second chance"
        if call.failed:
            failed.add(descriptor[0])
            condemned |= {name} if ",S=" not in name else set()
    assert condemned, "the fault struck no large message"
    assert recover(state, mail, heard) == []


# --- S29, S31: no room, read-only, vanished ---------------------------------------------------------------------------


@contextlib.contextmanager
def tmpfs(path: Path, options: str) -> Iterator[Path]:
    path.mkdir(parents=True, exist_ok=True)
    tool("mount", "-t", "tmpfs", "-o", options, "none", str(path))
    try:
        yield path
    finally:
        tool("umount", "-l", str(path), check=False)


class Office:
    """The spool and the filer as the agent joins them, in this process."""

    def __init__(self, state: Path, **boxes: Path) -> None:
        self.state = state
        self.boxes: dict[str, Maildir] = {name: maildir(path, name=name) for name, path in boxes.items()}

    async def __aenter__(self) -> Office:
        self.state.mkdir(exist_ok=True)
        self.spool = Spool(self.state)
        self.filer = Filer(self.spool, self.boxes, emit=lambda event: None, retry_seconds=(0.05,))
        self.spool.on_committed, self.spool.place = self.filer.accept, self.filer.place
        owed = self.spool.open()
        for box in self.boxes.values():
            box.prepare()
        self.filer.accept(owed)
        return self

    async def __aexit__(self, *failure: object) -> None:
        await self.filer.close()
        await self.spool.close()

    async def take(self, *recipients: str, data: bytes, session: str = "s1") -> str:
        """The class of the reply that the sender gets."""
        letter = envelope(*(f"{name}@office.example" for name in recipients), session=session)
        try:
            await put(self.spool, letter, data)
        except SpoolFull:
            return "452"
        except SpoolFailed:
            return "451"
        return "250"

    async def filed(self) -> None:
        async with asyncio.timeout(20):
            while self.filer.view().messages:
                await asyncio.sleep(0.01)

    async def reason(self) -> str:
        async with asyncio.timeout(20):
            while not (why := self.filer.view().reason):
                await asyncio.sleep(0.01)
        return why


def fill(place: Path) -> Path:
    """A file that takes all the room there is."""
    filler = place / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        for size in (65_536, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))
    return filler


def fill_inodes(place: Path) -> list[Path]:
    made: list[Path] = []
    with contextlib.suppress(OSError):
        while True:
            made.append(place / f"filler{len(made)}")
            made[-1].touch()
    return made


@pytest.mark.mounts
@pytest.mark.parametrize("size", [3000, LARGE])
def test_s29_a_full_spool_is_a_452_keeps_nothing_and_the_next_works_when_there_is_room(
    tmp_path: Path, size: int
) -> None:
    async def work() -> None:
        async with Office(state, alice=tmp_path / "alice") as office:
            assert await office.take("alice", data=content(size, "before")) == "250"
            await office.filed()
            filler = fill(state)
            answers = [await office.take("alice", data=content(200_000, f"{n}")) for n in range(30)]
            assert answers[-1] == "452", answers
            assert set(answers) == {"250", "452"} or set(answers) == {"452"}
            assert await office.take("alice", data=content(size, "during")) in ("452", "250")
            filler.unlink()
            assert await office.take("alice", data=content(size, "after"), session="s2") == "250"
            await office.filed()

    with tmpfs(tmp_path / "state", "size=4m") as state:
        asyncio.run(work())
        assert SpoolReader(state).waiting() == []
        assert left_behind(state, tmp_path / "alice") == []
    found = bodies(tmp_path / "alice")
    assert content(size, "after") in found
    assert len(found) == len(set(found))


@pytest.mark.mounts
def test_s29_no_inode_for_a_large_message_is_a_452(tmp_path: Path) -> None:
    async def work() -> None:
        async with Office(state) as office:  # without a mailbox: it goes beside the database
            fillers = fill_inodes(state)
            assert await office.take("alice", data=content(LARGE)) == "452"
            assert left_behind(state) == []
            for filler in fillers:
                filler.unlink(missing_ok=True)
            assert await office.take("alice", data=content(LARGE)) == "250"

    with tmpfs(tmp_path / "state", "size=8m,nr_inodes=30") as state:
        asyncio.run(work())


@contextlib.contextmanager
def file_size_limit(octets: int) -> Iterator[None]:
    """EFBIG past `octets`; Python ignores the signal that comes with it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (octets, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [100_000, LARGE])
def test_s29_a_file_size_limit_is_a_452_and_the_next_works_without_it(tmp_path: Path, size: int) -> None:
    async def work() -> None:
        async with Office(tmp_path / "state", alice=tmp_path / "alice") as office:
            with file_size_limit(90_000):
                assert await office.take("alice", data=content(size), session="s1") == "452"
                assert left_behind(tmp_path / "state", tmp_path / "alice") == []
            assert await office.take("alice", data=content(size), session="s2") == "250"
            await office.filed()

    asyncio.run(work())
    assert bodies(tmp_path / "alice") == [content(size)]


@pytest.mark.mounts
@pytest.mark.parametrize("what", ["room", "inodes"])
@pytest.mark.parametrize("size", [3000, LARGE])
def test_s29_a_full_maildir_waits_in_the_spool_leaves_tmp_clean_and_holds_up_nobody(
    tmp_path: Path, what: str, size: int
) -> None:
    async def work() -> None:
        async with Office(tmp_path / "state", alice=full / "alice", bob=tmp_path / "bob") as office:
            fillers = [fill(full)] if what == "room" else fill_inodes(full)
            assert await office.take("alice", data=content(size)) == "250"
            assert await office.take("bob", data=content(size, "bob's")) == "250"
            assert "No space left" in await office.reason()
            async with asyncio.timeout(20):
                while not bodies(tmp_path / "bob"):
                    await asyncio.sleep(0.01)
            assert files(full / "alice" / "tmp") == files(full / "alice" / "new") == {}
            async with asyncio.timeout(20):
                while office.filer.view().messages > 1:
                    await asyncio.sleep(0.01)
            for filler in fillers:
                filler.unlink(missing_ok=True)
            await office.filed()

    with tmpfs(tmp_path / "full", "size=2m,nr_inodes=40") as full:
        asyncio.run(work())
        assert bodies(full / "alice") == [content(size)]
        assert left_behind(tmp_path / "state", full / "alice") == []


@pytest.mark.mounts
@pytest.mark.parametrize("size", [3000, LARGE])
def test_s31_a_read_only_maildir_waits_in_the_spool(tmp_path: Path, size: int) -> None:
    async def work() -> None:
        async with Office(tmp_path / "state", alice=place / "alice") as office:
            tool("mount", "-o", "remount,ro", str(place))
            assert await office.take("alice", data=content(size)) == "250"
            assert "Read-only" in await office.reason()
            tool("mount", "-o", "remount,rw", str(place))
            await office.filed()

    with tmpfs(tmp_path / "place", "size=4m") as place:
        asyncio.run(work())
        assert bodies(place / "alice") == [content(size)]
        assert left_behind(tmp_path / "state", place / "alice") == []


@pytest.mark.mounts
@pytest.mark.tools("xfs_io", "mkfs.ext4", "losetup")
@pytest.mark.parametrize("size", [3000, LARGE])
def test_s31_a_spool_whose_disk_died_is_a_451_and_works_again_when_it_is_back(tmp_path: Path, size: int) -> None:
    disk = Ext4(tmp_path, "disk")

    async def work() -> None:
        async with Office(disk.path / "state", alice=tmp_path / "alice") as office:
            assert await office.take("alice", data=content(size, "before")) == "250"
            await office.filed()
            disk.cut()
            for number in range(3):
                assert await office.take("alice", data=content(size, f"{number}")) == "451"
            tool("umount", "-l", str(disk.path))
            assert await office.take("alice", data=content(size, "gone")) == "451"
            assert list(disk.path.iterdir()) == [], "nothing is put into an empty mount point"
            disk.restore()
            assert await office.take("alice", data=content(size, "after"), session="s2") == "250"
            await office.filed()

    try:
        asyncio.run(work())
        assert set(bodies(tmp_path / "alice")) == {content(size, "before"), content(size, "after")}
    finally:
        disk.remove()


@pytest.mark.mounts
def test_s31_a_maildir_whose_disk_vanished_waits_until_it_is_back(tmp_path: Path) -> None:
    async def work() -> None:
        async with Office(tmp_path / "state", alice=place / "alice") as office:
            assert await office.take("alice", data=content(3000, "before")) == "250"
            await office.filed()
            tool("mount", "--move", str(place), str(elsewhere))
            for size in (3000, LARGE):
                assert await office.take("alice", data=content(size, "during")) == "250"
            assert "No such file" in await office.reason()
            assert list(place.iterdir()) == []
            tool("mount", "--move", str(elsewhere), str(place))
            await office.filed()

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    tool("mount", "--bind", str(tmp_path), str(tmp_path))
    try:
        tool("mount", "--make-private", str(tmp_path))
        with tmpfs(tmp_path / "place", "size=8m") as place:
            asyncio.run(work())
            assert len(bodies(place / "alice")) == 3
    finally:
        tool("umount", "-l", str(tmp_path), check=False)


# --- S32, S33: nobody gets a second copy ------------------------------------------------------------------------------


def test_s32_several_recipients_are_taken_for_all_or_none_and_the_retry_gives_nobody_two(tmp_path: Path) -> None:
    boxes = {name: tmp_path / name for name in ("alice", "bob", "carol")}

    async def work() -> None:
        async with Office(tmp_path / "state", **boxes) as office:
            with file_size_limit(90_000):
                assert await office.take(*boxes, data=content(150_000), session="s1") == "452"
            await asyncio.sleep(0)
            assert office.filer.view().messages == 0
            for session in ("s2", "s3"):
                assert await office.take(*boxes, data=content(150_000), session=session) == "250"
            await office.filed()

    asyncio.run(work())
    for path in boxes.values():
        assert bodies(path) == [content(150_000)]


def test_s33_a_repeated_transaction_is_filed_once_over_kills_and_in_other_groups(tmp_path: Path) -> None:
    boxes = {name: tmp_path / name for name in ("alice", "bob", "carol")}

    async def work(*groups: tuple[str, ...]) -> None:
        async with Office(tmp_path / "state", **boxes) as office:
            for number, group in enumerate(groups):
                assert await office.take(*group, data=b"same\n", session=f"{time.monotonic_ns()}.{number}") == "250"
            assert await office.take("alice", data=b"Message-ID: <1>\n\n%d" % len(groups), session="x") == "250"
            await office.filed()

    asyncio.run(work(("alice", "bob")))
    asyncio.run(work(("bob", "carol"), ("carol", "alice")))
    asyncio.run(work(("alice",), ("bob",), ("carol",)))
    for path in boxes.values():
        assert bodies(path).count(b"same\n") == 1
    assert len(bodies(boxes["alice"])) == 4, "other bytes under the same Message-ID are another message"


# --- S34, S35, S37 ----------------------------------------------------------------------------------------------------


def test_s34_a_start_removes_what_a_killed_one_left_in_tmp_and_nothing_else(tmp_path: Path) -> None:
    state, mail = tmp_path / "state", tmp_path / "mail"
    mail.mkdir()
    process = Process(state, mail)
    process.listen(20, until="ready")
    process.listen(0.3)
    heard = process.end()
    dead = f"1795000000.M000001P999999Q1Raaaaaaaa.{HOST}"
    others = {"1795000000.M000001P999999Q1Raaaaaaaa.elsewhere": b"x", "dovecot.tmp": b"x", f"x{dead}": b"x"}
    for name, data in {dead: b"half", f"{dead},S=4,W=5": b"half", **others}.items():
        (mail / "alice" / "tmp" / name).write_bytes(data)
    run(state, mail, "--count", "0")
    assert files(mail / "alice" / "tmp") == others
    assert problems(mail, heard, seed="s", again=False) == []


IDS = """
import sys
from tests.dialogs.test_s_durability import agent_ids
print("\\n".join(agent_ids(int(sys.argv[1]))))
"""


def agent_ids(count: int) -> list[str]:
    """The unique parts of `count` file names, as a fresh agent makes them."""
    import io

    from siteagent.agent.parts import Agent
    from siteagent.config import load
    from siteagent.config.sections import Configuration
    from siteagent.logs import LogWriter

    text = 'hostname = "mail.office.example"\nstate_directory = "/nowhere"\n[[provider]]\nhost = "p.example"\n'
    text += 'nodes = ["x"]\n[[mailbox]]\naddresses = ["a@x.example"]\nmaildir = "/nowhere/a"\n'
    configuration = load.parse(text, path="x.toml", kind=Configuration)
    assert isinstance(configuration, Configuration)
    agent = Agent(configuration, log=LogWriter(io.StringIO()))
    return [agent._new_id() for _ in range(count)]


def test_s35_names_stay_unique_over_restarts_and_two_processes_at_one_moment() -> None:
    def start() -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, "-c", IDS, "2000"], stdout=subprocess.PIPE, text=True, cwd=ROOT)

    started = [start() for _ in range(3)]
    names = [name for process in started for name in process.communicate(timeout=60)[0].split()]
    names += agent_ids(2000) + agent_ids(2000)  # a restart that gets its number again
    assert len(names) == len(set(names)) == 10_000
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", name) for name in names)


def test_s35_names_stay_unique_when_the_clock_stands_still_or_is_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([10**18, 10**18, 10**18 - 10**15] * 4000)
    monkeypatch.setattr(time, "time_ns", lambda: next(moments))
    names = agent_ids(3000) + agent_ids(3000)
    assert len(set(names)) == 6000


AGENT = """
import sys
from pathlib import Path
from siteagent.store import lock
held = lock.acquire(Path(sys.argv[1]), purpose="run the agent")
print("held", flush=True)
sys.stdin.read()
"""


def test_s37_the_second_agent_ends_within_two_seconds_and_names_the_first(tmp_path: Path) -> None:
    words = [sys.executable, "-c", AGENT, str(tmp_path)]
    first = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert first.stdout is not None
    assert first.stdout.readline() == "held\n"
    begun = time.monotonic()
    second = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert second.returncode != 0
    assert time.monotonic() - begun < 2
    assert f"process {first.pid} already works with" in second.stderr
    first.kill()
    first.communicate()
    assert subprocess.run(words, capture_output=True, input="", text=True, cwd=ROOT).stdout == "held\n"
