"""What a command's end means: one line on standard error where something went wrong, and an exit code."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from typing import TextIO

from staticcall.errors import ExitCode, StaticcallError, printable


class ReaderGoneError(Exception):
    """Who read standard output went away, as `head` does; click makes its own end of a BrokenPipeError."""


def exit_code_of(command: Callable[[], object]) -> int:
    """Run a command to its end, say what went wrong, and give the exit code."""
    try:
        result = command()
        if sys.stdout is not None:
            sys.stdout.flush()
    except StaticcallError as error:
        complain(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        complain("interrupted")
        return 130
    except (BrokenPipeError, ReaderGoneError):
        _silence(sys.stdout)
        return 141
    except OSError as error:
        if error.filename is None:
            complain(f"standard output: {error.strerror}")
            _silence(sys.stdout)
        else:
            complain(f"{error.filename}: {error.strerror}")
        return ExitCode.INPUT
    except MemoryError:
        complain("not enough memory for this file")
        return ExitCode.INPUT
    return result if isinstance(result, int) else ExitCode.DONE


def say(text: str) -> None:
    """Write to standard output, where there is one."""
    if sys.stdout is not None:  # as it is where the shell closed it
        try:
            sys.stdout.write(text)
        except BrokenPipeError:
            raise ReaderGoneError from None


def complain(message: str) -> None:
    """Say one line on standard error."""
    try:
        if sys.stderr is not None:
            sys.stderr.write(f"staticcall: {printable(message)}\n")
            sys.stderr.flush()
    except OSError:
        _silence(sys.stderr)


def _silence(stream: TextIO) -> None:
    """Nothing more can be said there, not even what is still to be flushed at the exit."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
