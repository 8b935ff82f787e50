from __future__ import annotations

import os
import socket
import sys

import pytest
from siteagent.inbound.holder import holder_of


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/net is Linux's")
def test_who_holds_a_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as own:
        assert str(os.getpid()) in (holder_of(own.getsockname()[1]) or "")


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/net is Linux's")
def test_a_free_port_has_no_holder() -> None:
    with socket.create_server(("127.0.0.1", 0)) as own:
        port = own.getsockname()[1]
    assert holder_of(port) is None
