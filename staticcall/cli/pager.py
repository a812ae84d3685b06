"""Long text goes through a pager, as git's does: what does not fit a terminal is shown a page at a time."""

from __future__ import annotations

import contextlib
import os
import sys
from shutil import which

from staticcall.cli.colour import size_of
from staticcall.cli.outcome import say
from staticcall.pipeline.trace import doing

# What a shell exits with where it could not run the command, by POSIX.
_NOT_RUN = (126, 127)
# For `less`: end where all fits, show colour, leave the text on the screen. For `lv`: show colour. git has the same.
_USUAL = {"LESS": "FRX", "LV": "-c"}


def page(text: str, *, wanted: bool = True) -> None:
    """Write text to standard output, through the pager where that is a terminal with fewer lines.

    The pager is $STATICCALL_PAGER, else $PAGER, else `less`. A shell runs it, which is what POSIX says of $PAGER; the
    command is the user's own and nothing is added to it. One that is empty or `cat` is none. A pager that is not there
    is no error, and neither is how it ends.
    """
    command = _pager() if wanted and _is_long(text) else ""
    if not command or not _paged(command, text):
        say(text)


def _pager() -> str:
    for name in ("STATICCALL_PAGER", "PAGER"):
        command = os.environ.get(name)
        if command is not None:
            return "" if command.strip() in ("", "cat") else command
    return "less" if os.environ.get("TERM", "dumb") != "dumb" and which("less") else ""


def _is_long(text: str) -> bool:
    if sys.stdout is None or not sys.stdout.isatty():
        return False
    return text.count("\n") >= size_of(sys.stdout)[1]


def _paged(command: str, text: str) -> bool:
    """Show text by a command; returns whether that could be run."""
    from signal import SIG_IGN, SIGINT, signal  # noqa: PLC0415 - only where there is a pager
    from subprocess import PIPE, Popen  # noqa: PLC0415 - as above

    doing("")  # the terminal is the pager's
    sys.stdout.flush()
    data = text.encode(sys.stdout.encoding, sys.stdout.errors or "strict")
    try:
        pager = Popen(command, shell=True, stdin=PIPE, env=_USUAL | os.environ)  # noqa: S602 - the user's own command
    except OSError:  # no shell, or no process
        return False
    # An interruption is for the pager, which may only stop a search then.
    before = signal(SIGINT, SIG_IGN)
    try:
        with contextlib.suppress(BrokenPipeError):  # it was left before the end
            pager.communicate(data)
        return pager.wait() not in _NOT_RUN
    finally:
        signal(SIGINT, before)
