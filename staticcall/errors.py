"""Every failure the tool knows, each with the exit code that it leads to.

An error is shown as one line, `staticcall: FILE: what, where (offset), what to do`; the pieces are kept
apart here so that the line is put together in one place.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from os import PathLike
from typing import Self

StrPath = str | PathLike[str]


class ExitCode(IntEnum):
    """The process exit codes, a stable interface; `meaning` is what help, manual and documentation say of each."""

    meaning: str

    DONE = 0, "done"
    FINDINGS = 1, "done, with findings at or above --fail-on, or a difference where --fail-on-change asks for it"
    USAGE = 2, "wrong usage"
    INPUT = 3, "a file cannot be read or written, or is malformed or unsupported"
    UNSAFE = 4, "refused because unsafe"
    UNVERIFIED = 5, "not proved, nothing published"

    def __new__(cls, value: int, meaning: str) -> Self:
        """A number that knows what it means."""
        code = int.__new__(cls, value)
        code._value_ = value
        code.meaning = meaning
        return code


class StaticcallError(Exception):
    """Something that ends the work on one file.

    `what` says what is wrong, `offset` is a byte offset in the file (not an address), `advice` says what to
    do about it. `path` is filled in by whoever knows the file, see `about`; `inside` tells that the offset is one of
    what is inside of that file, see `inside_of`.
    """

    exit_code = ExitCode.INPUT

    def __init__(self, what: str, *, path: StrPath | None = None, offset: int | None = None, advice: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.path = path
        self.offset = offset
        self.advice = advice
        self.inside = False

    def __reduce__(self) -> tuple[object, ...]:
        # By its parts: an exception's own way back is a call of its class with one argument, which leaves out `code`.
        return _again, (type(self), self.args), self.__dict__

    def __str__(self) -> str:
        where = " of the file inside" if self.inside else ""
        place = f" (offset {self.offset:#x}{where})" if self.offset is not None else ""
        parts = [self.what + place]
        if self.advice:
            parts.append(self.advice)
        line = ", ".join(parts)
        return f"{self.path}: {line}" if self.path is not None else line


def _again(kind: type[StaticcallError], arguments: tuple[object, ...]) -> StaticcallError:
    """An error as it was in another process; its attributes follow."""
    return kind.__new__(kind, *arguments)


class UsageError(StaticcallError):
    """The request itself cannot be meant."""

    exit_code = ExitCode.USAGE


class InputError(StaticcallError):
    """A file could not be read."""


class MalformedError(InputError):
    """The file breaks the format it claims to have."""


class UnsupportedError(InputError):
    """The file is well-formed and outside of what the tool does."""


class OutputError(StaticcallError):
    """A result could not be written; nothing was published."""


class UnsafeError(StaticcallError):
    """The change is possible and would crash later.

    `code` names the danger in kebab-case, as `--force` takes it.
    """

    exit_code = ExitCode.UNSAFE

    def __init__(self, what: str, *, code: str, advice: str = "", path: StrPath | None = None) -> None:
        super().__init__(f"{what} [{code}]", path=path, advice=advice)
        self.code = code


class VerificationError(StaticcallError):
    """The proof of an output failed; nothing was published."""

    exit_code = ExitCode.UNVERIFIED


@contextmanager
def about(path: StrPath) -> Iterator[None]:
    """Name the file in every error that passes through and does not name one yet."""
    try:
        yield
    except StaticcallError as error:
        if error.path is None:
            error.path = path
        raise


@contextmanager
def inside_of(container: object) -> Iterator[None]:
    """Where there is a container, let the offsets of errors that pass through say that they are not the container's."""
    try:
        yield
    except StaticcallError as error:
        error.inside = error.inside or bool(container)
        raise


def printable(text: str) -> str:
    """Text for a terminal, on one line: names out of a file may hold anything, and a terminal obeys some of it."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
