"""What the kernel knows of a far end that is gone, on a line that is really cut: the hub believes a site by it."""

from __future__ import annotations

import asyncio

import pytest
from siteagent.traffic import unanswered
from tests.e2e.lab import Lab, wait_for

pytestmark = [pytest.mark.netns]


def test_a_far_end_that_is_gone_does_not_answer_what_tcp_repeats(lab: Lab) -> None:
    line = lab.line()
    line.up()
    with (
        line.provider.listen(line.provider_address, 2525) as server,
        lab.site.connect(line.provider_address, 2525) as own,
        server.accept()[0] as far,
    ):
        transport = asyncio.BaseTransport({"socket": own})
        own.sendall(b"220 here\r\n")
        assert far.recv(100)
        assert not unanswered(transport)
        line.cut_after(0)
        far.sendall(b"EHLO there\r\n")  # swallowed, and from now on the connection is dead both ways
        wait_for(line.dropped, "the cut")
        own.sendall(b"250 there\r\n")
        wait_for(lambda: unanswered(transport), "nobody answers", seconds=15)
        line.heal()
        wait_for(lambda: not unanswered(transport), "it was the line alone", seconds=15)
