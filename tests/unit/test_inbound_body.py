from __future__ import annotations

import pytest
from siteagent.inbound import body, says
from siteagent.inbound.body import Content, Rules


class Kept:
    def __init__(self) -> None:
        self.octets = b""
        self.discarded = 0

    def write(self, data: bytes) -> None:
        self.octets += data

    def discard(self) -> None:
        self.discarded += 1


def taken(stream: bytes, rules: Rules | None = None, *, step: int = 0) -> tuple[Content, Kept]:
    kept = Kept()
    content = Content(kept, rules or Rules())
    for start in range(0, len(stream), step or len(stream)):
        rest = content.data(stream[start : start + (step or len(stream))])
    assert rest == b""
    return content, kept


@pytest.mark.parametrize("step", [0, 1, 3, 40])
@pytest.mark.parametrize(("hops", "refusal"), [(100, None), (101, says.LOOP)])
def test_received_fields_are_counted_however_they_are_cut(step: int, hops: int, refusal: object) -> None:
    stream = b"Received: a\r\nX: y\r\n" * hops + b"\r\n" + b"Received: in the text\r\n" * 50 + b".\r\n"
    content, kept = taken(stream, step=step)
    assert content.refusal is refusal
    assert kept.discarded == (refusal is not None)


def test_a_message_without_a_header_has_no_received_fields() -> None:
    content, _ = taken(b"\r\n" + b"Received: x\r\n" * 200 + b".\r\n")
    assert content.refusal is None


@pytest.mark.parametrize("step", [1, 40])
def test_a_line_far_too_long_is_refused_and_drained(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "MAX_LINE_BYTES", 100)
    fine, _ = taken((b"x" * 100 + b"\r\n") * 5 + b".\r\n", step=step)
    long, kept = taken(b"y\r\n" + b"x" * 101 + b"\r\n.\r\n", step=step)
    assert (fine.refusal, long.refusal) == (None, says.LINE_OF_CONTENT)
    assert kept.discarded == 1


def test_the_hard_limit_wins_over_the_threshold_of_the_line() -> None:
    rules = Rules(max_bytes=1000, defer_above=100)
    assert taken(b"x" * 200 + b"\r\n.\r\n", rules)[0].refusal is says.TOO_BIG_NOW
    assert taken(b"x" * 2000 + b"\r\n.\r\n", rules, step=50)[0].refusal is says.TOO_BIG


def test_wire_octets_count_dots_and_the_end() -> None:
    stream = b"..a\r\n.\r\n"
    content, kept = taken(stream)
    assert (content.wire, content.size, content.octets, kept.octets) == (len(stream), 3, 4, b".a\n")


def test_a_writer_that_fails_is_4yz_and_the_stream_is_read_on() -> None:
    class Failing(Kept):
        def write(self, data: bytes) -> None:
            raise OSError("no disk")

    content = Content(Failing(), Rules())
    assert content.data(b"hello\r\n") is None
    assert content.data(b"more\r\n.\r\nQUIT\r\n") == b"QUIT\r\n"
    assert content.refusal is says.OUR_FAULT
    assert isinstance(content.error, OSError)


def test_chunks_are_folded_across_their_ends() -> None:
    kept = Kept()
    content = Content(kept, Rules(), chunked=True)
    for chunk in (b"one\r", b"\n.two\r\n", b"three\r"):
        content.bdat(chunk)
    content.last()
    assert kept.octets == b"one\n.two\nthree\r"
    assert content.bare == 1
