"""Whether the peer's host has acknowledged what we said: the only sign that a 250 may have been heard.

Neither QUIT nor a reset tells: Postfix sends QUIT together with the final dot and does not wait for its answer. An
acknowledgement tells that the octets reached the host, not that its program read them; but where there is none, the
provider certainly holds the message still, and will bring it again.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from typing import Any

from siteagent.inbound import sockets

_TLS_RECORDS = 48  # octets that TLS 1.3 may put around a last reply and its own goodbye
_TCP_CLOSE = 7  # <net/tcp_states.h>


def unacknowledged(transport: asyncio.Transport) -> int | None:
    """Octets that we sent and the peer's host has not acknowledged; None where the system does not tell."""
    own = _socket_of(transport)
    handle = own.fileno() if own is not None else -1
    waiting = sockets.unacknowledged(handle) if handle >= 0 else None  # -1: closed already
    return waiting + transport.get_write_buffer_size() if waiting is not None else None


def heard(unacknowledged: int, *, said_since: int, tls: bool) -> bool:
    """Whether all but the last `said_since` octets were acknowledged."""
    return unacknowledged <= said_since + (_TLS_RECORDS if tls and said_since else 0)


def gone(transport: asyncio.Transport) -> bool:
    """The connection was reset. After a half-close asyncio looks no more, and would never notice."""
    own = _socket_of(transport)
    if sys.platform != "linux" or own is None:
        return False
    try:
        return bool(own.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_CLOSE)
    except OSError:
        return True


def _socket_of(transport: asyncio.Transport) -> Any:
    try:
        return transport.get_extra_info("socket")
    except AttributeError:  # a closed transport of asyncio's TLS
        return None
