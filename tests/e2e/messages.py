"""Mail of many shapes, and what must lie in a Maildir for each.

A shape's `content` is the original with plain line ends, as a file. What a real Postfix changes on the way, and
what therefore counts as the same:

- It puts one Received line of its own on top, below ours.
- SMTP cannot carry a message whose last line has no end; the one that arrives has it.
- It drops Bcc, Content-Length and Return-Path from the header: no shape has one.
- A message that lacks the empty line between header and body gets one: only shapes with a header and that line here.
- It may fold lines at 998 octets and dress 8-bit text for 7 bits: switched off at the provider, since that is not
  what is being tested.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

NODES = ("office.example", "branch.example")
ALICE, BOB = "alice@office.example", "bob@office.example"
CAROL, DAVE = "carol@branch.example", "dave@branch.example"
MAILBOXES: Mapping[str, tuple[str, ...]] = {"alice": (ALICE,), "bob": (BOB,), "carol": (CAROL,), "dave": (DAVE,)}

CUT_HERE = "CUT-THE-LINE-HERE"
"""Stands in the middle of the shape that `marked` makes, and nowhere else."""
DEAF_FROM_HERE = "DEAF-FROM-HERE-ON"
"""Stands in its last lines."""


@dataclass(frozen=True, slots=True)
class Shape:
    """One message as its author wrote it. `recipients` may be of several mailboxes."""

    name: str
    sender: str
    recipients: tuple[str, ...]
    content: bytes

    def on_the_wire(self) -> bytes:
        """With CRLF line ends and an end to the last line; dots not yet stuffed."""
        text = self.content if self.content.endswith(b"\n") else self.content + b"\n"
        return text.replace(b"\n", b"\r\n")

    def as_filed(self) -> bytes:
        """What must lie in a Maildir below the headers that were put on top."""
        return self.on_the_wire().replace(b"\r\n", b"\n")


def _shape(number: int, what: str, recipients: Sequence[str], body: bytes, *, header: bytes = b"") -> Shape:
    name = f"{number:02d}-{what}"
    sender = f"author{number}@world.example"
    top = (
        f"From: <{sender}>\nTo: {', '.join(recipients)}\nSubject: {what}\n"
        f"Message-ID: <{name}@world.example>\nX-Shape: {name}\n"
    ).encode()
    return Shape(name, sender, tuple(recipients), top + header + b"\n" + body)


def _text(chance: random.Random, octets: int, width: int = 70) -> bytes:
    """Printable lines of `width`, about so many octets, each run different."""
    lines, size = [], 0
    while size < octets:
        line = bytes(chance.choices(b"abcdefghijklmnopqrstuvwxyz ABCDEFGHIJ0123456789,;", k=width))
        lines.append(line)
        size += len(line) + 1
    return b"\n".join(lines) + b"\n"


def _eight_bit(chance: random.Random, octets: int) -> bytes:
    """Every octet but NUL, CR and LF, in lines of up to 900."""
    alphabet = bytes(set(range(1, 256)) - {10, 13})
    lines = []
    while octets > 0:
        length = chance.randint(1, 900)
        lines.append(bytes(chance.choices(alphabet, k=length)))
        octets -= length + 1
    return b"\n".join(lines) + b"\n"


def _special(chance: random.Random) -> list[tuple[str, bytes]]:
    """The shapes that have broken mail programs."""
    long_line = bytes(chance.choices(b"0123456789abcdef", k=5000))
    return [
        ("plain", b"Hello.\n"),
        ("empty-body", b""),
        ("one-empty-line", b"\n"),
        ("many-empty-lines", b"\n" * 2000),
        ("no-final-newline", b"the last line has no end"),
        ("leading-dots", b".\n..\n...\n.a\n..b\n.\n\n. \n" * 20),
        ("dot-at-the-end", b"text\n."),
        ("only-dots", b".\n" * 500),
        ("long-lines", (long_line + b"\n") * 5),
        ("long-lines-with-dots", (b"." + long_line + b"\n.\n") * 5),
        ("long-line-without-end", long_line),
        ("utf-8", "Grüße aus Ærøskøbing – 東京 – Ελλάδα\n".encode() * 40),
        ("latin-1", "Grüße, façade, señor\n".encode("latin-1") * 40),
        ("every-octet", _eight_bit(chance, 20_000)),
        ("control-characters", bytes(range(1, 10)) + bytes(range(14, 32)) + b"\x7f\n" + b"\x1a\n\x04\n\x1b[31m\n"),
        ("looks-like-smtp", b"QUIT\nRSET\nMAIL FROM:<x@world.example>\nDATA\n.\nQUIT\n"),
        ("looks-like-mbox", b"From someone Mon Jan  1 00:00:00 2001\n>From quoted\nFrom again\n" * 10),
        ("blanks-at-line-ends", b"trailing blank \ntrailing tab\t\n \n\t\n" * 50),
        ("many-short-lines", b"a\n" * 20_000),
    ]


def shapes() -> list[Shape]:
    """Fifty messages from 1 kB to 2 MB for two nodes, the same at every call."""
    chance = random.Random(1985)
    ones = [(ALICE,), (BOB,), (CAROL,), (DAVE,)]
    made: list[Shape] = []
    for what, body in _special(chance):
        made.append(_shape(len(made), what, ones[len(made) % 4], body))
    header = b"X-Folded: one\n two\n\tthree\nX-Long: " + b"h" * 2000 + b"\nX-Empty:\n"
    made.append(_shape(len(made), "strange-header", (ALICE,), b"see above\n", header=header))
    for what, recipients in (
        ("three-recipients", (ALICE, BOB, CAROL)),
        ("three-recipients-of-one-node", (ALICE, BOB, "postmaster@office.example")),
        ("four-recipients", (ALICE, BOB, CAROL, DAVE)),
        ("large-for-three", (DAVE, ALICE, BOB)),
    ):
        made.append(_shape(len(made), what, recipients, _text(chance, 300_000 if "large" in what else 3_000)))
    made.append(_shape(len(made), "two-megabytes", (CAROL,), _text(chance, 2_000_000)))
    made.append(_shape(len(made), "two-megabytes-8-bit", (ALICE,), _eight_bit(chance, 1_990_000)))
    made.append(_shape(len(made), "one-line-of-a-megabyte", (BOB,), b"x" * 1_000_000 + b"\n"))
    while len(made) < 50:
        octets = int(1_000 * 1.22 ** (len(made) - 27))
        made.append(_shape(len(made), f"text-{octets}", ones[len(made) % 4], _text(chance, octets)))
    return made


def simple(count: int, *, octets: int = 2_000, recipients: Sequence[str] = (ALICE,), first: int = 0) -> list[Shape]:
    """So many plain messages, each different; numbered from `first`."""
    chance = random.Random(first + 1)
    return [_shape(first + n, f"simple-{first + n}", recipients, _text(chance, octets)) for n in range(count)]


def marked(number: int = 900, *, octets: int = 2_000_000, recipients: Sequence[str] = (ALICE,)) -> Shape:
    """A large message with CUT_HERE in its middle and DEAF_FROM_HERE in its last lines.

    Each marker stands there three times close together: a packet's border falls into one of them at most.
    """
    chance = random.Random(number)
    cut, deaf = ((marker + "\n").encode() * 3 for marker in (CUT_HERE, DEAF_FROM_HERE))
    half = _text(chance, octets // 2)
    return _shape(number, f"marked-{number}", recipients, half + cut + _text(chance, octets // 2) + deaf)


# --- what lies in the Maildirs ----------------------------------------------------------------------------------------

_OURS = (b"Return-Path", b"Delivered-To", b"Received")
_FIELD = re.compile(rb"([!-9;-~]+):[^\n]*\n(?:[ \t][^\n]*\n)*")


def take_trace(filed: bytes, *, hops: int = 1) -> tuple[dict[str, str], bytes]:
    """Our three header fields, by name, and the message below them and below `hops` Received fields of others.

    Raises AssertionError where those are not exactly what lies on top.
    """
    ours: dict[str, str] = {}
    position = 0
    for wanted in (*_OURS, *([b"Received"] * hops)):
        field = _FIELD.match(filed, position)
        found = field[1] if field else filed[position : position + 60]
        assert field is not None and found == wanted, f"{wanted!r} expected on top, found {found!r}"
        ours.setdefault(wanted.decode(), field[0].partition(b":")[2].decode("utf-8", "replace").strip())
        position = field.end()
    return ours, filed[position:]


def expected(filed: bytes, *, hops: int = 1) -> bytes:
    """What of a file in a Maildir must equal `Shape.as_filed`."""
    return take_trace(filed, hops=hops)[1]


def difference(wanted: bytes, found: bytes) -> str | None:
    """Where two contents part, in words; None where they are equal."""
    if wanted == found:
        return None
    at = next((i for i, (a, b) in enumerate(zip(wanted, found, strict=False)) if a != b), min(len(wanted), len(found)))
    window = slice(max(0, at - 20), at + 40)
    sizes = f"{len(wanted)} octets wanted, {len(found)} found"
    return f"{sizes}, from octet {at}: wanted {wanted[window]!r}, found {found[window]!r}"


def files_of(maildir: Path) -> list[Path]:
    """What a reader sees in a Maildir: new/ and cur/."""
    return sorted(path for part in ("new", "cur") for path in (maildir / part).glob("*"))


def note_of(path: Path) -> str:
    """The warning that a file of a Maildir tells the postmaster of; empty: it is mail that somebody sent."""
    found = re.search(rb"^X-Siteagent-Warning: (\S+)$", path.read_bytes(), re.MULTILINE)
    return found[1].decode() if found else ""


def wrong_in(
    maildirs: Mapping[str, Path],
    sent: Iterable[Shape],
    *,
    addresses: Mapping[str, Sequence[str]] = MAILBOXES,
    postmaster: str = "alice",
    hops: int = 1,
) -> list[str]:
    """What is wrong with what lies in `maildirs` after `sent`: missing, twice, changed, foreign. Empty: all is well.

    A mailbox with two of a message's recipients gets one file of it. Our own notes to the postmaster are not looked at.
    """
    owner = {address: name for name, those in addresses.items() for address in those}
    wanted: dict[str, dict[str, Shape]] = {name: {} for name in maildirs}
    for shape in sent:
        for recipient in shape.recipients:
            name = postmaster if recipient.startswith("postmaster@") else owner[recipient]
            wanted[name][shape.name] = shape
    problems: list[str] = []
    for name, maildir in maildirs.items():
        problems += [f"{name}: {problem}" for problem in _wrong_in_one(maildir, wanted[name], addresses[name], hops)]
    return problems


def _wrong_in_one(maildir: Path, wanted: Mapping[str, Shape], own: Sequence[str], hops: int) -> list[str]:
    problems: list[str] = []
    seen: dict[str, str] = {}
    for path in files_of(maildir):
        filed = path.read_bytes()
        if note_of(path):
            continue
        try:
            trace, content = take_trace(filed, hops=hops)
        except AssertionError as problem:
            problems.append(f"{path.name}: {problem}")
            continue
        label = re.search(rb"^X-Shape: (\S+)$", content, re.MULTILINE)
        name = label[1].decode() if label else ""
        if name not in wanted:
            problems.append(f"{path.name}: {name or 'a message without a label'} does not belong here")
            continue
        shape = wanted[name]
        if name in seen:
            problems.append(f"{name} lies there twice: {seen[name]} and {path.name}")
        seen[name] = path.name
        if changed := difference(shape.as_filed(), content):
            problems.append(f"{name} was changed: {changed}")
        if trace["Return-Path"] != f"<{shape.sender}>":
            problems.append(f"{name}: Return-Path {trace['Return-Path']!r}")
        theirs = [a for a in (*own, "postmaster@office.example") if a in shape.recipients]
        if trace["Delivered-To"].strip("<>") not in theirs:
            problems.append(f"{name}: Delivered-To {trace['Delivered-To']!r}, not one of {theirs}")
    problems += [f"{name} is missing" for name in wanted if name not in seen]
    return problems
