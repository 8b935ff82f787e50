"""From text to sections: what is taken, what is refused, and how a refusal reads."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from siteagent.config.load import Problem, Problems, examine, parse
from siteagent.config.sections import Backend, Configuration, Endpoint, HubConfiguration, Method, Tls

PROVIDER = '[[provider]]\nhost = "mx.isp.example"\nnodes = ["office.example"]\n'
MAILBOX = '[[mailbox]]\naddresses = ["alice@office.example"]\nmaildir = "alice"\n'
GOOD = PROVIDER + MAILBOX
NODE = '[[node]]\nname = "office.example"\ndomains = ["office.example"]\ndeliver_to = "office.example:25"\n'


def good(text: str) -> Configuration:
    return parse(text, path="x.toml", kind=Configuration)


def problems(text: str, kind: type[Configuration] | type[HubConfiguration] = Configuration) -> tuple[Problem, ...]:
    with pytest.raises(Problems) as caught:
        parse(text, path="x.toml", kind=kind)
    return caught.value.problems


def only(text: str, kind: type[Configuration] | type[HubConfiguration] = Configuration) -> Problem:
    found = problems(text, kind)
    assert len(found) == 1, [str(problem) for problem in found]
    return found[0]


# --- what is taken ----------------------------------------------------------------------------------------------------


def test_the_least_configuration_is_enough() -> None:
    value = good(GOOD)
    provider, mailbox = value.provider[0], value.mailbox[0]
    assert (provider.name, provider.port, provider.tls, mailbox.name) == (
        "mx.isp.example",
        25,
        Tls.OPPORTUNISTIC,
        "alice",
    )


def test_every_type_of_option_is_converted() -> None:
    value = good(
        '[link]\nbackend = "poll"\npoll_seconds = 5\n'
        + PROVIDER + 'ask_every_seconds = 60\nmethod = "auto"\n' + MAILBOX
        + '[listener]\nlisten = ["127.0.0.1:0", "[::1]:2525"]\nrequire_tls = false\n[hooks]\nround_ended = ["/bin/x"]\n'
    )  # fmt: skip
    assert value.link.backend is Backend.POLL
    assert value.link.poll_seconds == 5.0 and isinstance(value.link.poll_seconds, float)
    assert value.provider[0].ask_every_seconds == 60.0
    assert value.provider[0].method is Method.AUTO
    assert value.listener.listen == (Endpoint("127.0.0.1", 0), Endpoint("::1", 2525))
    assert value.hooks.commands == {"round_ended": ("/bin/x",)}
    assert value.mailbox[0].maildir == Path("alice")


def test_ask_only_needs_no_mailbox() -> None:
    assert good(PROVIDER + "[listener]\nlisten = []\n").ask_only


def test_mailboxes_are_allowed_without_a_listener() -> None:
    assert good(GOOD + "[listener]\nlisten = []\n").mailbox


def test_atrn_receives_without_a_listener() -> None:
    value = good(PROVIDER + 'method = "atrn"\nusername = "u"\n' + MAILBOX + "[listener]\nlisten = []\n")
    assert (value.ask_only, value.provider[0].port, value.provider[0].tls) == (False, 366, Tls.REQUIRED)


def test_port_0_may_be_given_twice() -> None:
    assert good(GOOD + '[listener]\nlisten = ["127.0.0.1:0", "127.0.0.1:0"]\n')


# --- S55: every problem at once, each with its place ------------------------------------------------------------------


def test_s55_all_problems_of_a_file_are_told_at_once_in_the_order_of_lines() -> None:
    text = (
        'hostnam = "x"\n'
        "[listener]\n"
        'max_recipients = "500"\n'
        + PROVIDER.replace('["office.example"]', '["Office.example", "office.example"]')
        + '[[mailbox]]\nmaildir = "a"\naddresses = ["bob@b\u00fccher.example", "BOB@xn--bcher-kva.example"]\n'
    )
    assert [(problem.line, problem.key) for problem in problems(text)] == [
        (1, "hostnam"),
        (3, "listener.max_recipients"),
        (6, "provider.nodes"),
        (9, "mailbox.addresses"),
    ]


def test_s55_an_unknown_key_is_told_with_the_nearest_known_one() -> None:
    problem = only(GOOD + "[limits]\nconect_seconds = 5\n")
    assert (problem.line, problem.key, problem.nearest) == (8, "limits.conect_seconds", "connect_seconds")


def test_s55_an_unknown_key_of_another_table_is_told_with_its_place() -> None:
    assert only('listen = ["127.0.0.1:0"]\n' + GOOD).nearest == "listener.listen"


def test_s55_the_value_of_an_unknown_key_is_never_quoted() -> None:
    with pytest.raises(Problems) as caught:
        good(GOOD.replace("nodes", 'password = "hunter2"\nnodes'))
    assert "hunter2" not in str(caught.value)
    assert caught.value.problems[0].nearest == "password_file"


def test_s55_a_problem_reads_file_line_key_found_allowed_nearest() -> None:
    with pytest.raises(Problems) as caught:
        good(GOOD.replace("nodes", 'method = "etrm"\nnodes'))
    assert str(caught.value) == (
        "cannot use x.toml: 1 problem\n"
        '  x.toml:3: provider.method: found "etrm"; allowed: "etrn", "atrn" or "auto"; did you mean "etrn"?'
    )
    assert caught.value.exit_code == 78


def test_s55_two_nodes_that_differ_in_case_alone_are_one() -> None:
    problem = only(GOOD.replace('["office.example"]', '["a.example", "A.example"]'))
    assert (problem.key, problem.found) == ("provider.nodes", '"A.example" a second time')


@pytest.mark.parametrize(
    ("line", "key", "found"),
    [
        ('quiet_seconds = "15"', "provider.quiet_seconds", '"15", in quotes'),
        ("quiet_seconds = true", "provider.quiet_seconds", "true"),
        ("quiet_seconds = nan", "provider.quiet_seconds", "nan"),
        ("quiet_seconds = inf", "provider.quiet_seconds", "inf"),
        ("quiet_seconds = 0", "provider.quiet_seconds", "0"),
        ("port = 25.0", "provider.port", "25.0"),
        ("port = 65536", "provider.port", "65536"),
        ("defer_above_bytes = 99999999999999999999999", "provider.defer_above_bytes", "a number beyond all measure"),
        ("username = 7", "provider.username", "7"),
        ('username = "a\\r\\nQUIT"', "provider.username", '"a\\r\\nQUIT"'),
        ('tls_ca_file = ""', "provider.tls_ca_file", '""'),
        ("peers = [1]", "provider.peers", "1"),
        ("retry_seconds = []", "provider.retry_seconds", "[]"),
        ("retry_seconds = 5", "provider.retry_seconds", "5"),
        ("interfaces = {a = 1}", "provider.interfaces", "a table"),
        ("ask_every_seconds = 3", "provider.ask_every_seconds", "3"),
        ('ask_every_seconds = "often"', "provider.ask_every_seconds", '"often"'),
    ],
)
def test_s55_a_wrong_type_or_value_is_told(line: str, key: str, found: str) -> None:
    problem = only(PROVIDER + line + "\n" + MAILBOX)
    assert (problem.line, problem.key, problem.found) == (4, key, found)


def test_a_string_in_place_of_a_list_is_told_with_the_list_that_was_meant() -> None:
    assert only(GOOD.replace('["office.example"]', '"office.example"')).nearest == '["office.example"]'


def test_a_table_with_too_few_brackets_is_told_and_read_all_the_same() -> None:
    found = problems(GOOD.replace("[[provider]]", "[provider]").replace("nodes", "nods"))
    assert [(p.line, p.found) for p in found] == [
        (1, "[provider]"),
        (1, "nothing, and it is required"),
        (3, "an unknown key"),
    ]


def test_what_is_missing_is_told_at_its_table() -> None:
    found = problems('[[provider]]\nhost = "mx"\n[[mailbox]]\naddresses = ["a@b.example"]\n')
    assert [(p.line, p.key) for p in found] == [(1, "provider.nodes"), (3, "mailbox.maildir")]


def test_an_empty_file_lacks_a_provider_and_a_mailbox() -> None:
    assert [(p.line, p.key) for p in problems("")] == [(1, "provider"), (1, "mailbox")]


def test_what_is_no_toml_is_told_with_its_line() -> None:
    assert only("a = 1\nb = \n").line == 2


def test_a_windows_path_in_double_quotes_is_told_how_to_write_it() -> None:
    assert "single quotes" in only('state_directory = "C:\\Users\\x"\n').allowed


def test_lists_without_end_are_a_problem_and_no_crash() -> None:
    assert only("a = " + "[" * 5000 + "]" * 5000).found == "lists or tables a thousand deep"


@settings(max_examples=200)
@given(st.text("[]{}=\"'.#\\\n ab1,", max_size=60))
def test_no_text_makes_anything_but_a_configuration_or_problems(text: str) -> None:
    examine(text, kind=Configuration)


@settings(max_examples=100)
@given(st.lists(st.sampled_from((GOOD + NODE + "[hooks]\n[link]\n[delivery]\n").splitlines()), max_size=12))
def test_no_order_of_lines_makes_anything_but_a_configuration_or_problems(lines: list[str]) -> None:
    examine("\n".join(lines), kind=Configuration)
    examine("\n".join(lines), kind=HubConfiguration)


# --- what one option means for another --------------------------------------------------------------------------------


def test_two_providers_of_one_name_are_told_also_where_it_is_the_default() -> None:
    problem = only(PROVIDER + GOOD)
    assert (problem.line, problem.found) == (4, '"mx.isp.example" a second time (it is the default)')


@pytest.mark.parametrize("maildir", ["alice", "./bob/../alice"])
def test_two_mailboxes_with_one_maildir_are_told(maildir: str) -> None:
    other = f'[[mailbox]]\naddresses = ["bob@office.example"]\nmaildir = "{maildir}"\n'
    assert only(GOOD + other).key == "mailbox.maildir"


def test_two_mailboxes_of_one_name_are_told() -> None:
    other = '[[mailbox]]\nname = "Alice"\naddresses = ["b@office.example"]\nmaildir = "b"\n'
    assert only(GOOD + other).key == "mailbox.name"


def test_a_mailbox_cannot_be_called_reject() -> None:
    assert only(GOOD + 'name = "reject"\n').key == "mailbox.name"


@pytest.mark.parametrize(
    "address", ["alice", "a b@c.example", "a@", "@", "a@-x.example", "a@[192.0.2.1]", "@a@b.example"]
)
def test_what_is_no_address_is_told(address: str) -> None:
    assert only(GOOD.replace("alice@office.example", address)).key == "mailbox.addresses"


def test_the_postmaster_must_be_a_mailbox() -> None:
    problem = only(GOOD + '[delivery]\npostmaster = "alise"\n')
    assert (problem.line, problem.nearest) == (8, '"alice"')


@pytest.mark.parametrize(("name", "fine"), [("reject", True), ("defer", True), ("alice", True), ("drop", False)])
def test_unknown_recipient_is_a_policy_or_a_mailbox(name: str, fine: bool) -> None:
    text = GOOD + f'[delivery]\nunknown_recipient = "{name}"\n'
    assert good(text) if fine else only(text).key == "delivery.unknown_recipient"


def test_an_address_outside_the_domains_is_told() -> None:
    problem = only(GOOD + '[delivery]\ndomains = ["other.example"]\n')
    assert (problem.line, problem.key) == (5, "mailbox.addresses")


def test_a_domain_is_covered_in_either_spelling() -> None:
    text = GOOD.replace("alice@office.example", "alice@B\u00fccher.example")
    assert good(text + '[delivery]\ndomains = ["xn--bcher-kva.example"]\n')


@pytest.mark.parametrize(
    ("lines", "key"),
    [
        ('tls = "off"\nusername = "u"', "provider.tls"),
        ('tls = "opportunistic"\nusername = "u"', "provider.tls"),
        ('tls = "opportunistic"\nusername = "u"\nauth = "cram-md5"', "provider.tls"),
        ('tls = "off"\nusername = "u"\nauth = "cram-md5"', "provider.tls"),
        ('tls = "opportunistic"\nusername = "u"\nmethod = "atrn"', "provider.tls"),
        ('method = "atrn"', "provider.username"),
        ('password_file = "p"', "provider.password_file"),
        ('host = "a b"', "provider.host"),
        ('host = "192.0.2.256"', "provider.host"),
        ('reached_as = "-"', "provider.reached_as"),
        ('peers = ["x/y"]', "provider.peers"),
        ('peers = ["spf:"]', "provider.peers"),
    ],
)
def test_a_provider_that_cannot_work_is_told(lines: str, key: str) -> None:
    host = PROVIDER.replace('host = "mx.isp.example"\n', "") if lines.startswith("host") else PROVIDER
    assert only(host + lines + "\n" + MAILBOX).key == key


def test_atrn_with_a_certificate_of_ours_needs_no_username() -> None:
    assert good(PROVIDER + 'method = "atrn"\nauth = "external"\n' + MAILBOX)


@pytest.mark.parametrize(
    "peer", ["203.0.113.9", "203.0.113.0/24", "2001:db8::/32", "mx.isp.example", "spf:isp.example"]
)
def test_a_peer_is_an_address_a_network_a_name_or_spf(peer: str) -> None:
    assert good(PROVIDER + f'peers = ["{peer}"]\n' + MAILBOX)


def test_a_network_with_host_bits_is_told_with_the_network() -> None:
    assert only(PROVIDER + 'peers = ["203.0.113.9/24"]\n' + MAILBOX).nearest == '"203.0.113.0/24"'


@pytest.mark.parametrize(
    ("lines", "key"),
    [
        ('tls_certificate = "c"', "listener.tls_certificate"),
        ('tls_key = "k"', "listener.tls_key"),
        ("require_tls = true", "listener.require_tls"),
        ('listen = ["127.0.0.1:25", "127.0.0.1:25"]', "listener.listen"),
        ('listen = ["mail.example:25"]', "listener.listen"),
    ],
)
def test_a_listener_that_cannot_work_is_told(lines: str, key: str) -> None:
    assert only(GOOD + "[listener]\n" + lines + "\n").key == key


@pytest.mark.parametrize(
    ("name", "fine"),
    [("mail.office.example", True), ("[192.0.2.1]", True), ("[IPv6:2001:db8::1]", True), ("[2001:db8::1]", False),
     ("a b", False), ("a\u0000", False)],
)  # fmt: skip
def test_our_hostname_is_a_name_or_an_address_literal(name: str, fine: bool) -> None:
    text = f'hostname = "{name}"\n'.replace("\x00", "\\u0000") + GOOD
    assert good(text) if fine else only(text).key == "hostname"


def test_a_hook_for_no_known_event_is_told_with_the_nearest() -> None:
    assert only(GOOD + '[hooks]\nround_end = ["/bin/x"]\n').nearest == "round_ended"


@pytest.mark.parametrize("command", ['"/bin/x y"', "[]", '[""]', "[1]"])
def test_a_hook_is_a_list_of_words(command: str) -> None:
    assert problems(GOOD + f"[hooks]\nround_ended = {command}\n")[0].key == "hooks.round_ended"


# --- the hub ----------------------------------------------------------------------------------------------------------


def test_a_hub_with_one_node_is_taken() -> None:
    value = parse(NODE, path="hub.toml", kind=HubConfiguration)
    assert value.node[0].deliver_to == "office.example:25"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (NODE + NODE.replace('["office.example"]', '["b.example"]').replace('e = "o', 'e = "O'), "node.name"),
        (NODE + NODE.replace('name = "office.example"', 'name = "b"'), "node.domains"),
        (NODE.replace('deliver_to = "office.example:25"', ""), "node.deliver_to"),
        (NODE.replace("example:25", "example"), "node.deliver_to"),
        (NODE.replace("office.example:25", "2001:db8::1:25"), "node.deliver_to"),
        (NODE + 'account = "office"\n', "node.account"),
        (NODE + "push_every_seconds = 9\n", "node.push_every_seconds"),
        (
            NODE.replace('deliver_to = "office.example:25"', 'account = "a"\npassword_file = "p"')
            + "push_every_seconds = 60\n",
            "node.push_every_seconds",
        ),
        (NODE + 'recipients = ["a@b.example"]\n', "node.recipients"),
        (NODE + '[notices]\nrelay = "smtp.example"\n', "notices.relay"),
        (NODE + '[listener]\nlisten = ["127.0.0.1:366"]\n[odmr]\nlisten = ["127.0.0.1:366"]\n', "odmr.listen"),
    ],
)
def test_a_hub_that_cannot_work_is_told(text: str, key: str) -> None:
    assert only(text, HubConfiguration).key == key


def test_a_subdomain_is_covered_by_a_star() -> None:
    text = NODE.replace('["office.example"]', '["*.office.example"]') + 'recipients = ["a@x.office.example"]\n'
    assert parse(text, path="hub.toml", kind=HubConfiguration)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[link]\npoll_seconds = 5\n[link]\n", "line 3: found [link] a second time"),
        ('hostname = "a.example"\nhostname = "b.example"\n[link]\n', "line 2: found hostname a second time"),
        ("hostname = \n", "line 1: found no TOML: invalid value"),
    ],
)
def test_what_stands_twice_and_what_is_no_toml_is_told_in_words(text: str, found: str) -> None:
    with pytest.raises(Problems) as caught:
        parse(text, path="x", kind=Configuration)
    (problem,) = caught.value.problems
    assert str(problem).startswith(found)
