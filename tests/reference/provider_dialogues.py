"""What real servers answer to ETRN, as dialogues for tests/scripted.py, with what a client must make of it.

From the sources and manuals named in `source`; the wording is theirs where it is known. One session each: the client
asks for `NODES`, two names, unless the entry says otherwise. `answers` are (outcome, code) for each node that gets an
answer; `failure` is the stage at which the conversation ends early.
"""

from __future__ import annotations

from dataclasses import dataclass

NODES = ("office.example", "branch.example")

# As they come; Postfix says QUIT together with its last dot and waits for neither answer (smtp_proto.c).
_CALLS = {
    "Postfix": "5 pipelined",
    "Exim": "1 pipelined",
    "Sendmail": "1 pipelined",
    "hMailServer": "2",
    "ZMailer": "4",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """`connections` holds further dialogues, for clients that must come again."""

    source: str
    text: str
    answers: tuple[tuple[str, int | None], ...]
    failure: str | None = None
    software: str = ""
    promised: tuple[int | None, ...] = ()
    nodes: tuple[str, ...] = NODES
    connections: tuple[str, ...] = ()
    tls: str = "off"
    impatient: str = ""  # the deadline to be met with soon, "etrn" or "command": the server is silent, or slow

    @property
    def calls(self) -> str:
        """How it connects in: over how many connections at a time, and whether it pipelines."""
        return _CALLS.get(self.software, "1")

    @property
    def agrees(self) -> bool:
        """Some node is started: the server will connect in."""
        return any(outcome == "started" for outcome, _ in self.answers)


def _session(greeting: str, keywords: tuple[str, ...], *exchanges: tuple[str, str]) -> str:
    """A whole session: greeting, EHLO with `keywords`, then (command, reply lines) and QUIT."""
    rows = [f"S: 220 {greeting}", "C: EHLO *"]
    lines = ("mx.isp.example", *keywords)
    rows += [f"S: 250{'-' if i < len(lines) - 1 else ' '}{line}" for i, line in enumerate(lines)]
    for command, reply in exchanges:
        rows.append(f"C: {command}")
        rows += [f"S: {row}" for row in reply.split("\n")]
    return "\n".join([*rows, "C: QUIT", "S: 221 2.0.0 Bye"])


def _hello(greeting: str, keywords: tuple[str, ...]) -> str:
    """The beginning of a session."""
    return _session(greeting, keywords).removesuffix("\nC: QUIT\nS: 221 2.0.0 Bye")


_A, _B = (f"ETRN {node}" for node in NODES)
_POSTFIX = ("mx.isp.example ESMTP Postfix", ("PIPELINING", "SIZE 10240000", "ETRN", "ENHANCEDSTATUSCODES", "8BITMIME"))
_EXIM = ("mx.isp.example ESMTP Exim 4.99 Sun, 22 Nov 2026 08:00:00 +0000", ("SIZE 52428800", "ETRN", "HELP"))
_SENDMAIL = ("mx.isp.example ESMTP Sendmail 8.17.1/8.17.1; Sun, 22 Nov 2026 08:00:00 GMT", ("EXPN", "ETRN", "HELP"))
_HMAIL = ("mx.isp.example hMailServer ESMTP", ("SIZE", "AUTH LOGIN", "HELP"))
_ZMAILER = ("mx.isp.example ZMailer Server 2.99.57 ESMTP ready", ("SIZE 0", "8BITMIME", "ETRN", "HELP"))
_XMAIL = ("mx.isp.example <1.2@mx> [XMail 1.27 ESMTP Server] service ready", ("VRFY", "ETRN", "8BITMIME", "SIZE"))
_SUN = ("mx.isp.example -- Server ESMTP (Oracle Communications Messaging Server 8.0)", ("8BITMIME", "ETRN", "SIZE 0"))
_EXCHANGE = (
    "mx.isp.example Microsoft ESMTP MAIL Service, Version: 6.0.3790 ready",
    ("TURN", "ATRN", "SIZE 2097152", "ETRN", "PIPELINING", "DSN", "OK"),
)
_MDAEMON = ("mx.isp.example ESMTP MDaemon 24.0.1; Sun, 22 Nov 2026 08:00:00 +0000", ("ETRN", "AUTH LOGIN", "SIZE 0"))

DIALOGUES: dict[str, Entry] = {
    "postfix": Entry(
        "Postfix 3.12 src/smtpd/smtpd.c",
        _session(*_POSTFIX, (_A, "250 Queuing started"), (_B, "250 Queuing started")),
        (("started", 250), ("started", 250)),
        software="Postfix",
    ),
    "postfix-not-a-fast-flush-domain": Entry(
        "Postfix: the name is not in fast_flush_domains; the other one still counts",
        _session(*_POSTFIX, (_A, "459 <office.example>: service unavailable"), (_B, "250 Queuing started")),
        (("refused", 459), ("started", 250)),
        software="Postfix",
    ),
    "postfix-flush-down": Entry(
        "Postfix: the flush service does not answer",
        _session(*_POSTFIX, (_A, "458 Unable to queue messages"), (_B, "458 Unable to queue messages")),
        (("retry", 458), ("retry", 458)),
        software="Postfix",
    ),
    "postfix-restrictions": Entry(
        "Postfix: smtpd_etrn_restrictions, or a block list against the client",
        _session(
            *_POSTFIX,
            (_A, "554 5.7.1 <office.example>: Etrn command rejected: Access denied"),
            (_B, "554 5.7.1 <branch.example>: Etrn command rejected: Access denied"),
        ),
        (("refused", 554), ("refused", 554)),
        software="Postfix",
    ),
    "postfix-syntax": Entry(
        "Postfix: a name that it cannot parse",
        _session(*_POSTFIX, (_A, "501 Error: invalid parameter syntax"), (_B, "250 Queuing started")),
        (("refused", 501), ("started", 250)),
        software="Postfix",
    ),
    "postfix-wants-tls": Entry(
        "Postfix: smtpd_tls_security_level = encrypt, met by a client without TLS",
        _session(
            *_POSTFIX,
            (_A, "530 5.7.0 Must issue a STARTTLS command first"),
            (_B, "530 5.7.0 Must issue a STARTTLS command first"),
        ),
        (("refused", 530), ("refused", 530)),
        software="Postfix",
    ),
    "postfix-hidden": Entry(
        "Postfix: smtpd_discard_ehlo_keywords = etrn; the command works all the same",
        _session(_POSTFIX[0], ("PIPELINING",), (_A, "250 Queuing started"), (_B, "250 Queuing started")),
        (("started", 250), ("started", 250)),
        software="Postfix",
    ),
    "postfix-too-many-errors": Entry(
        "Postfix: smtpd_hard_error_limit is 1 under stress",
        "\n".join(
            (
                _hello(*_POSTFIX),
                f"C: {_A}",
                "S: 421 4.7.0 mx.isp.example Error: too many errors",
                "! close",
            )
        ),
        (("retry", 421),),
        failure="ask",
        software="Postfix",
    ),
    "postscreen": Entry(
        "Postfix postscreen src/postscreen/postscreen_smtpd.c: always, for a client that is new to it",
        _session(*_POSTFIX, (_A, "458 Unable to queue messages"), (_B, "458 Unable to queue messages")),
        (("retry", 458), ("retry", 458)),
        software="Postfix",
    ),
    "exim": Entry(
        "Exim 4.99 src/src/smtp_in.c",
        _session(*_EXIM, (_A, "250 OK"), (_B, "250 OK")),
        (("started", 250), ("started", 250)),
        software="Exim",
    ),
    "exim-denied": Entry(
        "Exim: acl_smtp_etrn denies; 458 even for what is for good",
        _session(*_EXIM, (_A, "458 Administrative prohibition"), (_B, "458 Administrative prohibition")),
        (("retry", 458), ("retry", 458)),
        software="Exim",
    ),
    "exim-wants-login": Entry(
        "Exim: the ACL's own text",
        _session(*_EXIM, (_A, "458 authentication required"), (_B, "458 authentication required")),
        (("retry", 458), ("retry", 458)),
        software="Exim",
    ),
    "exim-wants-hash": Entry(
        "Exim without smtp_etrn_command: the argument goes to -R",
        _session(*_EXIM, (_A, "501 argument must begin with #"), (_B, "501 argument must begin with #")),
        (("refused", 501), ("refused", 501)),
        software="Exim",
    ),
    "exim-fork": Entry(
        "Exim: the queue run cannot be started",
        _session(*_EXIM, (_A, "458 Unable to fork process"), (_B, "458 Internal failure")),
        (("retry", 458), ("retry", 458)),
        software="Exim",
    ),
    "exim-serialized": Entry(
        "Exim: smtp_etrn_serialize, an earlier run still goes on",
        _session(*_EXIM, ("ETRN #office.example", "458 Already processing #office.example")),
        (("retry", 458),),
        software="Exim",
        nodes=("#office.example",),
    ),
    "exim-transaction": Entry(
        "Exim: 503 inside a transaction; a fresh session is the cure",
        _session(*_EXIM, (_A, "503 ETRN is not permitted inside a transaction")),
        (("started", 250), ("started", 250)),
        software="Exim",
        connections=(_session(*_EXIM, (_A, "250 OK"), (_B, "250 OK")),),
    ),
    "sendmail": Entry(
        "Sendmail 8.17 sendmail/srvrsmtp.c",
        _session(
            *_SENDMAIL,
            (_A, "250 2.0.0 Queuing for node office.example started"),
            (_B, "250 2.0.0 Queuing for node branch.example started"),
        ),
        (("started", 250), ("started", 250)),
        software="Sendmail",
    ),
    "sendmail-queue-group": Entry(
        "Sendmail: a queue group that does not exist",
        _session(*_SENDMAIL, ("ETRN #office", "459 4.5.4 Queue office unknown")),
        (("refused", 459),),
        software="Sendmail",
        nodes=("#office",),
    ),
    "sendmail-queue-group-started": Entry(
        "Sendmail: a queue group that exists",
        _session(*_SENDMAIL, ("ETRN #office", "250 2.0.0 Queuing for queue group office started")),
        (("started", 250),),
        software="Sendmail",
        nodes=("#office",),
    ),
    "sendmail-check-etrn": Entry(
        "Sendmail: the check_etrn ruleset, for now and for good",
        _session(
            *_SENDMAIL,
            (_A, "450 4.7.1 office.example: try again later"),
            (_B, "550 5.7.1 branch.example: access denied"),
        ),
        (("retry", 450), ("refused", 550)),
        software="Sendmail",
    ),
    "sendmail-too-many-commands": Entry(
        "Sendmail: checksmtpattack, from the sixteenth ETRN of a session on; we send six",
        "\n".join(
            (
                _hello(*_SENDMAIL),
                f"C: {_A}",
                "S: 250 2.0.0 Queuing for node office.example started",
                f"C: {_B}",
                "S: 421 4.7.0 mx.isp.example Too many bad commands; closing connection",
                "! close",
            )
        ),
        (("started", 250), ("retry", 421)),
        failure="ask",
        software="Sendmail",
    ),
    "sendmail-off": Entry(
        "Sendmail: PrivacyOptions noetrn, in a version that lists it all the same",
        _session(*_SENDMAIL, (_A, "502 5.7.0 Sorry, we do not allow this operation")),
        (("refused", 502),),
        failure="ask",
        software="Sendmail",
    ),
    "sendmail-busy": Entry(
        "Sendmail: 451 from its own trouble",
        _session(*_SENDMAIL, (_A, "451 4.3.2 Please try again later"), (_B, "451 4.3.2 Please try again later")),
        (("retry", 451), ("retry", 451)),
        software="Sendmail",
    ),
    "sendmail-low-disk": Entry(
        "Sendmail: ETRN-only, but a milter counts it in",
        _session(
            *_SENDMAIL,
            (_A, "452 4.4.5 Insufficient disk space; try again later"),
            (_B, "250 2.0.0 Queuing for node branch.example started"),
        ),
        (("retry", 452), ("started", 250)),
        software="Sendmail",
    ),
    "sendmail-silent": Entry(
        "Sendmail: the queue run cannot start (load, too many children): no reply at all",
        "\n".join((_hello(*_SENDMAIL), "C: ETRN *", "! silent")),
        (("unknown", None), ("unknown", None)),
        failure="ask",
        software="Sendmail",
        impatient="etrn",
    ),
    "hmailserver": Entry(
        "hMailServer 5 SMTPConnection.cpp: never lists ETRN",
        _session(
            *_HMAIL,
            (_A, "250 OK, message queuing started for office.example"),
            (_B, "501 ETRN not supported for branch.example"),
        ),
        (("started", 250), ("refused", 501)),
        software="hMailServer",
    ),
    "hmailserver-error": Entry(
        "hMailServer: its database does not answer",
        _session(
            *_HMAIL,
            (_A, "458 Error getting info for office.example"),
            (_B, "458 Unable to queue messages for branch.example"),
        ),
        (("retry", 458), ("retry", 458)),
        software="hMailServer",
    ),
    "zmailer": Entry(
        "ZMailer smtpserver/smtpetrn.c: a reply of several lines",
        _session(
            *_ZMAILER,
            (
                _A,
                "250-2.0.0 An ETRN request is initiated - lets hope the system\n"
                "250-2.0.0 has resources to honour it. We call the remote,\n"
                "250 2.0.0 if we have anything to send there.",
            ),
            (_B, "250-2.0.0 Attempting ETRN on cluster node: a\n250 2.0.0 Attempting ETRN on cluster node: b"),
        ),
        (("started", 250), ("started", 250)),
        software="ZMailer",
    ),
    "zmailer-literal": Entry(
        "ZMailer: neither @ nor #",
        _session(*_ZMAILER, ("ETRN @office.example", "458 5.7.1 Sorry, only literal target domains accepted")),
        (("refused", 458),),
        software="ZMailer",
        nodes=("@office.example",),
    ),
    "zmailer-refused": Entry(
        "ZMailer: 552 for syntax, 452 for a failed start",
        _session(
            *_ZMAILER,
            (_A, "552 5.0.0 ETRN needs target domain name parameter."),
            (_B, "452 Failed to initiate ETRN request; Disk full ?"),
        ),
        (("refused", 552), ("retry", 452)),
        software="ZMailer",
    ),
    "xmail": Entry(
        "XMail SMTPSvr.cpp",
        _session(
            *_XMAIL,
            (_A, "250 Queueing for 'office.example' has been started"),
            (_B, "451 Requested action aborted: (-1) local error in processing"),
        ),
        (("started", 250), ("retry", 451)),
        software="XMail",
    ),
    "xmail-off": Entry(
        "XMail: ETRN is off for this peer, told by 501",
        _session(*_XMAIL, (_A, "501 Command not accepted"), (_B, "501 Command not accepted")),
        (("refused", 501), ("refused", 501)),
        software="XMail",
    ),
    "sun": Entry(
        "Sun, Oracle, PMDF: ALLOW_ETRNS_PER_SESSION is 1",
        _session(*_SUN, (_A, "250 2.5.0 Ok."), (_B, "458 4.7.1 ETRN session limit reached")),
        (("started", 250), ("started", 250)),
        connections=(_session(*_SUN, (_B, "250 2.5.0 Ok.")),),
    ),
    "sun-before-7.0.5": Entry(
        "The same, as a 550",
        _session(*_SUN, (_A, "250 2.5.0 Ok."), (_B, "550 5.7.1 ETRN session limit reached.")),
        (("started", 250), ("started", 250)),
        connections=(_session(*_SUN, (_B, "250 2.5.0 Ok.")),),
    ),
    "sun-etrn-access": Entry(
        "Sun: ETRN_ACCESS with $N",
        _session(*_SUN, (_A, "459 4.5.0 not for you"), (_B, "459 4.5.0 not for you")),
        (("refused", 459), ("refused", 459)),
    ),
    "exchange": Entry(
        "Exchange 2003, IIS SMTP; RFC 1985's own wording",
        _session(
            *_EXCHANGE,
            (_A, "252 OK, pending messages for node office.example started"),
            (_B, "251 OK, no messages waiting for node branch.example"),
        ),
        (("started", 252), ("nothing", 251)),
        software="Microsoft",
    ),
    "mdaemon": Entry(
        "MDaemon gateways: AUTH is required",
        _session(*_MDAEMON, (_A, "530 Authentication required"), (_B, "530 Authentication required")),
        (("refused", 530), ("refused", 530)),
        software="MDaemon",
    ),
    "mdaemon-spooled": Entry(
        "MDaemon: the delivery may wait for its next remote mail interval",
        _session(*_MDAEMON, (_A, "250 2.0.0 Ok, spooled"), (_B, "250 2.0.0 Ok, spooled")),
        (("started", 250), ("started", 250)),
        software="MDaemon",
    ),
    "kerio": Entry(
        "Kerio Connect: a login may be asked for; its texts are not known, these are the RFC's",
        _session(
            "mx.isp.example Kerio Connect ESMTP ready",
            ("ETRN", "AUTH PLAIN", "SIZE"),
            (_A, "250 OK, queuing for node office.example started"),
            (_B, "530 5.7.0 Authentication required"),
        ),
        (("started", 250), ("refused", 530)),
        software="Kerio",
    ),
    "icewarp": Entry(
        "IceWarp, formerly Merak: likewise",
        _session(
            "mx.isp.example ESMTP IceWarp 13; Sun, 22 Nov 2026 08:00:00 +0000",
            ("ETRN", "AUTH LOGIN", "SIZE"),
            (_A, "250 OK, queuing for node office.example started"),
            (_B, "459 Node branch.example not allowed: authenticate first"),
        ),
        (("started", 250), ("refused", 459)),
        software="IceWarp",
    ),
    "gordano": Entry(
        "Gordano GMS: 250 to 253",
        _session(
            "mx.isp.example GMS ESMTP",
            ("ETRN", "SIZE 0"),
            (_A, "251 OK, no messages waiting for node <office.example>"),
            (_B, "253 OK, 14 pending messages for node <branch.example> started"),
        ),
        (("nothing", 251), ("started", 253)),
        promised=(None, 14),
    ),
    "counts-with-enhanced-codes": Entry(
        "A server that counts for those who have logged in",
        _session(
            "mx.isp.example ESMTP",
            ("ETRN", "ENHANCEDSTATUSCODES"),
            (_A, "253 2.0.0 OK, 3 pending messages for node office.example started"),
            (_B, "251 2.0.0 OK, no messages waiting for node branch.example"),
        ),
        (("started", 253), ("nothing", 251)),
        promised=(3, None),
    ),
    "too-many-requests": Entry(
        "The same server",
        _session(
            "mx.isp.example ESMTP",
            ("ETRN",),
            (_A, "459 4.7.1 Node office.example not allowed: not yours"),
            (_B, "458 4.7.0 Unable to queue messages for node branch.example: too many requests"),
        ),
        (("refused", 459), ("retry", 458)),
    ),
    "psi": Entry(
        "PSI, a relative of Sendmail: wants `#name`, on each of its servers",
        _session(
            "mx.isp.example ESMTP",
            ("ETRN",),
            ("ETRN #office.example", "250 OK, queue -R 'office.example' started"),
            (_B, "501 Syntax error in parameters"),
        ),
        (("started", 250), ("refused", 501)),
        nodes=("#office.example", "branch.example"),
    ),
    "aaisp": Entry(
        "AAISP, an Exim: wants `#name`",
        _session(*_EXIM, ("ETRN #office.example", "250 OK"), (_B, "501 argument must begin with #")),
        (("started", 250), ("refused", 501)),
        software="Exim",
        nodes=("#office.example", "branch.example"),
    ),
    "skypoint": Entry(
        "SkyPoint, a server for ETRN alone: wants the bare name",
        _session(
            "etrn.isp.example ESMTP", ("ETRN",), (_A, "250 OK"), ("ETRN @branch.example", "501 incorrect domain name")
        ),
        (("started", 250), ("refused", 501)),
        nodes=("office.example", "@branch.example"),
    ),
    "stalwart": Entry(
        "Stalwart smtp-proto: no ETRN",
        _session(
            "mx.isp.example Stalwart ESMTP at your service", ("SIZE",), (_A, "502 5.5.1 Command not implemented.")
        ),
        (("refused", 502),),
        failure="ask",
        software="Stalwart",
    ),
    "opensmtpd": Entry(
        "OpenSMTPD smtp_session.c: no ETRN",
        _session(
            "mx.isp.example ESMTP OpenSMTPD", ("8BITMIME",), (_A, "500 5.5.1 Invalid command: Command unrecognized")
        ),
        (("refused", 500),),
        failure="ask",
        software="OpenSMTPD",
    ),
    "chasquid": Entry(
        "chasquid conn.go: no ETRN",
        _session("mx.isp.example ESMTP chasquid", ("PIPELINING",), (_A, "500 5.5.1 Unknown command")),
        (("refused", 500),),
        failure="ask",
        software="chasquid",
    ),
    "mox": Entry(
        "mox server.go: no ETRN",
        _session("mx.isp.example ESMTP mox", ("PIPELINING",), (_A, "500 5.5.1 unknown command")),
        (("refused", 500),),
        failure="ask",
    ),
    "aiosmtpd": Entry(
        "aiosmtpd: no ETRN",
        _session(
            "mx.isp.example Python SMTP 1.4.6", ("SIZE 33554432",), (_A, '500 Error: command "ETRN" not recognized')
        ),
        (("refused", 500),),
        failure="ask",
    ),
    "cyrus-lmtp": Entry(
        "Cyrus lmtpd, met by mistake: neither EHLO nor HELO (RFC 2033)",
        "\n".join(
            (
                "S: 220 mx.isp.example Cyrus LMTP ready",
                "C: EHLO *",
                "S: 500 5.5.1 Command unrecognized",
                "C: HELO *",
                "S: 500 5.5.1 Command unrecognized",
                "C: RSET",
                "S: 250 2.0.0 ok",
                "C: HELO *",
                "S: 500 5.5.1 Command unrecognized",
                "C: QUIT",
                "S: 221 2.0.0 bye",
            )
        ),
        (),
        failure="ehlo",
    ),
    "rfc-1985-example": Entry(
        "RFC 1985 §7: ETRN as the last line, QUIT answered 250",
        "\n".join(
            (
                "S: 220 sigurd.innosoft.com -- Server SMTP (PMDF V4.2-6 #1992)",
                "C: EHLO *",
                "S: 250-sigurd.innosoft.com",
                "S: 250-EXPN",
                "S: 250-HELP",
                "S: 250 etrn",
                f"C: {_A}",
                "S: 250 OK, queuing for node office.example started",
                f"C: {_B}",
                "S: 251 OK, no messages waiting for node branch.example",
                "C: QUIT",
                "S: 250 Goodbye",
            )
        ),
        (("started", 250), ("nothing", 251)),
    ),
}
