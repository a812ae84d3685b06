"""The build ids of a linked image, as changes that a patch may make."""

from __future__ import annotations

from staticcall.model.change import EditKind
from staticcall.verify.compare import Change
from staticcall.verify.layout import Layout
from staticcall.verify.notes import MOST_NOTES, NewId, ids_in, new_ids
from staticcall.verify.source import Source


def read_new_ids(before: Source, after: Source, layout: Layout) -> tuple[NewId, ...]:
    """The build ids in loaded sections of notes that differ; raises `VerificationError` where copies disagree."""
    pairs = []
    for section in layout.sections:
        if section.type == "SHT_NOTE" and section.allocated and section.body.size <= MOST_NOTES:
            start = section.body.offset
            notes = before.read(start, section.body.size)
            for at, size in ids_in(notes):
                pairs.append(NewId(start + at, notes[at : at + size], after.read(start + at, size)))
    return new_ids(pairs)


def changes_of(ids: tuple[NewId, ...], layout: Layout) -> list[Change]:
    """The same as places that may differ."""
    starts = [(s.body.offset, s.body.end, s.address) for s in layout.sections if s.type == "SHT_NOTE" and s.allocated]
    return [
        Change(new.offset, new.before, new.after, EditKind.BUILD_ID, "", address + new.offset - start)
        for new in ids
        for start, end, address in starts
        if start <= new.offset < end
    ]
