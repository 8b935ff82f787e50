"""``docs/providers.md``: its tables are printed from runs of the asker against every dialogue of this folder.

Print it anew with ``python -m tests.reference.providers_page``, in the root of the repository; a test keeps it fresh.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from pathlib import Path

from siteagent.rounds import policy
from siteagent.rounds.machine import Signal
from siteagent.wire.etrn import NodeAnswer
from tests.asking import Asked, asking, limits
from tests.reference.odd_dialogues import ODD
from tests.reference.provider_dialogues import DIALOGUES, Entry

PAGE = Path(__file__).resolve().parents[2] / "docs" / "providers.md"
TABLES = {"table": DIALOGUES, "odd": ODD}

# What becomes of a round by what the answers mean together (siteagent/rounds/policy.py).
_THEN = {
    Signal.AGREED: "waits for its connection",
    Signal.NOTHING: "over: nothing waits",
    Signal.REFUSED: "asked again at the next link event, or after 1 h, doubling to 24 h",
    Signal.FAILED: "asked again after the pauses of `retry_seconds`",
}
_BUSY = "asked again after 30, 60 and 120 s; then it counts as refused"


async def played(entry: Entry) -> Asked:
    """One ask against the dialogue."""
    soon = {"": {}, "etrn": {"etrn_reply_seconds": 0.3}, "command": {"command_seconds": 0.5}}
    patience = limits(**soon[entry.impatient])
    return await asking(entry.text, *entry.connections, nodes=entry.nodes, tls=entry.tls, limit=patience)


def table(dialogues: Mapping[str, Entry]) -> str:
    """A row for each dialogue."""

    async def rows() -> list[str]:
        runs: dict[str, Asked] = {}
        for impatient in (False, True):  # apart: so many at once take longer than the deadlines that are to be met
            names = [name for name, entry in dialogues.items() if bool(entry.impatient) is impatient]
            done = await asyncio.gather(*(played(dialogues[name]) for name in names))
            runs |= dict(zip(names, done, strict=True))
        return [_row(name, entry, runs[name]) for name, entry in dialogues.items()]

    head = ["| server | it says | siteagent | and then | says to a person |", "|---|---|---|---|---|"]
    return "\n".join([*head, *asyncio.run(rows())]) + "\n"


def _row(name: str, entry: Entry, run: Asked) -> str:
    answers = run.result.answers
    failure = run.result.failure
    verdict = policy.merged(entry.nodes, answers, failure)
    busy = policy.Patience().after(answers).pause is not None
    then = _BUSY if busy and verdict.signal is Signal.FAILED else _THEN[verdict.signal]
    if verdict.trouble:
        then += "; incomplete: asked again after 60 s"
    if len(run.server.heard) > 1:
        then = f"{len(run.server.heard)} connections; {then}"
    fixes = dict.fromkeys(answer.fix for answer in answers if answer.fix)
    said = dict.fromkeys(f"`{_said(answer)}`" for answer in answers)
    made = dict.fromkeys(_made(answer) for answer in answers)
    if not answers and failure is not None:
        said, made, fixes = {f"at {failure.stage}": None}, {failure.reason: None}, {failure.fix: None}
    cells = (
        f"**{name}**: {entry.source}",
        ", ".join(said),
        ", ".join(made),
        then,
        "; ".join(filter(None, fixes)) or "-",
    )
    cells = tuple(re.sub(r"\bport \d+", "port 25", cell) for cell in cells)  # that of the scripted provider
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _said(answer: NodeAnswer) -> str:
    return f"{answer.code} {answer.text}".strip() if answer.code is not None else "no answer"


def _made(answer: NodeAnswer) -> str:
    return f"{answer.outcome.value} ({answer.promised})" if answer.promised is not None else answer.outcome.value


def with_tables(page: str) -> str:
    """The page with its tables made anew."""
    for name, dialogues in TABLES.items():
        block = re.compile(rf"(<!-- {name} -->\n)(.*?)(<!-- end of {name} -->)", re.DOTALL)
        made = table(dialogues)
        page, count = block.subn(lambda match, made=made: match[1] + made + match[3], page)
        assert count == 1, f"{PAGE.name} needs one block {name}"
    return page


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text("utf-8")), encoding="utf-8")
