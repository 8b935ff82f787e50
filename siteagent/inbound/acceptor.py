"""The door itself: each connection that comes to a listening socket becomes a session.

asyncio's own server is not used for it where the loop can watch sockets. It makes a task of each connection, and one
that comes while the server is being closed is dropped there, after its session was made: that session would be waited
for until a stop runs out of patience. And out of descriptors it plans as many new starts as its backlog is long, some
of which come when the socket is closed. On Windows it has to do.

Out of descriptors: nobody is accepted for a second, then it is tried again; those who wait stay in the kernel's queue.
It is told when it begins, and not again until somebody came in.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from typing import Any

BACKLOG = 128
_PAUSE_SECONDS = 1.0
# Troubles of one connection and not of the socket, which Linux passes on (accept(2)): the next one is asked for.
_OF_ONE = frozenset(
    getattr(errno, name)
    for name in (
        *("ECONNABORTED", "EPROTO", "ENOPROTOOPT", "EHOSTDOWN", "ENONET", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH"),
        *("EOPNOTSUPP", "ETIMEDOUT"),
    )
    if hasattr(errno, name)
)


class Acceptor:
    """`own` is bound and not blocking; from `open` to `close` it listens, and is closed then. On the loop's thread."""

    def __init__(
        self,
        own: socket.socket,
        begin: Callable[[], asyncio.BufferedProtocol],
        *,
        failed: Callable[[Any], None] = lambda session: None,
    ) -> None:
        """`begin` makes a session; `failed` is given one that got no connection after all."""
        self._own = own
        self._begin = begin
        self._failed = failed
        self._loop = asyncio.get_running_loop()
        # Private to asyncio, and what its server calls: tests/contract/test_socket_names.py.
        self._transport: Callable[..., object] | None = getattr(self._loop, "_make_socket_transport", None)
        self._watches = self._transport is not None and isinstance(self._loop, asyncio.SelectorEventLoop)
        self._server: asyncio.Server | None = None
        self._again: asyncio.TimerHandle | None = None
        self._told = False

    async def open(self) -> None:
        if self._watches:
            self._own.listen(BACKLOG)
            self._watch()
        else:
            self._server = await self._loop.create_server(self._begin, sock=self._own, backlog=BACKLOG)

    def close(self) -> None:
        """Who is in is not touched. Also where `open` failed, or never was."""
        if self._again is not None:
            self._again.cancel()
        if self._watches:
            self._loop.remove_reader(self._own.fileno())
        if self._server is not None:
            self._server.close()
        self._own.close()

    def _watch(self) -> None:
        self._again = None
        self._loop.add_reader(self._own.fileno(), self._take)

    def _take(self) -> None:
        """All who wait, but not so many that the sessions would wait for long."""
        for _ in range(BACKLOG):
            try:
                connection, address = self._own.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _OF_ONE:
                    continue
                self._pause(error)
                return
            self._told = False
            self._make(connection, address)

    def _make(self, connection: socket.socket, address: object) -> None:
        assert self._transport is not None
        connection.setblocking(False)
        session = self._begin()
        try:
            self._transport(connection, session, extra={"peername": address})
        except Exception as error:
            connection.close()
            self._failed(session)
            self._loop.call_exception_handler({"message": "a connection could not be begun", "exception": error})

    def _pause(self, error: OSError) -> None:
        self._loop.remove_reader(self._own.fileno())
        self._again = self._loop.call_later(_PAUSE_SECONDS, self._watch)
        if not self._told:
            self._told = True
            self._loop.call_exception_handler({"message": "nobody can be accepted just now", "exception": error})
