"""`demo`: the whole way in this process, and that it does not call a failure a success."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from siteagent.cli import demo as demos
from siteagent.cli.context import Context
from siteagent.cli.demo import _Demo
from siteagent.cli.main import main
from siteagent.cli.samples import samples
from siteagent.cli.slowline import SlowLine
from siteagent.config import files
from siteagent.errors import StorageError
from siteagent.store.journal import JournalReader


@pytest.fixture(autouse=True)
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    before = os.umask(0o022)
    yield
    os.umask(before)


def test_all_messages_arrive_byte_for_byte_in_under_5_s_and_nothing_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    began = time.monotonic()
    assert main(["demo"]) == 0
    assert time.monotonic() - began < 5
    said = capsys.readouterr()
    assert "10 of 10 messages arrived, byte for byte; drained" in said.out
    assert "The line comes up." in said.err
    assert list((tmp_path / "tmp").iterdir()) == []


def test_by_atrn_it_works_as_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-q", "demo", "--method", "atrn", "--messages", "2"]) == 0
    assert "2 of 2 messages arrived" in capsys.readouterr().out


def test_keep_leaves_what_can_be_gone_on_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = tmp_path / "kept"
    assert main(["demo", "--messages", "3", "--keep", str(where)]) == 0
    assert f"--config {where}/siteagent.toml history" in capsys.readouterr().err
    configuration = files.load(where / "siteagent.toml")
    files.load(where / "hub.toml", hub=True)
    assert len(list((where / "mail" / "alice" / "new").iterdir())) == 3
    assert configuration.state_directory is not None
    restored = JournalReader(configuration.state_directory / "journal.sqlite").restore()
    assert (restored.rounds, restored.messages) == (1, 3)


def test_keep_uses_no_directory_in_which_something_lies(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    assert main(["demo", "--keep", str(tmp_path)]) == 64
    assert (tmp_path / "mine").read_text() == "precious"


def test_keep_where_nothing_can_be_made_is_73(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert main(["demo", "--keep", str(tmp_path / "file" / "below")]) == 73


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> _Demo:
    """A show that went well, its files still there."""
    place = tmp_path_factory.mktemp("shown")
    show = _Demo(Context(quiet=True), place, samples(2), None, "etrn")
    asyncio.run(show.run(kept=False))
    return show


def spoil(found: list[Path], how: str) -> list[Path]:
    """What is found in place of the files `found` of one message."""
    first = found[0]
    if how == "missing":
        return []
    other = first.parent.parent.parent / "bob" / "new" / "other" if how == "elsewhere" else first.with_name("other")
    other.write_bytes(first.read_bytes() + (b"" if how == "elsewhere" else b"!"))
    return [other] if how in ("altered", "elsewhere") else [first, other]


@pytest.mark.parametrize("how", ["missing", "altered", "more", "elsewhere"])
def test_mail_that_is_not_as_it_was_sent_is_an_error(
    shown: _Demo, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    message, found = next(iter(shown._stored.items()))
    shown._stored[message] = spoil(found, how)
    try:
        with pytest.raises(StorageError, match="did not end as it should"):
            shown._sum_up()
    finally:
        shown._stored[message] = found
    if how != "more":
        assert "<- missing" in capsys.readouterr().out


class DeadEnd(_Demo):
    """The agent's spool cannot be opened."""

    def _write_configurations(self, ports: dict[str, int], **options: Any) -> None:
        super()._write_configurations(ports, **options)
        (self._place / "state").mkdir(exist_ok=True)
        (self._place / "state" / "bodies").write_text("in the way")


def test_an_agent_that_does_not_start_is_told_at_once(tmp_path: Path) -> None:
    show = DeadEnd(Context(quiet=True), tmp_path / "place", samples(1), None, "etrn")
    (tmp_path / "place").mkdir()
    began = time.monotonic()
    with pytest.raises((OSError, StorageError)):
        asyncio.run(show.run(kept=False))
    assert time.monotonic() - began < 5


def test_a_slow_line_takes_its_time_and_loses_nothing() -> None:
    async def scene() -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.readexactly(1000))
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        line = SlowLine(80_000)
        port = await line.open(server.sockets[0].getsockname()[1])
        began = time.monotonic()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(bytes(1000))
        assert await reader.read(2000) == bytes(1000) or await reader.read()
        assert 0.15 < time.monotonic() - began < 2, "2,000 bytes at 10,000 a second"
        writer.close()
        await line.close()
        server.close()

    asyncio.run(scene())


def test_a_slow_line_to_nowhere_ends_the_connection() -> None:
    async def scene() -> None:
        line = SlowLine(None)
        port = await line.open(demos._free_ports(1)[0])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
        await line.close()

    asyncio.run(scene())
