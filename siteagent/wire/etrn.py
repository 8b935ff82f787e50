"""What a provider's answer to ETRN means, and what to do next: one table (RFC 1985, and what servers made of it).

Pure. Read as: look for a hint in the text (`HINTS`, first match), else for the code (`TABLE`), else by the first digit
(`BY_CLASS`). Every row says what the answer means for the node and how the loop over nodes goes on; the loop ends on
STOP alone: 421, a closed connection, "not supported" (500, 502), and what is no answer to a command at all (3yz).

Lenient: RFC 1985 §5.2 has the client stop at "500 level error codes (550 or 551)", where §5.1 lists 500 and 501.
Servers use 501, 550, 552 and 554 for one name that they do not serve, so the other names are still asked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum

from siteagent.events import NodeOutcome
from siteagent.wire.reply import Reply


@dataclass(frozen=True, slots=True)
class NodeAnswer:
    """The last word about one node. `code` None: it did not answer. `promised`: its count of messages, a hint only.

    `sent`: the name as it stood in the command, where that is not how the configuration writes it.
    """

    node: str
    outcome: NodeOutcome
    code: int | None
    text: str
    promised: int | None
    seconds: float
    fix: str | None = None
    sent: str = ""


@dataclass(frozen=True, slots=True)
class AskFailure:
    """The conversation ended before its end. `stage`: connect, greeting, ehlo, starttls, auth, ask."""

    stage: str
    reason: str
    code: int | None
    temporary: bool
    fix: str | None


@dataclass(frozen=True, slots=True)
class AskResult:
    """The answers in the order they came (nodes that were not reached have none), and what broke it off, if anything.

    `offers_atrn` and `software` are what the server said of itself; False and "" where it did not get to that.
    `wire_bytes`: octets of the conversation, both ways, above TCP and TLS.
    """

    answers: tuple[NodeAnswer, ...]
    failure: AskFailure | None
    offers_atrn: bool
    software: str
    wire_bytes: int = 0


class GoOn(Enum):
    """How the loop over nodes goes on after an answer."""

    NEXT_NODE = "next node"
    NEW_CONNECTION = "the same node once more, on a new connection"
    AUTHENTICATE = "log in or start TLS if we have not, then the same node once more"
    STOP = "no further node in this conversation"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an answer means. `meaning` and `fix` are for people; no `fix` where nothing needs one.

    `outcome` counts where what `go_on` asks for is not possible, or was tried.
    """

    outcome: NodeOutcome
    go_on: GoOn
    meaning: str
    fix: str | None = None
    promised: int | None = None


@dataclass(frozen=True, slots=True)
class Hint:
    """A wording that tells more than the code. `codes` empty: any of 4yz and 5yz but 421."""

    codes: frozenset[int]
    words: re.Pattern[str]
    verdict: Verdict


_STARTED, _NOTHING, _REFUSED = NodeOutcome.STARTED, NodeOutcome.NOTHING, NodeOutcome.REFUSED
_RETRY, _UNKNOWN = NodeOutcome.RETRY, NodeOutcome.UNKNOWN
_NEXT, _NEW, _AUTH, _STOP = GoOn.NEXT_NODE, GoOn.NEW_CONNECTION, GoOn.AUTHENTICATE, GoOn.STOP

_LATER = "nothing now, it is asked again by itself; if it lasts, send this answer to the provider"
_PERMIT = "have the provider permit ETRN for this node from this site (`siteagent provider-sheet` prints what to send)"
_LOG_IN = 'set username and password_file of this provider, with tls = "required"'
_ELSEWHERE = 'ask the provider which of its servers does ETRN, or whether it does ATRN (method = "atrn")'
_NAME_FORM = (
    "check the node's name; some servers want `#name` (Exim), some `@name`, some the bare name: write it so in `nodes`"
)

TABLE: Mapping[int, Verdict] = {
    250: Verdict(_STARTED, _NEXT, "accepted; mail may come, or there is none (most servers never tell)"),
    251: Verdict(_NOTHING, _NEXT, "no mail waits for this node"),
    252: Verdict(_STARTED, _NEXT, "mail waits and is being sent"),
    253: Verdict(_STARTED, _NEXT, "mail waits and is being sent, and the server counted it"),
    421: Verdict(_RETRY, _STOP, "the server closes the connection", _LATER),
    450: Verdict(_RETRY, _NEXT, "refused for now", _LATER),
    451: Verdict(_RETRY, _NEXT, "the server has a problem of its own", _LATER),
    452: Verdict(_RETRY, _NEXT, "the server lacks disk space or memory", _LATER),
    # RFC 2645 §5.2.1 has 453 for "you have no mail"; as an answer to ETRN it needs the words (HINTS).
    453: Verdict(_RETRY, _NEXT, "ATRN's code for no mail, without saying so", _LATER),
    # RFC 1985: cannot queue now. postscreen says it to every new client, Exim for whatever its policy forbids.
    458: Verdict(
        _RETRY,
        _NEXT,
        "the server cannot or will not start this queue now",
        f"nothing yet, it is asked again by itself; if it lasts, {_PERMIT}, or {_LOG_IN}",
    ),
    459: Verdict(_REFUSED, _NEXT, "this node is not allowed", f"{_PERMIT}, or {_LOG_IN}"),
    500: Verdict(_REFUSED, _STOP, "the server does not know ETRN", _ELSEWHERE),
    501: Verdict(_REFUSED, _NEXT, "the server does not serve a node of this name, or not in this form", _NAME_FORM),
    502: Verdict(_REFUSED, _STOP, "the server does not do ETRN", _ELSEWHERE),
    # The server believes that the session is in a state in which it is not: close, do not guess.
    503: Verdict(_REFUSED, _NEW, "the server is out of step with the session", _LATER),
    504: Verdict(_REFUSED, _NEXT, "the server does not know this form of a name", _NAME_FORM),
    530: Verdict(_REFUSED, _AUTH, "the server wants us to log in, or TLS, first", _LOG_IN),
    535: Verdict(_REFUSED, _AUTH, "the server does not know us by this login", _LOG_IN),
    550: Verdict(_REFUSED, _NEXT, "refused by policy", f"{_PERMIT}, or {_LOG_IN}"),
    551: Verdict(_REFUSED, _NEXT, "refused by policy", f"{_PERMIT}, or {_LOG_IN}"),
    552: Verdict(_REFUSED, _NEXT, "the server misses a name that it knows", _NAME_FORM),
    # Postfix applies client and HELO restrictions, block lists too, to ETRN: usual from a dynamic address.
    554: Verdict(
        _REFUSED,
        _NEXT,
        "refused by policy, often because of the address that we come from",
        f"{_LOG_IN}, and try port = 587; or {_PERMIT}",
    ),
}

BY_CLASS: Mapping[int, Verdict] = {
    2: Verdict(_STARTED, _NEXT, "accepted, with a code that RFC 1985 does not have"),
    3: Verdict(_UNKNOWN, _STOP, "the server waits for more, which ETRN does not have", _ELSEWHERE),
    4: Verdict(_RETRY, _NEXT, "refused for now", _LATER),
    5: Verdict(_REFUSED, _NEXT, "refused", f"{_PERMIT}, or {_LOG_IN}"),
}

# No answer: Sendmail says nothing at all if it cannot start the queue run. Never "no mail".
SILENCE = Verdict(_UNKNOWN, _NEW, "the server did not answer in time; it may be overloaded", _LATER)
CLOSED = Verdict(_UNKNOWN, _STOP, "the connection ended before the answer", _LATER)
NO_NAME = Verdict(
    _REFUSED,
    _NEXT,
    "not asked: this cannot be sent as a node name",
    "write it without blanks, in at most 400 characters; a name with other letters in its xn-- form",
)


def _hint(codes: tuple[int, ...], words: str, verdict: Verdict) -> Hint:
    return Hint(frozenset(codes), re.compile(words, re.IGNORECASE), verdict)


HINTS: tuple[Hint, ...] = (
    # Sun/PMDF: one ETRN a session, 458 4.7.1, before 7.0.5 550 5.7.1.
    _hint((), r"session limit", Verdict(_RETRY, _NEW, "one ETRN, or a few, in one session is this server's limit")),
    _hint((453,), r"\bno (?:mail|messages?)\b|nothing", Verdict(_NOTHING, _NEXT, "no mail waits for this node")),
    _hint((501,), r"begin with #", Verdict(_REFUSED, _NEXT, "the server wants `#name`", "write `#name` in `nodes`")),
    _hint(
        (458,),
        r"only literal",
        Verdict(_REFUSED, _NEXT, "the server takes plain names only", "write the node without `@` or `#`"),
    ),
    # Exim: 458 authentication required; MDaemon and others 550, 554 and 503 for the same. But not for 500, 502.
    _hint(
        (458, 459, 503, 550, 551, 554),
        r"authenticat|\bauth\b|log ?in\b|starttls",
        Verdict(_REFUSED, _AUTH, "the server wants us to log in, or TLS, first", _LOG_IN),
    ),
)


def verdict(reply: Reply) -> Verdict:
    """What `reply` to an ETRN means and how to go on."""
    if reply.code == 253:
        return replace(TABLE[253], promised=promised(reply.text))
    if reply.code >= 400 and reply.code != 421:
        for hint in HINTS:
            if (not hint.codes or reply.code in hint.codes) and hint.words.search(reply.text):
                # Lenient: where the hint cannot be followed, a 458 stays what RFC 1985 makes it, temporary.
                if hint.verdict.go_on is _AUTH and reply.code == 458:
                    return replace(hint.verdict, outcome=_RETRY)
                return hint.verdict
    return TABLE.get(reply.code) or BY_CLASS[reply.code // 100]


_COUNTED = re.compile(r"(?<![\w.#@-])(\d{1,9})\s+(?:pending|queued|waiting|messages?|mails?)\b", re.IGNORECASE)
_ALONE = re.compile(r"(?<![\w.#@-])(\d{1,9})(?![\w@-]|\.\w)")


def promised(text: str) -> int | None:
    """The number that a 253 tells: the one with a fitting word behind it, else the first that stands alone."""
    match = _COUNTED.search(text) or _ALONE.search(text)
    return int(match[1]) if match else None


# Whole words of greetings and EHLO; the first that matches.
_SOFTWARE = (
    "Postfix",
    "Exim",
    "Sendmail",
    "hMailServer",
    "ZMailer",
    "XMail",
    "MDaemon",
    "Kerio",
    "IceWarp",
    "Merak",
    "CommuniGate",
    "Microsoft",
    "Stalwart",
    "OpenSMTPD",
    "chasquid",
    "siteagent",
)


def software(greeting: str) -> str:
    """The server's name for itself in its greeting, where we know it; else ""."""
    return next((name for name in _SOFTWARE if re.search(rf"\b{name}", greeting, re.IGNORECASE)), "")


# "Not this name, or not in this form": the answers on which the other form of a name is worth one try.
OTHER_FORM_CODES = (459, 501)


def other_form(node: str) -> str | None:
    """`#name` for a bare `name` and the other way round; None where there is no other (RFC 1985 §5.3).

    Exim and some providers' scripts know only `#name`, others only the bare name. `@name` means more than the name.
    """
    if node.startswith("#"):
        return node[1:] or None
    return None if node.startswith("@") else f"#{node}"


def sendable(node: str) -> bool:
    """Whether `node` may stand in a command line: one argument of visible ASCII (RFC 1985 §5), within 512 octets."""
    return 0 < len(node) <= 400 and all(33 <= ord(c) <= 126 for c in node)
