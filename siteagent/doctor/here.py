"""Checks of this host: the configuration, passwords, Maildirs and their readers, the disk, our port, the service."""

from __future__ import annotations

import contextlib
import os
import socket
import stat as modes
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from siteagent.config.draft import Problem
from siteagent.config.paths import acting_as_owner
from siteagent.config.sections import Mailbox, Open
from siteagent.doctor.findings import Finding, fail, ok, warn
from siteagent.doctor.site import Site
from siteagent.host import certificates, install, units
from siteagent.inbound.holder import holder_of
from siteagent.status import amount

CERTIFICATE_DAYS = 21
_OF_OTHER_CHECKS = ("password_file", "username", "maildir", "reader", "tls_certificate", "tls_key")
_MARK = b"From: siteagent doctor\n\nA trial; it is taken away at once.\n"


def configuration(site: Site) -> Iterator[Finding]:
    other = [problem for problem in site.problems if problem not in site.wrong(*_OF_OTHER_CHECKS)]
    for problem in other:
        yield fail("configuration", f"line {problem.line}: {problem.sentence}", f"edit {site.path}")
    if not other:
        yield ok("configuration", f"{site.path}, looked at as {site.judged_as}")


def onlooker(site: Site) -> Iterator[Finding]:
    """Neither root nor who the agent runs as: what is shut to us may be as it should be."""
    if sys.platform == "win32":
        return
    with contextlib.suppress(OSError, KeyError):
        if os.geteuid() not in (0, site.state.stat().st_uid):
            who = f"{site.judged_as}, and the agent runs as {site.state.owner()}"
            yield warn("who looks", f"{who}: what is shut to you alone is red too", "run it as root")


def _wanted(site: Site, problem: Problem) -> str:
    return f"{problem.key.rpartition('.')[2]} wants {problem.allowed} ({site.path.name}, line {problem.line})"


def passwords(site: Site) -> Iterator[Finding]:
    wrong = site.wrong("password_file", "username")
    for problem in wrong:
        yield fail("password", problem.found, _wanted(site, problem))
    if not wrong and any(provider.username for provider in site.configuration.provider):
        yield ok("password", "there, and nobody else can read it")


def disk(site: Site) -> Iterator[Finding]:
    places = {"state": site.state, **{f"maildir {box.name}": box.maildir for box in site.configuration.mailbox}}
    seen: set[tuple[int, int]] = set()
    for name, place in places.items():
        try:
            free, total = site.disk(place)
        except OSError as error:
            yield fail(f"disk of {name}", f"{place}: {error.strerror}", f"mount or make {place}")
            continue
        if (free, total) in seen:
            continue  # the same file system
        seen.add((free, total))
        share = free / total if total else 0.0
        floor = site.configuration.listener.min_free_bytes
        if free < floor or share < 0.1:
            yield fail(
                f"disk of {name}",
                f"{amount(free)} free of {amount(total)} ({share:.0%}) at {place}",
                f"make room there: below {amount(floor)} mail is no longer taken, and stays at the provider",
            )
        else:
            yield ok(f"disk of {name}", f"{amount(free)} free ({share:.0%})")


# --- Maildirs ---------------------------------------------------------------------------------------------------------


def maildirs(site: Site) -> Iterator[Finding]:
    """A file written, synced, published and read as its reader, in each; then taken away again."""
    for problem in site.wrong("maildir", "reader"):
        yield fail("maildir", problem.found, _wanted(site, problem))
    for number, mailbox in enumerate(site.configuration.mailbox):
        if not site.draft.wrong("mailbox", number, "maildir") and not site.draft.wrong("mailbox", number, "reader"):
            yield _tried(site, mailbox)


def _tried(site: Site, mailbox: Mailbox) -> Finding:
    name = f"maildir {mailbox.name}"
    place = mailbox.maildir
    if not (place / "new").is_dir():
        return ok(name, f"{place} is made with the first message")
    # A name that begins with a dot is nobody's mail: no reader shows it for the moment that it stands there.
    trial = f".siteagent-doctor.{os.getpid()}"
    published = place / "new" / trial
    try:
        with acting_as_owner(site.state) as who:
            _file(place, trial, 0o660 if mailbox.reader else 0o600)
        if mailbox.reader is not None and (trouble := _unreadable(published, mailbox.reader)) is not None:
            if trouble == "":
                return warn(name, f"filed; whether {mailbox.reader} can read it only root can try", "run it as root")
            return fail(
                name,
                f"{mailbox.reader} cannot read what is filed: {trouble}",
                "run `siteagent install-service` again, which grants it, or setfacl by hand (docs/reading-mail.md)",
            )
    except OSError as error:
        return fail(
            name,
            f"{error.filename or place}: {(error.strerror or str(error)).lower()}",
            f"let the agent write there: chown -R {_owner(site)} {place}, or `siteagent install-service` for a reader",
        )
    finally:
        for left in (place / "tmp" / trial, published):
            with contextlib.suppress(OSError), acting_as_owner(site.state):
                left.unlink(missing_ok=True)
    read = f", and {mailbox.reader} can read it" if mailbox.reader else ""
    return ok(name, f"a message can be filed as {who}{read}")


def _file(place: Path, name: str, mode: int) -> None:
    temporary = place / "tmp" / name
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(handle, "wb") as file:
        if sys.platform != "win32":
            os.fchmod(handle, mode)
        file.write(_MARK)
        file.flush()
        os.fsync(handle)
    temporary.rename(place / "new" / name)


def _unreadable(path: Path, reader: str) -> str | None:
    """Why `reader` cannot read the file, None where that works; "" where we may not try."""
    if sys.platform == "win32":
        return None
    else:
        import pwd

        if os.geteuid() != 0:
            return None if pwd.getpwuid(os.geteuid()).pw_name == reader else ""
        entry = pwd.getpwnam(reader)
        done = subprocess.run(
            ["cat", "--", str(path)],
            check=False,
            user=entry.pw_uid,
            group=entry.pw_gid,
            extra_groups=os.getgrouplist(reader, entry.pw_gid),
            cwd="/",
            capture_output=True,
        )
        if done.returncode == 0 and done.stdout == _MARK:
            return None
        return done.stderr.decode("utf-8", "replace").strip().rpartition(": ")[2].lower() or "it reads something else"


def _owner(site: Site) -> str:
    if sys.platform != "win32":
        with contextlib.suppress(OSError, KeyError):
            return site.state.owner()
    return site.judged_as


# --- our port ---------------------------------------------------------------------------------------------------------


def port(site: Site) -> Iterator[Finding]:
    """Without a running agent: whether it could listen. With one the line's checks reach it."""
    if site.configuration.ask_only or site.holder is not None:
        return
    for endpoint in site.configuration.listener.listen:
        family = socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET
        name = f"port {endpoint}"
        try:
            with socket.socket(family, socket.SOCK_STREAM) as trial:
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    trial.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                trial.bind((endpoint.host, endpoint.port))
                trial.listen(1)
        except OSError as error:
            holder = holder_of(endpoint.port) or "another program"
            if holder.startswith("systemd ("):
                yield ok(name, "held by systemd for siteagent")
            elif isinstance(error, PermissionError):
                yield warn(name, "only root may listen there", "run it as root, or as the installed service")
            elif "in use" in (error.strerror or ""):
                yield fail(
                    name,
                    f"{holder} listens there already",
                    "stop that server, or let it receive and set listen = [] (ask-only)",
                )
            else:
                yield fail(name, (error.strerror or str(error)).lower(), "correct listen of [listener]")
        else:
            yield ok(name, "free" + (", opened when asked" if site.configuration.listener.open is Open.ASKED else ""))


def certificate(site: Site) -> Iterator[Finding]:
    wrong = site.wrong("tls_certificate", "tls_key")
    for problem in wrong:
        yield fail("our certificate", problem.found, _wanted(site, problem))
    path = site.configuration.listener.tls_certificate
    if wrong or path is None:
        return
    try:
        until = certificates.good_until(certificates.first_of(path.read_bytes()))
    except (OSError, ValueError) as error:
        yield fail("our certificate", f"{path}: {error}", "put a PEM certificate there")
        return
    left = until - site.now()
    said = f"{path} is good until {until:%Y-%m-%d}"
    renew = "renew it; the agent takes the new one without a restart"
    if left < timedelta(0):
        yield fail("our certificate", f"{path} expired on {until:%Y-%m-%d}", renew)
    elif left < timedelta(days=CERTIFICATE_DAYS):
        yield warn("our certificate", said, renew)
    else:
        yield ok("our certificate", said)


# --- the service ------------------------------------------------------------------------------------------------------


def agent(site: Site) -> Iterator[Finding]:
    if site.holder is None:
        yield warn("agent", "not running", "start it: `systemctl start siteagent`, or `siteagent run`")
        return
    yield ok("agent", f"running as process {site.holder}")
    for standing in site.document.get("warnings") or ():
        yield warn(f"warning {standing['name']}", standing["text"], standing["fix"])


def _installed(site: Site) -> list[Path]:
    """What `install-service` put in place; [] where it did not."""
    manifest = site.root / str(install.LIBRARY / "installed").lstrip("/")
    try:
        return [Path(row) for row in manifest.read_text("utf-8").splitlines() if row.startswith("/")]
    except OSError:
        return []


def at_boot(site: Site) -> Iterator[Finding]:
    for path in _installed(site):
        if path.parent == install.UNITS and path.suffix in (".service", ".socket"):
            said = site.enabled(path.name)
            if said in ("disabled", "masked"):
                fix = f"systemctl {'unmask' if said == 'masked' else 'enable --now'} {path.name}"
                yield fail(f"unit {path.name}", f"{said}: after the next boot nobody asks for mail", fix)


def as_configured(site: Site) -> Iterator[Finding]:
    """The service sees what it was installed for: of a Maildir that came later nothing but a wall."""
    listed = _installed(site)
    if install.DROP_IN not in listed:
        return
    endpoints = units.possible_here(units.socket_endpoints(site.configuration))
    source = site.path.absolute()
    wanted = {install.DROP_IN: units.drop_in(site.configuration, source)}
    if endpoints:
        wanted[install.SOCKET] = units.socket_unit(endpoints, str(source))
    changed = [path for path, text in wanted.items() if _read(site, path) != text]
    changed += [install.SOCKET] if install.SOCKET in listed and not endpoints else []
    if changed:
        yield fail(
            "service",
            f"{' and '.join(path.name for path in changed)} are not what the configuration says now: Maildirs, ports, "
            "passwords or this siteagent changed since it was installed",
            "run `siteagent install-service` again",
        )
    else:
        yield ok("service", "installed for this configuration")


def _read(site: Site, path: Path) -> str | None:
    try:
        return (site.root / str(path).lstrip("/")).read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def hooks(site: Site) -> Iterator[Finding]:
    """Of an installed service: are its files there still, and would the programs that call the hooks take them?"""
    if not (listed := _installed(site)):
        return
    again = "run `siteagent install-service` again"
    bad = False
    for path in listed:
        there = site.root / str(path).lstrip("/")
        try:
            status = there.stat()
        except OSError:
            bad = True
            yield fail(f"service file {path}", "missing", again)
            continue
        hook = any(str(path) in places for _, places in install.HOOKS.values()) or path.parent == install.LIBRARY
        if hook and path.name != "installed" and modes.S_IMODE(status.st_mode) != 0o755:
            bad = True
            yield fail(
                f"service file {path}", f"mode {modes.S_IMODE(status.st_mode):04o}, not 0755: it is not run", again
            )
        elif status.st_uid != 0 or status.st_mode & 0o022:
            bad = True
            yield fail(f"service file {path}", "others than root may change it", again)
    if not bad:
        yield ok("service files", f"{len(listed)} installed, none changed in mode or owner")


def hook_directory(site: Site) -> Iterator[Finding]:
    directory = site.configuration.link.hook_directory
    assert directory is not None, "config.files fills it in"
    if sys.platform == "win32" or not directory.exists():
        return
    status = directory.lstat()
    if modes.S_ISLNK(status.st_mode) or not modes.S_ISDIR(status.st_mode):
        yield fail("hook directory", f"{directory} is no directory", f"remove it; systemd-tmpfiles makes {directory}")
    elif status.st_mode & 0o022:
        yield fail("hook directory", f"others may write to {directory}", f"chmod 755 {directory}")
    else:
        yield ok("hook directory", str(directory))


def clock(site: Site) -> Iterator[Finding]:
    """A clock behind the program's own making is wrong, and makes every certificate look too young."""
    made = Path(__file__).stat().st_mtime
    if site.now().timestamp() < made - 86_400:
        yield warn("clock", f"it shows {site.now():%Y-%m-%d %H:%M} UTC", "set the time: timedatectl set-ntp true")
