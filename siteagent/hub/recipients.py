"""Files beside the configuration that say who exists: lists of recipients, and certificates of sites.

All of it blocks, and belongs in a thread.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from pathlib import Path

from siteagent.config.files import Stamp, stamp
from siteagent.config.sections import Node
from siteagent.errors import ConfigurationError
from siteagent.hub.nodes import NodeTable

_MOST_BYTES = 64_000_000
Stamps = tuple[Stamp | None, ...]


def stamps(nodes: Sequence[Node]) -> Stamps:
    """A value that differs once one of the lists was written."""
    return tuple(stamp(node.recipients_file) for node in nodes if node.recipients_file is not None)


def table(nodes: Sequence[Node], note: Callable[[str], None]) -> tuple[Stamps, NodeTable]:
    """The table of `nodes`, lists read. One that cannot be read, or is empty, lets everybody in: held, not bounced."""
    seen = stamps(nodes)
    known: dict[str, tuple[str, ...]] = {}
    for node in nodes:
        if node.recipients_file is None:
            continue
        try:
            found = listed(node.recipients_file)
        except OSError as error:
            note(f"cannot read {node.recipients_file}: {error.strerror}; every recipient of {node.name} is taken")
            continue
        if found:
            known[node.name] = (*(node.recipients or ()), *found)
        else:
            note(f"{node.recipients_file} lists nobody; every recipient of {node.name} is taken")
    return seen, NodeTable(nodes, recipients=known)


def listed(path: Path) -> tuple[str, ...]:
    """The addresses in `path`: one a line, ``@domain`` for all of a domain; what follows ``#`` or a blank is not read.

    So the lists that ``siteagent recipients`` prints can be used as they are. Raises OSError.
    """
    with path.open("rb") as file:
        text = file.read(_MOST_BYTES).decode("utf-8", "replace")
    words = (line.split("#", 1)[0].split() for line in text.splitlines())
    return tuple(line[0] for line in words if line and "@" in line[0])


def certificates(nodes: Sequence[Node]) -> dict[bytes, tuple[str, ...]]:
    """Certificate (DER) of a site -> the accounts that it proves. Raises ConfigurationError."""
    found: dict[bytes, tuple[str, ...]] = {}
    for node in nodes:
        path = node.certificate_file
        if path is None or node.account is None:
            continue
        try:
            der = ssl.PEM_cert_to_DER_cert(path.read_text("ascii").strip())
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or "no certificate in PEM form in it"
            raise ConfigurationError(
                f"cannot use certificate_file of node {node.name}",
                f"{path}: {why}",
                fix="put the certificate that the site shows there, in PEM form, and nothing else",
            ) from error
        found[der] = tuple(dict.fromkeys((*found.get(der, ()), node.account)))
    return found
