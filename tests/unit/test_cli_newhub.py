"""The first hub.toml of a host."""

from __future__ import annotations

from pathlib import Path

import pytest
from siteagent.cli.newhub import NewHub
from siteagent.config.load import parse
from siteagent.config.sections import HubConfiguration
from siteagent.errors import CannotCreate


@pytest.mark.parametrize(("alone", "ports"), [(True, ["0.0.0.0:25", "[::]:25"]), (False, ["127.0.0.1:2525"])])
def test_alone_it_has_port_25_and_else_it_stays_behind_whoever_has(
    tmp_path: Path, alone: bool, ports: list[str]
) -> None:
    value = parse(NewHub("hub.example", alone).text(tmp_path, atrn=False), path="", kind=HubConfiguration)
    assert [str(each) for each in value.listener.listen] == ports
    assert value.odmr.listen == ()


def test_a_certificate_that_is_there_is_named_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "hub.pem").write_text("theirs")
    (tmp_path / "hub.key").write_text("theirs")
    new = NewHub("hub.example")
    assert new.make_certificate(tmp_path) == ()
    assert 'tls_certificate = "hub.pem"' in new.text(tmp_path, atrn=True)
    assert (tmp_path / "hub.pem").read_text() == "theirs"


@pytest.mark.tools("openssl")
def test_a_certificate_that_cannot_be_made_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(CannotCreate):
        NewHub("hub.example").make_certificate(tmp_path / "absent")
    assert list(tmp_path.iterdir()) == []
