"""From an open file to a `Core`: a kernel's or a process's memory as an ELF core.

What there is, and what its headers say:

    /proc/kcore, kdump's vmcore         virtual addresses, physical ones beside them; VMCOREINFO among the notes
    QEMU, dump-guest-memory             physical addresses only, as both or with 0 for the virtual ones
    QEMU, dump-guest-memory -p          both
    a process, by the kernel or gcore   virtual addresses; NT_FILE and NT_AUXV among the notes

Source: System V gABI, chapter 5; Linux fs/binfmt_elf.c and fs/proc/kcore.c; QEMU dump/dump.c.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from staticcall.abi import elf64
from staticcall.errors import MalformedError, UnsupportedError, about
from staticcall.model.core import Area, Core, Note
from staticcall.model.image import ByteSource
from staticcall.read.headers import Header, read_header
from staticcall.read.source import FileSource

# A process can have 65,530 mappings unless its administrator says otherwise; dumps of kernels have a few thousand.
_MOST_SEGMENTS = 1 << 17
# NT_FILE of a process with very many mappings is the largest note there is; every thread adds a few small ones.
_MOST_NOTE_BYTES = 1 << 26
_MOST_NOTES = 1 << 18
_ADDRESSES = 1 << 64


@contextmanager
def open_core(path: Path) -> Iterator[Core]:
    """Open an ELF64 x86-64 core; it stays open for reading inside the `with` block.

    Raises `InputError` when it cannot be read, `MalformedError` when it breaks the format, and `UnsupportedError` when
    it is another kind of file.
    """
    with about(path), FileSource(path) as source:
        yield _read_core(source)


def _read_core(source: ByteSource) -> Core:
    header = read_header(source)
    if header.type != elf64.ET_CORE:
        raise UnsupportedError(f"has ELF type {header.type}", advice="give an ELF core, or /proc/kcore")
    if header.segment_count > _MOST_SEGMENTS:
        raise MalformedError(f"has {header.segment_count} program headers", offset=56, advice="the header is damaged")
    areas: list[Area] = []
    notes: list[Note] = []
    room = _MOST_NOTE_BYTES
    for area in _segments(source, header):
        if isinstance(area, Area):
            areas.append(area)
            continue
        offset, size = area
        room -= size
        if room < 0:
            raise MalformedError("has too many notes", offset=offset, advice="the program headers are damaged")
        notes += _notes(source, offset, size)
        if len(notes) > _MOST_NOTES:
            raise MalformedError("has too many notes", offset=offset, advice="the notes are damaged")
    if not areas:
        raise MalformedError("holds no memory", advice="give a whole core")
    return Core(source, tuple(areas), tuple(notes))


def _segments(source: ByteSource, header: Header) -> Iterator[Area | tuple[int, int]]:
    """What is loaded, and offset and size of the notes."""
    size = elf64.SEGMENT.size * header.segment_count
    if header.segments_at + size > source.size:
        raise MalformedError(
            f"the program headers ({header.segment_count} entries) lie beyond the end of the file",
            offset=header.segments_at,
            advice="the core is truncated",
        )
    table = source.read(header.segments_at, size)
    for kind, _, offset, virtual, physical, file_size, memory_size, _ in elf64.SEGMENT.iter_unpack(table):
        if kind not in (elf64.PT_LOAD, elf64.PT_NOTE):
            continue
        if offset + file_size > source.size:
            what = "notes" if kind == elf64.PT_NOTE else f"memory at {virtual or physical:#x}"
            raise MalformedError(
                f"the {what} would end beyond the end of the file", offset=offset, advice="the core is truncated"
            )
        if kind == elf64.PT_NOTE:
            yield offset, file_size
        elif virtual + max(file_size, memory_size) > _ADDRESSES:
            raise MalformedError(
                f"the memory at {virtual:#x} ends beyond the last address there is",
                offset=offset,
                advice="the program headers are damaged",
            )
        else:
            yield Area(virtual, physical, offset, file_size, max(file_size, memory_size))


def _notes(source: ByteSource, offset: int, size: int) -> Iterator[Note]:
    """Walk one run of notes; one that runs out of it ends the walk."""
    data = source.read(offset, size)
    position = 0
    for _ in range(_MOST_NOTES + 1):
        if position + elf64.NOTE.size > len(data):
            return
        name_size, description_size, kind = elf64.NOTE.unpack_from(data, position)
        name_at = position + elf64.NOTE.size
        description_at = name_at + (name_size + 3 & ~3)
        end = description_at + description_size
        if end > len(data):
            return
        name = data[name_at : name_at + name_size].rstrip(b"\0")
        yield Note(name, kind, data[description_at:end])
        position = end + 3 & ~3
