"""A whole file from memory, under its name in one step: the old file or the complete new one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from staticcall.errors import StrPath
from staticcall.write import signals
from staticcall.write.files import failing_as_output, flush_directory, give_rights, output_place, same, write_all
from staticcall.write.temporary import beside, check_written, remove_dead

__all__ = ["remove_dead", "stage_whole"]


@contextmanager
def stage_whole(
    source: StrPath, target: StrPath, data: bytes | bytearray, *, lasting: bool = True, follow: bool = True
) -> Iterator[tuple[str, Callable[[], None]]]:
    """Write data to a temporary file beside `target`; gives its path and what gives it its name.

    Mode, and owner where the source itself is replaced, are those of `source`. A `lasting` file is on the disk
    before it has its name, so that it outlives a loss of power; what a build makes it can make again. A link of the
    target's name is replaced unless it is to be followed. The temporary file is removed unless it was published.
    Raises `OutputError`.
    """
    with failing_as_output(target):
        target = output_place(target, follow=follow)
    with beside(target) as temporary:
        with failing_as_output(target):
            write_all(temporary.descriptor, data, 0)
            give_rights(source, temporary.descriptor, replaced=same(source, target))
            if lasting:
                os.fsync(temporary.descriptor)
            check_written(temporary.descriptor)

        def publish() -> None:
            with failing_as_output(target), signals.held():
                temporary.publish()
                if lasting:
                    flush_directory(os.path.dirname(target))

        yield temporary.path, publish
