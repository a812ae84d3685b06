"""The undo file of a patch, and whether it belongs to a file."""

from __future__ import annotations

from pathlib import Path

from staticcall.errors import UnsafeError, about
from staticcall.model.change import Edit, Undo
from staticcall.read.source import read_whole
from staticcall.report.undo import parse_undo


def read_undo(path: Path) -> Undo:
    """Read an undo file; raises `InputError`."""
    with about(path):
        return parse_undo(read_whole(path))


def read_edits(path: Path) -> tuple[str, str, tuple[Edit, ...]]:
    """Read an undo file: SHA-256 of the original and of the patched file, and the edits; raises `InputError`."""
    return read_undo(path)[:3]


def other_file(patched: Path, edits_file: Path) -> UnsafeError:
    """What is to be raised where the edits are not those that made this file."""
    return UnsafeError(
        f"is not the file that {edits_file} belongs to",
        code="other-file",
        path=patched,
        advice="it was changed after it was patched, or the edits are another file's",
    )
