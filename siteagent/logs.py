"""The log: an event becomes one line, logfmt or JSON, and no secret of a server's echo is in it.

Its law: one event, one line. Whatever a peer or a disk put into a value, no byte of it can begin a second line, move
a cursor or turn the reading direction: every character that Python does not call printable is escaped as JSON does.
A quoted value of the text format is a JSON string, so a program can read it back.

Writing never raises: a full disk must not stop the mail. Lines that could not be written are counted, and the count
is the first thing written when writing works again. The trap: a stream whose reader stalls (a full pipe) stalls the
caller; standard error under systemd and a plain file do not.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from enum import Enum
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, TextIO

import attrs

from siteagent.config.sections import LogFormat, LogLevel
from siteagent.events import Event, FieldValue, Severity, Stamped

# A thousand recipients are one value, and journald cuts lines at 48 KiB: the journal has the rest.
MAX_VALUE = 4000

_RANK = {Severity.DEBUG: 0, Severity.INFO: 1, Severity.WARNING: 2, Severity.ERROR: 3}
_PRIORITY = {Severity.DEBUG: 7, Severity.INFO: 6, Severity.WARNING: 4, Severity.ERROR: 3}  # sd-daemon(3)
_GATHER_SECONDS = 0.01
_MOST_HELD = 500  # lines
_TAKEN = frozenset({"time", "level", "event"})
_AMBIGUOUS = re.compile(r'[ "=\\]')
_BARE = re.compile(r"[!#-<>-\[\]-~]{1,200}")  # printable ASCII but for `_AMBIGUOUS`: nothing to hide, cut or escape


def timestamp(at: datetime, *, milliseconds: bool = False) -> str:
    """`at` as ISO 8601 in UTC, ``2026-11-22T08:00:00Z``."""
    if not milliseconds:
        return _second(at.replace(microsecond=0))
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@lru_cache(maxsize=4)
def _second(at: datetime) -> str:
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def line(stamped: Stamped, *, format: LogFormat, with_time: bool = True, with_priority: bool = False) -> str:
    """The one line of an event, without its line end.

    Text leaves out what is absent, an empty list and what is at the class's default; JSON has every field.
    """
    event = stamped.event
    if format is LogFormat.TEXT:
        kind: Any = type(event)
        words = [f"<{_PRIORITY[event.severity]}>" if with_priority else ""]
        if with_time:
            words += timestamp(stamped.at), " "
        words += event.severity.value, " ", event.name
        for name, silent in _fields(kind):
            value = getattr(event, name)
            if value is None or value == () or (value == silent and isinstance(value, str)):
                continue
            words += " ", name, "=", _text_value(value)
        return "".join(words)
    return _compose(
        stamped.at,
        event.severity,
        event.name,
        event.values(),
        format=format,
        with_time=with_time,
        with_priority=with_priority,
    )


@cache
def _fields(kind: type[Event]) -> tuple[tuple[str, object], ...]:
    """Each field of the class and its default."""
    return tuple((field.name, field.default) for field in attrs.fields(kind))


def _compose(
    at: datetime,
    severity: Severity,
    name: str,
    values: Mapping[str, FieldValue],
    *,
    format: LogFormat,
    with_time: bool,
    with_priority: bool,
) -> str:
    prefix = f"<{_PRIORITY[severity]}>" if with_priority else ""
    if format is LogFormat.JSON:
        document: dict[str, object] = {"time": timestamp(at, milliseconds=True)} if with_time else {}
        document |= {"level": severity.value, "event": name}
        document |= {_key(field): _json_value(value) for field, value in values.items()}
        return prefix + json.dumps(document)  # ensure_ascii: nothing but 0x20..0x7e leaves here
    head = [timestamp(at)] if with_time else []
    return prefix + " ".join([*head, severity.value, name, *(f"{k}={_text_value(v)}" for k, v in values.items())])


def _key(field: str) -> str:
    return f"{field}_" if field in _TAKEN else field


def _json_value(value: FieldValue) -> object:
    if isinstance(value, str):
        return _cut(mask_echo(value))
    if isinstance(value, tuple):
        shown: list[str] = []
        length = 0
        for item in value:
            length += len(item) + 1
            if length > MAX_VALUE:
                shown.append(f"... {len(value) - len(shown)} more")
                break
            shown.append(mask_echo(item))
        return shown
    return round(value, 3) if isinstance(value, float) else value


def _text_value(value: FieldValue) -> str:
    if isinstance(value, str):
        value = value.value if isinstance(value, Enum) else value
        return value if _BARE.fullmatch(value) else quoted(_cut(mask_echo(value)))
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".")
    if isinstance(value, tuple):
        whole = ",".join(value)
        return whole if _BARE.fullmatch(whole) else quoted(_cut(",".join(map(mask_echo, value))))
    return str(value)


def _cut(text: str) -> str:
    return text if len(text) <= MAX_VALUE else f"{text[:MAX_VALUE]}... {len(text) - MAX_VALUE} more"


def quoted(text: str) -> str:
    """A logfmt value: bare where that is unambiguous, else a JSON string with every unprintable character escaped."""
    if text and text.isprintable() and _AMBIGUOUS.search(text) is None:
        return text
    return f'"{escaped(text)}"'


def escaped(text: str) -> str:
    """`text` as the inside of a JSON string, printable characters beyond ASCII kept."""
    if text.isprintable():
        return text.replace("\\", "\\\\").replace('"', '\\"')
    return "".join(c if c.isprintable() and c not in '"\\' else json.dumps(c)[1:-1] for c in text)


# --- where lines go ---------------------------------------------------------------------------------------------------


def under_journald(stream: TextIO, environment: Mapping[str, str]) -> bool:
    """Whether journald reads `stream`: JOURNAL_STREAM names its device and inode (systemd.exec(5))."""
    named = environment.get("JOURNAL_STREAM", "")
    if not named:
        return False
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return named == f"{status.st_dev}:{status.st_ino}"


Later = Callable[[float, Callable[[], None]], object]
"""`asyncio.AbstractEventLoop.call_later`."""


class LogWriter:
    """Writes events at or above `level` to `stream`, or to `file` where one is given.

    A file that was moved away is opened anew (logrotate needs no signal). `rotate` is (bytes, files) for systems
    without logrotate. Belongs to the event loop's thread. Each line is written at once, unless `gather` was called.
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        format: LogFormat = LogFormat.TEXT,
        level: LogLevel = LogLevel.INFO,
        file: Path | None = None,
        environment: Mapping[str, str] | None = None,
        rotate: tuple[int, int] | None = None,
    ) -> None:
        self._stream = stream
        self._format = format
        self._least = _RANK[Severity(level.value)]
        self._file = file
        self._rotate = rotate
        self._opened: TextIO | None = None
        self._journald = file is None and under_journald(stream, os.environ if environment is None else environment)
        self._later: Later | None = None
        self._held: list[str | Stamped] = []
        self._held_since = datetime.min
        self.lost = 0

    def gather(self, later: Later | None) -> None:
        """From here on lines of events that come in crowds wait for each other, for 10 ms. None: no more of that.

        One after the other they are made, and written, in a fraction of the time. Who is killed takes the last along.
        """
        self._later = later
        if later is None:
            self.flush()

    def flush(self) -> None:
        """Writes the lines that wait. Never raises for what a disk or a pipe does."""
        if self._held:
            held, self._held = self._held, []
            self._put([each if isinstance(each, str) else self._line(each) for each in held], self._held_since)

    def _line(self, stamped: Stamped) -> str:
        return line(stamped, format=self._format, with_time=not self._journald, with_priority=self._journald)

    def reconfigure(self, *, format: LogFormat, level: LogLevel) -> None:
        """Counts from the next line on."""
        self.flush()
        self._format = format
        self._least = _RANK[Severity(level.value)]

    def write(self, stamped: Stamped) -> None:
        """Write the event's line, if its severity is wanted. Never raises for what a disk or a pipe does."""
        if _RANK[stamped.event.severity] >= self._least:
            self._take(stamped, stamped.at, wait=stamped.event.in_crowds)

    def note(self, at: datetime, text: str, *, severity: Severity = Severity.INFO, about: str = "note") -> None:
        """Write what is worth a line and is no event: a hook's output, a source of hints that was refused."""
        if _RANK[severity] >= self._least:
            self._take(self._composed(at, severity, about, {"text": text}), at, wait=False)

    def close(self) -> None:
        self.flush()
        self._close_file()

    def _close_file(self) -> None:
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def _composed(self, at: datetime, severity: Severity, name: str, values: Mapping[str, FieldValue]) -> str:
        return _compose(
            at,
            severity,
            name,
            values,
            format=self._format,
            with_time=not self._journald,
            with_priority=self._journald,
        )

    def _take(self, what: str | Stamped, at: datetime, *, wait: bool) -> None:
        if not self._held:
            self._held_since = at
        self._held.append(what)
        if self._later is None or not wait or len(self._held) >= _MOST_HELD:
            self.flush()
        elif len(self._held) == 1:
            self._later(_GATHER_SECONDS, self.flush)

    def _put(self, lines: list[str], at: datetime) -> None:
        text = "\n".join(lines)
        if self.lost:
            lost = self._composed(at, Severity.WARNING, "log.lost", {"lines": self.lost})
            text = f"{lost}\n{text}"
        try:
            out = self._stream if self._file is None else self._current(self._file)
            out.write(text + "\n")
            out.flush()
        except (OSError, ValueError):
            self.lost += len(lines)
            if self._file is not None:
                self._abandon()
            return
        self.lost = 0

    def _abandon(self) -> None:
        """Forget a file that a write failed on: what is buffered would be written twice, or fail again in close."""
        opened, self._opened = self._opened, None
        if opened is not None:
            try:
                opened.close()
            except (OSError, ValueError):
                return

    def _current(self, path: Path) -> TextIO:
        if self._opened is not None and self._moved_away(path, self._opened):
            self._close_file()
        if self._opened is not None and self._rotate is not None and self._opened.tell() >= self._rotate[0]:
            self._close_file()
            _shift(path, self._rotate[1])
        if self._opened is None:
            # Envelope addresses are in it: not for everybody. No newline translation: one line, one LF.
            self._opened = open(  # noqa: SIM115
                path, "a", encoding="utf-8", errors="backslashreplace", newline="\n", opener=_private
            )
        return self._opened

    @staticmethod
    def _moved_away(path: Path, opened: TextIO) -> bool:
        try:
            return not os.path.samestat(path.stat(), os.fstat(opened.fileno()))
        except FileNotFoundError:
            return True


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o640)


def _shift(path: Path, files: int) -> None:
    """``x`` becomes ``x.1``, ``x.1`` becomes ``x.2``, and so on; the last of `files` goes."""
    for number in range(files - 1, 0, -1):
        older = path.with_name(f"{path.name}.{number}")
        younger = path if number == 1 else path.with_name(f"{path.name}.{number - 1}")
        if younger.exists():
            younger.replace(older)


# --- secrets ----------------------------------------------------------------------------------------------------------

_MECHANISM = re.compile(
    r"(\bAUTH[ \t]+(?:PLAIN|LOGIN|CRAM-MD5|EXTERNAL|XOAUTH2|OAUTHBEARER|SCRAM-[\w-]+|NTLM|GSSAPI)[ \t]+)\S+",
    re.IGNORECASE,
)


def mask_echo(text: str) -> str:
    """A server's words as they may be kept: some quote the command that they refuse, password and all."""
    return _MECHANISM.sub(r"\g<1>***", text) if "AUTH" in text.upper() else text
