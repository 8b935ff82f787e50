"""A warning as a note in the postmaster's Maildir: once, by the way of all mail, and fit to be read."""

from __future__ import annotations

import asyncio
import email
import email.policy
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from siteagent.agent.notes import Notes, text_of
from siteagent.config.load import parse
from siteagent.config.sections import Configuration
from siteagent.delivery.filer import Filer
from siteagent.delivery.maildir import Maildir
from siteagent.events import Stamped, WarningCleared, WarningRaised
from siteagent.status import KINDS
from siteagent.store.spool import Spool
from tests.letters import new_id

NOW = datetime(2026, 11, 22, 8, tzinfo=UTC)
RAISED = WarningRaised(
    warning="disk", subject="state", text="only 5 GB of 100 GB left on the disk of /var/lib/siteagent", fix="make room"
)


def configuration(tmp_path: Path, more: str = "") -> Configuration:
    boxes = "".join(
        f'[[mailbox]]\nname = "{name}"\naddresses = ["{name}@office.example"]\nmaildir = "{tmp_path}/{name}"\n'
        for name in ("alice", "bob")
    )
    text = (
        f'hostname = "mail.office.example"\n[[provider]]\nhost = "192.0.2.1"\nnodes = ["office.example"]\n{boxes}{more}'
    )
    return parse(text, path="", kind=Configuration)


def notes(value: Configuration, spool: Any = None, said: list[str] | None = None) -> Notes:
    return Notes(value, spool, new_id=new_id, wall=lambda: NOW, say=(said if said is not None else []).append)


def test_each_warning_is_noted_once_until_it_was_cleared(tmp_path: Path) -> None:
    found = notes(configuration(tmp_path))
    cleared = WarningCleared(warning="disk", subject="state")
    other = WarningRaised(warning="disk", subject="mailbox alice", text="x", fix="y")
    wanted = [found.wanted(event) is not None for event in (RAISED, RAISED, other, cleared, RAISED)]
    assert wanted == [True, False, True, False, True]


def test_what_stood_before_a_restart_is_not_noted_again(tmp_path: Path) -> None:
    found = notes(configuration(tmp_path))
    found.restore([Stamped(NOW, RAISED)])
    assert found.wanted(RAISED) is None


def test_the_note_is_filed_in_the_postmasters_maildir_like_any_mail(tmp_path: Path) -> None:
    value = configuration(tmp_path, '[delivery]\npostmaster = "bob"\n')
    spool = Spool(tmp_path / "state")
    targets = {box.name: Maildir(box) for box in value.mailbox}
    told: list[object] = []

    async def work() -> None:
        filer = Filer(spool, targets, emit=told.append)
        spool.on_committed, spool.place = filer.accept, filer.place
        await asyncio.to_thread(spool.open)
        for target in targets.values():
            target.prepare()
        await notes(value, spool).write(RAISED)
        while not told:
            await asyncio.sleep(0.01)
        await filer.close()
        await spool.close()

    asyncio.run(work())
    assert list((tmp_path / "alice/new").iterdir()) == []
    (filed,) = (tmp_path / "bob/new").iterdir()
    message = email.message_from_bytes(filed.read_bytes(), policy=email.policy.default)
    assert message["Delivered-To"] == "postmaster@office.example"
    assert message["Subject"] == "siteagent: A disk is nearly full"
    assert message["Auto-Submitted"] == "auto-generated"
    assert not message.defects
    body = message.get_content()
    assert "only 5 GB of 100 GB left" in body and "What to do:\n\n  make room" in body
    assert f",S={filed.stat().st_size}" in filed.name


def test_what_a_peer_said_cannot_add_a_header_or_a_line() -> None:
    hostile = WarningRaised(warning="refused", subject="isp", text="it said\r\nBcc: x@y\x1b[2J", fix="a\nb")
    text = text_of(hostile, host="h.example", address="postmaster@office.example", identity="1", now=NOW)
    message = email.message_from_bytes(text)
    assert message["Bcc"] is None and b"\x1b" not in text
    assert b"\n  it said Bcc: x@y [2J\n" in text.replace(b"  Bcc", b" Bcc")


def test_every_kind_of_warning_has_a_title() -> None:
    assert all(title[0].isupper() and not title.endswith(".") for title in KINDS.values())


def test_ask_only_has_no_mailbox_and_no_note(tmp_path: Path) -> None:
    text = '[[provider]]\nhost = "192.0.2.1"\nnodes = ["office.example"]\n[listener]\nlisten = []\n'
    asyncio.run(notes(parse(text, path="", kind=Configuration)).write(RAISED))


def test_a_spool_that_is_full_is_said_and_nothing_else_suffers(tmp_path: Path) -> None:
    class Full:
        def body(self, envelope: object) -> object:
            raise OSError(28, "No space left on device")

    said: list[str] = []
    asyncio.run(notes(configuration(tmp_path), Full(), said).write(RAISED))
    assert said and "cannot put a note of disk into alice" in said[0]
