"""The recipes that are printed for other people's servers, put into those servers as they are printed, and run.

`provider-sheet --for postfix|exim|sendmail` makes a provider that holds the mail until it is asked; `hub add-node
--behind postfix` makes a Postfix in front of a hub. Only paths and the skeleton of the configuration are the test's.
"""

from __future__ import annotations

import re
import time
from dataclasses import replace

import pytest
from tests.e2e.agent import Agent
from tests.e2e.hub import Hub
from tests.e2e.lab import Lab, Sink, smtp, wait_for
from tests.e2e.messages import ALICE, CAROL, NODES, Shape, simple
from tests.e2e.postfix import MASTER, SUBMISSION_PORT, PostfixProvider, Terms
from tests.e2e.servers import Exim, Sendmail, Server

pytestmark = [pytest.mark.netns]

REACHED_AS = "office.dyn.example"


def indented(text: str, begin: str, end: str = "\0") -> list[str]:
    """The lines that are set in by two blanks, from the line that has `begin` to the next one that has `end`."""
    block = text.partition(begin)[2].partition("\n")[2].partition(end)[0]
    return [line[2:] for line in block.splitlines() if line.startswith("  ")]


def agent_of(lab: Lab, provider: PostfixProvider | Server, *, reached_as: str = REACHED_AS) -> Agent:
    provider.namespace.knows(REACHED_AS, provider.line.site_address)
    table = {f"provider.{provider.name}": f'reached_as = "{reached_as}"'}
    table[f"provider.{provider.name}"] += "\nfirst_connection_seconds = 2\nask_every_seconds = 0"
    return lab.agent(providers=[provider], tables=table)  # type: ignore[list-item]


def holds_until_asked(lab: Lab, agent: Agent, provider: PostfixProvider | Server, sent: list[Shape]) -> None:
    """With the line up mail is not tried before it is asked for; a round brings all of it."""
    provider.line.up()
    agent.wait_for_round(provider.name)  # it asks by itself, for nothing yet
    provider.submit(sent)
    wait_for(lambda: provider.waiting() >= len(sent), "held", seconds=20)
    time.sleep(1)
    assert [event for event in agent.events() if event.get("peer") == provider.address] == []
    assert agent.command("ask", seconds=60).returncode == 0, provider.log_tail()
    assert agent.settle(sent) == [], provider.log_tail()
    wait_for(lambda: provider.waiting() == 0, "its queue empty", seconds=20)


# --- Postfix ----------------------------------------------------------------------------------------------------------


@pytest.mark.postfix
def test_postfix_by_its_sheet_holds_mail_until_asked_and_refuses_who_does_not_exist(lab: Lab) -> None:
    isp = lab.provider()
    agent = agent_of(lab, isp)
    sheet = agent.command("provider-sheet", "isp", "--for", "postfix").stdout
    recipients = lab.directory / "site-recipients"
    recipients.write_text(agent.command("recipients", "--format", "postfix").stdout)
    main = indented(sheet, "main.cf", "master.cf")
    assert len(main) == 8
    printed = "\n".join(main).replace("/etc/postfix/site-recipients", str(recipients))
    isp.stop()
    text = (isp.etc / "main.cf").read_text()
    for name in ("relay_domains", "fast_flush_domains", "transport_maps"):
        text = re.sub(rf"^{name} = .*\n", "", text, flags=re.MULTILINE)
    (isp.etc / "main.cf").write_text(f"{text}{printed}\n")
    (isp.etc / "master.cf").write_text(
        MASTER.format(submission=SUBMISSION_PORT) + "\n".join(indented(sheet, "master.cf:")) + "\n"
    )
    isp.start()
    with agent:
        holds_until_asked(lab, agent, isp, [*simple(3), *simple(2, recipients=(CAROL,), first=10)])
    with smtp(isp.namespace, "127.0.0.1", SUBMISSION_PORT, "world.example") as world:
        world.mail("a@world.example")
        assert world.rcpt("nobody@office.example")[0] == 550
        assert world.rcpt(ALICE)[0] == 250


# --- Exim -------------------------------------------------------------------------------------------------------------


class EximBySheet(Exim):
    """Debian's Exim; what the sheet says stands in each section of its configuration."""

    def follow(self, sheet: str) -> None:
        main = "\n".join(indented(sheet, "main section", "routers,"))
        main = main.replace("/usr/sbin/exim ", f"{self.root / self.program} -C {self._configuration} ")
        router = "\n".join(indented(sheet, "routers,", "ACLs"))
        acl = "\n".join(indented(sheet, "ACLs", "retry,"))
        acl = acl.replace("THE-ADDRESSES-OF-THE-SITE", self.line.site_address)
        retry = "\n".join(indented(sheet, "retry,", "and in the transport"))
        self._configuration.write_text(
            f"primary_hostname = {self.host}\nspool_directory = {self.spool}\n"
            f"log_file_path = {self.directory}/log-%s\npid_file_path = {self.directory}/pid\n"
            f"exim_path = {self.root / self.program}\nkeep_environment = LD_LIBRARY_PATH\n"
            f"local_interfaces = <; [{self.line.provider_address}]:25 ; [127.0.0.1]:{SUBMISSION_PORT}\n"
            "tls_advertise_hosts =\nhost_lookup =\nrfc1413_query_timeout = 0s\nnever_users =\n"
            f"acl_smtp_rcpt = accept_all\nacl_smtp_data = accept_all\n{main}\n"
            f"begin acl\naccept_all:\n  accept\n{acl}\n"
            f"begin routers\n{router}\n"
            "begin transports\nremote_smtp:\n  driver = smtp\n  message_linelength_limit = 1G\n"
            f"  retry_include_ip_address = false\nbegin retry\n{retry}\n"
        )


@pytest.mark.unpacked
def test_exim_by_its_sheet_holds_mail_until_asked(lab: Lab) -> None:
    exim = EximBySheet("exim", lab.line(), lab.directory / "exim", Terms(nodes=NODES))
    lab.providers.append(exim)  # type: ignore[arg-type]
    agent = agent_of(lab, exim)
    exim.follow(agent.command("provider-sheet", "exim", "--for", "exim").stdout)
    exim.start()
    with agent:
        holds_until_asked(lab, agent, exim, [*simple(3), *simple(2, recipients=(CAROL,), first=10)])


# --- Sendmail ---------------------------------------------------------------------------------------------------------


class SendmailBySheet(Sendmail):
    """Debian's Sendmail; the sheet's lines stand in its sendmail.mc, mailertable and relay-domains."""

    def follow(self, sheet: str) -> None:
        (self.directory / "mailertable").write_text("\n".join(indented(sheet, "mailertable (", "relay-domains")) + "\n")
        (self.directory / "relay-domains").write_text("\n".join(indented(sheet, "relay-domains:", "ETRN must")) + "\n")
        source = self.directory / "sendmail.mc"
        text = re.sub(r"^FEATURE\(`mailertable'.*\n", "", source.read_text(), flags=re.MULTILINE)
        text = text.replace("define(`confDELIVERY_MODE', `queueonly')\n", "")
        mc = "\n".join(line.partition("    (")[0] for line in indented(sheet, "sendmail.mc", "mailertable ("))
        table = f"FEATURE(`mailertable', `text -o -k0 -v1 {self.directory / 'mailertable'}')"
        assert "FEATURE(`mailertable')" in mc
        mc = mc.replace("FEATURE(`mailertable')", table)
        source.write_text(text.replace("MAILER(`smtp')\n", f"{mc}\nMAILER(`smtp')\n"))
        self.translate(source)


@pytest.mark.unpacked
def test_sendmail_by_its_sheet_holds_mail_until_asked(lab: Lab) -> None:
    sendmail = SendmailBySheet("sendmail", lab.line(), lab.directory / "sendmail", Terms(nodes=NODES))
    lab.providers.append(sendmail)  # type: ignore[arg-type]
    # It looks up every name in DNS, which no namespace has.
    agent = agent_of(lab, sendmail, reached_as=sendmail.line.site_address)
    sendmail.follow(agent.command("provider-sheet", "sendmail", "--for", "sendmail").stdout)
    sendmail.start()
    sent = [*simple(3), *simple(2, recipients=(CAROL,), first=10)]
    # It adds a Date where there is none.
    dated = [replace(shape, content=b"Date: Sun, 22 Nov 2026 08:00:00 +0000\n" + shape.content) for shape in sent]
    with agent:
        holds_until_asked(lab, agent, sendmail, dated)


# --- a hub behind Postfix ---------------------------------------------------------------------------------------------


@pytest.mark.postfix
def test_a_postfix_in_front_of_the_hub_by_the_printed_recipe(lab: Lab) -> None:
    """Mail for the site goes on to the hub; who does not exist there is refused while the sender is connected."""
    isp = lab.provider()
    hub = Hub(isp.line, lab.directory / "hub", None, nodes={})
    hub.configuration.write_text(
        hub.configuration.read_text().replace("0.0.0.0:25", "127.0.0.1:2600").partition("[[node]]")[0]
    )
    added = hub.command(
        "add-node", "office.example", "--domain", "office.example", "--domain", "*.office.example",
        "--account", "boat", "--deliver-to", f"{isp.line.site_address}:25", "--behind", "postfix",
    )  # fmt: skip
    assert added.returncode == 0, added.stderr
    text = hub.configuration.read_text()
    more = f'recipients = ["{ALICE}", "eve@boat.office.example"]\netrn_without_auth = true\n'
    hub.configuration.write_text(text + more)
    recipe = added.stdout.partition("# --- main.cf")[2].partition("\n")[2]
    isp.stop()
    main = isp.etc / "main.cf"
    kept = re.sub(r"^(relay_domains|transport_maps) = .*\n", "", main.read_text(), flags=re.MULTILINE)
    main.write_text(kept + recipe)
    with hub, Sink(lab.site) as sink:
        isp.start()
        isp.line.up()
        with smtp(lab.site, isp.address, 25, "world.example") as world:
            for recipient, code in (
                (ALICE, 250),
                ("eve@boat.office.example", 250),
                ("nobody@office.example", 550),
                ("someone@elsewhere.example", 554),
            ):
                world.mail("friend@world.example")
                assert world.rcpt(recipient)[0] == code, recipient
                if code == 250:
                    assert world.data(b"Subject: hello\r\n\r\nhello\r\n")[0] == 250
                world.rset()
        hub.wait_for_held(2)
        with smtp(hub.namespace, "127.0.0.1", 2600, "asker.example") as asker:
            assert asker.docmd("ETRN", "office.example")[0] == 250
        wait_for(lambda: len(sink.taken) == 2, "both at the site")
