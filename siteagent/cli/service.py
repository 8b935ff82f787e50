"""`run` and `link-up`: the agent in the foreground, and the hint that wakes it."""

from __future__ import annotations

import asyncio
import sys

import click

from siteagent.cli.context import Context
from siteagent.cli.running import become_owner, imports_as_owner, log_writer, signals
from siteagent.errors import ExitCode
from siteagent.host import allocator


@click.command("run")
@click.pass_obj
def run(context: Context) -> int:
    """Run the agent, in the foreground, until SIGTERM or Ctrl-C.

    SIGHUP, or a changed configuration file, reloads. What happens is logged to standard error, one event a line.
    """
    path = context.path()
    configuration = context.configuration()
    allocator.settle()
    sockets = become_owner(configuration)
    # The agent's parts, 0.2 s of imports: not before the configuration is known to be right.
    with imports_as_owner():
        from siteagent.agent.parts import Agent
        from siteagent.agent.reload import Reloader

    async def work() -> None:
        log = log_writer(context, configuration)
        agent = Agent(configuration, log=log, sockets=sockets, transcript=None)
        reloader = Reloader(agent, path)
        with signals(stop=agent.stop, reload=lambda: agent.background(reloader.reload())):
            await agent.run()
        log.close()

    asyncio.run(work())
    return ExitCode.DONE


@click.command("link-up")
@click.argument("interface", required=False, default="")
@click.pass_obj
def link_up(context: Context, interface: str) -> int:
    """Tell a running agent to look at the network again; INTERFACE is the one that came up, if you know it.

    A hint, never an order: the agent looks for itself, and asks if there is something to ask for.
    """
    from siteagent.link.hookdir import leave_hint

    directory = context.configuration().link.hook_directory
    assert directory is not None, "config.files fills it in"
    leave_hint(directory, interface, f"link-up by {sys.argv[0]}")
    return ExitCode.DONE
