"""The verbs without mail, and how much nonsense a peer may talk: counted, answered, in the end shown the door.

Three counts, all forgiven by a message that arrives: protocol errors, verbs that do nothing, and, before the first
known verb, unknown ones (that is a browser, a TLS client, a scanner). A refusal by policy is never counted: a provider
that delivers a hundred messages for nobody here does nothing wrong.
"""

from __future__ import annotations

import re

from siteagent.events import MessageRefused
from siteagent.inbound import says
from siteagent.inbound.channel import Channel
from siteagent.inbound.places import House
from siteagent.inbound.reception import Owner, Reception
from siteagent.inbound.transaction import Transaction
from siteagent.wire.reply import Reply

_MAX_JUNK = 100
_MAX_ERRORS = 10
_MAX_UNKNOWN_AT_FIRST = 3
_HELLO = re.compile(r"[^\x00-\x20\x7f-\xa0]{1,512}\Z")


class Manners(Channel):
    """Holds the transaction; `Mailing` opens it, `Dialect` fills it."""

    def __init__(
        self,
        reception: Reception,
        *,
        reversed_session: bool = False,
        owner: Owner | None = None,
        house: House | None = None,
    ) -> None:
        super().__init__(reception, reversed_session=reversed_session, owner=owner, house=house)
        self.transaction: Transaction | None = None
        self._refused_mail = False
        self._junk = 0
        self._errors = 0
        self._unknown = 0
        self._spoke = False

    # --- what a subclass may change -----------------------------------------------------------------------------------

    def keywords(self) -> list[str]:
        """The lines of the EHLO reply behind the first."""
        most = self.reception.listener.max_message_bytes
        lines = [
            "PIPELINING",
            f"SIZE {most}" if most else "SIZE",
            "8BITMIME",
            "SMTPUTF8",
            "ENHANCEDSTATUSCODES",
            "CHUNKING",
        ]
        if not self.reversed and not self.tls and self.reception.tls() is not None:
            lines.append("STARTTLS")
        return lines

    @property
    def in_message(self) -> bool:
        return self.transaction is not None

    def progress(self) -> tuple[int, int, float]:
        transaction = self.transaction
        if transaction is None:
            return 0, 0, 0.0
        arrived = max(0, transaction.content.octets) if transaction.content is not None else 0
        return arrived, transaction.size, self.loop.time() - transaction.started

    def reset(self) -> None:
        self.abandon()
        self.transaction = None
        self._refused_mail = False
        self.close_content()

    def abandon(self) -> None:
        transaction = self.transaction
        if transaction is None:
            return
        content = transaction.content
        if content is not None and content.writer is not None:
            writer, content.writer = content.writer, None
            writer.discard()
        if self.work is None:
            self.transaction = None

    # --- counting errors ----------------------------------------------------------------------------------------------

    def unknown_verb(self, line: bytes) -> None:
        self._no_verb(says.UNKNOWN)

    def known_verb(self) -> None:
        self._spoke = True

    def wrong_line(self) -> None:
        # Long or short, it is no verb that we know: random octets have lines of both kinds.
        self._no_verb(says.LINE_TOO_LONG)

    def _no_verb(self, reply: Reply) -> None:
        if not self._spoke:
            self._unknown += 1
            if self._unknown >= _MAX_UNKNOWN_AT_FIRST:
                self.end(says.NOT_SMTP, "does not speak SMTP")
                return
        self.wrong(reply)

    def judge_early(self, fragment: bytes) -> None:
        # A TLS ClientHello or random octets: no line end may ever come.
        if not self._spoke and (self._skipping or not fragment[:1].isalpha()) and fragment != b"\r":
            self.end(says.NOT_SMTP, "does not speak SMTP")

    def wrong(self, reply: Reply) -> None:
        """A protocol error: answered, counted."""
        self._errors += 1
        if self._errors > _MAX_ERRORS:
            self.end(says.TOO_MANY_ERRORS, "too many errors")
        else:
            self.say(reply)

    def out_of_order(self, reply: Reply) -> None:
        """A bad sequence: counted only where the peer has seen our answers, not inside a burst."""
        if self._alone:
            self.wrong(reply)
        else:
            self.say(reply)

    def idle(self, reply: Reply) -> None:
        """A verb that does nothing: answered, counted."""
        self._junk += 1
        if self._junk > _MAX_JUNK:
            self.end(says.TOO_MUCH_JUNK, "too many commands that do nothing")
        else:
            self.say(reply)

    def refuse(self, reply: Reply, *, recipient: str = "", sender: str | None = None, bytes: int = 0) -> None:
        """A refusal by policy: answered, reported, never counted."""
        self.say(reply)
        self._tell_refused(reply, recipient=recipient, sender=sender, bytes=bytes)

    def _tell_refused(self, reply: Reply, *, recipient: str = "", sender: str | None = None, bytes: int = 0) -> None:
        transaction = self.transaction
        if transaction is not None:
            transaction.refused = True
            sender, bytes = transaction.sender, bytes or transaction.size
        self.emit(
            MessageRefused(
                session=self.session_id,
                provider=self.owner.provider,
                round=self.owner.round,
                sender=sender or "",
                recipient=recipient,
                code=reply.code,
                reason=reply.text,
                bytes=bytes,
            )
        )

    # --- verbs without mail -------------------------------------------------------------------------------------------

    def verb_EHLO(self, argument: bytes) -> None:
        if self._hello(argument, extended=True):
            self.say(Reply(250, "", "\n".join([self.reception.hostname, *self.keywords()])))

    def verb_HELO(self, argument: bytes) -> None:
        if self._hello(argument, extended=False):
            self.say(Reply(250, "", self.reception.hostname))

    def _hello(self, argument: bytes, *, extended: bool) -> bool:
        name = argument.strip().decode("utf-8", "replace")
        if not name:
            self.wrong(says.NAME_MISSING)
            return False
        if not _HELLO.match(name.partition(" ")[0]):
            self.wrong(says.NAME_MALFORMED)
            return False
        if self.session.host_name is not None:
            self._junk += 1
            if self._junk > _MAX_JUNK:
                self.end(says.TOO_MUCH_JUNK, "too many commands that do nothing")
                return False
        self.reset()
        # RFC 5321 §4.1.4: a name that does not fit the address is no reason to refuse.
        self.session.host_name = name.partition(" ")[0]
        self.session.extended_smtp = extended
        return True

    def verb_NOOP(self, argument: bytes) -> None:
        self.idle(says.OK)

    def verb_RSET(self, argument: bytes) -> None:
        if argument.strip():
            self.wrong(says.NO_PARAMETERS)
            return
        transaction = self.transaction
        after_refusal = self._refused_mail or (transaction is not None and transaction.refused)
        self.reset()
        if after_refusal:
            # What a sender must say behind a refusal of ours is not junk.
            self.say(says.OK)
        else:
            self.idle(says.OK)

    def verb_VRFY(self, argument: bytes) -> None:
        self.idle(says.CANNOT_VERIFY)

    def verb_EXPN(self, argument: bytes) -> None:
        self.idle(says.NOT_OFFERED)

    def verb_HELP(self, argument: bytes) -> None:
        self.idle(says.HELP)

    def verb_QUIT(self, argument: bytes) -> None:
        if argument.strip():
            self.wrong(says.NO_PARAMETERS)
            return
        self._polite = True
        self.end(says.BYE, "quit", linger=False)

    async def smtp_STARTTLS(self, argument: str | None) -> None:
        context = None if self.reversed else self.reception.tls()
        if argument is not None:
            self.wrong(says.NO_PARAMETERS)
        elif self.reversed:
            self.wrong(says.NOT_OFFERED)
        elif self.tls:
            self.wrong(says.TLS_ALREADY)
        elif self.in_message:
            self.out_of_order(says.TLS_IN_MAIL)
        elif context is None:
            self.idle(says.TLS_UNAVAILABLE)
        elif self._inbox:
            # RFC 3207 §4.2, and every STARTTLS injection since: what came in clear must not be read as sent in TLS.
            self.end(says.TLS_AND_MORE, "sent more behind STARTTLS")
        else:
            await self._begin_tls(context)
