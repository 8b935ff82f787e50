"""Windows: iphlpapi says that an address or a route changed; two threads wait for it.

``NotifyAddrChange`` and ``NotifyRouteChange`` with no arguments block until the next change of IPv4 and return 0
(Microsoft's reference of iphlpapi.h). They cannot be cancelled, so the threads are daemons and die with the process.
IPv6 alone changes without their noticing: the tick sees that, at most `poll_seconds` late.

None of this was run on Windows: the calls come in by `Api`, and tests hand in another.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import sys
import threading
from collections.abc import Callable
from typing import Protocol

from siteagent.link.backend import Poke, Unavailable

NO_ERROR = 0


class Api(Protocol):
    """The two calls. Each blocks until something changed; 0, or the error's number."""

    def address_change(self) -> int: ...
    def route_change(self) -> int: ...


class Iphlpapi:
    """The real ones. Raises OSError, AttributeError where this is no Windows, or one without them."""

    def __init__(self) -> None:
        self._address, self._route = _calls()

    def address_change(self) -> int:
        return self._address(None, None)

    def route_change(self) -> int:
        return self._route(None, None)


_Call = Callable[[None, None], int]


def _calls() -> tuple[_Call, _Call]:
    if sys.platform == "win32":
        library = ctypes.WinDLL("iphlpapi", use_last_error=True)
        for call in (library.NotifyAddrChange, library.NotifyRouteChange):
            call.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
            call.restype = ctypes.c_uint32
        return library.NotifyAddrChange, library.NotifyRouteChange
    else:
        raise OSError("iphlpapi is Windows' own")


class WindowsSource:
    """Pokes when an IPv4 address or route changed."""

    name = "windows"
    nudges = False

    def __init__(self, api: Api | None = None) -> None:
        self._api = api

    async def run(self, poke: Poke) -> None:
        """See `Source.run`."""
        try:
            api = self._api if self._api is not None else Iphlpapi()
        except (OSError, AttributeError) as error:
            raise Unavailable("cannot hear of changes of the network", str(error), fix="looked at by time") from None
        loop = asyncio.get_running_loop()
        broken: asyncio.Future[None] = loop.create_future()
        ended = threading.Event()

        def heard() -> None:
            if not broken.done():
                poke(self.name)

        def failed(code: int) -> None:
            if not broken.done():
                why = f"iphlpapi answers {code}"
                broken.set_exception(Unavailable("cannot hear of changes of the network", why, fix="looked at by time"))

        def watch(wait: str) -> None:
            call = getattr(api, wait)
            while not ended.is_set():
                code = call()
                with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody listens any more
                    if code != NO_ERROR:
                        loop.call_soon_threadsafe(failed, code)
                        return
                    loop.call_soon_threadsafe(heard)

        for wait in ("address_change", "route_change"):
            threading.Thread(target=watch, args=(wait,), name=f"link.{wait}", daemon=True).start()
        poke(self.name)
        try:
            await broken
        finally:
            ended.set()
