"""What shells are told of our command line, run in those that are here."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from siteagent.cli.completion import completions, source


def test_each_shell_has_its_script_where_it_looks_for_it() -> None:
    assert {place: text.strip().splitlines()[0] for place, text in completions().items()} == {
        "bash-completion/completions/siteagent": "_siteagent_completion() {",
        "zsh/site-functions/_siteagent": "#compdef siteagent",
        "fish/vendor_completions.d/siteagent.fish": "function _siteagent_completion;",
    }


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A directory with a ``siteagent`` in it, for PATH."""
    command = tmp_path / "bin" / "siteagent"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m siteagent "$@"\n')
    command.chmod(0o755)
    return command.parent


@pytest.mark.skipif(sys.platform == "win32", reason="bash")
@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (("siteagent", "sta"), ["status"]),
        (("siteagent", "status", "--j"), ["--json"]),
        (("siteagent", "hub", "rel"), ["release"]),
        (("siteagent", "--log-format", "j"), ["json"]),
    ],
)
def test_bash_offers_what_could_be_meant(program: Path, typed: tuple[str, ...], offered: list[str]) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash missing")
    words = " ".join(f"'{word}'" for word in typed)
    script = (
        f"{source('bash')}\nCOMP_WORDS=({words}); COMP_CWORD={len(typed) - 1}\n"
        '_siteagent_completion siteagent; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        [bash, "--norc", "-c", script],
        capture_output=True,
        text=True,
        env={"PATH": f"{program}:/usr/bin:/bin", "LANG": "C.UTF-8"},
        cwd=Path(__file__).parents[2],
    )
    assert (done.stdout.split(), done.stderr) == (offered, "")
