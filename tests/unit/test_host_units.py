"""What systemd is told of a configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from siteagent.config.load import parse
from siteagent.config.sections import Configuration, HubConfiguration
from siteagent.host import units

PROVIDER = '[[provider]]\nhost = "mx.isp.example"\nnodes = ["office.example"]\n'
ETC = Path("/etc/siteagent/siteagent.toml")


def configuration(
    more: str = "", *, maildir: str = "/var/mail/siteagent/alice", provider: str = "", **_: Any
) -> Configuration:
    text = (
        f'state_directory = "/var/lib/siteagent"\n{PROVIDER}{provider}[[mailbox]]\n'
        'addresses = ["alice@office.example"]\n'
        f'maildir = "{maildir}"\n{more}'
    )
    return parse(text, path="", kind=Configuration)


def test_what_is_usual_needs_no_more_than_the_socket() -> None:
    text = units.drop_in(configuration(), ETC)
    assert [row for row in text.splitlines() if not row.startswith("#")] == [
        "[Unit]",
        "Requires=siteagent.socket",
        "After=siteagent.socket",
    ]


def test_ipv4_and_ipv6_have_sockets_apart() -> None:
    text = units.socket_unit(units.socket_endpoints(configuration()), "x")
    assert "ListenStream=0.0.0.0:25\nListenStream=[::]:25\nBindIPv6Only=ipv6-only" in text


def test_a_socket_for_one_address_may_come_before_the_address() -> None:
    value = configuration('[listener]\nlisten = ["192.0.2.1:2525"]\n')
    assert "FreeBind=yes" in units.socket_unit(units.socket_endpoints(value), "x")


def test_a_port_that_opens_when_asked_takes_the_capability_and_no_socket() -> None:
    value = configuration('[listener]\nopen = "asked"\n')
    assert units.socket_endpoints(value) == ()
    text = units.drop_in(value, ETC)
    assert "AmbientCapabilities=CAP_NET_BIND_SERVICE" in text and "siteagent.socket" not in text


def test_ask_only_takes_neither() -> None:
    value = configuration("[listener]\nlisten = []\n")
    text = units.drop_in(value, ETC)
    assert "CAP_" not in text and "socket" not in text


def test_of_the_homes_the_service_sees_the_maildirs_and_nothing_else() -> None:
    text = units.drop_in(configuration(maildir="/home/alice/my mail/Maildir"), ETC)
    assert 'ProtectHome=tmpfs\nBindPaths=-"/home/alice/my mail/Maildir"' in text


def test_a_maildir_elsewhere_is_opened_for_writing_and_its_root_is_made() -> None:
    value = configuration(maildir="/srv/mail/100%/alice")
    assert "ReadWritePaths=-/srv/mail/100%%/alice" in units.drop_in(value, ETC)
    assert units.mail_directories(value) == "d /srv/mail/100%% 0750 siteagent siteagent -\n"


def test_the_directory_of_the_metrics_is_opened_for_writing() -> None:
    value = configuration('[metrics]\nfile = "/var/lib/node/siteagent.prom"\n')
    assert "ReadWritePaths=-/var/lib/node\n" in units.drop_in(value, ETC)


def test_a_directory_of_the_systems_own_is_not_given_away() -> None:
    assert units.mail_directories(configuration(maildir="/srv/alice")) == ""


def test_a_password_without_a_file_comes_as_a_credential_by_its_name_alone() -> None:
    text = units.drop_in(configuration(provider='name = "isp"\nusername = "office"\n'), ETC)
    assert "LoadCredential=siteagent.isp.password\n" in text


def test_a_configuration_elsewhere_is_named() -> None:
    text = units.drop_in(configuration(), Path("/srv/site agent/siteagent.toml"))
    assert 'Environment="SITEAGENT_CONFIG=/srv/site agent/siteagent.toml"' in text


def test_the_hub_gets_its_places_too() -> None:
    text = (
        'state_directory = "/srv/hub/state"\n[[node]]\nname = "office.example"\ndomains = ["office.example"]\n'
        'deliver_to = "office.example:25"\n'
    )
    value = parse(text, path="", kind=HubConfiguration)
    found = units.hub_drop_in(value, Path("/etc/siteagent/hub.toml"))
    assert "ReadWritePaths=-/srv/hub/state\n" in found
