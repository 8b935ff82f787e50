"""`demo`: the main job on an embedded default, with nothing to set up. A hub, an agent, a line that comes up.

Everything is the real thing, on loopback and in a directory of its own: the hub's listener takes the sample mail, its
spool holds it, the agent asks by ETRN and the hub connects, or it asks by ATRN and the mail comes back over its own
connection. What lies in the Maildirs at the end is compared, byte for byte, with what was sent. Only the line is made
up: a switch, and a rate if one is wanted.
"""

from __future__ import annotations

import asyncio
import io
import secrets
import shutil
import smtplib
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from siteagent.cli.context import Context
from siteagent.cli.samples import ALICE, BOB, DOMAIN, Sample, samples
from siteagent.cli.slowline import SlowLine
from siteagent.errors import CannotCreate, ExitCode, StorageError, UsageError
from siteagent.events import (
    AskAnswered,
    AskFailed,
    Event,
    Line,
    LinkUp,
    MessageAccepted,
    MessageStored,
    RoundEnded,
    SessionOpened,
)
from siteagent.status import counted

if TYPE_CHECKING:
    from siteagent.agent.parts import Agent

_OVERHEAD_BYTES = 900
_QUIET_SECONDS, _QUIET_SECONDS_SLOW = 0.5, 3
_FIELDS_ON_TOP = 3
_LIMIT_SECONDS = 60.0

_HUB = """\
# The provider's half, as the demo ran it.
hostname = "hub.example"
state_directory = "hub-state"

[listener]
listen = ["127.0.0.1:{hub_port}"]
{tls}
[[node]]
name = "{domain}"
domains = ["{domain}"]
{way}
"""

_HUB_ETRN = """\
deliver_to = "127.0.0.1:{deliver_port}"
etrn_without_auth = true
max_connections = 3"""

_HUB_TLS = """\
tls_certificate = "hub.pem"
tls_key = "hub.key"

[odmr]
listen = ["127.0.0.1:{odmr_port}"]
"""

_HUB_ATRN = """\
account = "office"
password_file = "office.password\""""

_SITE = """\
# The site's half, as the demo ran it.
hostname = "mail.{domain}"
state_directory = "state"

[link]
settle_seconds = 0.2

[[provider]]
name = "hub"
host = "127.0.0.1"
nodes = ["{domain}"]
first_connection_seconds = 10
quiet_seconds = {quiet}
{way}

[[mailbox]]
name = "alice"
addresses = ["{alice}"]
maildir = "mail/alice"

[[mailbox]]
name = "bob"
addresses = ["{bob}"]
maildir = "mail/bob"
"""


_SITE_ETRN = """\
port = {ask_port}

[listener]
listen = ["127.0.0.1:{site_port}"]
"""

_SITE_ATRN = """\
method = "atrn"
port = {ask_port}
tls = "required"
tls_fingerprint = "{fingerprint}"
username = "office"
password_file = "office.password"

# Nobody connects to a site that fetches by ATRN.
[listener]
listen = []
"""


@click.command("demo")
@click.option(
    "--messages", type=click.IntRange(1, 10_000), default=10, show_default=True, metavar="N", help="So many messages."
)
@click.option(
    "--method", type=click.Choice(["etrn", "atrn"]), default="etrn", show_default=True, help="How the agent asks."
)
@click.option(
    "--line-rate", type=click.IntRange(min=300), metavar="BITS", help="A slow line, in bits a second: 33600 is a modem."
)
@click.option(
    "--keep",
    type=click.Path(path_type=Path, file_okay=False, readable=False),
    metavar="DIR",
    help="Leave everything there afterwards.",
)
@click.pass_obj
def demo(context: Context, messages: int, method: str, line_rate: int | None, keep: Path | None) -> int:
    """See the whole way of the mail: a line comes up, the agent asks, the mail arrives.

    Needs no configuration, no network and no root; everything happens on loopback, in a temporary directory.
    """
    if keep is not None and keep.exists() and any(keep.iterdir()):
        raise UsageError(f"cannot use {keep}", "it is not empty", fix="name a directory that does not exist yet")
    mail = samples(messages)
    if line_rate is not None:
        seconds = sum(len(sample.content) + _OVERHEAD_BYTES for sample in mail) * 8 / line_rate + _QUIET_SECONDS_SLOW
        context.talk(f"At {line_rate} bits a second this takes about {seconds:.0f} seconds.")
    place = Path(keep or tempfile.mkdtemp(prefix="siteagent-demo-"))
    try:
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CannotCreate(f"cannot use {place}", error.strerror or str(error)) from error
        return asyncio.run(_Demo(context, place.resolve(), mail, line_rate, method).run(kept=keep is not None))
    finally:
        if keep is None:
            shutil.rmtree(place, ignore_errors=True)


class _Switch:
    """The line, as the link watch's oracle: there is none until it is thrown."""

    def __init__(self) -> None:
        self.up = False

    def lines(self, addresses: Sequence[str]) -> tuple[Line, ...]:
        return (Line("demo0", "127.0.0.1"),) if self.up else ()


class _Demo:
    def __init__(self, context: Context, place: Path, mail: list[Sample], line_rate: int | None, method: str) -> None:
        self._context = context
        self._atrn = method == "atrn"
        self._place = place
        self._mail = mail
        self._slow = line_rate is not None
        self._line = SlowLine(line_rate)
        self._up_at = 0.0
        self._filed_at: dict[str, float] = {}
        self._stored: dict[str, list[Path]] = {}
        self._ended: RoundEnded | None = None

    async def run(self, *, kept: bool) -> int:
        """The whole show. Raises StorageError where what arrived is not what was sent."""
        from siteagent.agent.parts import Agent
        from siteagent.config import files
        from siteagent.hub.server import Hub
        from siteagent.logs import LogWriter

        site_port, hub_port, odmr_port = _free_ports(3)
        line_port = await self._line.open(odmr_port if self._atrn else site_port)
        ports = {"site_port": site_port, "hub_port": hub_port, "odmr_port": odmr_port}
        self._write_configurations(ports, ask_port=line_port if self._atrn else hub_port, deliver_port=line_port)
        switch = _Switch()
        agent = Agent(
            files.load(self._place / "siteagent.toml"),
            log=LogWriter(io.StringIO()),
            observe=self._observe,
            oracle=switch,
        )
        hub = Hub(files.load(self._place / "hub.toml", hub=True), emit=lambda event: None)
        async with hub:
            running = asyncio.create_task(agent.run())
            await asyncio.to_thread(self._fill_hub, hub_port)
            await self._until_ready(agent, running)
            self._say(f"The hub holds {len(self._mail)} messages for {DOMAIN}. The line is down.")
            await asyncio.sleep(0.2)
            self._up_at = time.monotonic()
            switch.up = True
            self._say("The line comes up.")
            agent.watch.poke("demo")
            await self._until_over(agent, running)
        await self._line.close()
        self._write_configurations(ports, ask_port=odmr_port if self._atrn else hub_port, deliver_port=site_port)
        self._sum_up()
        if kept:
            self._tell_how_to_go_on()
        return ExitCode.DONE

    def _write_configurations(self, ports: dict[str, int], *, ask_port: int, deliver_port: int) -> None:
        from siteagent.cli import democert

        (self._place / "mail").mkdir(exist_ok=True)
        if self._atrn:
            self._write("office.password", secrets.token_urlsafe(12) + "\n", once=True)
            self._write("hub.pem", democert.CERTIFICATE)
            self._write("hub.key", democert.KEY)
        values: dict[str, object] = {
            **ports,
            "domain": DOMAIN,
            "alice": ALICE,
            "bob": BOB,
            "quiet": _QUIET_SECONDS_SLOW if self._slow else _QUIET_SECONDS,
            "ask_port": ask_port,
            "deliver_port": deliver_port,
            "fingerprint": democert.FINGERPRINT,
        }
        site_way, hub_way = (_SITE_ATRN, _HUB_ATRN) if self._atrn else (_SITE_ETRN, _HUB_ETRN)
        tls = _HUB_TLS.format(**values) if self._atrn else ""
        self._write("siteagent.toml", _SITE.format(way=site_way.format(**values), **values))
        self._write("hub.toml", _HUB.format(way=hub_way.format(**values), tls=tls, **values))

    def _write(self, name: str, text: str, *, once: bool = False) -> None:
        path = self._place / name
        if not (once and path.exists()):
            path.touch(mode=0o600)
            path.write_text(text)

    def _fill_hub(self, port: int) -> None:
        """The sample mail, brought as any mail server would."""
        with smtplib.SMTP("127.0.0.1", port, local_hostname="mx.far.example") as client:
            for sample in self._mail:
                client.sendmail(sample.sender, sample.recipients, sample.content, mail_options=["BODY=8BITMIME"])

    async def _until_ready(self, agent: Agent, running: asyncio.Task[None]) -> None:
        """Raises what kept the agent from starting."""
        ready = asyncio.ensure_future(agent.ready.wait())
        await asyncio.wait({ready, running}, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        if running.done():
            running.result()

    async def _until_over(self, agent: Agent, running: asyncio.Task[None]) -> None:
        began = time.monotonic()
        while self._ended is None and not running.done():
            await asyncio.sleep(0.02)
            if not self._slow and time.monotonic() - began > _LIMIT_SECONDS:
                break
        agent.stop("the demo is over")
        await running

    # --- what happens -------------------------------------------------------------------------------------------------

    def _observe(self, event: Event) -> None:
        match event:
            case LinkUp():
                self._say(f"The agent sees it: {event.interface}, our address is {event.source}.")
            case AskAnswered():
                self._say(f"It asks for {event.node}: {event.code} {event.text}")
            case AskFailed():
                self._say(f"Asking failed: {event.reason}")
            case SessionOpened():
                if self._atrn:
                    self._say("The connection is turned round: the agent is the server now.")
                else:
                    self._say(f"The hub connects from {event.peer}.")
            case MessageAccepted():
                self._say(f"A message of {event.bytes} bytes is taken and durable: 250.")
            case MessageStored():
                self._filed_at[event.message] = time.monotonic() - self._up_at
                path = self._place / "mail" / event.mailbox / "new" / event.file
                self._stored.setdefault(event.message, []).append(path)
            case RoundEnded():
                self._ended = event
                self._say(f"The round is over: {event.outcome.value}. The line could be hung up now.")

    def _say(self, text: str) -> None:
        since = f"{time.monotonic() - self._up_at:6.2f} s" if self._up_at else "        "
        self._context.talk(f"{since}  {text}")

    # --- the end ------------------------------------------------------------------------------------------------------

    def _sum_up(self) -> None:
        """The table, from the files that lie in the Maildirs. Raises StorageError for one that is missing or other."""
        found = self._found()
        self._context.out(f"{'message':<28} {'bytes':>8}  {'filed after':>11}  mailboxes")
        missing: list[str] = []
        for sample in self._mail:
            files = found.pop(_as_stored(sample.content), [])
            boxes = ", ".join(sorted({path.parent.parent.name for path, _ in files}))
            wanted = sorted({_mailbox(address) for address in sample.recipients})
            after = f"{max(seconds for _, seconds in files):.2f} s" if files else "-"
            right = sorted({path.parent.parent.name for path, _ in files}) == wanted
            if not right:
                missing.append(sample.title)
            mark = "" if right else "   <- missing"
            self._context.out(f"{sample.title:<28} {len(sample.content):>8}  {after:>11}  {boxes}{mark}")
        ended = self._ended
        if ended is None or missing or found:
            raise StorageError(
                "the demo did not end as it should",
                f"missing or altered: {', '.join(missing) or 'none'}; outcome: {ended.outcome if ended else 'none'}",
                fix="report it, with the output of `siteagent demo --keep DIR`",
            )
        self._context.out(
            f"{len(self._mail)} of {len(self._mail)} messages arrived, byte for byte; {ended.outcome.value}, "
            f"{counted(ended.sessions, 'connection')}, {ended.wire_bytes} bytes on the line, {ended.seconds:.1f} s."
        )

    def _found(self) -> dict[bytes, list[tuple[Path, float]]]:
        """Content without our header fields and the hub's, to the files that hold it and when they were filed."""
        found: dict[bytes, list[tuple[Path, float]]] = {}
        for message, paths in self._stored.items():
            for path in paths:
                content = _below_fields(path.read_bytes(), _FIELDS_ON_TOP + 1)
                found.setdefault(content, []).append((path, self._filed_at[message]))
        return found

    def _tell_how_to_go_on(self) -> None:
        where = self._place
        self._context.talk(
            f"\nEverything is in {where}: siteagent.toml, hub.toml, mail/, and the journal in state/.\n"
            f"  siteagent --config {where}/siteagent.toml history\n"
            f"  siteagent --config {where}/hub.toml hub run        (in one window: the provider)\n"
            f"  siteagent --config {where}/siteagent.toml run      (in another: the site)\n"
            f"  mutt -f {where}/mail/alice"
        )


def _free_ports(count: int) -> list[int]:
    """Ports that nobody has at this moment."""
    import socket

    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [each.getsockname()[1] for each in held]
    finally:
        for each in held:
            each.close()


def _as_stored(content: bytes) -> bytes:
    return content.replace(b"\r\n", b"\n")


def _mailbox(address: str) -> str:
    local = address.partition("@")[0].partition("+")[0]
    return "alice" if local == "postmaster" else local


def _below_fields(content: bytes, count: int) -> bytes:
    """`content` without its first `count` header fields, folded ones whole."""
    at = 0
    for _ in range(count):
        at = content.index(b"\n", at) + 1
        while content[at : at + 1] in (b" ", b"\t"):
            at = content.index(b"\n", at) + 1
    return content[at:]
