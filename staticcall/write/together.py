"""Several files that belong together get their names: all of them, or none that stays."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from staticcall.errors import OutputError, StrPath
from staticcall.write import signals
from staticcall.write.files import flush_directory, followed

_PATIENCE_SECONDS = 10.0
_PAUSE_SECONDS = 0.01


class Publication(NamedTuple):
    """What gives a file its name, what takes that back and tells whether it could, and the name.

    There is none for what goes into a pipe or a device, which nobody can take back.
    """

    publish: Callable[[], None]
    take_back: Callable[[], bool]
    target: str | None


def publish_together(
    target: StrPath, first: Sequence[Publication], last: Callable[[], None], check: Callable[[], None]
) -> None:
    """Publish the `first` in their order, pipes and devices before files, then the `last`, whose name is `target`.

    The names of the first are on the disk before the last has its own. `check` is asked right before: no other run
    publishes beside `target` meanwhile. Where anything fails the first are taken back. Raises `OutputError`, and
    what `check` raises.
    """
    done: list[Publication] = []
    with alone_beside(target):
        check()
        for publication in first:
            if publication.target is None:
                # A reader may keep this waiting for ever, and then the run has to be stoppable.
                publication.publish()
        with signals.held():
            try:
                for publication in first:
                    if publication.target is None:
                        continue
                    publication.publish()
                    done.append(publication)
                for folder in dict.fromkeys(os.path.dirname(one.target) for one in done if one.target is not None):
                    flush_directory(folder)
                last()
            except BaseException as error:
                left = [one.target for one in reversed(done) if not one.take_back() and one.target is not None]
                if left and isinstance(error, OutputError):
                    error.advice = f"{' and '.join(left)} could not be taken back"
                raise


@contextmanager
def alone_beside(target: StrPath) -> Iterator[None]:
    """Keep other runs from publishing in the target's folder, so that two do not mix what belongs together.

    Waits for one that does; raises `OutputError` after some seconds. A folder that cannot be read or locked is
    nobody's alone.
    """
    descriptor = -1
    try:
        with contextlib.suppress(OSError):
            folder = os.path.dirname(followed(target))
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            _lock(descriptor, target)
        yield
    finally:
        if descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(descriptor)


def _lock(descriptor: int, target: StrPath) -> None:
    end = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise OutputError(
                    "cannot be written: another run publishes in its folder",
                    path=target,
                    advice="nothing was published; run again, and not under `flock` of this folder",
                ) from None
            time.sleep(_PAUSE_SECONDS)
        else:
            return
