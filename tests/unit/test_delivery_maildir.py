"""The Maildir writer: what readers see, in what order it became durable, and what is left when something fails."""

import dataclasses
import errno
import mailbox as stdlib_mailbox
import os
import re
import threading
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from siteagent.delivery.maildir import Maildir, header_lines
from siteagent.delivery.target import Delivered
from siteagent.store.spool import Filing
from tests.faulty import FaultyDisk
from tests.letters import HOST, RECEIVED, RUN, bodies, content, envelope, files, maildir, new_id

TEXT = b"Subject: hello\n\nworld\n"
HEAD = b"Return-Path: <a@x.test>\nDelivered-To: alice@office.example\n" + RECEIVED


class Desk:
    """One Maildir on a real disk that fails where told."""

    def __init__(self, path: Path) -> None:
        self.path = path / "mail" / "alice"
        self.path.parent.mkdir()
        self.disk = FaultyDisk()
        self.maildir = self.fresh()

    def fresh(self, **options: Any) -> Maildir:
        self.maildir = maildir(self.path, disk=self.disk, **options)
        return self.maildir

    def deliver(self, *filings: Filing) -> list[Delivered]:
        return self.maildir.deliver(filings, no_load)

    def new(self) -> dict[str, bytes]:
        return files(self.path / "new")

    def tmp(self) -> dict[str, bytes]:
        return files(self.path / "tmp")


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def no_load(filing: Filing) -> bytes:
    raise AssertionError("the content was handed over")


def filing(data: bytes | None = TEXT, **changes: Any) -> Filing:
    text = data or b""
    values: dict[str, Any] = {
        "id": 1,
        "message": new_id(),
        "target": "alice",
        "addresses": ("alice@office.example",),
        "session": "s1",
        "provider": "isp",
        "round": "r1",
        "sender": "a@x.test",
        "received": RECEIVED,
        "smtputf8": False,
        "eight_bit": False,
        "accepted": datetime.now(UTC),
        "size": len(text),
        "bare": text.count(b"\n") - text.count(b"\r\n"),
        "data": data,
        "file": None,
        "head": 0,
    }
    return Filing(**{**values, **changes})


def spooled(desk: Desk, data: bytes = TEXT, **changes: Any) -> Filing:
    """A large message: its file stands in tmp/ already, our header lines on top."""
    desk.maildir.prepare()
    made = filing(data, **changes)
    file = desk.path / "tmp" / made.message
    file.write_bytes(HEAD + data)
    return dataclasses.replace(made, data=None, file=file, head=len(HEAD))


def recovered(one: Filing, **changes: Any) -> Filing:
    """As a restart hands it out."""
    return dataclasses.replace(one, data=None, recovered=True, **changes)


def reasons(results: Sequence[Delivered]) -> list[str | None]:
    return [result.reason for result in results]


# --- what readers see -------------------------------------------------------------------------------------------------


def test_the_file_is_what_came_with_three_fields_on_top(desk: Desk) -> None:
    (result,) = desk.deliver(filing())
    assert desk.new() == {result.file: HEAD + TEXT}
    assert result.bytes == len(HEAD + TEXT)


@pytest.mark.parametrize(
    "data", [TEXT, b"", b"no line end", b"\r\n", b"a\r\nb\nc\r\r\n", b"\n\r", content(300_000)]
)  # fmt: skip
@pytest.mark.parametrize("large", [False, True])
def test_its_name_tells_both_sizes_right(desk: Desk, data: bytes, large: bool) -> None:
    (result,) = desk.deliver(spooled(desk, data) if large else filing(data))
    whole = desk.new()[result.file]
    sizes = re.fullmatch(r"[A-Za-z0-9._-]+,S=(\d+),W=(\d+)", result.file)
    assert sizes is not None
    assert int(sizes[1]) == len(whole)
    assert int(sizes[2]) == len(re.sub(rb"(?<!\r)\n", b"\r\n", whole))


def test_no_octet_from_the_wire_is_in_the_name(desk: Desk) -> None:
    (result,) = desk.deliver(filing(sender="../../x\n@y", addresses=("../alice@office.example",)))
    assert re.fullmatch(r"[A-Za-z0-9.,_=-]+", result.file)
    assert list(desk.new()) == [result.file]


def test_two_addresses_of_one_mailbox_make_one_file_that_names_the_first(desk: Desk) -> None:
    desk.deliver(filing(addresses=("alice@office.example", "sales@office.example")))
    (data,) = desk.new().values()
    assert data.count(b"Delivered-To: ") == 1
    assert b"sales@" not in data


def test_the_null_sender_is_written_as_such(desk: Desk) -> None:
    desk.deliver(filing(sender=""))
    assert next(iter(desk.new().values())).startswith(b"Return-Path: <>\n")


def test_the_standard_library_reads_it(desk: Desk) -> None:
    desk.deliver(filing())
    (message,) = stdlib_mailbox.Maildir(desk.path)
    assert (message["Subject"], message["Delivered-To"]) == ("hello", "alice@office.example")


@pytest.mark.skipif(os.name != "posix", reason="POSIX")
@pytest.mark.parametrize(("reader", "mode"), [(None, 0o600), ("nobody", 0o660)])
def test_its_mode_is_for_the_reader_and_nobody_else(desk: Desk, reader: str | None, mode: int) -> None:
    desk.fresh(reader=reader)
    (result,) = desk.deliver(filing())
    assert (desk.path / "new" / result.file).stat().st_mode & 0o777 == mode


def test_a_reader_never_sees_a_part(desk: Desk) -> None:
    seen: list[bytes] = []
    stop = threading.Event()
    desk.maildir.prepare()

    def look() -> None:
        while not stop.is_set():
            for name in os.listdir(desk.path / "new"):
                seen.append((desk.path / "new" / name).read_bytes())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        for number in range(10):
            desk.deliver(*(filing(content(40_000, f"{number}.{n}")) for n in range(10)))
    finally:
        stop.set()
        thread.join()
    assert {len(data) for data in seen} <= {len(HEAD) + 40_000}


# --- the order that never changes -------------------------------------------------------------------------------------


def test_s26_written_synced_published_and_the_directory_synced_last(desk: Desk) -> None:
    desk.maildir.prepare()
    desk.disk.effects.clear()
    desk.deliver(filing())
    done = [operation for operation, _ in desk.disk.effects if operation != "open_folder"]
    assert done == ["create", "write", "sync_file", "close", "publish", "sync_folder"]
    assert desk.disk.effects[-1] == ("sync_folder", str(desk.path / "new"))


def test_s26_a_batch_is_written_whole_then_synced_each_then_published_and_shares_one_directory_sync(desk: Desk) -> None:
    desk.maildir.prepare()
    desk.disk.effects.clear()
    desk.deliver(*(filing() for _ in range(10)))
    done = [operation for operation, _ in desk.disk.of("write", "sync_file", "publish", "sync_folder")]
    assert done == ["write"] * 10 + ["sync_file"] * 10 + ["publish"] * 10 + ["sync_folder"]


def test_s26_a_large_message_is_one_rename(desk: Desk) -> None:
    one = spooled(desk)
    desk.disk.effects.clear()
    desk.deliver(one)
    done = [operation for operation, _ in desk.disk.effects if operation != "open_folder"]
    assert done == ["touch", "publish", "sync_folder"]
    assert list(desk.new().values()) == [HEAD + TEXT]
    assert desk.tmp() == {}


def test_s26_each_directory_that_is_made_is_synced_into_its_parent_before_anything_is_filed(desk: Desk) -> None:
    desk.deliver(filing())
    places = [place for _, place in desk.disk.of("sync_folder")]
    assert places.index(str(desk.path.parent)) < places.index(str(desk.path)) < places.index(str(desk.path / "new"))


def test_s26_directories_that_stood_already_are_synced_once_a_start(desk: Desk) -> None:
    desk.deliver(filing())
    desk.disk.effects.clear()
    desk.fresh()
    desk.deliver(filing())
    desk.deliver(filing())
    places = [place for _, place in desk.disk.of("sync_folder")]
    assert places.count(str(desk.path)) == places.count(str(desk.path.parent)) == 1


# --- failures ---------------------------------------------------------------------------------------------------------

ROOM = [errno.ENOSPC, errno.EDQUOT, errno.EFBIG]
OTHER = [errno.EIO, errno.EROFS, errno.EMFILE]


@pytest.mark.parametrize("number", [*ROOM, *OTHER])
@pytest.mark.parametrize("operation", ["create", "write", "sync_file", "close", "publish", "sync_folder"])
def test_s28_s29_a_fault_leaves_nothing_and_the_next_try_files_one(desk: Desk, operation: str, number: int) -> None:
    desk.maildir.prepare()
    desk.disk.fail(operation, errno=number)
    one = filing()
    (result,) = desk.deliver(one)
    assert result.reason is not None and os.strerror(number) in result.reason
    assert desk.new() == desk.tmp() == {}
    again = dataclasses.replace(one, tries=1, recovered=result.visible)
    assert reasons(desk.deliver(again)) == [None]
    assert list(desk.new().values()) == [HEAD + TEXT]
    assert desk.tmp() == {}


@pytest.mark.parametrize("operation", ["touch", "publish", "sync_folder"])
def test_s28_a_fault_never_costs_a_large_message_its_only_copy(desk: Desk, operation: str) -> None:
    one = spooled(desk)
    desk.disk.fail(operation)
    (result,) = desk.deliver(one)
    assert result.reason is not None
    assert list(desk.tmp().values()) == [HEAD + TEXT]
    assert desk.new() == {}
    again = dataclasses.replace(one, tries=1, recovered=result.visible)
    assert reasons(desk.deliver(again)) == [None]
    assert list(desk.new().values()) == [HEAD + TEXT]


@pytest.mark.parametrize("at", [1, 3, 5])
@pytest.mark.parametrize("operation", ["create", "write", "sync_file", "publish"])
def test_one_that_fails_costs_the_others_of_its_batch_nothing(desk: Desk, operation: str, at: int) -> None:
    desk.maildir.prepare()
    desk.disk.fail(operation, at=at)
    results = desk.deliver(*(filing() for _ in range(5)))
    assert [number for number, result in enumerate(results, 1) if result.reason] == [at]
    assert len(desk.new()) == 4
    assert desk.tmp() == {}


def test_s28_no_second_sync_on_a_file_that_failed_one(desk: Desk) -> None:
    desk.maildir.prepare()
    desk.disk.fail("sync_file")
    one = filing()
    desk.deliver(one)
    desk.deliver(dataclasses.replace(one, tries=1))
    operations = [operation for operation, _ in desk.disk.of("create", "sync_file")]
    assert operations == ["create", "sync_file", "create", "sync_file"]


def test_content_that_cannot_be_loaded_leaves_nothing(desk: Desk) -> None:
    from siteagent.store.spool import SpoolFailed

    def load(one: Filing) -> bytes:
        raise SpoolFailed("cannot read a message of the spool", "planted")

    assert reasons(desk.maildir.deliver([filing(None)], load)) == ["cannot read a message of the spool: planted"]
    assert desk.tmp() == desk.new() == {}


def test_a_bug_with_one_leaves_neither_file_nor_descriptor_and_costs_the_others_nothing(desk: Desk) -> None:
    def load(one: Filing) -> bytes:
        raise ZeroDivisionError

    desk.deliver(filing())
    before = len(os.listdir("/proc/self/fd"))
    assert reasons(desk.maildir.deliver([filing(), filing(None)], load)) == [None, "ZeroDivisionError: "]
    assert len(os.listdir("/proc/self/fd")) == before
    assert desk.tmp() == {}
    assert len(desk.new()) == 2


@pytest.mark.parametrize("operation", ["create", "write", "sync_file", "publish", "sync_folder", "open_folder"])
def test_no_descriptor_is_left_open(desk: Desk, operation: str) -> None:
    desk.maildir.prepare()
    desk.disk.fail(operation, times=999)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        desk.deliver(filing(), spooled(desk))
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_a_failed_removal_left_in_tmp_is_in_nobodys_way(desk: Desk) -> None:
    desk.maildir.prepare()
    one = filing()
    desk.disk.fail("sync_file").fail("remove")
    desk.deliver(one)
    assert len(desk.tmp()) == 1
    assert reasons(desk.deliver(dataclasses.replace(one, tries=1))) == [None]
    assert desk.tmp() == {}


# --- the place --------------------------------------------------------------------------------------------------------


def test_a_maildir_is_made_where_its_parent_is(desk: Desk) -> None:
    desk.maildir.prepare()
    assert sorted(os.listdir(desk.path)) == ["cur", "new", "tmp"]


def test_a_maildir_without_a_parent_waits_for_it(desk: Desk) -> None:
    desk.path.parent.rmdir()
    (result,) = desk.deliver(filing())
    assert result.reason is not None and "parent directory does not exist" in result.reason
    desk.path.parent.mkdir()
    assert reasons(desk.deliver(filing())) == [None]


def test_s31_a_maildir_that_vanished_is_not_made_again_in_its_empty_mount_point(desk: Desk) -> None:
    desk.deliver(filing())
    elsewhere = desk.path.rename(desk.path.parent.parent / "unmounted")
    (result,) = desk.deliver(one := filing())
    assert result.reason is not None
    assert not desk.path.exists()
    elsewhere.rename(desk.path)
    assert reasons(desk.deliver(dataclasses.replace(one, tries=1))) == [None]
    assert len(desk.new()) == 2


@pytest.mark.skipif(os.name != "posix", reason="POSIX")
@pytest.mark.parametrize("folder", ["new", "tmp"])
def test_s50_a_maildir_that_became_a_link_is_refused(desk: Desk, folder: str) -> None:
    desk.maildir.prepare()
    (desk.path / folder).rmdir()
    elsewhere = desk.path.parent / "elsewhere"
    elsewhere.mkdir()
    (desk.path / folder).symlink_to(elsewhere)
    (result,) = desk.deliver(filing())
    assert result.reason is not None
    assert list(elsewhere.iterdir()) == []


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="giving a link away takes root")
@pytest.mark.parametrize("above", [False, True])
def test_s50_a_maildir_that_its_reader_led_elsewhere_is_refused(desk: Desk, above: bool) -> None:
    """Its own new/ is ours there, as another mailbox's is: the owner alone would not tell."""
    desk.maildir.prepare()
    there = desk.path.parent if above else desk.path
    elsewhere = there.rename(there.with_name("elsewhere"))
    there.symlink_to(elsewhere)
    os.chown(there, 12345, 12345, follow_symlinks=False)
    (result,) = desk.deliver(one := filing())
    assert result.reason is not None and result.reason.startswith(f"{there}: a link that somebody else made")
    assert desk.new() == {}
    os.chown(there, 0, 0, follow_symlinks=False)  # the administrator's own is where the Maildir is meant to be
    assert reasons(desk.deliver(dataclasses.replace(one, tries=1))) == [None]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="giving a directory away takes root")
def test_s50_a_foreign_directory_is_refused(desk: Desk) -> None:
    desk.maildir.prepare()
    os.chown(desk.path / "new", 12345, 12345)
    (result,) = desk.deliver(filing())
    assert result.reason is not None and "somebody else" in result.reason
    assert desk.new() == {}


def test_a_large_message_is_placed_only_where_the_maildir_is_known_to_stand(desk: Desk) -> None:
    letter = envelope("alice@office.example")
    assert desk.maildir.place(letter) is None
    desk.maildir.prepare()
    placement = desk.maildir.place(letter)
    assert placement is not None
    assert placement.directory == desk.path / "tmp"
    assert placement.head == header_lines("a@x.test", "alice@office.example", RECEIVED)


def test_a_large_message_that_stands_elsewhere_is_copied_with_the_fields_of_its_own_mailbox(desk: Desk) -> None:
    elsewhere = desk.path.parent / "body"
    elsewhere.write_bytes(b"Head: 1\n" + content(600_000))
    one = filing(None, size=600_000, bare=content(600_000).count(b"\n"), file=elsewhere, head=8)
    assert reasons(desk.deliver(one)) == [None]
    assert list(desk.new().values()) == [HEAD + content(600_000)]
    assert elsewhere.exists(), "it is the spool's to remove"


# --- after a restart --------------------------------------------------------------------------------------------------


def test_s27_only_the_row_was_there(desk: Desk) -> None:
    one = recovered(filing())
    assert reasons(desk.maildir.deliver([one], lambda _: TEXT)) == [None]
    assert bodies(desk.path) == [TEXT]


def test_s27_it_was_half_written_in_tmp(desk: Desk) -> None:
    desk.maildir.prepare()
    one = filing()
    desk.disk.fail("sync_file").fail("remove")
    desk.deliver(one)
    (name,) = desk.tmp()
    (desk.path / "tmp" / name).write_bytes(b"Return-Pa")
    assert reasons(desk.maildir.deliver([recovered(one)], lambda _: TEXT)) == [None]
    assert bodies(desk.path) == [TEXT]
    assert desk.tmp() == {}


@pytest.mark.parametrize("large", [False, True])
def test_s27_it_was_published(desk: Desk, large: bool) -> None:
    one = spooled(desk) if large else filing()
    desk.deliver(one)
    before = desk.new()
    desk.disk.effects.clear()
    assert reasons(desk.deliver(recovered(one))) == [None]
    assert desk.new() == before
    assert ("sync_folder", str(desk.path / "new")) in desk.disk.effects, "its publication may not have been durable"


@pytest.mark.parametrize("added", [":2,", ":2,S", ":2,RSa", ",U=5:2,FS", ";2,S", "!2,S"])
@pytest.mark.parametrize("large", [False, True])
def test_s27_a_reader_moved_it_to_cur(desk: Desk, added: str, large: bool) -> None:
    one = spooled(desk) if large else filing()
    (result,) = desk.deliver(one)
    (desk.path / "new" / result.file).rename(desk.path / "cur" / (result.file + added))
    desk.disk.effects.clear()
    assert reasons(desk.deliver(recovered(one))) == [None]
    assert desk.new() == {}
    assert len(files(desk.path / "cur")) == 1
    assert ("sync_folder", str(desk.path / "cur")) in desk.disk.effects


def test_s27_a_reader_deleted_a_large_one_after_its_publication(desk: Desk) -> None:
    one = spooled(desk)
    (result,) = desk.deliver(one)
    (desk.path / "new" / result.file).unlink()
    desk.fresh()
    assert reasons(desk.deliver(recovered(one))) == [None]
    assert desk.new() == desk.tmp() == {}


def test_a_large_one_that_failed_before_and_is_gone_is_not_called_filed(desk: Desk) -> None:
    one = spooled(desk)
    assert one.file is not None
    one.file.unlink()
    (result,) = desk.deliver(recovered(one, tries=1))
    assert result.reason is not None and "No such file" in result.reason


def test_a_large_one_is_not_called_filed_where_the_whole_maildir_is_gone(desk: Desk) -> None:
    """The disk with the Maildir was not mounted at this start: the file is there when it is."""
    one = spooled(desk)
    elsewhere = desk.path.rename(desk.path.parent.parent / "unmounted")
    desk.fresh()
    (result,) = desk.deliver(recovered(one))
    assert result.reason is not None
    for folder in ("tmp", "new", "cur"):
        (desk.path / folder).rmdir()
    desk.path.rmdir()
    elsewhere.rename(desk.path)
    assert reasons(desk.deliver(recovered(one, tries=1))) == [None]
    assert list(desk.new().values()) == [HEAD + TEXT]


def test_a_large_one_that_a_cleaner_may_have_taken_is_not_called_filed(desk: Desk) -> None:
    one = spooled(desk, accepted=datetime.now(UTC) - timedelta(days=3))
    assert one.file is not None
    one.file.unlink()
    assert reasons(desk.deliver(recovered(one))) != [None]


def test_a_large_one_that_is_gone_within_one_run_is_not_called_filed(desk: Desk) -> None:
    one = spooled(desk)
    assert one.file is not None
    one.file.unlink()
    assert reasons(desk.deliver(one)) != [None]


def test_a_large_one_is_made_young_before_a_cleaner_calls_it_old(desk: Desk) -> None:
    one = spooled(desk)
    assert one.file is not None
    os.utime(one.file, (1, 1))
    desk.disk.fail("publish")
    desk.deliver(one)
    assert one.file.stat().st_mtime > 1


# --- the sweep --------------------------------------------------------------------------------------------------------


def sweep(desk: Desk, *, keep: Sequence[str] = (), alive: Sequence[int] = ()) -> list[str]:
    return desk.maildir.sweep(keep=keep, alive=lambda pid: pid in alive, host=HOST, run=RUN)


@pytest.mark.parametrize("sizes", ["", ",S=5,W=6"])
def test_s34_what_a_dead_process_of_ours_left_is_removed(desk: Desk, sizes: str) -> None:
    desk.maildir.prepare()
    name = new_id(pid=99, run="aaaaaaaa") + sizes
    (desk.path / "tmp" / name).write_bytes(b"x")
    assert sweep(desk) == [name]
    assert desk.tmp() == {}


def test_s34_a_living_process_keeps_its_files_until_they_are_old(desk: Desk) -> None:
    desk.maildir.prepare()
    name = new_id(pid=99, run="aaaaaaaa")
    path = desk.path / "tmp" / name
    path.write_bytes(b"x")
    assert sweep(desk, alive=[99]) == []
    age = path.stat().st_mtime - 35.9 * 3600
    os.utime(path, (age, age))
    assert sweep(desk, alive=[99]) == []
    os.utime(path, (age - 3600, age - 3600))
    assert sweep(desk, alive=[99]) == [name]


def test_s34_a_former_process_with_our_number_is_dead(desk: Desk) -> None:
    desk.maildir.prepare()
    name = new_id(pid=os.getpid(), run="aaaaaaaa")
    (desk.path / "tmp" / name).write_bytes(b"x")
    assert sweep(desk, alive=[os.getpid()]) == [name]


def test_s34_files_that_the_spool_needs_and_those_of_others_stay(desk: Desk) -> None:
    desk.maildir.prepare()
    owed = new_id(pid=99, run="aaaaaaaa")
    others = {
        owed,
        new_id(),
        new_id(pid=99, run="aaaaaaaa").replace(HOST, "elsewhere"),
        "1795000000.12345_0.mail.office.example",
        "1795000000.M1P99Q1.mail.office.example",
        "README",
    }
    for name in others:
        (desk.path / "tmp" / name).write_bytes(b"x")
        os.utime(desk.path / "tmp" / name, (1, 1))
    (desk.path / "new" / new_id(pid=99, run="aaaaaaaa")).write_bytes(b"x")
    assert sweep(desk, keep=[owed]) == []
    assert set(desk.tmp()) == others
    assert len(desk.new()) == 1


def test_s34_no_link_is_followed_for_sweeping(desk: Desk) -> None:
    elsewhere = desk.path.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / new_id(pid=99, run="aaaaaaaa")).write_bytes(b"x")
    desk.maildir.prepare()
    (desk.path / "tmp").rmdir()
    (desk.path / "tmp").symlink_to(elsewhere)
    assert sweep(desk) == []
    assert len(list(elsewhere.iterdir())) == 1


def test_a_maildir_that_is_not_there_is_swept_in_peace(desk: Desk) -> None:
    assert sweep(desk) == []
