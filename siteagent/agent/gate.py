"""Holds the hook ``round_ended`` back until the line may be hung up.

A script that hangs up must not run while a session is open, nor while another provider on that line is not done. The
hooks of the rounds that ended meanwhile run then, in their order. When the line is gone nothing is waited for.
"""

from __future__ import annotations

from collections.abc import Callable

from siteagent.events import Event, LinkDown, RoundEnded, SessionClosed, SessionOpened, Stamped


class Gate:
    """`run` starts the commands of an event; `busy` says whether some provider on a line is not done."""

    def __init__(self, run: Callable[[Stamped], None], *, busy: Callable[[str], bool]) -> None:
        self._run = run
        self._busy = busy
        self._held: list[tuple[str, Stamped]] = []
        self._sessions: set[str] = set()

    def observe(self, stamped: Stamped) -> None:
        """In place of the hooks' own `observe`; `check` is to be called when everybody has seen the event."""
        match stamped.event:
            case RoundEnded() as ended:
                self._held.append((ended.link_interface, stamped))
                return
            case SessionOpened() as opened:
                self._sessions.add(opened.session)
            case SessionClosed() as closed:
                self._sessions.discard(closed.session)
        self._run(stamped)

    def check(self, event: Event) -> None:
        """Lets go of what need not wait any longer."""
        if not self._held:
            return
        gone = event.interface if isinstance(event, LinkDown) else None
        waiting, self._held = self._held, []
        for line, stamped in waiting:
            if line != gone and (self._sessions or self._busy(line)):
                self._held.append((line, stamped))
            else:
                self._run(stamped)

    def release(self) -> None:
        """Lets go of everything: the agent stops."""
        waiting, self._held = self._held, []
        for _, stamped in waiting:
            self._run(stamped)
