"""The benchmarks of the hub run. How fast anything is, nobody asserts here: that depends on the machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(HERE / name), *arguments], capture_output=True, text=True, timeout=100)


def test_the_short_form_of_the_queue_measures_everything() -> None:
    done = run("hub_queue.py", "--short")
    assert done.returncode == 0, done.stderr
    for words in ("start to listening", "memory (RSS)", "ETRN answer, median", "push begins behind it", "p99"):
        assert words in done.stdout
    assert "-" not in done.stdout.split("pushed meanwhile, messages a second")[1], "every figure was seen"


@pytest.mark.postfix
def test_the_short_form_of_the_push_measures_both_sides() -> None:
    done = run("push.py", "--short")
    assert done.returncode == 0, done.stderr
    head, figures = done.stdout.splitlines()
    assert "hub / Postfix" in head
    assert all(float(cell) >= 0 for cell in figures.split())


@pytest.mark.parametrize("name", ["hub_queue.py", "push.py"])
def test_its_help_says_what_is_measured(name: str) -> None:
    done = run(name, "--help")
    assert done.returncode == 0
    assert "--short" in done.stdout and "ETRN" in done.stdout
