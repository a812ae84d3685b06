"""A new file is staged beside its place, and published by one rename once it was proved.

The name only ever shows the old file or the complete new one. The copy is made by the kernel where it can
(copy_file_range) in the background, and carried to the disk while it is being proved.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from threading import Event

from staticcall.errors import InputError, OutputError
from staticcall.model.change import Edit
from staticcall.write import signals
from staticcall.write.files import (
    failing_as_output,
    flush_directory,
    give_rights,
    output_place,
    same,
    special,
    write_all,
)
from staticcall.write.temporary import Temporary, beside, check_written
from staticcall.write.together import Publication

_CHUNK = 1 << 26
_NEIGHBOURHOOD = 1 << 16


class Staging:
    """A copy under a temporary name: first as the source is, then with edits, then published."""

    def __init__(self, source: Path, temporary: Temporary, background: ThreadPoolExecutor) -> None:
        self.path = Path(temporary.path)
        self.abandoned = Event()
        self._source = source
        self._temporary = temporary
        self._background = background
        try:
            self._copied = background.submit(_copy_file, source, temporary.descriptor, self.abandoned)
        except RuntimeError as error:  # so says threading where the system has no thread left for this user
            raise OutputError(f"cannot be written: {error}", path=temporary.target, advice="run again") from error
        self._flushed: Future[None] | None = None

    def apply(self, edits: Iterable[Edit]) -> None:
        """Finish the copy and write the edits; from then on the file is complete and on its way to the disk.

        Raises `InputError` when the source does not hold an edit's old bytes.
        """
        target, descriptor = self._temporary.target, self._temporary.descriptor
        with failing_as_output(target):
            self._copied.result()
            _write_edits(self._source, descriptor, edits)
            give_rights(self._source, descriptor, replaced=same(self._source, target))
        self._flushed = self._background.submit(_flush, descriptor)

    def flush(self) -> None:
        """Wait until the file is on the disk; a full one may only show now."""
        assert self._flushed is not None, "a file without its edits is not published"
        with failing_as_output(self._temporary.target):
            self._flushed.result()

    def publish(self) -> None:
        """Wait until the file is on the disk, then give it its name in one step."""
        self.flush()
        with failing_as_output(self._temporary.target), signals.held():
            self._temporary.publish()
            flush_directory(self.path.parent)


@contextmanager
def stage(source: Path, target: Path) -> Iterator[Staging]:
    """Begin to copy `source` to a temporary file beside `target`, in the background.

    The mode is the source's, and the owner too where the source itself is replaced. The temporary file is
    removed again unless it was published. Raises `OutputError` when anything cannot be written.
    """
    with failing_as_output(target):
        place = output_place(target)
    # Leaving the executor waits for the copy and the flush, so the descriptor outlives both.
    with beside(place) as temporary, ThreadPoolExecutor(1) as background:
        staging = Staging(source, temporary, background)
        try:
            yield staging
        finally:
            # Where something is wrong with the file, nobody waits for the rest of the copy.
            staging.abandoned.set()


def publish_text(target: Path, text: Iterable[str]) -> None:
    """Write a text file atomically, or into a pipe or device as it comes; raises `OutputError`."""
    with stage_text(target, text) as publication:
        publication.publish()


def stage_text(target: Path, text: Iterable[str]) -> AbstractContextManager[Publication]:
    """Have a text ready under a temporary name, or in memory for a pipe or device; gives what publishes it.

    Raises `OutputError`.
    """
    with failing_as_output(target):
        return _text_in_memory(target, text) if special(target) else _text_beside(target, text)


@contextmanager
def _text_in_memory(target: Path, text: Iterable[str]) -> Iterator[Publication]:
    pieces = list(text)

    def publish() -> None:
        with failing_as_output(target):
            # A pipe that nobody reads would keep open() waiting.
            descriptor = os.open(target, os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            os.set_blocking(descriptor, True)
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                stream.writelines(pieces)

    yield Publication(publish, lambda: True, None)


@contextmanager
def _text_beside(target: Path, text: Iterable[str]) -> Iterator[Publication]:
    with failing_as_output(target):
        place = output_place(target)
    with beside(place) as temporary:
        # Closing the stream must not give up the lock.
        with failing_as_output(target), os.fdopen(os.dup(temporary.descriptor), "w", encoding="utf-8") as stream:
            os.fchmod(stream.fileno(), 0o666 & ~_umask())
            stream.writelines(text)
            stream.flush()
            os.fsync(stream.fileno())

        def publish() -> None:
            with failing_as_output(target):
                temporary.publish_for_now()

        yield Publication(publish, temporary.take_back, place)


def _copy_file(source: Path, descriptor: int, abandoned: Event) -> None:
    try:
        original = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise _unreadable(source, error) from error
    try:
        _copy(source, original, descriptor, abandoned)
    finally:
        os.close(original)


def _unreadable(source: Path, error: OSError) -> InputError:
    return InputError(f"cannot be read: {error.strerror}", path=source, advice="nothing was published")


def _flush(descriptor: int) -> None:
    os.fsync(descriptor)
    check_written(descriptor)


def _write_edits(source: Path, descriptor: int, edits: Iterable[Edit]) -> None:
    size = os.fstat(descriptor).st_size
    for neighbours in _neighbourhoods(edits):
        start, last = neighbours[0].file_offset, neighbours[-1]
        end = last.file_offset + len(last.old)
        # An offset far beyond the end is an error to the system, not merely nothing to read.
        block = bytearray(os.pread(descriptor, end - start, start) if end <= size else b"")
        for edit in neighbours:
            place = slice(edit.file_offset - start, edit.file_offset - start + len(edit.old))
            if block[place] != edit.old:
                raise InputError(
                    "does not hold the bytes that the plan starts from",
                    path=source,
                    offset=edit.file_offset,
                    advice="it was changed meanwhile; run again",
                )
            block[place] = edit.new
        write_all(descriptor, block, start)


def _neighbourhoods(edits: Iterable[Edit]) -> Iterator[list[Edit]]:
    """Group edits that one read and one write can serve."""
    group: list[Edit] = []
    for edit in sorted(edits, key=lambda edit: edit.file_offset):
        if group and edit.file_offset + len(edit.old) - group[0].file_offset > _NEIGHBOURHOOD:
            yield group
            group = []
        group.append(edit)
    if group:
        yield group


def _copy(source: Path, original: int, target: int, abandoned: Event) -> None:
    """Copy a whole open file to another one, unless that is abandoned."""
    size, done = os.fstat(original).st_size, 0
    try:
        while done < size and not abandoned.is_set():
            copied = os.copy_file_range(original, target, min(_CHUNK, size - done), done, done)
            if not copied:
                break
            done += copied
    except OSError:
        # Not between these two file systems, or not at all in this kernel; a full disk shows up again below.
        pass
    while done < size and not abandoned.is_set():
        try:
            data = os.pread(original, min(1 << 20, size - done), done)
        except OSError as error:
            raise _unreadable(source, error) from error
        if not data:
            raise InputError("became shorter while it was read", path=source, advice="run again")
        write_all(target, data, done)
        done += len(data)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
