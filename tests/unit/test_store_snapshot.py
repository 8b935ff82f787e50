"""`store.snapshot`: one file, one writer at a time, and the last word stands."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

from siteagent.store.snapshot import FILE, Snapshot


def shown(directory: Path) -> dict[str, object]:
    return dict(json.loads((directory / FILE).read_bytes()))


def test_it_is_for_everybody_to_read(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        assert asyncio.run(Snapshot(tmp_path, note=print).write({}))
    finally:
        os.umask(before)
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o644


def test_what_utf_8_cannot_say_is_an_escape(tmp_path: Path) -> None:
    assert asyncio.run(Snapshot(tmp_path, note=print).write({"text": "caf\udce9 é"}))
    assert shown(tmp_path) == {"text": "caf\udce9 é"}


def test_writes_that_are_asked_for_at_once_all_succeed_and_the_last_one_stands(tmp_path: Path) -> None:
    notes: list[str] = []

    async def scene() -> list[bool]:
        snapshot = Snapshot(tmp_path, note=notes.append)
        written = await asyncio.gather(*(snapshot.write({"n": n}) for n in range(200)))
        snapshot.close()
        return written

    assert all(asyncio.run(scene()))
    assert (shown(tmp_path), notes, os.listdir(tmp_path)) == ({"n": 199}, [], [FILE])


def test_trouble_is_said_once_and_again_when_it_comes_back(tmp_path: Path) -> None:
    notes: list[str] = []
    state = tmp_path / "state"

    async def scene() -> list[bool]:
        snapshot = Snapshot(state, note=notes.append)
        results = [await snapshot.write({}) for _ in range(2)]
        state.mkdir()
        results.append(await snapshot.write({}))
        (state / FILE).unlink()
        state.rmdir()
        return [*results, await snapshot.write({})]

    assert asyncio.run(scene()) == [False, False, True, False]
    assert [f"cannot write {state / FILE}" in note for note in notes] == [True, True]
