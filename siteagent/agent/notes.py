"""A warning as a note in the postmaster's Maildir, once: nobody reads logs.

It takes the way of all mail, by the spool: a full Maildir holds it back like any message, and it is filed when that is
mended. What cannot be written is said in the log, and costs nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from email.utils import format_datetime

from siteagent.config.sections import Configuration
from siteagent.errors import SiteAgentError
from siteagent.events import Stamped, WarningCleared, WarningRaised
from siteagent.status import KINDS
from siteagent.store.body import Envelope
from siteagent.store.spool import Spool
from siteagent.wire.reply import printable


class Notes:
    """`observe` on the loop's thread; `background` runs what waits for the disk."""

    def __init__(
        self,
        configuration: Configuration,
        spool: Spool,
        *,
        new_id: Callable[[], str],
        wall: Callable[[], datetime],
        say: Callable[[str], None],
    ) -> None:
        self.configuration = configuration
        self._spool = spool
        self._new_id = new_id
        self._wall = wall
        self._say = say
        self._noted: set[tuple[str, str]] = set()

    def restore(self, past: Iterable[Stamped]) -> None:
        """What stood when the agent ended was put down then."""
        for stamped in past:
            self.wanted(stamped.event)

    def wanted(self, event: object) -> WarningRaised | None:
        """`event` where a note of it is to be written: a warning that was not noted since it was last cleared."""
        match event:
            case WarningRaised() if (event.warning, event.subject) not in self._noted:
                self._noted.add((event.warning, event.subject))
                return event
            case WarningCleared():
                self._noted.discard((event.warning, event.subject))
        return None

    async def write(self, warning: WarningRaised) -> None:
        """Puts the note into the spool. Trouble is said, once."""
        found = self._postmaster()
        if found is None:
            return  # ask-only: the other server has the mailboxes
        address, mailbox = found
        identity = self._new_id()
        now = self._wall()
        host = self.configuration.hostname
        envelope = Envelope(
            message=identity,
            session=f"note-{identity}",
            provider=None,
            round=None,
            sender="",
            recipients=((address, mailbox),),
            received=f"Received: by {host} (siteagent) id {identity};\n\t{format_datetime(now)}\n".encode(),
            smtputf8=False,
            eight_bit=True,
        )
        try:
            writer = self._spool.body(envelope)
            writer.write(text_of(warning, host=host, address=address, identity=identity, now=now))
            await self._spool.commit(envelope, await writer.finish())
        except (SiteAgentError, OSError) as error:
            self._say(f"cannot put a note of {warning.warning} into {mailbox}: {str(error).splitlines()[0]}")

    def _postmaster(self) -> tuple[str, str] | None:
        boxes = self.configuration.mailbox
        if not boxes:
            return None
        name = self.configuration.delivery.postmaster or boxes[0].name
        box = next((each for each in boxes if each.name == name), boxes[0])
        return f"postmaster@{box.addresses[0].rpartition('@')[2]}", box.name


def text_of(warning: WarningRaised, *, host: str, address: str, identity: str, now: datetime) -> bytes:
    """The note, as a message with LF line ends. What a peer said in it has no control characters."""
    title = KINDS.get(warning.warning, warning.warning)
    rows = [
        f"From: siteagent <{address}>",
        f"To: {address}",
        f"Subject: siteagent: {title}",
        f"Date: {format_datetime(now)}",
        f"Message-ID: <{identity}@{host.strip('[]')}>",
        "Auto-Submitted: auto-generated",
        f"X-Siteagent-Warning: {warning.warning}",
        "MIME-Version: 1.0",
        "Content-Type: text/plain; charset=utf-8",
        "Content-Transfer-Encoding: 8bit",
        "",
        f"{title}:",
        "",
        f"  {printable(warning.text)}",
        "",
        "What to do:",
        "",
        f"  {printable(warning.fix)}",
        "",
        f"This comes from the mail agent on {host}, and is said once.",
        "`siteagent status` tells whether it still stands.",
        "",
    ]
    return "\n".join(rows).encode("utf-8", "backslashreplace")
