"""rtnetlink: bytes to messages, whatever the bytes; and which datagrams are worth a look."""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
import sys
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from siteagent.link.backend import Unavailable
from siteagent.link.netlink import (
    READS_PER_WAKE_UP,
    RTM_NEWROUTE,
    NetlinkSource,
    attribute,
    attributes,
    heard_a_change,
    messages,
    open_socket,
    request,
    worth_a_look,
)

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs AF_NETLINK (Linux)")


def test_two_messages_of_one_datagram_are_both_read() -> None:
    datagram = request(24, b"abc", sequence=1) + b"\0" + request(20, b"", sequence=2)
    assert [(m.type, m.sequence, m.body) for m in messages(datagram)] == [(24, 1, b"abc"), (20, 2, b"")]


def test_a_truncated_message_is_not_given_out_at_any_cut() -> None:
    whole = request(24, b"12345678", sequence=1)
    assert all(list(messages(whole[:cut])) == [] for cut in range(len(whole)))


def test_a_length_shorter_than_its_header_ends_the_datagram() -> None:
    assert list(messages(b"\x00" * 64)) == []


def test_attributes_are_read_behind_the_fixed_part() -> None:
    body = b"fixed" + b"\0\0\0" + attribute(4, b"\1\2\3\4") + attribute(3, b"lo\0")
    assert attributes(body, 5) == {4: b"\1\2\3\4", 3: b"lo\0"}


def test_an_attribute_that_runs_over_the_end_is_left_out() -> None:
    body = attribute(4, b"\1\2\3\4") + attribute(5, b"12345678")[:-1]
    assert attributes(body, 0) == {4: b"\1\2\3\4"}


@pytest.mark.parametrize("length", range(4))
def test_an_attribute_shorter_than_its_own_header_ends_the_list(length: int) -> None:
    assert attributes(struct.pack("=HH", length, 4) + attribute(5, b"12345678"), 0) == {}


def test_the_flag_bits_of_an_attribute_type_do_not_hide_it() -> None:
    assert attributes(attribute(0x8000 | 22, b"x"), 0) == {22: b"x"}


# Lengths are 16-bit words and mostly small: plain random bytes hardly ever make one that fits.
WORDS = st.one_of(st.integers(0, 40), st.sampled_from([0, 1, 3, 4, 8, 16]), st.integers(0, 65535))
BYTES = st.one_of(
    st.binary(max_size=400),
    st.lists(WORDS, max_size=120).map(lambda words: struct.pack(f"={len(words)}H", *words)),
)


@given(BYTES)
def test_any_bytes_are_read_without_an_exception_and_within_their_bounds(data: bytes) -> None:
    found = list(messages(data))
    assert sum(16 + len(message.body) for message in found) <= len(data)
    assert sum(4 + len(value) for value in attributes(data, 0).values()) <= len(data)
    assert worth_a_look(data, sender=0, truncated=False) in (True, False)


@given(st.binary(max_size=80), st.integers(0, 2**16 - 1), st.integers(0, 2**32 - 1))
def test_what_is_packed_is_read_back(body: bytes, kind: int, sequence: int) -> None:
    (message,) = messages(request(kind, body, sequence=sequence))
    assert (message.type, message.sequence, message.body) == (kind, sequence, body)


def test_a_change_told_by_another_process_than_the_kernel_is_not_heard() -> None:
    assert not worth_a_look(request(RTM_NEWROUTE, b"", sequence=0), sender=4711, truncated=True)


def test_a_truncated_datagram_is_worth_a_look() -> None:
    assert worth_a_look(b"", sender=0, truncated=True)


def test_messages_about_other_things_are_not_worth_a_look() -> None:
    assert not worth_a_look(request(28, b"neighbour", sequence=0), sender=0, truncated=False)


def refused(groups: int = 0) -> socket.socket:
    """As a sandbox does it: the system refuses this kind of socket."""
    return open_socket(groups, protocol=9999)


class Script:
    """A socket that answers `recvmsg` from a list; an exception in it is raised. Then it would block."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.reads = 0

    def recvmsg(self, size: int) -> Any:
        self.reads += 1
        if not self.answers:
            raise BlockingIOError
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer, [], 0, (0, 0)


def heard(script: Script) -> bool:
    return heard_a_change(cast(socket.socket, script))


def test_an_overrun_of_the_buffer_is_one_more_look_again() -> None:
    script = Script(OSError(errno.ENOBUFS, "no buffer space"), b"")
    assert heard(script)
    assert script.reads == 3


def test_reads_of_one_wake_up_are_bounded() -> None:
    script = Script(*[request(RTM_NEWROUTE, b"", sequence=0)] * 10_000)
    assert heard(script)
    assert script.reads == READS_PER_WAKE_UP


def test_a_dead_socket_is_an_error() -> None:
    with pytest.raises(OSError, match="bad"):
        heard(Script(OSError(errno.EBADF, "bad descriptor")))


def test_nothing_there_is_nothing_heard() -> None:
    assert not heard(Script())


@linux
def test_a_refused_socket_is_unavailable_and_not_a_bug() -> None:
    with pytest.raises(Unavailable, match="netlink"):
        asyncio.run(NetlinkSource(refused).run(lambda cause: None))


@linux
def test_the_source_says_look_when_it_begins_and_leaves_no_socket_behind() -> None:
    async def main() -> list[str]:
        causes: list[str] = []
        begun = asyncio.Event()

        def poke(cause: str) -> None:
            causes.append(cause)
            begun.set()

        task = asyncio.create_task(NetlinkSource().run(poke))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return causes

    assert asyncio.run(main(), debug=True) == ["netlink"]
