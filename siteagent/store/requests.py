"""Requests to a running agent: small files in ``requests/`` of the state directory. Who may write there may ask.

A request is left whole (written beside, renamed in) and taken away when it is read. What stands there may come from
another user: it is read bounded, never followed, and what is no request is dropped.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path

from siteagent.errors import CannotCreate, PermissionProblem

FOLDER = "requests"
ASK = "ask"
RETRY_QUEUE = "retry-queue"
_MOST_BYTES = 65_536
_MOST_AT_ONCE = 1000
_MOST_ENTRIES = 10_000
_LONGEST_SECONDS = 86_400.0 * 7
_SUFFIX = ".json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """`providers` and `nodes` empty: all of them. `timeout_seconds`: when the asker stops waiting, None: never."""

    id: str
    kind: str = ASK
    providers: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    timeout_seconds: float | None = None


def new_id() -> str:
    return secrets.token_hex(8)


def make_folder(state_directory: Path) -> None:
    """Makes ``requests/``: the agent's group may write there, others once the operator says so. Raises OSError."""
    folder = state_directory / FOLDER
    if not folder.is_dir():
        folder.mkdir(mode=0o770)
        folder.chmod(0o770)


def leave(state_directory: Path, request: Request) -> None:
    """Puts `request` where the running agent finds it. Raises PermissionProblem, CannotCreate."""
    document = {
        "version": 1,
        "kind": request.kind,
        "id": request.id,
        "providers": list(request.providers),
        "nodes": list(request.nodes),
        "timeout_seconds": request.timeout_seconds,
    }
    folder = state_directory / FOLDER
    temporary = folder / f".{request.id}"
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        with os.fdopen(handle, "wb") as file:
            file.write(json.dumps(document).encode())
            if hasattr(os, "fchmod"):
                os.fchmod(handle, 0o644)  # the agent may be another user than we
        temporary.replace(folder / (request.id + _SUFFIX))
    except PermissionError as error:
        _forget(temporary)
        raise PermissionProblem(
            "cannot ask the running agent",
            f"{folder}: {error.strerror}",
            fix=f"become a user who may write to {folder}",
        ) from error
    except OSError as error:
        _forget(temporary)
        raise CannotCreate("cannot ask the running agent", f"{folder}: {error.strerror}") from error


def _forget(temporary: Path) -> None:
    with contextlib.suppress(OSError):
        temporary.unlink()


def withdraw(state_directory: Path, request: Request) -> bool:
    """Takes a request back. False: the agent has it already."""
    try:
        (state_directory / FOLDER / (request.id + _SUFFIX)).unlink()
    except OSError:
        return False
    return True


def take(state_directory: Path) -> list[Request]:
    """Every request that stands there, oldest first; each is removed. Never raises: what cannot be read is dropped."""
    found: list[tuple[int, Request]] = []
    folder = state_directory / FOLDER
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for count, entry in enumerate(entries):
            if count >= _MOST_ENTRIES or len(found) >= _MOST_AT_ONCE:
                break
            if entry.name.startswith(".") or not entry.name.endswith(_SUFFIX):
                continue
            request, written = _read(Path(entry.path))
            with contextlib.suppress(OSError):
                Path(entry.path).unlink()
            if request is not None:
                found.append((written, request))
    return [request for _, request in sorted(found, key=lambda pair: pair[0])]


def _read(path: Path) -> tuple[Request | None, int]:
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return None, 0
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MOST_BYTES:
            return None, 0
        return _parsed(json.loads(os.read(handle, _MOST_BYTES))), status.st_mtime_ns
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None, 0
    finally:
        os.close(handle)  # here and not by a file object: Python makes none of a directory, and would leave it open


def _parsed(document: object) -> Request | None:
    """Raises ValueError, TypeError, OverflowError or KeyError for what is no request."""
    if not isinstance(document, dict) or document["version"] != 1:
        return None
    providers, nodes = document.get("providers", []), document.get("nodes", [])
    if not (isinstance(providers, list) and isinstance(nodes, list)):
        return None
    texts = [document["id"], document["kind"], *providers, *nodes]
    if not all(isinstance(text, str) and 0 < len(text) <= 400 and text.isprintable() for text in texts):
        return None
    timeout = document.get("timeout_seconds")
    if timeout is not None:
        timeout = float(timeout)
        if not math.isfinite(timeout) or timeout < 0:  # a timer that is due at NaN would stop the clock of the loop
            return None
    return Request(
        id=document["id"],
        kind=document["kind"],
        providers=tuple(providers),
        nodes=tuple(nodes),
        timeout_seconds=None if timeout is None else min(timeout, _LONGEST_SECONDS),
    )
