"""Each warning of a running agent: raised by its planted cause, told as a note to the postmaster, ended by the cure."""

from __future__ import annotations

import asyncio
import email
import email.policy
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
import trustme
from siteagent.config import files
from siteagent.store import requests
from tests import scripted
from tests.site import FAILED, NOTHING, REFUSED, STARTED, Site, bring, free_port, provider, site, write

HOUR = 3600.0
DAY = 24 * HOUR
BOB = "bob@office.example"
NOT_TLS = "\n".join(
    ("S: 220 mx.isp.example ESMTP", "C: EHLO *", "S: 250-mx.isp.example", "S: 250-STARTTLS", "S: 250 ETRN",
     "C: STARTTLS", "S: 220 go ahead", "S: this is no TLS", "! close")
)  # fmt: skip


def scene(function: Any) -> Any:
    """An async test as a plain function."""
    from functools import wraps

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(asyncio.wait_for(function(*args, **kwargs), 60))

    return run


async def note(one: Site, kind: str) -> EmailMessage:
    """The one note of this kind in the postmaster's Maildir, as a mail program reads it."""
    new = one.agent.configuration.mailbox[0].maildir / "new"

    def found() -> list[EmailMessage]:
        every = [email.message_from_bytes(path.read_bytes(), policy=email.policy.default) for path in new.glob("*")]
        return [message for message in every if message["X-Siteagent-Warning"] == kind]

    await one.until(found)
    (message,) = found()
    shown = "\n".join(f"{name}: {message[name]}" for name in ("From", "To", "Subject", "Date"))
    print(f"\n--- {kind}\n{shown}\n\n{message.get_content()}")
    assert message.defects == [] and message["Return-Path"] == "<>"
    assert message["Subject"].startswith("siteagent: ") and message["Auto-Submitted"] == "auto-generated"
    return message


def standing(one: Site) -> list[str]:
    return [warning["name"] for warning in one.agent._document()["warnings"]]


async def cleared(one: Site, kind: str) -> None:
    await one.until(lambda: any(event.warning == kind for event in one.of("warning.cleared")))
    assert kind not in standing(one)


def ask(one: Site) -> None:
    one.agent.desk.take(requests.Request(id=requests.new_id(), providers=("isp",)))


def says(message: EmailMessage, *parts: str) -> None:
    text = message.get_content()
    for part in parts:
        assert part in text, text


@scene
async def test_a_day_of_line_without_a_good_round(tmp_path: Path) -> None:
    async with (
        scripted.Provider(FAILED, NOTHING) as isp,
        site(write(tmp_path, provider(port=isp.port))) as one,
    ):
        await one.ended()
        one.agent.alarms.monotonic = lambda: time.monotonic() + 25 * HOUR
        await one.agent.alarms.look()
        message = await note(one, "no-round")
        says(message, "no successful round with isp for 24 hours, though the line was up", "421 too busy")
        assert standing(one) == ["no-round"]
        ask(one)
        await cleared(one, "no-round")


@scene
async def test_a_provider_that_comes_from_an_unlisted_address(tmp_path: Path) -> None:
    port = free_port()

    def configured(peers: str, isp_port: int) -> Path:
        table = provider(port=isp_port, first_connection_seconds=5, peers=["192.0.2.1", peers])
        return write(tmp_path, table, listen=[f"127.0.0.1:{port}"])

    async with scripted.Provider(STARTED) as isp, site(configured("192.0.2.2", isp.port)) as one:
        await one.until(lambda: one.of("ask.answered"))
        reader, writer = await asyncio.open_connection("127.0.0.1", one.port, local_addr=("127.0.0.2", 0))
        await reader.read()
        writer.close()
        message = await note(one, "peer-refused")
        says(message, "isp seems to connect from 127.0.0.2 now", 'add "127.0.0.2" to peers of provider isp')
        await one.agent.apply(files.load(configured("127.0.0.2", isp.port)))
        reader, writer = await asyncio.open_connection("127.0.0.1", one.port, local_addr=("127.0.0.2", 0))
        assert (await reader.readline()).startswith(b"220")
        await cleared(one, "peer-refused")
        writer.close()


@scene
async def test_a_provider_that_answers_5yz(tmp_path: Path) -> None:
    async with (
        scripted.Provider(REFUSED, NOTHING) as isp,
        site(write(tmp_path, provider(port=isp.port))) as one,
    ):
        message = await note(one, "refused")
        says(message, "isp refuses to send our mail", "459 node not allowed: authenticate first", "siteagent doctor")
        ask(one)
        await cleared(one, "refused")


@scene
async def test_handshakes_that_fail(tmp_path: Path) -> None:
    async with (
        scripted.Provider(NOT_TLS, NOT_TLS, NOTHING) as isp,
        site(write(tmp_path, provider(port=isp.port, tls="opportunistic", retry_seconds=[0, 0.05, 300]))) as one,
    ):
        message = await note(one, "tls")
        says(message, "TLS with isp does not come about", "siteagent doctor")
        ask(one)
        await cleared(one, "tls")


@scene
async def test_a_certificate_that_runs_out(tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    authority = trustme.CA()

    def issue(days: int) -> None:
        issued = authority.issue_cert("mail.office.example", not_after=datetime.now(UTC) + timedelta(days=days))
        key.touch(0o600)
        issued.private_key_pem.write_to_path(str(key))
        certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))

    issue(20)
    path = write(tmp_path, provider(port=1), listener={"tls_certificate": "cert.pem", "tls_key": "key.pem"})
    async with site(path, up=False) as one:
        await one.agent.alarms.look()
        message = await note(one, "certificate")
        says(message, f"the certificate {certificate} expires on", "renew it", "without a restart")
        issue(60)
        await one.agent.alarms.look()
        await cleared(one, "certificate")


@contextmanager
def _small_disk(place: Path) -> Iterator[Callable[[int], None]]:
    """A file system of 16 MB on `place`; what it yields fills that many of them."""
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place)], check=True)
    try:
        yield lambda megabytes: (place / "filler").write_bytes(bytes(megabytes * 1_048_576)) and None
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.mark.mounts
def test_a_disk_that_is_nearly_full(tmp_path: Path) -> None:
    @scene
    async def work(fill: Callable[[int], None]) -> None:
        more = '[[mailbox]]\nname = "bob"\naddresses = ["bob@office.example"]\nmaildir = "small/bob"\n'
        path = write(tmp_path, provider(port=1), mailbox=True)
        path.write_text(path.read_text() + more)
        async with site(path, up=False) as one:
            await one.agent.alarms.look()
            assert standing(one) == []
            fill(15)
            await one.agent.alarms.look()
            message = await note(one, "disk")
            says(message, f"left on the disk of {tmp_path}/small/bob", "make room", "waits in the state directory")
            fill(2)
            await one.agent.alarms.look()
            await cleared(one, "disk")

    with _small_disk(tmp_path / "small") as fill:
        work(fill)


@scene
async def test_mail_that_is_held_back_for_over_three_days(tmp_path: Path) -> None:
    port = free_port()
    more = {"defer_above_bytes": 5000}

    def configured(isp_port: int, **options: object) -> Path:
        return write(tmp_path, provider(port=isp_port, **options), listen=[f"127.0.0.1:{port}"])

    big = "x" * 6000
    async with scripted.Provider(STARTED, STARTED) as isp, site(configured(isp.port, **more)) as one:
        await one.until(lambda: one.of("ask.answered"))
        with pytest.raises(Exception, match="452"):
            await one.bring(big)
        await one.ended()
        await one.agent.alarms.look()
        assert standing(one) == []
        one.agent.alarms.wall = lambda: datetime.now(UTC) + timedelta(days=3, hours=1)
        await one.agent.alarms.look()
        message = await note(one, "held-back")
        says(message, "1 message at isp not taken since", "452 too big", "defer_above_bytes")
        await one.agent.apply(files.load(configured(isp.port)))
        ask(one)
        await one.until(lambda: len(one.of("ask.answered")) == 2)
        await one.bring(big)
        await one.ended(2)
        await one.agent.alarms.look()
        await cleared(one, "held-back")


@scene
async def test_mail_that_cannot_be_filed(tmp_path: Path) -> None:
    more = f'[[mailbox]]\nname = "bob"\naddresses = ["{BOB}"]\nmaildir = "mail/bob"\n'
    path = write(tmp_path, provider(port=1))
    path.write_text(path.read_text() + more)
    async with site(path, up=False) as one:
        new = tmp_path / "mail" / "bob" / "new"
        new.rmdir()
        new.symlink_to(tmp_path)
        await asyncio.to_thread(bring, one.port, "for bob", to=BOB)
        message = await note(one, "cannot-file")
        says(message, f"mail for bob cannot be filed: {new}", "siteagent queue retry", "nothing is lost")
        new.unlink()
        new.mkdir(mode=0o700)
        one.agent.filer.retry_now()
        await cleared(one, "cannot-file")
        assert len(list(new.iterdir())) == 1
