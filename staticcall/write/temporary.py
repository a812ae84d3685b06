"""The temporary file beside a target: locked while its run lives, removed by whoever finds it without a lock.

What is about to get a name stands beside it as `.NAME.<digit>.staticcall`. Its owner has an flock() on it, so that
what a killed run left behind can be told from what a living one still needs: the next run with the same target
removes it. The places of one target are few and known, so that nobody has to search a folder of thousands.

Source: flock(2), open(2), rename(2) with RENAME_EXCHANGE.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from staticcall.errors import OutputError
from staticcall.write import signals
from staticcall.write.files import failing_as_output

# As many runs at once can have one target; one more gets a random name, which the next run does not know.
_PLACES: Final = "01234567"
# The system counts the bytes of a name, not its letters, and takes 255.
_LONGEST: Final = 200
_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2


class Temporary:
    """A file that has no name yet: `descriptor` is open for reading and writing, `path` is its temporary name."""

    def __init__(self, descriptor: int, path: str, target: str) -> None:
        self.descriptor = descriptor
        self.path = path
        self.target = target
        self._former: int | None = None
        self._was_missing = False

    def publish(self) -> None:
        """Give it the target's name in one step; raises `OSError`."""
        os.replace(self.path, self.target)

    def publish_for_now(self) -> None:
        """The same, but `take_back` can undo it while the file is not discarded; raises `OSError`.

        What was there before takes the temporary name, and so survives a kill as well. Where the system cannot
        exchange two names it is simply replaced.
        """
        self._was_missing = not os.path.lexists(self.target)
        if not self._was_missing:
            self._former = _lock_of(self.target)
            if self._former is not None and _exchange(self.path, self.target):
                return
        os.replace(self.path, self.target)

    def take_back(self) -> bool:
        """Let the target be what it was before `publish_for_now`; False where that cannot be."""
        if not names(self.target, self.descriptor):
            return True  # another run's by now
        try:
            if self._former is not None and names(self.path, self._former):
                os.replace(self.path, self.target)
            elif self._was_missing:
                os.unlink(self.target)
            else:
                return False  # what was there is gone
        except OSError:
            return False
        return True

    def discard(self) -> None:
        """Remove what has the temporary name, if that is this file or the one that it replaced."""
        for descriptor in (self.descriptor, self._former):
            if descriptor is not None and names(self.path, descriptor):
                with contextlib.suppress(OSError):  # the next run tries again
                    os.unlink(self.path)

    def close(self) -> None:
        """Give up the locks; what a disk or a server still had to say was asked before, see `check_written`."""
        for descriptor in (self.descriptor, self._former):
            if descriptor is not None:
                with contextlib.suppress(OSError):
                    os.close(descriptor)


def check_written(descriptor: int) -> None:
    """Raise the `OSError` that some file systems keep until a file is closed; the lock stays."""
    os.close(os.dup(descriptor))


@contextmanager
def beside(target: str) -> Iterator[Temporary]:
    """Make a temporary file in the target's folder, for its owner alone; it is removed again unless it was published.

    Removes what killed runs left there. Raises `OutputError`.
    """
    temporary = None
    try:
        with signals.held():
            with failing_as_output(target):
                temporary = _make(target)
            signals.remove_at_end(temporary.discard)
        yield temporary
    finally:
        if temporary is not None:
            with signals.held():
                temporary.discard()
                temporary.close()
                signals.leave(temporary.discard)


def remove_dead(target: str) -> None:
    """Remove the temporary files beside a target that no living run has a lock on."""
    stem = _stem(target)
    for place in _PLACES:
        path = f"{stem}{place}.staticcall"
        try:
            if stat.S_ISREG(os.lstat(path).st_mode):  # opening a device may do something
                _remove_if_dead(path)
        except OSError:
            continue  # as a rule there is none


def _stem(target: str) -> str:
    folder, name = os.path.split(target)
    name = os.fsdecode(os.fsencode(name)[:_LONGEST]) if len(name) > _LONGEST // 4 else name
    return os.path.join(folder, f".{name}.")


def _make(target: str) -> Temporary:
    remove_dead(target)
    stem = _stem(target)
    for place in (*_PLACES, ""):
        path = f"{stem}{place or os.urandom(6).hex()}.staticcall"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except FileExistsError:
            continue
        if claim(path, descriptor):
            return Temporary(descriptor, path, target)
        os.close(descriptor)
    raise OutputError("cannot be written: too many runs write it at once", path=target, advice="nothing was published")


def claim(path: str, descriptor: int) -> bool:
    """Whether the new file is ours: between open and flock another run can have taken it for a dead one's."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # no locks on this file system, so nobody gets one to remove the file
    return names(path, descriptor)


def _remove_if_dead(path: str) -> None:
    """Remove a file if nobody has a lock on it; whoever removes one has the lock, so the name stays its meanwhile."""
    for access in (os.O_RDONLY, os.O_RDWR):
        descriptor = os.open(path, access | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if names(path, descriptor):
                os.unlink(path)
            return
        except OSError as error:
            if error.errno != errno.EBADF:  # so says NFS of a file that is not open for writing
                return
        finally:
            os.close(descriptor)


def _lock_of(path: str) -> int | None:
    """A descriptor with a lock on a file that is there, or None where that cannot be had."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def names(path: str, descriptor: int) -> bool:
    """Whether a name is that of an open file."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except OSError:
        return False


def _exchange(one: str, other: str) -> bool:
    """Let two files change names in one step; False where the system cannot."""
    try:
        import ctypes  # noqa: PLC0415 - only for an undo file or a report that replaces another

        renameat2 = ctypes.CDLL(None).renameat2
    except (ImportError, AttributeError):
        return False
    first, second = os.fsencode(one), os.fsencode(other)
    return bool(renameat2(_AT_FDCWD, first, _AT_FDCWD, second, _RENAME_EXCHANGE) == 0)
