"""When must a person be told? Once when something begins to stand, once when it no longer does.

The kinds are a table; whoever notices the facts (the agent) calls `raise_` and `clear` as often as it likes and emits
what they return. Text and fix are sentences for people, made where the facts are known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from siteagent.events import Stamped, WarningCleared, WarningRaised

# Every kind of warning there is, and its title: what the note to the postmaster is called, and `status` without a text.
KINDS: Mapping[str, str] = {
    "peer-refused": "A provider's connection was refused",
    "cannot-keep": "Mail is turned away because it cannot be kept here",
    "cannot-file": "Mail cannot be filed",
    "silence": "A provider agrees to send, and nobody comes",
    "refused": "A provider refuses to send our mail",
    "held-back": "Mail waits at a provider because we do not take it",
    "no-round": "No mail could be fetched for a day",
    "configuration": "A changed configuration is not in force",
    "disk": "A disk is nearly full",
    "certificate": "The certificate of the listener runs out",
    "heartbeat": "The daily test message did not come back",
    "tls": "TLS with a provider does not come about",
}

# Those that tell of what is to come: mail flows as long as nothing else is wrong.
AHEAD = frozenset({"configuration", "disk", "certificate"})

TELLINGS = 3


def not_in_force(problems: Sequence[str]) -> str:
    """The text of the warning `configuration`, the same for agent and hub. `problems`: one at least."""
    count = f" ({len(problems)} problems)" if len(problems) > 1 else ""
    return f"the changed configuration is not in force{count}: {problems[0]}"


@dataclass(slots=True)
class _Standing:
    text: str
    told: int


class Warnings:
    """Decides whether a person must be told: once when a warning begins to stand, once when it no longer does.

    A standing warning whose text changes is told again, at most TELLINGS times in all: a stranger that knocks while a
    round waits must not hide the provider's true new address behind its own, nor fill the postmaster's mailbox.
    """

    def __init__(self) -> None:
        self._standing: dict[tuple[str, str], _Standing] = {}

    def restore(self, past: Iterable[Stamped]) -> None:
        """Take up what stood when the agent ended: the same events that `StatusFold.restore` is given."""
        for stamped in past:
            event = stamped.event
            if isinstance(event, WarningRaised):
                self._standing[event.warning, event.subject] = _Standing(event.text, 1)
            elif isinstance(event, WarningCleared):
                self._standing.pop((event.warning, event.subject), None)

    def raise_(self, warning: str, subject: str, text: str, fix: str) -> WarningRaised | None:
        """The event to emit, or None where a person was told already. `warning` is one of KINDS."""
        assert warning in KINDS, warning
        known = self._standing.get((warning, subject))
        if known is not None and (known.text == text or known.told >= TELLINGS):
            return None
        self._standing[warning, subject] = _Standing(text, 1 if known is None else known.told + 1)
        return WarningRaised(warning=warning, subject=subject, text=text, fix=fix)

    def clear(self, warning: str, subject: str) -> WarningCleared | None:
        """The event to emit, or None where no such warning stands."""
        assert warning in KINDS, warning
        if self._standing.pop((warning, subject), None) is None:
            return None
        return WarningCleared(warning=warning, subject=subject)

    def standing(self, warning: str) -> tuple[str, ...]:
        """The subjects about which a warning of this kind stands: what to look at again."""
        return tuple(subject for kind, subject in self._standing if kind == warning)
