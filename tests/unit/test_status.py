"""The snapshot, its screen, and when a person is told."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from siteagent.events import (
    AgentReady,
    AskAnswered,
    AskFailed,
    Event,
    LinkDown,
    LinkUp,
    MessageAccepted,
    MessageDuplicate,
    MessageRefused,
    MessageStored,
    NodeOutcome,
    Outcome,
    RoundEnded,
    RoundStarted,
    SessionOpened,
    Stamped,
    WarningCleared,
    WarningRaised,
)
from siteagent.status import (
    KINDS,
    ListenerView,
    Mood,
    ProviderView,
    QueueView,
    StatusFold,
    Warnings,
    amount,
    moment,
    render,
    urgent,
    verdict,
)
from siteagent.status.fold import LEDGER_ROUNDS
from siteagent.status.warnings import TELLINGS

AT = datetime(2026, 11, 22, 8, tzinfo=UTC)
CET = timezone(timedelta(hours=1), "CET")
NOW = datetime(2026, 11, 22, 9, 30, tzinfo=CET)


@dataclass
class Open:
    provider: str | None = "isp"
    peer: str = "203.0.113.9"
    bytes: int = 81920
    size: int | None = 2_000_000
    seconds: float = 10.0
    since: datetime = AT


def started(round: str = "r1", provider: str = "isp", requests: tuple[str, ...] = ()) -> RoundStarted:
    return RoundStarted(
        round=round, provider=provider, cause="link", method="etrn", nodes=("office.example",), interface="ppp0",
        requests=requests,
    )  # fmt: skip


def answered(code: int = 250, seconds: float = 0.5, outcome: NodeOutcome = NodeOutcome.STARTED) -> AskAnswered:
    return AskAnswered(
        round="r1", provider="isp", node="office.example", outcome=outcome, code=code, text="Queuing started",
        promised=None, seconds=seconds,
    )  # fmt: skip


def ended(round: str = "r1", provider: str = "isp", outcome: Outcome = Outcome.DRAINED, **more: object) -> RoundEnded:
    values: dict[str, object] = {
        "sessions": 2, "messages": 3, "files": 4, "duplicates": 0, "refused": 0, "bytes": 12345, "wire_bytes": 15800,
        "seconds": 28.1, "link_interface": "ppp0",
    }  # fmt: skip
    return RoundEnded(round=round, provider=provider, outcome=outcome, **(values | more))  # type: ignore[arg-type]


def accepted(message: str = "m1", round: str | None = "r1") -> MessageAccepted:
    return MessageAccepted(
        message=message, session="s", provider="isp", round=round, sender="a@x", recipients=("b@y",), bytes=100,
        wire_bytes=120, seconds=0.1,
    )  # fmt: skip


def duplicate(message: str = "m1") -> MessageDuplicate:
    return MessageDuplicate(
        message=message, session="s", provider="isp", round="r1", sender="a@x", recipients=("c@y",), first="m0"
    )


def refused(code: int = 452, round: str = "r1", sender: str = "a@x") -> MessageRefused:
    return MessageRefused(
        session="s",
        provider="isp",
        round=round,
        sender=sender,
        recipient="",
        code=code,
        reason="too big",
        bytes=9_000_000,
    )


def opened(round: str | None = "r1") -> SessionOpened:
    return SessionOpened(session="s", provider="isp", round=round, peer="203.0.113.9")


def up(provider: str = "isp", interface: str = "ppp0") -> LinkUp:
    return LinkUp(provider=provider, interface=interface, source="198.51.100.7", gateway=None, cause="netlink")


def warned(text: str = "isp seems to connect from 203.0.113.77 now", subject: str = "isp") -> WarningRaised:
    return WarningRaised(warning="peer-refused", subject=subject, text=text, fix="add it to peers")


def folded(*events: Event, step: float = 1.0) -> StatusFold:
    fold = StatusFold()
    for number, event in enumerate(events):
        fold.fold(Stamped(AT + timedelta(seconds=step * number), event))
    return fold


def document(fold: StatusFold, *, state: str = "running", sessions=(), queue=None, providers=None) -> dict:
    return fold.document(
        state=state,
        pid=4711,
        since=AT,
        listener=ListenerView(("0.0.0.0:25",), True),
        sessions=sessions,
        queue=queue or QueueView(),
        providers=providers or [ProviderView("isp", "resting", AT + timedelta(minutes=15))],
    )


def last_round(*events: Event) -> dict:
    return document(folded(*events))["providers"][0]["last_round"]


# --- the document -----------------------------------------------------------------------------------------------------


def test_the_document_is_the_contracts() -> None:
    fold = folded(
        up(), started(requests=("q1",)), answered(), opened(), refused(), ended(), warned()
    )  # fmt: skip
    assert document(fold, sessions=[Open()]) == {
        "version": 1,
        "state": "running",
        "pid": 4711,
        "since": "2026-11-22T08:00:00Z",
        "link": {
            "up": True, "interface": "ppp0", "source": "198.51.100.7", "since": "2026-11-22T08:00:00Z",
            "cause": "netlink",
        },
        "listener": {"addresses": ["0.0.0.0:25"], "open": True},
        "sessions_open": [
            {
                "provider": "isp", "peer": "203.0.113.9", "bytes": 81920, "size": 2000000,
                "seconds": 10.0, "since": "2026-11-22T08:00:00Z",
            }
        ],
        "queue": {"messages": 0, "oldest": None, "reason": None},
        "providers": [
            {
                "name": "isp",
                "state": "resting",
                "next_ask": "2026-11-22T08:15:00Z",
                "last_round": {
                    "id": "r1",
                    "cause": "link",
                    "method": "etrn",
                    "started": "2026-11-22T08:00:01Z",
                    "ended": "2026-11-22T08:00:05Z",
                    "outcome": "drained",
                    "reason": "",
                    "requests": ["q1"],
                    "nodes": [
                        {
                            "node": "office.example", "outcome": "started", "code": 250, "text": "Queuing started",
                            "promised": None,
                        }
                    ],
                    "sessions": 2, "messages": 3, "files": 4, "duplicates": 0, "refused": 0, "bytes": 12345,
                    "wire_bytes": 15800,
                    "deferred": [
                        {"code": 452, "reason": "too big", "bytes": 9000000, "since": "2026-11-22T08:00:04Z"}
                    ],
                },
            }
        ],
        "warnings": [
            {
                "name": "peer-refused", "since": "2026-11-22T08:00:06Z",
                "text": "isp seems to connect from 203.0.113.77 now", "fix": "add it to peers",
            }
        ],
        "totals": {"rounds": 1, "messages": 0, "bytes": 0},
    }  # fmt: skip


def test_before_anything_happened_the_document_is_whole() -> None:
    empty = document(StatusFold(), state="starting")
    assert empty["link"] == {"up": False, "interface": None, "source": None, "since": None, "cause": None}
    assert empty["providers"][0]["last_round"] is None
    json.dumps(empty)


def test_a_running_round_is_shown_without_an_end_and_with_what_came_so_far() -> None:
    last = last_round(started(), answered(), opened(), accepted("m1"), accepted("m2"))
    assert (last["ended"], last["outcome"], last["messages"], last["bytes"]) == (None, None, 2, 200)


def test_the_end_of_a_round_brings_the_true_figures() -> None:
    assert last_round(started(), accepted(), ended(messages=7))["messages"] == 7


def test_a_transaction_with_new_and_known_recipients_is_one_message() -> None:
    last = last_round(started(), accepted("m1"), duplicate("m1"), duplicate("m2"))
    assert (last["messages"], last["duplicates"]) == (2, 2)


def test_a_second_answer_for_a_node_replaces_the_first() -> None:
    nodes = last_round(started(), answered(451, outcome=NodeOutcome.RETRY), answered(250))["nodes"]
    assert [(each["node"], each["code"]) for each in nodes] == [("office.example", 250)]


def test_a_file_that_comes_late_is_counted_in_its_round() -> None:
    stored = MessageStored(message="m", mailbox="alice", file="f", bytes=1, round="r1", provider="isp")
    assert last_round(started(), ended(files=2), stored)["files"] == 3


def test_mail_without_a_round_counts_in_the_totals_alone() -> None:
    fold = folded(started(), ended(messages=0, bytes=0), accepted("m1", round=None))
    shown = document(fold)
    assert shown["totals"] == {"rounds": 1, "messages": 1, "bytes": 100}
    assert shown["providers"][0]["last_round"]["messages"] == 0


def test_a_request_that_joined_the_round_is_shown() -> None:
    fold = folded(started(requests=("q1",)))
    view = ProviderView("isp", "asking", None, {"r1": ("q1", "q2"), "r0": ("q0",)})
    assert document(fold, providers=[view])["providers"][0]["last_round"]["requests"] == ["q1", "q2"]


def test_a_permanent_refusal_is_not_held_back_at_the_provider() -> None:
    last = last_round(started(), refused(550))
    assert (last["refused"], last["deferred"]) == (1, [])


def test_what_is_held_back_again_keeps_the_time_when_it_was_first() -> None:
    held = last_round(started(), refused(), ended(), started("r2"), refused(round="r2"))["deferred"]
    assert [each["since"] for each in held] == ["2026-11-22T08:00:01Z"]


def test_what_is_no_longer_held_back_is_not_listed() -> None:
    assert last_round(started(), refused(), ended(), started("r2"))["deferred"] == []


def test_the_line_is_up_while_one_provider_can_be_reached() -> None:
    fold = folded(up("isp"), up("second", "wwan0"), LinkDown(provider="isp", interface="ppp0", cause="netlink"))
    views = [ProviderView("isp", "down"), ProviderView("second", "resting")]
    assert document(fold, providers=views)["link"]["interface"] == "wwan0"


def test_a_provider_that_was_removed_does_not_hold_the_line_up() -> None:
    fold = folded(up("removed"))
    assert document(fold)["link"]["up"] is False


def test_a_line_that_is_down_has_no_interface_but_a_time() -> None:
    link = document(folded(up(), LinkDown(provider="isp", interface="ppp0", cause="poll")))["link"]
    assert link == {"up": False, "interface": None, "source": None, "since": "2026-11-22T08:00:01Z", "cause": "poll"}


def test_a_warning_told_again_keeps_its_time_and_takes_the_new_text() -> None:
    shown = document(folded(warned("one"), warned("two")))["warnings"]
    assert [(each["text"], each["since"]) for each in shown] == [("two", "2026-11-22T08:00:00Z")]


def test_a_cleared_warning_is_gone() -> None:
    assert document(folded(warned(), WarningCleared(warning="peer-refused", subject="isp")))["warnings"] == []


def test_the_ledger_tells_when_was_asked_and_how_long_until_the_first_connection() -> None:
    fold = folded(started(), answered(seconds=0.5), opened(), opened(), ended())
    (row,) = fold.ledger()
    assert (row["asked"], row["code"], row["first_connection_seconds"]) == ("2026-11-22T08:00:00Z", 250, 1.5)


def test_a_clock_set_back_makes_no_negative_wait() -> None:
    fold = folded(started(), answered(), opened(), ended(), step=-100.0)
    assert fold.ledger()[0]["first_connection_seconds"] == 0


def test_the_ledger_keeps_the_last_rounds_only() -> None:
    pairs = [event for number in range(30) for event in (started(f"r{number}"), ended(f"r{number}"))]
    assert [row["id"] for row in folded(*pairs).ledger()] == [f"r{number}" for number in range(30 - LEDGER_ROUNDS, 30)]


def test_totals_are_restored_and_the_past_is_not_counted_again() -> None:
    fold = StatusFold()
    fold.restore([Stamped(AT, started()), Stamped(AT, ended())], rounds=9, messages=41, bytes=523311)
    assert document(fold)["totals"] == {"rounds": 9, "messages": 41, "bytes": 523311}
    assert document(fold)["providers"][0]["last_round"]["outcome"] == "drained"


@pytest.mark.parametrize(
    ("event", "now"), [(up(), True), (ended(), True), (warned(), True), (accepted(), False), (opened(), False)]
)
def test_states_lines_and_outcomes_are_written_at_once(event: Event, now: bool) -> None:
    assert urgent(event) is now


_EVENTS = st.sampled_from(
    [
        up(), LinkDown(provider="isp", interface="ppp0", cause="x"), started("r1"), started("r2"), answered(), opened(),
        opened(None), accepted("m1"), accepted("m2", None), duplicate(), refused(), refused(550, "r2"), ended("r1"),
        ended("r2"), warned(), WarningCleared(warning="peer-refused", subject="isp"),
        AskFailed(round="r1", provider="isp", stage="connect", code=None, reason="no answer", temporary=True),
        AgentReady(hostname="h", listening=(), providers=(), seconds=0.1),
    ]
)  # fmt: skip


@given(st.lists(_EVENTS, max_size=30), st.sampled_from(["starting", "running", "stopping"]), st.booleans())
def test_any_order_of_events_makes_a_document_and_a_screen(events: list[Event], state: str, running: bool) -> None:
    shown = json.loads(json.dumps(document(folded(*events), state=state)))
    screen = render(shown, now=NOW, running=running)
    assert screen.splitlines()[0] == verdict(shown, now=NOW, running=running).sentence


# --- does mail flow? --------------------------------------------------------------------------------------------------


def judged(*events: Event, state: str = "running", running: bool = True, **more) -> tuple[Mood, str]:
    found = verdict(document(folded(up(), *events), state=state, **more), now=NOW, running=running)
    return found.mood, found.sentence


def test_a_drained_round_means_that_mail_flows() -> None:
    assert judged(started(), ended()) == (Mood.FLOWS, "mail flows: 3 messages, 12.3 kB from isp at 09:00:02 CET")


def test_silence_is_not_called_success() -> None:
    mood, sentence = judged(started(), ended(outcome=Outcome.SILENT, messages=0))
    assert mood is Mood.UNKNOWN
    assert sentence.startswith("nothing came: isp agreed to send") and "or did not reach us" in sentence


@pytest.mark.parametrize("outcome", list(Outcome))
def test_every_outcome_has_its_own_answer(outcome: Outcome) -> None:
    others = {judged(started(), ended(outcome=each))[1] for each in Outcome if each is not outcome}
    assert judged(started(), ended(outcome=outcome))[1] not in others


@pytest.mark.parametrize("outcome", [Outcome.REFUSED, Outcome.FAILED, Outcome.INCOMPLETE])
def test_a_round_that_went_wrong_wants_a_look(outcome: Outcome) -> None:
    assert judged(started(), ended(outcome=outcome))[0] is Mood.LOOK


def test_a_refusal_quotes_the_provider_and_says_when_it_goes_on() -> None:
    _, sentence = judged(started(), ended(outcome=Outcome.REFUSED, reason='"459 not allowed"'))
    assert sentence == 'mail does not flow from isp: it refuses: "459 not allowed", next attempt 09:15:00 CET'


def test_an_agent_that_does_not_run_is_the_first_thing_said() -> None:
    assert judged(started(), ended(), warned(), running=False) == (
        Mood.STOPPED, "mail does not flow: the agent is not running",
    )  # fmt: skip


def test_a_warning_comes_before_good_news() -> None:
    mood, sentence = judged(started(), ended(), warned(), warned("more", subject="second"))
    assert mood is Mood.LOOK
    assert sentence.endswith("isp seems to connect from 203.0.113.77 now (and 1 more below)")


def test_without_a_line_mail_waits() -> None:
    down = LinkDown(provider="isp", interface="ppp0", cause="netlink")
    assert judged(started(), ended(), down) == (Mood.WAITS, "mail waits for the line (down since 09:00:03 CET)")


def test_an_open_session_means_that_mail_is_coming_in() -> None:
    assert judged(sessions=[Open()]) == (Mood.FLOWS, "mail is coming in from isp")


def test_before_the_first_round_nothing_is_known() -> None:
    assert judged()[0] is Mood.UNKNOWN


def test_of_several_providers_the_worst_is_told() -> None:
    views = [ProviderView("isp", "resting"), ProviderView("second", "retrying")]
    events = (started(), ended(), started("r2", "second"), ended("r2", "second", Outcome.FAILED, reason="no answer"))
    assert judged(*events, providers=views)[1] == "mail does not flow from second: the last attempt failed: no answer"


# --- the screen -------------------------------------------------------------------------------------------------------


def test_the_screen_fits_on_one_and_shows_every_part() -> None:
    fold = folded(up(), started(), answered(), opened(), refused(), ended(), warned())
    shown = render(
        document(fold, sessions=[Open()], queue=QueueView(2, AT, "disk full")), now=NOW, running=True
    ).splitlines()
    assert len(shown) <= 24
    whole = "\n".join(shown)
    for part in (
        "running, process 4711", "up: ppp0, 198.51.100.7", "open: 0.0.0.0:25", "resting, asks again 09:15:00 CET",
        "office.example: started (250 Queuing started)", "stays there: 9.0 MB, 452 too big", "81.9 kB of 2.0 MB",
        "2 messages, the oldest since 09:00:00 CET: disk full", "1 round", "fix: add it to peers",
    ):  # fmt: skip
        assert part in whole


@pytest.mark.parametrize(
    ("session", "shown"),
    [
        (Open(), "isp at 203.0.113.9: 81.9 kB of 2.0 MB (4 %), 8.2 kB/s, about 4 min left, since 09:00:00 CET"),
        (Open(size=0), "isp at 203.0.113.9: 81.9 kB, 8.2 kB/s, since 09:00:00 CET"),
        (Open(size=None, provider=None), "unknown at 203.0.113.9: 81.9 kB, 8.2 kB/s, since 09:00:00 CET"),
        (Open(seconds=0.3), "isp at 203.0.113.9: 81.9 kB of 2.0 MB (4 %), since 09:00:00 CET"),
        (Open(bytes=3_000_000), "isp at 203.0.113.9: 3.0 MB, 300.0 kB/s, since 09:00:00 CET"),
        (Open(bytes=0), "isp at 203.0.113.9: 0 B of 2.0 MB (0 %), since 09:00:00 CET"),
        (Open(bytes=0, size=0), "isp at 203.0.113.9: between two messages, since 09:00:00 CET"),
        (Open(bytes=100, seconds=10.0), "100 B of 2.0 MB (0 %), 10 B/s, about 55 h 33 min left"),
    ],
)
def test_a_message_that_arrives_is_shown_with_its_share_its_rate_and_the_time_left(session: Open, shown: str) -> None:
    (row,) = (
        row
        for row in render(document(folded(), sessions=[session]), now=NOW, running=True).splitlines()
        if row.startswith("arriving")
    )
    assert shown in row


def test_what_is_only_to_come_does_not_stop_the_mail() -> None:
    ahead = WarningRaised(warning="disk", subject="state", text="only 1.0 GB of 20.0 GB left", fix="make room")
    mood, sentence = judged(started(), ended(), ahead)
    assert mood is Mood.LOOK
    assert sentence.startswith("mail flows: ") and sentence.endswith(". But only 1.0 GB of 20.0 GB left")
    both = judged(started(), ended(), ahead, warned())
    assert both[1].startswith("mail does not flow as it should: isp seems") and both[1].endswith("(and 1 more below)")


def test_the_providers_words_cannot_move_the_cursor() -> None:
    event = AskAnswered(
        round="r1", provider="isp", node="office.example", outcome=NodeOutcome.REFUSED, code=459,
        text="no\x1b[2J\r\nreally", promised=None, seconds=0,
    )  # fmt: skip
    shown = render(document(folded(up(), started(), event, ended(reason="\x1b]0;x\x07"))), now=NOW, running=True)
    assert all(row.isprintable() for row in shown.splitlines())


def test_times_of_another_day_have_their_date() -> None:
    assert moment(AT, NOW) == "09:00:00 CET"
    assert moment("2026-11-20T23:30:00Z", NOW) == "2026-11-21 00:30 CET"
    assert moment(None, NOW) == "never"


@pytest.mark.parametrize(
    ("octets", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (12345, "12.3 kB"),
        (5_200_000, "5.2 MB"),
        (7 * 10**12, "7000.0 GB"),
    ],
)
def test_amounts_are_decimal(octets: int, text: str) -> None:
    assert amount(octets) == text


# --- warnings ---------------------------------------------------------------------------------------------------------


def raised(warnings: Warnings, text: str = "t", subject: str = "isp") -> WarningRaised | None:
    return warnings.raise_("peer-refused", subject, text, "f")


def test_a_warning_is_told_once() -> None:
    warnings = Warnings()
    assert raised(warnings) == WarningRaised(warning="peer-refused", subject="isp", text="t", fix="f")
    assert raised(warnings) is None


def test_a_warning_about_something_else_is_told_too() -> None:
    warnings = Warnings()
    assert raised(warnings) is not None and raised(warnings, subject="second") is not None


def test_a_text_that_changes_is_told_again_but_not_without_end() -> None:
    warnings = Warnings()
    told = [raised(warnings, f"from 203.0.113.{number}") for number in range(10)]
    assert sum(event is not None for event in told) == TELLINGS


def test_a_warning_that_stands_is_cleared_once() -> None:
    warnings = Warnings()
    raised(warnings)
    assert warnings.clear("peer-refused", "isp") == WarningCleared(warning="peer-refused", subject="isp")
    assert warnings.clear("peer-refused", "isp") is None


def test_after_clearing_it_is_told_anew() -> None:
    warnings = Warnings()
    raised(warnings)
    warnings.clear("peer-refused", "isp")
    assert raised(warnings) is not None


def test_what_stood_before_a_restart_is_not_told_again() -> None:
    warnings = Warnings()
    warnings.restore([Stamped(AT, warned())])
    assert warnings.raise_("peer-refused", "isp", warned().text, "f") is None
    assert warnings.standing("peer-refused") == ("isp",)


def test_an_unknown_kind_is_our_bug() -> None:
    with pytest.raises(AssertionError):
        Warnings().raise_("no-such-kind", "isp", "t", "f")


def test_every_kind_has_a_title() -> None:
    assert {"peer-refused", "cannot-file"} <= KINDS.keys() and all(KINDS.values())


def test_what_is_held_back_tells_when_the_provider_gives_up() -> None:
    view = ProviderView("isp", "resting", gives_up_days=5)
    (held,) = document(folded(started(), refused()), providers=[view])["providers"][0]["last_round"]["deferred"]
    assert held["gives_up"] == "2026-11-27T08:00:01Z"
    shown = render(document(folded(started(), refused(), ended()), providers=[view]), now=AT, running=True)
    assert "it returns it to the sender about 2026-11-27 08:00" in shown


@pytest.mark.parametrize("outcome", [Outcome.SILENT, Outcome.FAILED, Outcome.REFUSED, Outcome.LINK_LOST, Outcome.ASKED])
def test_a_round_in_which_nothing_was_offered_leaves_what_is_held_back(outcome: Outcome) -> None:
    held = last_round(started(), refused(), ended(), started("r2"), ended(round="r2", outcome=outcome))["deferred"]
    assert [each["since"] for each in held] == ["2026-11-22T08:00:01Z"]
