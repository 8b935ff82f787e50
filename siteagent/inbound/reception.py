"""What the listener is given: whom to welcome, where addresses lead, where mail is kept, whom to tell."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from siteagent.config import sections
from siteagent.events import Emit
from siteagent.store.spool import Spool
from siteagent.wire.reply import Reply


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Whom a session counts for; both None for mail that came unasked."""

    provider: str | None
    round: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionView:
    """One open session, as ``status`` shows it: `bytes`, `size` and `seconds` are of the message that is arriving.

    `size` is what the peer declared (0: it did not), `since` when the session was greeted, in UTC. `bytes` are counted
    as `size` is (RFC 1870 §5: with CRLF), so that the two may be compared.
    """

    session: str
    provider: str | None
    round: str | None
    peer: str
    bytes: int
    size: int
    seconds: float
    since: datetime


def _nobody(peer: str) -> tuple[str, ...]:
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reception:
    """The functions are called on the loop's thread and must not wait; what they raise becomes a 4yz."""

    hostname: str
    listener: sections.Listener
    limits: sections.Limits
    admit: Callable[[str], Reply | None]
    """A peer's address (IPv4-mapped ones as IPv4) -> None: welcome; a Reply: said as the first line, then closed."""
    owner: Callable[[str], Owner]
    """A peer's address -> whom its session counts for. Asked when the greeting goes out."""
    route: Callable[[str], str | Reply]
    """``local@domain`` (or ``postmaster``) -> the target's name, or the refusal."""
    spool: Spool
    emit: Emit
    tls: Callable[[], ssl.SSLContext | None]
    new_id: Callable[[], str]
    defer_above: Callable[[str | None], int]
    """A provider -> octets above which a message is asked to come later; 0: none."""
    expected: Callable[[str], tuple[str, ...]] = _nobody
    """A stranger's address -> the providers that it may be, for ``session.refused``."""
