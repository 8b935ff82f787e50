"""`uplink.ask`: the loop over nodes, and what a provider or a line can do to it."""

from __future__ import annotations

import asyncio
import tracemalloc
from pathlib import Path

import pytest
from siteagent.uplink.ask import ask
from tests import scripted
from tests.asking import HOST, LINE, asked, asking, limits, section, trust

HELLO = "S: 220 mx.isp.example ESMTP\nC: EHLO *\nS: 250-mx.isp.example\nS: 250 ETRN\n"
BYE = "C: QUIT\nS: 221 bye\n"


def etrn(*replies: str) -> str:
    return HELLO + "".join(f"C: ETRN *\nS: {reply}\n" for reply in replies) + BYE


def nodes(count: int) -> tuple[str, ...]:
    return tuple(f"n{i}.example" for i in range(count))


# --- the loop over nodes ----------------------------------------------------------------------------------------------


def test_a_node_is_asked_for_as_it_is_written() -> None:
    run = asked(etrn("250 OK"), nodes=("@Office.Example",), tls="off")
    assert "ETRN @Office.Example" in run.commands


@pytest.mark.parametrize("first", ["251 none", "453 no", "458 no", "459 no", "501 no", "530 no", "550 no", "554 no"])
def test_no_answer_for_one_node_keeps_the_others_from_being_asked(first: str) -> None:
    run = asked(etrn(first, "250 OK"), nodes=nodes(2), tls="off")
    assert run.outcomes[1] == ("started", 250)
    assert run.server.problems == []


@pytest.mark.parametrize(("reply", "code"), [("500 what", 500), ("502 no", 502)])
def test_not_supported_ends_the_loop_and_asking_again_unchanged_makes_no_sense(reply: str, code: int) -> None:
    run = asked(etrn(reply), nodes=nodes(3), tls="off")
    assert run.outcomes == [("refused", code)]
    assert run.result.failure is not None
    assert (run.result.failure.code, run.result.failure.temporary) == (code, False)


def test_421_ends_the_loop_and_is_temporary() -> None:
    run = asked(etrn("250 OK", "421 4.3.2 shutting down"), nodes=nodes(3), tls="off")
    assert run.outcomes == [("started", 250), ("retry", 421)]
    assert run.result.failure is not None
    assert (run.result.failure.stage, run.result.failure.code, run.result.failure.temporary) == ("ask", 421, True)


def test_a_connection_that_ends_ends_the_loop() -> None:
    run = asked(HELLO + "C: ETRN *\nS: 250 OK\nC: ETRN *\n! close", nodes=nodes(3), tls="off")
    assert run.outcomes == [("started", 250), ("unknown", None)]
    assert run.result.failure is not None
    assert run.result.failure.temporary


def test_a_reset_ends_the_loop() -> None:
    run = asked(HELLO + "C: ETRN *\n! drop", nodes=nodes(3), tls="off")
    assert run.outcomes == [("unknown", None)]


def test_an_unasked_421_between_two_commands_is_taken_as_the_answer() -> None:
    run = asked(HELLO + "C: ETRN *\nS= 250 OK\\r\\n421 idle too long\\r\\n\n! close", nodes=nodes(2), tls="off")
    assert run.outcomes == [("started", 250), ("retry", 421)]


def test_silence_is_unknown_and_the_next_node_gets_a_new_connection() -> None:
    run = asked(
        HELLO + "C: ETRN *\n! silent",
        etrn("250 OK"),
        nodes=nodes(2),
        tls="off",
        limit=limits(etrn_reply_seconds=0.05),
    )
    assert run.outcomes == [("unknown", None), ("started", 250)]
    assert run.result.failure is None


def test_two_silences_in_a_row_end_the_loop() -> None:
    run = asked(HELLO + "C: ETRN *\n! silent", nodes=nodes(5), tls="off", limit=limits(etrn_reply_seconds=0.05))
    assert len(run.outcomes) == 2
    assert run.result.failure is not None
    assert "no answer" in run.result.failure.reason


def test_a_connection_carries_six_nodes_at_most() -> None:
    run = asked(etrn(*["250 OK"] * 6), etrn(*["250 OK"] * 6), etrn("250 OK"), nodes=nodes(13), tls="off")
    assert run.outcomes == [("started", 250)] * 13
    assert [heard.lines.count("QUIT") for heard in run.server.heard] == [1, 1, 1]
    assert run.server.problems == []


def test_a_session_limit_is_met_with_a_new_connection_for_each_node() -> None:
    limit = "458 4.7.1 ETRN session limit reached"
    run = asked(etrn("250 OK", limit), nodes=nodes(4), tls="off")
    assert run.outcomes == [("started", 250)] * 4
    assert len(run.server.heard) == 4


def test_a_session_limit_at_the_first_node_of_a_connection_is_tried_once_more_only() -> None:
    run = asked(etrn("458 4.7.1 ETRN session limit reached"), tls="off")
    assert run.outcomes == [("retry", 458)]
    assert len(run.server.heard) == 2


@pytest.mark.parametrize("reply", ["458 no", "550 no"])
def test_a_refusal_behind_a_success_is_tried_once_on_a_new_connection(reply: str) -> None:
    run = asked(etrn("250 OK", reply), etrn(reply, "250 OK"), nodes=nodes(3), tls="off")
    assert run.outcomes == [
        ("started", 250),
        ("retry" if reply[0] == "4" else "refused", int(reply[:3])),
        ("started", 250),
    ]
    assert run.server.problems == []


def test_a_new_connection_that_does_not_come_about_leaves_the_first_answer_as_the_last_word() -> None:
    run = asked(etrn("250 OK", "458 session limit"), "S: 421 busy", nodes=nodes(3), tls="off")
    assert run.outcomes == [("started", 250), ("retry", 458)]
    assert run.result.failure is not None
    assert run.result.failure.stage == "greeting"


def test_each_node_has_its_last_word_once_and_as_it_comes() -> None:
    run = asked(etrn("250 OK", "458 session limit"), etrn("251 none"), nodes=nodes(2), tls="off")
    assert run.streamed == list(run.result.answers)
    assert [answer.node for answer in run.streamed] == list(nodes(2))


def test_a_name_that_cannot_be_sent_is_not_sent() -> None:
    run = asked(etrn("250 OK"), nodes=("a\r\nMAIL FROM:<x>", "office.example"), tls="off")
    assert run.outcomes == [("refused", None), ("started", 250)]
    assert run.server.problems == []


def test_the_answer_tells_the_peers_words_and_number() -> None:
    (answer,) = asked(etrn("253 2.0.0 OK, 14 pending messages for node x started"), tls="off").result.answers
    assert (answer.text, answer.promised) == ("2.0.0 OK, 14 pending messages for node x started", 14)


def test_control_characters_of_the_peer_do_not_get_into_texts() -> None:
    run = asked(etrn("459 \\x1b[2Jno\\x07"), tls="off")
    assert run.result.answers[0].text.isprintable()
    assert all(line.isprintable() for line in run.transcript)


def test_a_fix_names_the_provider() -> None:
    (answer,) = asked(etrn("530 log in"), tls="off").result.answers
    assert answer.fix is not None
    assert "provider isp" in answer.fix


# --- 530, ETRN not listed, QUIT ---------------------------------------------------------------------------------------


def test_530_is_met_by_logging_in_where_auth_was_not_listed(tmp_path: Path) -> None:
    ca = trust(tmp_path)
    script = etrn("530 log in first").removesuffix(BYE) + "C: AUTH PLAIN *\nS: 235 ok\nC: ETRN *\nS: 250 OK\n" + BYE
    run = asked(
        script,
        server_tls=ca.server,
        implicit=True,
        tls="implicit",
        tls_ca_file=ca.authority,
        username="u",
        password="p",
    )
    assert run.outcomes == [("started", 250)]
    assert run.server.problems == []


def test_530_is_met_by_starttls_where_that_was_not_listed(tmp_path: Path) -> None:
    script = (
        HELLO + "C: ETRN *\nS: 530 5.7.0 Must issue a STARTTLS command first\nC: STARTTLS\nS: 220 go\n! starttls\n"
        "C: EHLO *\nS: 250 mx\nC: ETRN *\nS: 250 OK\n" + BYE
    )
    run = asked(script, server_tls=trust(tmp_path).server, tls="opportunistic")
    assert run.outcomes == [("started", 250)]
    assert run.server.problems == []


def test_530_twice_is_the_last_word(tmp_path: Path) -> None:
    ca = trust(tmp_path)
    script = (
        etrn("530 log in first").removesuffix(BYE)
        + "C: AUTH PLAIN *\nS: 235 ok\nC: ETRN *\nS: 530 log in first\n"
        + BYE
    )
    run = asked(
        script,
        server_tls=ca.server,
        implicit=True,
        tls="implicit",
        tls_ca_file=ca.authority,
        username="u",
        password="p",
    )
    assert run.outcomes == [("refused", 530)]


UNLISTED = "S: 220 mx\nC: EHLO *\nS: 250-mx\nS: 250 ETRNX\n"


def test_etrn_is_tried_where_it_is_not_listed() -> None:
    assert asked(UNLISTED + "C: ETRN *\nS: 250 OK\n" + BYE, tls="off").outcomes == [("started", 250)]


def test_etrn_is_not_tried_where_it_is_not_listed_and_that_is_wanted() -> None:
    run = asked(UNLISTED + BYE, tls="off", when_not_advertised="refuse")
    assert run.verbs == ["EHLO", "QUIT"]
    assert run.result.failure is not None
    assert not run.result.failure.temporary
    assert "when_not_advertised" in (run.result.failure.fix or "")


@pytest.mark.parametrize("end", ["S: 250 Goodbye", "S: 500 what", "! close", "! drop", "S: nonsense", "S= 2\n! close"])
def test_no_end_of_the_session_spoils_the_answers(end: str) -> None:
    run = asked(etrn("250 OK").removesuffix("S: 221 bye\n") + end, tls="off")
    assert run.outcomes == [("started", 250)]
    assert run.result.failure is None


def test_a_quit_without_an_answer_is_not_waited_for_long() -> None:
    """However patient we are with other commands."""
    run = asked(etrn("250 OK").removesuffix("S: 221 bye\n") + "! silent", tls="off", limit=limits(command_seconds=300))
    assert run.result.failure is None
    assert 4 < run.seconds < 30


# --- threat model -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flood", ["2", "250-more\\r\\n", "\\r\\n"], ids=["line", "continuation", "blank"])
@pytest.mark.parametrize("stage", ["greeting", "ehlo", "ask"])
def test_s38_an_endless_reply_ends_the_session_with_little_kept(stage: str, flood: str) -> None:
    before = {"greeting": "", "ehlo": "S: 220 mx\nC: EHLO *\n", "ask": HELLO + "C: ETRN *\n"}[stage]
    tracemalloc.start()
    try:
        run = asked(before + f"! endless 1073741824 {flood}", tls="off")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert run.result.failure is not None
    assert (run.result.failure.stage, run.result.failure.temporary) == (stage, True)
    assert run.seconds < 5
    assert run.server.heard[0].said < 32 << 20  # it was closed, not read to the end
    assert peak < 4 << 20  # the server's own buffers and the segment in hand included


@pytest.mark.parametrize("stage", ["greeting", "ehlo", "ask"])
def test_s39_a_byte_now_and_then_does_not_extend_a_stage(stage: str) -> None:
    before = {"greeting": "", "ehlo": "S: 220 mx\nC: EHLO *\n", "ask": HELLO + "C: ETRN *\n"}[stage]
    drip = "! drip 0.02 250-" + "x" * 500
    run = asked(before + drip, tls="off", limit=limits(command_seconds=0.2, etrn_reply_seconds=0.2))
    assert run.result.failure is not None
    assert run.result.failure.stage == stage
    assert "0.2 s" in run.result.failure.reason
    assert run.seconds < 2


NO_REPLIES = (
    "22X hm",
    "250OK",
    "250-a\\r\\n251 b",
    "150 hm",
    "650 hm",
    "250 a\\0b",
    "hello",
    "25",
    "250-a\\r\\n\\r\\n250 b",
)


@pytest.mark.parametrize("reply", NO_REPLIES)
@pytest.mark.parametrize("stage", ["greeting", "ehlo", "ask"])
def test_s40_what_is_no_reply_ends_the_session_and_never_counts_as_started(stage: str, reply: str) -> None:
    before = {"greeting": "", "ehlo": "S: 220 mx\nC: EHLO *\n", "ask": HELLO + "C: ETRN *\n"}[stage]
    run = asked(before + f"S: {reply}", nodes=nodes(2), tls="off")
    assert run.result.failure is not None
    assert (run.result.failure.stage, run.result.failure.temporary) == (stage, True)
    assert all(outcome == "unknown" for outcome, _ in run.outcomes)
    assert "QUIT" not in run.verbs


def test_s40_a_reply_that_nobody_asked_for_is_not_the_answer_to_the_next_command() -> None:
    run = asked(HELLO + "C: ETRN *\nS= 459 no\\r\\n250 started\\r\\n\n", nodes=nodes(2), tls="off")
    assert run.outcomes == [("refused", 459), ("unknown", None)]
    assert run.result.failure is not None
    assert "without being asked" in run.result.failure.reason


def test_s40_a_reply_glued_to_the_greeting_is_not_the_answer_to_ehlo() -> None:
    run = asked("S= 220 mx\\r\\n250 ETRN\\r\\n\n", tls="off")
    assert run.verbs == []
    assert run.result.failure is not None
    assert run.result.failure.stage == "ehlo"


@pytest.mark.parametrize(
    ("reply", "outcome", "verbs"),
    [
        ("250 ok", "started", ["ETRN", "ETRN"]),
        ("251 none", "nothing", ["ETRN", "ETRN"]),
        ("252 pending", "started", ["ETRN", "ETRN"]),
        ("253 2 pending", "started", ["ETRN", "ETRN"]),
        ("421 bye", "retry", ["ETRN"]),
        ("450 later", "retry", ["ETRN", "ETRN"]),
        ("451 trouble", "retry", ["ETRN", "ETRN"]),
        ("453 hm", "retry", ["ETRN", "ETRN"]),
        ("458 unable", "retry", ["ETRN", "ETRN"]),
        ("459 not you", "refused", ["ETRN", "ETRN"]),
        ("500 what", "refused", ["ETRN"]),
        ("501 syntax", "refused", ["ETRN", "ETRN"]),
        ("502 no", "refused", ["ETRN"]),
        ("530 log in", "refused", ["ETRN", "ETRN"]),
        ("535 unknown", "refused", ["ETRN", "ETRN"]),
        ("550 policy", "refused", ["ETRN", "ETRN"]),
        ("554 policy", "refused", ["ETRN", "ETRN"]),
    ],
)
def test_s41_each_code_leads_on_as_it_is_documented(reply: str, outcome: str, verbs: list[str]) -> None:
    run = asked(etrn(reply, "251 none"), nodes=nodes(2), tls="off")
    assert run.outcomes[0] == (outcome, int(reply[:3]))
    assert [verb for verb in run.verbs if verb == "ETRN"] == verbs


def test_s41_503_leads_to_one_new_connection() -> None:
    run = asked(etrn("503 bad sequence"), etrn("503 bad sequence"), tls="off")
    assert run.outcomes == [("refused", 503)]
    assert len(run.server.heard) == 2


def test_s48_a_name_that_leads_to_this_machine_is_refused() -> None:
    run = asked(etrn("250 OK"), host="mx.isp.example", tls="off")
    assert run.server.heard == []
    assert run.result.failure is not None
    assert (run.result.failure.stage, run.result.failure.temporary) == ("connect", True)
    assert "this machine" in run.result.failure.reason


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST."])
def test_s48_but_not_where_it_is_configured_as_such(host: str) -> None:
    assert asked(etrn("250 OK"), host=host, tls="off").outcomes == [("started", 250)]


# --- the line ---------------------------------------------------------------------------------------------------------


def test_cancelling_closes_the_connection_at_once() -> None:
    async def scene() -> list[str]:
        async with scripted.Provider(HELLO + "C: ETRN *\n! silent") as server:
            task = asyncio.create_task(
                ask(
                    section(server.port, tls="off"),
                    ("office.example",),
                    line=LINE,
                    addresses=(HOST,),
                    hostname="h.example",
                    limits=limits(etrn_reply_seconds=60),
                    password=None,
                    tls=None,
                    on_answer=lambda answer: None,
                )
            )
            while not any(line.startswith("ETRN") for line in server.commands):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            async with asyncio.timeout(2):
                await server.settled()  # ends only if the connection was closed
            return server.commands

    assert "QUIT" not in asyncio.run(scene())


def test_nobody_there_is_temporary_and_says_where() -> None:
    async def scene() -> object:
        async with scripted.Provider("! close") as server:
            port = server.port
        result = await ask(
            section(port, tls="off"),
            ("office.example",),
            line=LINE,
            addresses=(HOST,),
            hostname="h.example",
            limits=limits(),
            password=None,
            tls=None,
            on_answer=lambda answer: None,
        )
        assert result.failure is not None
        return result.failure

    failure = asyncio.run(scene())
    assert (failure.stage, failure.temporary) == ("connect", True)  # type: ignore[attr-defined]
    assert "connection refused" in failure.reason  # type: ignore[attr-defined]


def test_two_asks_at_a_time_do_not_meet() -> None:
    async def scene() -> None:
        runs = await asyncio.gather(*(asking(etrn(f"25{i} x"), tls="off") for i in range(3)))
        assert [run.outcomes[0][1] for run in runs] == [250, 251, 252]

    asyncio.run(scene())


# --- the form of a name -----------------------------------------------------------------------------------------------


_HELLO = "S: 220 mx ESMTP\nC: EHLO *\nS: 250-mx\nS: 250 ETRN\n"
_BYE = "C: QUIT\nS: 221 bye"


def _forms(*pairs: tuple[str, str]) -> str:
    return _HELLO + "".join(f"C: ETRN {name}\nS: {reply}\n" for name, reply in pairs) + _BYE


@pytest.mark.parametrize("refusal", ["501 argument must begin with #", "459 not allowed"])
def test_a_refused_name_is_tried_once_in_its_other_form_and_what_worked_is_told(refusal: str) -> None:
    script = _forms(("office.example", refusal), ("#office.example", "250 OK"))
    run = asked(script, tls="off", learn_name_form=True)
    assert run.server.problems == [] and run.outcomes == [("started", 250)]
    assert (run.result.answers[0].node, run.result.answers[0].sent) == ("office.example", "#office.example")


def test_the_other_form_of_a_queue_name_is_the_bare_one() -> None:
    script = _forms(("#office.example", "459 unknown queue"), ("office.example", "251 nothing"))
    run = asked(script, nodes=("#office.example",), tls="off", learn_name_form=True)
    assert run.server.problems == [] and run.outcomes == [("nothing", 251)]


def test_refused_in_both_forms_the_first_answer_is_the_last_word() -> None:
    script = _forms(
        ("office.example", "459 not allowed"), ("#office.example", "501 no such queue"), ("b.example", "250 OK")
    )
    run = asked(script, nodes=("office.example", "b.example"), tls="off", learn_name_form=True)
    assert run.server.problems == []
    assert run.outcomes == [("refused", 459), ("started", 250)] and run.result.answers[0].sent == ""


def test_a_form_that_worked_before_is_sent_at_once() -> None:
    script = _forms(("#office.example", "250 OK"))
    run = asked(script, tls="off", learn_name_form=True, forms={"office.example": "#office.example"})
    assert run.server.problems == [] and run.result.answers[0].sent == "#office.example"


def test_a_form_that_works_no_longer_gives_way_to_the_name_as_written() -> None:
    script = _forms(("#office.example", "459 unknown queue"), ("office.example", "250 OK"))
    run = asked(script, tls="off", learn_name_form=True, forms={"office.example": "#office.example"})
    assert run.server.problems == [] and run.outcomes == [("started", 250)] and run.result.answers[0].sent == ""


def test_without_learn_name_form_nothing_is_tried() -> None:
    run = asked(_forms(("office.example", "501 argument must begin with #")), tls="off")
    assert run.server.problems == [] and run.outcomes == [("refused", 501)]


@pytest.mark.parametrize("refusal", ["458 later", "550 no", "554 no"])
def test_other_refusals_are_not_about_the_form(refusal: str) -> None:
    run = asked(_forms(("office.example", refusal)), tls="off", learn_name_form=True)
    assert run.server.problems == []


def test_at_names_have_no_other_form() -> None:
    run = asked(_forms(("@office.example", "501 no")), nodes=("@office.example",), tls="off", learn_name_form=True)
    assert run.server.problems == []


# --- the cost of an ask -----------------------------------------------------------------------------------------------


def test_every_octet_of_the_conversation_is_counted() -> None:
    script = _forms(("office.example", "250 OK"))
    run = asked(script, tls="off")
    heard = sum(len(line) + 2 for heard in run.server.heard for line in heard.lines)
    said = sum(heard.said for heard in run.server.heard)
    # Linux counts the SYN; and what is still on its way when we close may be missing.
    assert heard - len("QUIT\r\n") <= run.result.wire_bytes - said <= heard + 1


def test_under_tls_the_handshake_counts_too(tmp_path: Path) -> None:
    trusted = trust(tmp_path)
    clear = asked(_forms(("office.example", "250 OK")), tls="off").result.wire_bytes
    script = _forms(("office.example", "250 OK"))
    run = asked(script, server_tls=trusted.server, implicit=True, tls="implicit", tls_ca_file=trusted.authority)
    assert run.outcomes == [("started", 250)] and run.result.wire_bytes > clear + 1000


def test_seven_nodes_each_have_their_own_outcome() -> None:
    first = "C: ETRN n0.*\nS: 250 OK\nC: ETRN n1.*\nS: 459 not allowed\nC: ETRN n2.*\n! silent\n"
    second = "C: ETRN n3.*\nS: 251 none\n" + "".join(f"C: ETRN n{i}.*\nS: 250 OK\n" for i in (4, 5, 6))
    run = asked(HELLO + first, HELLO + second + BYE, nodes=nodes(7), tls="off", limit=limits(etrn_reply_seconds=0.1))
    assert run.server.problems == [] and run.result.failure is None
    outcomes = ["started", "refused", "unknown", "nothing", "started", "started", "started"]
    assert [outcome for outcome, _ in run.outcomes] == outcomes
    assert [answer.node for answer in run.streamed] == list(nodes(7))
