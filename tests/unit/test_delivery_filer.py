"""From the spool into the mailboxes: lanes, retries, what is told, and what is never lost on the way."""

import asyncio
import errno
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from siteagent.delivery.filer import BATCH, Filer
from siteagent.delivery.maildir import Maildir
from siteagent.delivery.target import Delivered, Load
from siteagent.events import Event, FilingFailed, MessageStored
from siteagent.store.body import Envelope, Placement
from siteagent.store.spool import Filing, Spool, SpoolReader
from tests.faulty import FaultyDisk
from tests.letters import LARGE, bodies, content, envelope, files, left_behind, maildir, put


class FakeTarget:
    """Remembers what it was given; fails, blocks or explodes where told."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.batches: list[list[Filing]] = []
        self.reason: str | None = None
        self.gate: threading.Event | None = None
        self.bug: Callable[[], list[Delivered]] | None = None

    def deliver(self, batch: Sequence[Filing], load: Load) -> list[Delivered]:
        self.batches.append(list(batch))
        if self.gate is not None:
            assert self.gate.wait(20)
        if self.bug is not None:
            return self.bug()
        return [Delivered(f"file-{filing.message}", filing.size, self.reason) for filing in batch]

    def place(self, envelope: Envelope) -> Placement | None:
        return None

    @property
    def delivered(self) -> int:
        return sum(map(len, self.batches))


class Office:
    """A spool and a filer, as the agent joins them, over restarts."""

    def __init__(
        self, path: Path, *targets: Any, retry_seconds: Sequence[float] = (60.0,), rest_seconds: float = 0.02
    ) -> None:
        self.path, self.state = path, path / "state"
        self.state.mkdir(exist_ok=True)
        self.disk = FaultyDisk()
        self.targets = {target.name: target for target in targets}
        self.retry_seconds = retry_seconds
        self.rest_seconds = rest_seconds
        self.events: list[Event] = []

    def box(self, name: str = "alice", disk: FaultyDisk | None = None) -> Maildir:
        return maildir(self.path / name, disk=disk or self.disk, name=name)

    async def __aenter__(self) -> "Office":
        self.spool = Spool(self.state, disk=self.disk)
        self.filer = Filer(
            self.spool,
            self.targets,
            emit=self.events.append,
            retry_seconds=self.retry_seconds,
            rest_seconds=self.rest_seconds,
        )
        self.spool.on_committed, self.spool.place = self.filer.accept, self.filer.place
        owed = await asyncio.to_thread(self.spool.open)
        for target in self.targets.values():
            if isinstance(target, Maildir):
                target.prepare()
        self.filer.accept(owed)
        return self

    async def __aexit__(self, *failure: object) -> None:
        await self.filer.close()
        await self.spool.close()

    async def put(self, letter: Envelope, data: bytes = b"Subject: x\n\nx\n") -> Any:
        return await put(self.spool, letter, data)

    async def until(self, claim: Callable[[], object]) -> None:
        async with asyncio.timeout(20):
            while not claim():
                await asyncio.sleep(0.002)

    async def filed(self) -> None:
        await self.until(lambda: self.filer.view().messages == 0)

    def stored(self) -> list[MessageStored]:
        return [event for event in self.events if isinstance(event, MessageStored)]

    def failed(self) -> list[FilingFailed]:
        return [event for event in self.events if isinstance(event, FilingFailed)]

    def owed(self) -> list[str]:
        return [f"{owed.mailbox}: {owed.reason}" for owed in SpoolReader(self.state).waiting()]


def office(path: Path, work: Callable[[Office], Any], *targets: Any, **options: Any) -> Office:
    """Runs `work` in an office with `targets` (or one Maildir of alice's)."""
    made = Office(path, *targets, **options)
    if not targets:
        made.targets = {"alice": made.box()}

    async def run() -> None:
        async with made:
            await work(made)

    asyncio.run(run())
    return made


# --- filing -----------------------------------------------------------------------------------------------------------


def test_what_is_accepted_is_filed_told_and_no_longer_owed(tmp_path: Path) -> None:
    letter = envelope("alice@office.example")

    async def work(here: Office) -> None:
        await here.put(letter, b"Subject: x\n\nx\n")
        await here.filed()

    here = office(tmp_path, work)
    assert bodies(tmp_path / "alice") == [b"Subject: x\n\nx\n"]
    (event,) = here.stored()
    assert (event.message, event.mailbox, event.round, event.provider) == (letter.message, "alice", "r1", "isp")
    assert event.file in files(tmp_path / "alice" / "new")
    assert here.owed() == []


def test_a_lone_message_is_filed_at_once_and_what_follows_it_closely_together(tmp_path: Path) -> None:
    target = FakeTarget("alice")

    async def work(here: Office) -> None:
        await here.put(envelope("alice@office.example"))
        await here.until(lambda: target.delivered == 1)
        for _ in range(5):
            await here.put(envelope("alice@office.example"))
        await here.until(lambda: target.delivered == 6)

    office(tmp_path, work, target, rest_seconds=1.0)
    assert [len(batch) for batch in target.batches] == [1, 5]


def test_what_waits_for_company_stays_in_the_spool_when_all_is_closed(tmp_path: Path) -> None:
    target = FakeTarget("alice")

    async def work(here: Office) -> None:
        await here.put(envelope("alice@office.example"))
        await here.until(lambda: target.delivered == 1)
        await here.put(envelope("alice@office.example"))

    here = office(tmp_path, work, target, rest_seconds=60.0)
    assert target.delivered == 1 and here.owed() == ["alice: None"]


def test_a_large_message_needs_one_rename_and_leaves_nothing(tmp_path: Path) -> None:
    async def work(here: Office) -> None:
        await here.put(envelope("alice@office.example"), content(LARGE))
        await here.filed()
        assert here.disk.of("touch")

    office(tmp_path, work)
    assert bodies(tmp_path / "alice") == [content(LARGE)]
    assert left_behind(tmp_path / "state", tmp_path / "alice") == []


def test_s32_each_mailbox_gets_a_file_that_names_its_own_address(tmp_path: Path) -> None:
    async def work(here: Office) -> None:
        here.filer.reconfigure({"alice": here.box("alice"), "bob": here.box("bob")})
        await here.put(envelope("alice@office.example", "bob@office.example"), content(LARGE))
        await here.filed()

    office(tmp_path, work)
    for name in ("alice", "bob"):
        (data,) = files(tmp_path / name / "new").values()
        assert data.count(b"Delivered-To: ") == 1
        assert f"Delivered-To: {name}@office.example\n".encode() in data
    assert left_behind(tmp_path / "state", tmp_path / "alice", tmp_path / "bob") == []


def test_what_waits_goes_in_batches(tmp_path: Path) -> None:
    target = FakeTarget("alice")
    target.gate = threading.Event()

    async def work(here: Office) -> None:
        for number in range(200):
            await here.put(envelope("alice@office.example"), b"%d\n" % number)
        assert target.gate is not None
        target.gate.set()
        await here.filed()

    office(tmp_path, work, target)
    assert max(map(len, target.batches)) == BATCH
    assert target.delivered == 200


def test_a_round_is_held_until_what_it_brought_was_tried_once(tmp_path: Path) -> None:
    target = FakeTarget("alice")
    target.gate, target.reason = threading.Event(), "full"

    async def work(here: Office) -> None:
        await here.put(envelope("alice@office.example"))
        assert here.filer.waiting_to_file("r1")
        assert not here.filer.waiting_to_file("r2")
        assert target.gate is not None
        target.gate.set()
        await here.until(here.failed)
        assert not here.filer.waiting_to_file("r1")
        assert here.filer.view().messages == 1

    office(tmp_path, work, target)


def test_a_round_is_held_from_the_moment_its_sender_hears_250(tmp_path: Path) -> None:
    target = FakeTarget("alice")
    target.gate = threading.Event()

    async def work(here: Office) -> None:
        assert target.gate is not None
        for number in range(50):
            await here.put(envelope("alice@office.example", round=f"r{number}"), b"%d\n" % number)
            assert here.filer.waiting_to_file(f"r{number}")
        target.gate.set()

    office(tmp_path, work, target)


# --- lanes ------------------------------------------------------------------------------------------------------------


def test_s29_a_slow_mailbox_delays_its_own_mail_alone(tmp_path: Path) -> None:
    slow, quick = FakeTarget("slow"), FakeTarget("quick")
    slow.gate = threading.Event()

    async def work(here: Office) -> None:
        for number in range(20):
            await here.put(envelope("slow@office.example", "quick@office.example"), b"%d\n" % number)
        await here.until(lambda: quick.delivered == 20)
        assert slow.gate is not None
        slow.gate.set()
        await here.filed()

    office(tmp_path, work, slow, quick)


def test_one_batch_of_a_mailbox_at_a_time(tmp_path: Path) -> None:
    target = FakeTarget("alice")
    inside: list[int] = []
    most: list[int] = []

    def deliver(batch: Sequence[Filing], load: Load) -> list[Delivered]:
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.001)
        inside.pop()
        return [Delivered("f", 1) for _ in batch]

    target.deliver = deliver  # type: ignore[method-assign]

    async def work(here: Office) -> None:
        await asyncio.gather(*(here.put(envelope("alice@office.example"), b"%d\n" % number) for number in range(300)))
        await here.filed()

    office(tmp_path, work, target)
    assert set(most) == {1}


def test_many_busy_mailboxes_all_get_their_turn(tmp_path: Path) -> None:
    targets = [FakeTarget(f"box{number}") for number in range(20)]

    async def work(here: Office) -> None:
        names = [f"{target.name}@office.example" for target in targets]
        await asyncio.gather(*(here.put(envelope(*names), b"%d\n" % number) for number in range(100)))
        await here.filed()

    office(tmp_path, work, *targets)
    assert {target.delivered for target in targets} == {100}


# --- failures ---------------------------------------------------------------------------------------------------------


def test_s29_a_full_mailbox_waits_in_the_spool_and_the_others_go_on(tmp_path: Path) -> None:
    full = FaultyDisk().fail("write", errno=errno.ENOSPC, times=99)

    async def work(here: Office) -> None:
        here.filer.reconfigure({"alice": here.box("alice", full), "bob": here.box("bob")})
        await here.put(envelope("alice@office.example", "bob@office.example"))
        await here.until(here.failed)
        await here.until(here.stored)
        view = here.filer.view()
        assert view.messages == 1
        assert view.reason is not None and "No space left" in view.reason
        await here.until(lambda: "No space left" in "".join(here.owed()))
        assert files(tmp_path / "alice" / "tmp") == files(tmp_path / "alice" / "new") == {}
        full.heal()
        assert here.filer.retry_now() == 1
        await here.filed()

    here = office(tmp_path, work)
    assert len(bodies(tmp_path / "alice")) == len(bodies(tmp_path / "bob")) == 1
    assert here.owed() == []


def test_what_fails_comes_again_with_growing_pauses(tmp_path: Path) -> None:
    target = FakeTarget("alice")
    target.reason = "full"

    async def work(here: Office) -> None:
        await here.put(envelope("alice@office.example"))
        await here.until(lambda: len(here.failed()) == 4)
        target.reason = None
        await here.filed()

    here = office(tmp_path, work, target, retry_seconds=(0.01, 0.02, 0.03))
    assert [(event.tries, event.next_seconds) for event in here.failed()] == [
        (1, 0.01),
        (2, 0.02),
        (3, 0.03),
        (4, 0.03),
    ]
    assert len(here.stored()) == 1


def test_a_targets_bug_costs_neither_its_mail_nor_its_lane(tmp_path: Path) -> None:
    target = FakeTarget("alice")

    def explode() -> list[Delivered]:
        raise ZeroDivisionError("planted")

    async def work(here: Office) -> None:
        for bug in (explode, list):
            target.bug = bug
            await here.put(envelope("alice@office.example"), bug.__name__.encode())
            await here.until(lambda: len(here.failed()) == 1)
            here.events.clear()
        target.bug = None
        here.filer.retry_now()
        await here.filed()

    office(tmp_path, work, target)
    assert target.batches[-1][-1].recovered, "it may have been published before the bug"


def test_a_listener_with_a_bug_costs_no_message_its_next_try(tmp_path: Path) -> None:
    target = FakeTarget("alice")
    target.reason = "full"

    async def work(here: Office) -> None:
        def emit(event: Event) -> None:
            here.events.append(event)
            raise RuntimeError("planted")

        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        here.filer._emit = emit
        await asyncio.gather(*(here.put(envelope("alice@office.example"), b"%d\n" % n) for n in range(5)))
        await here.until(lambda: not here.filer.waiting_to_file("r1"))
        target.reason = None
        assert here.filer.retry_now() == 5
        await here.filed()

    office(tmp_path, work, target)


def test_s28_a_directory_whose_sync_failed_is_published_anew(tmp_path: Path) -> None:
    async def work(here: Office) -> None:
        here.disk.fail("sync_folder", where="alice/new")
        await here.put(envelope("alice@office.example"))
        await here.until(here.failed)
        assert files(tmp_path / "alice" / "new") == {}
        await here.put(envelope("alice@office.example"), b"the next\n")
        await here.until(here.stored)
        here.filer.retry_now()
        await here.filed()

    office(tmp_path, work)
    assert len(bodies(tmp_path / "alice")) == 2


def test_content_in_memory_is_bounded_and_read_again_from_the_spool(tmp_path: Path) -> None:
    target = FakeTarget("alice")
    target.gate = threading.Event()
    big = content(250_000)

    async def work(here: Office) -> None:
        for number in range(100):
            await here.put(envelope("alice@office.example"), big + b"%d\n" % number)
        held = sum(len(filing.data or b"") for filing in here.filer._lanes["alice"].waiting)
        assert held < 18_000_000
        assert target.gate is not None
        here.filer._targets = {"alice": here.box()}
        target.gate.set()
        await here.filed()

    office(tmp_path, work, target)
    assert len(bodies(tmp_path / "alice")) == 99


# --- the configuration changes ----------------------------------------------------------------------------------------


def test_a_mailbox_taken_out_of_the_configuration_and_back_gets_its_mail(tmp_path: Path) -> None:
    async def work(here: Office) -> None:
        here.filer.reconfigure({})
        for data in (b"small\n", content(LARGE)):
            await here.put(envelope("alice@office.example"), data)
        await here.until(lambda: len(here.failed()) == 2)
        assert "no mailbox alice" in here.failed()[0].reason
        here.filer.reconfigure({"alice": here.box()})
        await here.filed()

    office(tmp_path, work)
    assert bodies(tmp_path / "alice") == sorted([b"small\n", content(LARGE)])
    assert left_behind(tmp_path / "state", tmp_path / "alice") == []


def test_it_is_still_owed_after_a_restart_without_that_mailbox(tmp_path: Path) -> None:
    async def accept(here: Office) -> None:
        here.filer.reconfigure({})
        await here.put(envelope("alice@office.example"))
        await here.until(here.failed)

    office(tmp_path, accept)

    async def without(here: Office) -> None:
        await here.until(here.failed)

    office(tmp_path, without, FakeTarget("bob"))
    office(tmp_path, Office.filed)
    assert len(bodies(tmp_path / "alice")) == 1


def test_a_maildir_that_moved_gets_large_mail_that_waited_in_the_old_one(tmp_path: Path) -> None:
    async def work(here: Office) -> None:
        here.disk.fail("publish", times=1)
        await here.put(envelope("alice@office.example"), content(LARGE))
        await here.until(here.failed)
        here.filer.reconfigure({"alice": maildir(tmp_path / "elsewhere", disk=here.disk)})
        await here.filed()

    office(tmp_path, work)
    assert bodies(tmp_path / "elsewhere") == [content(LARGE)]
    assert left_behind(tmp_path / "state", tmp_path / "alice", tmp_path / "elsewhere") == []


# --- restarts ---------------------------------------------------------------------------------------------------------


def test_s33_a_repeated_transaction_with_other_groups_is_filed_once_for_each(tmp_path: Path) -> None:
    async def work(here: Office) -> None:
        here.filer.reconfigure({name: here.box(name) for name in ("alice", "bob", "carol")})
        await here.put(envelope("alice@office.example", "bob@office.example", session="s1"), b"same\n")
        await here.put(envelope("bob@office.example", "carol@office.example", session="s2"), b"same\n")
        await here.put(envelope("carol@office.example", "alice@office.example", session="s3"), b"same\n")
        await here.filed()

    office(tmp_path, work)
    for name in ("alice", "bob", "carol"):
        assert bodies(tmp_path / name) == [b"same\n"]


def test_filing_ends_at_close_and_goes_on_after_the_restart(tmp_path: Path) -> None:
    target = FakeTarget("alice")
    target.gate = threading.Event()

    async def stop_meanwhile(here: Office) -> None:
        for number in range(200):
            await here.put(envelope("alice@office.example"), b"%d\n" % number)
        assert target.gate is not None
        asyncio.get_running_loop().call_later(0.05, target.gate.set)

    here = office(tmp_path, stop_meanwhile, target)
    told = len(here.stored())
    assert 0 < told < 200
    office(tmp_path, Office.filed)
    assert len(bodies(tmp_path / "alice")) == 200 - told


def test_what_was_owed_holds_its_own_round_and_no_other(tmp_path: Path) -> None:
    async def accept(here: Office) -> None:
        here.filer.reconfigure({})
        await here.put(envelope("alice@office.example"))
        await here.until(here.failed)

    office(tmp_path, accept)
    target = FakeTarget("alice")
    target.gate = threading.Event()

    async def after(here: Office) -> None:
        await here.until(lambda: target.batches)
        assert not here.filer.waiting_to_file("r1"), "it failed before"
        assert here.filer.view().messages == 1
        assert target.gate is not None
        target.gate.set()
        await here.filed()

    office(tmp_path, after, target)
