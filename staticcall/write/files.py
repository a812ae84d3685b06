"""Files to be written: what their names lead to, which may not meet, and the temporary one beside each."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import combinations

from staticcall.errors import OutputError, StrPath, UsageError

_SET_ID = stat.S_ISUID | stat.S_ISGID


def refuse_input_as_output(source: StrPath, target: StrPath) -> None:
    """Raise `UsageError` where writing `target` would replace the input."""
    if same(source, target):
        raise UsageError(f"is the input as well as the output {target}", path=source, advice="use --in-place")


def refuse_collisions(paths: Iterable[StrPath | None]) -> None:
    """Raise `UsageError` where two of these names are of one file, so that one would overwrite the other."""
    for one, other in combinations((path for path in paths if path is not None), 2):
        if followed(one) == followed(other) or same(one, other):
            raise UsageError(f"is named twice, also as {other}", path=one, advice="give each file its own name")


def followed(path: StrPath) -> str:
    """What a path leads to: a link stays a link, what it leads to is written."""
    return os.path.realpath(path)  # Path.resolve() raises for a link to itself


def special(path: StrPath) -> bool:
    """Whether there is a pipe or a device of this name, which a rename would replace."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def same(one: StrPath, other: StrPath) -> bool:
    """Whether two names are of one file; not where either is missing."""
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


@contextmanager
def failing_as_output(target: StrPath) -> Iterator[None]:
    """Turn what the system says into an `OutputError` about this file."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"cannot be written: {error.strerror}", path=target, advice="nothing was published"
        ) from error


def open_beside(target: StrPath) -> tuple[int, str]:
    """Make a temporary file in the target's folder, for its owner alone; gives descriptor and path."""
    if os.path.isdir(target):
        raise OutputError("cannot be written: is a directory", path=target, advice="name a file")
    folder, name = os.path.split(os.fspath(target))
    # The system counts the bytes of a name, not its letters.
    name = os.fsdecode(os.fsencode(name)[:200])
    path = os.path.join(folder, f".{name}.{os.urandom(6).hex()}.staticcall")
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), path


def give_rights(source: StrPath, descriptor: int, *, replaced: bool) -> None:
    """Give a copy its source's mode, and its owner if it takes the source's place.

    The set-id bits lend the rights of the owner, so they are left out where that is somebody else.
    """
    wanted, own = os.stat(source), os.fstat(descriptor)
    if replaced:
        with contextlib.suppress(PermissionError):
            os.fchown(descriptor, wanted.st_uid, wanted.st_gid)
            own = wanted
    kept = (own.st_uid, own.st_gid) == (wanted.st_uid, wanted.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(wanted.st_mode) & ~(0 if kept else _SET_ID))


def write_all(descriptor: int, data: bytes | bytearray, offset: int) -> None:
    """Write all of the data at an offset of a file."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def flush_directory(path: StrPath) -> None:
    """Make a new name last. The file has it already, so a directory that cannot be read is no failure."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
