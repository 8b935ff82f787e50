"""Names to addresses: the last known outlive a restart, and a dead resolver holds nobody up."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from siteagent.errors import TemporaryError
from siteagent.names import MAX_ADDRESSES, MAX_NAMES, Resolver


class Dns:
    """A getaddrinfo: answers by name, an exception to raise, or an event that it waits for."""

    def __init__(self, **answers: Any) -> None:
        self.answers = {name.replace("_", "."): answer for name, answer in answers.items()}
        self.asked: list[str] = []
        self.at_work = 0
        self.most = 0
        self.lock = threading.Lock()

    def __call__(self, host: str, port: None, *, type: int) -> Any:
        with self.lock:
            self.asked.append(host)
            self.at_work += 1
            self.most = max(self.most, self.at_work)
        try:
            answer = self.answers.get(host, socket.gaierror(-2, "Name or service not known"))
            if isinstance(answer, Hanging):
                answer.wait()
                answer = answer.answer
            if isinstance(answer, Exception):
                raise answer
            return [(socket.AF_INET, type, 6, "", (address, 0)) for address in answer]
        finally:
            with self.lock:
                self.at_work -= 1


class Hanging(threading.Event):
    def __init__(self, *answer: str) -> None:
        super().__init__()
        self.answer = answer


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "names.json"


def used(
    state: Path, dns: Dns, play: Callable[[Resolver], Coroutine[Any, Any, Any]], *, timeout: float = 20, **more: Any
) -> Any:
    async def main() -> Any:
        resolver = Resolver(state, getaddrinfo=dns, timeout_seconds=timeout, **more)
        try:
            return await play(resolver)
        finally:
            await resolver.close()

    return asyncio.run(main())


async def eventually(claim: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not claim():
            await asyncio.sleep(0.002)


def test_a_name_is_resolved_and_known_from_then_on(state: Path) -> None:
    async def play(resolver: Resolver) -> None:
        assert resolver.known("mx.isp.test") == ()
        assert await resolver.resolve("mx.isp.test") == ("203.0.113.9", "2001:db8::9")
        assert resolver.known("MX.isp.test.") == ("203.0.113.9", "2001:db8::9")

    used(state, Dns(mx_isp_test=["203.0.113.9", "2001:db8::9", "203.0.113.9"]), play)


@pytest.mark.parametrize(
    ("literal", "address"),
    [("203.0.113.9", "203.0.113.9"), ("2001:DB8:0::9", "2001:db8::9"), ("[2001:db8::9]", "2001:db8::9")],
)
def test_an_address_is_its_own_answer_and_dns_is_not_asked(state: Path, literal: str, address: str) -> None:
    dns = Dns()

    async def play(resolver: Resolver) -> None:
        assert resolver.known(literal) == (address,)
        assert await resolver.resolve(literal) == (address,)

    used(state, dns, play)
    assert dns.asked == []


def test_the_last_answer_outlives_a_restart(state: Path) -> None:
    used(state, Dns(mx_isp_test=["203.0.113.9"]), lambda resolver: resolver.resolve("mx.isp.test"))
    dead = Dns(mx_isp_test=socket.gaierror(-3, "Temporary failure in name resolution"))

    async def play(resolver: Resolver) -> Any:
        assert resolver.known("mx.isp.test") == ("203.0.113.9",)
        return await resolver.resolve("mx.isp.test")

    assert used(state, dead, play) == ("203.0.113.9",)


def test_a_new_answer_replaces_the_old_one(state: Path) -> None:
    used(state, Dns(mx_isp_test=["203.0.113.9"]), lambda resolver: resolver.resolve("mx.isp.test"))
    used(state, Dns(mx_isp_test=["203.0.113.10"]), lambda resolver: resolver.resolve("mx.isp.test"))
    used(state, Dns(), lambda resolver: eventually(lambda: resolver.known("mx.isp.test") == ("203.0.113.10",)))


def test_no_dns_at_boot_is_temporary_and_says_why(state: Path) -> None:
    dead = Dns(mx_isp_test=socket.gaierror(-3, "Temporary failure in name resolution"))
    with pytest.raises(TemporaryError, match=r"cannot resolve mx\.isp\.test: Temporary failure in name resolution"):
        used(state, dead, lambda resolver: resolver.resolve("mx.isp.test"))


@pytest.mark.parametrize(
    "answer", [[], UnicodeError("label too long"), ValueError("embedded null"), ["not an address"], RuntimeError()]
)
def test_any_odd_answer_is_temporary_and_no_exception_of_its_own(state: Path, answer: Any) -> None:
    with pytest.raises(TemporaryError):
        used(state, Dns(mx_isp_test=answer), lambda resolver: resolver.resolve("mx.isp.test"))


def test_a_resolver_that_hangs_is_waited_for_no_longer_than_the_timeout(state: Path) -> None:
    hanging = Hanging()
    began = time.monotonic()
    try:
        with pytest.raises(TemporaryError, match=r"no answer from DNS in 0\.1 s"):
            used(state, Dns(mx_isp_test=hanging), lambda resolver: resolver.resolve("mx.isp.test"), timeout=0.1)
        assert time.monotonic() - began < 5
    finally:
        hanging.set()


def test_an_answer_that_comes_too_late_is_kept_for_the_next_time(state: Path) -> None:
    hanging = Hanging("203.0.113.9")

    async def play(resolver: Resolver) -> None:
        with pytest.raises(TemporaryError):
            await resolver.resolve("mx.isp.test")
        hanging.set()
        await eventually(lambda: resolver.known("mx.isp.test") == ("203.0.113.9",))

    used(state, Dns(mx_isp_test=hanging), play, timeout=0.05)


def test_who_asks_for_a_name_that_is_being_asked_for_joins_that_question(state: Path) -> None:
    hanging = Hanging("203.0.113.9")
    dns = Dns(mx_isp_test=hanging)

    async def play(resolver: Resolver) -> None:
        asking = [asyncio.create_task(resolver.resolve("mx.isp.test")) for _ in range(50)]
        await eventually(lambda: dns.at_work > 0)
        hanging.set()
        assert set(await asyncio.gather(*asking)) == {("203.0.113.9",)}

    used(state, dns, play)
    assert dns.asked == ["mx.isp.test"]


def test_no_more_threads_than_workers_are_at_work_however_many_names_hang(state: Path) -> None:
    hanging = Hanging("203.0.113.9")
    dns = Dns(**{f"mx{n}_test": hanging for n in range(20)})

    async def play(resolver: Resolver) -> None:
        asking = [asyncio.create_task(resolver.resolve(f"mx{n}.test")) for n in range(20)]
        await eventually(lambda: dns.at_work == 2)
        await asyncio.sleep(0.05)
        hanging.set()
        await asyncio.gather(*asking)

    used(state, dns, play, workers=2)
    assert (dns.most, len(dns.asked)) == (2, 20)


def test_who_gives_up_does_not_take_the_question_from_the_others(state: Path) -> None:
    hanging = Hanging("203.0.113.9")
    dns = Dns(mx_isp_test=hanging)

    async def play(resolver: Resolver) -> Any:
        one, other = (asyncio.create_task(resolver.resolve("mx.isp.test")) for _ in range(2))
        await eventually(lambda: dns.at_work > 0)
        one.cancel()
        await asyncio.gather(one, return_exceptions=True)
        hanging.set()
        return await other

    assert used(state, dns, play) == ("203.0.113.9",)


def test_closing_and_the_end_of_the_program_do_not_wait_for_a_hanging_resolver(tmp_path: Path) -> None:
    code = f"""
import asyncio, threading, pathlib
from siteagent.names import Resolver
async def main():
    resolver = Resolver(pathlib.Path({str(tmp_path / "names.json")!r}), timeout_seconds=0.1,
                        getaddrinfo=lambda *a, **k: threading.Event().wait())
    try: await resolver.resolve("mx.isp.test")
    except Exception: pass
    await resolver.close()
asyncio.run(main())
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=30).returncode == 0


def test_the_state_file_is_replaced_whole_and_leaves_no_temporary_one(state: Path) -> None:
    used(state, Dns(mx_isp_test=["203.0.113.9"]), lambda resolver: resolver.resolve("mx.isp.test"))
    assert [path.name for path in state.parent.iterdir()] == ["names.json"]
    assert json.loads(state.read_text()) == {"version": 1, "names": {"mx.isp.test": ["203.0.113.9"]}}


def test_an_unchanged_answer_is_not_written_again(state: Path) -> None:
    async def play(resolver: Resolver) -> None:
        await resolver.resolve("mx.isp.test")
        before = state.stat().st_ino
        await resolver.resolve("mx.isp.test")
        assert state.stat().st_ino == before

    used(state, Dns(mx_isp_test=["203.0.113.9"]), play)


def test_answers_that_cannot_be_kept_are_answers_and_said_once(tmp_path: Path) -> None:
    notes: list[str] = []

    async def play(resolver: Resolver) -> None:
        assert await resolver.resolve("mx.isp.test") == ("203.0.113.9",)

    used(tmp_path / "none" / "names.json", Dns(mx_isp_test=["203.0.113.9"]), play, note=notes.append)
    assert len(notes) == 1 and "names.json" in notes[0]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff\xfe", b'{"version": 2, "names": {}}', b'{"version": 1, "names": [1]}', b"[" * 100_000],
)
def test_a_damaged_state_file_is_an_empty_memory(state: Path, content: bytes) -> None:
    state.write_bytes(content)

    async def play(resolver: Resolver) -> None:
        assert resolver.known("mx.isp.test") == ()

    used(state, Dns(), play)


@given(
    st.dictionaries(
        st.text(max_size=5), st.lists(st.one_of(st.none(), st.integers(), st.text(max_size=12)), max_size=4), max_size=4
    )
)
def test_what_is_no_address_in_the_state_file_is_not_believed(names: dict[str, list[Any]]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as made:
        state = Path(made) / "names.json"
        state.write_text(json.dumps({"version": 1, "names": {**names, "good.test": ["203.0.113.9", 7, None]}}))

        async def play(resolver: Resolver) -> None:
            assert resolver.known("good.test") == ("203.0.113.9",)

        used(state, Dns(), play)


def test_a_name_with_a_thousand_addresses_keeps_the_first_few(state: Path) -> None:
    many = [f"10.0.{n // 250}.{n % 250}" for n in range(1000)]
    answer = used(state, Dns(mx_isp_test=many), lambda resolver: resolver.resolve("mx.isp.test"))
    assert answer == tuple(many[:MAX_ADDRESSES])


def test_the_memory_of_names_is_bounded_and_drops_the_oldest(state: Path) -> None:
    names = {f"mx{n}.test": ["203.0.113.9"] for n in range(MAX_NAMES)}
    state.write_text(json.dumps({"version": 1, "names": names}))
    used(state, Dns(new_test=["203.0.113.1"]), lambda resolver: resolver.resolve("new.test"))
    kept = json.loads(state.read_text())["names"]
    assert len(kept) == MAX_NAMES
    assert "new.test" in kept and "mx0.test" not in kept
