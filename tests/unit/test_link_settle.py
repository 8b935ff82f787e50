"""When a change of the line counts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from siteagent.events import Line
from siteagent.link.settle import CAP, Settle, same_way

PPP = Line("ppp0", "198.51.100.7")
ETH = Line("eth0", "192.0.2.7", "192.0.2.1")


def settled(line: Line | None, seconds: float = 0.5) -> Settle:
    settle = Settle(seconds)
    settle.seen(line, 0.0, "start")
    return settle


def test_the_first_look_counts_at_once() -> None:
    settle = Settle(0.5)
    assert settle.seen(PPP, 0.0, "start")
    assert (settle.reported, settle.due) == (PPP, None)


def test_a_first_look_that_finds_nothing_is_no_news() -> None:
    settle = Settle(0.5)
    assert not settle.seen(None, 0.0, "start")


def test_a_change_counts_after_the_settle_time_and_not_before() -> None:
    settle = settled(None)
    assert not settle.seen(PPP, 10.0, "netlink")
    assert settle.due == 10.5
    assert not settle.seen(PPP, 10.499, "poll")
    assert settle.reported is None
    assert settle.seen(PPP, 10.5, "poll")
    assert (settle.reported, settle.cause, settle.due) == (PPP, "netlink", None)


def test_a_line_that_comes_back_within_the_settle_time_was_never_gone() -> None:
    settle = settled(PPP)
    assert not settle.seen(None, 1.0, "netlink")
    assert not settle.seen(PPP, 1.1, "netlink")
    assert not settle.seen(PPP, 1.6, "poll")
    assert (settle.reported, settle.due) == (PPP, None)


def test_a_contradiction_starts_the_settle_time_anew() -> None:
    settle = settled(None)
    settle.seen(PPP, 1.0, "netlink")
    settle.seen(None, 1.4, "netlink")
    settle.seen(PPP, 1.6, "netlink")
    assert not settle.seen(PPP, 1.9, "poll")
    assert settle.seen(PPP, 2.1, "poll")


def test_a_line_that_flaps_for_ever_is_told_of_after_six_settle_times() -> None:
    settle = settled(None)
    seen = [settle.seen(PPP if n % 2 == 0 else None, n * 0.3, "netlink") for n in range(11)]
    assert seen.index(True) == 10
    assert CAP * 0.5 == 10 * 0.3


def test_another_gateway_alone_is_no_change_but_is_remembered() -> None:
    settle = settled(ETH)
    other = Line("eth0", "192.0.2.7", "192.0.2.254")
    assert not settle.seen(other, 5.0, "netlink")
    assert (settle.reported, settle.due) == (other, None)


def test_a_second_way_coming_up_does_not_move_the_line_from_the_first() -> None:
    settle = settled(PPP)
    assert settle.prefers((ETH, PPP)) == PPP
    assert settle.prefers((ETH,)) == ETH


def test_while_settling_the_candidate_is_kept_to() -> None:
    settle = settled(None)
    settle.seen(PPP, 1.0, "netlink")
    assert settle.prefers((ETH, PPP)) == PPP


def test_a_settle_time_of_zero_tells_at_the_look_itself() -> None:
    settle = settled(None, 0.0)
    assert settle.seen(PPP, 3.0, "netlink")


LOOKS = st.lists(
    st.tuples(st.floats(0.001, 4.0), st.sampled_from([None, PPP, ETH, Line("eth0", "192.0.2.9")])), max_size=60
)


@given(LOOKS, st.sampled_from([0.0, 0.5, 2.0]))
def test_any_looks_end_in_what_was_seen_last_once_it_is_quiet(
    looks: list[tuple[float, Line | None]], seconds: float
) -> None:
    settle = settled(None, seconds)
    now, told, line = 0.0, settle.reported, None
    unsettled_since: float | None = None
    for pause, line in looks:
        now += pause
        # As the watch does: a look that is due happens, and sees what was last so.
        changed = settle.seen(line, now, "x")
        assert changed == (not same_way(told, settle.reported))
        told = settle.reported
        if settle.due is None:
            unsettled_since = None
        else:
            unsettled_since = now if unsettled_since is None else unsettled_since
            assert now < settle.due <= unsettled_since + CAP * seconds + 1e-6
    while settle.due is not None:
        now = settle.due
        settle.seen(line, now, "due")
    assert same_way(settle.reported, line)


@given(LOOKS)
def test_no_change_is_told_faster_than_it_settles(looks: list[tuple[float, Line | None]]) -> None:
    settle, now, held = settled(None), 0.0, 0.0
    last: Line | None = None
    begun = 0.0
    for pause, line in looks:
        now += pause
        if not same_way(line, last):
            held, last = now, line
        if settle.due is None:
            begun = now
        if settle.seen(line, now, "x"):
            assert now - held >= 0.5 - 1e-9 or now - begun >= 3.0 - 1e-9
