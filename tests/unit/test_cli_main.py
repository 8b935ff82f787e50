"""The command line: global options, the table of commands, how errors end."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from siteagent.cli import main as cli
from siteagent.errors import ConfigurationError, TemporaryError

Run = Callable[..., int]


@pytest.fixture
def command() -> Iterator[Callable[[Callable[[cli.Context], object]], None]]:
    """Puts a command of the test's own into the place of `demo`."""

    def put(act: Callable[[cli.Context], object]) -> None:
        def run() -> object:
            return act(click.get_current_context().obj)

        sys.modules["siteagent.cli.of_a_test"] = module = type(sys)("siteagent.cli.of_a_test")
        module.command = click.Command("demo", callback=run)  # type: ignore[attr-defined]

    kept = dict(cli.COMMANDS)
    cli.COMMANDS["demo"] = ("siteagent.cli.of_a_test:command", "")  # type: ignore[index]
    yield put
    cli.COMMANDS.update(kept)  # type: ignore[attr-defined]
    sys.modules.pop("siteagent.cli.of_a_test", None)


def raising(error: BaseException) -> Callable[[cli.Context], object]:
    def act(context: cli.Context) -> object:
        raise error

    return act


def siteagent(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "siteagent", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, input="")


def test_help_names_every_command_and_imports_none() -> None:
    program = "import sys; from siteagent.cli.main import main; main(['--help'])\n"
    program += "print(sorted(m for m in sys.modules if m.startswith('siteagent.')))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    for name in (
        "demo", "init", "check", "run", "ask", "test", "link-up", "status", "queue", "history", "recipients", "hub",
    ):  # fmt: skip
        assert f"\n  {name} " in done.stdout
    imported = done.stdout.splitlines()[-1]
    assert imported == "['siteagent.cli', 'siteagent.cli.context', 'siteagent.cli.main', 'siteagent.errors']"


def test_the_version_is_one_line() -> None:
    done = siteagent("--version")
    assert (done.returncode, done.stdout) == (0, f"siteagent {cli.__version__}\n")


def test_a_command_that_does_not_exist_is_usage_and_the_nearest_is_named() -> None:
    done = siteagent("statsu")
    assert (done.returncode, done.stdout) == (2, "")
    assert "there is no command 'statsu'; did you mean status?" in done.stderr


def test_a_command_whose_module_is_missing_does_not_break_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    kept = dict(cli.COMMANDS)
    cli.COMMANDS["demo"] = ("siteagent.cli.nowhere:demo", "x")  # type: ignore[index]
    try:
        assert cli.main(["--help"]) == 0
        assert cli.main(["demo"]) == 2
    finally:
        cli.COMMANDS.update(kept)  # type: ignore[attr-defined]
    assert "the command demo is not part of this installation" in capsys.readouterr().err


def test_global_options_are_taken_before_and_behind_the_command(command: Callable[..., None]) -> None:
    seen: list[cli.Context] = []
    command(seen.append)
    assert cli.main(["--config", "a.toml", "-v", "demo"]) == 0
    assert cli.main(["demo", "--config", "b.toml", "--log-format", "json", "-q"]) == 0
    assert [(c.config_path, c.verbose, c.quiet, c.log_format) for c in seen] == [
        (Path("a.toml"), True, False, None),
        (Path("b.toml"), False, True, "json"),
    ]


def test_what_a_command_returns_is_the_exit_code(command: Callable[..., None]) -> None:
    command(lambda context: 75)
    assert cli.main(["demo"]) == 75


def test_an_error_of_ours_is_two_lines_on_stderr_and_its_exit_code(
    command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    command(raising(TemporaryError("cannot ask isp", "no answer", fix="wait")))
    assert cli.main(["-q", "demo"]) == 75
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "error: cannot ask isp: no answer\n  fix: wait\n")


def test_ctrl_c_ends_with_130_and_one_line(command: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    command(raising(KeyboardInterrupt()))
    assert cli.main(["demo"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_an_error_of_the_system_that_nobody_translated_is_74(
    command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    command(raising(OSError(28, "No space left on device", "/var/x")))
    assert cli.main(["demo"]) == 74
    assert "error: cannot use /var/x: no space left on device" in capsys.readouterr().err


def test_a_permission_that_nobody_translated_is_77(command: Callable[..., None]) -> None:
    command(raising(PermissionError(13, "Permission denied", "/var/x")))
    assert cli.main(["demo"]) == 77


def test_a_bug_is_1_and_leaves_its_trace_in_a_file(
    command: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    command(raising(ZeroDivisionError("by zero")))
    assert cli.main(["demo"]) == 1
    said = capsys.readouterr().err
    assert "this is a bug in siteagent: ZeroDivisionError: by zero" in said
    assert "Traceback" not in said
    (trace,) = tmp_path.iterdir()
    assert str(trace) in said and "ZeroDivisionError" in trace.read_text()


def test_a_bug_shows_its_trace_to_those_who_asked_for_more(
    command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    command(raising(ZeroDivisionError()))
    assert cli.main(["demo", "-v"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_reader_that_leaves_is_no_bug() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "siteagent", "--help"], stdout=writing, stderr=subprocess.PIPE, text=True
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_quiet_silences_talk_and_not_data(command: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    def act(context: cli.Context) -> None:
        context.out("data")
        context.talk("talk")
        context.detail("detail")

    command(act)
    cli.main(["-q", "demo"])
    assert capsys.readouterr() == ("data\n", "")


@pytest.mark.parametrize(
    ("option", "environment", "colored"),
    [
        ("auto", {}, True),
        ("auto", {"NO_COLOR": "1"}, False),
        ("auto", {"TERM": "dumb"}, False),
        ("never", {}, False),
        ("always", {"NO_COLOR": "1"}, True),
    ],
)
def test_colour_is_for_terminals_and_can_be_refused(
    option: str, environment: dict[str, str], colored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    class Terminal:
        def isatty(self) -> bool:
            return True

    assert cli.Context(color=option).colored(Terminal()) is colored  # type: ignore[arg-type]


def test_there_is_no_colour_in_a_pipe(command: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    command(raising(ConfigurationError("a", "b")))
    cli.main(["demo"])
    assert "\x1b" not in capsys.readouterr().err
    cli.main(["--color", "always", "demo"])
    assert "\x1b" in capsys.readouterr().err


def test_a_configuration_that_is_missing_is_78() -> None:
    done = siteagent("check", "--config", "/nowhere/siteagent.toml")
    assert (done.returncode, done.stdout) == (78, "")
    assert "fix: run `siteagent init`" in done.stderr


def test_garbage_is_collected_again_once_the_command_is_loaded() -> None:
    program = (
        "import gc, click, siteagent.cli.main as cli\ngc.disable()\n"
        "cli.group.get_command(click.Context(cli.group), 'check')\nprint(gc.isenabled())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() != 0, reason="needs root: setuid")
def test_a_configuration_that_may_not_be_read_is_77_and_no_question_of_the_command_line() -> None:
    program = (
        "import os, sys\n"
        "import siteagent.cli.setup, siteagent.config.paths\n"  # behind setuid our own files may be out of reach
        "from siteagent.cli.main import main\n"
        "os.setgid(65534)\n"
        "os.setuid(65534)\n"
        "sys.exit(main(['--config', sys.argv[1], 'check']))"
    )
    # Not in pytest's own directory, which is closed to everybody: the file itself must be what refuses.
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        path = Path(folder) / "siteagent.toml"
        path.touch(mode=0o000)
        Path(folder).chmod(0o755)
        done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, timeout=30)
    assert (done.returncode, "permission denied" in done.stderr) == (77, True), done.stderr


def test_ctrl_c_while_the_program_is_being_read_makes_no_trace() -> None:
    program = (
        "import sys\n"
        "class Interrupted:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'siteagent.cli.main':\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupted())\n"
        "from siteagent.__main__ import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
@pytest.mark.parametrize("closed", [">&-", "<&-", "2>&-"])
def test_a_process_without_one_of_the_three_streams_is_no_bug(tmp_path: Path, closed: str) -> None:
    command = [sys.executable, "-m", "siteagent", "--config", str(tmp_path / "none.toml")]
    for words, code in ((["init"], 64), (["demo", "--messages", "1"], 0)):
        shell = ["sh", "-c", f'exec "$@" {closed}', "sh", *command, *words]
        done = subprocess.run(shell, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
        assert (done.returncode, "bug" in done.stderr) == (code, False), done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_cannot_be_written_is_said() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "siteagent", "demo", "--messages", "1", "--quiet"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert done.returncode == 74
    assert done.stderr == "error: cannot write the output: no space left on device\n  fix: send it elsewhere\n"


@pytest.mark.parametrize(
    ("words", "number", "offered"), [("siteagent st", "1", "status"), ("siteagent status --w", "2", "--watch")]
)
def test_a_shell_is_offered_commands_and_options(words: str, number: str, offered: str) -> None:
    asked = {"_SITEAGENT_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": number}
    argv = [sys.executable, "-c", "from siteagent.__main__ import main; main()"]
    done = subprocess.run(argv, env={**os.environ, **asked}, capture_output=True, text=True, timeout=30)
    assert done.stdout == f"plain,{offered}\n", done.stderr
