"""One screen for people, made from the snapshot; its first line answers "does mail flow?".

Only the document is looked at, so that a file written by another release still shows what both know. Nothing that a
peer said reaches the terminal with a control character in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from typing import Any

from siteagent.status.warnings import AHEAD
from siteagent.wire.reply import printable


class Mood(IntEnum):
    """How the answer is meant, the worst last."""

    FLOWS = 0
    UNKNOWN = 1
    WAITS = 2
    LOOK = 3
    STOPPED = 4


@dataclass(frozen=True, slots=True)
class Verdict:
    mood: Mood
    sentence: str


Part = Mapping[str, Any]

_FAILED = {
    "refused": "it refuses",
    "failed": "the last attempt failed",
}


# --- does mail flow? --------------------------------------------------------------------------------------------------


def verdict(document: Part, *, now: datetime, running: bool) -> Verdict:
    """The answer. `running`: somebody holds the agent's lock; `now` carries the zone that people read times in."""
    state = document.get("state")
    if not running:
        return Verdict(Mood.STOPPED, "mail does not flow: the agent is not running")
    if state == "starting":
        return Verdict(Mood.UNKNOWN, "not known yet: the agent is starting")
    if state in ("stopping", "stopped"):
        return Verdict(Mood.STOPPED, "mail does not flow: the agent is stopping")
    warnings = document.get("warnings") or []
    now_wrong = [each for each in warnings if each.get("name") not in AHEAD]
    if now_wrong:
        return Verdict(Mood.LOOK, f"mail does not flow as it should: {_warned(now_wrong[0], warnings)}")
    answer = _flow(document, now)
    if warnings:
        return Verdict(max(answer.mood, Mood.LOOK), f"{answer.sentence}. But {_warned(warnings[0], warnings)}")
    return answer


def _warned(first: Part, warnings: Sequence[Part]) -> str:
    more = f" (and {len(warnings) - 1} more below)" if len(warnings) > 1 else ""
    return f"{printable(first['text'])}{more}"


def _flow(document: Part, now: datetime) -> Verdict:
    """The answer of a running agent, whatever it warns of."""
    arriving = document.get("sessions_open") or []
    if arriving:
        names = sorted({each.get("provider") or each["peer"] for each in arriving})
        return Verdict(Mood.FLOWS, f"mail is coming in from {' and '.join(names)}")
    link = document.get("link") or {}
    if not link.get("up"):
        since = f" (down since {moment(link['since'], now)})" if link.get("since") else ""
        return Verdict(Mood.WAITS, f"mail waits for the line{since}")
    answers = [_provider_verdict(provider, now) for provider in document.get("providers") or []]
    if not answers:
        return Verdict(Mood.UNKNOWN, "no provider is configured")
    return max(answers, key=lambda answer: answer.mood)


def _provider_verdict(provider: Part, now: datetime) -> Verdict:
    name, last = provider["name"], provider.get("last_round")
    if provider["state"] == "down":
        return Verdict(Mood.WAITS, f"mail from {name} waits for the line")
    if last is None:
        return Verdict(Mood.UNKNOWN, f"not known yet: {name} was not asked before")
    outcome, at = last.get("outcome"), moment(last.get("ended"), now)
    if outcome is None:
        return Verdict(Mood.FLOWS, f"{name} is being asked now, {_brought(last)} so far")
    again = f", next attempt {moment(provider['next_ask'], now)}" if provider.get("next_ask") else ""
    if outcome in _FAILED:
        reason = f": {printable(last['reason'])}" if last.get("reason") else ""
        return Verdict(Mood.LOOK, f"mail does not flow from {name}: {_FAILED[outcome]}{reason}{again}")
    if outcome == "incomplete":
        return Verdict(Mood.LOOK, f"mail flows in part: some stayed with {name} at {at}{again}")
    if outcome == "link-lost":
        return Verdict(Mood.WAITS, f"the line went away while {name} was sending, at {at}{again}")
    if outcome == "silent":
        return Verdict(
            Mood.UNKNOWN, f"nothing came: {name} agreed to send at {at} and had nothing, or did not reach us"
        )
    if outcome == "asked":
        return Verdict(Mood.FLOWS, f"mail flows: {name} was asked at {at}; another server receives")
    if outcome == "nothing":
        return Verdict(Mood.FLOWS, f"mail flows: {name} had nothing for us at {at}")
    return Verdict(Mood.FLOWS, f"mail flows: {_brought(last)} from {name} at {at}")


# --- the screen -------------------------------------------------------------------------------------------------------

_LABEL = 10
_LEAST_SECONDS = 1  # a rate over less says nothing


def render(document: Part, *, now: datetime, running: bool) -> str:
    """The whole screen, lines ended by LF. No colour: the command line paints the first line by its `Mood`."""
    rows = [verdict(document, now=now, running=running).sentence, ""]
    rows += _rows("agent", _agent(document, now, running=running))
    rows += _rows("line", _line(document.get("link") or {}, now) if running else ["not watched"])
    rows += _rows("listener", _listener(document.get("listener") or {}, running=running))
    for provider in document.get("providers") or []:
        rows += _rows(printable(provider["name"]), _provider(provider, now, running=running))
    rows += _rows("arriving", [_arriving(each, now) for each in document.get("sessions_open") or []])
    rows += _rows("to file", [_queue(document.get("queue") or {}, now)])
    totals = document.get("totals") or {}
    rows += _rows(
        "in all",
        [
            f"{_count(totals.get('rounds', 0), 'round')}, {_count(totals.get('messages', 0), 'message')}, "
            f"{amount(totals.get('bytes', 0))}"
        ],
    )
    for warning in document.get("warnings") or []:
        fix = [f"  fix: {printable(warning['fix'])}"] if warning.get("fix") else []
        rows += _rows("WARNING", [f"{printable(warning['text'])}, since {moment(warning['since'], now)}", *fix])
    return "\n".join(rows) + "\n"


def _rows(label: str, values: list[str]) -> Iterator[str]:
    for index, value in enumerate(values):
        if index == 0 and len(label) > _LABEL:
            yield label
            yield f"{'':{_LABEL}}  {value}"
        else:
            yield f"{label if index == 0 else '':{_LABEL}}  {value}"


def _agent(document: Part, now: datetime, *, running: bool) -> list[str]:
    if not running:
        return ["not running; what follows is what it saw last"] if document.get("providers") else ["not running"]
    return [f"{document.get('state')}, process {document.get('pid')}, since {moment(document.get('since'), now)}"]


def _line(link: Part, now: datetime) -> list[str]:
    since = f", since {moment(link['since'], now)} ({printable(link.get('cause') or '')})" if link.get("since") else ""
    return [f"up: {link.get('interface')}, {link.get('source')}{since}" if link.get("up") else f"down{since}"]


def _listener(listener: Part, *, running: bool) -> list[str]:
    addresses = ", ".join(listener.get("addresses") or [])
    if not addresses:
        return ["none: another server receives"] if running else ["closed"]
    return [f"{'open' if listener.get('open') else 'closed'}: {addresses}"]


def _provider(provider: Part, now: datetime, *, running: bool) -> list[str]:
    rows = []
    if running:
        planned = f", asks again {moment(provider['next_ask'], now)}" if provider.get("next_ask") else ""
        rows.append(f"{provider['state']}{planned}")
    last = provider.get("last_round")
    if last is None:
        return [*rows, "no round yet"]
    why = f" ({printable(last['reason'])})" if last.get("reason") else ""
    begun = moment(last["started"], now)
    if last.get("ended"):
        rows.append(f"last round {begun} to {moment(last['ended'], now)}: {last['outcome']}{why}")
    else:
        rows.append(f"{'round since' if running else 'round, broken off, of'} {begun}{why}")
    extra = [
        f"{last[key]} {word}"
        for key, word in (("files", "filed"), ("duplicates", "had before"), ("refused", "refused"))
        if last.get(key)
    ]
    rows.append(", ".join([_brought(last), *extra]))
    for node in last.get("nodes") or []:
        code = node["code"] if node.get("code") is not None else "no answer"
        rows.append(
            f"  {node['node']}: {node['outcome']} ({code} {printable(node.get('text') or '')})".replace(" )", ")")
        )
    for held in last.get("deferred") or []:
        rows.append(
            f"  stays there: {amount(held['bytes'])}, {held['code']} {printable(held['reason'])}, "
            f"since {moment(held['since'], now)}"
            + (f"; it returns it to the sender about {moment(held['gives_up'], now)}" if held.get("gives_up") else "")
        )
    return rows


def _arriving(session: Part, now: datetime) -> str:
    who = f"{session.get('provider') or 'unknown'} at {printable(session['peer'])}"
    since = f"since {moment(session['since'], now)}"
    return f"{who}: {', '.join([*_progress(session), since])}"


def _progress(session: Part) -> Iterator[str]:
    """How far the message that is arriving came: ``12.3 MB of 40.0 MB (31 %)``, the rate, the time that is left."""
    arrived, size, seconds = session["bytes"], session.get("size") or 0, session.get("seconds") or 0
    if not (arrived or size):
        yield "between two messages"
        return
    # A sender may send more than it declared; there is nothing left to foretell then.
    yield f"{amount(arrived)} of {amount(size)} ({arrived * 100 // size} %)" if size > arrived else amount(arrived)
    if arrived and seconds >= _LEAST_SECONDS:
        rate = arrived / seconds
        yield f"{amount(round(rate))}/s"
        if size > arrived:
            yield f"about {duration((size - arrived) / rate)} left"


def _queue(queue: Part, now: datetime) -> str:
    if not queue.get("messages"):
        return "nothing waits"
    oldest = f", the oldest since {moment(queue['oldest'], now)}" if queue.get("oldest") else ""
    reason = f": {printable(queue['reason'])}" if queue.get("reason") else ""
    return f"{_count(queue['messages'], 'message')}{oldest}{reason}"


def _brought(last: Part) -> str:
    messages = last.get("messages", 0)
    return f"{_count(messages, 'message')}, {amount(last.get('bytes', 0))}" if messages else "no message"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


# --- words for figures ------------------------------------------------------------------------------------------------


def amount(octets: int) -> str:
    """``981 B``, ``12.3 kB``, ``5.2 MB``: decimal, as lines and their prices are."""
    value = float(octets)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            break
        value /= 1000
    return f"{octets} B" if unit == "B" else f"{value:.1f} {unit}"


def duration(seconds: float) -> str:
    """``8 s``, ``12 min``, ``4 h 07 min``: how long something will take, no more exact than anybody can know."""
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def counted(number: int, what: str) -> str:
    """``1 message``, ``1,200 messages``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def moment(when: str | datetime | None, now: datetime) -> str:
    """A time as people read it, in the zone of `now`: ``08:00:28 CET``; with the date where it is another day's."""
    if when is None:
        return "never"
    at = (datetime.fromisoformat(when) if isinstance(when, str) else when).astimezone(now.tzinfo)
    pattern = "%H:%M:%S %Z" if at.date() == now.date() else "%Y-%m-%d %H:%M %Z"
    return at.strftime(pattern).rstrip()
