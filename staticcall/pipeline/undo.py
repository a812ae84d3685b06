"""The way back: a patched file and its edits file give the original, bit for bit."""

from __future__ import annotations

from pathlib import Path

from staticcall.errors import UnsafeError, VerificationError, about
from staticcall.read.source import read_whole, sha256_of
from staticcall.report.json import parse_edits
from staticcall.write.stage import stage


def revert_image(patched: Path, edits_file: Path, output: Path) -> int:
    """Take back all edits and write the original to `output`; returns how many there were.

    Raises `UnsafeError` when the edits are of another file, `VerificationError` when the result is not the
    original.
    """
    with about(edits_file):
        original_sha256, patched_sha256, edits = parse_edits(read_whole(edits_file))
    if sha256_of(patched) != patched_sha256:
        raise UnsafeError(
            f"is not the file that {edits_file} belongs to",
            code="other-file",
            path=patched,
            advice="it was changed after it was patched, or the edits are another file's",
        )
    with stage(patched, output) as staged:
        staged.apply(edit.inverse() for edit in edits)
        if sha256_of(staged.path) != original_sha256:
            raise VerificationError("does not become the original again", path=patched, advice="nothing was written")
        # The staged file is the original.
        staged.publish()
    return len(edits)
