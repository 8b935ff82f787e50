"""What the dialect leans on in aiosmtpd, private or undocumented: a release that moves it fails here, loudly."""

from __future__ import annotations

import asyncio
import inspect
from importlib.metadata import version

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from siteagent.inbound.channel import Channel
from siteagent.inbound.smtp import Dialect


def test_the_release_is_one_that_was_read() -> None:
    assert version("aiosmtpd").startswith("1.4.")


def test_the_class_is_still_a_protocol_whose_callbacks_are_all_ours() -> None:
    assert issubclass(SMTP, asyncio.StreamReaderProtocol)
    callbacks = (
        "connection_made",
        "connection_lost",
        "data_received",
        "eof_received",
        "pause_writing",
        "resume_writing",
    )
    for name in callbacks:
        assert getattr(Channel, name) is not getattr(SMTP, name)


def test_its_destructor_bears_an_object_that_was_never_initialised() -> None:
    # Channel does not call SMTP.__init__, so `_closed` is missing.
    assert "getattr(self, " in inspect.getsource(SMTP.__del__)
    SMTP.__del__(SMTP.__new__(SMTP))


def test_a_session_has_what_the_dialect_reads_and_writes() -> None:
    session = Session(asyncio.new_event_loop())
    for name in ("peer", "ssl", "host_name", "extended_smtp", "authenticated", "auth_data"):
        assert hasattr(session, name)
    session.loop.close()


def test_an_envelope_can_be_made_for_nothing() -> None:
    assert Envelope().rcpt_tos == []


def test_the_auth_methods_read_by_readline_and_answer_by_push() -> None:
    source = inspect.getsource(SMTP.challenge_auth)
    assert "self._reader.readline()" in source
    assert "self.push(" in source
    assert "self._reader" not in source.replace("self._reader.readline()", "")
    for method in (SMTP.auth_PLAIN, SMTP.auth_LOGIN):
        used = inspect.getsource(method)
        assert "self.challenge_auth(" in used
        assert "self._authenticate(" in used
    assert "self._authenticator(" in inspect.getsource(SMTP._authenticate)
    assert AuthResult(success=True).success
    assert LoginPassword(b"a", b"b").login == b"a"


def test_no_verb_of_aiosmtpd_is_offered_that_is_not_ours() -> None:
    theirs = {name.removeprefix("smtp_").encode() for name in vars(SMTP) if name.startswith("smtp_")}
    assert theirs - set(Dialect._verbs) == {b"AUTH"}
    for function, _ in Dialect._verbs.values():
        assert function.__module__.startswith("siteagent.")
