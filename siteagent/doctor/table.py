"""Every check there is, in the order in which people should read them: why it matters, and who looks.

A check that breaks is a finding too, and never the end of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from siteagent.doctor import here, outward
from siteagent.doctor.findings import Finding, fail
from siteagent.doctor.site import Site


@dataclass(frozen=True, slots=True)
class Check:
    why: str
    look: Callable[[Site], Iterable[Finding]]


CHECKS: tuple[Check, ...] = (
    Check("only root, or the agent's own user, sees what the agent sees", here.onlooker),
    Check("nothing starts with a configuration that has a problem", here.configuration),
    Check("whoever reads the password can take your mail", here.passwords),
    Check("mail that was accepted must have a place, and somebody who can read it", here.maildirs),
    Check("without room nothing can be promised, and mail is asked to come again", here.disk),
    Check("the provider connects to this port", here.port),
    Check("senders and providers may refuse an expired certificate", here.certificate),
    Check("somebody must ask when the line comes up", here.agent),
    Check("the service must be there again after a power cut", here.at_boot),
    Check("the service sees and may write what it was installed for, and nothing else", here.as_configured),
    Check("what was installed wakes the agent at once when the line comes up", here.hooks),
    Check("whoever may write there can wake the agent, and root's hooks write there", here.hook_directory),
    Check("certificates and retries go by the time", here.clock),
    Check("without a way to the provider nothing can be asked", outward.way_out),
    Check("asked by ETRN, the provider connects to this address", outward.own_address),
    Check("the provider's connection must find the agent at the line's own address", outward.reached_listener),
    Check("it must be able to hold mail and release it when we ask", outward.providers),
    Check("a provider that connects from an unlisted address is turned away", outward.peers),
    Check("this name is how the provider finds us, and what it leads to gets our mail", outward.reached_as),
    Check("mail that does not go to the provider cannot be held by it", outward.mx),
    Check("what happened last tells what will happen next", outward.last_rounds),
)


def examined(site: Site) -> Iterator[tuple[Finding, str]]:
    """Every finding with why it matters, in order."""
    for check in CHECKS:
        try:
            for finding in check.look(site):
                yield finding, check.why
        except Exception as error:  # a bug in one check must not hide what the others found
            name = check.look.__name__.replace("_", " ")
            yield fail(name, f"this check broke: {type(error).__name__}: {error}", "report this as a bug"), check.why
