"""`doctor`: can mail flow, and where not, why and what to do. Looks, and changes nothing."""

from __future__ import annotations

import asyncio
import json

import click

from siteagent.cli.context import Context
from siteagent.cli.status import snapshot
from siteagent.config import files
from siteagent.config.draft import Problems
from siteagent.errors import ExitCode, SiteAgentError
from siteagent.status import counted

_PAINT = {"ok": "green", "warn": "yellow", "fail": "red"}
_MARK = {"ok": "ok  ", "warn": "warn", "fail": "FAIL"}


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.pass_obj
def doctor(context: Context, as_json: bool) -> int:
    """Look whether mail can flow: this host, the line, the provider, DNS.

    Each check says what was found; where that is not good also why it matters and what to do. Works with a running
    agent and without one; as root it also tries what others may do. Exit code 0 only if nothing failed.
    """
    from siteagent.doctor import site as sites
    from siteagent.doctor.table import examined

    path = context.path()
    try:
        document = _document(context)
        site = sites.opened(path, document=document)
    except Problems as problems:
        if as_json:
            rows = [
                {"name": "configuration", "status": "fail", "found": str(problem), "why": _WHY, "fix": f"edit {path}"}
                for problem in problems.problems
            ]
            context.out(json.dumps({"version": 1, "checks": rows}))
            return int(problems.exit_code)
        raise
    if not as_json:
        context.talk("looking ...")
    asyncio.run(sites.look_around(site))
    failed = 0
    rows = []
    for finding, why in examined(site):
        failed += finding.status == "fail"
        if as_json:
            rows.append(finding.document(why))
            continue
        context.out(f"{click.style(_MARK[finding.status], fg=_PAINT[finding.status])}  {finding.name}: {finding.found}")
        if finding.fix:
            context.out(f"        why: {why}\n        fix: {finding.fix}")
    if as_json:
        context.out(json.dumps({"version": 1, "checks": rows}, ensure_ascii=False))
    else:
        context.talk(_summary(failed, ask_only=site.configuration.ask_only))
    return int(ExitCode.UNAVAILABLE) if failed else int(ExitCode.DONE)


_WHY = "nothing starts with a configuration that has a problem"


def _summary(failed: int, *, ask_only: bool) -> str:
    if failed:
        return f"{counted(failed, 'check')} failed"
    # `test` cannot look into another server's mailboxes.
    next_one = "`siteagent ask` asks now" if ask_only else "`siteagent test` follows a message on its whole way"
    return f"nothing failed; {next_one}"


def _document(context: Context) -> dict[str, object]:
    """What the agent said last; {} where there is nothing to read."""
    try:
        document, _ = snapshot(files.state_directory(context.path()))
    except Problems:
        raise
    except SiteAgentError:
        return {}
    return dict(document)
