"""`host.tls`: the listener's certificate, loaded and loaded again."""

from __future__ import annotations

import os
import pty
import signal
import tempfile
import time
from pathlib import Path

import pytest
import trustme
from siteagent.config.sections import Listener
from siteagent.errors import ConfigurationError, PermissionProblem
from siteagent.host.tls import ServerContext


def written(folder: Path, *, certificate: bool = True, key: bool = True) -> Listener:
    """A fresh pair, or one half of it, as the configured files."""
    made = trustme.CA().issue_cert("mail.office.example")
    if certificate:
        _put(folder / "cert.pem", made.cert_chain_pems[0].bytes())
    if key:
        _put(folder / "key.pem", made.private_key_pem.bytes())
    return Listener(tls_certificate=folder / "cert.pem", tls_key=folder / "key.pem")


def _put(path: Path, data: bytes) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_bytes(data)
    fresh.replace(path)


def loaded(section: Listener) -> ServerContext:
    context = ServerContext(section)
    context.load()
    return context


def test_without_a_certificate_there_is_no_context() -> None:
    context = loaded(Listener())
    assert context.current is None and context.refresh() is None


def test_nothing_changed_nothing_is_loaded(tmp_path: Path) -> None:
    context = loaded(written(tmp_path))
    before = context.current
    assert before is not None and context.refresh() is None
    assert context.current is before


def test_a_renewed_pair_is_taken_by_the_next_session(tmp_path: Path) -> None:
    context = loaded(written(tmp_path))
    before = context.current
    written(tmp_path)
    assert context.refresh() is None
    assert context.current is not before


def test_half_of_a_renewal_is_told_once_and_the_old_one_goes_on(tmp_path: Path) -> None:
    context = loaded(written(tmp_path))
    before = context.current
    written(tmp_path, key=False)
    trouble = context.refresh()
    assert trouble is not None and "the one in use stays" in trouble
    assert (context.refresh(), context.current) == (None, before)
    written(tmp_path)
    assert context.refresh() is None and context.current is not before


def test_files_that_vanish_are_told_once_and_the_old_one_goes_on(tmp_path: Path) -> None:
    context = loaded(written(tmp_path))
    before = context.current
    (tmp_path / "cert.pem").unlink()
    assert context.refresh() is not None
    assert (context.refresh(), context.current) == (None, before)


@pytest.mark.parametrize("data", [b"", b"no certificate"])
def test_what_is_no_certificate_is_a_problem_of_the_configuration(tmp_path: Path, data: bytes) -> None:
    section = written(tmp_path)
    _put(tmp_path / "cert.pem", data)
    with pytest.raises(ConfigurationError, match="cannot use the certificate"):
        loaded(section)


def test_a_key_with_a_password_is_refused_and_nobody_is_asked_for_it(tmp_path: Path) -> None:
    """OpenSSL would ask on the terminal and wait: for ever in a service."""
    from cryptography.hazmat.primitives import serialization

    section = written(tmp_path)
    key = serialization.load_pem_private_key((tmp_path / "key.pem").read_bytes(), None)
    locked = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    _put(tmp_path / "key.pem", locked)
    child, terminal = pty.fork()
    if child == 0:
        code = 1
        try:
            loaded(section)
        except ConfigurationError:
            code = 0
        finally:
            os._exit(code)
    try:
        assert _ended(child, seconds=10) == 0
    finally:
        os.close(terminal)


def _ended(child: int, *, seconds: float) -> int | None:
    """The exit code of `child`; None where it had to be killed."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def test_a_key_that_we_may_not_read_is_a_matter_of_permission() -> None:
    with tempfile.TemporaryDirectory(prefix="siteagent-test-") as name:  # pytest's own are for their owner alone
        folder = Path(name)
        folder.chmod(0o755)
        section = written(folder)
        (folder / "key.pem").chmod(0)
        was = os.geteuid()
        if was == 0:
            os.seteuid(65534)  # root may read everything
        try:
            with pytest.raises(PermissionProblem):
                loaded(section)
        finally:
            os.seteuid(was)
