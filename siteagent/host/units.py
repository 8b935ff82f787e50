"""What systemd is told beyond the units that we ship: drop-ins, sockets and directories, made from a configuration.

Texts only; `host.install` puts them in place. Sockets stay with systemd wherever they can: the agent then needs no
capability, and no connection is lost while it starts anew. ``open = "asked"`` cannot have that: its port is closed
between rounds, so the agent opens it itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from siteagent.config.passwords import credential_name
from siteagent.config.sections import Configuration, Endpoint, HubConfiguration, Open
from siteagent.host.grants import USER, below, in_a_home

MAIL_ROOT = Path("/var/mail/siteagent")
STATE = Path("/var/lib/siteagent")
_BUILT_IN = (MAIL_ROOT, STATE)
_WRITTEN = "# Written by `siteagent install-service` from {}; run it again after changing that.\n"


def socket_endpoints(configuration: Configuration | None) -> tuple[Endpoint, ...]:
    """What systemd shall listen on for the agent; () where the agent has to do so itself, or nobody listens."""
    if configuration is None:
        return (Endpoint("0.0.0.0", 25), Endpoint("::", 25))
    listener = configuration.listener
    if listener.open is Open.ASKED or any(endpoint.port == 0 for endpoint in listener.listen):
        return ()
    return listener.listen


def possible_here(endpoints: Sequence[Endpoint]) -> tuple[Endpoint, ...]:
    """Those of `endpoints` that this host, which may lack IPv6, can listen on."""
    both = Path("/proc/net/if_inet6").exists()
    return tuple(endpoint for endpoint in endpoints if both or ":" not in endpoint.host)


def socket_unit(endpoints: Sequence[Endpoint], source: str) -> str:
    """``siteagent.socket``. IPv6 apart, so that no peer appears as an IPv4-mapped address."""
    own = any(endpoint.host not in ("0.0.0.0", "::") for endpoint in endpoints)
    rows = [
        "[Unit]",
        "Description=siteagent: the port that the mail provider connects to",
        "",
        "[Socket]",
        *(f"ListenStream={endpoint}" for endpoint in endpoints),
        "BindIPv6Only=ipv6-only",
        # The address may come later than the socket.
        *(["FreeBind=yes"] if own else []),
        "Backlog=128",
        "FileDescriptorName=smtp",
        "",
        "[Install]",
        "WantedBy=sockets.target",
    ]
    return _WRITTEN.format(source) + "\n".join(rows) + "\n"


def drop_in(configuration: Configuration | None, source: Path | None) -> str:
    """What the shipped unit does not know: sockets, places to write, credentials; for this configuration."""
    origin = str(source) if source is not None and configuration is not None else "nothing but defaults"
    unit: list[str] = []
    service: list[str] = []
    if socket_endpoints(configuration):
        unit += ["Requires=siteagent.socket", "After=siteagent.socket"]
    elif configuration is not None and any(0 <= e.port < 1024 for e in configuration.listener.listen):
        service += [
            "# The agent opens its port itself, and closes it between rounds.",
            "AmbientCapabilities=CAP_NET_BIND_SERVICE",
            "CapabilityBoundingSet=CAP_NET_BIND_SERVICE",
        ]
    if configuration is not None and source is not None:
        service += _configured(configuration, source)
    rows = [*(["[Unit]", *unit, ""] if unit else []), *(["[Service]", *service] if service else [])]
    return _WRITTEN.format(origin) + "\n".join(rows).rstrip("\n") + "\n"


def _configured(configuration: Configuration, source: Path) -> Iterator[str]:
    if source != Path("/etc/siteagent/siteagent.toml"):
        yield f"Environment={_quoted(f'SITEAGENT_CONFIG={source}')}"
    places = [mailbox.maildir for mailbox in configuration.mailbox]
    assert configuration.state_directory is not None
    places.append(configuration.state_directory)
    if configuration.log.file:
        places.append(Path(configuration.log.file).parent)
    if configuration.metrics.file is not None:
        places.append(configuration.metrics.file.parent)
    yield from _places(places)
    for provider in configuration.provider:
        if provider.username is not None and provider.password_file is None:
            # By its name alone: looked for in /etc/credstore and its like, and one that is not there fails nothing.
            yield f"LoadCredential={credential_name(provider)}"


def _places(places: Sequence[Path]) -> Iterator[str]:
    homes = [place for place in dict.fromkeys(places) if in_a_home(place)]
    if homes:
        yield "# Of the homes, the service sees these Maildirs and nothing else."
        yield "ProtectHome=tmpfs"
        yield from (f"BindPaths=-{_quoted(place)}" for place in homes)
    for place in dict.fromkeys(places):
        if place not in homes and not below(place, _BUILT_IN):
            yield f"ReadWritePaths=-{_quoted(place)}"


def _quoted(text: object) -> str:
    """`text` as one word of a unit: systemd.syntax(7), and no specifier in it."""
    plain = str(text).replace("%", "%%")
    escaped = plain.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"' if any(c in plain for c in " \"'\\") else plain


def mail_directories(configuration: Configuration | None) -> str:
    """Further lines of tmpfiles.d(5): the directories that Maildirs of ours stand in."""
    if configuration is None:
        return ""
    places = dict.fromkeys(mailbox.maildir.parent for mailbox in configuration.mailbox)
    wanted = [place for place in places if not in_a_home(place) and place not in (MAIL_ROOT, Path("/var/mail"))]
    # A directory of the system's (/var/spool) is not ours to give away.
    return "".join(f"d {_quoted(place)} 0750 {USER} {USER} -\n" for place in wanted if len(place.parts) > 3)


def hub_drop_in(configuration: HubConfiguration | None, source: Path | None) -> str:
    """The same for the hub."""
    rows: list[str] = []
    if configuration is not None and source is not None:
        if source != Path("/etc/siteagent/hub.toml"):
            rows.append(f"Environment={_quoted(f'SITEAGENT_HUB_CONFIG={source}')}")
        assert configuration.state_directory is not None
        if configuration.state_directory != Path("/var/lib/siteagent-hub"):
            rows.append(f"ReadWritePaths=-{_quoted(configuration.state_directory)}")
    origin = str(source) if source is not None and configuration is not None else "nothing but defaults"
    return _WRITTEN.format(origin) + ("[Service]\n" + "\n".join(rows) + "\n" if rows else "")
