"""``docs/providers.md``: its table is printed from runs of the asker against every dialogue of `provider_dialogues`.

Print it anew with ``python -m tests.reference.providers_page``, in the root of the repository; a test keeps it fresh.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

from siteagent.rounds import policy
from siteagent.rounds.machine import Signal
from siteagent.wire.etrn import NodeAnswer
from tests.asking import Asked, asking, limits
from tests.reference.provider_dialogues import DIALOGUES, Entry

PAGE = Path(__file__).resolve().parents[2] / "docs" / "providers.md"
BLOCK = re.compile(r"(<!-- table -->\n)(.*?)(<!-- end of table -->)", re.DOTALL)

# What becomes of a round by what the answers mean together (siteagent/rounds/policy.py).
_THEN = {
    Signal.AGREED: "waits for its connection",
    Signal.NOTHING: "over: nothing waits",
    Signal.REFUSED: "asked again at the next link event, or after 1 h, doubling to 24 h",
    Signal.FAILED: "asked again after the pauses of `retry_seconds`",
}
_BUSY = "asked again after 30, 60 and 120 s; then it counts as refused"


async def played(entry: Entry, *, silent: bool = False) -> Asked:
    """One ask against the dialogue."""
    patience = limits(etrn_reply_seconds=0.1) if silent else limits()
    return await asking(entry.text, *entry.connections, nodes=entry.nodes, tls="off", limit=patience)


def table() -> str:
    """A row for each dialogue."""

    async def rows() -> list[str]:
        names = list(DIALOGUES)
        runs = await asyncio.gather(*(played(DIALOGUES[name], silent="silent" in name) for name in names))
        return [_row(name, DIALOGUES[name], run) for name, run in zip(names, runs, strict=True)]

    head = ["| server | it says | siteagent | and then | says to a person |", "|---|---|---|---|---|"]
    return "\n".join([*head, *asyncio.run(rows())]) + "\n"


def _row(name: str, entry: Entry, run: Asked) -> str:
    answers = run.result.answers
    verdict = policy.merged(entry.nodes, answers, run.result.failure)
    busy = policy.Patience().after(answers).pause is not None
    then = _BUSY if busy and verdict.signal is Signal.FAILED else _THEN[verdict.signal]
    if verdict.trouble:
        then += "; incomplete: asked again after 60 s"
    if len(run.server.heard) > 1:
        then = f"{len(run.server.heard)} connections; {then}"
    fixes = dict.fromkeys(answer.fix for answer in answers if answer.fix)
    said = dict.fromkeys(f"`{_said(answer)}`" for answer in answers)
    made = dict.fromkeys(_made(answer) for answer in answers)
    cells = (f"**{name}**: {entry.source}", ", ".join(said), ", ".join(made), then, "; ".join(fixes) or "-")
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _said(answer: NodeAnswer) -> str:
    return f"{answer.code} {answer.text}".strip() if answer.code is not None else "no answer"


def _made(answer: NodeAnswer) -> str:
    return f"{answer.outcome.value} ({answer.promised})" if answer.promised is not None else answer.outcome.value


def with_table(page: str) -> str:
    """The page with its table made anew."""
    made = table()
    fresh, count = BLOCK.subn(lambda match: match[1] + made + match[3], page)
    assert count == 1, f"{PAGE.name} needs one block of the table"
    return fresh


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text("utf-8")), encoding="utf-8")
