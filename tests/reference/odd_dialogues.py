"""What servers, boxes on the way, and attackers do that no manual lists, as dialogues for tests/scripted.py.

Each with what a client must make of it: never "started" by mistake, never waiting beyond its time, and where it can go
on, that it does. `provider_dialogues` has the servers that behave as themselves.
"""

from __future__ import annotations

from tests.reference.provider_dialogues import Entry

_KEYWORDS = "S: 250-mx.isp.example\nS: 250 ETRN"
_HELLO = f"S: 220 mx.isp.example ESMTP\nC: EHLO *\n{_KEYWORDS}"
_STARTTLS = _HELLO.replace("S: 250 ETRN", "S: 250-STARTTLS\nS: 250 ETRN\nC: STARTTLS")
_A, _B = "C: ETRN office.example", "C: ETRN branch.example"
_QUIT = "C: QUIT\nS: 221 bye"
_STARTED = "S: 250 Queuing started"
_GOOD = "\n".join((_HELLO, _A, _STARTED, _B, _STARTED, _QUIT))
_BOTH = (("started", 250), ("started", 250))


def _lines(*rows: str) -> str:
    return "\n".join(rows)


def _first(*rows: str) -> str:
    """After the greeting and EHLO, and the first node."""
    return _lines(_HELLO, _A, *rows)


ODD: dict[str, Entry] = {
    "odd-421-greeting": Entry("421 instead of a greeting", "S: 421 4.3.2 too busy\n! close", (), failure="greeting"),
    "odd-421-ehlo": Entry(
        "421 as the answer to EHLO",
        "S: 220 mx.isp.example\nC: EHLO *\nS: 421 4.3.2 shutting down\n! close",
        (),
        failure="ehlo",
    ),
    "odd-421-etrn": Entry(
        "421 as the answer to ETRN", _first("S: 421 4.3.2 shutting down", "! close"), (("retry", 421),), failure="ask"
    ),
    "odd-421-between": Entry(
        "421 behind the answer for one node, before the next is asked for",
        _first(r"S= 250 Queuing started\r\n421 4.4.2 idle for too long\r\n", "! close"),
        (("started", 250), ("retry", 421)),
        failure="ask",
    ),
    "odd-silent-greeting": Entry("no greeting", "! silent", (), failure="greeting", impatient="command"),
    "odd-silent-ehlo": Entry(
        "no answer to EHLO", "S: 220 mx.isp.example\nC: EHLO *\n! silent", (), failure="ehlo", impatient="command"
    ),
    "odd-silent-second": Entry(
        "no answer for the second node; a new connection gets one",
        _first(_STARTED, _B, "! silent"),
        (("started", 250), ("unknown", None)),
        failure="ask",
        impatient="etrn",
    ),
    "odd-silent-quit": Entry(
        "no answer to QUIT", _first(_STARTED, _B, _STARTED, "C: QUIT", "! silent"), _BOTH, impatient="command"
    ),
    "odd-drip": Entry(
        "one octet at a time, slower than the deadline allows",
        _lines(_HELLO, "C: ETRN *", r"! drip 0.2 250 Queuing started\r\n"),
        (("unknown", None), ("unknown", None)),
        failure="ask",
        impatient="etrn",
    ),
    "odd-hang-up-etrn": Entry(
        "the connection ends instead of an answer", _first("! close"), (("unknown", None),), failure="ask"
    ),
    "odd-reset-etrn": Entry(
        "the connection is reset instead of an answer", _first("! drop"), (("unknown", None),), failure="ask"
    ),
    "odd-half-an-answer": Entry(
        "the connection ends within the answer",
        _first(r"S= 250 Queuing sta", "! close"),
        (("unknown", None),),
        failure="ask",
    ),
    "odd-hang-up-quit": Entry(
        "the connection ends at QUIT", _first(_STARTED, _B, _STARTED, "C: QUIT", "! drop"), _BOTH
    ),
    "odd-ehlo-refused": Entry(
        "EHLO refused, HELO taken, ETRN done all the same",
        _lines(
            "S: 220 mx.isp.example",
            "C: EHLO *",
            "S: 502 what?",
            "C: HELO *",
            "S: 250 mx.isp.example",
            _A,
            _STARTED,
            _B,
            _STARTED,
            _QUIT,
        ),
        _BOTH,
    ),
    "odd-ehlo-hang-up": Entry(
        "hung up on EHLO; HELO on a new connection",
        "S: 220 mx.isp.example\nC: EHLO *\n! close",
        _BOTH,
        connections=(_lines("S: 220 mx", "C: HELO *", "S: 250 mx", _A, _STARTED, _B, _STARTED, _QUIT),),
    ),
    "odd-bare-lf": Entry(
        "lines that end with LF alone",
        _lines(
            r"S= 220 mx.isp.example\n",
            "C: EHLO *",
            r"S= 250-mx.isp.example\n250 ETRN\n",
            _A,
            r"S= 250 Queuing started\n",
            _B,
            r"S= 250 Queuing started\n",
            "C: QUIT",
            r"S= 221 bye\n",
        ),
        _BOTH,
    ),
    "odd-blank-lines": Entry(
        "blank lines between the answers", _first(r"S= \r\n\r\n250 Queuing started\r\n\r\n", _B, _STARTED, _QUIT), _BOTH
    ),
    "odd-no-text": Entry(
        "codes without a word", _first("S: 250", _B, "S: 251", _QUIT), (("started", 250), ("nothing", 251))
    ),
    "odd-eight-bit": Entry(
        "text in Latin-1, with an escape sequence",
        _first(r"S= 250 d\xe9marr\xe9 \x1b[31m\r\n", _B, _STARTED, _QUIT),
        _BOTH,
    ),
    "odd-nul": Entry(
        "NUL within the answer", _first(r"S= 250 Queuing\0 started\r\n"), (("unknown", None),), failure="ask"
    ),
    "odd-no-blank": Entry("250OK", _first("S: 250OK"), (("unknown", None),), failure="ask"),
    "odd-two-codes": Entry(
        "one answer with two codes", _first("S: 250-Queuing", "S: 251 started"), (("unknown", None),), failure="ask"
    ),
    "odd-code-of-six": Entry("a code that there is not", _first("S: 650 Queuing"), (("unknown", None),), failure="ask"),
    "odd-code-of-three": Entry("354: it waits for more", _first("S: 354 go ahead"), (("unknown", 354),), failure="ask"),
    "odd-unasked": Entry(
        "two answers to one command: the second is not that for the next node",
        _first(r"S= 250 Queuing started\r\n250 Queuing started\r\n"),
        (("started", 250), ("unknown", None)),
        failure="ask",
    ),
    "odd-endless-line": Entry(
        "a line without end", _first("! endless 4000000 250 more and more "), (("unknown", None),), failure="ask"
    ),
    "odd-endless-reply": Entry(
        "a reply without end", _first(r"! endless 4000000 250-more\r\n"), (("unknown", None),), failure="ask"
    ),
    "odd-http": Entry("a web server", r"S= HTTP/1.1 400 Bad Request\r\n\r\n", (), failure="greeting"),
    "odd-554-greeting": Entry(
        "554: no service for this address", "S: 554 5.7.1 listed\nC: QUIT\nS: 221 bye", (), failure="greeting"
    ),
    "odd-starttls-injection": Entry(
        "octets in clear behind the 220 of STARTTLS (RFC 3207 §4.2)",
        _lines(
            _STARTTLS,
            r"S= 220 ready\r\n250 Queuing started\r\n",
        ),
        (),
        failure="starttls",
        tls="opportunistic",
    ),
    "odd-starttls-refused": Entry(
        "STARTTLS offered and then refused: in clear, where nothing secret is sent",
        _lines(
            _STARTTLS,
            "S: 454 4.7.0 TLS not available",
            _A,
            _STARTED,
            _B,
            _STARTED,
            _QUIT,
        ),
        _BOTH,
        tls="opportunistic",
    ),
    "odd-starttls-dead": Entry(
        "STARTTLS offered, and no handshake comes of it: once more, in clear",
        _lines(
            _STARTTLS,
            "S: 220 ready",
            "! close",
        ),
        _BOTH,
        tls="opportunistic",
        connections=(_GOOD,),
    ),
}
