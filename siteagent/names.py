"""Names of providers and peers to addresses; the last answers outlive a restart.

No DNS yet is normal: at boot, and whenever the line is down, which is when the line's target must be known. So a
name keeps its last known addresses until it resolves again. A dead resolver holds a thread for half a minute, and
one cannot stop it: look-ups have threads of their own, few, and daemon ones, so that neither the program's other
work nor its end waits for them. Nothing here runs on the loop but the waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import os
import socket
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from siteagent.errors import TemporaryError

GetAddrInfo = Callable[..., Any]

MAX_ADDRESSES: Final = 32
MAX_NAMES: Final = 256
MAX_STATE_BYTES: Final = 1 << 20
SCHEMA: Final = 1


class Resolver:
    """Resolves on at most `workers` threads, each question for at most `timeout_seconds` of its caller's time.

    One question for a name at a time: who asks meanwhile joins it, also after its first caller gave up waiting.
    """

    def __init__(
        self,
        state_file: Path,
        *,
        workers: int = 4,
        timeout_seconds: float = 30,
        getaddrinfo: GetAddrInfo = socket.getaddrinfo,
        note: Callable[[str], None] | None = None,
    ) -> None:
        """`note` is told, on the loop's thread and once for each text, where the answers cannot be kept."""
        self._state_file = state_file
        self._timeout_seconds = timeout_seconds
        self._getaddrinfo = getaddrinfo
        self._note = note
        self._told: set[str] = set()
        self._free = asyncio.Semaphore(workers)
        self._asking: dict[str, asyncio.Task[tuple[str, ...] | Exception]] = {}
        self._saving = threading.Lock()
        self._known = _load(state_file)

    async def resolve(self, host: str) -> tuple[str, ...]:
        """Fresh addresses of `host` if DNS tells them in time, else the last known; an address is its own answer.

        Raises TemporaryError where nothing is known either. Cancellation gives the question up; its answer, if one
        still comes, is kept.
        """
        literal = _literal(host)
        if literal is not None:
            return (literal,)
        key = _key(host)
        asking = self._asking.get(key)
        if asking is None:
            asking = self._asking[key] = asyncio.create_task(self._ask(key), name=f"names.{key}")
            asking.add_done_callback(lambda _: self._asking.pop(key, None))
        answer: tuple[str, ...] | Exception
        try:
            async with asyncio.timeout(self._timeout_seconds):
                answer = await asyncio.shield(asking)
        except TimeoutError:
            answer = TimeoutError(f"no answer from DNS in {self._timeout_seconds:g} s")
        if not isinstance(answer, Exception):
            return answer
        known = self._known.get(key)
        if known:
            return known
        raise TemporaryError(
            f"cannot resolve {host}",
            (answer.strerror if isinstance(answer, OSError) else None) or str(answer) or type(answer).__name__,
            fix="check the name and this host's DNS; it is tried again",
        ) from answer

    def known(self, host: str) -> tuple[str, ...]:
        """What `host` was last: itself if it is an address, its last known addresses, or nothing. Never waits."""
        literal = _literal(host)
        return (literal,) if literal is not None else self._known.get(_key(host), ())

    async def close(self) -> None:
        """Give up every question. Threads that hang in a resolver are left behind: they hold nothing."""
        asking = list(self._asking.values())
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)

    async def _ask(self, key: str) -> tuple[str, ...] | Exception:
        """One question on one thread. A failure is returned: nobody may be left to hear it raised."""
        loop = asyncio.get_running_loop()
        await self._free.acquire()
        answered: asyncio.Future[tuple[tuple[str, ...] | Exception, str]] = loop.create_future()

        def settle(answer: tuple[str, ...] | Exception, trouble: str) -> None:
            self._free.release()  # Only now: a thread that hangs still counts.
            if not answered.done():
                answered.set_result((answer, trouble))

        def work() -> None:
            answer, trouble = self._look_up(key)
            with contextlib.suppress(RuntimeError):  # The loop is closed: nobody waits any more.
                loop.call_soon_threadsafe(settle, answer, trouble)

        try:
            threading.Thread(target=work, name=f"names.{key}", daemon=True).start()
        except RuntimeError as error:  # No thread to be had.
            self._free.release()
            return OSError(str(error))
        answer, trouble = await answered
        if trouble and self._note is not None and trouble not in self._told:
            self._told.add(trouble)
            self._note(trouble)
        return answer

    def _look_up(self, key: str) -> tuple[tuple[str, ...] | Exception, str]:
        """(addresses or why not, what went wrong with keeping them). On a thread; raises nothing."""
        try:
            found = _addresses(row[4][0] for row in self._getaddrinfo(key, None, type=socket.SOCK_STREAM))
        except Exception as error:  # OSError from DNS, UnicodeError from a name that IDNA refuses; a fake's anything.
            return error, ""
        if not found:
            return OSError("DNS knows no address of it"), ""
        return found, self._keep(key, found)

    def _keep(self, key: str, addresses: tuple[str, ...]) -> str:
        with self._saving:
            if self._known.get(key) == addresses:
                return ""
            kept = {name: known for name, known in self._known.items() if name != key}
            kept[key] = addresses
            # Exchanged as a whole: the loop's thread reads it without a lock.
            self._known = dict(list(kept.items())[-MAX_NAMES:])
            try:
                _save(self._state_file, self._known)
            except OSError as error:
                return f"cannot keep the addresses of {key} in {self._state_file}: {error.strerror or error}"
        return ""


def _key(host: str) -> str:
    return host.lower().rstrip(".")


def _literal(host: str) -> str | None:
    try:
        return str(ipaddress.ip_address(host.removeprefix("[").removesuffix("]")))
    except ValueError:
        return None


def _addresses(texts: Iterable[Any]) -> tuple[str, ...]:
    """Those that are addresses, in order, none twice, at most `MAX_ADDRESSES`."""
    found: dict[str, None] = {}
    for text in texts:
        literal = _literal(text) if isinstance(text, str) else None
        if literal is not None:
            found.setdefault(literal)
        if len(found) == MAX_ADDRESSES:
            break
    return tuple(found)


def _load(state_file: Path) -> dict[str, tuple[str, ...]]:
    """What was kept. A missing, damaged or foreign file is an empty memory, never an error."""
    try:
        with state_file.open("rb") as file:
            document = json.loads(file.read(MAX_STATE_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(document, dict) or document.get("version") != SCHEMA:
        return {}
    names = document.get("names")
    if not isinstance(names, dict):
        return {}
    known = {key: _addresses(texts) for key, texts in names.items() if isinstance(texts, list)}
    return {key: addresses for key, addresses in list(known.items())[-MAX_NAMES:] if addresses}


def _save(state_file: Path, known: dict[str, tuple[str, ...]]) -> None:
    """Replace the file in one step, synced first: after a power cut it is the old one or the new one, whole."""
    temporary = state_file.with_name(f".{state_file.name}.{os.getpid()}")
    document = {"version": SCHEMA, "names": {key: list(addresses) for key, addresses in known.items()}}
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(document, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(state_file)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
