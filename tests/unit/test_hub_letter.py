"""One message as it travels."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from siteagent.hub.letter import PIECE_BYTES, Letter, Stuffer, Unreadable, on_the_wire
from siteagent.wire.dotstuff import Unstuffer


def letter(**options: object) -> Letter:
    values: dict[str, object] = {
        "id": 1,
        "message": "m",
        "sender": "a@b.example",
        "addresses": ("alice@office.example",),
        "size": 10,
        "smtputf8": False,
        "eight_bit": False,
        "received": b"Received: by us\n",
        "data": None,
    }
    return Letter(**{**values, **options})  # type: ignore[arg-type]


async def whole(one: Letter) -> bytes:
    return b"".join([piece async for piece in one.pieces()])


def test_a_bare_newline_never_leaves() -> None:
    assert on_the_wire(b"a\nb\r\nc\n") == b"a\r\nb\r\nc\r\n"


@given(st.lists(st.sampled_from([b".", b"\r\n", b"a", b"..", b"x.\r\n"]), max_size=12), st.integers(1, 5))
def test_what_is_stuffed_comes_out_as_it_was_however_it_is_cut(parts: list[bytes], step: int) -> None:
    content = b"".join(parts)
    stuffer = Stuffer()
    cut = [content[at : at + step] for at in range(0, len(content), step)]
    wire = b"".join(stuffer.stuffed(piece) for piece in cut) + stuffer.end
    got, rest = Unstuffer().unstuff(wire)
    wanted = content.replace(b"\r\n", b"\n")
    assert rest == b""
    assert got == (wanted if wanted.endswith(b"\n") or not wanted else wanted + b"\n")


@pytest.mark.parametrize("cut", [0, 1, 2])
def test_a_file_is_sent_as_it_is_with_crlf_whatever_falls_on_the_edge_of_a_piece(tmp_path: Path, cut: int) -> None:
    content = b"x" * (PIECE_BYTES - 1 - cut) + b"\r\nline\n" + b"y" * PIECE_BYTES + b"\n.\nend\r"
    path = tmp_path / "body"
    path.write_bytes(b"HEAD" + content)
    sent = asyncio.run(whole(letter(file=path, head=4)))
    assert sent == b"Received: by us\r\n" + content.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


def test_a_file_that_is_gone_says_so(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match="No such file"):
        asyncio.run(whole(letter(file=tmp_path / "gone")))
