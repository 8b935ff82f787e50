"""Sockets: opened, shared, named, closed."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from siteagent.config.sections import Endpoint
from siteagent.errors import CannotCreate
from siteagent.events import Event
from siteagent.inbound.listener import Listener
from tests.fakes import FakeSpool, Peer, events_of, few_descriptors, listening, reception


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(test())  # type: ignore[arg-type]


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


def test_a_taken_port_is_an_error_that_names_its_holder() -> None:
    async def test() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            made = reception(FakeSpool(), [], listener={"listen": (Endpoint("127.0.0.1", port),)})
            with pytest.raises(CannotCreate) as caught:
                await Listener(made).open()
        assert f"127.0.0.1:{port}" in caught.value.what
        if sys.platform == "linux":
            assert f"pid {os.getpid()}" in caught.value.why

    run(test)


def test_nothing_is_left_open_where_one_of_several_cannot_be() -> None:
    async def test() -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            free = probe.getsockname()[1]
        with socket.create_server(("127.0.0.1", 0)) as taken:
            endpoints = (Endpoint("127.0.0.1", free), Endpoint("127.0.0.1", taken.getsockname()[1]))
            listener = Listener(reception(FakeSpool(), [], listener={"listen": endpoints}))
            with pytest.raises(CannotCreate):
                await listener.open()
            assert listener.addresses == ()
        with socket.create_server(("127.0.0.1", free)):
            pass

    run(test)


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_the_same_port_of_both_families_stands_side_by_side_and_peers_are_plain() -> None:
    async def test() -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        seen: list[str] = []
        endpoints = (Endpoint("0.0.0.0", port), Endpoint("::", port))
        made = reception(FakeSpool(), [], listener={"listen": endpoints}, admit=seen.append)
        async with listening(made) as listener:
            assert listener.addresses == (f"0.0.0.0:{port}", f"[::]:{port}")
            for host in ("127.0.0.1", "::1"):
                reader, writer = await asyncio.open_connection(host, port)
                assert (await reader.readline()).startswith(b"220 ")
                writer.close()
        assert seen == ["127.0.0.1", "::1"]

    run(test)


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_an_ipv4_mapped_peer_of_a_socket_that_was_given_is_its_ipv4_address() -> None:
    async def test() -> None:
        with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as given:
            events: list[Event] = []
            listener = Listener(reception(FakeSpool(), events), sockets=[given])
            await listener.open()
            reader, _ = await asyncio.open_connection("127.0.0.1", given.getsockname()[1])
            await reader.readline()
            assert events_of(events, "session.opened")[0].peer == "127.0.0.1"
            assert listener.sessions()[0].peer == "127.0.0.1"
            await listener.close(seconds=1)

    run(test)


def test_it_opens_and_closes_again_and_again() -> None:
    async def test() -> None:
        with socket.create_server(("127.0.0.1", 0)) as given:
            listener = Listener(reception(FakeSpool(), []), sockets=[given])
            for _ in range(3):
                await listener.open()
                peer = await (await Peer.connect(listener)).hello()
                assert await peer.code("QUIT") == 221
                await listener.close(seconds=1)
                assert listener.addresses == ()

    run(test)


@pytest.mark.skipif(sys.platform != "linux", reason="plain sockets elsewhere")
def test_sockets_that_were_given_cannot_be_used_without_descriptors_and_can_be_later() -> None:
    async def test() -> None:
        with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
            listener = Listener(reception(FakeSpool(), []), sockets=[one, other])
            for spare in (0, 1):
                with few_descriptors(spare), pytest.raises(CannotCreate, match="Too many open files"):
                    await listener.open()
            await listener.open()
            assert len(listener.addresses) == 2
            await listener.close(seconds=1)

    run(test)


@pytest.mark.skipif(sys.platform != "linux", reason="plain sockets elsewhere")
def test_closed_while_out_of_descriptors_it_leaves_no_start_planned_for_a_closed_socket() -> None:
    async def test() -> None:
        loop, troubles = asyncio.get_running_loop(), list[Any]()
        loop.set_exception_handler(lambda loop, context: troubles.append(context.get("exception")))
        listener = Listener(reception(FakeSpool(), []))
        await listener.open()
        port = int(listener.addresses[0].rpartition(":")[2])
        with socket.socket() as early, socket.socket() as late:
            late.setblocking(False)
            with few_descriptors(0):
                early.connect(("127.0.0.1", port))
                while not troubles:
                    await asyncio.sleep(0.01)
            closing = loop.create_task(listener.close(seconds=1))
            await asyncio.sleep(0)
            assert listener.addresses == ()
            await closing
            with pytest.raises(ConnectionError):
                await loop.sock_connect(late, ("127.0.0.1", port))
        await asyncio.sleep(1.1)  # when asyncio asks again
        assert [error.errno for error in troubles] == [errno.EMFILE], troubles

    run(test)


@pytest.mark.skipif(sys.platform != "linux", reason="plain sockets elsewhere")
@pytest.mark.parametrize("turns", range(7))
def test_closed_at_any_moment_of_an_arrival_it_keeps_no_session_that_never_ends(turns: int) -> None:
    async def test() -> None:
        listener = Listener(reception(FakeSpool(), []))
        await listener.open()
        with socket.socket() as far:
            far.connect(("127.0.0.1", int(listener.addresses[0].rpartition(":")[2])))
            for _ in range(turns):
                await asyncio.sleep(0)
            began = time.monotonic()
            closing = asyncio.ensure_future(listener.close(seconds=5))
            await asyncio.sleep(0.02)
        await closing
        assert listener._sessions == set()
        assert time.monotonic() - began < 3

    run(test)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux gives a connection the options of its listening socket")
def test_connections_notice_a_line_that_is_gone() -> None:
    async def test() -> None:
        async with listening(reception(FakeSpool(), [])) as listener:
            await (await Peer.connect(listener)).hello()
            (session,) = listener._sessions
            assert session.transport is not None
            own = session.transport.get_extra_info("socket")
            assert own.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert own.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30
            assert own.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 120_000

    run(test)


def test_no_reply_waits_until_the_one_before_is_acknowledged() -> None:
    async def test() -> None:
        async with listening(reception(FakeSpool(), [])) as listener:
            await (await Peer.connect(listener)).hello()
            (session,) = listener._sessions
            assert session.transport is not None
            own = session.transport.get_extra_info("socket")
            assert own.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1

    run(test)


def test_the_open_sessions_can_be_looked_at() -> None:
    async def test() -> None:
        async with listening(reception(FakeSpool(), [])) as listener:
            peer = await (await Peer.connect(listener)).hello()
            assert await peer.code("MAIL FROM:<a@b.example> SIZE=2000000") == 250
            assert await peer.code("RCPT TO:<alice@office.example>") == 250
            assert await peer.code("DATA") == 354
            peer.send(b"x" * 80_000)
            while not (view := listener.sessions()[0]).bytes:
                await asyncio.sleep(0.01)
            while (view := listener.sessions()[0]).bytes < 80_000:
                await asyncio.sleep(0.01)
            assert (view.provider, view.peer, view.bytes, view.size) == ("isp", "127.0.0.1", 80_000, 2_000_000)
            assert view.since.utcoffset() is not None
            assert 0 < view.seconds < (datetime.now(UTC) - view.since).total_seconds() + 1
            await peer.code("\r\n.")
            between = listener.sessions()[0]
            assert (between.bytes, between.size, between.seconds) == (0, 0, 0)
            await peer.code("QUIT")
            await peer.rest()
            assert listener.sessions() == []

    run(test)


def test_a_reload_counts_from_the_next_session() -> None:
    async def test() -> None:
        spool = FakeSpool()
        async with listening(reception(spool, [])) as listener:
            old = await (await Peer.connect(listener)).hello()
            listener.reconfigure(reception(spool, [], listener={"max_message_bytes": 1000}))
            new = await Peer.connect(listener)
            await new.reply()
            assert "SIZE 1000" in await new.say("EHLO isp.example")
            assert "SIZE 1000" not in await old.say("EHLO isp.example")

    run(test)


PROXIED = {"proxy_protocol": True}


def test_behind_a_proxy_the_header_tells_who_the_peer_is() -> None:
    async def test() -> None:
        events: list[Event] = []
        seen: list[str] = []
        async with listening(reception(FakeSpool(), events, listener=PROXIED, admit=seen.append)) as listener:
            peer = await Peer.connect(listener)
            peer.send(b"PROXY TCP4 192.0.2.9 198.51.")
            await asyncio.sleep(0.02)
            assert seen == []
            peer.send(b"100.1 4000 25\r\nEHLO isp.example\r\n")
            assert (await peer.reply()).startswith("220 ")
            assert (await peer.reply()).startswith("250-")
        assert seen == ["192.0.2.9"]
        assert events_of(events, "session.opened")[0].peer == "192.0.2.9"

    run(test)


def test_behind_a_proxy_a_connection_without_a_header_is_closed() -> None:
    async def test() -> None:
        async with listening(reception(FakeSpool(), [], listener=PROXIED)) as listener:
            peer = await Peer.connect(listener)
            assert (await peer.say("EHLO isp.example")).startswith("421 4.7.1")

    run(test)


def test_behind_a_proxy_a_silent_connection_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("siteagent.inbound.door._PROXY_SECONDS", 0.1)

    async def test() -> None:
        async with listening(reception(FakeSpool(), [], listener=PROXIED)) as listener:
            peer = await Peer.connect(listener)
            assert (await peer.reply()).startswith("421 4.7.1")

    run(test)


def test_an_admission_that_fails_is_421() -> None:
    def admit(peer: str) -> None:
        raise RuntimeError("no table")

    async def test() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        async with listening(reception(FakeSpool(), [], admit=admit)) as listener:
            assert (await (await Peer.connect(listener)).reply()).startswith("421 4.3.0")

    run(test)
