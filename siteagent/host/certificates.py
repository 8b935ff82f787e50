"""Until when a certificate is good: the one field of X.509 that we need, without a library for it. Pure.

DER (X.690) is read as far as RFC 5280 §4.1 puts `validity`: serial number, algorithm and issuer are stepped over.
"""

from __future__ import annotations

import base64
import hashlib
import re
from datetime import UTC, datetime

_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----\s+(.+?)\s+-----END CERTIFICATE-----", re.DOTALL)
_SEQUENCE, _VERSION, _UTC_TIME, _GENERALIZED_TIME = 0x30, 0xA0, 0x17, 0x18


def first_of(pem: bytes) -> bytes:
    """The first certificate of a PEM file, DER. Raises ValueError where there is none."""
    match = _PEM.search(pem)
    if match is None:
        raise ValueError("no certificate in PEM form")
    return base64.b64decode(match[1])


def good_until(der: bytes) -> datetime:
    """`notAfter` of a certificate. Raises ValueError for what is none."""
    _, validity, _ = _element(_from_issuer(der)[1])
    _, _, rest = _element(validity)
    tag, text, _ = _element(rest)
    # RFC 5280 §4.1.2.5: UTCTime to 2049, with 50 standing for 1950.
    form = {_UTC_TIME: "%y%m%d%H%M%SZ", _GENERALIZED_TIME: "%Y%m%d%H%M%SZ"}.get(tag)
    if form is None:
        raise ValueError("no time where the certificate's end should be")
    return datetime.strptime(text.decode("ascii"), form).replace(tzinfo=UTC)


def self_issued(der: bytes) -> bool:
    """Whether its issuer is its subject: no authority signed it. Raises ValueError for what is no certificate."""
    issuer, rest = _from_issuer(der)
    _, _, rest = _element(rest)  # validity
    return issuer == _element(rest)[1]


def _from_issuer(der: bytes) -> tuple[bytes, bytes]:
    """(issuer, what follows: validity, subject, ...)."""
    tag, certificate, _ = _element(der)
    if tag != _SEQUENCE:
        raise ValueError("no certificate")
    _, to_be_signed, _ = _element(certificate)
    tag, _, rest = _element(to_be_signed)
    if tag != _VERSION:
        rest = to_be_signed
    for _ in ("serialNumber", "signature"):
        _, _, rest = _element(rest)
    _, issuer, rest = _element(rest)
    return issuer, rest


def fingerprint(der: bytes) -> str:
    """As `tls_fingerprint` takes it."""
    return f"sha256:{hashlib.sha256(der).hexdigest()}"


def _element(data: bytes) -> tuple[int, bytes, bytes]:
    """(tag, content, what follows). Raises ValueError where `data` ends before it does."""
    if len(data) < 2:
        raise ValueError("the certificate is cut short")
    length, start = data[1], 2
    if length & 0x80:
        start = 2 + (length & 0x7F)
        length = int.from_bytes(data[2:start], "big")
    if len(data) < start + length:
        raise ValueError("the certificate is cut short")
    return data[0], data[start : start + length], data[start + length :]
