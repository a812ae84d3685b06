"""A whole file from memory, under its name in one step: the old file or the complete new one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from staticcall.errors import OutputError, StrPath
from staticcall.write.files import (
    failing_as_output,
    flush_directory,
    followed,
    give_rights,
    open_beside,
    same,
    special,
    write_all,
)


@contextmanager
def stage_whole(
    source: StrPath, target: StrPath, data: bytes | bytearray, *, lasting: bool = True
) -> Iterator[tuple[str, Callable[[], None]]]:
    """Write data to a temporary file beside `target`; gives its path and what gives it its name.

    Mode, and owner where the source itself is replaced, are those of `source`. A `lasting` file is on the disk
    before it has its name, so that it outlives a loss of power; what a build makes it can make again. The temporary
    file is removed unless it was published. Raises `OutputError`.
    """
    with failing_as_output(target):
        if special(target):
            raise OutputError("cannot be written: is no regular file", path=target, advice="name a file")
        target = followed(target)
        descriptor, path = open_beside(target)
    try:
        with failing_as_output(target):
            write_all(descriptor, data, 0)
            give_rights(source, descriptor, replaced=same(source, target))
            if lasting:
                os.fsync(descriptor)

        def publish() -> None:
            with failing_as_output(target):
                os.replace(path, target)
                if lasting:
                    flush_directory(os.path.dirname(target))

        yield path, publish
    finally:
        os.close(descriptor)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
