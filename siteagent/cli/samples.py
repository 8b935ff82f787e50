"""The demo's mail: ten messages of different shapes, each a thing that mail programs really send."""

from __future__ import annotations

from dataclasses import dataclass
from email.message import EmailMessage
from email.policy import SMTP

DOMAIN = "office.example"
ALICE, BOB = f"alice@{DOMAIN}", f"bob@{DOMAIN}"


@dataclass(frozen=True, slots=True)
class Sample:
    """`content` as it is handed to the hub: CRLF line ends, dots not stuffed."""

    title: str
    sender: str
    recipients: tuple[str, ...]
    content: bytes


def samples(count: int) -> list[Sample]:
    """`count` messages: the ten shapes, over and over, none like another."""
    return [_SHAPES[n % len(_SHAPES)](n) for n in range(count)]


def _sample(n: int, title: str, body: bytes, *, to: tuple[str, ...] = (ALICE,), sender: str = "") -> Sample:
    sender = sender or f"friend{n}@far.example"
    head = (
        f"From: <{sender}>\r\nTo: {', '.join(to)}\r\nSubject: {title}\r\n"
        f"Message-ID: <demo-{n}@far.example>\r\nDate: Sun, 22 Nov 2026 08:00:00 +0000\r\n\r\n"
    )
    return Sample(title, sender, to, head.encode() + body)


def _short(n: int) -> Sample:
    return _sample(n, "a short note", b"The ship leaves at nine.\r\n")


def _letters(n: int) -> Sample:
    return _sample(n, "letters beyond ASCII", "Grüße aus Łódź, 東京 and Αθήνα.\r\n".encode())


def _dots(n: int) -> Sample:
    return _sample(n, "lines that begin with dots", b".\r\n..\r\n...three\r\n.hidden\r\n")


def _long_line(n: int) -> Sample:
    return _sample(n, "a line of 5,000 characters", b"x" * 5000 + b"\r\n")


def _three(n: int) -> Sample:
    return _sample(n, "for two mailboxes", b"To both of you.\r\n", to=(ALICE, BOB))


def _attachment(n: int) -> Sample:
    message = EmailMessage(policy=SMTP)
    message["From"], message["To"], message["Subject"] = f"friend{n}@far.example", BOB, "with an attachment"
    message["Message-ID"], message["Date"] = f"<demo-{n}@far.example>", "Sun, 22 Nov 2026 08:00:00 +0000"
    message.set_content("The chart you asked for.\n")
    message.add_attachment(bytes(range(256)) * 240, maintype="image", subtype="png", filename="chart.png")
    return Sample("with an attachment", f"friend{n}@far.example", (BOB,), message.as_bytes())


def _bounce(n: int) -> Sample:
    sample = _sample(n, "a non-delivery notice", b"Your message could not be delivered.\r\n", to=(BOB,))
    return Sample(sample.title, "", sample.recipients, sample.content)


def _large(n: int) -> Sample:
    line = b"0123456789abcdef" * 4 + b"\r\n"
    return _sample(n, "half a megabyte", line * 7600)


def _folder(n: int) -> Sample:
    return _sample(n, "to alice+lists", b"By subaddress.\r\n", to=(f"alice+lists@{DOMAIN}",))


def _empty(n: int) -> Sample:
    return _sample(n, "nothing but a subject", b"", to=(f"postmaster@{DOMAIN}",))


_SHAPES = (_short, _letters, _dots, _long_line, _three, _attachment, _bounce, _large, _folder, _empty)
