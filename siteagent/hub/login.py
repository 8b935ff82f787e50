"""AUTH, the server's side (RFC 4954): PLAIN and LOGIN under TLS, CRAM-MD5 (RFC 2195) also without, EXTERNAL.

The law: a password never has to travel in clear, and whoever fails learns nothing but that: an unknown account costs
the time of a known one and hears the same. Passwords are read for each login, in a thread, and kept nowhere.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hashlib
import hmac
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from siteagent.config.passwords import password
from siteagent.config.sections import Node
from siteagent.errors import SiteAgentError
from siteagent.hub.nodes import NodeTable
from siteagent.wire.reply import Reply

DONE = Reply(235, "2.7.0", "logged in")
FAILED = Reply(535, "5.7.8", "the login is not right")
NOT_NOW = Reply(454, "4.7.0", "logins cannot be checked now, try again later")
CANCELLED = Reply(501, "5.7.0", "given up")
MALFORMED = Reply(501, "5.5.2", "that is not base64, or not what the mechanism has")
ENCRYPT_FIRST = Reply(538, "5.7.11", "this mechanism needs TLS")
UNKNOWN_MECHANISM = Reply(504, "5.5.4", "this mechanism is not offered")

# One exchange: what we say goes out as a 334, its answer comes back decoded.
Ask = Callable[[bytes], Awaitable[bytes]]


class Cancelled(Exception):
    """The client said ``*``."""


class Malformed(Exception):
    """What the client said cannot be read."""


@dataclass(frozen=True, slots=True)
class Checked:
    """`account` None: refused."""

    account: str | None
    reason: str = ""


def mechanisms(*, tls: bool, certificate_accounts: Sequence[str]) -> list[str]:
    """What is offered on this line."""
    offered = ["PLAIN", "LOGIN"] if tls else []
    return [*offered, "CRAM-MD5", *(["EXTERNAL"] if certificate_accounts else [])]


class Logins:
    """Checks logins against the accounts of a table of nodes."""

    def __init__(self, table: Callable[[], NodeTable], *, hostname: str) -> None:
        self._table = table
        self._hostname = hostname

    async def check(
        self, mechanism: str, initial: bytes | None, ask: Ask, *, certificate_accounts: Sequence[str]
    ) -> Checked:
        """Runs one exchange. Raises Cancelled, Malformed, SiteAgentError where a password cannot be read."""
        if mechanism == "PLAIN":
            message = await ask(b"") if initial is None else initial
            parts = message.split(b"\0")
            if len(parts) != 3:
                raise Malformed
            authorization, account, secret = (_text(part) for part in parts)
            if authorization not in ("", account):
                return Checked(None, "asked to act for somebody else")
            return await self._by_password(account, secret)
        if mechanism == "LOGIN":
            account = _text(await ask(b"Username:") if initial is None else initial)
            return await self._by_password(account, _text(await ask(b"Password:")))
        if mechanism == "EXTERNAL":
            wanted = _text(await ask(b"") if initial is None else initial)
            if not wanted and len(certificate_accounts) == 1:
                wanted = certificate_accounts[0]
            if wanted in certificate_accounts:
                return Checked(wanted)
            return Checked(None, "the certificate is not that account's")
        if initial is not None:
            raise Malformed  # RFC 4954 §4: CRAM-MD5 has no initial response
        return await self._cram_md5(ask)

    async def _cram_md5(self, ask: Ask) -> Checked:
        challenge = f"<{secrets.token_hex(8)}.{time.time_ns()}@{self._hostname}>".encode("ascii", "replace")
        account, _, digest = _text(await ask(challenge)).rpartition(" ")
        secret = await self._secret(account)
        wanted = hmac.new((secret or secrets.token_hex(8)).encode(), challenge, hashlib.md5).hexdigest()
        right = hmac.compare_digest(wanted.encode(), digest.lower().encode("utf-8", "replace"))
        return _judged(account, right=right and secret is not None)

    async def _by_password(self, account: str, secret: str) -> Checked:
        wanted = await self._secret(account)
        right = hmac.compare_digest((wanted or secrets.token_hex(8)).encode(), secret.encode())
        return _judged(account, right=right and wanted is not None)

    async def _secret(self, account: str) -> str | None:
        table = self._table()
        nodes = table.account(account)
        if nodes:
            return await asyncio.to_thread(_password, nodes[0])
        # Somebody's is read all the same, for the time that it takes.
        others = [node for node in table.nodes.values() if node.password_file is not None]
        if others:
            with contextlib.suppress(SiteAgentError):
                await asyncio.to_thread(_password, others[0])
        return None


def _password(node: Node) -> str | None:
    return password(node) if node.password_file is not None else None


def _judged(account: str, *, right: bool) -> Checked:
    return Checked(account) if right else Checked(None, "unknown account, or wrong password")


def decoded(line: bytes) -> bytes:
    """What a line of the exchange says. Raises Cancelled for ``*``, Malformed where it is no base64."""
    line = line.strip()
    if line == b"*":
        raise Cancelled
    if line == b"=":
        return b""  # RFC 4954 §4: an initial response of no octets
    try:
        return base64.b64decode(line, validate=True)
    except binascii.Error:
        raise Malformed from None


def challenged(octets: bytes) -> Reply:
    return Reply(334, "", base64.b64encode(octets).decode("ascii"))


def _text(octets: bytes) -> str:
    try:
        return octets.decode("utf-8")
    except UnicodeDecodeError:
        raise Malformed from None
