"""`host.allocator`: what a long-living process keeps of the memory that it freed."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from siteagent.host import allocator
from siteagent.host.allocator import Returner
from tests.hub import hub, node
from tests.site import free_port, provider, site, write

ROOT = Path(__file__).resolve().parent.parent.parent
glibc_only = pytest.mark.skipif(not allocator.is_glibc(), reason="needs the GNU C library")

_HEAP_OF_A_THREAD = 64 << 20  # octets and alignment, as glibc reserves it

PRELUDE = """
import sys, threading
from pathlib import Path
from siteagent.host import allocator

def resident_kilobytes():
    return int(Path("/proc/self/status").read_text().partition("VmRSS:")[2].split()[0])

if sys.argv[1] == "settled":
    allocator.settle()
"""

THREADS = """
barrier = threading.Barrier(9)

def work():
    held = [bytes(2000) for _ in range(100)]
    barrier.wait()
    barrier.wait()

for _ in range(8):
    threading.Thread(target=work).start()
barrier.wait()
print(Path("/proc/self/maps").read_text())
barrier.wait()
"""

# The first block, freed, is what moves the library's own bound.
LARGE_BLOCKS = """
bytearray(8 << 20)
before = resident_kilobytes()
large, small = [], []
for _ in range(40):
    large.append(bytearray(b"x" * 300_000))
    small.append(bytearray(b"x" * 1000))
large.clear()
print(resident_kilobytes() - before)
"""

SMALL_BLOCKS = """
before = resident_kilobytes()
held = [bytearray(b"x" * 5000) for _ in range(4000)]
held[:] = held[::500]
if sys.argv[1] == "settled":
    allocator.give_back()
print(resident_kilobytes() - before)
"""


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}


def said(script: str, how: str) -> str:
    argv = [sys.executable, "-c", PRELUDE + script, how]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, cwd=ROOT, env=environment())
    assert done.returncode == 0, done.stderr
    return done.stdout


def heaps_of_threads(maps: str) -> int:
    """How many there are: what is used of one, and behind it what is reserved, up to the next multiple of 64 MiB."""
    found = []
    for line in maps.splitlines():
        begin, _, end = line.split()[0].partition("-") if line else ("0", "", "0")
        found.append((int(begin, 16), int(end, 16), line[len(begin) + len(end) + 2 :].split()[:1]))
    return sum(
        begin % _HEAP_OF_A_THREAD == 0
        and access == ["rw-p"]
        and (end, begin + _HEAP_OF_A_THREAD, ["---p"]) == following
        for (begin, end, access), following in pairwise(found)
    )


@glibc_only
def test_many_threads_share_one_heap() -> None:
    assert heaps_of_threads(said(THREADS, "as it comes")) >= 4
    assert heaps_of_threads(said(THREADS, "settled")) == 0


@glibc_only
def test_a_large_block_that_is_freed_goes_back_whatever_lives_behind_it() -> None:
    assert int(said(LARGE_BLOCKS, "as it comes")) > 8_000
    assert int(said(LARGE_BLOCKS, "settled")) < 2_000


@glibc_only
def test_what_lies_free_between_small_blocks_goes_back_when_asked() -> None:
    assert int(said(SMALL_BLOCKS, "as it comes")) > 15_000
    assert int(said(SMALL_BLOCKS, "settled")) < 3_000


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator, "is_glibc", lambda: False)
    monkeypatch.delattr("ctypes.CDLL")
    allocator.settle()
    allocator.give_back()


@glibc_only
@pytest.mark.parametrize(("program", "command"), [("agent", ["run"]), ("hub", ["hub", "run"])])
def test_both_programs_that_run_for_months_have_one_heap(tmp_path: Path, program: str, command: Sequence[str]) -> None:
    path = tmp_path / "hub.toml"
    path.write_text(
        f'hostname = "hub.example"\nstate_directory = "{tmp_path}/state"\n[listener]\nlisten = ["127.0.0.1:0"]\n'
        '[[node]]\nname = "office.example"\ndomains = ["office.example"]\ndeliver_to = "127.0.0.1:1"\n'
        "etrn_without_auth = true\n"
    )
    if program == "agent":
        path = write(tmp_path, provider(port=free_port(), interfaces=["none"]))
    log = tmp_path / "log"
    argv = [sys.executable, "-m", "siteagent", "--config", str(path), *command]
    with log.open("wb") as stream, subprocess.Popen(argv, stderr=stream, cwd=ROOT, env=environment()) as process:
        try:
            end = time.monotonic() + 20
            while f"{program}.ready" not in log.read_text():
                assert time.monotonic() < end and process.poll() is None, log.read_text()
                time.sleep(0.02)
            maps = Path(f"/proc/{process.pid}/maps").read_text()
        finally:
            process.kill()
    assert "[heap]" in maps
    assert heaps_of_threads(maps) == 0


# --- while it runs ----------------------------------------------------------------------------------------------------


class Given:
    """Counts how often memory was given back, each time a moment after something was done."""

    SECONDS = 0.05

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> None:
        self.times += 1

    def returner(self) -> Returner:
        return Returner(seconds=self.SECONDS, give_back=self)


def test_memory_is_given_back_once_for_much_work_again_for_later_work_and_never_without() -> None:
    given = Given()

    async def run() -> list[int]:
        seen = []
        returner = given.returner()
        await asyncio.sleep(3 * given.SECONDS)
        seen.append(given.times)
        for work in (5, 1, 0):
            for _ in range(work):
                returner.worked()
            await asyncio.sleep(3 * given.SECONDS)
            seen.append(given.times)
        returner.worked()
        returner.close()
        await asyncio.sleep(3 * given.SECONDS)
        return [*seen, given.times]

    assert asyncio.run(run()) == [0, 1, 2, 2, 2]


async def _as_agent(tmp_path: Path, until: Callable[[], bool]) -> None:
    async with site(write(tmp_path, provider(port=free_port(), interfaces=["none"]))) as running:
        await running.bring("a message")
        await _met(until)


async def _as_hub(tmp_path: Path, until: Callable[[], bool]) -> None:
    async with hub(tmp_path, [node(deliver_to="127.0.0.1:1")]) as running:
        await running.fill([b"Subject: a message\r\n\r\nhello\r\n"])
        await _met(until)


async def _met(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("program", [_as_agent, _as_hub])
def test_both_programs_give_memory_back_after_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: Callable[..., Any]
) -> None:
    given = Given()
    monkeypatch.setattr(allocator, "Returner", given.returner)
    asyncio.run(program(tmp_path, lambda: given.times > 0))
