"""Dials a provider from the line that came up: which addresses count, from which of ours, for how long.

A socket is made here and not in aiosmtplib, because only so it leaves by the line that was looked at: bound to the
line's source address, on Linux to its device too, with the clocks of TCP set (a dropped PPP link sends no reset; what
was written would wait for a quarter of an hour).
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import socket
from collections.abc import Callable, Sequence

from siteagent.config.sections import Provider
from siteagent.events import Line
from siteagent.uplink.broken import AGAIN, Broken

_UNACKNOWLEDGED_SECONDS = 120  # longer than a flap or a modem's retrain, shorter than anybody's patience
_PROBE_AFTER_SECONDS, _PROBE_EVERY_SECONDS, _PROBES = 30, 10, 6
_LOCAL_NAMES = ("localhost", "localhost.localdomain", "ip6-localhost")
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def literal(host: str) -> str | None:
    """`host` as an IP address without brackets, or None where it is a name."""
    bare = host.strip().removeprefix("[").removesuffix("]").removeprefix("IPv6:")
    return None if _parse(bare) is None else bare


def acceptable(
    provider: Provider, addresses: Sequence[str], line: Line | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """`addresses` as (those to dial, those refused).

    Refused: loopback, 0.0.0.0 and ::, and our own, unless `host` is an address itself or localhost: a name that leads
    to ourselves would hand our credentials to whoever listens here, or make us ask ourselves for mail.
    """
    given = literal(provider.host)
    if given is not None:
        return (given,), ()
    host = provider.host.rstrip(".").lower()
    if host in _LOCAL_NAMES or host.endswith(".localhost"):
        return tuple(addresses), ()
    good = tuple(address for address in addresses if not _is_ours(address, line))
    return good, tuple(address for address in addresses if address not in good)


async def dial(
    provider: Provider,
    addresses: Sequence[str],
    port: int,
    *,
    line: Line | None,
    seconds: float,
    note: Callable[[str], None],
) -> socket.socket:
    """A connected, non-blocking TCP socket to the first of `addresses` that answers. The caller owns it.

    `seconds` are those of all together: each address gets an equal share of what is left, so that a dead one at the
    front does not use up the time of the others. Addresses of the source's family come first.

    Raises:
        Broken: stage connect; none answered, or none is left to try.
    """
    good, bad = acceptable(provider, addresses, line)
    if not good:
        raise _nowhere(provider, bad)
    family = _family(line.source) if line is not None else None
    good = tuple(sorted(good, key=lambda address: family is not None and _family(address) != family))
    clock = asyncio.get_running_loop().time
    end = clock() + seconds
    reasons = []
    for tried, address in enumerate(good):
        share = max(0.0, end - clock()) / (len(good) - tried)
        try:
            connected = await _dial_one(address, port, line=line, seconds=share)
        except OSError as error:
            reason = _words(error, share)
            note(f"{address} port {port}: {reason}")
            reasons.append(f"{address}: {reason}" if len(good) > 1 else reason)
        else:
            note(f"connected to {address} port {port} from {connected.getsockname()[0]}")
            return connected
    where = f"port {port} of {good[0]}" if len(good) == 1 else f"port {port}"
    raise Broken(
        provider,
        "connect",
        f"{where}: {'; '.join(reasons)}",
        temporary=True,
        fix=f"nothing yet, the next ask may do better; if it lasts, check host and port of provider {provider.name}, "
        "and whether this line lets that port out (`siteagent probe`)",
    )


async def _dial_one(address: str, port: int, *, line: Line | None, seconds: float) -> socket.socket:
    """Raises OSError, TimeoutError among them. Cancellation closes the socket."""
    ours = socket.socket(_family(address), socket.SOCK_STREAM)
    try:
        ours.setblocking(False)
        _set_clocks(ours)
        if line is not None:
            _bind(ours, address, line)
        async with asyncio.timeout(seconds):
            await asyncio.get_running_loop().sock_connect(ours, (address, port))
    except BaseException:
        ours.close()
        raise
    return ours


def _bind(ours: socket.socket, address: str, line: Line) -> None:
    device = getattr(socket, "SO_BINDTODEVICE", None)
    parsed = _parse(address)
    if device is not None and line.interface and parsed is not None and not parsed.is_loopback:
        # Before Linux 5.7 this was root's. The source address still keeps us on the line.
        with contextlib.suppress(OSError):
            ours.setsockopt(socket.SOL_SOCKET, device, line.interface.encode() + b"\0")
    if _family(line.source) == ours.family:
        ours.bind((line.source, 0))


def _set_clocks(ours: socket.socket) -> None:
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = {
        "TCP_NODELAY": 1,
        "TCP_KEEPIDLE": _PROBE_AFTER_SECONDS,
        "TCP_KEEPINTVL": _PROBE_EVERY_SECONDS,
        "TCP_KEEPCNT": _PROBES,
        "TCP_USER_TIMEOUT": _UNACKNOWLEDGED_SECONDS * 1000,
    }
    for name, value in options.items():
        option = getattr(socket, name, None)  # not every system has each
        if option is not None:
            try:
                ours.setsockopt(socket.IPPROTO_TCP, option, value)
            except OSError:
                continue


def _nowhere(provider: Provider, bad: Sequence[str]) -> Broken:
    if bad:
        return Broken(
            provider,
            "connect",
            f"its name resolves to {', '.join(bad)}, which is this machine",
            temporary=True,
            fix=f"correct the name in DNS; if this machine is meant, give the address itself as host of provider "
            f"{provider.name}",
        )
    return Broken(provider, "connect", "its name does not resolve", temporary=True, fix=AGAIN)


def _is_ours(address: str, line: Line | None) -> bool:
    parsed = _parse(address)
    if parsed is None or parsed.is_loopback or parsed.is_unspecified:
        return True
    if line is not None and _parse(line.source) == parsed:
        return True
    # Connecting a datagram socket sends nothing; the system then tells the source it would use. To an address of our
    # own it uses that address itself.
    try:
        with socket.socket(_family(address), socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))
            return _parse(probe.getsockname()[0]) == parsed
    except OSError:
        return False


def _parse(address: str) -> _Address | None:
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return None
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return mapped or parsed


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _words(error: OSError, seconds: float) -> str:
    if isinstance(error, TimeoutError) and error.errno is None:
        return f"no answer in {seconds:g} s"
    return os.strerror(error.errno).lower() if error.errno else str(error)
