"""``method = "auto"``: ETRN or ATRN for the round that begins, and why. Pure.

ETRN costs less and lets several messages come at once, but the provider must be able to connect to us. ATRN is taken
where it is offered and ETRN brings nothing, as far as one can know: our address is private or shared (the usual way to
be behind a NAT), or the provider agreed twice in a row and nobody came, or it refuses ETRN. Where the provider's port
for ETRN does not offer ATRN, ``atrn_port`` is tried, but only when it was asked in vain from such an address, or
refuses: most providers have nothing there. An ATRN that did not come about gives ETRN its turn again. Where ATRN cannot
be had at all, because nobody logs in or mail is not received here, ETRN it is, and the reason says so.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial

from siteagent.config.sections import Auth, Method, Provider
from siteagent.events import Outcome
from siteagent.rounds.policy import SUCCESSES

VAIN_ASKS = 2

_SHARED = ipaddress.ip_network("100.64.0.0/10")  # RFC 6598: between a carrier's NAT and its customers
# RFC 1918, 3927, 4193, 4291. Not `is_private`, which has every special range in it, those for documents too.
_PRIVATE = tuple(
    ipaddress.ip_network(text)
    for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "fc00::/7", "fe80::/10")
)


@dataclass(frozen=True, slots=True)
class Choice:
    """How to ask. `reason` is for people; empty where there was nothing to choose."""

    method: Method
    port: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the rounds so far told. `offers_atrn`: on `port`, None while nobody knows; `vain`: ETRN rounds in a row

    that were agreed to and brought nobody; `atrn_failed`: the latest round, by ATRN, did not come about;
    `etrn_refused`: the latest by ETRN was refused for good.
    """

    offers_atrn: bool | None = None
    vain: int = 0
    atrn_failed: bool = False
    etrn_refused: bool = False

    @classmethod
    def from_past(cls, rounds: Iterable[tuple[str, str, bool]]) -> Seen:
        """What a journal tells, oldest first: (method, outcome, whether a session came) of each round that ended."""
        seen = cls()
        for method, outcome, came in rounds:
            seen = seen.after(Method(method), Outcome(outcome), came=came)
        return seen

    def offered(self, offers: bool) -> Seen:
        return replace(self, offers_atrn=offers)

    def called(self) -> Seen:
        """It connected, in time or hours later: so it can."""
        return Seen(self.offers_atrn)

    def after(self, method: Method, outcome: Outcome, *, came: bool) -> Seen:
        """Once a round ended; `came`: somebody connected."""
        agreed = outcome in SUCCESSES or came
        if method is Method.ATRN:
            return replace(self, atrn_failed=not agreed)
        if came or outcome is Outcome.NOTHING:
            return self.called()
        refused = outcome is Outcome.REFUSED or (self.etrn_refused and not agreed)
        return replace(self, vain=self.vain + agreed, atrn_failed=False, etrn_refused=refused)


def unreachable(source: str) -> str:
    """Why nobody outside can connect to `source`, "" where one can as far as the address tells."""
    try:
        address = ipaddress.ip_address(source.partition("%")[0])
    except ValueError:
        return ""
    if address.version == 4 and address in _SHARED:
        return f"our address {source} is shared by the carrier's customers (NAT)"
    if any(address.version == network.version and address in network for network in _PRIVATE):
        return f"our address {source} is private"
    return ""


def choose(provider: Provider, seen: Seen, *, source: str, receives: bool = True) -> Choice:
    """The method of the next round from address `source`. `receives`: a connection can be turned round here."""
    if provider.method is not Method.AUTO:
        return Choice(provider.method, provider.port)
    by_etrn = partial(Choice, Method.ETRN, provider.port)
    if not receives:
        return by_etrn("mail is not received here (listen = [])")
    if seen.atrn_failed:
        return by_etrn("ATRN did not come about")
    closed = unreachable(source)
    vain = f"the provider agreed {seen.vain} times and nobody came" if seen.vain >= VAIN_ASKS else ""
    why = closed or vain or ("ETRN is refused" if seen.etrn_refused else "")
    if not why:
        return by_etrn("nothing says that we cannot be reached")
    if provider.username is None and provider.auth is not Auth.EXTERNAL:
        return by_etrn(f"ATRN needs a login (username, password_file), although {why}")  # RFC 2645 §5.2.1
    if seen.offers_atrn:
        return Choice(Method.ATRN, provider.port, f"ATRN is offered, and {why}")
    if seen.etrn_refused or (closed and vain):
        both = f"{closed}, and {vain}" if closed and vain else why
        # Not known: a life that is for one round has only the journal of the rounds before.
        return Choice(Method.ATRN, provider.port if seen.offers_atrn is None else provider.atrn_port, both)
    known = "not known yet to be offered" if seen.offers_atrn is None else "not offered here"
    return by_etrn(f"ATRN is {known}, although {why}")
