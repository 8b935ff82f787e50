"""What every command is handed: the global options, the configuration they lead to, and where words go.

Data goes to stdout (`Context.out`), talk to stderr (`Context.talk`): a pipe gets data alone.
"""

from __future__ import annotations

import errno
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TextIO, cast, overload

import click

from siteagent.errors import StorageError

if TYPE_CHECKING:
    from siteagent.config.sections import Configuration, HubConfiguration


@dataclass(slots=True)
class Context:
    """The global options; get it in a command by ``@click.pass_obj``."""

    config_path: Path | None = None
    verbose: bool = False
    quiet: bool = False
    log_format: Literal["text", "json"] | None = None
    color: Literal["auto", "always", "never"] = "auto"
    _read: dict[bool, Configuration | HubConfiguration] = field(default_factory=dict)

    def path(self, *, hub: bool = False) -> Path:
        """The configuration file to use, which may not exist. Raises PermissionProblem where we may not look."""
        from siteagent.config import files  # 40 ms that `--help` can do without

        return files.find(self.config_path, hub=hub)

    @overload
    def configuration(self, *, hub: Literal[False] = False) -> Configuration: ...
    @overload
    def configuration(self, *, hub: Literal[True]) -> HubConfiguration: ...
    def configuration(self, *, hub: bool = False) -> Configuration | HubConfiguration:
        """The configuration, read once. Raises what `files.load` raises."""
        from siteagent.config import files

        if hub not in self._read:
            self._read[hub] = files.load(self.path(hub=hub), hub=hub)
        return self._read[hub]

    def state_directory(self, *, hub: bool = False) -> Path:
        """Where the state lies, even while something else in the configuration is wrong."""
        from siteagent.config import files  # 40 ms that `--help` can do without

        return files.state_directory(self.path(hub=hub), hub=hub)

    def out(self, text: str = "") -> None:
        """Print data, which --quiet does not silence."""
        try:
            click.echo(text, color=self._click_color(sys.stdout))
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise  # whoever read it has seen enough
            why = (error.strerror or str(error)).lower()
            raise StorageError("cannot write the output", why, fix="send it elsewhere") from error

    def talk(self, text: str = "") -> None:
        """Tell people on stderr what goes on; --quiet silences it."""
        if not self.quiet:
            self.alarm(text)

    def detail(self, text: str) -> None:
        """Tell what only --verbose wants to know."""
        if self.verbose:
            self.alarm(text)

    def alarm(self, text: str) -> None:
        """Tell on stderr even under --quiet."""
        click.echo(text, err=True, color=self._click_color(sys.stderr))

    def colored(self, stream: TextIO | None = None) -> bool:
        """Whether `stream` (stdout) gets colour: --color first, then NO_COLOR (no-color.org), then what it is."""
        if self.color != "auto":
            return self.color == "always"
        stream = stream or cast(TextIO | None, sys.stdout)
        there = stream is not None and stream.isatty()  # a process may be started without one
        return there and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    def _click_color(self, stream: object) -> bool:
        return self.colored(cast(TextIO, stream))
