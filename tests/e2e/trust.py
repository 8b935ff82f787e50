"""A certificate authority for one test, and certificates for whoever takes part."""

from __future__ import annotations

import ssl
from pathlib import Path

import trustme


class Trust:
    """Writes PEM files into `directory`; each name gets its certificate once."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._ca = trustme.CA(organization_name="siteagent tests")
        self.authority = directory / "authority.pem"
        self._ca.cert_pem.write_to_path(str(self.authority))

    def certificate(self, *names: str) -> tuple[Path, Path]:
        """Certificate and private key for `names` (host names or addresses), as two files."""
        certificate = self._directory / f"{names[0]}.cert.pem"
        key = self._directory / f"{names[0]}.key.pem"
        if not certificate.exists():
            issued = self._ca.issue_cert(*names)
            certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
            issued.private_key_pem.write_to_path(str(key))
            key.chmod(0o600)
        return certificate, key

    def chain(self, *names: str) -> Path:
        """Key and certificate in one file, as Postfix reads them."""
        certificate, key = self.certificate(*names)
        both = self._directory / f"{names[0]}.chain.pem"
        both.write_bytes(key.read_bytes() + certificate.read_bytes())
        both.chmod(0o600)
        return both

    def client_context(self, expected: str) -> ssl.SSLContext:
        """Trusts this authority alone, and insists on the name `expected` whatever a client was told to connect to."""
        context = _Insists(ssl.PROTOCOL_TLS_CLIENT)
        context.insists_on = expected
        context.load_verify_locations(self.authority)
        return context


class _Insists(ssl.SSLContext):
    insists_on: str = ""

    def wrap_socket(self, *arguments: object, **options: object) -> ssl.SSLSocket:
        options["server_hostname"] = self.insists_on
        return super().wrap_socket(*arguments, **options)  # type: ignore[arg-type]
