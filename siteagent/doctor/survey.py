"""A talk with a provider that asks for nothing: what it is, what it offers, whether it lets us in.

Asks by ETRN for a node that cannot exist: a refusal of that name is the good answer, and no queue is started. One
session, a few seconds at most for each step.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field

from siteagent.config.convert import changed
from siteagent.config.sections import Limits, Provider, Tls
from siteagent.errors import SiteAgentError
from siteagent.events import Line
from siteagent.uplink.broken import Broken
from siteagent.uplink.connection import Connection, Route, session
from siteagent.uplink.login import log_in
from siteagent.wire import etrn
from siteagent.wire.reply import Reply

NO_NODE = "siteagent-doctor.invalid"  # RFC 2606 §2: nobody's, for ever
LIMITS = Limits(connect_seconds=10, command_seconds=15, etrn_reply_seconds=15)

_ADDRESS = re.compile(r"[\[( ]((?:\d{1,3}\.){3}\d{1,3}|(?:IPv6:)?[0-9a-fA-F:]*:[0-9a-fA-F:]+)[\]) ]?")


@dataclass(slots=True)
class Survey:
    """What one provider showed. `error` is where it ended before its time; `seen_as` our address as it sees us."""

    software: str = ""
    banner: str = ""
    features: dict[str, str] = field(default_factory=dict)
    etrn: Reply | None = None
    encrypted: bool = False
    verified: bool = False
    logged_in: bool = False
    certificate: bytes = b""
    seen_as: str | None = None
    source: str | None = None
    error: Broken | None = None
    trouble: str = ""

    @property
    def knows_etrn(self) -> bool:
        """What it does counts more than what it lists: some hide ETRN and do it."""
        return "etrn" in self.features if self.etrn is None else self.etrn.code not in (500, 502)

    @property
    def refuses_us(self) -> bool:
        """Not the name that was asked for, but whoever asks: 550 and 554 to ETRN are access rules of Postfix."""
        return self.etrn is not None and self.etrn.code in (550, 554)

    @property
    def wants_login(self) -> bool:
        if self.etrn is None:
            return False
        return self.etrn.code == 530 or "authenticat" in self.etrn.text.lower()


async def survey(
    provider: Provider,
    *,
    addresses: Sequence[str],
    line: Line | None,
    hostname: str,
    password: str | None,
    limits: Limits = LIMITS,
    tls: ssl.SSLContext | None = None,
) -> Survey:
    """Looks at `provider`. Never raises for what it or the line does."""
    found = Survey(source=line.source if line is not None else None)
    route = Route(
        line=line,
        addresses=addresses,
        hostname=hostname,
        limits=limits,
        tls=tls,
        transcript=lambda row: _heed(found, row),
    )
    try:
        async with asyncio.timeout(60), session(provider, route) as connection:
            await _look(connection, found, password)
            await connection.quit()
    except Broken as error:
        found.error = error
    except TimeoutError:
        found.trouble = "it took more than a minute"
    except (OSError, SiteAgentError) as error:
        found.trouble = str(error).splitlines()[0]
    return found


async def _look(connection: Connection, found: Survey, password: str | None) -> None:
    found.banner = connection.greeting.text
    found.software = etrn.software(connection.greeting.text)
    found.features = dict(connection.features)
    found.encrypted, found.verified = connection.encrypted, connection.verified
    found.certificate = connection.certificate
    found.logged_in = await log_in(connection, password)
    found.etrn = await connection.command(f"ETRN {NO_NODE}", stage="ask", seconds=connection.limits.etrn_reply_seconds)


def _heed(found: Survey, row: str) -> None:
    """Exim and Sendmail say in their answer to EHLO from which address we come."""
    if found.seen_as is None and row.startswith("S:") and "250" in row[:8]:
        for match in _ADDRESS.finditer(row):
            try:
                found.seen_as = str(ipaddress.ip_address(match[1].removeprefix("IPv6:")))
            except ValueError:
                continue


async def certificate_of(
    provider: Provider, *, addresses: Sequence[str], line: Line | None, hostname: str, limits: Limits = LIMITS
) -> bytes:
    """The certificate that `provider` shows, whoever signed it, DER; b"" where there is none to see."""
    lenient = Tls.IMPLICIT if provider.tls is Tls.IMPLICIT else Tls.OPPORTUNISTIC
    # Pinned to nothing: the handshake goes through, and what was shown is kept.
    seen = changed(provider, tls=lenient, tls_fingerprint=None, tls_ca_file=None)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    route = Route(line=line, addresses=addresses, hostname=hostname, limits=limits, tls=context)
    connection = Connection(seen, route)
    try:
        async with asyncio.timeout(30):
            await connection.open()
    except (Broken, OSError, TimeoutError):
        pass  # what was shown before that counts
    finally:
        connection.close()
    return connection.certificate
