"""Until when a certificate is good, read from its DER."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st
from siteagent.host.certificates import fingerprint, first_of, good_until, self_issued


def _pem(until: datetime) -> bytes:
    issued = trustme.CA().issue_cert("mail.office.example", not_after=until)
    return b"".join(blob.bytes() for blob in issued.cert_chain_pems)


@pytest.mark.parametrize("year", [2019, 2030, 2049, 2050, 2099])  # RFC 5280: another form of time from 2050 on
def test_the_end_is_read_in_both_forms_of_time(year: int) -> None:
    until = datetime(year, 3, 4, 5, 6, 7, tzinfo=UTC)
    assert good_until(first_of(_pem(until))) == until


def test_the_first_of_a_chain_is_the_one_that_counts() -> None:
    mine, other = _pem(datetime(2030, 1, 1, tzinfo=UTC)), _pem(datetime(2031, 1, 1, tzinfo=UTC))
    assert first_of(mine + other) == first_of(mine)


def test_a_fingerprint_is_what_the_configuration_takes() -> None:
    found = fingerprint(b"x")
    assert found.startswith("sha256:") and len(found) == 71


def test_a_certificate_that_no_authority_signed_is_told_from_one_that_one_did() -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("hub.example").cert_chain_pems[0].bytes()
    assert self_issued(first_of(authority.cert_pem.bytes()))
    assert not self_issued(first_of(issued))


@given(st.binary(max_size=200))
def test_any_other_bytes_are_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):
        good_until(data)


def test_a_certificate_cut_anywhere_is_a_value_error_or_still_readable() -> None:
    der = first_of(_pem(datetime(2030, 1, 1, tzinfo=UTC)))
    for length in range(0, len(der), 7):
        with pytest.raises(ValueError):
            good_until(der[:length])


def test_a_file_without_a_certificate_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="PEM"):
        first_of(b"-----BEGIN PRIVATE KEY-----\n")
