"""The listener's certificate: loaded off the loop, loaded again when its files change on disk."""

from __future__ import annotations

import ssl
from pathlib import Path

from siteagent.config.sections import Listener
from siteagent.errors import ConfigurationError, PermissionProblem


class ServerContext:
    """`current` is what new sessions use; None where no certificate is configured. `load` and `refresh` block."""

    def __init__(self, section: Listener) -> None:
        self.current: ssl.SSLContext | None = None
        self.reconfigure(section)

    def reconfigure(self, section: Listener) -> None:
        """Other files; `load` must follow."""
        self._certificate, self._key = section.tls_certificate, section.tls_key
        self._loaded: tuple[tuple[int, int, int], ...] | None = None

    def load(self) -> None:
        """Reads the files. Raises ConfigurationError, PermissionProblem; the context in use stays then."""
        if self._certificate is None or self._key is None:
            self.current = None
            return
        stamps = self._stamps()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.num_tickets = 1  # a ticket is 250 octets of a paid line, and nobody resumes a session twice
        what = f"cannot use the certificate {self._certificate}"
        try:
            # A password that is given is not asked for: on a terminal nobody may sit at.
            context.load_cert_chain(self._certificate, self._key, password="")
        except PermissionError as error:
            raise PermissionProblem(
                what, f"{error.filename or self._key}: {error.strerror}", fix="let the user that runs siteagent read it"
            ) from error
        except (OSError, ssl.SSLError) as error:
            why = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
            fix = "tls_certificate and tls_key must be PEM, and belong together"
            raise ConfigurationError(what, str(why).replace("_", " ").lower(), fix=fix) from error
        self.current, self._loaded = context, stamps

    def refresh(self) -> str | None:
        """Loads again if a file changed. What is wrong with it is returned, once; the old one then goes on."""
        if self._certificate is None or self._key is None or self._stamps() == self._loaded:
            return None
        try:
            self.load()
        except (ConfigurationError, PermissionProblem) as error:
            self._loaded = self._stamps()
            return f"{error.what}: {error.why}; the one in use stays"
        return None

    def _stamps(self) -> tuple[tuple[int, int, int], ...]:
        found = []
        for path in (self._certificate, self._key):
            try:
                status = Path(path).stat() if path else None
            except OSError:
                status = None
            found.append((status.st_mtime_ns, status.st_size, status.st_ino) if status else (0, 0, 0))
        return tuple(found)
