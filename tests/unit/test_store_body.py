"""Content on its way into the spool: what is kept, where it goes, what becomes of it when something fails."""

import asyncio
import errno
import hashlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from siteagent.store.body import IN_MEMORY_BYTES, Body, BodyWriter, Placement, SpoolFailed, SpoolFull
from tests.faulty import FaultyDisk
from tests.letters import LARGE, content, files


class Place:
    """Two directories that a body may go to: a Maildir's tmp, and beside the database."""

    def __init__(self, path: Path) -> None:
        self.tmp, self.bodies = path / "tmp", path / "bodies"
        self.tmp.mkdir()
        self.bodies.mkdir()
        self.disk = FaultyDisk()
        self.executor = ThreadPoolExecutor(2)

    def writer(self) -> BodyWriter:
        placements = [Placement(self.tmp, b"Head: 1\n", 0o660), Placement(self.bodies, b"", 0o600)]
        return BodyWriter(disk=self.disk, executor=self.executor, name="m1", placements=lambda: placements)

    def settle(self) -> None:
        self.executor.shutdown(wait=True)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.settle()


async def write(writer: BodyWriter, data: bytes, part: int = 65_536) -> Body:
    for start in range(0, len(data), part):
        writer.write(data[start : start + part])
    return await writer.finish()


def bare_line_ends(data: bytes) -> int:
    return sum(1 for i, byte in enumerate(data) if byte == 10 and data[i - 1 : i] != b"\r")


def test_a_small_body_stays_in_memory(place: Place) -> None:
    data = content(IN_MEMORY_BYTES)
    body = asyncio.run(write(place.writer(), data))
    assert (body.data, body.file, body.size) == (data, None, len(data))
    assert place.disk.effects == []


def test_a_body_without_a_byte_is_a_body(place: Place) -> None:
    assert asyncio.run(place.writer().finish()).data == b""


def test_a_large_body_stands_whole_in_the_mailbox_behind_our_header_lines(place: Place) -> None:
    data = content(LARGE)
    body = asyncio.run(write(place.writer(), data))
    assert body.file == place.tmp / "m1"
    assert body.file.read_bytes() == b"Head: 1\n" + data
    assert (body.head, body.size, body.data) == (8, len(data), None)
    assert body.file.stat().st_mode & 0o777 == 0o660


def test_s26_a_large_body_is_synced_and_then_its_directory(place: Place) -> None:
    asyncio.run(write(place.writer(), content(LARGE)))
    done = [operation for operation, _ in place.disk.effects if operation not in ("open_folder", "create")]
    while done[:2] == ["write", "write"]:
        done.pop(0)
    assert done == ["write", "sync_file", "sync_folder", "close"]


@given(parts=st.lists(st.binary(max_size=5) | st.sampled_from([b"\r", b"\n", b"\r\n", b""]), max_size=30))
def test_line_ends_and_digest_are_those_of_the_whole_however_it_is_cut(parts: list[bytes]) -> None:
    async def run() -> Body:
        writer = BodyWriter(disk=FaultyDisk(), executor=ThreadPoolExecutor(1), name="m", placements=list)
        for part in parts:
            writer.write(part)
        return await writer.finish()

    body, data = asyncio.run(run()), b"".join(parts)
    assert (body.bare, body.digest, body.size) == (bare_line_ends(data), hashlib.sha256(data).digest(), len(data))


@pytest.mark.parametrize("part", [1, 7, 65_536, 262_143, LARGE + 5])
def test_line_ends_and_digest_of_a_large_body_are_right_however_it_is_cut(tmp_path: Path, part: int) -> None:
    place = Place(tmp_path)
    data = (b"x\r\n\n\r\r\n" * 100_001)[: LARGE if part > 1 else IN_MEMORY_BYTES + 3]
    body = asyncio.run(write(place.writer(), data, part))
    place.settle()
    assert (body.bare, body.digest) == (bare_line_ends(data), hashlib.sha256(data).digest())
    assert body.file is not None and body.file.read_bytes() == b"Head: 1\n" + data


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
@pytest.mark.parametrize(
    ("operation", "at"), [("open_folder", 1), ("create", 1), ("write", 1), ("write", 2), ("write", 3)]
)
def test_s29_a_mailbox_that_takes_no_file_does_not_turn_its_mail_away(
    place: Place, operation: str, at: int, number: int
) -> None:
    place.disk.fail(operation, at=at, errno=number, where="tmp")
    data = content(LARGE)
    body = asyncio.run(write(place.writer(), data))
    assert files(place.bodies) == {"m1": data}
    assert files(place.tmp) == {}
    assert (body.file, body.head, body.digest) == (place.bodies / "m1", 0, hashlib.sha256(data).digest())


FULL_EVERYWHERE = [("create", 1), ("write", 1), ("write", 2)]


@pytest.mark.parametrize(("operation", "at"), FULL_EVERYWHERE)
@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.ENOSPC, SpoolFull), (errno.EDQUOT, SpoolFull), (errno.EFBIG, SpoolFull), (errno.EIO, SpoolFailed),
     (errno.EROFS, SpoolFailed), (errno.EMFILE, SpoolFailed)],
)  # fmt: skip
def test_s29_where_nothing_takes_it_nothing_is_left(
    place: Place, operation: str, at: int, number: int, kind: type[Exception]
) -> None:
    place.disk.fail(operation, at=at, errno=number, times=99)
    with pytest.raises(SpoolFailed) as caught:
        asyncio.run(write(place.writer(), content(LARGE)))
    assert type(caught.value) is kind
    assert files(place.tmp) == files(place.bodies) == {}


@pytest.mark.parametrize("operation", ["sync_file", "sync_folder"])
def test_s28_a_failed_sync_condemns_the_file(place: Place, operation: str) -> None:
    place.disk.fail(operation)
    with pytest.raises(SpoolFailed):
        asyncio.run(write(place.writer(), content(LARGE)))
    assert len(place.disk.of(operation)) == 1, "no second sync on it"
    assert files(place.tmp) == files(place.bodies) == {}


def test_the_next_body_works_when_the_disk_does(place: Place) -> None:
    place.disk.fail("sync_file")

    async def run() -> Body:
        with pytest.raises(SpoolFailed):
            await write(place.writer(), content(LARGE))
        return await write(place.writer(), content(LARGE))

    assert asyncio.run(run()).size == LARGE


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="/proc")
@pytest.mark.parametrize("operation", ["create", "write", "sync_file", "sync_folder", "none"])
def test_no_descriptor_is_left_open(place: Place, operation: str) -> None:
    async def run() -> None:
        for _ in range(2):  # the first opens the loop's and the executor's own
            place.disk.fail(operation, times=99)
            before = open_descriptors()
            for _ in range(3):
                writer = place.writer()
                try:
                    body = await write(writer, content(LARGE))
                    assert body.file is not None
                    body.file.unlink()
                except SpoolFailed:
                    writer.discard()
            after = open_descriptors()
        assert after == before

    asyncio.run(run())


class Gate:
    """Holds a disk's operation up until it is opened."""

    def __init__(self, disk: FaultyDisk, operation: str) -> None:
        self.reached = threading.Event()
        self.open = threading.Event()
        self._operation = operation
        disk.before = self._before

    def _before(self, operation: str, place: str) -> None:
        if operation == self._operation:
            self.reached.set()
            assert self.open.wait(20)


def test_a_stalled_disk_holds_no_writer_up_and_tells_its_backlog(place: Place) -> None:
    gate = Gate(place.disk, "create")

    async def run() -> Body:
        writer = place.writer()
        drained = asyncio.Event()
        writer.on_drained = drained.set
        for _ in range(10):
            writer.write(content(100_000))
        assert writer.backlog == writer.size == 1_000_000
        assert not drained.is_set()
        gate.open.set()
        await asyncio.wait_for(drained.wait(), 20)
        assert writer.backlog < IN_MEMORY_BYTES
        return await writer.finish()

    assert asyncio.run(run()).size == 1_000_000


def test_a_reader_that_paused_is_always_woken(place: Place) -> None:
    """Whatever the sizes: once the backlog was over 512 KiB, `on_drained` comes."""

    async def run() -> None:
        for part in (1_000, 65_536, 262_143, 262_144, 262_145, 600_000):
            writer = place.writer()
            woken = asyncio.Event()
            writer.on_drained = woken.set
            for _ in range(5):
                while writer.backlog <= 524_288:
                    writer.write(bytes(part))
                woken.clear()
                await asyncio.wait_for(woken.wait(), 20)
            writer.discard()

    asyncio.run(run())


@pytest.mark.parametrize("operation", ["create", "write", "sync_file", "sync_folder"])
def test_s36_a_peer_that_drops_meanwhile_leaves_no_file(place: Place, operation: str) -> None:
    gate = Gate(place.disk, operation)

    async def run() -> None:
        writer = place.writer()
        task = asyncio.create_task(write(writer, content(LARGE)))
        await asyncio.to_thread(gate.reached.wait, 20)
        task.cancel()
        await asyncio.wait([task])
        writer.discard()
        gate.open.set()

    asyncio.run(run())
    place.settle()
    assert files(place.tmp) == files(place.bodies) == {}


def test_discard_after_finish_leaves_the_spools_file_alone(place: Place) -> None:
    async def run() -> None:
        writer = place.writer()
        await write(writer, content(LARGE))
        writer.discard()

    asyncio.run(run())
    place.settle()
    assert list(files(place.tmp)) == ["m1"]


def test_finish_lets_the_loop_run_when_the_last_job_was_done_before(place: Place) -> None:
    """The job is done, its callback is not: `finish` once waited for that without letting the loop run it."""

    async def scenario() -> Body:
        with ThreadPoolExecutor(1) as executor:
            placement = Placement(place.bodies, b"", 0o600)
            writer = BodyWriter(disk=place.disk, executor=executor, name="m1", placements=lambda: [placement])
            writer.write(content(LARGE))
            executor.submit(int).result()  # one thread: the job before this one is over
            await asyncio.sleep(0)  # and its future is set, in the same turn of the loop as what comes next
            return await writer.finish()

    assert asyncio.run(scenario()).size == LARGE


def test_discard_may_be_said_twice_and_nothing_is_written_after_it(place: Place) -> None:
    async def run() -> None:
        writer = place.writer()
        writer.write(content(LARGE))
        writer.discard()
        writer.discard()
        writer.write(content(LARGE))

    asyncio.run(run())
    place.settle()
    assert files(place.tmp) == files(place.bodies) == {}


def test_discard_works_when_the_spool_is_closed(place: Place) -> None:
    async def run() -> None:
        writer = place.writer()
        writer.write(content(LARGE))
        await asyncio.to_thread(place.settle)
        writer.discard()

    asyncio.run(run())


def test_an_error_of_ours_in_the_thread_is_no_hole_in_the_message(place: Place) -> None:
    def explode(operation: str, path: str) -> None:
        if operation == "write":
            raise MemoryError

    place.disk.before = explode
    with pytest.raises(SpoolFailed):
        asyncio.run(write(place.writer(), content(LARGE)))
    assert files(place.tmp) == files(place.bodies) == {}


def test_small_pieces_cost_no_more_memory_than_their_bytes(place: Place) -> None:
    import tracemalloc

    async def run(put: Callable[[BodyWriter], None]) -> int:
        writer = place.writer()
        tracemalloc.start()
        put(writer)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    def bit_by_bit(writer: BodyWriter) -> None:
        for number in range(120_000):
            writer.write(b"%x\n" % (number & 15))

    assert asyncio.run(run(bit_by_bit)) < 700_000
