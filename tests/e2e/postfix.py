"""A mail provider: Debian's Postfix, whole and real, in a network namespace of its own.

Everything that Postfix would share with the host (configuration, queue, data, log) lies in a directory of this
instance, so several run at once. Concurrency is Postfix's default. What is set differently, and why, stands beside
each setting. ETRN flushes only what was tried and deferred: `queue` therefore waits for that.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import smtplib
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.e2e.messages import Shape
from tests.e2e.net import LabError, Line, Namespace, tool, wait_for
from tests.e2e.trust import Trust

SUBMISSION_PORT = 2525  # on loopback, always in clear: how the world's mail gets into the provider's queue

MASTER = """\
25         inet  n - n - -     smtpd
127.0.0.1:{submission} inet n - n - - smtpd
  -o smtpd_tls_security_level=none -o smtpd_sasl_auth_enable=no -o syslog_name=postfix/world
pickup     unix  n - n 60 1    pickup
cleanup    unix  n - n - 0     cleanup
qmgr       unix  n - n 300 1   qmgr
tlsmgr     unix  - - n 1000? 1 tlsmgr
rewrite    unix  - - n - -     trivial-rewrite
bounce     unix  - - n - 0     bounce
defer      unix  - - n - 0     bounce
trace      unix  - - n - 0     bounce
verify     unix  - - n - 1     verify
flush      unix  n - n 1000? 0 flush
proxymap   unix  - - n - -     proxymap
proxywrite unix  - - n - 1     proxymap
smtp       unix  - - n - -     smtp
relay      unix  - - n - -     smtp
showq      unix  n - n - -     showq
error      unix  - - n - -     error
retry      unix  - - n - -     error
discard    unix  - - n - -     discard
anvil      unix  - - n - 1     anvil
scache     unix  - - n - 1     scache
postlog    unix-dgram n - n - 1 postlogd
"""

_QUEUES = (
    *("active", "bounce", "corrupt", "defer", "deferred", "flush", "hold", "incoming", "maildrop", "pid", "private"),
    *("public", "saved", "trace"),
)

# Every timeout of the SMTP client that can keep a message active after its line was cut.
_TIMEOUTS = "connect helo xforward starttls mail rcpt data_init data_xfer data_done rset quit".replace(
    "starttls ", ""
).split()


@dataclass(frozen=True, kw_only=True)
class Terms:
    """How a provider does business with the site."""

    nodes: tuple[str, ...]
    site_port: int = 25
    timeout_seconds: int | None = None
    """Of the SMTP client in every stage; None: Postfix's own (minutes)."""
    trust: Trust | None = None
    """STARTTLS is offered to the site, and the site's certificate is demanded and verified on delivery."""
    site_name: str = "mail.office.example"
    """What the site's certificate must name."""
    require_tls: bool = False
    """No ETRN (530) and no AUTH before STARTTLS."""
    account: tuple[str, str] | None = None
    """Name and password without which ETRN is answered 554."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Further lines of main.cf; they win."""


class PostfixProvider:
    """One running Postfix at the far end of `line`."""

    def __init__(self, name: str, line: Line, directory: Path, terms: Terms) -> None:
        self.name, self.line, self.terms, self.directory = name, line, terms, directory
        self.host = f"mx.{name}.example"
        self.namespace: Namespace = line.provider
        self.etc, self._queue = directory / "etc", directory / "queue"
        self._log = directory / "mail.log"
        for path in (self.etc, self._queue, directory / "data", self.etc / "sasl"):
            path.mkdir(parents=True)
        directory.chmod(0o755)  # Postfix gives up its rights and must still get here
        shutil.chown(directory / "data", "postfix")
        self._make_queue()
        self.line.site.knows(self.host, line.provider_address)
        self._write_configuration()

    @property
    def address(self) -> str:
        return self.line.provider_address

    # --- running ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        # Postfix's own way to leave out its two seconds of integrity checks, which the host's instance is for.
        (self._queue / "quick-start").touch()
        words = self._postfix("start")
        if not self.running():
            raise LabError(f"postfix of {self.name} does not start: {words}\n{self.log_tail()}")
        wait_for(lambda: self.namespace.listens(SUBMISSION_PORT), f"{self.name} listens", seconds=10)

    def stop(self) -> None:
        """End all its processes, queue left as it is; `start` goes on from there."""
        if self.running():
            self._postfix("stop")
            wait_for(lambda: not self.running(), f"{self.name} stopped", seconds=15)

    def running(self) -> bool:
        # As `postfix status`, which takes longer and writes into the log.
        with contextlib.suppress(OSError, ValueError):
            pid = int((self._queue / "pid" / "master.pid").read_text())
            return Path(f"/proc/{pid}/exe").readlink().name == "master"
        return False

    def maillog(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def log_tail(self, lines: int = 30) -> str:
        return "\n".join(self.maillog().splitlines()[-lines:])

    def _postfix(self, verb: str) -> str:
        # Into a file, not a pipe: the master keeps what it inherits, and a pipe would never end.
        words = self.directory / "postfix.out"
        with words.open("wb") as output:
            process = self.namespace.start("postfix", "-c", self.etc, verb, output=output)
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired as problem:
                process.kill()
                raise LabError(f"postfix {verb} of {self.name} does not end") from problem
        return words.read_text(errors="replace")

    # --- its queue ----------------------------------------------------------------------------------------------------

    def submit(self, messages: Iterable[Shape]) -> int:
        """Hand over mail as the world does, by SMTP; returns how many. Nothing is waited for."""
        count = 0
        with smtp(self.namespace, "127.0.0.1", SUBMISSION_PORT, "world.example") as world:
            for message in messages:
                # Byte for byte: smtplib only doubles leading dots and ends the last line.
                world.sendmail(message.sender, message.recipients, message.on_the_wire(), ["BODY=8BITMIME"])
                count += 1
        return count

    def queue(self, messages: Iterable[Shape], *, seconds: float = 60) -> int:
        """Hand over mail while the line is down, and wait until all of it was tried and deferred."""
        already = self.waiting()
        count = self.submit(messages)
        wait_for(lambda: self.deferred() >= already + count, f"all deferred at {self.name}", seconds=seconds, every=0.1)
        return count

    def listed(self) -> list[dict[str, object]]:
        """What `postqueue -j` says, one entry a message."""
        lines = tool("postqueue", "-c", self.etc, "-j").splitlines()
        return [json.loads(line) for line in lines]

    def waiting(self) -> int:
        return len(self.listed())

    def deferred(self) -> int:
        return sum(entry["queue_name"] == "deferred" for entry in self.listed())

    def wait_for_deferred(self, *, seconds: float = 60) -> int:
        """Wait until nothing is in its hands (in or on the way out): what is left was tried and deferred."""
        wait_for(lambda: self.deferred() == self.waiting(), f"{self.name} at rest", seconds=seconds, every=0.1)
        return self.waiting()

    def etrn(self, node: str) -> str:
        """Ask by hand from the site, as telnet would; the reply."""
        with smtp(self.line.site, self.address, 25, "site.example") as site:
            code, text = site.docmd("ETRN", node)
            return f"{code} {text.decode(errors='replace')}"

    def _make_queue(self) -> None:
        """The queue's directories, as Postfix's post-install makes them."""
        for name in _QUEUES:
            owner, group, mode = {
                "pid": ("root", "root", 0o755),
                "maildrop": ("postfix", "postdrop", 0o1730),
                "public": ("postfix", "postdrop", 0o2710),
            }.get(name, ("postfix", "root", 0o700))
            path = self._queue / name
            path.mkdir()
            shutil.chown(path, owner, group)
            path.chmod(mode)

    # --- its configuration --------------------------------------------------------------------------------------------

    def _write_configuration(self) -> None:
        (self.etc / "master.cf").write_text(MASTER.format(submission=SUBMISSION_PORT))
        settings = {**self._house(), **self._client(), **self._tls(), **self._accounts(), **self.terms.settings}
        text = "".join(f"{key} = {value}\n" for key, value in settings.items())
        (self.etc / "main.cf").write_text(text)
        # Postfix waits two seconds for a fresh file to settle. This one is whole.
        long_ago = time.time() - 60
        for name in ("main.cf", "master.cf"):
            os.utime(self.etc / name, (long_ago, long_ago))

    def _house(self) -> dict[str, str]:
        nodes = ", ".join(self.terms.nodes)
        target = f"relay:[{self.line.site_address}]:{self.terms.site_port}"
        return {
            "compatibility_level": "3.6",
            "queue_directory": str(self._queue),
            "data_directory": str(self.directory / "data"),
            "maillog_file": str(self._log),
            "maillog_file_prefixes": str(self.directory),
            "myhostname": self.host,
            "mydestination": "",
            "local_recipient_maps": "",
            "alias_maps": "",
            "alias_database": "",
            "inet_protocols": "ipv4",
            "mynetworks": "127.0.0.0/8",
            "smtpd_relay_restrictions": "permit_mynetworks, reject_unauth_destination",
            "smtpd_peername_lookup": "no",
            "relay_domains": nodes,
            "fast_flush_domains": "$relay_domains",
            "transport_maps": "inline:{" + ", ".join(f"{{{node}={target}}}" for node in self.terms.nodes) + "}",
            "message_size_limit": "0",
            "mailbox_size_limit": "0",
            # What comes from the world goes on as it came: nothing is completed, rewritten or dressed for 7 bits.
            "local_header_rewrite_clients": "",
            "disable_mime_output_conversion": "yes",
            # Only ETRN may start a delivery again while a test lasts.
            "queue_run_delay": "4h",
            "minimal_backoff_time": "4h",
            "maximal_backoff_time": "8h",
            # The world submits faster than a person.
            "smtpd_client_connection_rate_limit": "0",
            "in_flow_delay": "0",
        }

    def _client(self) -> dict[str, str]:
        # As it comes, Postfix folds lines at 998 octets, which no byte-for-byte comparison survives.
        settings = {"smtp_line_length_limit": "0", "smtp_host_lookup": "native"}
        if self.terms.timeout_seconds is not None:
            settings |= {f"smtp_{stage}_timeout": f"{self.terms.timeout_seconds}s" for stage in _TIMEOUTS}
        return settings

    def _tls(self) -> dict[str, str]:
        trust = self.terms.trust
        if trust is None:
            return {"smtpd_tls_security_level": "none", "smtp_tls_security_level": "none"}
        return {
            "smtpd_tls_security_level": "encrypt" if self.terms.require_tls else "may",
            "smtpd_tls_chain_files": str(trust.chain(self.host)),
            "smtpd_tls_loglevel": "1",
            "smtp_tls_security_level": "verify",
            "smtp_tls_CAfile": str(trust.authority),
            "smtp_tls_verify_cert_match": self.terms.site_name,
            "smtp_tls_loglevel": "1",
        }

    def _accounts(self) -> dict[str, str]:
        if self.terms.account is None:
            return {}
        name, password = self.terms.account
        # Debian's Postfix reads it from sasl/ beside main.cf, whatever cyrus_sasl_config_path says.
        database = self.etc / "sasl" / "sasldb2"
        (self.etc / "sasl" / "smtpd.conf").write_text(
            "pwcheck_method: auxprop\nauxprop_plugin: sasldb\nmech_list: PLAIN LOGIN CRAM-MD5\n"
            f"sasldb_path: {database}\nlog_level: 3\n"
        )
        argv: Sequence[str | Path] = ("saslpasswd2", "-c", "-p", "-f", database, "-u", self.host, name)
        done = subprocess.run(argv, input=password.encode(), capture_output=True, timeout=30)
        if done.returncode != 0 or not database.exists():
            raise LabError(f"saslpasswd2: {done.stderr.decode(errors='replace').strip()}")
        shutil.chown(database, "postfix")
        return {
            "smtpd_sasl_auth_enable": "yes",
            "smtpd_sasl_type": "cyrus",
            "smtpd_sasl_path": "smtpd",
            "smtpd_sasl_local_domain": "$myhostname",
            "smtpd_sasl_security_options": "noanonymous",
            "smtpd_tls_auth_only": "yes" if self.terms.trust else "no",
            "smtpd_etrn_restrictions": "permit_sasl_authenticated, reject",
        }


class _Client(smtplib.SMTP):
    """smtplib on a socket that is connected already."""

    def __init__(self, connected: socket.socket, hostname: str) -> None:
        self._connected = connected
        super().__init__("there", 25, local_hostname=hostname, timeout=60)

    def _get_socket(self, host: str, port: int, timeout: float | None) -> socket.socket:
        self._connected.settimeout(timeout)
        return self._connected


@contextlib.contextmanager
def smtp(namespace: Namespace, address: str, port: int, hostname: str) -> Iterator[smtplib.SMTP]:
    """An SMTP client in `namespace`, greeted and introduced."""
    client = _Client(namespace.connect(address, port), hostname)
    client.ehlo()
    try:
        yield client
        client.quit()
    finally:
        client.close()
