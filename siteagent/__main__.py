"""``siteagent`` and ``python -m siteagent``."""

from __future__ import annotations

import gc
import sys


def main() -> None:
    """Run the command line and end the process with its exit code."""
    gc.disable()  # what an import makes stays: looking for garbage in it costs a tenth of the start
    from siteagent.cli.main import main as command_line

    sys.exit(command_line())


if __name__ == "__main__":
    main()
