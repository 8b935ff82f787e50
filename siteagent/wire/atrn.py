"""ATRN on the wire (RFC 2645): which names it takes, and what the answer to it means.

Pure. The table is read as `wire.etrn`'s: by code, else by the first digit. 450 says that one of the domains is not
ours, or that we ask too often, and does not tell which: so it is temporary here, and told with both meanings.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from siteagent.events import NodeOutcome
from siteagent.wire.etrn import GoOn, Verdict
from siteagent.wire.reply import Reply

# RFC 5321 §4.5.3.1.4: 512 octets a command line, the verb and CRLF among them.
_MOST_OCTETS = 500
_DOMAIN = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)+\Z")

_STARTED, _NOTHING, _REFUSED = NodeOutcome.STARTED, NodeOutcome.NOTHING, NodeOutcome.REFUSED
_RETRY, _UNKNOWN = NodeOutcome.RETRY, NodeOutcome.UNKNOWN
_NEXT, _STOP = GoOn.NEXT_NODE, GoOn.STOP

_LATER = "nothing now, it is asked again by itself; if it lasts, send this answer to the provider"
_LOG_IN = "set username and password_file of this provider"
_ELSEWHERE = 'ask the provider at which port it does ATRN (366 is its own), or set method = "etrn"'
_NOT_OURS = "ask the provider whether this domain belongs to the account; if it does, it was asked too often"

TABLE: Mapping[int, Verdict] = {
    250: Verdict(_STARTED, _NEXT, "the connection is turned round: the mail comes over it"),
    421: Verdict(_RETRY, _STOP, "the server closes the connection", _LATER),
    450: Verdict(_RETRY, _NEXT, "refused: not the account's domain, or asked too often", _NOT_OURS),
    451: Verdict(_RETRY, _NEXT, "the server cannot look at the queue now", _LATER),
    453: Verdict(_NOTHING, _NEXT, "no mail waits for this domain"),
    500: Verdict(_REFUSED, _STOP, "the server does not know ATRN", _ELSEWHERE),
    501: Verdict(_REFUSED, _NEXT, "the server does not take a domain of this form", _NOT_OURS),
    502: Verdict(_REFUSED, _STOP, "the server does not do ATRN", _ELSEWHERE),
    503: Verdict(_REFUSED, _STOP, "the server is out of step with the session", _LATER),
    530: Verdict(_REFUSED, _STOP, "the server wants us to log in first", _LOG_IN),
    535: Verdict(_REFUSED, _STOP, "the server does not know us by this login", _LOG_IN),
}
BY_CLASS: Mapping[int, Verdict] = {
    # Only 250 turns: to be the server on a connection where the other side is one too helps nobody.
    2: Verdict(_UNKNOWN, _STOP, "an answer that RFC 2645 does not have", _LATER),
    3: Verdict(_UNKNOWN, _STOP, "the server waits for more, which ATRN does not have", _ELSEWHERE),
    4: Verdict(_RETRY, _NEXT, "refused for now", _LATER),
    5: Verdict(_REFUSED, _NEXT, "refused", _NOT_OURS),
}
SILENCE = Verdict(_UNKNOWN, _STOP, "the server did not answer in time; it may be walking its queue", _LATER)
CLOSED = Verdict(_UNKNOWN, _STOP, "the connection ended before the answer", _LATER)
NO_DOMAIN = Verdict(
    _REFUSED, _NEXT, "not asked: ATRN takes plain domains with a dot", "write a domain, without `@` or `#`"
)


def verdict(reply: Reply) -> Verdict:
    """What `reply` to an ATRN means, and whether another may follow."""
    return TABLE.get(reply.code) or BY_CLASS[reply.code // 100]


def about_one_domain(reply: Reply) -> bool:
    """Whether a refusal of several domains may be about one of them, so that it is worth asking for each alone.

    RFC 2645 §5.2.1: one domain that is not the account's makes a 450 for all. But so does an ask too many; a server
    that says X.3.z speaks of itself (RFC 3463 §3.4), and asking it more often makes that worse.
    """
    return reply.code == 450 and not reply.enhanced.startswith("4.3.")


def sendable(domain: str) -> bool:
    """Whether `domain` may stand behind ATRN (RFC 2645 §5.2.1)."""
    return len(domain) <= 253 and _DOMAIN.match(domain) is not None


def commands(domains: Sequence[str]) -> list[tuple[str, ...]]:
    """`domains` in as few commands as their length allows."""
    found: list[tuple[str, ...]] = []
    length = _MOST_OCTETS + 1
    for domain in domains:
        length += len(domain) + 1
        if length > _MOST_OCTETS:
            found.append(())
            length = len("ATRN ") + len(domain)
        found[-1] += (domain,)
    return found
