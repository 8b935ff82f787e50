"""Our listening sockets: opened, watched over, closed with grace.

One socket an endpoint, IPv6 ones for IPv6 alone, so that ``0.0.0.0:25`` and ``[::]:25`` stand side by side and no
peer appears as an IPv4-mapped address (with a socket that systemd made, it may). Options that every connection needs
are set on the listening socket, from which Linux gives them to each connection without a call of ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import sys
from collections.abc import Callable, Sequence

from siteagent.config.sections import Endpoint
from siteagent.errors import CannotCreate, PermissionProblem
from siteagent.inbound.acceptor import BACKLOG, Acceptor
from siteagent.inbound.holder import holder_of
from siteagent.inbound.places import House
from siteagent.inbound.reception import Owner, Reception, SessionView
from siteagent.inbound.smtp import Dialect
from siteagent.inbound.sockets import listening

_IP_FREEBIND = 15  # <linux/in.h>; Python has no name for it
_KEEPALIVE = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 6))
# A dropped line sends no reset: what we sent and nobody acknowledged for so long ends the connection.
_USER_TIMEOUT_MILLISECONDS = 120_000
_COMMIT_GRACE_SECONDS = 10.0


class Listener:
    """All listening sockets of one server. `open` and `close` may alternate (``open = "asked"``)."""

    def __init__(
        self,
        reception: Reception,
        *,
        dialect: type[Dialect] = Dialect,
        sockets: Sequence[socket.socket] | None = None,
    ) -> None:
        """`sockets`: bound and listening already (systemd's); they replace the endpoints of the configuration."""
        self._reception = reception
        self._dialect = dialect
        self._given = list(sockets) if sockets is not None else None
        self._acceptors: list[Acceptor] = []
        self._sessions: set[Dialect] = set()
        self._house = self._new_house(reception)
        self._addresses: tuple[str, ...] = ()
        self._on_empty: Callable[[], None] | None = None

    @property
    def addresses(self) -> tuple[str, ...]:
        """What is listened on, ``host:port``; () while closed."""
        return self._addresses

    def sessions(self) -> list[SessionView]:
        """The open sessions, oldest first."""
        views = [view for view in (session.view for session in self._sessions) if view is not None]
        return sorted(views, key=lambda view: (view.since, view.session))

    def reconfigure(self, reception: Reception) -> None:
        """Counts from the next session on."""
        self._reception = reception
        self._house.places.total = reception.listener.max_connections
        self._house.places.each = reception.listener.max_connections_per_peer

    async def open(self) -> None:
        """Raises CannotCreate, as where a port is taken (naming its holder), PermissionProblem where we may not."""
        assert not self._acceptors, "the listener is open"
        bound = _again(self._given) if self._given is not None else bind(self._reception.listener.listen)
        made = [listening(own) for own in bound]
        for own in made:
            own.setblocking(False)
            _tune(own)
        # All are bound before any takes a connection.
        self._acceptors = [Acceptor(own, self._new_session, failed=self._forget) for own in made]
        try:
            for acceptor in self._acceptors:
                await acceptor.open()
        except BaseException:
            self._shut_doors()
            raise
        self._addresses = tuple(_name(own) for own in made)

    async def close(self, *, seconds: float = 30) -> None:
        """No new connection; 421 to whoever is between messages; what is under way may end within `seconds`.

        What is being committed then is waited for a little more: a commit is never cut short.
        """
        self._shut_doors()
        self._addresses = ()
        for session in list(self._sessions):
            session.shut()
        await self._until_gone(seconds)
        for session in list(self._sessions):
            session.stop()
        await self._until_gone(_COMMIT_GRACE_SECONDS)

    def _shut_doors(self) -> None:
        for acceptor in self._acceptors:
            acceptor.close()
        self._acceptors.clear()

    async def _until_gone(self, seconds: float) -> None:
        if not self._sessions:
            return
        gone = asyncio.Event()
        self._on_empty = gone.set
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(gone.wait(), seconds)
        self._on_empty = None

    def adopt(self, owner: Owner) -> Dialect:
        """A session for a connection of ours that the far end turns round (ATRN): ours to watch and to close.

        It takes no place, and is greeted with ``connection_made(transport)`` by whoever has the connection.
        """
        return self._kept(self._dialect(self._reception, reversed_session=True, owner=owner))

    def _new_session(self) -> Dialect:
        return self._kept(self._dialect(self._reception, house=self._house))

    def _kept(self, session: Dialect) -> Dialect:
        session.on_end = self._forget
        self._sessions.add(session)
        return session

    def _forget(self, session: Dialect) -> None:
        self._sessions.discard(session)
        if not self._sessions and self._on_empty is not None:
            self._on_empty()

    @staticmethod
    def _new_house(reception: Reception) -> House:
        listener = reception.listener
        return House(total=listener.max_connections, each=listener.max_connections_per_peer)


def bind(endpoints: Sequence[Endpoint]) -> list[socket.socket]:
    """Listening sockets for all of `endpoints`, or none. Raises CannotCreate, PermissionProblem."""
    made: list[socket.socket] = []
    try:
        made.extend(_bound(endpoint) for endpoint in endpoints)
    except BaseException:
        for own in made:
            own.close()
        raise
    return made


def _again(given: Sequence[socket.socket]) -> list[socket.socket]:
    """Descriptors of our own for sockets that were given to us, and that we shall want again. Raises CannotCreate."""
    made: list[socket.socket] = []
    try:
        made.extend(own.dup() for own in given)
    except OSError as error:
        for own in made:
            own.close()
        raise CannotCreate(
            "cannot listen", error.strerror or str(error), fix="free descriptors: `ulimit -n`"
        ) from error
    return made


def _bound(endpoint: Endpoint) -> socket.socket:
    family = socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET
    own = socket.socket(family, socket.SOCK_STREAM)
    try:
        if sys.platform == "win32":
            # SO_REUSEADDR means something else there: that somebody else may take the port while we have it.
            own.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            own.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if sys.platform == "linux":
            # The address of a line that is down may be bound before the line has it.
            with contextlib.suppress(OSError):
                own.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        own.bind((endpoint.host, endpoint.port))
        own.listen(BACKLOG)
    except OSError as error:
        own.close()
        raise _explained(endpoint, error) from error
    return own


def _explained(endpoint: Endpoint, error: OSError) -> CannotCreate | PermissionProblem:
    what = f"cannot listen on {endpoint}"
    if error.errno == errno.EADDRINUSE:
        holder = holder_of(endpoint.port)
        why = f"{holder} has it" if holder else "another program has it"
        return CannotCreate(what, why, fix="stop that program, or set `listen` in [listener]")
    if error.errno in (errno.EACCES, errno.EPERM):
        return PermissionProblem(
            what,
            "ports below 1024 need a right that we do not have",
            fix="start it by the installed service, which has the right, or as root",
        )
    return CannotCreate(what, error.strerror or str(error), fix="see `listen` in [listener]")


def _tune(own: socket.socket) -> None:
    """For every connection that it takes: they inherit it."""
    own.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # asyncio sets TCP_NODELAY only where a socket names its protocol, which one that was accepted from ours does not.
    # Without it the end of what is longer than a segment waits for an acknowledgement: a round trip each time.
    wanted = [*_KEEPALIVE, ("TCP_USER_TIMEOUT", _USER_TIMEOUT_MILLISECONDS), ("TCP_NODELAY", 1)]
    for name, value in wanted:
        option = getattr(socket, name, None)
        if option is not None:
            with contextlib.suppress(OSError):
                own.setsockopt(socket.IPPROTO_TCP, option, value)


def _name(own: socket.socket) -> str:
    address = own.getsockname()
    if not isinstance(address, tuple):
        return str(address)
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
