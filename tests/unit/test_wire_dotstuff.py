"""The oracle: a slow parser that reads one octet at a time and knows nothing of chunks."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from siteagent.wire.dotstuff import Folder, Unstuffer

TRICKY = st.lists(st.sampled_from([b"\r", b"\n", b".", b"a", b"\r\n", b"\r\n.", b"\r\n.\r", b"..", b"\0"]), max_size=40)


def oracle(stream: bytes) -> tuple[bytes, bytes | None]:
    """(content so far with CRLF as LF, what follows the end or None) by RFC 5321 §4.5.2, line by line."""
    content = b""
    while True:
        line, found, rest = stream.partition(b"\r\n")
        if not found:
            return content + line, None
        if line == b".":
            return content, rest
        content += line.removeprefix(b".") + b"\n"
        stream = rest


def whole(chunks: list[bytes]) -> tuple[bytes, bytes | None, Unstuffer]:
    parser = Unstuffer()
    content, rest = b"", None
    for number, chunk in enumerate(chunks):
        part, rest = parser.unstuff(chunk)
        content += part
        if rest is not None:
            return content, rest + b"".join(chunks[number + 1 :]), parser
    return content, rest, parser


def cut(stream: bytes, cuts: list[int]) -> list[bytes]:
    points = sorted({min(point, len(stream)) for point in cuts} | {0, len(stream)})
    return [stream[a:b] for a, b in pairwise(points)]


@given(TRICKY, st.lists(st.integers(0, 80), max_size=12))
def test_any_stream_in_any_chunks_is_what_the_oracle_reads(parts: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(parts) + b"\r\n.\r\nQUIT\r\n"
    expected, expected_rest = oracle(stream)
    content, rest, parser = whole(cut(stream, cuts))
    assert (content, rest) == (expected, expected_rest)
    assert parser.done


@given(TRICKY)
def test_byte_by_byte_is_the_same_as_at_once(parts: list[bytes]) -> None:
    stream = b"".join(parts) + b"\r\n.\r\ntrailing"
    at_once = whole([stream])
    slowly = whole([bytes([octet]) for octet in stream])
    assert at_once[:2] == slowly[:2]
    counts = [(p.bare_cr, p.bare_lf, p.folded) for p in (at_once[2], slowly[2])]
    assert counts[0] == counts[1]


@given(TRICKY)
def test_bare_line_ends_are_counted(parts: list[bytes]) -> None:
    body = b"".join(parts)
    stream = body + b"x\r\n.\r\n"
    _, _, parser = whole([stream])
    end = len(stream) - 3 if oracle(stream)[1] == b"" else len(stream) - len(oracle(stream)[1] or b"") - 3
    taken = stream[:end]
    pairs = taken.count(b"\r\n")
    assert parser.bare_cr == taken.count(b"\r") - pairs
    assert parser.bare_lf == taken.count(b"\n") - pairs


@pytest.mark.parametrize(
    ("stream", "content"),
    [
        (b".\r\n", b""),
        (b"\r\n.\r\n", b"\n"),
        (b"..\r\n.\r\n", b".\n"),
        (b".a\r\n..b\r\n.\r\n", b"a\n.b\n"),
        (b"a\n.\nb\r\n.\r\n", b"a\n.\nb\n"),
        (b"a\n.\r\nb\r\n.\r\n", b"a\n.\nb\n"),
        (b"a\r.\rb\r\n.\r\n", b"a\r.\rb\n"),
        (b"a\r\n.\r\r\nb\r\n.\r\n", b"a\n\r\nb\n"),
        (b"a\r\n.\nb\r\n.\r\n", b"a\n\nb\n"),
    ],
)
def test_content(stream: bytes, content: bytes) -> None:
    assert whole([stream])[:2] == (content, b"")


def test_what_follows_the_end_is_left_over() -> None:
    assert Unstuffer().unstuff(b"a\r\n.\r\nMAIL FROM:<>\r\n") == (b"a\n", b"MAIL FROM:<>\r\n")


def test_never_more_than_four_octets_are_held_back() -> None:
    parser = Unstuffer()
    for chunk in (b"\r\n.\r" * 1000, b"\r" * 1000, b"." * 1000, b"\n" * 1000):
        parser.unstuff(chunk)
        assert len(parser._carry) <= 4


def test_the_size_that_rfc_1870_means_counts_crlf_and_no_stuffing() -> None:
    content, _, parser = whole([b"..dot\r\nline\r\n.\r\n"])
    assert len(content) + parser.folded == len(b".dot\r\nline\r\n")


@given(TRICKY, st.lists(st.integers(0, 80), max_size=8))
def test_folding_alone_changes_crlf_and_nothing_else(parts: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(parts)
    folder = Folder()
    content = b"".join(folder.feed(chunk) for chunk in cut(stream, cuts)) + folder.close()
    assert content == stream.replace(b"\r\n", b"\n")
    pairs = stream.count(b"\r\n")
    assert (folder.bare_cr, folder.bare_lf, folder.folded) == (
        stream.count(b"\r") - pairs,
        stream.count(b"\n") - pairs,
        pairs,
    )
