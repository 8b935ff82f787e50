"""The configuration as a file of this host: where it is, what it says with the host's own defaults filled in, and the
times it changed.

Where things are: ``docs/configuration.md``. platformdirs is imported only where no place was named, since a service
never needs it; on Linux its place for the whole system is /etc/xdg, where nobody looks, hence our own /etc/siteagent.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

from siteagent.config import names
from siteagent.config.convert import changed, is_section, options_of
from siteagent.config.draft import Draft, Problem, Problems
from siteagent.config.load import examine
from siteagent.config.passwords import judge_secret, password
from siteagent.config.sections import Configuration, HubConfiguration, Open
from siteagent.errors import ConfigurationError, PermissionProblem, StorageError

__all__ = [
    "find",
    "load",
    "own_hostname",
    "password",
    "passwords_of",
    "place",
    "stamp",
    "state_directory",
    "survey",
]

_LARGEST_FILE = 4_000_000
_SYSTEM_HOOK_DIRECTORY = Path("/run/siteagent-hook")
_FIRST_DESCRIPTORS = ("LISTEN_PID", "LISTEN_FDS")

_Kind = TypeVar("_Kind", Configuration, HubConfiguration)
_Any = TypeVar("_Any")
Stamp = tuple[int, int, int]


# --- where it is ------------------------------------------------------------------------------------------------------


def find(explicit: Path | None, *, hub: bool = False) -> Path:
    """The configuration file to use, which may not exist yet.

    Raises:
        PermissionProblem: where we may not even look.
    """
    name = "hub.toml" if hub else "siteagent.toml"
    if explicit is not None:
        return Path(explicit)
    named = os.environ.get("SITEAGENT_HUB_CONFIG" if hub else "SITEAGENT_CONFIG")
    if named:
        return Path(named)
    candidates = [Path(place) / name for place in _listed("CONFIGURATION_DIRECTORY")]
    if sys.platform.startswith("linux"):
        candidates.append(Path("/etc/siteagent") / name)
    for candidate in candidates:
        if _exists(candidate):
            return candidate
    place = _config_directory(system=_is_system()) / name
    if not _is_system() and sys.platform == "win32":
        # What was set up for the service is what its administrator asks about.
        shared = _config_directory(system=True) / name
        if _exists(shared):
            return shared
    if _is_system() and sys.platform.startswith("linux") and not _exists(place):
        return Path("/etc/siteagent") / name
    return place


def place(*, system: bool) -> Path:
    """Where a new configuration belongs: for the whole host, or for whoever runs this."""
    if system and sys.platform.startswith("linux"):
        return Path("/etc/siteagent/siteagent.toml")
    return _config_directory(system=system) / "siteagent.toml"


def _listed(variable: str) -> list[str]:
    """A variable of systemd's that holds one directory, or several with colons between."""
    return [place for place in os.environ.get(variable, "").split(os.pathsep) if place]


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except PermissionError:
        fix = f"run as a user who may read {path.parent}, or give --config FILE"
        raise PermissionProblem(f"cannot look for {path}", "permission denied", fix=fix) from None
    except (OSError, ValueError):
        return False
    return True


def _is_system() -> bool:
    """We run for the whole host: as root, or as a Windows service's account."""
    if sys.platform == "win32":
        profile = os.environ.get("USERPROFILE", "").lower()
        return "serviceprofiles" in profile or "systemprofile" in profile
    return os.geteuid() == 0


def _config_directory(*, system: bool) -> Path:
    import platformdirs  # 13 ms, and a service never comes here

    function = platformdirs.site_config_path if system else platformdirs.user_config_path
    place = function("siteagent", appauthor=False)
    return place / "config" if sys.platform == "win32" else place


def _is_the_hosts(path: Path) -> bool:
    """The configuration in `path` is the host's own: `status` is for everybody, and whoever asks means the service."""
    return _is_system() or path.absolute().parent == place(system=True).parent


def default_state_directory(path: Path, *, hub: bool = False) -> Path:
    """Where the state of the configuration in `path` lies, if that does not say so itself."""
    listed = _listed("STATE_DIRECTORY")
    if listed:
        return Path(listed[0])
    import platformdirs

    name = "siteagent-hub" if hub else "siteagent"
    function = platformdirs.site_state_path if _is_the_hosts(path) else platformdirs.user_state_path
    place = function(name, appauthor=False)
    return place / "state" if sys.platform == "win32" else place


# --- reading it -------------------------------------------------------------------------------------------------------


@overload
def load(path: Path, *, hub: Literal[False] = False) -> Configuration: ...
@overload
def load(path: Path, *, hub: Literal[True]) -> HubConfiguration: ...
@overload
def load(path: Path, *, hub: bool) -> Configuration | HubConfiguration: ...
def load(path: Path, *, hub: bool = False) -> Configuration | HubConfiguration:
    """The configuration in `path`: paths absolute, hostname, state and hook directory filled in.

    Raises:
        Problems: with every problem of it (77 where file modes are all that is wrong, else 78).
        ConfigurationError: there is no such file.
        PermissionProblem: it may not be read.
        StorageError: the disk does not give it.
    """
    value: Configuration | HubConfiguration | None
    value, draft = survey(path, kind=HubConfiguration) if hub else survey(path, kind=Configuration)
    if value is None or draft.problems:
        raise Problems(str(path), draft.problems)
    return value


def survey(path: Path, *, kind: type[_Kind]) -> tuple[_Kind | None, Draft]:
    """As `load`, but hands out the problems, and what could be read in spite of them."""
    raw = _read(path, hub=kind is HubConfiguration)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        problem = Problem(line, "", f"byte 0x{raw[error.start]:02x}, which is no UTF-8", "a file saved as UTF-8")
        return None, Draft(problems=[problem])
    value, draft = examine(text, kind=kind)
    if value is None:
        return None, draft
    value = _filled(_absolute(value, path.absolute().parent), path)
    if isinstance(value, Configuration):
        for i, provider in enumerate(value.provider):
            judge_secret(provider, ("provider", i), draft)
        _judge_sockets(value, draft)
    else:
        for i, node in enumerate(value.node):
            judge_secret(node, ("node", i), draft)
    return value, draft


def _read(path: Path, *, hub: bool) -> bytes:
    what = f"cannot read {path}"
    try:
        with path.open("rb") as file:
            raw = file.read(_LARGEST_FILE + 1)
    except (FileNotFoundError, NotADirectoryError):
        maker = "siteagent hub add-node" if hub else "siteagent init"
        fix = f"run `{maker}`, which writes one, or give --config FILE"
        raise ConfigurationError(what, "there is no such file", fix=fix) from None
    except PermissionError:
        raise PermissionProblem(what, "permission denied", fix="run as its owner, or as root") from None
    except IsADirectoryError:
        raise ConfigurationError(what, "it is a directory", fix="give --config the file in it") from None
    except (OSError, ValueError) as error:
        raise StorageError(what, str(getattr(error, "strerror", None) or error).lower()) from None
    if len(raw) > _LARGEST_FILE:
        fix = "give the configuration, not some other file, to --config"
        raise ConfigurationError(what, f"it holds more than {_LARGEST_FILE} bytes", fix=fix)
    return raw


def state_directory(path: Path, *, hub: bool = False) -> Path:
    """Where the state of the configuration in `path` lies, whatever else is wrong with it: for `status` and its like.

    Raises: as `load`, but Problems only where the file is no TOML.
    """
    value: Configuration | HubConfiguration | None
    value, draft = survey(path, kind=HubConfiguration) if hub else survey(path, kind=Configuration)
    if value is None or value.state_directory is None:
        raise Problems(str(path), draft.problems)
    return value.state_directory


def _absolute(value: _Any, base: Path) -> _Any:
    """`value` with every path in it absolute: relative ones are relative to the file."""
    changes: dict[str, Any] = {}
    for attribute in options_of(type(value)):
        old = getattr(value, attribute.name)
        if isinstance(old, Path) and old != Path():
            changes[attribute.name] = _placed(old, base)
        elif is_section(type(old)):
            changes[attribute.name] = _absolute(old, base)
        elif isinstance(old, tuple) and old and is_section(type(old[0])):
            changes[attribute.name] = tuple(_absolute(item, base) for item in old)
        elif attribute.name == "file" and isinstance(old, str) and old:
            changes[attribute.name] = str(_placed(Path(old), base))
        elif attribute.name == "commands":
            changes[attribute.name] = {event: _command(command, base) for event, command in old.items()}
    return changed(value, **changes) if changes else value


def _placed(path: Path, base: Path) -> Path:
    with contextlib.suppress(RuntimeError):  # no home, or no such user: then it is the name of a directory
        path = path.expanduser()
    return base / path


def _command(command: tuple[str, ...], base: Path) -> tuple[str, ...]:
    """A program written with a slash is a path; without, it is looked for in PATH."""
    program = command[0]
    return (str(_placed(Path(program), base)), *command[1:]) if "/" in program or "\\" in program else command


def _filled(value: _Kind, path: Path) -> _Kind:
    """`value`, read from `path`, with what the host itself decides."""
    hub = isinstance(value, HubConfiguration)
    state = value.state_directory or default_state_directory(path, hub=hub).absolute()
    value = changed(value, hostname=value.hostname or own_hostname(), state_directory=state)
    if isinstance(value, Configuration) and value.link.hook_directory is None:
        link = changed(value.link, hook_directory=_default_hook_directory(state, system=_is_the_hosts(path)))
        value = changed(value, link=link)
    return value


def _default_hook_directory(state: Path, *, system: bool) -> Path:
    posix = sys.platform != "win32"
    return _SYSTEM_HOOK_DIRECTORY if posix and (system or "STATE_DIRECTORY" in os.environ) else state / "hints"


def own_hostname() -> str:
    """The host's own name if it holds a dot, else the literal of its address (RFC 5321 §4.1.3). Asks no DNS."""
    name = socket.gethostname()
    if "." in name and not name.lower().startswith("localhost.") and names.host_name(name) is not None:
        return name
    return f"[{_own_address()}]"


def _own_address() -> str:
    # Connecting a datagram socket sends nothing: the kernel only picks the route, and with it our address. The two
    # targets are documentation networks (RFC 5737, RFC 3849).
    for family, target in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((target, 9))
                address = str(probe.getsockname()[0]).partition("%")[0]
        except OSError:
            continue
        return f"IPv6:{address}" if family == socket.AF_INET6 else address
    return "127.0.0.1"


# --- what it points to ------------------------------------------------------------------------------------------------


def _judge_sockets(configuration: Configuration, draft: Draft) -> None:
    pid, count = (os.environ.get(name, "") for name in _FIRST_DESCRIPTORS)
    if configuration.listener.open is Open.ASKED and pid == str(os.getpid()) and count not in ("", "0"):
        found = '"asked", while systemd holds the port open'
        draft.report(("listener", "open"), found=found, allowed='"always", or no siteagent.socket')


# --- noticing that it changed -----------------------------------------------------------------------------------------


def stamp(path: Path) -> Stamp | None:
    """A value that differs once the file at `path` was written or replaced; None while there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_mtime_ns, status.st_size, status.st_ino)


def passwords_of(configuration: Configuration | HubConfiguration) -> tuple[Path, ...]:
    """The password files that it names."""
    sections = configuration.provider if isinstance(configuration, Configuration) else configuration.node
    return tuple(section.password_file for section in sections if section.password_file is not None)
