"""`ask`: a round now, and its end waited for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from difflib import get_close_matches

import click

from siteagent.cli import rounds
from siteagent.cli.context import Context
from siteagent.config.sections import Configuration
from siteagent.errors import UsageError, worst

SILENCE = (
    "{name} agreed and then nobody connected. Mostly nothing was waiting: many servers say 250 to an empty queue too.\n"
    "  If mail should have come: `siteagent test {name}` follows a message on its whole way."
)


@click.command("ask")
@click.argument("providers", nargs=-1, metavar="[PROVIDER]...")
@click.option("--node", "nodes", multiple=True, metavar="NAME", help="Only for this node; may be repeated.")
@click.option("--timeout", type=click.FloatRange(min=1), metavar="SECONDS", help="End the round then.")
@click.option("--json", "as_json", is_flag=True, help="Print the rounds as one JSON document.")
@click.pass_obj
def ask(
    context: Context, providers: tuple[str, ...], nodes: tuple[str, ...], timeout: float | None, as_json: bool
) -> int:
    """Ask the providers now, and wait until the mail is there.

    A running agent is asked to do it; without one, this command listens, asks, files the mail and ends: what cron
    and ip-up scripts need. Exit code 0: all is there, or nothing was waiting.
    """
    configuration = context.configuration()
    names = chosen_providers(configuration, providers)
    names = _who_has(configuration, names, nodes)
    asked = rounds.ask(context, configuration, rounds.Wanted(names, nodes, timeout))
    if as_json:
        found = [{"provider": name, **latest} for name, latest in asked.rounds.items()]
        context.out(json.dumps({"version": 1, "rounds": found}))
    else:
        for name, latest in asked.rounds.items():
            context.out(rounds.summary(name, latest))
    for name, latest in asked.rounds.items():
        if latest["outcome"] == "silent":
            context.talk(SILENCE.format(name=name))
    return worst(rounds.EXIT_CODES[latest["outcome"]] for latest in asked.rounds.values())


def chosen_providers(configuration: Configuration, wanted: Sequence[str]) -> tuple[str, ...]:
    """The names in `wanted`, all of them for none. Raises UsageError for one that is not configured."""
    known = [provider.name for provider in configuration.provider]
    for name in wanted:
        _check(name, known, "provider")
    return tuple(dict.fromkeys(wanted or known))


def _who_has(configuration: Configuration, providers: Sequence[str], nodes: Sequence[str]) -> tuple[str, ...]:
    """Those of `providers` that have one of `nodes`; all for none. Raises UsageError for a node that nobody has."""
    chosen = [p for p in configuration.provider if p.name in providers]
    for node in nodes:
        _check(node, [node for p in chosen for node in p.nodes], "node")
    return tuple(p.name for p in chosen if not nodes or set(nodes) & set(p.nodes))


def _check(name: str, known: Sequence[str], kind: str) -> None:
    if name not in known:
        close = get_close_matches(name, known, n=1)
        guess = f"did you mean {close[0]}? " if close else ""
        raise UsageError(
            f"cannot ask {kind} {name}",
            "there is none of that name in the configuration",
            fix=f"{guess}known: {', '.join(known)}",
        )
