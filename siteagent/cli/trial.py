"""`test`: a small marked message goes to the provider as a stranger's would, and is followed into the Maildir.

Each hop is named with its time, or the first one that failed and why it probably did. The mark is looked for in the
Maildir itself: that is where the mail has to be.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import secrets
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import click

from siteagent.cli import rounds
from siteagent.cli.ask import chosen_providers
from siteagent.cli.context import Context
from siteagent.cli.running import become_owner, imports_as_owner
from siteagent.config import names
from siteagent.config.sections import Configuration, Mailbox, Provider
from siteagent.errors import ExitCode, SiteAgentError, TemporaryError, UsageError
from siteagent.status import counted
from siteagent.store.lock import lock_holder
from siteagent.wire.reply import Reply

_DIRECT_SECONDS = 2.0
_BETWEEN_ASKS_SECONDS = 3.0
_ASKS = 2
_LOOK_SECONDS = 0.1
_LOOK_INTO_BYTES = 16_384


@dataclass(frozen=True, slots=True)
class _Trial:
    """One message under way: `mark` is in a header line of it."""

    mark: str
    address: str
    mailbox: Mailbox | None
    began: float

    def seconds(self, at: float | None = None) -> str:
        """From the beginning to `at`, of the monotonic clock; None: to now."""
        return f"after {max(0.0, (time.monotonic() if at is None else at) - self.began):.1f} s"


class _Heard:
    """When a round's first answer and first connection were heard of, of the monotonic clock."""

    def __init__(self) -> None:
        self.times: dict[str, float] = {}

    def __call__(self, what: str) -> None:
        self.times.setdefault(what, time.monotonic())


class _HopFailed(SiteAgentError):
    """The message did not get past a hop; `exit_code` is that of what stopped it."""

    def __init__(self, hop: str, why: str, *, fix: str, exit_code: ExitCode = ExitCode.TEMPORARY) -> None:
        super().__init__(f"the message stopped: {hop}", why, fix=fix)
        self.exit_code = exit_code


@click.command("test")
@click.argument("provider", required=False, metavar="[PROVIDER]")
@click.option(
    "--to", "address", metavar="ADDRESS", help="One of our addresses; the first of the configuration if not given."
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=1),
    default=180.0,
    metavar="SECONDS",
    show_default=True,
    help="End a round then.",
)
@click.pass_obj
def test(context: Context, provider: str | None, address: str | None, timeout: float) -> int:
    """Send a message to ourselves by way of the provider, and follow it into the Maildir.

    The provider gets it as any stranger's server would bring it: without a login, for one of our own addresses. Then
    it is asked, and every hop is told with its time, or the first one that failed and its likely cause.
    """
    configuration = context.configuration()
    chosen = chosen_providers(configuration, (provider,) if provider else ())
    if provider is None and len(chosen) > 1:
        raise UsageError("cannot test", "there are several providers", fix=f"name one of them: {', '.join(chosen)}")
    section = next(p for p in configuration.provider if p.name == chosen[0])
    if configuration.ask_only and not configuration.mailbox:
        why = "another mail server receives here (`listen = []`), and what it does with a message is not seen from here"
        fix = "write to yourselves from elsewhere, run `siteagent ask`, and look into that server's log"
        raise UsageError("cannot test", why, fix=fix)
    trial = _new_trial(configuration, address)
    assert configuration.state_directory is not None
    sockets = become_owner(configuration, bind_ports=lock_holder(configuration.state_directory) is None)
    reply = asyncio.run(_hand_over(context, configuration, section, trial))
    context.out(f"1. {section.name} took the message for {trial.address} ({reply}) {trial.seconds()}")
    _follow(context, configuration, section, trial, timeout=timeout, sockets=sockets)
    return ExitCode.DONE


def _new_trial(configuration: Configuration, address: str | None) -> _Trial:
    known = {a: mailbox for mailbox in configuration.mailbox for a in mailbox.addresses if not a.startswith("@")}
    if address is None:
        address = next(iter(known), None)
    if address is not None and names.mail_address(address) is None:
        raise UsageError("cannot test", f"{address} is no mail address", fix="give name@domain with --to")
    if address is None:
        why = "the configuration names no single address, only whole domains or none"
        raise UsageError("cannot test", why, fix="give one with --to ADDRESS")
    return _Trial(secrets.token_hex(12), address, known.get(address), time.monotonic())


# --- hop 1: to the provider -------------------------------------------------------------------------------------------


async def _hand_over(context: Context, configuration: Configuration, provider: Provider, trial: _Trial) -> Reply:
    with imports_as_owner():
        from siteagent.names import Resolver
        from siteagent.uplink.trial import hand_over

    assert configuration.state_directory is not None
    resolver = Resolver(configuration.state_directory / "names.json")
    hop = f"{provider.name} cannot be found"
    try:
        addresses = await resolver.resolve(provider.host)
        hop = f"{provider.name} does not take mail for {trial.address}"
        return await hand_over(
            provider,
            line=None,
            addresses=addresses,
            hostname=configuration.hostname,
            limits=configuration.limits,
            tls=None,
            sender="",
            recipient=trial.address,
            message=_message(configuration, trial),
            transcript=context.detail if context.verbose else None,
        )
    except SiteAgentError as error:
        if error.what.startswith("cannot connect"):
            hop = f"{provider.name} cannot be reached"
        raise _HopFailed(
            hop,
            error.why,
            fix=error.fix or "ask the provider to take mail for your domain (`siteagent provider-sheet`)",
            exit_code=ExitCode.TEMPORARY if error.temporary else ExitCode.UNAVAILABLE,
        ) from error
    finally:
        await resolver.close()


def _message(configuration: Configuration, trial: _Trial) -> bytes:
    from siteagent.uplink.trial import marked

    why = "This message was sent by `siteagent test`, to see whether mail finds its way here. It did."
    hostname = configuration.hostname
    return marked(hostname=hostname, address=trial.address, mark=trial.mark, at=datetime.now(UTC), why=why)


# --- the other hops ---------------------------------------------------------------------------------------------------


def _follow(
    context: Context,
    configuration: Configuration,
    provider: Provider,
    trial: _Trial,
    *,
    timeout: float,
    sockets: Sequence[socket.socket],
) -> None:
    """Waits a moment for a provider that sends by itself, then asks, twice at most. Raises _HopFailed."""
    if at := _arrived(configuration, trial, seconds=_DIRECT_SECONDS):
        context.out(f"2. {provider.name} sent it on without being asked; it is in the Maildir {trial.seconds(at)}")
        return
    asked = rounds.Asked()
    for attempt in range(_ASKS):
        if attempt:
            time.sleep(_BETWEEN_ASKS_SECONDS)  # a provider releases only what it has tried and put off before
        wanted = rounds.Wanted((provider.name,), timeout_seconds=timeout)
        heard = _Heard()
        asked = rounds.ask(context, configuration, wanted, sockets=sockets, hear=heard)
        if _asked_too_early(asked, provider, trial):
            heard = _Heard()
            asked = rounds.ask(context, configuration, wanted, sockets=sockets, hear=heard)
        latest = asked.rounds.get(provider.name)
        if latest is None:
            raise TemporaryError("cannot tell what became of the message", "the round was cut short")
        at = _arrived(configuration, trial, seconds=1.0)
        if at is not None:  # a running agent is looked at now and then: its connection is heard of later than it was
            heard.times = {what: min(when, at) for what, when in heard.times.items()}
        _tell_hops(context, provider, latest, trial, attempt=attempt, heard=heard.times)
        if at is not None:
            number = 4 + 2 * attempt
            context.out(f"{number}. it is in the Maildir of {trial.address} {trial.seconds(at)}")
            return
        if asked.stopped:
            raise KeyboardInterrupt
        if latest["outcome"] in ("refused", "failed") or _refused_peer(provider.name, asked):
            break  # asking again changes nothing
    raise _likely_cause(provider, asked, trial)


def _asked_too_early(asked: rounds.Asked, provider: Provider, trial: _Trial) -> bool:
    """A running agent counted the request into a round at work, which asked before the message was at the provider."""
    latest = asked.rounds.get(provider.name)
    if latest is None or latest["messages"] or asked.stopped:
        return False
    handed_over = datetime.now(UTC).timestamp() - (time.monotonic() - trial.began)
    return datetime.fromisoformat(latest["started"]).timestamp() < math.floor(handed_over)


def _tell_hops(
    context: Context,
    provider: Provider,
    latest: rounds.Round,
    trial: _Trial,
    *,
    attempt: int,
    heard: Mapping[str, float],
) -> None:
    number = 2 + 2 * attempt
    answers = ", ".join(f"{n['node']}: {n['code'] or ''} {n['text']}".strip() for n in latest["nodes"])
    if answers:
        context.out(f"{number}. asked {provider.name} ({answers}) {trial.seconds(heard.get('answered'))}")
    if latest["sessions"]:
        brought = counted(latest["messages"], "message")
        at = trial.seconds(heard.get("connected"))
        context.out(f"{number + 1}. {provider.name} connected and brought {brought} {at}")


def _refused_peer(name: str, asked: rounds.Asked) -> dict[str, str] | None:
    """The warning about a connection of that provider's that was refused, if one stands."""
    warnings: list[dict[str, str]] = asked.document["warnings"]
    return next((w for w in warnings if w["name"] == "peer-refused" and w["text"].startswith(f"{name} ")), None)


def _likely_cause(provider: Provider, asked: rounds.Asked, trial: _Trial) -> _HopFailed:
    latest = asked.rounds[provider.name]
    name = provider.name
    refused_peer = _refused_peer(name, asked)
    if latest["outcome"] == "refused":
        return _HopFailed(
            f"{name} refuses to be asked",
            latest["reason"] or _answers(latest),
            fix="ask the provider which name to ask for, and whether a login is needed",
            exit_code=ExitCode.UNAVAILABLE,
        )
    if latest["outcome"] in ("failed", "link-lost"):
        return _HopFailed(f"{name} could not be asked", latest["reason"] or _answers(latest), fix="try again later")
    if refused_peer is not None and not latest["messages"]:
        return _HopFailed(f"{name} calls from an unlisted address", refused_peer["text"], fix=refused_peer["fix"])
    if latest["outcome"] == "asked":
        return _HopFailed(
            "another server receives here", "it is not in a Maildir of ours", fix="look into that server's log"
        )
    if not latest["sessions"]:
        return _HopFailed(
            f"{name} does not call",
            "it agreed to send, and then nobody connected",
            fix=f"ask the provider where it sends mail for {trial.address.rpartition('@')[2]}, and whether it reaches"
            " this host's port 25 from there",
        )
    if latest["refused"]:
        return _HopFailed(
            "we did not take it", latest["reason"] or "see the log", fix=f"is {trial.address} in the configuration?"
        )
    if asked.document["queue"]["messages"]:
        return _HopFailed(
            "it is accepted and cannot be filed", asked.document["queue"]["reason"] or "", fix="run `siteagent queue`"
        )
    return _HopFailed(
        f"{name} connected and did not bring it",
        f"{latest['messages']} other messages came",
        fix="wait a few minutes and look at `siteagent history --messages`: the provider may hold new mail back",
    )


def _answers(latest: rounds.Round) -> str:
    return "; ".join(f"{node['node']}: {node['code']} {node['text']}" for node in latest["nodes"])


# --- where it has to be -----------------------------------------------------------------------------------------------


def _arrived(configuration: Configuration, trial: _Trial, *, seconds: float) -> float | None:
    """When it was filed, of the monotonic clock; None where it is not there after so long."""
    mailboxes = [trial.mailbox] if trial.mailbox is not None else list(configuration.mailbox)
    deadline = time.monotonic() + seconds
    while True:
        for path in (path for mailbox in mailboxes for path in _recent(mailbox, trial)):
            if _holds(path, trial.mark.encode()):
                with contextlib.suppress(OSError):  # a reader moved it just now
                    return time.monotonic() - max(0.0, time.time() - path.stat().st_mtime)
                return time.monotonic()
        if time.monotonic() > deadline:
            return None
        time.sleep(_LOOK_SECONDS)


def _recent(mailbox: Mailbox, trial: _Trial) -> Iterator[Path]:
    """Files of the Maildir that are no older than the message."""
    oldest = time.time() - (time.monotonic() - trial.began) - 2.0
    for folder in ("new", "cur"):
        try:
            with os.scandir(mailbox.maildir / folder) as entries:
                for entry in entries:
                    if entry.stat(follow_symlinks=False).st_mtime >= oldest:
                        yield Path(entry.path)
        except OSError:
            continue


def _holds(path: Path, mark: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return mark in file.read(_LOOK_INTO_BYTES)
    except OSError:
        return False
