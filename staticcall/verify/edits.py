"""The undo file against the facts: the differences are exactly what the edits say."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import pairwise

from staticcall.errors import VerificationError
from staticcall.model.change import Edit, EditKind
from staticcall.verify.compare import Change
from staticcall.verify.layout import Layout
from staticcall.verify.source import Source, Span

_CODE = (EditKind.SITE, EditKind.TRAMPOLINE)
_MOST_SHOWN = 32


def check_edits(
    original: Source, patched: Source, layout: Layout, changes: Sequence[Change], edits: Sequence[Edit]
) -> None:
    """Hold the edits against both files and against the changes that were found, sorted by offset.

    `compare` must have shown before that nothing else differs. Raises `VerificationError`.
    """
    ordered = sorted(edits, key=lambda edit: edit.file_offset)
    _check_bytes(original, patched, ordered)
    starts = [change.offset for change in changes]
    covered: dict[int, list[Edit]] = {}
    for edit in ordered:
        touched = [
            i
            for i in range(max(bisect_right(starts, edit.file_offset) - 1, 0), bisect_left(starts, _end(edit)))
            if _overlap(changes[i], edit)
        ]
        if len(touched) != 1:
            raise _refusal(edit, f"covers {len(touched)} changed places instead of one")
        _check_meaning(edit, changes[touched[0]], layout)
        covered.setdefault(touched[0], []).append(edit)
    for i, change in enumerate(changes):
        _check_covered(change, covered.get(i, []))


def _refusal(edit: Edit, reason: str) -> VerificationError:
    return VerificationError(f"the edit of {edit.key}'s {edit.kind} {reason}", offset=edit.file_offset)


def _check_bytes(original: Source, patched: Source, edits: list[Edit]) -> None:
    for edit in edits:
        if (len(edit.old) != len(edit.new) and _end(edit) != original.size) or edit.old == edit.new:
            raise _refusal(edit, "replaces nothing, or changes its length")
        if edit.file_offset < 0 or _end(edit) > original.size:
            raise _refusal(edit, "lies outside of the file")
    for left, right in pairwise(edits):
        if right.file_offset < _end(left):
            raise _refusal(right, "overlaps another one")
    spans = [Span(edit.file_offset, len(edit.old)) for edit in edits]
    for edit, before in zip(edits, original.snippets(spans), strict=True):
        if before != edit.old:
            raise _refusal(edit, f"expects {_shown(edit.old)} in the original, which has {_shown(before)}")
    spans = [Span(edit.file_offset, len(edit.new)) for edit in edits]
    for edit, after in zip(edits, patched.snippets(spans), strict=True):
        if after != edit.new:
            raise _refusal(edit, f"promises {_shown(edit.new)} in the patched file, which has {_shown(after)}")


def _shown(data: bytes) -> str:
    """Bytes in hex, the first ones of many."""
    return data[:_MOST_SHOWN].hex() + ("..." if len(data) > _MOST_SHOWN else "")


def _end(edit: Edit) -> int:
    return edit.file_offset + len(edit.old)


def _overlap(change: Change, edit: Edit) -> bool:
    return change.offset < _end(edit) and edit.file_offset < change.end


def _check_meaning(edit: Edit, change: Change, layout: Layout) -> None:
    if edit.kind is not change.kind:
        raise _refusal(edit, f"touches a {change.kind}")
    if edit.address is None and edit.kind is EditKind.RELOCATION and not edit.key:
        return  # a list, which is in no memory
    if edit.address is None:
        raise _refusal(edit, "names no address")
    if edit.kind is not EditKind.RELOCATION and layout.offset_of(edit.address) != edit.file_offset:
        raise _refusal(edit, f"names the address {edit.address:#x}, which is elsewhere in the file")
    if edit.kind not in _CODE or change.now is None:
        return
    if edit.form is not None and edit.form is not change.now.form:
        raise _refusal(edit, f"promises the form {edit.form}, and {change.now.form} is there")
    if edit.destination is not None and edit.destination != change.now.destination:
        there = "nowhere" if change.now.destination is None else f"to {change.now.destination:#x}"
        raise _refusal(edit, f"promises a branch to {edit.destination:#x}, and it leads {there}")


def _check_covered(change: Change, edits: list[Edit]) -> None:
    """Every byte of the place that differs lies in one of the edits."""
    if len(edits) == 1 and (edits[0].file_offset, edits[0].old) == (change.offset, change.before):
        return  # nearly all of them: the edit is the change
    if len(change.before) != len(change.after):
        raise VerificationError("no edit tells how the file became longer", offset=change.offset)
    for i, (before, after) in enumerate(zip(change.before, change.after, strict=True)):
        offset = change.offset + i
        if before != after and not any(edit.file_offset <= offset < _end(edit) for edit in edits):
            raise VerificationError(f"no edit tells of this change to {change.key}'s {change.kind}", offset=offset)
