"""What goes on, in one snapshot: events are folded into it, the contract's JSON and one screen are made from it.

Pure: time comes in with each event and as `now`. ``fold`` is the snapshot, ``screen`` what people see of it,
``warnings`` decides when somebody must be told.
"""

from siteagent.status.fold import (
    Document,
    ListenerView,
    ProviderView,
    QueueView,
    SessionView,
    StatusFold,
    timestamp,
    urgent,
)
from siteagent.status.metrics import metrics
from siteagent.status.screen import Mood, Verdict, amount, counted, moment, render, verdict
from siteagent.status.warnings import KINDS, Warnings, not_in_force

__all__ = [
    "KINDS",
    "Document",
    "ListenerView",
    "Mood",
    "ProviderView",
    "QueueView",
    "SessionView",
    "StatusFold",
    "Verdict",
    "Warnings",
    "amount",
    "counted",
    "metrics",
    "moment",
    "not_in_force",
    "render",
    "timestamp",
    "urgent",
    "verdict",
]
