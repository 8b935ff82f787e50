"""Sockets that keep the interpreter: what never waits is done without handing it to another thread.

Around every call on a socket CPython gives the interpreter away, for the call might wait. Ours are not blocking and
never do; but the committer's and the filer's threads, who want the interpreter all the time while mail comes, take it,
and the loop gets it back a thread's step later: measured, 55 microseconds for a send of 10. `ctypes.PyDLL` calls the
same functions of the C library and keeps it. Linux only; elsewhere these are plain sockets.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Buffer

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
    _ACCEPT4 = _LIBRARY.accept4
    _ACCEPT4.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int)
    _TAKEN_FLAGS = int(socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    _ADDRESS_BYTES = 128  # struct sockaddr_storage
    _GETSOCKNAME = _LIBRARY.getsockname
    _GETSOCKNAME.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
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

        def getsockname(self) -> Any:
            if self.family not in (socket.AF_INET, socket.AF_INET6):
                return super().getsockname()
            room, length = ctypes.create_string_buffer(_ADDRESS_BYTES), ctypes.c_uint(_ADDRESS_BYTES)
            if _GETSOCKNAME(self.fileno(), room, ctypes.byref(length)) < 0:
                raise _error()
            return _address(room.raw)

        def setblocking(self, flag: bool) -> None:
            if flag or self.gettimeout() != 0:
                super().setblocking(flag)

        def close(self) -> None:
            handle = self.detach()
            if handle >= 0:
                _CLOSE(handle)

    class Listening(socket.socket):
        """A listening socket whose connections are `Taken`, and not blocking from the first, where it is not itself."""

        def accept(self) -> tuple[socket.socket, Any]:
            family = self.family
            if family not in (socket.AF_INET, socket.AF_INET6) or self.gettimeout() != 0:
                connection, address = super().accept()
                return Taken(family, connection.type, connection.proto, fileno=connection.detach()), address
            room, length = ctypes.create_string_buffer(_ADDRESS_BYTES), ctypes.c_uint(_ADDRESS_BYTES)
            handle: int = _ACCEPT4(self.fileno(), room, ctypes.byref(length), _TAKEN_FLAGS)
            if handle < 0:
                raise _error()
            return Taken(family, self.type | socket.SOCK_NONBLOCK, self.proto, fileno=handle), _address(room.raw)

    def _address(room: bytes) -> tuple[str, int] | tuple[str, int, int, int]:
        """What a ``struct sockaddr_in`` or ``sockaddr_in6`` tells, as Python tells it."""
        family, port = struct.unpack_from("=H", room)[0], struct.unpack_from("!H", room, 2)[0]
        if family == socket.AF_INET:
            return socket.inet_ntop(socket.AF_INET, room[4:8]), port
        (flow,), (scope,) = struct.unpack_from("!I", room, 4), struct.unpack_from("=I", room, 24)
        return socket.inet_ntop(socket.AF_INET6, room[8:24]), port, flow, scope

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
