"""The first hub.toml of a host, where `hub add-node` finds none: whether it stands alone, its name, its certificate."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from siteagent.errors import CannotCreate

_CERTIFICATE, _KEY = "hub.pem", "hub.key"
_HEAD = "# The hub: mail of sites whose line comes and goes is held here. `siteagent check --hub` reads this file.\n"


@dataclass(frozen=True, slots=True)
class NewHub:
    """`hostname` None: not said. `alone`: no mail server stands in front, and port 25 is the hub's own."""

    hostname: str | None = None
    alone: bool = False

    def text(self, folder: Path, *, atrn: bool) -> str:
        """The file without any node. `folder`: where it will lie; a certificate that is there is used."""
        rows = [_HEAD]
        if self.hostname is not None:
            rows.append(f"hostname = {json.dumps(self.hostname)}\n")
        listen = ["0.0.0.0:25", "[::]:25"] if self.alone else ["127.0.0.1:2525"]
        rows += ["[listener]", f"listen = {json.dumps(listen)}"]
        if (folder / _CERTIFICATE).exists() and (folder / _KEY).exists():
            rows += [f"tls_certificate = {json.dumps(_CERTIFICATE)}", f"tls_key = {json.dumps(_KEY)}"]
        if atrn:
            rows += ["", "[odmr]", 'listen = ["0.0.0.0:366", "[::]:366"]']
        return "\n".join(rows) + "\n"

    def make_certificate(self, folder: Path) -> Sequence[Path]:
        """A certificate of the hub's own, if its name is known; the files made. None where there is one, or no openssl.

        Raises CannotCreate.
        """
        paths = (folder / _CERTIFICATE, folder / _KEY)
        program = shutil.which("openssl")
        if self.hostname is None or program is None or any(os.path.lexists(path) for path in paths):
            return ()
        argv = [program, *_certificate_options(self.hostname, *paths)]
        done = subprocess.run(argv, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
        if done.returncode != 0:
            for path in paths:
                path.unlink(missing_ok=True)
            why = done.stderr.strip().splitlines()[-1:] or [f"openssl ended with {done.returncode}"]
            raise CannotCreate(f"cannot make {paths[0]}", why[0], fix="put a certificate there, hub.key beside it")
        paths[1].chmod(0o600)
        return paths


def _certificate_options(hostname: str, certificate: Path, key: Path) -> list[str]:
    """As docs/hub.md has it: ten years, for that name, signed by itself."""
    return [
        *("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "3650", "-subj", f"/CN={hostname}"),
        *("-addext", f"subjectAltName=DNS:{hostname}", "-keyout", str(key), "-out", str(certificate)),
    ]
