"""A process that accepts and files mail as fast as it can, to be killed or run under faults.

``python -m tests.storm STATE MAIL --seed X`` commits message after message, three at a time, every eighth of them too
large for memory, some for two mailboxes, and says on stdout ``ack N`` or ``nak N KIND`` of each, when it would answer
the sender. With ``--again N`` it sends messages 0 to N-1 in new sessions, as a provider does that heard no answer;
without messages (``--count 0``) it only does what a start does. Then it waits until all is filed, and says ``done``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import secrets
import sys
from pathlib import Path

from siteagent.delivery.filer import Filer
from siteagent.store.spool import Envelope, Spool, SpoolFailed
from tests.letters import HOST, content, maildir, put

_TOGETHER = 3


def message(seed: str, number: int) -> bytes:
    """The content of message `number`: told from all others by its first line and its size."""
    size = 300_000 if number % 8 == 7 else 1000 + number
    return content(size, f"{seed}-{number}")


def targets(number: int) -> tuple[str, ...]:
    return ("alice", "bob") if number % 5 == 4 else ("alice",)


class Storm:
    def __init__(self, options: argparse.Namespace) -> None:
        self.seed: str = options.seed
        self.numbers = iter(range(options.count if options.again is None else options.again))
        self.run = secrets.token_hex(4)
        self.boxes = {name: maildir(options.mail / name, name=name) for name in ("alice", "bob")}
        options.state.mkdir(exist_ok=True)
        self.spool = Spool(options.state)

    async def rage(self) -> None:
        filer = Filer(self.spool, self.boxes, emit=lambda event: None, retry_seconds=(0.2,))
        self.spool.on_committed, self.spool.place = filer.accept, filer.place
        owed = self.spool.open()
        keep = {filing.message for filing in owed}
        for box in self.boxes.values():
            with contextlib.suppress(OSError):  # tried again with the first message
                box.prepare()
            box.sweep(keep=keep, alive=alive, host=HOST, run=self.run)
        filer.accept(owed)
        say("ready")
        await asyncio.gather(*(self.sender() for _ in range(_TOGETHER)))
        while filer.view().messages:
            await asyncio.sleep(0.005)
        await filer.close()
        await self.spool.close()
        say("done")

    async def sender(self) -> None:
        for number in self.numbers:
            ident = f"1795000000.M{number:06d}P{os.getpid()}Q{number}R{self.run}.{HOST}"
            letter = Envelope(
                message=ident,
                session=ident,
                provider="isp",
                round="r",
                sender="a@x.test",
                recipients=tuple((f"{name}@office.example", name) for name in targets(number)),
                received=b"Received: x;\n\tnow\n",
                smtputf8=False,
                eight_bit=False,
            )
            try:
                await put(self.spool, letter, message(self.seed, number))
            except SpoolFailed as error:
                say(f"nak {number} {type(error).__name__}")
                await asyncio.sleep(0.01)
            else:
                say(f"ack {number}")


def alive(pid: int) -> bool:
    """A killed process that nobody has waited for yet is dead."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("state", type=Path)
    parser.add_argument("mail", type=Path)
    parser.add_argument("--seed", default="s")
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--again", type=int)
    asyncio.run(Storm(parser.parse_args()).rage())


if __name__ == "__main__":
    main()
