"""Who answers: the TLS context of a provider, and the look at the certificate after the handshake.

Verified means: signed by what `tls_ca_file` (else the system) trusts and made out to `host`, or exactly the
certificate of `tls_fingerprint`. Only a verified line ever carries credentials. Opportunistic TLS verifies nothing,
and is treated as a line in clear.
"""

from __future__ import annotations

import hashlib
import ssl

from siteagent.config.sections import Provider, Tls
from siteagent.errors import ConfigurationError, PermissionProblem
from siteagent.uplink.broken import Broken
from siteagent.uplink.sockets import literal

_NOT_YET_VALID = 9  # X509_V_ERR_CERT_NOT_YET_VALID: at boot, mostly our own clock


def client_context(provider: Provider) -> ssl.SSLContext:
    """The context for `provider`. Reads files, and the system's store: call it in an executor.

    Raises:
        ConfigurationError: `tls_ca_file` is missing or holds no certificate.
        PermissionProblem: it cannot be read.
    """
    try:
        context = ssl.create_default_context(cafile=provider.tls_ca_file if _by_authority(provider) else None)
    except PermissionError as error:
        raise PermissionProblem(
            f"cannot read tls_ca_file of provider {provider.name}",
            f"{provider.tls_ca_file}: {(error.strerror or 'permission denied').lower()}",
            fix="make it readable for the user that siteagent runs as",
        ) from error
    except (OSError, ssl.SSLError) as error:
        why = "no certificate in PEM form in it" if isinstance(error, ssl.SSLError) else (error.strerror or "").lower()
        raise ConfigurationError(
            f"cannot use tls_ca_file of provider {provider.name}",
            f"{provider.tls_ca_file}: {why}",
            fix="name a file with the certificate of the provider's authority, in PEM form",
        ) from error
    if not _by_authority(provider):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def verified(provider: Provider, context: ssl.SSLContext, certificate: bytes | None) -> bool:
    """Whether the peer that showed `certificate` (DER) in a handshake with `context` is who `provider` says.

    Raises:
        Broken: stage starttls; `tls` asks for verification, and this peer does not pass.
    """
    if not provider.tls.verified:
        return False
    if provider.tls_fingerprint is None:
        if context.verify_mode is ssl.CERT_REQUIRED and context.check_hostname:
            return True  # OpenSSL has looked; the handshake would not have succeeded
        raise Broken(provider, "starttls", "the TLS context does not verify", temporary=False)
    found = hashlib.sha256(certificate or b"").hexdigest()
    if found == provider.tls_fingerprint.partition(":")[2].replace(":", "").lower():
        return True
    raise Broken(
        provider,
        "starttls",
        f"its certificate is another one than tls_fingerprint names: sha256:{found}",
        temporary=False,
        fix=f"ask the provider whether it has a new certificate; if so, put that into tls_fingerprint of provider "
        f"{provider.name}",
    )


def bad_handshake(provider: Provider, error: Exception) -> Broken:
    """`error` of a handshake, translated."""
    if isinstance(error, ssl.SSLCertVerificationError):
        why = f"its certificate is not trusted: {error.verify_message.lower().rstrip('.')}"
        if error.verify_code == _NOT_YET_VALID:
            return Broken(provider, "starttls", why, temporary=True, fix="set this machine's clock")
        return Broken(
            provider,
            "starttls",
            why,
            temporary=False,
            fix=f"name its authority in tls_ca_file of provider {provider.name}, or pin it by tls_fingerprint "
            "(`siteagent doctor` prints it); where the name differs, correct host",
        )
    if isinstance(error, ssl.SSLError):
        why = f"the TLS handshake ended with {(error.reason or str(error)).lower().replace('_', ' ')}"
        fix = f'check port and tls of provider {provider.name}: "implicit" is for ports that begin with TLS'
        return Broken(provider, "starttls", why, temporary=False, fix=fix)
    if isinstance(error, ValueError):
        why = f"{provider.host} is not a name that a certificate can have"
        return Broken(provider, "starttls", why, temporary=False, fix=f"correct host of provider {provider.name}")
    why = "the connection ended in the TLS handshake"
    fix = f"nothing yet, the next ask may do better; if it lasts, check port and tls of provider {provider.name}"
    return Broken(provider, "starttls", why, temporary=True, fix=fix)


def server_name(provider: Provider) -> str:
    """The name that the certificate must be made out to, and that the server is told (SNI); an address as it is.

    Raises:
        Broken: stage starttls; `host` is no name that a certificate can have.
    """
    host = literal(provider.host) or provider.host.rstrip(".")
    if host.isascii():
        return host
    import idna  # its tables are big, and such names rare

    try:
        return idna.encode(host, uts46=True).decode("ascii")
    except idna.IDNAError as error:
        raise Broken(
            provider,
            "starttls",
            f"{host} is not a name that a certificate can have",
            temporary=False,
            fix=f"correct host of provider {provider.name}",
        ) from error


def _by_authority(provider: Provider) -> bool:
    return provider.tls in (Tls.REQUIRED, Tls.IMPLICIT) and provider.tls_fingerprint is None
