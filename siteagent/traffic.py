"""What this host's TCP knows of a connection: what it carried, and whether the far end still answers.

A line is paid by what travels, handshakes and records of TLS included: what our own code says and hears is less than
half of that for a short session.
"""

from __future__ import annotations

import asyncio
import asyncio.trsock
import socket
import struct
import sys

_REPEATED = 2


def carried(transport: asyncio.BaseTransport) -> int | None:
    """Octets of payload so far, both ways; None where nobody counts, or the connection is closed already.

    What was sent counts from its acknowledgement on. Linux >= 4.6, ``struct tcp_info`` (linux/tcp.h):
    `tcpi_bytes_acked` and `tcpi_bytes_received` at 120 and 128.
    """
    info = _info(transport, 136)
    return sum(struct.unpack_from("=QQ", info, 120)) if len(info) >= 136 else None


def unanswered(transport: asyncio.BaseTransport) -> bool:
    """Whether TCP has sent the same octets three times and heard nothing: its far end is most likely gone.

    `tcpi_retransmits`, which an acknowledgement sets back; False where nobody counts.
    """
    info = _info(transport, 8)
    return len(info) >= 3 and info[2] >= _REPEATED


def _info(transport: asyncio.BaseTransport, octets: int) -> bytes:
    """The first `octets` of TCP_INFO; fewer, or none, where the system does not tell."""
    try:
        own = transport.get_extra_info("socket")
    except AttributeError:  # a closed transport of asyncio's TLS
        return b""
    if sys.platform != "linux" or not isinstance(own, socket.socket | asyncio.trsock.TransportSocket):
        return b""
    try:
        return own.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, octets)
    except OSError:
        return b""
