"""Our dialect of SMTP: the verbs, their order, what they cost a peer that abuses them, and the promise behind 250.

RFC 5321, with PIPELINING (2920), SIZE (1870), 8BITMIME (6152), SMTPUTF8 (6531), ENHANCEDSTATUSCODES (2034), CHUNKING
(3030, without BINARYMIME) and STARTTLS (3207). It only receives: no AUTH, no relaying, nothing told by VRFY.

Law: 250 to the end of a message is said after the spool's commit and by nothing else. What goes wrong on our side is
4yz; 5yz is policy, or a peer that does not speak SMTP. The hub's dialect is a subclass with more verbs; see `Channel`
for how a verb is written.
"""

from __future__ import annotations

import re
import time
from datetime import datetime
from functools import lru_cache, partial

from siteagent.config.sections import BareNewline
from siteagent.events import MessageAccepted, MessageDuplicate
from siteagent.inbound import says
from siteagent.inbound.body import Content, Rules
from siteagent.inbound.mailing import Mailing
from siteagent.inbound.reception import Owner, Reception, SessionView
from siteagent.inbound.transaction import Transaction
from siteagent.store.spool import Committed, Envelope, SpoolFailed, SpoolFull
from siteagent.wire import trace
from siteagent.wire.reply import Reply

__all__ = ["Dialect", "Owner", "Reception", "SessionView"]

_MAX_BACKLOG = 524_288
_BDAT = re.compile(rb"([0-9]{1,20})(?: +(LAST))? *\Z", re.IGNORECASE)
_GO_AHEAD = bytes(says.GO_AHEAD)


@lru_cache(maxsize=2)
def _date(second: int) -> str:
    return trace.date(datetime.fromtimestamp(second).astimezone())


def _refusal(error: Exception) -> Reply:
    """Whatever went wrong on our side is temporary, and what exactly is for the log."""
    if isinstance(error, SpoolFull):
        return says.NO_ROOM
    return says.NOT_KEPT if isinstance(error, SpoolFailed) else says.OUR_FAULT


class Dialect(Mailing):
    """One SMTP session: `Connection`, `Door`, `Channel`, `Manners`, `Mailing`, and here the content and its promise."""

    _chunk = 0

    def verb_DATA(self, argument: bytes) -> None:
        transaction = self.transaction
        if argument.strip():
            self.wrong(says.NO_PARAMETERS)
        elif transaction is None:
            if self._refused_mail:
                self.say(says.MAIL_FIRST)
            else:
                self.out_of_order(says.MAIL_FIRST)
        elif transaction.content is not None:
            self.out_of_order(says.BDAT_GOES_ON)
        elif not transaction.recipients:
            if transaction.refused:
                self.say(says.NOBODY_LEFT)
            else:
                self.out_of_order(says.RCPT_FIRST)
        elif not self.reception.spool.room(transaction.size, keep_free=self.reception.listener.min_free_bytes):
            self.refuse(says.NO_ROOM)
            self.reset()
        else:
            self._open_message(transaction, chunked=False)
            self._queue(_GO_AHEAD)
            self.open_content(self._take_data)

    def verb_BDAT(self, argument: bytes) -> None:
        match = _BDAT.match(argument.strip())
        if match is None:
            # How many octets follow is not known: what comes next cannot be told from content.
            self.end(Reply(501, "5.5.4", "it is BDAT size [LAST]"), "BDAT without a size")
            return
        transaction = self.transaction
        octets, last = int(match[1]), match[2] is not None
        refusal = self._bdat_refusal(transaction)
        if refusal is not None:
            # RFC 3030 §2: the octets come all the same.
            self._skip(octets, refusal)
            return
        assert transaction is not None
        if transaction.content is None:
            self._open_message(transaction, chunked=True)
        self._chunk = octets
        if octets:
            self.open_content(lambda data: self._take_chunk(data, last=last))
        else:
            self._end_chunk(octets, last=last)

    def _bdat_refusal(self, transaction: Transaction | None) -> Reply | None:
        if transaction is None:
            return says.MAIL_FIRST
        if not transaction.recipients:
            return says.NOBODY_LEFT if transaction.refused else says.RCPT_FIRST
        if transaction.content is None and not self.reception.spool.room(
            transaction.size, keep_free=self.reception.listener.min_free_bytes
        ):
            self._tell_refused(says.NO_ROOM)
            self.transaction = None
            self._refused_mail = True
            return says.NO_ROOM
        return None

    def _skip(self, octets: int, reply: Reply) -> None:
        """Reads over the octets of a chunk that nobody wants, then answers."""
        left = octets

        def skip(data: bytes) -> bytes | None:
            nonlocal left
            taken = min(left, len(data))
            left -= taken
            if left:
                return None
            self.close_content()
            self.say(reply)
            return data[taken:]

        if octets:
            self.open_content(skip)
        else:
            self.say(reply)

    def _open_message(self, transaction: Transaction, *, chunked: bool) -> None:
        """The spool is told of a message, and its content may come."""
        reception, listener = self.reception, self.reception.listener
        ident = reception.new_id()
        recipients = tuple(transaction.recipients)
        received = trace.received(
            helo=self.session.host_name or "",
            peer=self.peer,
            by=reception.hostname,
            word=trace.with_word(
                extended=self.session.extended_smtp,
                tls=self.tls,
                authenticated=bool(self.session.authenticated),
                utf8=transaction.smtputf8,
            ),
            ident=ident,
            recipient=recipients[0][0] if len(recipients) == 1 else None,
            when=_date(int(time.time())),
        )
        transaction.envelope = Envelope(
            message=ident,
            session=self.session_id,
            provider=self.owner.provider,
            round=self.owner.round,
            sender=transaction.sender,
            recipients=recipients,
            received=received,
            smtputf8=transaction.smtputf8,
            eight_bit=transaction.eight_bit,
        )
        writer = reception.spool.body(transaction.envelope)
        writer.on_drained = self.writer_drained
        transaction.held = writer
        rules = Rules(
            max_bytes=listener.max_message_bytes,
            defer_above=reception.defer_above(self.owner.provider),
            reject_bare_newline=listener.bare_newline is BareNewline.REJECT,
        )
        transaction.content = Content(writer, rules, chunked=chunked)

    def _take_data(self, data: bytes) -> bytes | None:
        transaction = self.transaction
        assert transaction is not None and transaction.content is not None
        rest = transaction.content.data(data)
        if rest is None:
            self._watch_backlog(transaction)
        else:
            self._end_message(transaction)
        return rest

    def _take_chunk(self, data: bytes, *, last: bool) -> bytes | None:
        transaction = self.transaction
        assert transaction is not None and transaction.content is not None
        taken = data[: self._chunk] if len(data) > self._chunk else data
        self._chunk -= len(taken)
        transaction.content.bdat(taken)
        if self._chunk:
            self._watch_backlog(transaction)
            return None
        self._end_chunk(len(taken), last=last)
        return data[len(taken) :]

    def _end_chunk(self, octets: int, *, last: bool) -> None:
        transaction = self.transaction
        assert transaction is not None and transaction.content is not None
        content = transaction.content
        self.close_content()
        if last:
            content.last()
            self._end_message(transaction)
        elif content.refusal is not None:
            # RFC 3030 §2: after a refused chunk the transaction has failed; the chunks behind it are read over.
            self._refuse_content(transaction, content.refusal)
        elif octets:
            self.say(says.CHUNK_TAKEN)
            self._watch_backlog(transaction)
        else:
            self.idle(says.CHUNK_TAKEN)

    def _watch_backlog(self, transaction: Transaction) -> None:
        """While more of a message comes: whether there is still room, and whether the writer keeps up."""
        content, writer = transaction.content, transaction.held
        keep_free = self.reception.listener.min_free_bytes
        if content is not None and content.writer is not None and not self.reception.spool.room(0, keep_free=keep_free):
            # Nobody knows how long it will be: the rest is read over, or one message could fill the disk.
            content.refuse(says.NO_ROOM)
        if writer is not None and content is not None and content.writer is not None and writer.backlog > _MAX_BACKLOG:
            self.writer_full()

    def _end_message(self, transaction: Transaction) -> None:
        content = transaction.content
        assert content is not None
        self.close_content()
        if content.error is not None:
            self._report(content.error)
        if content.refusal is not None:
            self._refuse_content(transaction, content.refusal)
            return
        content.writer = None  # the commit's from here on
        writer, envelope = transaction.held, transaction.envelope
        assert writer is not None and envelope is not None
        body = writer.in_memory()
        if body is None:
            self.begin(self._commit_file(transaction), hold=True)
            return
        self.begin_commit()
        try:
            self.reception.spool.hand_in(envelope, body, partial(self._committed, transaction))
        except Exception as error:
            # Not from within: whoever handles what arrived is not done with it.
            self.loop.call_soon(self._committed, transaction, error)

    def _refuse_content(self, transaction: Transaction, reply: Reply) -> None:
        content = transaction.content
        assert content is not None
        self.refuse(reply, bytes=content.octets)
        self.abandon()
        self.transaction = None
        self._refused_mail = True

    async def _commit_file(self, transaction: Transaction) -> None:
        envelope, writer = transaction.envelope, transaction.held
        assert envelope is not None and writer is not None
        outcome: Committed | Exception
        try:
            body = await writer.finish()
            outcome = await self.reception.spool.commit(envelope, body)
        except Exception as error:
            outcome = error
        self._promise(transaction, outcome)

    def _committed(self, transaction: Transaction, outcome: Committed | Exception) -> None:
        try:
            self._promise(transaction, outcome)
        except Exception as error:
            self._our_fault(error)
        self.committed()

    def _promise(self, transaction: Transaction, outcome: Committed | Exception) -> None:
        """What became of the commit: durable, then the promise."""
        envelope, writer, content = transaction.envelope, transaction.held, transaction.content
        assert envelope is not None and writer is not None and content is not None
        if isinstance(outcome, Exception):
            self._report(outcome)
            writer.discard()
            self.refuse(_refusal(outcome), bytes=content.octets)
            self.transaction = None
            self._refused_mail = True
            return
        self.transaction = None
        self.messages += 1
        self.bytes += content.size
        self._junk = self._errors = 0
        self._queue(b"250 2.0.0 ok, kept as %b\r\n" % envelope.message.encode("ascii", "replace"))
        self.promised()
        self._flush_alone()
        self._tell_accepted(transaction, outcome.duplicates, outcome.first)

    def _tell_accepted(self, transaction: Transaction, duplicates: tuple[str, ...], first: str | None) -> None:
        envelope, content = transaction.envelope, transaction.content
        assert envelope is not None and content is not None
        if duplicates:
            self.emit(
                MessageDuplicate(
                    message=envelope.message,
                    session=self.session_id,
                    provider=self.owner.provider,
                    round=self.owner.round,
                    sender=envelope.sender,
                    recipients=duplicates,
                    first=first or "",
                )
            )
        fresh = tuple(given for given, _ in envelope.recipients if given not in duplicates)
        if fresh:
            self.emit(
                MessageAccepted(
                    message=envelope.message,
                    session=self.session_id,
                    provider=self.owner.provider,
                    round=self.owner.round,
                    sender=envelope.sender,
                    recipients=fresh,
                    bytes=content.size,
                    wire_bytes=content.wire,
                    seconds=self.loop.time() - transaction.started,
                )
            )
