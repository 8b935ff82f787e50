"""What ETRN and ATRN mean at this hub: which nodes, how much is told, and what is started. Nothing here waits.

RFC 1985 §5.1: answered at once, pushed afterwards. Numbers, and that there is nothing, are told to an asker who logged
in, and to nobody else: to all others 250 says that some action will occur, and no more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from siteagent.events import Emit, NodeAsked
from siteagent.hub.guard import TOO_OFTEN, Guard
from siteagent.hub.login import Logins
from siteagent.hub.nodes import NodeTable
from siteagent.hub.push import Pusher
from siteagent.hub.queue import Queue
from siteagent.wire.reply import Reply

_NO_MAIL = Reply(453, "4.0.0", "You have no mail")
# Both speak of this server and not of a domain: X.3.z (RFC 3463 §3.4), so that nobody asks for each alone.
_ATRN_TOO_OFTEN = Reply(450, "4.3.2", "too many requests, try again in a minute")
_UNDER_WAY = Reply(450, "4.3.2", "your mail is on its way to you over another connection, try again later")
_TURNING = Reply(250, "2.0.0", "OK now reversing the connection")


@dataclass(frozen=True, slots=True)
class Turn:
    """`reply` is the 250; `run` gets the connection, and what the peer said too early."""

    reply: Reply
    run: Callable[[asyncio.Transport, bytes], None]


class Front:
    """The verbs' other side."""

    def __init__(
        self,
        table: Callable[[], NodeTable],
        *,
        queue: Queue,
        pusher: Pusher,
        guard: Guard,
        logins: Logins,
        emit: Emit,
    ) -> None:
        self.logins = logins
        self._table = table
        self._queue = queue
        self._pusher = pusher
        self._guard = guard
        self._emit = emit

    def failed_login(self, peer: str) -> bool:
        return self._guard.failed(peer)

    def passed_login(self, peer: str) -> None:
        self._guard.passed(peer)

    def release(self, argument: str, *, account: str | None, peer: str) -> Reply:
        """ETRN."""
        table = self._table()
        own = table.account(account) if account is not None else []
        if not self._guard.may_ask(account or peer, nodes=len(own)):
            return self._told("etrn", argument, account, peer, TOO_OFTEN)
        found = table.startable(argument, account=account)
        if isinstance(found, Reply):
            return self._told("etrn", argument, account, peer, found)
        names = tuple(node.name for node in found)
        pushed = [node for node in found if node.deliver_to is not None]
        if not pushed:
            reply = Reply(458, "4.4.1", f"Unable to queue messages for node {argument}: it fetches them by ATRN")
            return self._told("etrn", argument, account, peer, reply, names)
        count = sum(self._queue.count(node.name) for node in pushed)
        for node in pushed:
            if self._queue.count(node.name):
                self._pusher.start(node)
        reply = _started(argument, count if account is not None else None)
        return self._told("etrn", argument, account, peer, reply, names, count)

    def fetch(self, argument: str, *, account: str, peer: str) -> Reply | Turn:
        """ATRN."""
        table = self._table()
        if not self._guard.may_ask(account, nodes=len(table.account(account))):
            return self._told("atrn", argument, account, peer, _ATRN_TOO_OFTEN)
        found = table.fetchable(argument, account=account)
        if isinstance(found, Reply):
            return self._told("atrn", argument, account, peer, found)
        names = tuple(node.name for node in found)
        waiting = [node for node in found if self._queue.count(node.name)]
        if not waiting:
            return self._told("atrn", argument, account, peer, _NO_MAIL, names)
        if not all(self._pusher.make_way(node.name) for node in waiting):
            # A site that lost its line asks until that is believed, and must not be told then that it asked too often.
            self._guard.not_asked(account)
            return self._told("atrn", argument, account, peer, _UNDER_WAY, names)
        count = sum(self._queue.count(node.name) for node in waiting)
        self._told("atrn", argument, account, peer, _TURNING, names, count)
        return Turn(_TURNING, partial(self._pusher.turned, waiting))

    def _told(
        self,
        method: str,
        argument: str,
        account: str | None,
        peer: str,
        reply: Reply,
        nodes: tuple[str, ...] = (),
        messages: int = 0,
    ) -> Reply:
        self._emit(
            NodeAsked(
                method=method,
                argument=argument,
                account=account or "",
                peer=peer,
                code=reply.code,
                nodes=nodes,
                messages=messages,
            )
        )
        return reply


def _started(argument: str, count: int | None) -> Reply:
    """RFC 1985 §5.1. `count` None: the asker is not known."""
    if count is None:
        return Reply(250, "2.0.0", f"OK, queuing for node {argument} started")
    if count == 0:
        return Reply(251, "2.0.0", f"OK, no messages waiting for node {argument}")
    return Reply(253, "2.0.0", f"OK, {count} pending messages for node {argument} started")
