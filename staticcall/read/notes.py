"""The build id, out of a file's notes."""

from __future__ import annotations

from staticcall.abi import elf64
from staticcall.model.image import ByteSource, Section, Segment

# A note is a few dozen bytes; more than this is not a build id's section.
_MAX_NOTES = 1 << 16


def build_id_of(source: ByteSource, sections: tuple[Section, ...], segments: tuple[Segment, ...]) -> str | None:
    """The build id in hex, from note sections or segments; None where there is none."""
    ranges = [(s.offset, s.size) for s in sections if s.type == elf64.SHT_NOTE]
    ranges += [(s.offset, s.file_size) for s in segments if s.type == elf64.PT_NOTE]
    for offset, size in ranges:
        if size <= _MAX_NOTES:
            found = _build_id_in(source.read(offset, size))
            if found:
                return found
    return None


def _build_id_in(notes: bytes) -> str | None:
    """Walk one run of notes: name size, description size, type, then both padded to four bytes."""
    position = 0
    while position + elf64.NOTE.size <= len(notes):
        name_size, description_size, kind = elf64.NOTE.unpack_from(notes, position)
        name_at = position + elf64.NOTE.size
        description_at = name_at + (name_size + 3 & ~3)
        end = description_at + description_size
        if kind == elf64.NT_GNU_BUILD_ID and notes[name_at : name_at + name_size] == b"GNU\0" and end <= len(notes):
            return notes[description_at:end].hex()
        position = end + 3 & ~3
    return None
