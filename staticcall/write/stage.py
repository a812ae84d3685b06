"""A new file is staged beside its place, and published by one rename once it was proved.

The name only ever shows the old file or the complete new one. The copy is made by the kernel where it can
(copy_file_range) in the background, and carried to the disk while it is being proved.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from threading import Event

from staticcall.errors import InputError, OutputError
from staticcall.model.change import Edit
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

_CHUNK = 1 << 26
_NEIGHBOURHOOD = 1 << 16


class Staging:
    """A copy under a temporary name: first as the source is, then with edits, then published."""

    def __init__(self, source: Path, target: Path, path: Path, descriptor: int, background: ThreadPoolExecutor) -> None:
        self.path = path
        self.abandoned = Event()
        self._source = source
        self._target = target
        self._descriptor = descriptor
        self._background = background
        self._copied = background.submit(_copy_file, source, descriptor, self.abandoned)
        self._flushed: Future[None] | None = None

    def apply(self, edits: Iterable[Edit]) -> None:
        """Finish the copy and write the edits; from then on the file is complete and on its way to the disk.

        Raises `InputError` when the source does not hold an edit's old bytes.
        """
        with failing_as_output(self._target):
            self._copied.result()
            _write_edits(self._source, self._descriptor, edits)
            give_rights(self._source, self._descriptor, replaced=same(self._source, self._target))
        self._flushed = self._background.submit(os.fsync, self._descriptor)

    def flush(self) -> None:
        """Wait until the file is on the disk; a full one may only show now."""
        assert self._flushed is not None, "a file without its edits is not published"
        with failing_as_output(self._target):
            self._flushed.result()

    def publish(self) -> None:
        """Wait until the file is on the disk, then give it its name in one step."""
        self.flush()
        with failing_as_output(self._target):
            self.path.replace(self._target)
            flush_directory(self._target.parent)


@contextmanager
def stage(source: Path, target: Path) -> Iterator[Staging]:
    """Begin to copy `source` to a temporary file beside `target`, in the background.

    The mode is the source's, and the owner too where the source itself is replaced. The temporary file is
    removed again unless it was published. Raises `OutputError` when anything cannot be written.
    """
    with failing_as_output(target):
        if special(target):
            raise OutputError("cannot be written: is no regular file", path=target, advice="name a file")
        target = Path(followed(target))
        descriptor, name = open_beside(target)
        path = Path(name)
    try:
        # Leaving the executor waits for the copy and the flush, so the descriptor outlives both.
        with ThreadPoolExecutor(1) as background:
            staging = Staging(source, target, path, descriptor, background)
            try:
                yield staging
            finally:
                # Where something is wrong with the file, nobody waits for the rest of the copy.
                staging.abandoned.set()
    finally:
        os.close(descriptor)
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def publish_text(target: Path, text: Iterable[str]) -> None:
    """Write a text file atomically, or into a pipe or device as it comes; raises `OutputError`."""
    with stage_text(target, text) as publish:
        publish()


def stage_text(target: Path, text: Iterable[str]) -> AbstractContextManager[Callable[[], None]]:
    """Have a text ready under a temporary name, or in memory for a pipe or device; gives what publishes it.

    Raises `OutputError`.
    """
    with failing_as_output(target):
        return _text_in_memory(target, text) if special(target) else _text_beside(target, text)


@contextmanager
def _text_in_memory(target: Path, text: Iterable[str]) -> Iterator[Callable[[], None]]:
    pieces = list(text)

    def publish() -> None:
        with failing_as_output(target):
            # A pipe that nobody reads would keep open() waiting.
            descriptor = os.open(target, os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            os.set_blocking(descriptor, True)
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                stream.writelines(pieces)

    yield publish


@contextmanager
def _text_beside(target: Path, text: Iterable[str]) -> Iterator[Callable[[], None]]:
    with failing_as_output(target):
        target = Path(followed(target))
        descriptor, name = open_beside(target)
        path = Path(name)
    try:
        with failing_as_output(target), os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            os.fchmod(stream.fileno(), 0o666 & ~_umask())
            stream.writelines(text)
            stream.flush()
            os.fsync(stream.fileno())

        def publish() -> None:
            with failing_as_output(target):
                path.replace(target)

        yield publish
    finally:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def _copy_file(source: Path, descriptor: int, abandoned: Event) -> None:
    with source.open("rb") as original:
        _copy(original.fileno(), descriptor, os.fstat(original.fileno()).st_size, abandoned)


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


def _copy(source: int, target: int, size: int, abandoned: Event) -> None:
    """Copy `size` bytes from the start of one file to that of another, unless that is abandoned."""
    done = 0
    try:
        while done < size and not abandoned.is_set():
            copied = os.copy_file_range(source, target, min(_CHUNK, size - done), done, done)
            if not copied:
                break
            done += copied
    except OSError:
        # Not between these two file systems, or not at all in this kernel; a full disk shows up again below.
        pass
    while done < size and not abandoned.is_set():
        data = os.pread(source, min(1 << 20, size - done), done)
        if not data:
            break
        write_all(target, data, done)
        done += len(data)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
