#!/usr/bin/env python3
"""Every check of the project, from a fresh clone: `python3 tests/check.py`.

Needs nothing but Python's standard library: makes `.venv`, installs the package and its tools there, runs ruff, mypy
and pytest under coverage, and ends with a summary in pytest's form, before it what was skipped and why. A step that
fails makes the whole fail; the steps after it still run where they can, so that one run shows everything.

With CI=true on Linux a skipped test is a failure too, unless it is a long form (`--long` runs those).
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import venv
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ROOT / "tests" / "system-packages.txt"
UNPACKED = ROOT / "tests" / "unpacked-packages.txt"
POLICY = Path("/usr/sbin/policy-rc.d")
LONG_FORM = "long form"
SUMMARY = re.compile(r"^=*\s*((\d+ [a-z]+(, )?)+|no tests ran) in [\d.]+s.*$")
COUNT = re.compile(r"(\d+) ([a-z]+)")


class Failed(Exception):
    """A step did not succeed; the text is what to show of it."""


@dataclass
class Run:
    """The steps of one run: what each took, and which failed."""

    total: int
    taken: list[tuple[str, float, bool]] = field(default_factory=list)

    def step(self, title: str, work: Callable[[], str | None]) -> bool:
        """Do one step and say how it went. `work` returns a remark, or raises Failed."""
        print(f"[{len(self.taken) + 1}/{self.total}] {title} ...", flush=True)
        begun = time.monotonic()
        try:
            remark, good = work() or "", True
        except Failed as problem:
            print(problem, flush=True)
            remark, good = "FAILED", False
        seconds = time.monotonic() - begun
        self.taken.append((title, seconds, good))
        print(f"      {remark or 'ok'}  {seconds:.1f} s", flush=True)
        return good

    @property
    def good(self) -> bool:
        return all(good for _, _, good in self.taken)


def command(*argv: str | Path, env: dict[str, str] | None = None, cwd: str | Path = ROOT) -> None:
    """Run quietly from the project's root. Raises Failed with all output where it ends with an error."""
    try:
        done = subprocess.run(argv, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except OSError as problem:
        raise Failed(f"cannot run {argv[0]}: {problem.strerror}") from problem
    if done.returncode != 0:
        raise Failed(f"$ {' '.join(map(str, argv))}\n{done.stdout.rstrip()}\n  exit code {done.returncode}")


# --- packages of the system -------------------------------------------------------------------------------------------


def wanted_packages(listed: Path = PACKAGES) -> list[str]:
    lines = (line.partition("#")[0].strip() for line in listed.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def unpacked() -> Path:
    """Where the packages lie that are unpacked and not installed; another list is another place."""
    mark = hashlib.sha256(" ".join(wanted_packages(UNPACKED)).encode()).hexdigest()[:12]
    return Path("/var/tmp") / f"siteagent-unpacked-{mark}"


def unpack() -> str:
    """Download and unpack them, once. Whole or not at all: the place appears by a rename."""
    place = unpacked()
    if place.is_dir():
        if hasattr(os, "geteuid") and place.stat().st_uid not in (0, os.geteuid()):
            raise Failed(f"{place} belongs to somebody else: remove it")  # everybody may write beside it
        return "unpacked already"
    with tempfile.TemporaryDirectory(prefix="siteagent-unpacking-", dir=place.parent) as scratch:
        fresh = Path(scratch) / "root"
        fresh.mkdir()
        command("apt-get", "download", *wanted_packages(UNPACKED), cwd=scratch)
        for package in sorted(Path(scratch).glob("*.deb")):
            command("dpkg-deb", "--extract", package, fresh)
        fresh.chmod(0o755)  # servers give up their rights and must still get here
        fresh.rename(place)
    return f"unpacked {' '.join(wanted_packages(UNPACKED))}"


def installed(package: str) -> bool:
    query = ["dpkg-query", "--show", "--showformat", "${db:Status-Status}", package]
    return subprocess.run(query, capture_output=True, text=True).stdout == "installed"


@contextmanager
def no_daemons() -> Iterator[None]:
    """Nothing that is being installed may start a daemon here; what stood in the way before is put back."""
    before, mode = (POLICY.read_bytes(), POLICY.stat().st_mode) if POLICY.exists() else (None, 0)
    POLICY.write_text("#!/bin/sh\nexit 101\n", encoding="ascii")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        if before is None:
            POLICY.unlink()
        else:
            POLICY.write_bytes(before)
            POLICY.chmod(mode)


def system_packages() -> str:
    if shutil.which("dpkg-query") is None or shutil.which("apt-get") is None:
        raise Failed(f"no apt-get here: install by hand what {PACKAGES.relative_to(ROOT)} names")
    missing = [package for package in wanted_packages() if not installed(package)]
    if not missing and unpacked().is_dir():
        return "all there already"
    if not missing:
        command("apt-get", "update")
        return unpack()
    if sys.platform == "win32" or os.geteuid() != 0:
        raise Failed(f"installing needs root: apt-get install --no-install-recommends {' '.join(missing)}")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with no_daemons():
        command("apt-get", "update", env=env)
        command("apt-get", "install", "--yes", "--no-install-recommends", *missing, env=env)
    return f"installed {' '.join(missing)}, {unpack()}"


# --- our own environment ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Environment:
    """The virtual environment that everything runs in."""

    directory: Path

    @property
    def scripts(self) -> Path:
        return Path(sysconfig.get_path("scripts", "venv", {"base": str(self.directory)}))

    @property
    def python(self) -> Path:
        return self.scripts / ("python.exe" if os.name == "nt" else "python")

    @property
    def stamp(self) -> Path:
        return self.directory / "installed-from"

    def make(self) -> str:
        if self.python.exists():
            return f"{self.directory.name} exists"
        venv.create(self.directory, with_pip=True)
        return f"{self.directory.name} made with Python {sys.version.split()[0]}"

    def install(self) -> str:
        """The package, editable, with its dev group; not again while pyproject.toml is the same."""
        print_of_project = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
        if self.stamp.exists() and self.stamp.read_text(encoding="ascii") == print_of_project:
            return "unchanged"
        pip = (self.python, "-m", "pip", "--disable-pip-version-check", "--quiet")
        command(*pip, "install", "--upgrade", "pip>=25.1")  # the first that knows --group
        command(*pip, "install", "--group", "dev", "--editable", ".")
        self.stamp.write_text(print_of_project, encoding="ascii")
        return "installed"


# --- tests ------------------------------------------------------------------------------------------------------------

# They wait for daemons and lines, and the others compute: side by side both take the time of the longer one.
LABORATORY = ("tests/e2e", "tests/faults", "tests/bench")


@dataclass
class Suite:
    """One process of pytest, and what it left to tell."""

    name: str
    arguments: Sequence[str]
    report: Path
    output: bytes = b""
    counts: dict[str, int] = field(default_factory=dict)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    code: int = -1

    def run(self, argv: Sequence[str | Path], env: dict[str, str], *, aloud: bool) -> None:
        """Reads to its end what it says: aloud as it comes, or to be told later."""
        options = [f"--junitxml={self.report}", "--durations=10", "--durations-min=1", *self.arguments]
        with subprocess.Popen(
            [*argv, *options], cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process:
            assert isinstance(process.stdout, io.BufferedReader)
            while said := process.stdout.read1():  # not by lines: a line of dots can take minutes
                self.output += said
                if aloud:
                    sys.stdout.buffer.write(said)
                    sys.stdout.flush()
        for line in self.output.decode(errors="replace").splitlines():
            if SUMMARY.match(line):
                self.counts = {word: int(count) for count, word in COUNT.findall(line.partition(" in ")[0])}
        self.code = process.returncode
        self.skipped = skipped_tests(self.report)


@dataclass
class Tests:
    """All tests: in two processes, or where arguments say which, in one."""

    environment: Environment
    arguments: Sequence[str]
    choice: Sequence[str]
    strict: bool
    scratch: Path
    summary: str = "pytest gave no summary"
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def run(self) -> str:
        begun = time.monotonic()
        env = {
            **os.environ,
            "PATH": f"{self.environment.scripts}{os.pathsep}{os.environ.get('PATH', '')}",
            "COVERAGE_FILE": str(self.scratch / "coverage"),
            "PYTHONUNBUFFERED": "1",
        }
        # Hundreds of agents are started: compiling the package for each of them takes longer than most tests.
        env.pop("PYTHONDONTWRITEBYTECODE", None)
        argv: list[str | Path] = [self.environment.python, "-m", "coverage", "run", "-m", "pytest"]
        suites = self.suites()
        beside = [threading.Thread(target=suite.run, args=(argv, env), kwargs={"aloud": False}) for suite in suites[1:]]
        for thread in beside:
            thread.start()
        suites[0].run(argv, env, aloud=True)
        for suite, thread in zip(suites[1:], beside, strict=True):
            thread.join()
            print(f"\n{suite.name}, which ran beside it:\n{suite.output.decode(errors='replace')}", flush=True)
        self.skipped = [skip for suite in suites for skip in suite.skipped]
        self.summary = self.total(suites, time.monotonic() - begun)
        if failed := [f"{suite.name} with {suite.code}" for suite in suites if suite.code != 0]:
            raise Failed(f"pytest ended: {', '.join(failed)}")
        forbidden = [name for name, reason in self.skipped if LONG_FORM not in reason]
        if forbidden and self.strict:
            raise Failed(f"{len(forbidden)} tests were skipped, and here none may be")
        return self.summary

    def suites(self) -> list[Suite]:
        if self.choice:
            return [Suite("the tests", [*self.arguments, *self.choice], self.scratch / "chosen.xml")]
        left_out = [f"--ignore={folder}" for folder in LABORATORY]
        return [
            Suite("the laboratory", [*self.arguments, *LABORATORY], self.scratch / "laboratory.xml"),
            Suite("the rest", [*self.arguments, *left_out], self.scratch / "rest.xml"),
        ]

    @staticmethod
    def total(suites: Sequence[Suite], seconds: float) -> str:
        """As pytest says it of one process; a process that said nothing is an error."""
        counts: dict[str, int] = {}
        for suite in suites:
            for word, count in (suite.counts or {"error": 1}).items():
                counts[word] = counts.get(word, 0) + count
        return ", ".join(f"{count} {word}" for word, count in counts.items()) + f" in {seconds:.2f}s"

    def coverage(self) -> None:
        """Put the figures of all processes together. What was killed hard has left none."""
        env = {**os.environ, "COVERAGE_FILE": str(self.scratch / "coverage")}
        run = (self.environment.python, "-m", "coverage")
        command(*run, "combine", "--quiet", env=env)
        done = subprocess.run((*run, "report"), cwd=ROOT, env=env, capture_output=True, text=True)
        print(done.stdout.rstrip())
        if done.returncode != 0:
            raise Failed(done.stderr.rstrip())


def skipped_tests(report: Path) -> list[tuple[str, str]]:
    """(test, reason) of everything that did not run or was expected to fail."""
    if not report.exists():
        return []
    found = []
    for case in ElementTree.parse(report).iter("testcase"):
        for skip in case.iter("skipped"):
            name = "::".join(part for part in (case.get("classname"), case.get("name")) if part)
            found.append((name, skip.get("message") or "no reason given"))
    return found


def tell(run: Run, tests: Tests) -> None:
    """The end of the output: seconds, what was skipped and why, and how many passed, last."""
    print("\nseconds:", ", ".join(f"{title} {seconds:.1f}" for title, seconds, _ in run.taken))
    by_reason: dict[str, list[str]] = {}
    for name, reason in tests.skipped:
        by_reason.setdefault(reason, []).append(name)
    print("skipped: nothing" if not by_reason else "skipped:")
    for reason, names in sorted(by_reason.items()):
        print(f"  {reason}")
        for name in names:
            print(f"    {name}")
    if failed := [title for title, _, good in run.taken if not good]:
        print(f"FAILED: {', '.join(failed)}")
    print(tests.summary, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Every check of the project.", allow_abbrev=False)
    parser.add_argument("--system-packages", action="store_true", help="install what the tests need, by apt-get")
    parser.add_argument("--long", action="store_true", help="run the slow forms too")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", metavar="DIR", help="default: .venv")
    parser.add_argument("pytest", nargs="*", help="further arguments for pytest, after --")
    options = parser.parse_args(argv)
    if sys.version_info < (3, 11):  # noqa: UP036 - this file is what an older Python meets first
        print(f"siteagent needs Python 3.11 or later, and this is {sys.version.split()[0]}", file=sys.stderr)
        return 78

    environment = Environment(options.venv.resolve())
    strict = os.environ.get("CI", "").lower() == "true" and sys.platform == "linux"
    run = Run(total=8 + options.system_packages)
    if options.system_packages and not run.step("system packages", system_packages):
        return 1
    if not run.step("virtual environment", environment.make) or not run.step("install", environment.install):
        return 1
    tool = environment.scripts
    run.step("ruff check", lambda: command(tool / "ruff", "check", "."))
    run.step("ruff format --check", lambda: command(tool / "ruff", "format", "--check", "."))
    run.step("mypy --strict", lambda: command(tool / "mypy", "--strict"))
    # Nothing runs on Windows here: what can be known without it is known by types.
    run.step("mypy, as on Windows", lambda: command(tool / "mypy", "--strict", "--platform", "win32"))
    with tempfile.TemporaryDirectory(prefix="siteagent-check-") as scratch:
        tests = Tests(environment, ["--long"] if options.long else [], options.pytest, strict, Path(scratch))
        run.step("pytest", tests.run)
        run.step("coverage", tests.coverage)
    tell(run, tests)
    return 0 if run.good else 1


if __name__ == "__main__":
    sys.exit(main())
