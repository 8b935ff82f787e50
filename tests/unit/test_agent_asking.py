"""`agent.asking`: what an ask gets beside the line, and what it never does: raise."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import trustme
from siteagent.agent.asking import Asker, greeting_name
from siteagent.config.sections import Auth, Limits, Provider, Tls
from siteagent.errors import TemporaryError
from siteagent.events import Line, NodeOutcome
from siteagent.store.forms import NameForms
from siteagent.wire.etrn import AskResult
from tests import scripted
from tests.site import LO, NOTHING, STARTED, conversation

NODES = ("office.example",)


async def localhost(host: str) -> tuple[str, ...]:
    return ("127.0.0.1",)


async def no_dns(host: str) -> tuple[str, ...]:
    raise TemporaryError(f"cannot resolve {host}", "no answer from DNS", fix="look at DNS")


def provider(**options: Any) -> Provider:
    return Provider(**{"name": "isp", "host": "localhost", "nodes": NODES, "tls": Tls.OFF, **options})


def asker(section: Provider, **options: Any) -> Asker:
    return Asker(section, **{"hostname": "mail.office.example", "limits": Limits(), "resolve": localhost, **options})


def ask(made: Asker, nodes: Sequence[str] = NODES) -> AskResult:
    return asyncio.run(_ask(made, nodes))


async def _ask(made: Asker, nodes: Sequence[str] = NODES) -> AskResult:
    return await made(nodes, LO, lambda answer: None)


def test_it_asks_the_address_that_the_name_resolves_to() -> None:
    async def scene() -> None:
        async with scripted.Provider(NOTHING) as isp:
            result = await _ask(asker(provider(port=isp.port)))
            assert [answer.outcome for answer in result.answers] == [NodeOutcome.NOTHING]

    asyncio.run(scene())


def test_a_name_without_an_address_is_a_temporary_failure_with_its_fix() -> None:
    failure = ask(asker(provider(), resolve=no_dns)).failure
    assert failure is not None
    assert (failure.stage, failure.temporary, failure.fix) == ("prepare", True, "look at DNS")
    assert failure.reason == "cannot resolve localhost: no answer from DNS"


def test_a_password_that_others_can_read_is_not_used(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("sesame\n")
    secret.chmod(0o644)
    section = provider(username="office", password_file=secret, auth=Auth.PLAIN, tls=Tls.REQUIRED)
    failure = ask(asker(section)).failure
    assert failure is not None and not failure.temporary
    assert "others can read" in failure.reason and "sesame" not in failure.reason


def test_a_ca_file_that_is_none_is_a_failure_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("rubbish")
    made = asker(provider(tls=Tls.REQUIRED, tls_ca_file=tmp_path / "ca.pem"))
    asyncio.run(made.prepare())  # tells nothing: the ask does
    failure = ask(made).failure
    assert failure is not None and str(tmp_path / "ca.pem") in failure.reason


def context_of(made: Asker) -> ssl.SSLContext | None:
    return asyncio.run(made._tls())


def test_a_tls_context_is_kept_until_its_ca_file_changes(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(path))
    made = asker(provider(tls=Tls.REQUIRED, tls_ca_file=path))
    first = context_of(made)
    assert first is not None and context_of(made) is first
    fresh = tmp_path / "fresh"
    trustme.CA().cert_pem.write_to_path(str(fresh))
    fresh.replace(path)
    assert context_of(made) is not first


def test_a_reload_counts_from_the_next_ask() -> None:
    async def scene() -> None:
        async with scripted.Provider(STARTED) as old, scripted.Provider(NOTHING) as new:
            made = asker(provider(port=old.port))
            assert (await _ask(made)).answers[0].outcome is NodeOutcome.STARTED
            made.reconfigure(provider(port=new.port), hostname="other.example", limits=Limits())
            assert (await _ask(made)).answers[0].outcome is NodeOutcome.NOTHING
            assert "EHLO other.example" in new.commands

    asyncio.run(scene())


def test_the_form_of_a_name_that_was_taken_is_sent_first_the_next_time(tmp_path: Path) -> None:
    forms = NameForms(tmp_path / "forms.json", note=lambda text: None)
    forms.learn("isp", NODES[0], "@office.example")

    async def scene() -> None:
        async with scripted.Provider(conversation(("ETRN @office.example", "250 started"))) as isp:
            result = await _ask(asker(provider(port=isp.port, learn_name_form=True), forms=forms))
            assert result.answers[0].outcome is NodeOutcome.STARTED and isp.problems == []

    asyncio.run(scene())


def test_an_ask_that_is_cancelled_leaves_the_connection_at_once() -> None:
    async def scene() -> None:
        async with scripted.Provider("! silent") as isp:
            task = asyncio.ensure_future(_ask(asker(provider(port=isp.port))))
            async with asyncio.timeout(5):
                while not isp.heard:
                    await asyncio.sleep(0.005)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert task.cancelled()
            await asyncio.wait_for(isp.settled(), 5)

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("hostname", "source", "said"),
    [
        ("mail.office.example", "8.8.4.4", "mail.office.example"),
        ("[127.0.0.1]", "8.8.4.4", "[8.8.4.4]"),  # read at boot, before there was a line
        ("[127.0.0.1]", "192.168.1.2", "[192.168.1.2]"),
        ("[8.8.8.8]", "8.8.4.4", "[8.8.4.4]"),  # the address of an earlier line
        ("[8.8.8.8]", "192.168.1.2", "[8.8.8.8]"),  # written by somebody who knows the router's
        ("[IPv6:::1]", "2a00::1", "[IPv6:2a00::1]"),
        ("[127.0.0.1]", "fe80::1%ppp0", "[IPv6:fe80::1]"),
    ],
)
def test_a_host_without_a_name_greets_by_the_address_of_the_line(hostname: str, source: str, said: str) -> None:
    assert greeting_name(hostname, Line("ppp0", source)) == said


def test_the_lines_own_address_is_what_the_provider_hears() -> None:
    async def scene() -> None:
        async with scripted.Provider(NOTHING) as isp:
            await _ask(asker(provider(port=isp.port), hostname="[127.0.0.9]"))
            assert isp.heard[0].lines[0] == "EHLO [127.0.0.1]"

    asyncio.run(scene())
