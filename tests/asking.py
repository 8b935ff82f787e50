"""Runs `uplink.ask` against the scripted provider: what the tests of the client share."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trustme
from siteagent.config.sections import Auth, Limits, NotAdvertised, Provider, Tls
from siteagent.events import Line
from siteagent.uplink.ask import ask
from siteagent.wire.etrn import AskResult, NodeAnswer
from tests import scripted

HOST = "127.0.0.1"
LINE = Line(interface="lo", source="127.0.0.1")
NODE = "office.example"


@dataclass(slots=True)
class Asked:
    result: AskResult
    server: scripted.Provider
    streamed: list[NodeAnswer] = field(default_factory=list)
    transcript: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def outcomes(self) -> list[tuple[str, int | None]]:
        return [(answer.outcome.value, answer.code) for answer in self.result.answers]

    @property
    def commands(self) -> list[str]:
        return self.server.commands

    @property
    def verbs(self) -> list[str]:
        return [line.split(" ")[0] for line in self.commands]


def limits(**seconds: float) -> Limits:
    """Short deadlines: a test that meets one by mistake ends soon."""
    return Limits(**{"connect_seconds": 5.0, "command_seconds": 5.0, "etrn_reply_seconds": 5.0, **seconds})


def section(port: int, **options: Any) -> Provider:
    kinds = {"tls": Tls, "auth": Auth, "when_not_advertised": NotAdvertised}
    options = {key: kinds[key](value) if key in kinds else value for key, value in options.items()}
    return Provider(**{"host": HOST, "nodes": (NODE,), "name": "isp", "port": port, **options})


async def asking(
    *dialogues: scripted.Dialogue | str,
    nodes: Sequence[str] = (NODE,),
    line: Line | None = LINE,
    addresses: Sequence[str] = (HOST,),
    hostname: str = "mail.office.example",
    limit: Limits | None = None,
    password: str | None = None,
    server_tls: ssl.SSLContext | None = None,
    implicit: bool = False,
    forms: Mapping[str, str] | None = None,
    **options: Any,
) -> Asked:
    """One `ask` against a scripted provider that plays `dialogues`; `options` are those of the provider's table."""
    streamed: list[NodeAnswer] = []
    transcript: list[str] = []
    clock = asyncio.get_running_loop().time
    async with scripted.Provider(*dialogues, tls=server_tls, implicit=implicit) as server:
        began = clock()
        result = await ask(
            section(server.port, **options),
            nodes,
            line=line,
            addresses=addresses,
            hostname=hostname,
            limits=limit or limits(),
            password=password,
            tls=None,
            on_answer=streamed.append,
            transcript=transcript.append,
            forms=forms,
        )
        seconds = clock() - began
        await server.settled()
    return Asked(result, server, streamed, transcript, seconds)


def asked(*dialogues: scripted.Dialogue | str, **options: Any) -> Asked:
    return asyncio.run(asking(*dialogues, **options))


@dataclass(frozen=True, slots=True)
class Trust:
    """An authority made for the test, and a server's context with a certificate of it."""

    authority: Path
    server: ssl.SSLContext
    fingerprint: str


def trust(directory: Path, name: str = HOST, *, fingerprint_of_other: bool = False) -> Trust:
    import hashlib

    authority = trustme.CA()
    certificate = authority.issue_cert(name)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    path = directory / f"authority-{name}.pem"
    authority.cert_pem.write_to_path(str(path))
    shown = authority.issue_cert(name) if fingerprint_of_other else certificate
    der = ssl.PEM_cert_to_DER_cert(shown.cert_chain_pems[0].bytes().decode("ascii"))
    return Trust(path, context, f"sha256:{hashlib.sha256(der).hexdigest()}")
