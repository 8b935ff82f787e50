"""Forms of names that a configuration holds: host names, mail addresses, peers, HOST:PORT.

Each function answers with the name in the one spelling that comparisons use, or None where it has no such form. IDN
both ways: a domain in letters and the same in its ``xn--`` form are one (RFC 5890 §2.3.2.1). Pure; nothing is resolved.
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata

from siteagent.wire.address import Fault, rcpt_argument

# RFC 1123 §2.1, and the underscore that real names of hosts and of SPF records have.
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)\Z")
_QUOTED_PAIR = re.compile(r"\\(.)")

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def host_name(text: str) -> str | None:
    """`text` as a host or domain name, lower case, ``xn--`` form, without a final dot."""
    name = text.removesuffix(".").lower()
    if not name.isascii():
        import idna  # 10 ms: paid by those who write such names

        try:
            name = idna.encode(name, uts46=True).decode("ascii")
        except idna.IDNAError:
            return None
    labels = name.split(".")
    if not name or len(name) > 253 or not all(_LABEL.match(label) for label in labels):
        return None
    # A last label of digits alone is a mistyped address, and no top level domain has one (RFC 3696 §2).
    return None if labels[-1].isdigit() else name


def ip_address(text: str) -> str | None:
    """`text` as an IP address."""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return None


def host(text: str) -> str | None:
    """A host name or an address."""
    return ip_address(text) or host_name(text)


def own_name(text: str) -> str | None:
    """What may stand in EHLO and banner: a host name, or an address literal (RFC 5321 §4.1.3)."""
    if text.startswith("[") and text.endswith("]"):
        literal = text[1:-1]
        tagged = literal[:5].lower() == "ipv6:"
        address = ip_address(literal[5:] if tagged else literal)
        return text if address is not None and (":" in address) == tagged else None
    return host_name(text)


def mail_domain(text: str) -> str | None:
    """The domain of a mail address."""
    return host_name(text)


def mail_address(text: str) -> str | None:
    """``local@domain`` or ``@domain``, case folded (the local part too: nobody has two mailboxes Bob and bob)."""
    local, at, domain = text.rpartition("@")
    folded = mail_domain(domain) if at else None
    if folded is None:
        return None
    if not local:
        return f"@{folded}"
    # What no RCPT can spell would never match one.
    if local.startswith("@") or isinstance(rcpt_argument(f"TO:<{local}@{folded}>".encode()), Fault):
        return None
    return f"{_folded_local(local)}@{folded}"


def _folded_local(local: str) -> str:
    """As routing compares: quotes undone, NFC, without case."""
    if len(local) >= 2 and local[0] == local[-1] == '"':
        local = _QUOTED_PAIR.sub(r"\1", local[1:-1])
    return unicodedata.normalize("NFC", local).casefold()


def peer(text: str) -> str | None:
    """An address, a network, a host name or ``spf:`` and a domain."""
    kind, colon, rest = text.partition(":")
    if colon and kind == "spf":
        name = host_name(rest)
        return f"spf:{name}" if name else None
    network = peer_network(text)
    if network is not None:
        return str(network)
    return None if "/" in text else host_name(text)


def peer_network(text: str) -> Network | None:
    """A peer that is an address or a network."""
    try:
        return ipaddress.ip_network(text, strict=True)
    except ValueError:
        return None


def meant_network(text: str) -> str | None:
    """The network that ``192.0.2.7/24`` lies in: what was probably meant."""
    try:
        return str(ipaddress.ip_network(text, strict=False))
    except ValueError:
        return None


def host_and_port(text: str) -> tuple[str, int] | None:
    """``HOST:PORT``; an IPv6 address in brackets."""
    name, colon, port = text.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()) or not 1 <= int(port[:6]) <= 65535 or len(port) > 5:
        return None
    bracketed = name.startswith("[") and name.endswith("]")
    folded = ip_address(name[1:-1]) if bracketed else host(name) if ":" not in name else None
    return (folded, int(port)) if folded else None
