"""The threat model's sentences about this host, from the wire to the disk: S50, S54, S57."""

from __future__ import annotations

import asyncio
import re
import stat
import sys
import time
from pathlib import Path

import pytest
from tests.site import ALICE, Site, at, provider, write

ODD = (
    "../../../../tmp/pwned", "..", "/etc/cron.d/pwned", "alice/../../pwned", "alice+../../../pwned", "alice+/tmp/pwned",
    "a%2f..%2fpwned", ".new/pwned", "~root/pwned", "$(touch pwned)", "`touch pwned`", "CON", "alice:pwned",
)  # fmt: skip
SECRET = b"Subject: the secret subject\r\nX-Token: sesame\r\n\r\nnobody's business\r\n"


def places(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


async def hand_over(one: Site, *lines: bytes, content: bytes = b"Subject: x\r\n\r\nhello\r\n") -> list[bytes]:
    """One session: EHLO, `lines`, then the content where a recipient was taken; every reply."""
    reader, writer = await asyncio.open_connection("127.0.0.1", one.port)
    said: list[bytes] = []

    async def reply() -> bytes:
        row = await asyncio.wait_for(reader.readline(), 10)
        while row[3:4] == b"-":
            row = await asyncio.wait_for(reader.readline(), 10)
        said.append(row)
        return row

    await reply()
    for line in (b"EHLO ../../../pwned", *lines):
        writer.write(line + b"\r\n")
        await reply()
    writer.write(b"DATA\r\n")
    if (await reply()).startswith(b"354"):
        writer.write(content + b".\r\n")
        await reply()
    writer.write(b"QUIT\r\n")
    await reply()
    writer.close()
    return said


@pytest.mark.parametrize("unknown", ["reject", "alice"])
def test_s50_no_octet_from_the_wire_becomes_a_path(tmp_path: Path, unknown: str) -> None:
    """Every name is tried as sender and as recipient; files appear in new/ and in our state, and nowhere else."""

    async def scene(one: Site) -> None:
        await one.until((tmp_path / "mail" / "alice" / "new").is_dir)
        before = places(tmp_path)
        for name in ODD:
            for local in (name, f'"{name}"'):
                await hand_over(
                    one,
                    f"MAIL FROM:<{local}@../../pwned>".encode(),
                    f"MAIL FROM:<{local}@w.example>".encode(),
                    b"MAIL FROM:<a@w.example>",
                    f"RCPT TO:<{local}@office.example>".encode(),
                    f"RCPT TO:<{local}@../../office.example>".encode(),
                )
        taken = len(one.of("message.accepted"))
        await one.until(lambda: len(one.of("message.stored")) == taken)
        assert taken, "nothing was taken: this proves nothing"
        fresh = {place for place in places(tmp_path) - before if not place.startswith("state/")}
        wanted = re.compile(r"mail/alice/new/[A-Za-z0-9.,_=-]+")
        assert len(fresh) == taken and all(wanted.fullmatch(place) for place in fresh), fresh
        assert not [place for place in places(tmp_path) if "pwned" in place]

    more = f'[delivery]\ndomains = ["office.example"]\nunknown_recipient = "{unknown}"\n'
    at(write(tmp_path, provider(port=1), more=more), scene, up=False)


@pytest.mark.skipif(sys.platform == "win32", reason="sleep(1)")
@pytest.mark.parametrize("command", ['["sleep", "60"]', '["false"]', '["/no/such/program"]'])
def test_s54_a_hook_that_hangs_or_fails_delays_no_250(tmp_path: Path, command: str) -> None:
    kinds = ("session_opened", "message_accepted", "message_stored", "session_closed")
    hooks = "[hooks]\ntimeout_seconds = 60\n" + "".join(f"{kind} = {command}\n" for kind in kinds)
    slowest = 0.0

    async def scene(one: Site) -> None:
        nonlocal slowest
        for number in range(5):
            began = time.monotonic()
            said = await hand_over(
                one,
                b"MAIL FROM:<a@w.example>",
                f"RCPT TO:<{ALICE}>".encode(),
                content=b"Subject: %d\r\n\r\nhello\r\n" % number,
            )
            slowest = max(slowest, time.monotonic() - began)
            assert said[-2].startswith(b"250")
        await one.until(lambda: len(one.of("message.stored")) == 5)

    path = write(tmp_path, provider(port=1), more=hooks)
    if "no/such" in command:  # found wrong by `check`; it may vanish later
        missing = tmp_path / "hang-up"
        missing.write_text("#!/bin/sh\n")
        missing.chmod(0o755)
        path.write_text(path.read_text().replace("/no/such/program", str(missing)))
        missing.chmod(stat.S_IRUSR)
    began = time.monotonic()
    at(path, scene, up=False)
    assert slowest < 2, slowest  # the hook's own minute would show
    assert time.monotonic() - began < 40, "nor does it hold up the end"


def test_s57_no_content_and_no_line_end_of_a_message_is_in_the_log(tmp_path: Path) -> None:
    async def scene(one: Site) -> None:
        await hand_over(
            one,
            b"MAIL FROM:<a@w.example>",
            f"RCPT TO:<{ALICE}>".encode(),
            b"AUTH PLAIN AG9mZmljZQBzM2NyZXQ=",
            b"XYZZY \x1b[2J\xff forged=1 level=error",
            content=SECRET,
        )
        await one.until(lambda: one.of("message.stored"))
        log = one.log
        assert "message.accepted" in log
        for secret in ("secret subject", "sesame", "nobody's business", "AG9mZmljZQ", "\x1b"):
            assert secret not in log
        assert all(re.match(r"\d{4}-\d\d-\d\dT[\d:.]+Z (debug|info|warning|error) ", row) for row in log.splitlines())

    at(write(tmp_path, provider(port=1)), scene, up=False)
