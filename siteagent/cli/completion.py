"""What shells need to complete our command line, as click makes it: for bash, zsh and fish.

`install-service` puts it where the shells look. Each asks ``siteagent`` itself, by a variable that `cli.main` knows.
"""

from __future__ import annotations

from click.shell_completion import get_completion_class

from siteagent.cli.main import COMPLETE, group

_PLACES = {
    "bash": "bash-completion/completions/siteagent",
    "zsh": "zsh/site-functions/_siteagent",
    "fish": "fish/vendor_completions.d/siteagent.fish",
}


def completions() -> dict[str, str]:
    """Place below a directory such as /usr/local/share -> text."""
    return {place: source(shell) for shell, place in _PLACES.items()}


def source(shell: str) -> str:
    """The script for `shell`, which need not be installed here."""
    kind = get_completion_class(shell)
    assert kind is not None, shell
    made = kind(group, {}, "siteagent", COMPLETE)
    # Not `made.source()`: that of bash runs bash, to see whether it is old.
    return made.source_template % made.source_vars()
