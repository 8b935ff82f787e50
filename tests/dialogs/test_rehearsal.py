"""The scripted provider as an operator starts it: by the commands and the configuration of docs/providers.md."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.scripted import for_nodes
from tests.site import free_port

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "providers.md").read_text("utf-8").partition("## Rehearsing")[2]


def test_an_operator_can_rehearse_as_the_page_says(tmp_path: Path) -> None:
    asked, delivered = str(free_port()), str(free_port())
    command, configuration = (
        text.replace("2525", asked).replace("2526", delivered)
        for text in (
            re.findall(r"^    python3 (tests/scripted.py .*--deliver.*)$", PAGE, re.MULTILINE)[0],
            re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)[0],
        )
    )
    (tmp_path / "siteagent.toml").write_text(configuration)
    (tmp_path / "mail").mkdir()
    # -I -S: nothing but Python's own library is needed.
    playing = subprocess.Popen(
        [sys.executable, "-I", "-S", *command.split()], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert playing.stdout is not None and "listening on" in playing.stdout.readline()
        ask = [sys.executable, "-m", "siteagent", "--config", str(tmp_path / "siteagent.toml"), "ask"]
        done = subprocess.run(ask, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert (done.returncode, "drained, 3 messages" in done.stdout) == (0, True), done.stdout + done.stderr
        assert len(list((tmp_path / "mail" / "alice" / "new").iterdir())) == 3
    finally:
        playing.terminate()
        told = playing.communicate(timeout=10)[0]
    assert "0: ETRN branch.example" in told and told.count("handed over, and answered: 250") == 3
    assert "not in the dialogue" not in told


def test_the_ready_made_dialogues_have_names() -> None:
    listed = subprocess.run(
        [sys.executable, "-I", "-S", "tests/scripted.py", "--list"], cwd=ROOT, capture_output=True, text=True
    )
    names = {line.split()[0] for line in listed.stdout.splitlines()}
    assert {"postfix", "exim-wants-hash", "sendmail-silent", "odd-starttls-injection"} <= names


def test_a_dialogue_about_ones_own_nodes() -> None:
    ready = "S: 220 mx\nC: ETRN office.example\nS: 250 for office.example\nC: ETRN branch.example\nS: 250 b\nC: QUIT"
    assert for_nodes(ready, ["a.example", "b.example"]) == (
        "S: 220 mx\nC: ETRN a.example\nS: 250 for a.example\nC: ETRN b.example\nS: 250 b\nC: QUIT"
    )
    assert for_nodes(ready, ["a.example"]) == "S: 220 mx\nC: ETRN a.example\nS: 250 for a.example\nC: QUIT"
