"""What makes a file survive: whole writes, names that exist once, links refused, directories synced."""

import errno
import os
from pathlib import Path

import pytest
from siteagent.store.durable import Disk, make_directories, no_room, remove_quietly, replace_file
from tests.faulty import FaultyDisk

POSIX = pytest.mark.skipif(os.name != "posix", reason="POSIX")


def test_a_write_goes_on_after_short_ones(tmp_path: Path) -> None:
    disk = Disk()
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    data = [bytes([n]) * 40_000 for n in range(5)]
    import threading

    taken = bytearray()

    def reader() -> None:
        while len(taken) < 200_000:
            try:
                taken.extend(os.read(read_end, 1000))
            except BlockingIOError:
                continue

    thread = threading.Thread(target=reader)
    thread.start()
    disk.write(write_end, data)
    thread.join()
    os.close(read_end)
    os.close(write_end)
    assert bytes(taken) == b"".join(data)


def test_more_buffers_than_one_call_takes_are_all_written(tmp_path: Path) -> None:
    disk = Disk()
    folder = disk.open_folder(tmp_path)
    handle = disk.create(folder, "many", 0o600)
    disk.write(handle, [b"x", b""] * 3000)
    disk.close(handle)
    disk.close_folder(folder)
    assert (tmp_path / "many").stat().st_size == 3000


def test_create_never_takes_an_existing_file(tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"old")
    disk = Disk()
    folder = disk.open_folder(tmp_path)
    with pytest.raises(FileExistsError):
        disk.create(folder, "there", 0o600)
    disk.close_folder(folder)
    assert (tmp_path / "there").read_bytes() == b"old"


@POSIX
def test_create_does_not_follow_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    disk = Disk()
    folder = disk.open_folder(tmp_path)
    with pytest.raises(FileExistsError):
        disk.create(folder, "link", 0o600)
    disk.close_folder(folder)
    assert not (tmp_path / "elsewhere").exists()


@POSIX
def test_a_readers_file_has_its_mode_whatever_the_umask(tmp_path: Path) -> None:
    disk = Disk()
    folder = disk.open_folder(tmp_path)
    before = os.umask(0o077)
    try:
        disk.close(disk.create(folder, "file", 0o660))
    finally:
        os.umask(before)
    disk.close_folder(folder)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o660


@POSIX
def test_s50_a_link_to_a_directory_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(OSError) as caught:
        Disk().open_folder(tmp_path / "link")
    assert caught.value.errno in (errno.ELOOP, errno.ENOTDIR)


@POSIX
def test_s50_a_foreign_directory_is_not_opened(tmp_path: Path) -> None:
    with pytest.raises(PermissionError, match="somebody else"):
        Disk().open_folder(tmp_path, owners={os.getuid() + 1})


@POSIX
def test_a_refused_directory_costs_no_descriptor(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(PermissionError):
            Disk().open_folder(tmp_path, owners=())
    assert len(os.listdir("/proc/self/fd")) == before


def test_publish_moves_in_one_step(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    (tmp_path / "new").mkdir()
    (tmp_path / "tmp" / "a").write_bytes(b"whole")
    disk = Disk()
    source, target = disk.open_folder(tmp_path / "tmp"), disk.open_folder(tmp_path / "new")
    disk.publish(source, "a", target, "b")
    disk.close_folder(source)
    disk.close_folder(target)
    assert not (tmp_path / "tmp" / "a").exists()
    assert (tmp_path / "new" / "b").read_bytes() == b"whole"


def test_every_directory_that_is_made_is_synced_into_its_parent(tmp_path: Path) -> None:
    disk = FaultyDisk()
    make_directories(tmp_path / "a" / "b" / "c", mode=0o700, disk=disk)
    assert disk.of("sync_folder") == [
        ("sync_folder", str(tmp_path)),
        ("sync_folder", str(tmp_path / "a")),
        ("sync_folder", str(tmp_path / "a" / "b")),
    ]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_s29_no_room_knows_its_kinds(number: int) -> None:
    assert no_room(OSError(number, ""))


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS, errno.EMFILE, errno.EACCES])
def test_other_errors_are_not_want_of_room(number: int) -> None:
    assert not no_room(OSError(number, ""))


def test_replace_file_leaves_the_old_one_where_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    replace_file(path, b"old", mode=0o644)
    (tmp_path / f".status.json.{os.getpid()}").mkdir()
    with pytest.raises(OSError):
        replace_file(path, b"new", mode=0o644)
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("durable", [False, True])
def test_replace_file_leaves_nothing_beside(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "status.json"
    for text in (b"one", b"two"):
        replace_file(path, text, mode=0o644, durable=durable)
    assert [entry.name for entry in tmp_path.iterdir()] == ["status.json"]
    assert path.read_bytes() == b"two"
    assert os.name != "posix" or path.stat().st_mode & 0o777 == 0o644


def test_free_bytes_of_a_file_system_is_what_we_may_use(tmp_path: Path) -> None:
    figures = os.statvfs(tmp_path)
    assert Disk().free_bytes(tmp_path) <= figures.f_bfree * figures.f_frsize


def test_remove_quietly_says_nothing_of_a_file_that_is_gone(tmp_path: Path) -> None:
    remove_quietly(tmp_path / "gone")
