"""Sending a queue over one connection: one burst, and each letter's answer its own."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import sys
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from siteagent.config.sections import Limits
from siteagent.hub.letter import Letter, Result
from siteagent.hub.pipe import Lost, Pipe
from siteagent.hub.sender import WINDOW_LETTERS, Sender

BURST = {"pipelining": "", "chunking": "", "size": "1000000", "8bitmime": ""}
STEPS = {"pipelining": ""}


class Site(asyncio.Transport):
    """The far end as a transport: what is written to it goes to `answer`, whose octets come back a turn later."""

    def __init__(self, pipe: Pipe, answer: Callable[[bytes], bytes]) -> None:
        super().__init__()
        self._pipe = pipe
        self._answer = answer
        self.written: list[bytes] = []
        self.closed = False

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None: ...

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def resume_reading(self) -> None: ...

    def write(self, data: object) -> None:
        octets = bytes(data)  # type: ignore[call-overload]
        self.written.append(octets)
        answer = self._answer(octets)
        if answer:
            asyncio.get_running_loop().call_soon(self._come, answer)

    def _come(self, answer: bytes) -> None:
        if not self.closed:
            self._pipe.data_received(answer)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            asyncio.get_running_loop().call_soon(self._pipe.connection_lost, None)

    abort = close


def letters(count: int, *addresses: str) -> list[Letter]:
    return [
        Letter(
            id=n,
            message=f"m{n}",
            sender="a@b.example",
            addresses=addresses or ("alice@office.example",),
            size=20,
            smtputf8=False,
            eight_bit=True,
            received=b"",
            data=b"Subject: %d\n" % n,
        )
        for n in range(count)
    ]


def sent(
    mail: Iterable[Letter], answer: Callable[[bytes], bytes], features: dict[str, str], *, limits: Limits | None = None
) -> tuple[list[Result], Site, Lost | None]:
    async def run() -> tuple[list[Result], Site, Lost | None]:
        pipe = Pipe()
        site = Site(pipe, answer)
        pipe.take_over(site)
        waiting, results = list(mail), list[Result]()

        async def following() -> Letter | None:
            return waiting.pop(0) if waiting else None

        sender = Sender(pipe, features, limits or Limits())
        try:
            await sender.send(following, results.append)
            await sender.bye()
        except Lost as lost:
            return results, site, lost
        return results, site, None

    return asyncio.run(run())


def obliging(octets: bytes) -> bytes:
    """250 to each command of a burst."""
    replies = b""
    while octets:
        line, _, octets = octets.partition(b"\r\n")
        if line.startswith(b"BDAT "):
            octets = octets[int(line.split()[1]) :]
        replies += b"221 bye\r\n" if line == b"QUIT" else b"250 ok\r\n"
    return replies


def test_everything_goes_in_one_burst_with_quit_behind_it() -> None:
    silent: list[bytes] = []

    def answer(octets: bytes) -> bytes:
        silent.append(octets)
        return obliging(b"".join(silent)) if octets == b"QUIT\r\n" else b""

    results, site, lost = sent(letters(5), answer, BURST)
    assert lost is None
    assert [result.taken for result in results] == [("alice@office.example",)] * 5
    assert len(site.written) == 6, "one write a letter, and QUIT: nothing was waited for"


def test_each_letter_but_the_first_begins_with_rset() -> None:
    _, site, _ = sent(letters(3), obliging, BURST)
    assert [octets.startswith(b"RSET\r\n") for octets in site.written] == [False, True, True, False]


def test_a_refused_letter_leaves_the_next_one_alone() -> None:
    def answer(octets: bytes) -> bytes:
        if b"Subject: 1\r\n" in octets:
            return b"250 ok\r\n550 5.7.1 not you\r\n503 no\r\n503 no\r\n"
        return obliging(octets)

    results, _, lost = sent(letters(3), answer, BURST)
    assert lost is None
    assert [bool(result.taken) for result in results] == [True, False, True]
    assert str(results[1].answers["alice@office.example"]) == "550 5.7.1 not you"


def test_recipients_are_answered_each_for_themselves() -> None:
    def answer(octets: bytes) -> bytes:
        if octets.startswith(b"MAIL"):
            return b"250 ok\r\n250 ok\r\n450 later\r\n250 taken\r\n"
        return obliging(octets)

    ((result,), _, _) = sent(letters(1, "alice@office.example", "bob@office.example"), answer, BURST)
    assert result.taken == ("alice@office.example",)
    assert result.refused == ()


def test_what_was_not_answered_when_the_line_went_is_told_as_unanswered() -> None:
    count = 0

    def answer(octets: bytes) -> bytes:
        nonlocal count
        count += 1
        return obliging(octets) if count <= 2 else b"421 going down\r\n" if count == 3 else b""

    results, _, lost = sent(letters(6), answer, BURST)
    assert lost is not None
    assert lost.code == 421
    assert [len(result.taken) for result in results] == [1, 1, 0, 0, 0, 0]
    assert {result.answers["alice@office.example"] for result in results[2:]} == {None}


def test_no_more_than_the_window_is_unanswered() -> None:
    results, site, lost = sent(
        letters(WINDOW_LETTERS + 50), lambda octets: b"", BURST, limits=Limits(command_seconds=0.05)
    )
    assert lost is not None
    assert len(site.written) == WINDOW_LETTERS
    assert len(results) == WINDOW_LETTERS


@pytest.mark.parametrize("stray", [b"250 stray\r\n", b"999 no\r\n", b"250-a\r\n251 b\r\n"])
def test_a_reply_that_nobody_asked_for_ends_the_connection(stray: bytes) -> None:
    def answer(octets: bytes) -> bytes:
        return obliging(octets) + (stray if octets != b"QUIT\r\n" else b"")

    results, _, lost = sent(letters(3), answer, STEPS | {"chunking": ""})
    assert lost is not None or len(results) == 3
    assert not (stray == b"250 stray\r\n" and lost is None and len(results[2].taken) == 0)


def test_a_reply_before_anything_was_said_is_the_answer_to_nothing() -> None:
    async def run() -> None:
        pipe = Pipe()
        pipe.data_received(b"250 early\r\n")
        with pytest.raises(Lost, match="without being asked"):
            await pipe.heard(pipe.reply_to_come(), 0.05)

    asyncio.run(run())


def test_with_data_no_content_is_given_to_a_message_that_goes_to_nobody() -> None:
    def answer(octets: bytes) -> bytes:
        if octets == b".\r\n":
            return b"554 nobody\r\n"
        if octets == b"QUIT\r\n":
            return b"221 bye\r\n"
        return b"250 ok\r\n550 no\r\n354 go on\r\n"

    ((result,), site, lost) = sent(letters(1), answer, STEPS)
    assert lost is None
    assert result.refused == ("alice@office.example",)
    assert not any(b"Subject" in octets for octets in site.written)


@pytest.mark.parametrize("features", [STEPS, {}], ids=["pipelining", "bare"])
def test_a_250_to_data_is_no_word_about_the_content(features: dict[str, str]) -> None:
    def answer(octets: bytes) -> bytes:
        return b"250 ok\r\n" * octets.count(b"\r\n")

    results, site, lost = sent(letters(1), answer, features)
    assert [result.taken for result in results] == [()]
    assert lost is not None and lost.why == 'it said "250 ok" to DATA'
    assert not any(b"Subject" in octets for octets in site.written)


def test_a_letter_above_the_sites_size_is_not_sent() -> None:
    ((result,), site, _) = sent(letters(1), obliging, BURST | {"size": "10"})
    assert result.refused == ("alice@office.example",)
    assert site.written == [b"QUIT\r\n"]


@pytest.mark.parametrize("size", ["", "0", "x", "\u00b2", "\u0663", "-1", "1 2", "9" * 400])
def test_a_size_that_is_no_limit_is_none(size: str) -> None:
    ((result,), _, lost) = sent(letters(1), obliging, BURST | {"size": size})
    assert (result.taken, lost) == (("alice@office.example",), None)


def test_of_a_refused_message_in_chunks_the_first_refusal_is_the_reason(tmp_path: Path) -> None:
    body = tmp_path / "body"
    body.write_bytes(b"x" * 70 + b"\n" + b"y\n" * 400_000)
    (one,) = letters(1)
    big = dataclasses.replace(one, data=None, file=body)
    chunks = 0

    def answer(octets: bytes) -> bytes:
        nonlocal chunks
        if octets.startswith(b"BDAT"):
            chunks += 1
            return b"452 4.3.1 no room\r\n" if chunks == 2 else b"503 no\r\n" if chunks > 2 else b"250 ok\r\n"
        return obliging(octets)

    ((result,), _, lost) = sent([big], answer, BURST)
    assert lost is None
    assert chunks > 3
    assert str(result.answers["alice@office.example"]) == "452 4.3.1 no room"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="POSIX")
@pytest.mark.parametrize("features", [BURST, STEPS], ids=["burst", "steps"])
def test_a_letter_is_told_of_where_the_sending_is_broken_off_while_its_file_is_opened(
    tmp_path: Path, features: dict[str, str]
) -> None:
    """The site asked anew meanwhile. A letter of which nobody is told would stay away until the next start."""
    body = tmp_path / "body"
    os.mkfifo(body)
    (one,) = letters(1)
    mail = iter([dataclasses.replace(one, data=None, file=body)])
    results: list[Result] = []

    async def run() -> None:
        pipe = Pipe()
        pipe.take_over(Site(pipe, obliging), b"")
        handed_out = asyncio.Event()

        async def next_letter() -> Letter | None:
            handed_out.set()
            return next(mail, None)

        sending = asyncio.ensure_future(Sender(pipe, features, Limits()).send(next_letter, results.append))
        await handed_out.wait()
        await asyncio.sleep(0)  # the file is being opened, which takes as long as nobody writes to it
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        writers.append(os.open(body, os.O_RDWR))  # lets go whoever opens it still

    writers: list[int] = []
    asyncio.run(run())
    os.close(writers[0])
    assert [(result.letter.id, result.taken) for result in results] == [(0, ())]


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("end", ["lost", "broken off"])
@pytest.mark.parametrize("features", [BURST, STEPS], ids=["burst", "steps"])
def test_the_file_of_a_letter_is_closed_where_the_connection_ends_in_the_middle_of_it(
    tmp_path: Path, features: dict[str, str], end: str
) -> None:
    """Not when Python looks for garbage, which may be hours later: an open file keeps its room on the disk."""
    body = tmp_path / "body"
    body.write_bytes(b"y\n" * 400_000)
    (one,) = letters(1)
    mail = iter([dataclasses.replace(one, data=None, file=body)])
    results: list[Result] = []
    ended: list[BaseException] = []

    async def run() -> None:
        pipe = Pipe()
        begun = asyncio.Event()

        def answer(octets: bytes) -> bytes:
            if b"y\r\n" in octets:  # the first piece: no more is taken
                pipe.pause_writing()
                begun.set()
                return b""
            return b"250 ok\r\n" * 2 + b"354 go on\r\n" if octets.startswith(b"MAIL") else b""

        site = Site(pipe, answer)
        pipe.take_over(site)

        async def next_letter() -> Letter | None:
            return next(mail, None)

        sending = asyncio.ensure_future(Sender(pipe, features, Limits()).send(next_letter, results.append))
        await begun.wait()
        if end == "lost":
            pipe.connection_lost(None)
            pipe.resume_writing()
        else:
            sending.cancel()
        try:
            await sending
        except (Lost, asyncio.CancelledError) as error:
            ended.append(error)  # what it came through lives on with it
        assert open_descriptors(body) == 0

    asyncio.run(run())
    assert len(ended) == 1
    assert [(result.letter.id, result.taken) for result in results] == [(0, ())]


def test_a_connection_that_ended_is_let_go_of_whoever_still_holds_its_pipe() -> None:
    """An error does, for as long as Python does not look for garbage; and 300 kB of TLS are behind the connection."""

    async def run() -> bool:
        pipe = Pipe()
        site = Site(pipe, obliging)
        pipe.take_over(site)
        gone = weakref.ref(site)
        pipe.connection_lost(None)
        del site
        pipe.write(b"NOOP\r\n")
        pipe.close()
        await pipe.bye(1)
        return gone() is None and pipe.unanswered

    assert asyncio.run(run())


def open_descriptors(file: Path) -> int:
    own = Path("/proc/self/fd")
    return sum(os.path.realpath(own / name) == str(file) for name in os.listdir(own))


def test_a_421_that_nobody_asked_for_is_told_as_that() -> None:
    def answer(octets: bytes) -> bytes:
        return obliging(octets) + b"421 closing\r\n" if octets.startswith(b"MAIL") else b""

    _, _, lost = sent(letters(1), answer, BURST)
    assert lost is None or lost.code == 421
    results, _, lost = sent(letters(2), lambda octets: answer(octets) if octets.startswith(b"MAIL") else b"", BURST)
    assert lost is not None
    assert lost.code == 421
    assert [bool(result.taken) for result in results] == [True, False]
