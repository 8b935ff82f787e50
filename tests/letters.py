"""Messages for tests of spool and filing: envelopes with ids of our form, content, and a spool to put them in."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from siteagent.config.sections import Mailbox
from siteagent.delivery.maildir import Maildir
from siteagent.store.durable import Disk
from siteagent.store.spool import Body, Committed, Envelope, Spool

HOST = "mail.office.example"
RUN = "0123abcd"
RECEIVED = b"Received: from mx.isp.example ([203.0.113.9])\n\tby mail.office.example with ESMTP id x;\n\tnow\n"
_numbers = itertools.count(1)


def new_id(*, pid: int | None = None, run: str = RUN) -> str:
    return f"1795000000.M000001P{pid or os.getpid()}Q{next(_numbers)}R{run}.{HOST}"


def envelope(
    *recipients: str | tuple[str, str], session: str = "s1", sender: str = "a@x.test", **changes: Any
) -> Envelope:
    """`recipients`: addresses (their local part is the target) or (address, target)."""
    pairs = tuple(r if isinstance(r, tuple) else (r, r.partition("@")[0]) for r in recipients)
    values: dict[str, Any] = {
        "message": new_id(),
        "session": session,
        "provider": "isp",
        "round": "r1",
        "sender": sender,
        "recipients": pairs or (("alice@office.example", "alice"),),
        "received": RECEIVED,
        "smtputf8": False,
        "eight_bit": False,
    }
    return Envelope(**{**values, **changes})


def content(size: int = 1000, mark: str = "") -> bytes:
    """A message of `size` octets that differs by `mark`."""
    top = f"Subject: {mark}\n\n".encode()
    line = b"All work and no play makes Jack a dull boy. 1234567890\n"
    return (top + line * (size // len(line) + 1))[: size - 1] + b"\n"


LARGE = 700_000


async def put(spool: Spool, letter: Envelope, data: bytes, *, part: int = 65_536) -> Committed:
    """What the listener does with one message."""
    body = await taken_in(spool, letter, data, part=part)
    return await spool.commit(letter, body)


async def taken_in(spool: Spool, letter: Envelope, data: bytes, *, part: int = 65_536) -> Body:
    writer = spool.body(letter)
    for start in range(0, len(data), part):
        writer.write(data[start : start + part])
    return await writer.finish()


def maildir(path: Path, *, disk: Disk | None = None, name: str = "alice", reader: str | None = None) -> Maildir:
    mailbox = Mailbox(addresses=(f"{name}@office.example",), maildir=path, name=name, reader=reader)
    return Maildir(mailbox, disk=disk)


def files(path: Path) -> dict[str, bytes]:
    """Name to content of what stands in a directory; nothing where there is none."""
    return {entry.name: entry.read_bytes() for entry in sorted(path.iterdir())} if path.is_dir() else {}


def bodies(path: Path) -> list[bytes]:
    """The contents of the files of ``new/`` and ``cur/`` behind the header lines of ours."""
    found = [*files(path / "new").values(), *files(path / "cur").values()]
    return sorted(data.split(b"\tnow\n", 1)[1] for data in found)


def left_behind(state: Path, *maildirs: Path) -> list[str]:
    """Files that nobody needs any more: in ``bodies/`` and the ``tmp/`` of each Maildir."""
    places: Sequence[Path] = [state / "bodies", *(place / "tmp" for place in maildirs)]
    return [f"{place.name}/{name}" for place in places for name in files(place)]
