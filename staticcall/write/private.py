"""A folder of our own for what other programs and the verifier want to have as files.

It stands below TMPDIR as `staticcall-UID-<digit>`, and its run has an flock() on it, so that what a killed run left
there can be told from what a living one still needs: the next run that wants a folder removes it. The places are few
and known, so that nobody has to search a folder of thousands, and nothing is removed that is only called alike.

Source: flock(2); mkdir(2), which gives nobody a folder that somebody else has made.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from staticcall.errors import OutputError
from staticcall.write import signals
from staticcall.write.temporary import claim, names

# As many runs at once; one more gets a random name, which the next run does not know.
_PLACES: Final = "01234567"
_OPENING: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class _Folder(NamedTuple):
    path: Path
    descriptor: int

    def remove(self) -> None:
        _remove_all(self.path)


@contextmanager
def private_folder() -> Iterator[Path]:
    """Make a folder that only its owner may enter, below TMPDIR; it is removed again, also when a signal ends the run.

    Removes what killed runs left. Raises `OutputError`.
    """
    folder = None
    try:
        with signals.held():
            try:
                folder = _make()
            except OSError as error:
                raise OutputError(f"no temporary folder can be made: {error.strerror}", advice="set TMPDIR") from error
            signals.remove_at_end(folder.remove)
        yield folder.path
    finally:
        if folder is not None:
            with signals.held():
                folder.remove()
                signals.leave(folder.remove)
                os.close(folder.descriptor)


def put(path: Path, data: bytes | bytearray) -> Path:
    """Write a file of a private folder; raises `OutputError`."""
    try:
        path.write_bytes(data)
    except OSError as error:
        raise OutputError(
            f"no copy can be written to {path.parent}: {error.strerror}", advice="set TMPDIR to a place with more room"
        ) from error
    return path


def _make() -> _Folder:
    import tempfile  # noqa: PLC0415 - only for what is packed or signed

    folder = Path(tempfile.gettempdir())
    for place in (*_PLACES, ""):
        path = folder / f"staticcall-{os.geteuid()}-{place or os.urandom(6).hex()}"
        with contextlib.suppress(OSError):  # as a rule there is none
            _remove_if_dead(path)
        try:
            path.mkdir(0o700)
            descriptor = os.open(path, _OPENING)
        except (FileExistsError, FileNotFoundError):  # another run's; taken for a dead one's by another run
            if not folder.is_dir():
                raise
            continue
        if claim(str(path), descriptor):
            return _Folder(path, descriptor)
        os.close(descriptor)
    raise OutputError("no temporary folder can be made: too many runs have one", advice="run again")


def _remove_if_dead(path: Path) -> None:
    """Remove a folder of this user's if nobody has a lock on it; raises `OSError`."""
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        return
    descriptor = os.open(path, _OPENING)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if names(str(path), descriptor):
            _remove_all(path)
    finally:
        os.close(descriptor)


def _remove_all(path: Path) -> None:
    import shutil  # noqa: PLC0415 - only for what is packed or signed

    shutil.rmtree(path, ignore_errors=True)
