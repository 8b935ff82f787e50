"""`uplink.sockets`: which addresses are dialled, from where, for how long."""

from __future__ import annotations

import asyncio
import socket

import pytest
from siteagent.events import Line
from siteagent.uplink import sockets
from siteagent.uplink.broken import Broken
from tests import scripted
from tests.asking import section


def dialled(addresses: tuple[str, ...], line: Line | None, *, seconds: float = 5.0) -> socket.socket:
    async def scene() -> socket.socket:
        async with scripted.Provider("! silent") as server:
            where = section(server.port, host="localhost")
            return await sockets.dial(where, addresses, server.port, line=line, seconds=seconds, note=lambda text: None)

    return asyncio.run(scene())


def refused(addresses: tuple[str, ...], line: Line | None, *, host: str = "localhost") -> Broken:
    async def scene() -> Broken:
        with pytest.raises(Broken) as caught:
            await sockets.dial(section(9, host=host), addresses, 9, line=line, seconds=0.5, note=lambda text: None)
        return caught.value

    return asyncio.run(scene())


def test_the_socket_is_bound_to_the_lines_address() -> None:
    with dialled(("127.0.0.1",), Line("lo", "127.0.0.5")) as ours:
        assert ours.getsockname()[0] == "127.0.0.5"


def test_an_address_that_the_line_has_lost_is_told() -> None:
    broken = refused(("127.0.0.1",), Line("lo", "192.0.2.1"))
    assert (broken.stage, broken.temporary) == ("connect", True)
    assert "cannot assign" in broken.why


def test_without_a_line_the_system_chooses() -> None:
    with dialled(("127.0.0.1",), None) as ours:
        assert ours.getsockname()[0] == "127.0.0.1"


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="TCP_USER_TIMEOUT is Linux's")
def test_the_clocks_of_tcp_are_set() -> None:
    with dialled(("127.0.0.1",), None) as ours:
        assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 120_000
        assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30


def test_each_address_is_tried() -> None:
    with dialled(("127.0.0.9", "127.0.0.1"), None) as ours:
        assert ours.getpeername()[0] == "127.0.0.1"


def test_addresses_of_the_lines_family_come_first() -> None:
    with dialled(("::1", "127.0.0.1"), Line("lo", "127.0.0.1")) as ours:
        assert ours.getpeername()[0] == "127.0.0.1"


def test_every_address_that_did_not_answer_is_named() -> None:
    broken = refused(("127.0.0.8", "127.0.0.9"), None)
    assert "127.0.0.8: connection refused" in broken.why
    assert "127.0.0.9: connection refused" in broken.why
    assert broken.fix


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "127.255.0.1", "0.0.0.0", "::1", "::", "::ffff:127.0.0.1", "no address"]
)
def test_s48_addresses_of_this_machine_are_refused(address: str) -> None:
    assert sockets.acceptable(section(25, host="mx.isp.example"), (address, "192.0.2.25"), None) == (
        ("192.0.2.25",),
        (address,),
    )


@pytest.mark.parametrize("address", ["198.51.100.7", "::ffff:198.51.100.7"])
def test_s48_the_lines_own_address_is_refused(address: str) -> None:
    line = Line("ppp0", "198.51.100.7")
    assert sockets.acceptable(section(25, host="mx.isp.example"), (address,), line) == ((), (address,))


def test_s48_any_address_that_this_machine_has_is_refused() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no address but loopback")
        own = probe.getsockname()[0]
    assert sockets.acceptable(section(25, host="mx.isp.example"), (own,), None) == ((), (own,))


@pytest.mark.parametrize(
    ("host", "address"),
    [("127.0.0.1", "127.0.0.1"), ("[127.0.0.1]", "127.0.0.1"), ("[IPv6:::1]", "::1"), ("::1", "::1")],
)
def test_s48_an_address_as_the_host_is_taken_as_it_is(host: str, address: str) -> None:
    assert sockets.acceptable(section(25, host=host), (), None) == ((address,), ())


def test_a_name_without_addresses_is_temporary() -> None:
    broken = refused((), None, host="mx.isp.example")
    assert (broken.stage, broken.temporary) == ("connect", True)
    assert "does not resolve" in broken.why


def test_a_dead_address_at_the_front_leaves_time_for_the_others() -> None:
    """A full backlog swallows the first knock: nothing answers there."""
    with socket.socket() as full:
        full.bind(("127.0.0.3", 0))
        full.listen(0)
        port = full.getsockname()[1]
        knocks = []
        for _ in range(4):
            knock = socket.socket()
            knock.setblocking(False)
            knock.connect_ex(("127.0.0.3", port))
            knocks.append(knock)

        async def scene() -> str:
            async with scripted.Provider("! silent", port=port):
                ours = await sockets.dial(
                    section(port, host="localhost"),
                    ("127.0.0.3", "127.0.0.1"),
                    port,
                    line=None,
                    seconds=0.6,
                    note=lambda text: None,
                )
                with ours:
                    return str(ours.getpeername()[0])

        try:
            assert asyncio.run(scene()) == "127.0.0.1"
        finally:
            for knock in knocks:
                knock.close()
