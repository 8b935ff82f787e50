"""The benchmark runs. How fast anything is, nobody asserts here: that depends on the machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).with_name("receive.py")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(BENCH), *arguments], capture_output=True, text=True, timeout=100)


@pytest.mark.postfix
def test_the_short_form_measures_every_side_and_prints_its_tables(tmp_path: Path) -> None:
    done = run("--short", "--json", str(tmp_path / "figures"))
    assert done.returncode == 0, done.stderr
    for words in ("messages a second", "as a multiple of", "CPU seconds per 1,000 messages", "round trips"):
        assert words in done.stdout
    for side in ("ours", "stock", "nothing"):
        assert f"\n{side} " in done.stdout, side
    assert (tmp_path / "figures").stat().st_size > 0


def test_its_help_says_what_is_measured_and_with_what() -> None:
    done = run("--help")
    assert done.returncode == 0
    for words in ("--short", "--rounds", "Postfix", "smtp-source", "median"):
        assert words in done.stdout
