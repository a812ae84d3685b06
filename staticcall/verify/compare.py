"""Byte for byte: the patched file, with its legal changes taken back, is the original.

The files are read side by side in chunks that fit in a processor's cache; a chunk without a change is two
reads and one comparison. That the changes can be taken back is what the undo file promises.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from staticcall.errors import VerificationError
from staticcall.model.change import EditKind
from staticcall.verify.decode import Decoded
from staticcall.verify.source import Source, Span

CHUNK = 1 << 18


class Change(NamedTuple):
    """One legal place that differs: its bytes in both files, and what the rules found there.

    `address` is the linked address of the place (for a relocation, of the slot that it fills); `now` is
    decoded from the patched file, None for what is no code.
    """

    offset: int
    before: bytes
    after: bytes
    kind: EditKind
    key: str
    address: int
    now: Decoded | None = None

    @property
    def end(self) -> int:
        """The file offset of the first byte behind the place."""
        return self.offset + len(self.before)


def check_disjoint(changes: Sequence[Change], reserved: Sequence[Span]) -> None:
    """Make sure that changes, sorted by offset, overlap neither each other nor headers and tables.

    Raises `VerificationError`.
    """
    for left, right in pairwise(changes):
        if right.offset < left.end:
            raise VerificationError(
                f"{left.kind} of {left.key} and {right.kind} of {right.key} overlap", offset=right.offset
            )
    starts = [change.offset for change in changes]
    for span in reserved:
        for change in changes[: bisect_left(starts, span.end)][-1:]:
            if change.end > span.offset:
                raise VerificationError(
                    f"{change.kind} of {change.key} lies in a header or table of the file",
                    offset=change.offset,
                )


def compare(original: Source, patched: Source, changes: Sequence[Change]) -> int:
    """Compare the files outside of the changes, which are sorted by offset, disjoint and inside of the file.

    Only a change of the original's last bytes may be longer than these were. Returns the number of bytes compared;
    raises `VerificationError` with the offset of the first other difference.
    """
    last = changes[-1] if changes else None
    grown = len(last.after) - len(last.before) if last and last.end == original.size else 0
    if original.size + grown != patched.size or grown < 0:
        raise VerificationError(f"the size changed from {original.size} to {patched.size} bytes")
    left, right = bytearray(CHUNK), bytearray(CHUNK)
    starts = [change.offset for change in changes]
    ends = [change.end for change in changes]
    for start in range(0, original.size, CHUNK):
        size = min(CHUNK, original.size - start)
        if size != CHUNK:
            left, right = bytearray(size), bytearray(size)
        original.fill(left, start)
        patched.fill(right, start)
        for change in changes[bisect_right(ends, start) : bisect_left(starts, start + size)]:
            cut = max(start - change.offset, 0)
            piece = change.before[cut : start + size - change.offset]
            at = change.offset + cut - start
            right[at : at + len(piece)] = piece
        if left != right:
            offset = start + next(i for i in range(size) if left[i] != right[i])
            raise VerificationError(
                "a byte differs that belongs to no site, trampoline or key of a static call", offset=offset
            )
    return original.size
