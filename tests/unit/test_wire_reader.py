"""`wire.reader`: every case whole, byte by byte, and with something behind it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from siteagent.wire.reader import MAX_LINE, MAX_REPLY, ReplyError, ReplyReader, quoted
from siteagent.wire.reply import Reply

GOOD = {
    b"250 OK\r\n": Reply(250, "", "OK"),
    b"250\r\n": Reply(250, "", ""),
    b"250 \r\n": Reply(250, "", ""),
    b"250 2.0.0 OK\r\n": Reply(250, "2.0.0", "OK"),
    b"250-a\r\n250-b\r\n250 c\r\n": Reply(250, "", "a\nb\nc"),
    b"250-\r\n250 c\r\n": Reply(250, "", "\nc"),
    b"250-a\r\n250\r\n": Reply(250, "", "a\n"),
    b"250 bare\n": Reply(250, "", "bare"),
    b"\r\n\r\n250 after blank lines\r\n": Reply(250, "", "after blank lines"),
    b"220 gr\xc3\xbc\xc3\x9fe\r\n": Reply(220, "", "grüße"),
    b"220 gr\xfc\xdfe\r\n": Reply(220, "", "gr\ufffd\ufffde"),
    b"571 an odd second digit\r\n": Reply(571, "", "an odd second digit"),
    b"250 " + b"x" * 2000 + b"\r\n": Reply(250, "", "x" * 2000),
}
BAD = (
    b"22X hello\r\n",
    b"220OK\r\n",
    b"250-a\r\n251 b\r\n",
    b"250-a\r\n\r\n250 b\r\n",
    b"150 early\r\n",
    b"650 late\r\n",
    b"050 none\r\n",
    b"25\r\n",
    b" 250 shifted\r\n",
    b"+25 signed\r\n",
    b"2_0 underscored\r\n",
    b"250\tOK\r\n",
    b"250 nul \0 inside\r\n",
    b"250\0OK\r\n",
    b"hello\r\n",
    b"HTTP/1.1 400 Bad Request\r\n",
    "２５０ OK\r\n".encode(),
)


@pytest.mark.parametrize("raw", GOOD)
def test_a_reply_in_one_piece(raw: bytes) -> None:
    assert ReplyReader().feed(raw) == GOOD[raw]


@pytest.mark.parametrize("raw", GOOD)
def test_a_reply_byte_by_byte(raw: bytes) -> None:
    reader = ReplyReader()
    replies = [reader.feed(raw[i : i + 1]) for i in range(len(raw))]
    assert replies == [None] * (len(raw) - 1) + [GOOD[raw]]


@pytest.mark.parametrize("raw", GOOD)
def test_what_stands_behind_a_reply_is_kept_apart(raw: bytes) -> None:
    reader = ReplyReader()
    assert reader.feed(raw + b"250 stray\r\n") == GOOD[raw]
    assert reader.rest == b"250 stray\r\n"


def test_blank_lines_behind_a_reply_are_nothing() -> None:
    reader = ReplyReader()
    reader.feed(b"458 Unable\r\n\r\n")
    assert reader.rest == b""


@pytest.mark.parametrize("raw", BAD)
def test_s40_what_is_no_reply_is_an_error(raw: bytes) -> None:
    with pytest.raises(ReplyError):
        ReplyReader().feed(raw)


@pytest.mark.parametrize("raw", BAD)
def test_s40_what_is_no_reply_is_an_error_byte_by_byte(raw: bytes) -> None:
    reader = ReplyReader()
    with pytest.raises(ReplyError):
        for i in range(len(raw)):
            reader.feed(raw[i : i + 1])


@given(st.lists(st.binary(max_size=300)))
def test_any_bytes_make_a_reply_an_error_or_wait(pieces: list[bytes]) -> None:
    reader = ReplyReader()
    try:
        for piece in pieces:
            reader.feed(piece)
    except ReplyError as error:
        assert str(error).isprintable()


@given(st.lists(st.sampled_from(sorted(GOOD)), min_size=1, max_size=5), st.randoms())
def test_pieces_do_not_matter(raws: list[bytes], random: object) -> None:
    reader = ReplyReader()
    got = []
    for raw in raws:
        middle = random.randrange(len(raw))  # type: ignore[attr-defined]
        got += [reply for part in (raw[:middle], raw[middle:]) if (reply := reader.feed(part)) is not None]
    assert got == [GOOD[raw] for raw in raws]


def test_s38_a_line_without_end_is_an_error_at_once() -> None:
    reader = ReplyReader()
    with pytest.raises(ReplyError):
        for _ in range(MAX_LINE // 100 + 2):
            reader.feed(b"2" * 100)


def test_s38_a_reply_without_end_is_an_error() -> None:
    reader = ReplyReader()
    with pytest.raises(ReplyError):
        for _ in range(MAX_REPLY // 10 + 2):
            reader.feed(b"250-more\r\n")


def test_s38_endless_blank_lines_are_an_error() -> None:
    reader = ReplyReader()
    with pytest.raises(ReplyError):
        for _ in range(MAX_REPLY):
            reader.feed(b"\r\n")


def test_a_quotation_is_short_and_printable() -> None:
    assert quoted(b"\x1b[31m" + b"x" * 200) == "[31m" + "x" * 75 + "..."
