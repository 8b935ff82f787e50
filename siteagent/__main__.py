"""``siteagent`` and ``python -m siteagent``."""

from __future__ import annotations

import gc
import sys


def main() -> None:
    """Run the command line and end the process with its exit code."""
    gc.disable()  # what an import makes stays: looking for garbage in it costs a tenth of the start
    try:
        from siteagent.cli.main import main as command_line

        code = command_line()
    except KeyboardInterrupt:  # while the program is still being read: `command_line` answers the later ones
        if sys.stderr is not None:
            print("interrupted", file=sys.stderr)
        code = 130  # 128 + SIGINT, as shells say it
    sys.exit(code)


if __name__ == "__main__":
    main()
