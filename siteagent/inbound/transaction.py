"""One message under way, between MAIL and the answer to its end."""

from __future__ import annotations

from siteagent.inbound.body import Content
from siteagent.store.spool import BodyWriter, Envelope


class Transaction:
    """From MAIL to the answer to its end. `recipients`: (address, target), in order; `named`: how many were tried."""

    __slots__ = (
        "content",
        "eight_bit",
        "envelope",
        "held",
        "named",
        "recipients",
        "refused",
        "sender",
        "size",
        "smtputf8",
        "started",
        "told_too_many",
    )

    def __init__(self, sender: str, *, started: float, size: int, eight_bit: bool, smtputf8: bool) -> None:
        self.sender = sender
        self.started = started
        self.size = size
        self.eight_bit = eight_bit
        self.smtputf8 = smtputf8
        self.recipients: list[tuple[str, str]] = []
        self.named = 0
        self.refused = False
        self.told_too_many = False
        self.content: Content | None = None
        self.envelope: Envelope | None = None
        self.held: BodyWriter | None = None
