"""`store.forms`: the form of a name that worked is remembered over a restart."""

from __future__ import annotations

from pathlib import Path

import pytest
from siteagent.store.forms import NameForms


def test_what_worked_outlives_a_restart(tmp_path: Path) -> None:
    forms = NameForms(tmp_path / "f")
    assert forms.learn("isp", "office.example", "#office.example")
    forms.save()
    assert NameForms(tmp_path / "f").known("isp") == {"office.example": "#office.example"}
    assert NameForms(tmp_path / "f").known("other") == {}


def test_what_is_known_already_needs_no_saving(tmp_path: Path) -> None:
    forms = NameForms(tmp_path / "f")
    assert not forms.learn("isp", "a.example", "")
    assert forms.learn("isp", "a.example", "#a.example")
    assert not forms.learn("isp", "a.example", "#a.example")


def test_a_name_that_works_as_written_again_is_no_exception_any_more(tmp_path: Path) -> None:
    forms = NameForms(tmp_path / "f")
    forms.learn("isp", "a.example", "#a.example")
    assert forms.learn("isp", "a.example", "a.example")
    assert forms.known("isp") == {}


@pytest.mark.parametrize("content", [b"", b"[1]", b'{"isp": 3}', b'{"isp": {"a": 3, "b": ""}}', b"\xff"])
def test_a_file_that_makes_no_sense_is_as_good_as_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "f").write_bytes(content)
    assert NameForms(tmp_path / "f").known("isp") == {}


def test_a_disk_that_refuses_is_told_and_nothing_is_forgotten(tmp_path: Path) -> None:
    told: list[str] = []
    forms = NameForms(tmp_path / "missing" / "f", note=told.append)
    forms.learn("isp", "a.example", "#a.example")
    forms.save()
    assert len(told) == 1 and forms.known("isp")
