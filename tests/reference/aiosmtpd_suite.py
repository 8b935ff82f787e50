"""Runs aiosmtpd's own test-suite, as it ships in its wheel, with our dialect in place of its `SMTP`, or with its own.

    pip install pytest-mock "setuptools<81"                     # what that suite imports, and we do not
    python tests/reference/aiosmtpd_suite.py                    # ours
    python tests/reference/aiosmtpd_suite.py --stock            # theirs: what the suite does here without us
    python tests/reference/aiosmtpd_suite.py -- -v -x           # words for pytest behind "--"

By hand, since the suite listens on a fixed port and takes minutes. Replies are compared by their class (2yz, 3yz, 4yz,
5yz), not by their words. Every difference is explained in
``docs/dialect.md``. What a handler's ``handle_DATA`` gets is what our spool was given, LF turned into CRLF again; what
it answers (2yz, or anything else) is whether the spool kept it.
"""

from __future__ import annotations

import itertools
import ssl
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from aiosmtpd import smtp as theirs  # noqa: E402
from aiosmtpd.testing.statuscodes import StatusCode  # noqa: E402
from siteagent.inbound.smtp import Dialect  # noqa: E402
from siteagent.store.spool import Body, Committed, Envelope, SpoolFailed  # noqa: E402
from tests.fakes import FakeSpool, reception  # noqa: E402


class _HandlersSpool(FakeSpool):
    """Keeps what a handler of aiosmtpd takes."""

    def __init__(self, handler: Any) -> None:
        super().__init__()
        self.handler = handler
        self.session: Dialect | None = None

    async def commit(self, envelope: Envelope, body: Body) -> Committed:
        hook = getattr(self.handler, "handle_DATA", None)
        if hook is not None:
            assert self.session is not None
            seen = theirs.Envelope()
            seen.mail_from = envelope.sender
            seen.rcpt_tos = [address for address, _ in envelope.recipients]
            seen.content = seen.original_content = (body.data or b"").replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
            seen.smtp_utf8 = envelope.smtputf8
            answer = await hook(self.session, self.session.session, seen)
            if not str(answer).startswith("2"):
                raise SpoolFailed("cannot keep a message", str(answer))
        return await super().commit(envelope, body)


class InTheirPlace(Dialect):
    """The constructor of aiosmtpd's `SMTP`, as far as its arguments mean something to us."""

    def __init__(
        self,
        handler: Any,
        *,
        data_size_limit: int | None = theirs.DATA_SIZE_DEFAULT,
        hostname: str | None = None,
        tls_context: ssl.SSLContext | None = None,
        require_starttls: bool = False,
        timeout: float = 300,
        **others: Any,
    ) -> None:
        spool = _HandlersSpool(handler)
        numbers = itertools.count(1)
        made = reception(
            spool,
            [],
            listener={"max_message_bytes": data_size_limit or 0, "require_tls": require_starttls},
            limits={"command_seconds": timeout, "silence_seconds": timeout},
            tls=tls_context,
            route=lambda address: "box",
            new_id=lambda: f"id-{next(numbers)}",
            hostname=hostname or "localhost",
        )
        super().__init__(made)
        spool.session = self
        self.event_handler = handler


def same_class(wanted: StatusCode, said: object) -> bool:
    """A reply that a test wants, and the one that came: ``(code, text)``."""
    return isinstance(said, tuple) and len(said) == 2 and wanted[0] // 100 == said[0] // 100


def main() -> int:
    import pytest

    words = sys.argv[1:]
    if "--stock" in words:
        words.remove("--stock")
    else:
        theirs.SMTP = InTheirPlace  # type: ignore[misc]
        StatusCode.__eq__ = same_class  # type: ignore[method-assign, assignment]
    tests = Path(theirs.__file__).parent / "tests"
    more = words[words.index("--") + 1 :] if "--" in words else []
    options = ["-q", "-p", "no:cacheprovider", "--tb=no", "-rf", f"--rootdir={tests}", "-c", "/dev/null"]
    # Its command line is not replaced; and one class takes methods of the library's apart and then waits for ever.
    left_out = [f"--ignore={tests / 'test_main.py'}", "-k", "not TestTLSEnding"]
    return pytest.main([*options, *left_out, str(tests), *more])


if __name__ == "__main__":
    sys.exit(main())
