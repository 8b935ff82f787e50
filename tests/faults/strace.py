"""strace on a running program: faults put into its system calls, and the log of what it did.

Counting is strace's: `when=3` is the third call of each thread since it was attached. A path given with `-P` must be
the one that is named or that the descriptor leads to; for a directory this takes in what is made or renamed in it.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

_BEGINS = re.compile(r"(\d+) +(\w+)\((.*)$")
_RESUMES = re.compile(r"(\d+) +<\.\.\. (\w+) resumed>(.*)$")
_HEX = re.compile(r"(?:\\x[0-9a-f]{2})+")

# What one call of the library may be, by machine and version.
ALSO = {"rename": "rename,renameat,renameat2", "unlink": "unlink,unlinkat", "sendto": "sendto,sendmsg"}


def names_of(call: str) -> str:
    return ALSO.get(call, call)


@asynccontextmanager
async def attached(pid: int, log: Path, *options: str) -> AsyncIterator[None]:
    """strace on all threads of `pid`, its log to `log`; it lets go at the end of the block."""
    words = ["strace", "-f", "-y", "-o", str(log), *options, "-p", str(pid)]
    tracer = subprocess.Popen(words, stderr=subprocess.PIPE)
    assert tracer.stderr is not None
    try:
        said = await asyncio.to_thread(tracer.stderr.readline)
        assert b"attached" in said, f"{' '.join(words)}: {said.decode()}"
        yield
    finally:
        tracer.terminate()
        await asyncio.to_thread(tracer.communicate)


def injection(call: str, fault: str, when: str, paths: Sequence[Path] = ()) -> list[str]:
    """Options of strace: `fault` (``signal=SIGKILL``, ``error=EIO``) at the calls that `when` says, on `paths`."""
    calls = names_of(call)
    where = [word for path in paths for word in ("-P", str(path))]
    return [*where, "-e", f"trace={calls}", "-e", f"inject={calls}:{fault}:when={when}"]


def struck(log: Path) -> int:
    """How many calls were made to fail."""
    return log.read_text(errors="replace").count("(INJECTED)") if log.exists() else 0


@dataclass(frozen=True, slots=True)
class Call:
    """One system call. `begun` and `done` are its places in the log; `done` is beyond it where it did not return."""

    name: str
    arguments: str
    begun: int
    done: int
    failed: bool


def calls(log: Path) -> list[Call]:
    """Every call, in the order they were begun; hexadecimal strings as they were, in Latin-1."""
    lines = log.read_text(errors="replace").splitlines()
    waiting: dict[tuple[str, str], tuple[int, str]] = {}
    found = []
    for place, line in enumerate(lines):
        if begins := _BEGINS.match(line):
            thread, name, rest = begins.groups()
            if rest.endswith("<unfinished ...>"):
                waiting[thread, name] = (place, rest.removesuffix("<unfinished ...>"))
            else:
                found.append(_call(name, rest, place, place))
        elif resumes := _RESUMES.match(line):
            thread, name, rest = resumes.groups()
            begun, before = waiting.pop((thread, name), (place, ""))
            found.append(_call(name, before + rest, begun, place))
    found += [Call(name, _plain(before), begun, len(lines), True) for (_, name), (begun, before) in waiting.items()]
    return sorted(found, key=lambda call: call.begun)


def _call(name: str, rest: str, begun: int, done: int) -> Call:
    arguments, _, result = rest.rpartition(" = ")
    return Call(name, _plain(arguments), begun, done, result.startswith(("-1", "?")))


def _plain(text: str) -> str:
    return _HEX.sub(lambda match: bytes.fromhex(match[0].replace("\\x", "")).decode("latin-1"), text)


def paths_in(arguments: str) -> Iterator[str]:
    """What descriptors lead to."""
    return (match[1] for match in re.finditer(r"\d+<([^>]*)>", arguments))
