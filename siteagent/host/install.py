"""Installs siteagent as a service of systemd: what goes where, and what must be run, as a plan; then the plan done.

A plan is made whole before anything is written, so that `--dry-run` shows exactly what would happen and a refusal
leaves nothing behind. Every file that we put somewhere stands in a list of ours (`MANIFEST`): installing again removes
what the earlier one wrote and this one does not, and `removal` takes away that and nothing else. Mail, configuration,
state and the user stay.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from siteagent.config.files import passwords_of
from siteagent.config.sections import Configuration, HubConfiguration
from siteagent.errors import CannotCreate, ConfigurationError, PermissionProblem, SiteAgentError, UsageError
from siteagent.host import units
from siteagent.host.grants import Command as Command
from siteagent.host.grants import below, in_a_home, is_roots, maildir_commands

LIBRARY = Path("/usr/lib/siteagent")
UNITS = Path("/etc/systemd/system")
DROP_IN = UNITS / "siteagent.service.d/10-site.conf"
SOCKET = UNITS / "siteagent.socket"
START = LIBRARY / "start"
TEMPORARY = (Path("/tmp"), Path("/var/tmp"))
SHARE = Path("/usr/local/share")
RECIPE = (
    "install it where services can see it: python3 -m venv /opt/siteagent && /opt/siteagent/bin/pip install siteagent "
    "&& /opt/siteagent/bin/siteagent install-service"
)
# Hook -> (what has to be there for it, where it goes). run-parts takes no name with a dot in it.
HOOKS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "networkmanager": (
        ("/etc/NetworkManager", "/usr/lib/NetworkManager"),
        ("/etc/NetworkManager/dispatcher.d/90-siteagent",),
    ),
    "ppp": (("/etc/ppp",), ("/etc/ppp/ip-up.d/siteagent", "/etc/ppp/ipv6-up.d/siteagent")),
    # networkd-dispatcher wants file and directory to be 0755 and root's, exactly.
    "networkd": (
        ("/etc/networkd-dispatcher", "/usr/lib/networkd-dispatcher"),
        ("/etc/networkd-dispatcher/routable.d/siteagent",),
    ),
    "ifupdown": (("/etc/network/if-up.d",), ("/etc/network/if-up.d/siteagent",)),
}
_ALIASES = {"nm": "networkmanager", "pppd": "ppp", "networkd-dispatcher": "networkd"}


@dataclass(frozen=True, slots=True)
class Interpreter:
    """The Python that the service will run: as it is called, what that really is, and what it needs beside itself."""

    executable: Path
    needs: tuple[Path, ...] = ()

    @classmethod
    def ours(cls) -> Interpreter:
        """The one that runs this."""
        return cls(Path(sys.executable), (Path(sys.prefix), Path(sys.base_prefix), Path(__file__)))

    @property
    def real(self) -> Path:
        return self.executable.resolve()


@dataclass(frozen=True, slots=True)
class File:
    """A file to write. `path` is absolute on the host that it is for."""

    path: Path
    text: str
    mode: int = 0o644


@dataclass(slots=True)
class Plan:
    """What to write, what to remove, what to run afterwards (as root, in order), and what to tell."""

    files: list[File] = field(default_factory=list)
    removed: list[Path] = field(default_factory=list)
    commands: list[Command] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    manifest: Path = LIBRARY / "installed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What is to be installed. `configuration` None: there is none yet, and the drop-in knows nothing but defaults.

    `hooks`: names of HOOKS; None: those that this host (or `root`) has a use for. `shared`: texts by their place below
    /usr/local/share, as the manual and the shells' completions.
    """

    interpreter: Interpreter
    configuration: Configuration | HubConfiguration | None = None
    source: Path | None = None
    hooks: tuple[str, ...] | None = None
    root: Path | None = None
    hub: bool = False
    shared: Mapping[str, str] = field(default_factory=dict)


def named_hooks(text: str) -> tuple[str, ...] | None:
    """The value of ``--hooks``: ``auto`` (None), ``none`` or a list with commas. Raises UsageError."""
    if text == "auto":
        return None
    names = [] if text == "none" else [word.strip() for word in text.split(",") if word.strip()]
    found = tuple(dict.fromkeys(_ALIASES.get(name, name) for name in names))
    for name in found:
        if name not in HOOKS:
            raise UsageError(
                "cannot install hooks", f"there is none for {name!r}", fix=f"known: {', '.join(HOOKS)}; auto, none"
            )
    return found


# --- planning ---------------------------------------------------------------------------------------------------------


def plan(wishes: Wishes) -> Plan:
    """Everything that installing needs. Raises ConfigurationError, UsageError where it would not work."""
    made = Plan(
        manifest=_manifest(wishes.hub), notes=_refuse_hidden(wishes.interpreter, elsewhere=wishes.root is not None)
    )
    made.files.append(File(START, _start(wishes.interpreter), 0o755))
    if wishes.hub:
        _plan_hub(wishes, made)
    else:
        _plan_site(wishes, made)
    made.files += [File(SHARE / place, text) for place, text in wishes.shared.items()]
    before = _listed(made.manifest, wishes.root)
    written = {file.path for file in made.files}
    made.removed = [path for path in before if path not in written]
    made.files.append(File(made.manifest, "".join(f"{path}\n" for path in sorted(written))))
    return made


def _plan_site(wishes: Wishes, made: Plan) -> None:
    value = wishes.configuration
    assert not isinstance(value, HubConfiguration), "install-service --hub plans that one"
    origin = str(wishes.source) if value is not None else "nothing but defaults"
    endpoints = units.socket_endpoints(value)
    if wishes.root is None:
        kept = units.possible_here(endpoints)
        made.notes += [f"no socket for {each}: this host has no IPv6" for each in endpoints if each not in kept]
        endpoints = kept
    made.files += [
        File(UNITS / "siteagent.service", shipped("siteagent.service")),
        File(DROP_IN, units.drop_in(value, wishes.source)),
        File(Path("/etc/sysusers.d/siteagent.conf"), shipped("siteagent.sysusers")),
        File(Path("/etc/tmpfiles.d/siteagent.conf"), shipped("siteagent.tmpfiles") + units.mail_directories(value)),
        File(LIBRARY / "link-hook", shipped("hooks/link-hook"), 0o755),
    ]
    names = ["siteagent.service"]
    if endpoints:
        made.files.append(File(SOCKET, units.socket_unit(endpoints, origin)))
        names.insert(0, "siteagent.socket")
    for name in wishes.hooks if wishes.hooks is not None else _useful_hooks(wishes.root):
        made.files += [File(Path(place), shipped(f"hooks/{name}"), 0o755) for place in HOOKS[name][1]]
    made.commands += _prepare("siteagent")
    if value is not None:
        made.commands += _hand_over(value)
        made.commands += _share_secrets(value, wishes.source, "siteagent")
        for mailbox in value.mailbox:
            made.commands += maildir_commands(mailbox, home=home_of, group_of=group_of)
    made.commands += _start_units(names)
    if any("setfacl" in command.argv for command in made.commands) and shutil.which("setfacl") is None:
        made.notes.append("setfacl is missing, which lets readers and agent share a Maildir: apt install acl")


def _hand_over(value: Configuration) -> list[Command]:
    """Whoever tried it out as root has left a state that the service could not write to."""
    assert value.state_directory is not None
    own = [mailbox.maildir for mailbox in value.mailbox if not in_a_home(mailbox.maildir)]
    places = [place for place in (value.state_directory, *own) if is_roots(place)]
    return [_given("siteagent", place) for place in places]


def _given(user: str, place: Path) -> Command:
    return Command(("chown", "-R", f"{user}:{user}", str(place)), "the service's, not root's")


def _share_secrets(value: Configuration | HubConfiguration, source: Path | None, group: str) -> list[Command]:
    """What root put beside the configuration with `chmod 600`, as told: the service may read it, and not change it."""
    secrets = dict.fromkeys([value.listener.tls_key, *passwords_of(value)])
    beside = [path for path in secrets if path is not None and source is not None and path.parent == source.parent]
    commands = []
    for path in beside:
        if is_roots(path) and path.stat().st_mode & 0o077 == 0:
            commands.append(Command(("chgrp", group, str(path)), "the service may read it"))
            commands.append(Command(("chmod", "0640", str(path)), "and nobody else"))
    return commands


def _plan_hub(wishes: Wishes, made: Plan) -> None:
    value = wishes.configuration
    assert not isinstance(value, Configuration), "install-service without --hub plans that one"
    made.files += [
        File(UNITS / "siteagent-hub.service", shipped("siteagent-hub.service")),
        File(UNITS / "siteagent-hub.service.d/10-site.conf", units.hub_drop_in(value, wishes.source)),
        File(Path("/etc/sysusers.d/siteagent-hub.conf"), shipped("siteagent-hub.sysusers")),
        File(Path("/etc/tmpfiles.d/siteagent-hub.conf"), shipped("siteagent-hub.tmpfiles")),
    ]
    made.commands += _prepare("siteagent-hub")
    if value is not None:
        assert value.state_directory is not None
        if is_roots(value.state_directory):
            made.commands.append(_given("siteagent-hub", value.state_directory))
        made.commands += _share_secrets(value, wishes.source, "siteagent-hub")
    made.commands += _start_units(["siteagent-hub.service"])


def _refuse_hidden(interpreter: Interpreter, *, elsewhere: bool) -> list[str]:
    """The unit hides the homes, and has a /tmp of its own, as it should for a service that talks to the Internet.

    Written for another root (`elsewhere`) an interpreter that is reached by a link is only warned of: there it may lead
    to another place.
    """
    wanted = (interpreter.executable, interpreter.real, *interpreter.needs)
    hidden = [path for path in wanted if in_a_home(path) or (not elsewhere and below(path, TEMPORARY))]
    if not hidden:
        return []
    if elsewhere and not in_a_home(interpreter.executable):
        return [
            f"{interpreter.executable} needs {hidden[0]}, which services cannot see: it must be elsewhere on the host"
        ]
    raise ConfigurationError(
        "cannot install this siteagent as a service", f"it lies in {hidden[0]}, which services cannot see", fix=RECIPE
    )


def _start(interpreter: Interpreter) -> str:
    cure = (
        f"python3 -m venv --clear {interpreter.executable.parent.parent} && "
        f"{interpreter.executable.parent}/pip install siteagent"
    )
    text = shipped("start").replace("@PYTHON@", shlex.quote(str(interpreter.executable)))
    return text.replace("@REAL@", shlex.quote(str(interpreter.real))).replace("@CURE@", cure)


def _useful_hooks(root: Path | None) -> list[str]:
    """Those whose program is there. A root that is no whole system is a package being made, which carries all."""
    base = root or Path("/")
    if root is not None and not (root / "usr/lib/os-release").exists() and not (root / "etc/os-release").exists():
        return list(HOOKS)
    return [name for name, (signs, _) in HOOKS.items() if any((base / sign[1:]).exists() for sign in signs)]


def _prepare(name: str) -> list[Command]:
    return [
        Command(("systemd-sysusers", f"{name}.conf"), f"the user {name}, whom the service runs as"),
        Command(("systemd-tmpfiles", "--create", f"{name}.conf"), "the directories"),
    ]


def _start_units(names: Sequence[str]) -> list[Command]:
    return [
        Command(("systemctl", "daemon-reload"), "systemd reads the units"),
        Command(("systemctl", "enable", *names), "at every boot"),
        Command(("systemctl", "restart", *names), "and now"),
    ]


def shipped(name: str) -> str:
    """The text of a file of ``systemd/``: from the installed package, or from the repository."""
    here = Path(__file__).parent.parent
    for place in (here / "data" / "systemd", here.parent / "systemd"):
        if (place / name).is_file():
            return (place / name).read_text("utf-8")
    raise CannotCreate("cannot install the service", f"{name} is missing from this installation", fix="install it anew")


def home_of(user: str) -> Path | None:
    """A local user's home; None where there is no such user."""
    if sys.platform == "win32":
        return None
    else:
        import pwd

        try:
            return Path(pwd.getpwnam(user).pw_dir)
        except (KeyError, ValueError):
            return None


def group_of(user: str) -> str:
    """The name of a local user's own group; the user's name where nobody knows (yet)."""
    if sys.platform == "win32":
        return user
    else:
        import grp
        import pwd

        try:
            return grp.getgrgid(pwd.getpwnam(user).pw_gid).gr_name
        except KeyError:
            return user


# --- doing ------------------------------------------------------------------------------------------------------------


def write(made: Plan, root: Path | None) -> None:
    """Puts the files in place, below `root` where one is given; nothing is run. Raises SiteAgentError."""
    os.umask(0o022)
    for path in made.removed:
        _remove(_below(root, path))
    for file in made.files:
        target = _below(root, file.path)
        try:
            target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            temporary = target.with_name(f".{target.name}.{os.getpid()}")
            temporary.write_text(file.text, encoding="utf-8", newline="\n")
            temporary.chmod(file.mode)
            temporary.replace(target)
        except PermissionError as error:
            raise PermissionProblem(
                f"cannot write {target}", "permission denied", fix="run it as root, or with --root DIR or --dry-run"
            ) from error
        except OSError as error:
            raise CannotCreate(f"cannot write {target}", (error.strerror or str(error)).lower()) from error


def run(commands: Sequence[Command], say: Callable[[str], None]) -> None:
    """Runs them in order, each told. Raises CannotCreate for one that fails, unless it may."""
    for command in commands:
        say(f"{shlex.join(command.argv)}  # {command.why}")
        try:
            done = subprocess.run(
                command.argv, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120
            )
            trouble = (done.stderr.strip() or f"it ended with {done.returncode}") if done.returncode else ""
        except (OSError, subprocess.TimeoutExpired) as error:
            trouble = str(getattr(error, "strerror", None) or error).lower()
        if trouble and not command.quietly:
            raise CannotCreate(
                f"cannot run {shlex.join(command.argv)}",
                trouble,
                fix="mend that, then run it again: it may be repeated",
            )


def removal(*, hub: bool, root: Path | None) -> Plan:
    """What `uninstall-service` does: the units off, then our files away. Raises UsageError where there are none."""
    made = Plan(manifest=_manifest(hub))
    ours = _listed(made.manifest, root)
    if not ours:
        raise UsageError("cannot uninstall the service", f"nothing says that it is installed ({made.manifest})")
    shared = set(_listed(_manifest(not hub), root))
    made.removed = [path for path in ours if path not in shared] + [made.manifest]
    names = [path.name for path in ours if path.parent == UNITS and path.suffix in (".service", ".socket")]
    # The socket first: else the next connection starts the service again.
    names.sort(key=lambda name: not name.endswith(".socket"))
    made.commands = [Command(("systemctl", "disable", "--now", *names), "no longer now, nor at boot", quietly=True)]
    made.notes.append(
        "mail, configuration, state and the user siteagent stay; docs/operating.md says how to remove them"
    )
    return made


def remove(made: Plan, root: Path | None) -> None:
    """Takes the plan's files away, and directories that this leaves empty. Raises SiteAgentError."""
    for path in made.removed:
        _remove(_below(root, path))


def _remove(target: Path) -> None:
    try:
        target.unlink(missing_ok=True)
    except OSError as error:
        kind: type[SiteAgentError] = PermissionProblem if isinstance(error, PermissionError) else CannotCreate
        raise kind(f"cannot remove {target}", (error.strerror or str(error)).lower()) from error
    if target.parent.name.endswith(".service.d") or target.parent.name == LIBRARY.name:
        try:
            target.parent.rmdir()
        except OSError:
            return  # somebody keeps files of their own there


def _listed(manifest: Path, root: Path | None) -> list[Path]:
    try:
        rows = _below(root, manifest).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    return [Path(row) for row in rows if row.startswith("/") and ".." not in Path(row).parts]


def _manifest(hub: bool) -> Path:
    return LIBRARY / ("installed-hub" if hub else "installed")


def _below(root: Path | None, path: Path) -> Path:
    return path if root is None else root / path.relative_to("/")
