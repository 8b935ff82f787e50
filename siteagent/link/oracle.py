"""The one judge of whether there is a way out: what the kernel would do with a packet, asked without sending one.

A way is usable when the route to the address is an ordinary one (unicast), the interface that it leaves by is up and
running, and our source address on it is neither loopback nor link-local. That a route exists is not enough: it
stays when a cable with a static address is pulled, and an IPv6 route counts from the start while our address is still
being checked for doubles. That the far end answers is not said: only the attempt tells.

`lo` is a way to loopback addresses alone: a provider of a test or a demonstration on this very host.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from siteagent.events import Line
from siteagent.link import netlink
from siteagent.link.backend import Note, Oracle, Unavailable

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

ANYWHERE: Final = ("192.0.2.1", "2001:db8::1")
"""RFC 5737 and RFC 3849, documentation: "is there a default route", asked without naming anybody."""

MAX_ADDRESSES: Final = 32

_IFF_UP: Final = 0x1
_IFF_RUNNING: Final = 0x40
_RTN_UNICAST: Final = 1
_RTN_LOCAL: Final = 2
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PREFSRC, _RTA_VIA = 1, 4, 5, 7, 18
_IFLA_IFNAME: Final = 3
_RTMSG: Final = struct.Struct("=BBBBBBBBI")
_IFINFOMSG: Final = struct.Struct("=BxHiII")
_REPLIES_READ: Final = 8


def allowed(interface: str, patterns: Sequence[str], ignored: Sequence[str]) -> bool:
    """Whether `interface` may be the way to a provider. What `patterns` name exactly is never ignored."""
    if interface in patterns:
        return True
    return _matches(interface, patterns) and not _matches(interface, ignored)


def _matches(interface: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(interface, pattern) for pattern in patterns)


def usable_source(source: Address, target: Address) -> bool:
    """Whether somebody could answer to `source`. Loopback only to loopback, link-local only to link-local."""
    if source.is_unspecified or source.is_multicast:
        return False
    return source.is_loopback == target.is_loopback and (not source.is_link_local or target.is_link_local)


def parsed(addresses: Sequence[str]) -> Iterator[Address]:
    """The first `MAX_ADDRESSES` that are addresses; an IPv4-mapped one as the IPv4 address that it is."""
    for text in addresses[:MAX_ADDRESSES]:
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            continue
        mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        yield mapped or address


def standard(note: Note, open_channel: Callable[[], socket.socket] = netlink.open_socket) -> Oracle:
    """RTM_GETROUTE where there is one; else a connected UDP socket, said once."""
    if not sys.platform.startswith("linux"):
        return UdpOracle()
    try:
        open_channel().close()
    except Unavailable as error:
        note(f"{error.what}: {error.why}; judging the line by a connected socket instead")
        return UdpOracle()
    return NetlinkOracle()


# --- Linux: ask the routing table -------------------------------------------------------------------------------------


class NetlinkOracle:
    """RTM_GETROUTE, then RTM_GETLINK for the interface. One short-lived socket a look: no stale answer to sort out."""

    def lines(self, addresses: Sequence[str]) -> tuple[Line, ...]:
        """See `Oracle.lines`."""
        found: dict[Line, None] = {}
        links: dict[int, tuple[str, bool]] = {}
        try:
            channel = netlink.open_socket()
        except Unavailable as error:
            raise OSError(str(error)) from error
        with channel:
            for number, target in enumerate(parsed(addresses), start=1):
                line = self._line(channel, target, links, sequence=2 * number)
                if line is not None:
                    found.setdefault(line)
        return tuple(found)

    def _line(
        self, channel: socket.socket, target: Address, links: dict[int, tuple[str, bool]], *, sequence: int
    ) -> Line | None:
        answer = _answer(channel, route_request(target, sequence), sequence)
        route = None if answer is None else route_in(answer, target)
        if route is None:
            return None
        index, source, gateway = route
        if index not in links:
            body = _IFINFOMSG.pack(socket.AF_UNSPEC, 0, index, 0, 0)
            answer = _answer(channel, netlink.request(netlink.RTM_GETLINK, body, sequence=sequence + 1), sequence + 1)
            links[index] = ("", False) if answer is None else link_in(answer)
        name, running = links[index]
        return Line(name, source, gateway) if running else None


def route_request(target: Address, sequence: int) -> bytes:
    """RTM_GETROUTE for one address."""
    family = socket.AF_INET if target.version == 4 else socket.AF_INET6
    body = _RTMSG.pack(family, target.max_prefixlen, 0, 0, 0, 0, 0, 0, 0) + netlink.attribute(_RTA_DST, target.packed)
    scope = getattr(target, "scope_id", None)
    if scope:
        body += netlink.attribute(_RTA_OIF, struct.pack("=I", _index_of(scope)))
    return netlink.request(netlink.RTM_GETROUTE, body, sequence=sequence)


def _index_of(scope: str) -> int:
    if scope.isascii() and scope.isdigit():
        return int(scope) & 0xFFFFFFFF
    try:
        return socket.if_nametoindex(scope)
    except OSError:
        return 0


def route_in(message: netlink.Message, target: Address) -> tuple[int, str, str | None] | None:
    """(interface index, source, gateway) where the answer is a usable route to `target`. Any bytes do."""
    if message.type != netlink.RTM_NEWROUTE or len(message.body) < _RTMSG.size:
        return None
    kind = message.body[7]
    # The kernel calls the route to our own loopback addresses "local"; to another address of ours it is no way out.
    if kind != (_RTN_LOCAL if target.is_loopback else _RTN_UNICAST):
        return None
    found = netlink.attributes(message.body, _RTMSG.size)
    index, source = found.get(_RTA_OIF, b""), _address(found.get(_RTA_PREFSRC, b""))
    if len(index) != 4 or source is None or not usable_source(source, target):
        return None
    # RTA_VIA: an IPv4 route through an IPv6 next hop (RFC 5549); two bytes of family before the address.
    gateway = _address(found.get(_RTA_GATEWAY, b"") or found.get(_RTA_VIA, b"")[2:])
    return int.from_bytes(index, sys.byteorder), str(source), None if gateway is None else str(gateway)


def link_in(message: netlink.Message) -> tuple[str, bool]:
    """(name, is up and running) of the interface in the answer. Any bytes do."""
    if message.type != netlink.RTM_NEWLINK or len(message.body) < _IFINFOMSG.size:
        return "", False
    flags = _IFINFOMSG.unpack_from(message.body)[3]
    name = netlink.attributes(message.body, _IFINFOMSG.size).get(_IFLA_IFNAME, b"")
    wanted = _IFF_UP | _IFF_RUNNING
    return name.rstrip(b"\0").decode("utf-8", "surrogateescape"), flags & wanted == wanted


def _address(packed: bytes) -> Address | None:
    if len(packed) == 4:
        return ipaddress.IPv4Address(packed)
    return ipaddress.IPv6Address(packed) if len(packed) == 16 else None


def _answer(channel: socket.socket, request: bytes, sequence: int) -> netlink.Message | None:
    """The kernel's answer, which waits when `sendto` returns; None where it says that there is no such thing.

    Raises OSError where there is no answer at all.
    """
    channel.sendto(request, (0, 0))
    for _ in range(_REPLIES_READ):
        datagram, sender = channel.recvfrom(netlink.BUFFER_BYTES)
        if sender[0] != 0:
            continue
        for message in netlink.messages(datagram):
            if message.sequence == sequence:
                return None if message.type == netlink.NLMSG_ERROR else message
    raise OSError("the kernel does not answer on netlink")


# --- elsewhere: connect a UDP socket and see where we stand -----------------------------------------------------------


class UdpOracle:
    """Connects a UDP socket, which sends nothing, and reads our address off it.

    Weaker than the routing table: a pulled cable with a static address still looks like a way out unless
    `interface_of` knows that the interface does not run.
    """

    def __init__(self, interface_of: Callable[[str], str | None] | None = None) -> None:
        """`interface_of`: our source address -> the running interface that has it, "" unknown, None not running."""
        self._interface_of = interface_of or _interface_of

    def lines(self, addresses: Sequence[str]) -> tuple[Line, ...]:
        """See `Oracle.lines`."""
        found: dict[Line, None] = {}
        for target in parsed(addresses):
            source = _source_to(target)
            if source is None or not usable_source(source, target):
                continue
            if source == target and not target.is_loopback:
                continue  # An address of our own is no way out.
            interface = self._interface_of(str(source))
            if interface is not None:
                found.setdefault(Line(interface, str(source), None))
        return tuple(found)


def _source_to(target: Address) -> Address | None:
    family = socket.AF_INET if target.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((str(target), 9))
            return ipaddress.ip_address(probe.getsockname()[0])
    except (OSError, ValueError):
        return None


def _interface_of(source: str) -> str | None:
    """By the names and addresses that Linux shows without netlink; "" where the system shows none."""
    if not sys.platform.startswith("linux"):
        return ""
    try:
        rows = Path("/proc/self/net/dev").read_text().splitlines()
    except OSError:
        return ""
    for name in (row.partition(":")[0].strip() for row in rows if ":" in row):
        addresses, running = _shown(name)
        if source in addresses:
            return name if running else None
    return ""


_SIOCGIFFLAGS, _SIOCGIFADDR = 0x8913, 0x8915


def _shown(name: str) -> tuple[set[str], bool]:
    """The addresses of an interface (of IPv4, its first) and whether it is up and running: netdevice(7)."""
    if sys.platform == "win32":
        return set(), False
    import fcntl

    found: set[str] = set()
    running = False
    wanted = struct.pack("256s", name.encode("utf-8", "surrogateescape")[:15])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            flags = struct.unpack_from("=H", fcntl.ioctl(probe, _SIOCGIFFLAGS, wanted), 16)[0]
            running = flags & (_IFF_UP | _IFF_RUNNING) == _IFF_UP | _IFF_RUNNING
            found.add(socket.inet_ntoa(fcntl.ioctl(probe, _SIOCGIFADDR, wanted)[20:24]))
        except OSError:
            pass
    try:
        rows = Path("/proc/self/net/if_inet6").read_text().splitlines()
    except OSError:
        rows = []
    for row in rows:
        fields = row.split()
        if len(fields) == 6 and fields[5] == name:
            found.add(str(ipaddress.IPv6Address(bytes.fromhex(fields[0]))))
    return found, running
