"""Linux: rtnetlink by a plain socket. Messages as bytes and back (pure), and the source that hears of changes.

Works without privileges. Nothing here believes what it hears: a message of an interesting type, a truncated one and
an overrun of the socket's buffer (ENOBUFS) all mean "look again". NETLINK_NO_ENOBUFS is never set: it would lose the
last hint of a storm. Formats: rtnetlink(7), netlink(7), linux/rtnetlink.h; all numbers are in the host's byte order.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from siteagent.link.backend import Poke, Unavailable

NLMSG_ERROR: Final = 2
RTM_NEWLINK: Final = 16
RTM_GETLINK: Final = 18
RTM_NEWROUTE: Final = 24
RTM_GETROUTE: Final = 26
NLM_F_REQUEST: Final = 1

# linux/rtnetlink.h: NEWLINK DELLINK, NEWADDR DELADDR, NEWROUTE DELROUTE.
CHANGES: Final = frozenset({16, 17, 20, 21, 24, 25})
# RTMGRP_LINK, _IPV4_IFADDR, _IPV4_ROUTE, _IPV6_IFADDR, _IPV6_ROUTE. Addresses too: a renewed lease may change ours
# while every route stays.
GROUPS: Final = 0x1 | 0x10 | 0x40 | 0x100 | 0x400

HEADER: Final = struct.Struct("=IHHII")
_ATTRIBUTE: Final = struct.Struct("=HH")
_NLA_TYPE_MASK: Final = 0x3FFF

READS_PER_WAKE_UP: Final = 64
BUFFER_BYTES: Final = 65536


@dataclass(frozen=True, slots=True)
class Message:
    """One netlink message; `body` is what follows its header."""

    type: int
    sequence: int
    body: bytes


def messages(datagram: bytes) -> Iterator[Message]:
    """The messages of one datagram; ends at the first whose length does not fit, whatever the bytes are."""
    at = 0
    while at + HEADER.size <= len(datagram):
        length, kind, _flags, sequence, _port = HEADER.unpack_from(datagram, at)
        if length < HEADER.size or at + length > len(datagram):
            return
        yield Message(kind, sequence, datagram[at + HEADER.size : at + length])
        at += _aligned(length)


def attributes(body: bytes, offset: int) -> dict[int, bytes]:
    """Type to value of the attributes behind a fixed part of `offset` bytes; the first of a type counts."""
    found: dict[int, bytes] = {}
    at = _aligned(offset)
    while at + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, at)
        if length < _ATTRIBUTE.size or at + length > len(body):
            break
        found.setdefault(kind & _NLA_TYPE_MASK, body[at + _ATTRIBUTE.size : at + length])
        at += _aligned(length)
    return found


def request(kind: int, body: bytes, *, sequence: int) -> bytes:
    """A request with one fixed part (and attributes, see `attribute`) as it goes to the kernel."""
    return HEADER.pack(HEADER.size + len(body), kind, NLM_F_REQUEST, sequence, 0) + body


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded."""
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(_aligned(length) - length)


def _aligned(length: int) -> int:
    return (length + 3) & ~3


def worth_a_look(datagram: bytes, *, sender: int, truncated: bool) -> bool:
    """Whether to look again. Only the kernel (port id 0) is heard: any local user may write to our socket."""
    return sender == 0 and (truncated or any(message.type in CHANGES for message in messages(datagram)))


def open_socket(groups: int = 0, *, protocol: int | None = None) -> socket.socket:
    """A non-blocking netlink socket in `groups`; `protocol` defaults to NETLINK_ROUTE.

    Raises `Unavailable` where the system has none or refuses it (RestrictAddressFamilies, a sandbox).
    """
    if sys.platform != "linux":
        raise Unavailable("cannot open a netlink socket", "netlink is Linux' own")
    try:
        channel = socket.socket(
            socket.AF_NETLINK,
            socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK,
            socket.NETLINK_ROUTE if protocol is None else protocol,
        )
    except (OSError, AttributeError) as error:
        raise Unavailable("cannot open a netlink socket", str(error)) from error
    try:
        channel.bind((0, groups))
    except OSError as error:
        channel.close()
        raise Unavailable("cannot listen to rtnetlink", str(error)) from error
    return channel


class NetlinkSource:
    """Pokes within about a millisecond of a change of links, addresses or routes."""

    name = "netlink"
    nudges = False

    def __init__(self, open_channel: Callable[[int], socket.socket] = open_socket) -> None:
        """`open_channel`: groups -> a socket in them."""
        self._open_channel = open_channel

    async def run(self, poke: Poke) -> None:
        """See `Source.run`."""
        channel = self._open_channel(GROUPS)
        loop = asyncio.get_running_loop()
        broken: asyncio.Future[None] = loop.create_future()

        def readable() -> None:
            try:
                if heard_a_change(channel):
                    poke(self.name)
            except Exception as error:
                # Unread, the socket would call us again at once and for ever.
                loop.remove_reader(channel)
                if not broken.done():
                    broken.set_exception(error)

        try:
            loop.add_reader(channel, readable)
            poke(self.name)
            await broken
        finally:
            loop.remove_reader(channel)
            channel.close()


def heard_a_change(channel: socket.socket) -> bool:
    """Read what waits, at most `READS_PER_WAKE_UP` datagrams, so that a storm of routes cannot starve the sessions.

    Raises OSError where the socket is dead.
    """
    if sys.platform == "win32":
        return False  # it has no such socket
    heard = False
    for _ in range(READS_PER_WAKE_UP):
        try:
            datagram, _control, flags, sender = channel.recvmsg(BUFFER_BYTES)
        except (BlockingIOError, InterruptedError):
            break
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            heard = True  # The kernel dropped messages: whatever they said, look.
            continue
        heard = worth_a_look(datagram, sender=sender[0], truncated=bool(flags & socket.MSG_TRUNC)) or heard
    return heard
