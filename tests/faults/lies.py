"""What is left out on purpose, so that a loop that stays green proves something: the controls of the lab.

A lie is told to the program from outside, by a library put in front of its libc (`shim.c`): nothing in the program
knows of it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent

LIES: Mapping[str, str] = {
    "spool": "no sync of the spool's database",
    "file": "no sync of a message's file",
    "folder": "no sync of a directory",
}


@cache
def _shim() -> tuple[tempfile.TemporaryDirectory[str], Path]:
    """The library, built once; it goes with the process."""
    place = tempfile.TemporaryDirectory(prefix="siteagent-faults-")
    built = Path(place.name) / "shim.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O2", "-o", built, HERE / "shim.c", "-ldl"], check=True)
    return place, built


def environment(lies: Sequence[str] = ()) -> dict[str, str]:
    """For a program under test: nothing that leads it elsewhere or measures it, and these `lies`."""
    left_out = ("SITEAGENT_", "COVERAGE_", "STATE_DIRECTORY", "CONFIGURATION_DIRECTORY", "JOURNAL_STREAM", "NOTIFY_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(left_out)}
    if lies:
        kept |= {"LD_PRELOAD": str(_shim()[1]), "FAULTS_SKIP": ",".join(lies)}
    return kept


def program(*words: str | Path) -> list[str]:
    """The command line of ``siteagent WORDS``."""
    return [sys.executable, "-m", "siteagent", *map(str, words)]
