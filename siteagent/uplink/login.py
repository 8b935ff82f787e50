"""AUTH (RFC 4954): proves who we are, on a verified line only.

The law: credentials never travel in clear, nor to a peer that was not verified (no exception for CRAM-MD5: what it
sends can be searched through offline). One mechanism, one attempt: a refused one is never followed by a weaker one, as
aiosmtplib's own ``login`` would.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Awaitable, Callable

from aiosmtplib.auth import auth_crammd5_verify, auth_login_encode, auth_plain_encode
from aiosmtplib.errors import SMTPAuthenticationError

from siteagent.config.sections import Auth, Provider
from siteagent.uplink.broken import Broken, refused, said
from siteagent.uplink.connection import Connection
from siteagent.wire.reply import Reply

# The order of `auto`. On a verified line PLAIN is as safe as any and works with every way of storing passwords.
_ORDER = (Auth.PLAIN, Auth.LOGIN, Auth.CRAM_MD5)
_LONGEST_INITIAL = 400  # RFC 4954 §4: a longer one must not go into the command line


async def log_in(connection: Connection, password: str | None, *, insist: bool = False) -> bool:
    """Logs in where the provider has a login and the line is verified; whether it did.

    `insist`: also where the server does not list AUTH (it has just answered 530).

    Raises:
        Broken: stage auth; refused, no password, or no common mechanism.
    """
    provider = connection.provider
    if connection.logged_in or (provider.username is None and provider.auth is not Auth.EXTERNAL):
        return False
    if not connection.verified:
        connection.note("-- not logging in: the server is not verified on this line")
        return False
    if "auth" not in connection.features and not insist:
        return False
    method = _method(provider, connection.auth_methods)
    if method is not Auth.EXTERNAL and password is None:
        raise _broken(provider, "there is no password", f"set password_file of provider {provider.name}")
    reply = await _EXCHANGES[method](connection, provider.username or "", password or "")
    if reply.code == 334:
        await connection.command("*", stage="auth")  # RFC 4954 §4: cancels
        raise _broken(provider, f"it asks for more than {method} has", f"set another auth for provider {provider.name}")
    if not 200 <= reply.code < 300:
        raise refused(provider, "auth", reply)
    connection.logged_in = True
    return True


def _method(provider: Provider, offered: tuple[str, ...]) -> Auth:
    if provider.auth is not Auth.AUTO:
        if offered and provider.auth.value not in offered:
            raise _broken(
                provider,
                f"it offers {' '.join(offered)}, not {provider.auth}",
                f'set auth = "auto" for provider {provider.name}',
            )
        return provider.auth
    for method in _ORDER:
        if not offered or method.value in offered:
            return method
    raise _broken(
        provider,
        f"it offers {' '.join(offered)}, of which siteagent has none",
        "ask the provider for AUTH PLAIN, LOGIN or CRAM-MD5",
    )


async def _plain(connection: Connection, username: str, password: str) -> Reply:
    if "\0" in username + password:
        raise _broken(connection.provider, "the login holds a NUL", "correct username or password_file")
    blob = auth_plain_encode(username, password).decode("ascii")
    if len(blob) <= _LONGEST_INITIAL:
        return await connection.command(f"AUTH PLAIN {blob}", stage="auth", shown="AUTH PLAIN ***")
    reply = await connection.command("AUTH PLAIN", stage="auth")
    return await _answer(connection, blob) if reply.code == 334 else reply


async def _login(connection: Connection, username: str, password: str) -> Reply:
    reply = await connection.command("AUTH LOGIN", stage="auth")
    for blob in auth_login_encode(username, password):
        if reply.code != 334:
            return reply
        reply = await _answer(connection, blob.decode("ascii"))
    return reply


async def _cram_md5(connection: Connection, username: str, password: str) -> Reply:
    reply = await connection.command("AUTH CRAM-MD5", stage="auth")
    if reply.code != 334:
        return reply
    try:
        if not base64.b64decode(reply.text, validate=True):  # aiosmtplib takes what is no base64, and nothing at all
            raise ValueError
        blob = auth_crammd5_verify(username, password, reply.text)
    except (SMTPAuthenticationError, binascii.Error, ValueError):
        await connection.command("*", stage="auth")
        raise _broken(connection.provider, said(reply), 'set auth = "plain"; its CRAM-MD5 is broken') from None
    return await _answer(connection, blob.decode("ascii"))


async def _external(connection: Connection, username: str, password: str) -> Reply:
    del password  # who we are is known by the line or the certificate
    blob = base64.b64encode(username.encode()).decode("ascii") or "="
    return await connection.command(f"AUTH EXTERNAL {blob}", stage="auth", shown="AUTH EXTERNAL ***")


async def _answer(connection: Connection, blob: str) -> Reply:
    return await connection.command(blob, stage="auth", shown="***")


def _broken(provider: Provider, why: str, fix: str) -> Broken:
    return Broken(provider, "auth", why, temporary=False, fix=fix)


_EXCHANGES: dict[Auth, Callable[[Connection, str, str], Awaitable[Reply]]] = {
    Auth.PLAIN: _plain,
    Auth.LOGIN: _login,
    Auth.CRAM_MD5: _cram_md5,
    Auth.EXTERNAL: _external,
}
