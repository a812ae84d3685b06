"""Files to be written: what their names lead to, which may not meet, whose rights they get."""

from __future__ import annotations

import contextlib
import errno
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


def placed(path: StrPath) -> str:
    """The place of a name itself: its folder's links are followed, what it is a link to does not matter."""
    folder, name = os.path.split(os.fspath(path))
    return os.path.join(os.path.realpath(folder), name)


def special(path: StrPath) -> bool:
    """Whether there is a pipe or a device of this name, which a rename would replace."""
    mode = _mode(path, follow=True)
    return mode is not None and not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def output_place(target: StrPath, *, follow: bool = True) -> str:
    """Where a file is to appear: behind a link, or with `follow` off in the link's own place.

    Raises `OutputError` where a folder, a pipe or a device is there.
    """
    mode = _mode(target, follow=follow)
    if mode is not None and stat.S_ISDIR(mode):
        raise OutputError("cannot be written: is a directory", path=target, advice="name a file")
    if mode is not None and not stat.S_ISREG(mode) and not stat.S_ISLNK(mode):
        raise OutputError("cannot be written: is no regular file", path=target, advice="name a file")
    return followed(target) if follow else placed(target)


def _mode(path: StrPath, *, follow: bool) -> int | None:
    try:
        return os.stat(path, follow_symlinks=follow).st_mode
    except FileNotFoundError:
        return None


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


def give_rights(source: StrPath, descriptor: int, *, replaced: bool) -> None:
    """Give a copy its source's mode, and its owner if it takes the source's place.

    The set-id bits lend the rights of the owner, so they are left out where that is somebody else.
    """
    wanted, own = os.stat(source), os.fstat(descriptor)
    if replaced:
        try:
            os.fchown(descriptor, wanted.st_uid, wanted.st_gid)
            own = wanted
        except OSError as error:
            # Not ours to give away, or an owner that this user namespace has no number for.
            if error.errno not in (errno.EPERM, errno.EINVAL):
                raise
    kept = (own.st_uid, own.st_gid) == (wanted.st_uid, wanted.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(wanted.st_mode) & ~(0 if kept else _SET_ID))


def write_all(descriptor: int, data: bytes | bytearray, offset: int) -> None:
    """Write all of the data at an offset of a file."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        if not written:  # for ever, as it would seem
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        view, offset = view[written:], offset + written


def flush_directory(path: StrPath) -> None:
    """Make a new name last. The file has it already, so a directory that cannot be read is no failure."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path or os.curdir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
