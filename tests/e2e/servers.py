"""Other real providers: Debian's Exim and Sendmail, which cannot be installed beside Postfix, run from where
`tests/check.py --system-packages` has unpacked them (tests/unpacked-packages.txt).

Each runs whole in its provider's namespace, with its queue, log and configuration in a directory of its own; the users
that its package would have made exist in that namespace alone. Mail is queued and not tried until somebody asks.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.check import unpacked
from tests.e2e.messages import Shape
from tests.e2e.net import LabError, Line, Namespace, wait_for
from tests.e2e.postfix import SUBMISSION_PORT, Terms, smtp

USERS = ("Debian-exim:x:881:881::/nonexistent:/bin/false", "smmsp:x:882:882::/nonexistent:/bin/false")
LIBRARIES = "usr/lib/x86_64-linux-gnu"


class Server:
    """What both have in common. The agent's configuration needs `name`, `host`, `address` and `terms`."""

    program: str

    def __init__(self, name: str, line: Line, directory: Path, terms: Terms) -> None:
        self.name, self.line, self.terms, self.directory = name, line, terms, directory
        self.host = f"mx.{name}.example"
        self.namespace: Namespace = line.provider
        self.root = unpacked()
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True)
        directory.chmod(0o755)
        for file, entries in (("passwd", USERS), ("group", [":".join(user.split(":")[:3:]) + ":" for user in USERS])):
            known = Path("/etc", file).read_text()
            self._etc(file).write_text(
                known.rstrip("\n") + "\n" + "\n".join(_fit(file, entry) for entry in entries) + "\n"
            )
        self._etc("hosts").write_text(f"127.0.0.1 localhost\n{line.provider_address} {self.host}\n")
        line.site.knows(self.host, line.provider_address)

    def _etc(self, name: str) -> Path:
        return Path("/etc/netns") / self.namespace.name / name

    @property
    def address(self) -> str:
        return self.line.provider_address

    def argv(self, *arguments: str | Path) -> list[str | Path]:
        """The program from its place, with its libraries."""
        return ["env", f"LD_LIBRARY_PATH={self.root / LIBRARIES}", self.root / self.program, *arguments]

    def run(self, *arguments: str | Path) -> str:
        return self.namespace.run(*self.argv(*arguments))

    def daemon(self) -> Sequence[str | Path]:
        raise NotImplementedError

    def start(self) -> None:
        with (self.directory / "output").open("ab") as output:
            self._process = self.namespace.start(*self.daemon(), output=output)
        try:
            wait_for(lambda: self.namespace.listens(SUBMISSION_PORT), f"{self.name} listens", seconds=10)
        except LabError as problem:
            raise LabError(f"{self.name} does not start\n{self.log_tail()}") from problem

    def stop(self) -> None:
        """End it with all that it has started."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGTERM)
            self._process.wait(timeout=20)
            self._process = None

    def log_tail(self, lines: int = 40) -> str:
        found = [self.directory / "output", *sorted(self.directory.glob("log*"))]
        text = "".join(path.read_text(errors="replace") for path in found if path.is_file())
        return "\n".join(text.splitlines()[-lines:])

    def submit(self, messages: Iterable[Shape]) -> int:
        """Hand over mail as the world does, by SMTP."""
        count = 0
        with smtp(self.namespace, "127.0.0.1", SUBMISSION_PORT, "world.example") as world:
            for message in messages:
                world.sendmail(message.sender, message.recipients, message.on_the_wire())
                count += 1
        return count

    def waiting(self) -> int:
        raise NotImplementedError

    def queue(self, messages: Iterable[Shape]) -> int:
        """Hand over mail, and wait until all of it lies in the queue."""
        count = self.waiting() + self.submit(messages)
        wait_for(lambda: self.waiting() >= count, f"all queued at {self.name}")
        return count

    def etrn(self, node: str) -> str:
        """Ask by hand from the site; the reply."""
        with smtp(self.line.site, self.address, 25, "site.example") as site:
            code, text = site.docmd("ETRN", node)
            return f"{code} {text.decode(errors='replace')}"


def _fit(file: str, entry: str) -> str:
    name, _, number = entry.split(":")[:3]
    return entry if file == "passwd" else f"{name}:x:{number}:"


class Exim(Server):
    """Exim, by default as Debian has it: ETRN takes `#name` alone. With `command` a bare name is understood."""

    program = "usr/sbin/exim4"

    def __init__(
        self, name: str, line: Line, directory: Path, terms: Terms, *, acl: str = "accept", command: bool = False
    ):
        super().__init__(name, line, directory, terms)
        self._configuration = directory / "exim.conf"
        self.spool = directory / "spool"
        self.spool.mkdir()
        for place in (directory, self.spool):
            os.chown(place, 881, 881)
        sites = " : ".join(terms.nodes)
        program = f"{self.root / self.program} -C {self._configuration}"
        # What a peer said may not become an argument; what is looked up in a file may.
        known = directory / "nodes"
        known.write_text("".join(f"{node}: {node}\n" for node in terms.nodes))
        name_of = f"${{lookup{{$domain}}lsearch{{{known}}}{{$value}}fail}}"
        options = f"smtp_etrn_command = {program} -R {name_of}\n" if command else ""
        self._configuration.write_text(f"""\
primary_hostname = {self.host}
spool_directory = {self.spool}
log_file_path = {directory}/log-%s
pid_file_path = {directory}/pid
exim_path = {self.root / self.program}
local_interfaces = <; [{line.provider_address}]:25 ; [127.0.0.1]:{SUBMISSION_PORT}
tls_advertise_hosts =
keep_environment = LD_LIBRARY_PATH
host_lookup =
rfc1413_query_timeout = 0s
queue_only = true
never_users =
log_selector = +smtp_connection +all_parents
acl_smtp_rcpt = acl_accept
acl_smtp_data = acl_accept
acl_smtp_etrn = acl_etrn
{options}begin acl
acl_accept:
  accept
acl_etrn:
  {acl}
begin routers
sites:
  driver = manualroute
  domains = {sites}
  transport = smtp
  route_data = {line.site_address}
  no_more
begin transports
smtp:
  driver = smtp
  port = {terms.site_port}
  message_linelength_limit = 1G
begin retry
* * F,1d,1m
""")
        self._configuration.chmod(0o644)

    def daemon(self) -> Sequence[str | Path]:
        return self.argv("-C", self._configuration, "-bdf")

    def waiting(self) -> int:
        return int(self.run("-C", self._configuration, "-bpc").split()[-1])


class Sendmail(Server):
    """Sendmail with a configuration made by its own m4 files; mail for the nodes is queued and goes to the site."""

    program = "usr/libexec/sendmail/sendmail"

    def __init__(self, name: str, line: Line, directory: Path, terms: Terms, *, privacy: str = "authwarnings") -> None:
        super().__init__(name, line, directory, terms)
        self.mqueue = directory / "mqueue"
        self.mqueue.mkdir(mode=0o700)
        (directory / "switch").write_text("hosts files\naliases files\n")
        table = directory / "mailertable"
        table.write_text("".join(f"{node} esmtp:[{line.site_address}]\n" for node in terms.nodes))
        relay = directory / "relay-domains"
        relay.write_text("".join(f"{node}\n" for node in terms.nodes))
        source = directory / "sendmail.mc"
        source.write_text(f"""\
divert(-1)
define(`_CF_DIR_', `{self.root}/usr/share/sendmail/cf/')
include(`{self.root}/usr/share/sendmail/cf/m4/cf.m4')
OSTYPE(`linux')
define(`confDOMAIN_NAME', `{self.host}')
define(`QUEUE_DIR', `{self.mqueue}')
define(`confPID_FILE', `{directory}/pid')
define(`STATUS_FILE', `{directory}/statistics')
define(`HELP_FILE', `{directory}/help')
define(`confDELIVERY_MODE', `queueonly')
define(`confPRIVACY_FLAGS', `{privacy}')
define(`confSERVICE_SWITCH_FILE', `{directory}/switch')
define(`confTO_IDENT', `0')
define(`confDONT_BLAME_SENDMAIL', `ClassFileInUnsafeDirPath,MapInUnsafeDirPath,ErrorHeaderInUnsafeDirPath')
define(`confRUN_AS_USER', `root')
define(`confQUEUE_LA', `100')
define(`confREFUSE_LA', `100')
define(`confMIN_QUEUE_AGE', `0')
define(`confCONNECTION_RATE_THROTTLE', `0')
define(`confSMTP_MAILER', `esmtp')
define(`LOCAL_MAILER_PATH', `/bin/true')
undefine(`ALIAS_FILE')
define(`ALIAS_FILE', `')
FEATURE(`nocanonify')
FEATURE(`accept_unresolvable_domains')
FEATURE(`no_default_msa')
FEATURE(`mailertable', `text -o -k0 -v1 {table}')
define(`confCR_FILE', `{relay}')
DAEMON_OPTIONS(`Name=MTA, Addr={line.provider_address}, Port=25')
DAEMON_OPTIONS(`Name=World, Addr=127.0.0.1, Port={SUBMISSION_PORT}')
MAILER(`smtp')
""")
        self._configuration = directory / "sendmail.cf"
        self.translate(source)

    def translate(self, source: Path) -> None:
        """The configuration, out of its m4 form."""
        m4 = [self.root / "usr/bin/m4", source]
        env = {"LD_LIBRARY_PATH": str(self.root / LIBRARIES), "PATH": os.environ["PATH"]}
        made = subprocess.run(m4, capture_output=True, text=True, env=env, timeout=60)
        if made.returncode != 0 or "DaemonPortOptions" not in made.stdout:
            raise LabError(f"m4: {made.stderr}")
        self._configuration.write_text(made.stdout)

    def daemon(self) -> Sequence[str | Path]:
        return self.argv(f"-C{self._configuration}", "-bD", f"-X{self.directory}/log-traffic")

    def waiting(self) -> int:
        return len(list(self.mqueue.glob("qf*")))
