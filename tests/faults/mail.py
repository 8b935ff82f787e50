"""The lab's mail: eight shapes, each message told from all others by its first line, and what became of it."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from tests.letters import content, files

DOMAIN = "office.example"
BOXES = ("alice", "bob", "carol")
_SMALL_BYTES, _LARGE_BYTES = 1000, 300_000  # below and above what the spool keeps in its database


@dataclass(frozen=True, slots=True)
class Shape:
    large: bool
    recipients: int
    chunked: bool

    def __str__(self) -> str:
        size = "large" if self.large else "small"
        return f"{size}, {self.recipients} to, {'BDAT' if self.chunked else 'DATA'}"


SHAPES = tuple(
    Shape(large, recipients, chunked)
    for large, recipients, chunked in itertools.product((False, True), (1, 3), (False, True))
)


@dataclass(frozen=True, slots=True)
class Letter:
    """One message. Its number and the seed are its first line; its size differs by its number too."""

    seed: str
    number: int
    shape: Shape

    @property
    def boxes(self) -> tuple[str, ...]:
        return BOXES[: self.shape.recipients]

    @property
    def content(self) -> bytes:
        """LF line ends."""
        size = (_LARGE_BYTES if self.shape.large else _SMALL_BYTES) + self.number
        return content(size, f"{self.seed}-{self.number}")


def letters(seed: str, count: int, *, shapes: Iterable[Shape] = SHAPES, first: int = 0) -> list[Letter]:
    """`count` messages, the shapes in turn."""
    turn = itertools.cycle(shapes)
    return [Letter(seed, first + number, next(turn)) for number in range(count)]


@dataclass
class Found:
    """What stands in the Maildirs: copies by (number, box), and files that are not whole."""

    copies: Counter[tuple[int, str]] = field(default_factory=Counter)
    partial: list[str] = field(default_factory=list)


@dataclass
class Verdict:
    """Four kinds of wrong, each a list of sentences. The lab's loops add up what they find in one of these."""

    lost: list[str] = field(default_factory=list)
    partial: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        """Whether anything is wrong."""
        return any((self.lost, self.partial, self.doubled, self.wrong))

    def take(self, other: Verdict, *, mark: str = "") -> None:
        """Adds the other's sentences, with a mark in front that says where they come from."""
        for kind in fields(self):
            getattr(self, kind.name).extend(f"{mark}{one}" for one in getattr(other, kind.name))

    @property
    def sentences(self) -> list[str]:
        return [f"{kind.name}: {one}" for kind in fields(self) for one in getattr(self, kind.name)]


def look(mail: Path, known: Mapping[int, Letter]) -> Found:
    """Reads ``new/`` and ``cur/`` of all boxes below `mail`."""
    found = Found()
    for box in BOXES:
        for name, data in {**files(mail / box / "new"), **files(mail / box / "cur")}.items():
            match = re.search(rb"^Subject: \S+-(\d+)\n", data, re.MULTILINE)
            letter = known.get(int(match[1])) if match is not None else None
            if match is None or letter is None or data[match.start() :] != letter.content:
                found.partial.append(f"{box}/{name}: {len(data)} octets")
            else:
                found.copies[letter.number, box] += 1
    return found


def read(mail: Path) -> None:
    """A reader takes all that is in ``new/``: where it stood nothing tells any more that it was published."""
    for box in BOXES:
        for name in files(mail / box / "new"):
            (mail / box / "new" / name).rename(mail / box / "cur" / f"{name}:2,S")


def judge(mail: Path, sent: Iterable[Letter], promised: Iterable[Letter]) -> Verdict:
    """`promised` must be there, nothing of `sent` twice, and nothing in part."""
    found = look(mail, {letter.number: letter for letter in sent})
    missing = [
        (letter.number, box) for letter in promised for box in letter.boxes if not found.copies[letter.number, box]
    ]
    return Verdict(
        lost=[f"{number} for {box}" for number, box in missing],
        partial=found.partial,
        doubled=[f"{number} for {box}, {copies} times" for (number, box), copies in found.copies.items() if copies > 1],
    )
