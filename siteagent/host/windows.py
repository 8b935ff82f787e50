"""Windows: siteagent as tasks of the Task Scheduler, from the templates in ``windows/``.

The agent starts with the machine as LOCAL SERVICE; a second task tells it when a network was connected. The Task
Scheduler wants its XML in the encoding that the XML declares: UTF-16 with a mark, and CRLF. None of this was run on
Windows: texts and command lines are made here and checked by their structure.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from xml.sax.saxutils import escape

from siteagent.errors import CannotCreate

FOLDER = "Siteagent"
LOCAL_SERVICE = "*S-1-5-19"


@dataclass(frozen=True, slots=True)
class Command:
    """A command line. `quietly`: that it fails is no failure."""

    argv: tuple[str, ...]
    quietly: bool = False


@dataclass(slots=True)
class Plan:
    """`files`: name in `directory` to bytes; `commands`: to be run in it, in order."""

    directory: Path
    files: dict[str, bytes] = field(default_factory=dict)
    commands: list[Command] = field(default_factory=list)


def plan(executable: Path, *, configuration: Path, hub: bool = False) -> Plan:
    """What installing writes and runs. `executable`: the Python of the environment that siteagent is installed in."""
    program = PureWindowsPath(executable).with_name("siteagent.exe")
    directory = PureWindowsPath(configuration).parent.parent
    name = "Hub" if hub else "Agent"
    verb = "hub run" if hub else "run"
    words = {"PROGRAM": str(program), "DIRECTORY": str(directory), "NAME": name}
    config = f'--config "{PureWindowsPath(configuration)}"'
    made = Plan(Path(directory))
    tasks = {name: ("agent-task.xml", f"{config} {verb}")}
    if not hub:
        tasks["Link"] = ("link-task.xml", f"{config} link-up")
        text = filled("siteagent-winsw.xml", {**words, "ARGUMENTS": f"{config} {verb}"})
        made.files["siteagent-winsw.xml"] = text.encode("utf-8")
    for task, (template, arguments) in tasks.items():
        file = f"{task.lower()}-task.xml"
        made.files[file] = task_bytes(filled(template, {**words, "ARGUMENTS": arguments}))
        made.commands.append(Command(("schtasks", "/Create", "/TN", rf"{FOLDER}\{task}", "/XML", file, "/F")))
    made.commands.append(Command(("schtasks", "/Run", "/TN", rf"{FOLDER}\{name}")))
    return made


def removal(*, hub: bool = False) -> list[Command]:
    """Takes the tasks away. Mail, state and configuration stay."""
    out = []
    for task in ("Hub",) if hub else ("Agent", "Link"):
        out += [
            Command(("schtasks", "/End", "/TN", rf"{FOLDER}\{task}"), quietly=True),
            Command(("schtasks", "/Delete", "/TN", rf"{FOLDER}\{task}", "/F"), quietly=True),
        ]
    return out


def filled(template: str, words: Mapping[str, str]) -> str:
    """A template with its ``@WORD@`` replaced, as XML text."""
    text = _shipped(template)
    for word, value in words.items():
        text = text.replace(f"@{word}@", escape(value, {'"': "&quot;"}))
    return text


def task_bytes(text: str) -> bytes:
    """A task's XML as the Task Scheduler reads it."""
    plain = text.replace("\r\n", "\n").replace("\n", "\r\n")
    return b"\xff\xfe" + plain.encode("utf-16-le")


def write(made: Plan, directory: Path) -> None:
    """Puts the files into `directory`. Raises CannotCreate."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, data in made.files.items():
            (directory / name).write_bytes(data)
    except OSError as error:
        raise CannotCreate(
            f"cannot write to {directory}", (error.strerror or str(error)).lower(), fix="run it as an administrator"
        ) from error
    made.directory = directory


def run(commands: Sequence[Command], say: Callable[[str], None], *, directory: Path | None = None) -> None:
    """Runs them in order. Raises CannotCreate for the first that fails and may not."""
    for command in commands:
        say(shown(command))
        try:
            done = subprocess.run(command.argv, check=False, capture_output=True, text=True, timeout=120, cwd=directory)
            trouble = (done.stderr or done.stdout).strip() if done.returncode else ""
        except (OSError, subprocess.TimeoutExpired) as error:
            trouble = str(error)
        if trouble and not command.quietly:
            raise CannotCreate(f"cannot run {shown(command)}", trouble, fix="run it as an administrator")


def shown(command: Command) -> str:
    """The command line as Windows writes it."""
    return subprocess.list2cmdline(command.argv)


def name_is_safe(name: str) -> bool:
    """Whether `name` can be a directory on NTFS: no stream (``:``), no device, no trailing dot or blank."""
    stem = name.split(".", 1)[0].upper()
    devices = {"CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in range(1, 10))}
    return bool(name) and stem not in devices and name[-1] not in ". " and not set(name) & set('<>:"/\\|?*\0')


def _shipped(name: str) -> str:
    here = Path(__file__).parent.parent
    for place in (here / "data" / "windows", here.parent / "windows"):
        if (place / name).is_file():
            return (place / name).read_text("utf-8")
    raise CannotCreate("cannot install the tasks", f"{name} is missing from this installation", fix="install it anew")
