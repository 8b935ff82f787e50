"""Sockets that keep the interpreter: what never waits is done without handing it to another thread.

Around every call on a socket CPython gives the interpreter away, for the call might wait. Ours are not blocking and
never do; but the committer's and the filer's threads, who want the interpreter all the time while mail comes, take it,
and the loop gets it back a thread's step later: measured, 55 microseconds for a send of 10. `ctypes.PyDLL` calls the
same functions of the C library and keeps it. Linux only; elsewhere these are plain sockets.
"""

from __future__ import annotations

import ctypes
import errno
import math
import os
import socket
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Buffer

_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_REFUSED_SECONDS = 0.5  # asyncio tries again after a second

if sys.platform == "linux":
    # MSG_NOSIGNAL: nobody is killed for a peer that is gone, whatever Python does about SIGPIPE.
    _FLAGS = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    _LIBRARY = ctypes.PyDLL(None, use_errno=True)
    _SEND = _LIBRARY.send
    _SEND.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int)
    _SEND.restype = ctypes.c_ssize_t
    _RECV = _LIBRARY.recv
    _RECV.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    _RECV.restype = ctypes.c_ssize_t
    _CLOSE = _LIBRARY.close
    _CLOSE.argtypes = (ctypes.c_int,)
    _IOCTL = _LIBRARY.ioctl
    _IOCTL.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)
    # SIOCOUTQ, tcp(7), is the same number, and Python has a name for this one. Imported now and not when a connection
    # ends: by then the files of this Python may be gone or another's (an upgrade), or not ours to read (root in its own
    # home that became the owner of the state), and the round would wait for ever.
    from termios import TIOCOUTQ as _SIOCOUTQ

    class Taken(socket.socket):
        """One connection, not blocking. Any other use than asyncio's is as of every socket."""

        def send(self, data: Buffer, flags: int = 0, /) -> int:
            if type(data) is not bytes or self.gettimeout() != 0:
                return super().send(data, flags)
            sent: int = _SEND(self.fileno(), data, len(data), flags | _FLAGS)
            if sent < 0:
                raise _error()
            return sent

        def recv_into(self, buffer: Buffer, nbytes: int = 0, flags: int = 0) -> int:
            if type(buffer) is not memoryview or nbytes or not buffer or self.gettimeout() != 0:
                return super().recv_into(buffer, nbytes, flags)
            start = ctypes.byref(ctypes.c_char.from_buffer(buffer))
            received: int = _RECV(self.fileno(), start, buffer.nbytes, flags | _FLAGS)
            if received < 0:
                raise _error()
            return received

        def close(self) -> None:
            handle = self.detach()
            if handle >= 0:
                _CLOSE(handle)

    class Listening(socket.socket):
        """A listening socket whose connections are `Taken`.

        Out of descriptors, asyncio asks as often as its backlog is long, tells of each time, and plans as many new
        starts a second later, some of which come when the socket is closed. Behind the first refusal it hears that
        nobody waits.
        """

        _refused_at = -math.inf

        def accept(self) -> tuple[socket.socket, Any]:
            if time.monotonic() - self._refused_at < _REFUSED_SECONDS:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            try:
                handle, address = self._accept()  # type: ignore[attr-defined]
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._refused_at = time.monotonic()
                raise
            return Taken(self.family, self.type, self.proto, fileno=handle), address

else:
    Listening = socket.socket


def listening(own: socket.socket) -> socket.socket:
    """`own`, which is used up, as one whose connections keep the interpreter."""
    return Listening(own.family, own.type, own.proto, fileno=own.detach())


def unacknowledged(handle: int) -> int | None:
    """Octets that were sent on a TCP socket and not acknowledged; None where the system does not tell."""
    if sys.platform != "linux":
        return None
    else:
        waiting = ctypes.c_int()
        return waiting.value if _IOCTL(handle, _SIOCOUTQ, ctypes.byref(waiting)) == 0 else None


def _error() -> OSError:
    """As Python would raise it: BlockingIOError, ConnectionResetError and their kind."""
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
