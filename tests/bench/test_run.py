"""The one table: that a part runs and is told, that the page keeps what was not measured. No figure is asserted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.bench import run
from tests.bench.run import PARTS, Row


def command(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, str(Path(__file__).with_name(name)), *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=100)


@pytest.mark.postfix
def test_a_part_in_its_short_form_becomes_rows_of_the_table() -> None:
    done = command("run.py", "--short", "--parts", "start")
    assert done.returncode == 0, done.stderr
    assert PARTS["start"].title in done.stdout
    for words in ("agent: start, s", "hub: memory (RSS), MB", "agent: idle, % of a core"):
        assert words in done.stdout


@pytest.mark.slow
@pytest.mark.postfix
def test_the_past_in_short_form_is_measured_by_every_figure() -> None:
    done = command("growth.py", "history", "--short")
    assert done.returncode == 0, done.stderr
    for words in ("start to listening, s", "take, messages/s", "`siteagent history --rounds 10`, s"):
        assert words in done.stdout


def test_every_part_is_a_command_with_help_that_is_there_or_is_told_missing() -> None:
    names = {command.split()[0] for part in PARTS.values() for command in (*part.commands, *part.short)}
    for name in names & {path.name for path in Path(run.__file__).parent.glob("*.py")}:
        done = command(name, "--help")
        assert done.returncode == 0 and "usage" in done.stdout, name


def test_a_row_has_its_ratio_and_none_where_nothing_is_compared() -> None:
    assert Row("a", 3.0, "Postfix", 2.0).cells() == ("a", "3.00", "Postfix", "2.00", "1.50")
    assert Row("a", 1234.5).cells() == ("a", "1,234", "", "", "")
    assert Row("a", 3.0, "Postfix", 0.0).cells()[-1] == "-"


def test_writing_one_part_leaves_the_others_and_the_words_around(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"words\n{run.BEGIN}\n{run.END}\nmore words\n")
    run.write(run.sections({"past": [Row("old growth", 1.0)]}, day="2026-01-01", load=0.5), page)
    run.write(run.sections({"receive": [Row("receiving", 2.0)]}, day="2026-01-02", load=0.5), page)
    run.write(run.sections({"past": [Row("new growth", 3.0)]}, day="2026-01-03", load=0.5), page)
    text = page.read_text()
    assert text.startswith("words\n") and text.endswith("more words\n")
    assert "receiving" in text and "new growth" in text and "old growth" not in text
    assert text.index("receiving") < text.index("new growth"), "in the order of the parts"
    assert "2026-01-01" not in text and "2026-01-02" in text
