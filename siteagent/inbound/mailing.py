"""MAIL and RCPT: who writes to whom, and all that can be refused before a message travels."""

from __future__ import annotations

import re
from collections.abc import Mapping

from siteagent.inbound import says
from siteagent.inbound.manners import Manners
from siteagent.inbound.transaction import Transaction
from siteagent.wire import address
from siteagent.wire.address import Argument, Fault
from siteagent.wire.reply import Reply

_SIZE = re.compile(r"[0-9]{1,20}\Z")
_FAULTS: Mapping[Fault, Reply] = {
    Fault.SYNTAX: says.ADDRESS_SYNTAX,
    Fault.CONTROL: says.ADDRESS_CONTROL,
    Fault.ENCODING: says.ADDRESS_ENCODING,
    Fault.LENGTH: says.ADDRESS_LENGTH,
    Fault.PARAMETER: says.PARAMETER_SYNTAX,
}
_SENDER_OK = bytes(says.SENDER_OK)
_RECIPIENT_OK = bytes(says.RECIPIENT_OK)


class Mailing(Manners):
    """The verbs that build an envelope."""

    def verb_MAIL(self, argument: bytes) -> None:
        if not self.session.host_name:
            self.out_of_order(says.HELLO_FIRST)
            return
        if self.reception.listener.require_tls and not self.tls and not self.reversed:
            self.wrong(says.TLS_FIRST)
            return
        if self.transaction is not None:
            self.out_of_order(says.NESTED_MAIL)
            return
        found = address.mail_argument(argument)
        if isinstance(found, Fault):
            self._refused_mail = True
            self.wrong(_FAULTS.get(found, says.MAIL_SYNTAX))
            return
        transaction = self._opened(found)
        if isinstance(transaction, Reply):
            self._refused_mail = True
            self.wrong(transaction)
            return
        refusal = self._too_big(transaction.size)
        if refusal is not None:
            self._refused_mail = True
            self.refuse(refusal, sender=transaction.sender, bytes=transaction.size)
            return
        self.transaction = transaction
        self._refused_mail = False
        self._queue(_SENDER_OK)

    def _opened(self, found: Argument) -> Transaction | Reply:
        """The transaction that these parameters ask for, or what is wrong with them."""
        path, parameters = found
        size, eight_bit, smtputf8 = 0, False, False
        if parameters and not self.session.extended_smtp:
            return says.PARAMETER_UNKNOWN
        for keyword, value in parameters.items():
            if keyword == "SIZE":
                if value is None or not _SIZE.match(value):
                    return says.PARAMETER_SYNTAX
                size = int(value)
            elif keyword == "BODY":
                # BINARYMIME is not offered: its lines have no end (RFC 3030 §3).
                if value is None or value.upper() not in ("7BIT", "8BITMIME"):
                    return says.BODY_UNKNOWN
                eight_bit = value.upper() == "8BITMIME"
            elif keyword == "SMTPUTF8":
                if value is not None:
                    return says.PARAMETER_SYNTAX
                smtputf8 = True
            elif keyword != "AUTH":
                # Lenient: AUTH= (RFC 4954 §5) is sent by some that were never offered AUTH. It is ignored.
                return says.PARAMETER_UNKNOWN
        if not path.ascii and not smtputf8:
            return says.NEEDS_SMTPUTF8
        return Transaction(path.address, started=self.loop.time(), size=size, eight_bit=eight_bit, smtputf8=smtputf8)

    def _too_big(self, size: int) -> Reply | None:
        """What a message of `size` declared octets (0: not declared) is told before it travels."""
        listener = self.reception.listener
        if listener.max_message_bytes and size > listener.max_message_bytes:
            return says.TOO_BIG
        defer_above = self.reception.defer_above(self.owner.provider)
        if defer_above and size > defer_above:
            return says.TOO_BIG_NOW
        if not self.reception.spool.room(size, keep_free=listener.min_free_bytes):
            return says.NO_ROOM
        return None

    def verb_RCPT(self, argument: bytes) -> None:
        transaction = self.transaction
        if transaction is None:
            # Behind a refused MAIL of the same burst this is no error of the peer's.
            if self._refused_mail:
                self.say(says.MAIL_FIRST)
            else:
                self.out_of_order(says.MAIL_FIRST)
            return
        if transaction.content is not None:
            self.out_of_order(says.BDAT_GOES_ON)
            return
        transaction.named += 1
        found = address.rcpt_argument(argument)
        if isinstance(found, Fault):
            transaction.refused = True
            self.wrong(says.RCPT_SYNTAX if found is Fault.KEYWORD else _FAULTS[found])
            return
        path, parameters = found
        if parameters:
            transaction.refused = True
            self.wrong(says.PARAMETER_UNKNOWN)
            return
        if not path.ascii and not transaction.smtputf8:
            transaction.refused = True
            self.wrong(says.NEEDS_SMTPUTF8)
            return
        whole = path.address
        if transaction.named > self.reception.listener.max_recipients:
            # RFC 5321 §4.5.3.1.10: 452, the rest comes in another transaction. Told once, or it would fill the log; and
            # refused ones count, or they would: ten octets of log and journal for one that was sent.
            if transaction.told_too_many:
                self.say(says.TOO_MANY_RECIPIENTS)
            else:
                transaction.told_too_many = True
                self.refuse(says.TOO_MANY_RECIPIENTS, recipient=whole)
            return
        target = self.reception.route(whole)
        if isinstance(target, Reply):
            self.refuse(target, recipient=whole)
            return
        transaction.recipients.append((whole, target))
        self._queue(_RECIPIENT_OK)
