"""The error of this package: at which stage a conversation with a provider ended, why, and what to do about it.

Exceptions of aiosmtplib, ssl and the socket end here: nothing above this package sees one.
"""

from __future__ import annotations

from siteagent.config.sections import Provider
from siteagent.errors import ExitCode, SiteAgentError
from siteagent.wire.reply import Reply

_DOING = {
    "connect": "cannot connect to {}",
    "greeting": "not let in by {}",
    "ehlo": "cannot introduce ourselves to {}",
    "starttls": "no trustworthy TLS with {}",
    "auth": "cannot log in at {}",
    "ask": "cannot ask {}",
    "mail": "{} takes no mail from this sender",
    "rcpt": "{} takes no mail for this recipient",
    "data": "{} does not take the message",
}

AGAIN = "nothing yet, the next ask may do better; if it lasts, send this answer to the provider"


class Broken(SiteAgentError):
    """A conversation that ended at `stage`: connect, greeting, ehlo, starttls, auth, ask; mail, rcpt, data.

    `code` is that of the reply which ended it, None where it was not a reply. `temporary`: the same again later may
    succeed with nobody doing anything.
    """

    def __init__(
        self,
        provider: Provider,
        stage: str,
        why: str,
        *,
        temporary: bool,
        code: int | None = None,
        fix: str | None = None,
    ) -> None:
        super().__init__(_DOING[stage].format(provider.host), why, fix=fix)
        self.stage = stage
        self.code = code
        self.temporary = temporary
        self.exit_code = ExitCode.TEMPORARY if temporary else ExitCode.UNAVAILABLE


class Silence(Broken):
    """No complete reply within the time of its stage."""


class Hangup(Broken):
    """The connection ended while a reply was awaited, or before the command could be sent."""


class OutOfStep(Broken):
    """The peer's bytes are no reply, or stand where none may: a protocol error. Close, try again later."""


class Unprotected(Broken):
    """The TLS handshake did not succeed on a line where it need not; the caller may go on without."""


def said(reply: Reply) -> str:
    """The clause that quotes a peer."""
    return f'it answered "{reply}"'


def refused(provider: Provider, stage: str, reply: Reply) -> Broken:
    """The error of a reply that ends `stage`; its fix by stage and code. 421 and 4yz are temporary."""
    fix = AGAIN if reply.temporary else _permanent_fix(provider, stage, reply)
    return Broken(provider, stage, said(reply), temporary=not reply.permanent, code=reply.code, fix=fix)


def _permanent_fix(provider: Provider, stage: str, reply: Reply) -> str:
    name = provider.name
    if stage != "auth" and reply.code == 530:
        return f'set username and password_file of provider {name}, with tls = "required"'
    if stage == "auth":
        if reply.code == 535:
            return f"correct username or password_file of provider {name}, then run `siteagent doctor`"
        if reply.code in (530, 538):
            return f'set tls = "required" for provider {name}'
        return f'set auth of provider {name} to a way that the server has, or to "auto"'
    return {
        "greeting": "the server refuses this address of ours: ask the provider to admit it, or for a port with login "
        f"(port = 587, username and password_file of provider {name})",
        "ehlo": "set hostname to a name that resolves in DNS; if it is right, send this answer to the provider",
        "starttls": f'tell the provider that its STARTTLS is broken, or set tls = "opportunistic" for provider {name}',
        "mail": "send this answer to the provider: others' mail for you may meet it too",
        "rcpt": "have the provider accept mail for this address (`siteagent provider-sheet` prints what to send)",
        "data": "send this answer to the provider: others' mail for you may meet it too",
    }.get(stage, "send this answer to the provider")
