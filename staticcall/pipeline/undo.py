"""The way back: a patched file and its edits file give the original, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from staticcall.errors import VerificationError, about
from staticcall.model.change import Edit, OuterChange
from staticcall.pipeline.edits import other_file, read_undo
from staticcall.read.source import FileSource, sha256_of, sha256_of_bytes
from staticcall.write.stage import stage
from staticcall.write.together import publish_together
from staticcall.write.whole import stage_whole


def revert_image(patched: Path, edits_file: Path, output: Path) -> int:
    """Take back all edits and write the original to `output`; returns how many there were.

    Raises `UnsafeError` when the edits are of another file, `VerificationError` when the result is not the
    original.
    """
    original_sha256, patched_sha256, edits, outer = read_undo(edits_file)
    with about(patched), FileSource(patched) as source:
        if sha256_of(patched) != patched_sha256:
            source.check_unchanged()
            raise other_file(patched, edits_file)
        if outer is not None:
            _revert_outer(source, patched, outer, output, original_sha256)
        elif any(len(edit.old) != len(edit.new) for edit in edits):
            _revert_whole(source, patched, edits, output, original_sha256)
        else:
            _revert_copy(source, patched, edits, output, original_sha256)
    return len(edits)


def _revert_copy(source: FileSource, patched: Path, edits: Sequence[Edit], output: Path, original_sha256: str) -> None:
    with stage(patched, output) as staged:
        staged.apply(edit.inverse() for edit in edits)
        if sha256_of(staged.path) != original_sha256:
            source.check_unchanged()
            raise _another(patched)
        staged.flush()
        # The staged file is the original.
        publish_together(output, (), staged.publish, source.check_unchanged)


def _revert_whole(source: FileSource, patched: Path, edits: Sequence[Edit], output: Path, original_sha256: str) -> None:
    """Take back the edits of an object that became longer or shorter."""
    data = bytearray(source.whole())
    for edit in reversed(edits):
        place = slice(edit.file_offset, edit.file_offset + len(edit.new))
        if data[place] != edit.new:
            raise _another(patched)
        data[place] = edit.old
    _publish(source, patched, data, output, original_sha256)


def _revert_outer(source: FileSource, patched: Path, outer: OuterChange, output: Path, original_sha256: str) -> None:
    """Take back a container, in which nothing stands where it stood."""
    data = bytearray(source.whole())
    if outer.file_offset + outer.new_size > len(data):
        raise _another(patched)
    data[outer.file_offset : outer.file_offset + outer.new_size] = outer.old
    _publish(source, patched, data, output, original_sha256)


def _publish(source: FileSource, patched: Path, data: bytearray, output: Path, original_sha256: str) -> None:
    if sha256_of_bytes(data) != original_sha256:
        raise _another(patched)
    with stage_whole(patched, output, data) as (_, publish):
        publish_together(output, (), publish, source.check_unchanged)


def _another(patched: Path) -> VerificationError:
    return VerificationError("does not become the original again", path=patched, advice="nothing was written")
