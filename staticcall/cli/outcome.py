"""What a command's end means: one line on standard error where something went wrong, and an exit code."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, TextIO, TypeVar

from staticcall.errors import ExitCode, StaticcallError, printable

_T = TypeVar("_T")


# What is on the terminal and makes room, from `__enter__` to `__exit__`, for what is said there.
_shown: list[AbstractContextManager[object]] = []


@contextlib.contextmanager
def showing(room: AbstractContextManager[object]) -> Iterator[None]:
    """Have room made by what is shown meanwhile, whenever anything is said."""
    _shown.append(room)
    try:
        yield
    finally:
        _shown.remove(room)


def _room() -> AbstractContextManager[object]:
    return _shown[-1] if _shown else contextlib.nullcontext()


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


@contextlib.contextmanager
def watched(name: str | None, *, verbose: bool = False, quiet: bool = False) -> Iterator[None]:
    """Have a run tell on standard error what it does: in a log if it is `verbose`, else where it takes long.

    `name` is that of the file, None where somebody else tells how far it is, or where processes are forked.
    """
    if quiet or sys.stderr is None:
        yield
    elif verbose:
        from staticcall.cli.logs import logged  # noqa: PLC0415 - only with -v

        with logged():
            yield
    elif name is not None and sys.stderr.isatty():
        from staticcall.cli.progress import waiting  # noqa: PLC0415 - only for terminals

        with waiting(name):
            yield
    else:
        yield


def counted(results: Iterable[_T], items: Sequence[object], values: Mapping[str, Any]) -> Iterable[_T]:
    """Pass on what becomes of each item, and tell on a terminal how many are done where that takes long."""
    off = values["quiet"] or values["verbose"] or sys.stderr is None
    if off or len(items) <= 1 or not sys.stderr.isatty():
        return results
    from staticcall.cli.progress import Progress  # noqa: PLC0415 - only for terminals

    return Progress(len(items)).over(results, [(item,) for item in items])


def say(text: str) -> None:
    """Write to standard output, where there is one."""
    if sys.stdout is not None:  # as it is where the shell closed it
        try:
            with _room():
                sys.stdout.write(text)
                if _shown:
                    sys.stdout.flush()
        except BrokenPipeError:
            raise ReaderGoneError from None


def complain(message: str) -> None:
    """Say one line on standard error."""
    try:
        if sys.stderr is not None:
            with _room():
                sys.stderr.write(f"staticcall: {printable(message)}\n")
                sys.stderr.flush()
    except OSError:
        _silence(sys.stderr)


def _silence(stream: TextIO) -> None:
    """Nothing more can be said there, not even what is still to be flushed at the exit."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
