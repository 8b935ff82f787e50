"""`wire.reply`: a reply as a value, and as bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from siteagent.wire.reply import Reply, parsed, printable


def test_a_reply_travels_with_crlf() -> None:
    assert bytes(Reply(250, "2.0.0", "ok")) == b"250 2.0.0 ok\r\n"


def test_a_reply_of_several_lines_repeats_the_code_on_each() -> None:
    assert bytes(Reply(250, "", "mx\nETRN\nSIZE")) == b"250-mx\r\n250-ETRN\r\n250 SIZE\r\n"


def test_an_empty_text_keeps_its_space() -> None:
    assert bytes(Reply(250, "", "")) == b"250 \r\n"


@given(st.text())
def test_no_text_makes_a_second_reply(text: str) -> None:
    rows = bytes(Reply(451, "4.3.0", text)).split(b"\r\n")
    assert rows.pop() == b""
    assert all(row.startswith(b"451-") for row in rows[:-1])
    assert rows[-1].startswith(b"451 ")
    assert not any(b"\n" in row or b"\r" in row for row in rows)


def test_the_enhanced_code_is_split_off() -> None:
    assert parsed(459, "4.5.4 Queue x unknown") == Reply(459, "4.5.4", "Queue x unknown")


def test_the_enhanced_code_is_split_off_each_line() -> None:
    assert parsed(250, "2.0.0 one\n2.0.0 two") == Reply(250, "2.0.0", "one\ntwo")


def test_an_enhanced_code_of_another_class_is_text() -> None:
    assert parsed(550, "4.7.1 hm") == Reply(550, "", "4.7.1 hm")


@pytest.mark.parametrize("text", ["", "OK", "10.0.0.1 knows you", "2.0", "2.0.0x"])
def test_what_is_no_enhanced_code_stays_text(text: str) -> None:
    assert parsed(250, text) == Reply(250, "", text)


@pytest.mark.parametrize(
    ("code", "flags"), [(250, (1, 0, 0)), (354, (1, 0, 0)), (421, (0, 1, 0)), (459, (0, 1, 0)), (550, (0, 0, 1))]
)
def test_the_class_is_that_of_the_first_digit(code: int, flags: tuple[int, int, int]) -> None:
    reply = Reply(code, "", "")
    assert (reply.positive, reply.temporary, reply.permanent) == tuple(map(bool, flags))


def test_as_text_it_is_one_line_without_control_characters() -> None:
    assert str(Reply(250, "", "a\x1b[31m\nb\r")) == "250 a [31m b"


@given(st.text())
def test_printable_has_no_control_character(text: str) -> None:
    assert all(c.isprintable() or ord(c) >= 0xA0 for c in printable(text))
