"""The program's entry: run a command, and turn what went wrong into one line and an exit code."""

from __future__ import annotations

import gc
import io
import sys
from typing import NoReturn

# A short run makes values by the ten thousand and no cycles among them; looking for some takes a third of
# its time. Everything is given back at the end anyway.
gc.disable()


def main() -> NoReturn:
    """Run the command line and exit with its code."""
    try:
        from staticcall.cli.entry import run  # noqa: PLC0415 - after the collector is off

        if isinstance(sys.stdout, io.TextIOWrapper):
            if isinstance(sys.stdout.buffer, io.FileIO):
                # PYTHONUNBUFFERED, by which Python loses what is behind a write that the system cut short.
                encoding = sys.stdout.encoding
                whole = io.BufferedWriter(sys.stdout.detach())
                sys.stdout = io.TextIOWrapper(whole, encoding, line_buffering=True)
            # A name that the terminal's encoding does not have is shown as its numbers.
            sys.stdout.reconfigure(errors="backslashreplace")
        sys.exit(run(sys.argv[1:]))
    except KeyboardInterrupt:
        # Before or after there was anything to be interrupted.
        sys.exit(130)


if __name__ == "__main__":
    main()
