"""Runs aiosmtpd's own test-suite, as it ships in its wheel, with our dialect in place of its `SMTP`, or with its own.

    pip install pytest-mock "setuptools<81"                     # what that suite imports, and we do not
    python tests/reference/aiosmtpd_suite.py                    # ours
    python tests/reference/aiosmtpd_suite.py --stock            # theirs: what the suite does here without us
    python tests/reference/aiosmtpd_suite.py -- -v -x           # words for pytest behind "--"

By hand, since the suite listens on a fixed port and takes 50 seconds. Replies are compared by their class (2yz, 3yz,
4yz, 5yz), not by their words. Every test that does not pass stands in ``aiosmtpd_suite.toml`` beside this file, with
the words of ``docs/dialect.md`` that explain it. The last lines say ``as explained``, or name what is new: a test that
fails and is not explained, one that is explained and does not fail, words or a number that the page does not have.

What a handler's ``handle_DATA`` gets is what our spool was given, LF turned into CRLF again; what it answers (2yz, or
anything else) is whether the spool kept it.
"""

from __future__ import annotations

import itertools
import ssl
import sys
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "dialect.md"
EXPLAINED = Path(__file__).with_suffix(".toml")
sys.path.insert(0, str(ROOT))

from aiosmtpd import smtp as theirs  # noqa: E402
from aiosmtpd.testing.statuscodes import StatusCode  # noqa: E402
from siteagent.inbound import door  # noqa: E402
from siteagent.inbound.smtp import Dialect  # noqa: E402
from siteagent.store.spool import Body, Committed, Envelope, SpoolFailed  # noqa: E402
from tests.fakes import FakeSpool, reception  # noqa: E402


class _HandlersSpool(FakeSpool):
    """Keeps what a handler of aiosmtpd takes."""

    def __init__(self, handler: Any, *, decode: bool) -> None:
        super().__init__()
        self.handler = handler
        self.decode = decode
        self.session: Dialect | None = None

    async def commit(self, envelope: Envelope, body: Body) -> Committed:
        hook = getattr(self.handler, "handle_DATA", None)
        if hook is not None:
            assert self.session is not None
            seen = theirs.Envelope()
            seen.mail_from = envelope.sender
            seen.rcpt_tos = [address for address, _ in envelope.recipients]
            octets = (body.data or b"").replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
            seen.content, seen.original_content = octets.decode() if self.decode else octets, octets
            seen.smtp_utf8 = envelope.smtputf8
            answer = await hook(self.session, self.session.session, seen)
            if not str(answer).startswith("2"):
                raise SpoolFailed("cannot keep a message", str(answer))
        return await super().commit(envelope, body)


class _Writer:
    """What tests ask whether a connection was let go: their writer, and the transport below it."""

    def __init__(self, session: Dialect) -> None:
        self._session = session
        self.transport = self

    def is_closing(self) -> bool:
        transport = self._session.transport
        return transport is None or transport.is_closing()

    def close(self) -> None:
        """Spied upon."""


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
        decode_data: bool = False,
        proxy_protocol_timeout: float | None = None,
        **others: Any,
    ) -> None:
        spool = _HandlersSpool(handler, decode=decode_data)
        numbers = itertools.count(1)
        made = reception(
            spool,
            [],
            listener={
                "max_message_bytes": data_size_limit or 0,
                "require_tls": require_starttls,
                "proxy_protocol": proxy_protocol_timeout is not None,
            },
            limits={"command_seconds": timeout, "silence_seconds": timeout},
            tls=tls_context,
            route=lambda address: "box",
            new_id=lambda: f"id-{next(numbers)}",
            hostname=hostname or "localhost",
        )
        super().__init__(made)
        spool.session = self
        self.event_handler = handler
        # Private names that tests look at before they say a word: with these they go on to the wire.
        self._writer = _Writer(self)
        self._call_limit_default = 1_000_000
        self._proxy_timeout = proxy_protocol_timeout
        if proxy_protocol_timeout is not None:
            door._PROXY_SECONDS = proxy_protocol_timeout

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self._writer.close()


def same_class(wanted: StatusCode, said: object) -> bool:
    """A reply that a test wants, and the one that came: ``(code, text)``."""
    return isinstance(said, tuple) and len(said) == 2 and wanted[0] // 100 == said[0] // 100


class Outcomes:
    """A plugin of pytest: which tests passed, and which did not. The arguments of a test belong to its name."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self.failed: set[str] = set()

    def pytest_runtest_logreport(self, report: Any) -> None:
        name = report.nodeid[report.nodeid.index("test_") :]
        if not report.skipped:
            self.seen.add(name)
        if report.failed:
            self.failed.add(name)


def explained() -> dict[str, tuple[str, str]]:
    """The name of a test, or of all the tests that begin with it, to (the kind, the words that explain it)."""
    entries = tomllib.loads(EXPLAINED.read_text("utf-8"))["explained"]
    return {name: (entry["kind"], entry["by"]) for entry in entries for name in entry["tests"]}


def _below(name: str, group: str) -> bool:
    return name == group or name.startswith((group + "::", group + "["))


def compare(outcomes: Outcomes, kinds: Counter[str]) -> list[str]:
    """What is not as explained, a line each."""
    groups, page = explained(), " ".join(PAGE.read_text("utf-8").split())
    wanted = {by for _, by in groups.values()} | {
        f"Of {len(outcomes.seen)} tests",
        f"ours passes {len(outcomes.seen - outcomes.failed)};",
        f"Of the other {len(outcomes.failed)}, {kinds['reply']} meet a reply of another class",
        f"{kinds['words']} other words of the same class, {kinds['stored']} other content",
        f"and {kinds['library']} look at the library alone",
    }
    new = [f"not in the page: {words}" for words in sorted(wanted) if words not in page]
    for name in sorted(outcomes.failed):
        if sum(_below(name, group) for group in groups) != 1:
            new.append(f"not explained, or twice: {name}")
    for name in sorted(outcomes.seen - outcomes.failed):
        if any(_below(name, group) for group in groups):
            new.append(f"explained, and passes: {name}")
    for group in groups:
        if not any(_below(name, group) for name in outcomes.seen):
            new.append(f"explained, and never ran: {group}")
    return new


def report(outcomes: Outcomes) -> int:
    kinds = Counter(kind for name in outcomes.failed for group, (kind, _) in explained().items() if _below(name, group))
    print(f"{len(outcomes.seen)} tests, {len(outcomes.failed)} do not pass:", dict(sorted(kinds.items())))
    new = compare(outcomes, kinds)
    print("\n".join(new) if new else "as explained")
    return 1 if new else 0


def main() -> int:
    import pytest

    words = sys.argv[1:]
    stock = "--stock" in words
    if stock:
        words.remove("--stock")
    else:
        theirs.SMTP = InTheirPlace  # type: ignore[misc]
        StatusCode.__eq__ = same_class  # type: ignore[method-assign, assignment]
    tests = Path(theirs.__file__).parent / "tests"
    more = words[words.index("--") + 1 :] if "--" in words else []
    # Two tests wait for five seconds for what they expect.
    options = ["-q", "-p", "no:cacheprovider", "--tb=no", "--timeout=10", f"--rootdir={tests}", "-c", "/dev/null"]
    # Its command line is not replaced; and one class takes methods of the library's apart and then waits for ever.
    left_out = [f"--ignore={tests / 'test_main.py'}", "-k", "not TestTLSEnding"]
    outcomes = Outcomes()
    ended = int(pytest.main([*options, *left_out, str(tests), *more], plugins=[outcomes]))
    return ended if stock or more else report(outcomes)


if __name__ == "__main__":
    sys.exit(main())
