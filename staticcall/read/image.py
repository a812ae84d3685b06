"""From an open file to an `Image`: header, sections, segments, symbols, dynamic relocations, build id."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from staticcall.abi import elf64
from staticcall.errors import MalformedError, UnsupportedError, about
from staticcall.model.image import ByteSource, Image, Section, Segment
from staticcall.read.headers import read_header, read_sections, read_segments
from staticcall.read.relocations import read_relocations
from staticcall.read.source import FileSource
from staticcall.read.symbols import read_symbols

# A note is a few dozen bytes; more than this is not a build id's section.
_MAX_NOTES = 1 << 16


@contextmanager
def open_image(path: Path, name: Path | None = None) -> Iterator[Image]:
    """Open a linked ELF64 x86-64 file; it stays open for reading inside the `with` block.

    `name` is what it is called instead of its path, in reports as well as in errors.
    Raises `InputError` when it cannot be read, `MalformedError` when it breaks the format, and
    `UnsupportedError` when it is no linked x86-64 file.
    """
    with about(name or path), FileSource(path) as source:
        yield _read_image(name or path, source)
        source.check_unchanged()


def _read_image(path: Path, source: ByteSource) -> Image:
    header = read_header(source)
    if header.type == elf64.ET_REL:
        raise UnsupportedError("is a relocatable object", advice="only linked images are supported so far")
    if header.type not in (elf64.ET_EXEC, elf64.ET_DYN):
        raise UnsupportedError(f"has ELF type {header.type}", advice="give an executable or a shared object")
    sections = read_sections(source, header)
    segments = read_segments(source, header)
    if not any(segment.type == elf64.PT_LOAD for segment in segments):
        raise MalformedError("loads nothing", advice="give a linked file, not one of separate debug data")
    return Image(
        path=path,
        source=source,
        elf_type=header.type,
        sections=sections,
        segments=segments,
        symbols=read_symbols(source, sections),
        relocations=read_relocations(source, segments),
        build_id=_build_id(source, sections, segments),
    )


def _build_id(source: ByteSource, sections: tuple[Section, ...], segments: tuple[Segment, ...]) -> str | None:
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
