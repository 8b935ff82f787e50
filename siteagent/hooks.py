"""Runs the operator's commands on events.

Its law: a hook may hang, fail, shout or fork, and nothing else notices. An argv list and no shell; an environment of
PATH, LANG, SITEAGENT_EVENT and one SITEAGENT_<FIELD> a field, control characters removed, lists joined by a space;
nothing of an envelope ever becomes an argument. Of one kind of event one command at a time, in order; of what waits
beyond `QUEUED` the newest is dropped and said so. Own session and process group: at the limit the whole group gets
SIGTERM, then SIGKILL. A child that a hook leaves behind on purpose is left alone when the hook ends well.

Every wait here has an end: a grandchild that keeps the output open must not hold a queue.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from siteagent.config.sections import Hooks as Section
from siteagent.events import Emit, Event, FieldValue, HookFailed, Stamped

OUTPUT_BYTES = 64 * 1024
OUTPUT_LINES = 200
QUEUED = 100
VALUE_BYTES = 32 * 1024  # execve refuses a string over 128 KiB; a thousand recipients reach that
TERM_SECONDS = 5.0
DRAIN_SECONDS = 0.5
NOT_YET = 75  # EX_TEMPFAIL of sysexits.h: what `before_ask` may answer

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def key(name: str) -> str:
    """The name of an event as the configuration and the environment write it: ``round.ended`` is ``round_ended``."""
    return name.replace(".", "_").replace("-", "_")


def environment(event: Event, base: Mapping[str, str]) -> dict[str, str]:
    """The whole environment of a command run for `event`; of `base` only PATH, LANG and Windows' roots are kept."""
    out = {"PATH": base.get("PATH") or _PATH, "LANG": base.get("LANG") or "C.UTF-8"}
    for name in ("SYSTEMROOT", "COMSPEC", "PATHEXT"):  # without these no program starts on Windows
        if sys.platform == "win32" and name in base:
            out[name] = base[name]
    for name, value in event.values().items():
        out[f"SITEAGENT_{name.upper()}"] = _plain(value)
    out["SITEAGENT_EVENT"] = event.name  # last: `hook.failed` has a field of that name
    return out


def _plain(value: FieldValue) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return _within(_clean(item) for item in value)
    return _within([_clean(str(value))])


def _within(items: Iterable[str]) -> str:
    """The items joined by a space, ending at the last whole one that fits."""
    out: list[str] = []
    room = VALUE_BYTES
    for item in items:
        room -= len(item.encode()) + 1
        if room < 0:
            if not out:
                out.append(item.encode()[:VALUE_BYTES].decode(errors="ignore"))
            break
        out.append(item)
    return " ".join(out)


def _clean(text: str) -> str:
    """`text` without control characters of either set and without what UTF-8 cannot say."""
    kept = "".join(c for c in text if not (c < " " or "\x7f" <= c <= "\x9f" or c in "\u2028\u2029"))
    return kept.encode("utf-8", "ignore").decode()


@dataclass(slots=True)
class _Kind:
    """What waits and what runs for one kind of event."""

    waiting: deque[Event] = field(default_factory=deque)
    worker: asyncio.Task[None] | None = None
    dropped: int = 0


class Hooks:
    """`observe` never waits; everything else happens in one task for each kind of event that has a command."""

    def __init__(
        self,
        section: Section,
        emit: Emit,
        *,
        note: Callable[[str], None] | None = None,
        base: Mapping[str, str] | None = None,
        term_seconds: float = TERM_SECONDS,
    ) -> None:
        """`note` is given each line that a command writes; `base` is where PATH and LANG come from."""
        self._section = section
        self._emit = emit
        self._note = note or (lambda text: None)
        self._base = os.environ if base is None else base
        self._term_seconds = term_seconds
        self._kinds: dict[str, _Kind] = {}
        self._closing = False

    def reconfigure(self, section: Section) -> None:
        """Counts from the next command that is started."""
        self._section = section

    def observe(self, stamped: Stamped) -> None:
        """Queue the operator's command for this event, if there is one. Loop thread only; returns at once."""
        event = stamped.event
        name = key(event.name)
        if self._closing or name not in self._section.commands:
            return
        if isinstance(event, HookFailed) and event.hook == HookFailed.name:
            return  # the command for failed commands fails: one report is enough
        kind = self._kinds.setdefault(name, _Kind())
        if len(kind.waiting) >= QUEUED:
            kind.dropped += 1
            if kind.dropped == 1:
                self._failed(event.name, f"{QUEUED} events wait for it already: what comes now is skipped")
            return
        kind.waiting.append(event)
        if kind.worker is None:
            kind.worker = asyncio.get_running_loop().create_task(self._work(kind), name=f"hook {name}")

    async def first(self, event: Event) -> int | None:
        """Run the operator's command for this event now, and wait for it.

        Returns its exit status; None where there is no command, or it could not be run or took too long, which is
        told, as is any failure but NOT_YET. Cancellation ends the command.
        """
        return await self._run(event, expected=NOT_YET)

    async def close(self, *, seconds: float = 5.0) -> None:
        """Let what runs and waits finish for so long, then end it. Afterwards `observe` does nothing."""
        self._closing = True
        workers = [kind.worker for kind in self._kinds.values() if kind.worker is not None]
        if not workers:
            return
        _, late = await asyncio.wait(workers, timeout=seconds)
        for worker in late:
            worker.cancel()
        if late:
            await asyncio.wait(late)

    async def _work(self, kind: _Kind) -> None:
        try:
            while kind.waiting:
                event = kind.waiting.popleft()
                try:
                    await self._run(event)
                except Exception as error:  # our own bug in one run must not end the kind
                    self._failed(event.name, f"{type(error).__name__}: {error}")
                if kind.dropped:
                    skipped, kind.dropped = kind.dropped, 0
                    self._failed(event.name, f"{skipped} events were skipped: it does not keep up")
        finally:
            kind.worker = None

    async def _run(self, event: Event, *, expected: int = 0) -> int | None:
        argv = self._section.commands.get(key(event.name))
        if not argv:
            return None
        try:
            process, pipe = await _started(argv, environment(event, self._base))
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            self._failed(event.name, f"cannot be run: {reason}")
            return None
        output = bytearray()
        reader = asyncio.get_running_loop().create_task(_read(pipe.stream, output))
        limit = self._section.timeout_seconds
        try:
            late = not await _ended(process, limit)
            if late:
                await self._end(process)
        except asyncio.CancelledError:
            _signal_group(process, kill=True)
            await _ended(process, DRAIN_SECONDS)
            await _finish(pipe, reader)
            self._failed(event.name, "was ended because the agent stops")
            raise
        await _finish(pipe, reader)
        status = 0 if process.returncode == expected else process.returncode
        self._report(event.name, status, bytes(output), late=late)
        return None if late else process.returncode

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        _signal_group(process, kill=False)
        await _ended(process, self._term_seconds)
        # Whether its leader went or not: nothing of the group may outlive the limit.
        _signal_group(process, kill=True)
        await _ended(process, self._term_seconds)

    def _report(self, name: str, status: int | None, output: bytes, *, late: bool) -> None:
        rows = [row for row in output.decode(errors="replace").splitlines() if row.strip()]
        for row in rows[:OUTPUT_LINES]:
            self._note(f"{key(name)}: {row}")
        if len(rows) > OUTPUT_LINES or len(output) >= OUTPUT_BYTES:
            self._note(f"{key(name)}: (its output is longer; the rest is not kept)")
        said = f": {_clean(rows[-1])[:200]}" if rows else ""
        if late:
            self._failed(name, f"took longer than {self._section.timeout_seconds:g} s and was ended{said}")
        elif status is not None and status < 0:
            self._failed(name, f"was ended by signal {-status}{said}")
        elif status:
            self._failed(name, f"ended with status {status}{said}")

    def _failed(self, name: str, reason: str) -> None:
        command = shlex.join(self._section.commands.get(key(name), ()))
        self._emit(HookFailed(hook=name, command=command, reason=reason))


@dataclass(frozen=True, slots=True)
class _Pipe:
    """Where a command's output comes out; `transport` where it is ours to close."""

    stream: asyncio.StreamReader
    transport: asyncio.ReadTransport | None


async def _started(argv: Sequence[str], env: Mapping[str, str]) -> tuple[asyncio.subprocess.Process, _Pipe]:
    """Start a command in a session of its own.

    With a pipe of asyncio's making `Process.wait` waits for its end too, so a child left behind would hold us until
    the limit; hence a pipe of ours. Windows cannot read one without waiting, and has the limit.
    """
    if sys.platform == "win32":
        process = await _spawn(argv, env, asyncio.subprocess.PIPE)
        assert process.stdout is not None
        return process, _Pipe(process.stdout, None)
    read_end, write_end = os.pipe()
    try:
        process = await _spawn(argv, env, write_end)
    except BaseException:
        os.close(read_end)
        raise
    finally:
        os.close(write_end)
    stream = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(stream), os.fdopen(read_end, "rb", 0)
    )
    return process, _Pipe(stream, transport)


async def _spawn(argv: Sequence[str], env: Mapping[str, str], output: int) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=output,
        stderr=asyncio.subprocess.STDOUT,
        env=env,
        cwd="/" if sys.platform != "win32" else None,
        start_new_session=True,
    )


async def _ended(process: asyncio.subprocess.Process, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await process.wait()
    except TimeoutError:
        return process.returncode is not None
    return True


async def _read(stream: asyncio.StreamReader, output: bytearray) -> None:
    """Keep the first OUTPUT_BYTES and read on: a command that blocks on a full pipe would look like one that hangs."""
    while chunk := await stream.read(8192):
        output += chunk[: OUTPUT_BYTES - len(output)]


async def _finish(pipe: _Pipe, reader: asyncio.Task[None]) -> None:
    """Take what is left of the output, for a moment, and let go of the pipe whoever else may hold it."""
    await asyncio.wait([reader], timeout=DRAIN_SECONDS)
    if not reader.done():
        reader.cancel()
        await asyncio.wait([reader])
    if pipe.transport is not None:
        pipe.transport.close()


def _signal_group(process: asyncio.subprocess.Process, *, kill: bool) -> None:
    with suppress(ProcessLookupError, PermissionError):
        if sys.platform == "win32":
            process.kill() if kill else process.terminate()
        else:
            os.killpg(process.pid, signal.SIGKILL if kill else signal.SIGTERM)
