"""`store.requests`: what may come from any user, read by the agent."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from siteagent.errors import CannotCreate
from siteagent.store import requests
from siteagent.store.requests import Request


@pytest.fixture
def state(tmp_path: Path) -> Path:
    requests.make_folder(tmp_path)
    return tmp_path


def put(state: Path, name: str = "x.json", **fields: Any) -> Path:
    path = state / requests.FOLDER / name
    path.write_text(json.dumps({"version": 1, "id": "a", "kind": "ask", **fields}))
    return path


def left_there(state: Path) -> list[str]:
    return sorted(os.listdir(state / requests.FOLDER))


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_what_is_left_is_taken_as_it_was_and_once(state: Path) -> None:
    request = Request(id="a", providers=("isp",), nodes=("#q", "@office.example"), timeout_seconds=30.0)
    requests.leave(state, request)
    assert requests.take(state) == [request]
    assert requests.take(state) == []


def test_requests_are_taken_oldest_first(state: Path) -> None:
    for age, name in enumerate(("new", "old")):
        os.utime(put(state, f"{name}.json", id=name), (1000 - age, 1000 - age))
    assert [request.id for request in requests.take(state)] == ["old", "new"]


def test_the_folder_is_for_the_group_and_for_nobody_else_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        requests.make_folder(tmp_path)
        requests.leave(tmp_path, Request(id="a"))
    finally:
        os.umask(before)
    folder = tmp_path / requests.FOLDER
    assert stat.S_IMODE(folder.stat().st_mode) == 0o770
    assert stat.S_IMODE((folder / "a.json").stat().st_mode) == 0o644, "the agent may be another user"


def test_a_mode_that_the_operator_gave_the_folder_stays(state: Path) -> None:
    (state / requests.FOLDER).chmod(0o1777)
    requests.make_folder(state)
    assert stat.S_IMODE((state / requests.FOLDER).stat().st_mode) == 0o1777


def test_a_request_taken_back_is_not_taken(state: Path) -> None:
    request = Request(id="a")
    requests.leave(state, request)
    assert requests.withdraw(state, request)
    assert requests.take(state) == []
    assert not requests.withdraw(state, request), "too late"


def test_a_folder_that_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(CannotCreate):
        requests.leave(tmp_path, Request(id="a"))
    assert requests.take(tmp_path) == []


def test_a_request_that_cannot_be_finished_leaves_nothing_behind(state: Path) -> None:
    (state / requests.FOLDER / "a.json").mkdir()  # nothing can be renamed over it
    with pytest.raises(CannotCreate):
        requests.leave(state, Request(id="a"))
    assert left_there(state) == ["a.json"]


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", '"ask"', "{}", '{"version": 2, "id": "a", "kind": "ask"}', "[" * 60_000,
        '{"version": 1, "kind": "ask"}', '{"version": 1, "id": "a"}', '{"version": 1, "id": "", "kind": "ask"}',
        '{"version": 1, "id": "a\\nb", "kind": "ask"}', '{"version": 1, "id": 7, "kind": "ask"}',
        '{"version": 1, "id": "a", "kind": "ask", "nodes": "abc"}',
        '{"version": 1, "id": "a", "kind": "ask", "nodes": null}',
        '{"version": 1, "id": "a", "kind": "ask", "nodes": [1]}',
        '{"version": 1, "id": "a", "kind": "ask", "providers": {"isp": 1}}',
        '{"version": 1, "id": "a", "kind": "ask", "timeout_seconds": NaN}',
        '{"version": 1, "id": "a", "kind": "ask", "timeout_seconds": Infinity}',
        '{"version": 1, "id": "a", "kind": "ask", "timeout_seconds": -1}',
        '{"version": 1, "id": "a", "kind": "ask", "timeout_seconds": "soon"}',
        '{"version": 1, "id": "a", "kind": "ask", "timeout_seconds": 1' + "0" * 400 + "}",
    ],
)  # fmt: skip
def test_what_is_no_request_is_dropped_and_taken_away(state: Path, text: str) -> None:
    (state / requests.FOLDER / "x.json").write_text(text)
    put(state, "y.json", id="good")
    assert [request.id for request in requests.take(state)] == ["good"]
    assert left_there(state) == []


def test_bytes_that_are_no_text_are_dropped(state: Path) -> None:
    (state / requests.FOLDER / "x.json").write_bytes(bytes(range(256)))
    assert requests.take(state) == []


def test_a_time_beyond_a_week_is_a_week(state: Path) -> None:
    put(state, timeout_seconds=1e300)
    assert [request.timeout_seconds for request in requests.take(state)] == [7 * 86_400.0]


def test_a_directory_with_the_name_of_a_request_costs_no_descriptor_and_hides_no_other(state: Path) -> None:
    for n in range(20):
        (state / requests.FOLDER / f"{n}.json").mkdir()
    put(state, "z.json", id="good")
    before = open_descriptors()
    assert [request.id for request in requests.take(state)] == ["good"]
    assert open_descriptors() == before


def test_a_symlink_is_not_followed(state: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text(json.dumps({"version": 1, "id": "secret", "kind": "ask"}))
    (state / requests.FOLDER / "x.json").symlink_to(secret)
    assert requests.take(state) == []
    assert secret.exists() and left_there(state) == []


def test_a_fifo_does_not_hold_the_agent_up(state: Path) -> None:
    os.mkfifo(state / requests.FOLDER / "x.json")
    assert requests.take(state) == []
    assert left_there(state) == []


def test_a_file_that_is_too_large_is_not_read(state: Path) -> None:
    put(state, more="x" * 70_000)
    assert requests.take(state) == []
    assert left_there(state) == []


def test_rubbish_does_not_keep_requests_from_being_taken(state: Path) -> None:
    for n in range(1100):
        (state / requests.FOLDER / f"rubbish{n}").touch()
    for n in range(50):
        put(state, f"{n}.json", id=str(n))
    assert len(requests.take(state)) == 50


def test_of_a_flood_a_thousand_are_taken_at_once_and_the_rest_later(state: Path) -> None:
    for n in range(1005):
        put(state, f"{n}.json", id=str(n))
    assert len(requests.take(state)) == 1000
    assert len(requests.take(state)) == 5


def test_an_unfinished_request_is_not_looked_at(state: Path) -> None:
    put(state, ".a")
    assert requests.take(state) == []
    assert left_there(state) == [".a"]
