"""The ELF header and the two tables it points to, checked against the file's size before they are used."""

from typing import NamedTuple

from staticcall.abi import elf64
from staticcall.errors import MalformedError, UnsupportedError
from staticcall.model.image import ByteSource, Section, Segment
from staticcall.read.strings import Strings

_ADDRESSES = 1 << 64
# That many bytes of names are not worth a second thought.
_FEW_NAMES = 1 << 22


class Header(NamedTuple):
    """The fields of the ELF header that matter, extended numbering resolved."""

    type: int
    segments_at: int
    segment_count: int
    sections_at: int
    section_count: int
    names_index: int


def read_header(source: ByteSource) -> Header:
    """Read and check the ELF header."""
    if source.size == 0:
        raise MalformedError("is empty", advice="give an ELF file")
    ident = source.read(0, min(16, source.size))
    if ident[:4] != elf64.MAGIC:
        raise MalformedError("is not an ELF file", offset=0, advice="give an ELF file")
    if source.size < elf64.HEADER.size:
        raise MalformedError("ends inside the ELF header", offset=source.size, advice="the file is truncated")
    fields = elf64.HEADER.unpack(source.read(0, elf64.HEADER.size))
    _, kind, machine, version, _, phoff, shoff, _, _, phentsize, phnum, shentsize, shnum, shstrndx = fields
    if ident[4] != elf64.CLASS_64:
        raise UnsupportedError("is not a 64-bit file", offset=4, advice="only ELF64 x86-64 is supported")
    if ident[5] != elf64.DATA_LITTLE:
        raise UnsupportedError("is not little-endian", offset=5, advice="only ELF64 x86-64 is supported")
    if machine != elf64.EM_X86_64:
        raise UnsupportedError(f"is for machine {machine}", offset=18, advice="only ELF64 x86-64 is supported")
    if ident[6] != elf64.EV_CURRENT or version != elf64.EV_CURRENT:
        raise MalformedError(f"has ELF version {version}", offset=20, advice="the header is damaged")
    if phnum and phentsize != elf64.SEGMENT.size:
        raise MalformedError(f"has program headers of {phentsize} bytes", offset=54, advice="the header is damaged")
    if shoff and shentsize != elf64.SECTION.size:
        raise MalformedError(f"has section headers of {shentsize} bytes", offset=58, advice="the header is damaged")
    if shoff and (shnum == 0 or shstrndx == elf64.SHN_XINDEX or phnum == elf64.PN_XNUM):
        # Counts that do not fit 16 bits are kept in the otherwise unused section 0.
        first = elf64.SECTION.unpack(_table(source, shoff, elf64.SECTION.size, 1, "section headers"))
        shnum = shnum or first[5]
        shstrndx = first[6] if shstrndx == elf64.SHN_XINDEX else shstrndx
        phnum = first[7] if phnum == elf64.PN_XNUM else phnum
    return Header(kind, phoff, phnum, shoff, shnum if shoff else 0, shstrndx)


def _table(source: ByteSource, offset: int, entry_size: int, count: int, what: str) -> bytes:
    if offset + entry_size * count > source.size:
        raise MalformedError(
            f"the {what} ({count} entries) lie beyond the end of the file",
            offset=offset,
            advice="the file is truncated or its header is damaged",
        )
    return source.read(offset, entry_size * count)


def read_segments(source: ByteSource, header: Header) -> tuple[Segment, ...]:
    """Read the program headers; every loaded one must lie in the file."""
    table = _table(source, header.segments_at, elf64.SEGMENT.size, header.segment_count, "program headers")
    segments = tuple(
        Segment(kind, flags, offset, address, file_size, memory_size)
        for kind, flags, offset, address, _, file_size, memory_size, _ in elf64.SEGMENT.iter_unpack(table)
    )
    for segment in segments:
        if segment.offset + segment.file_size > source.size:
            raise MalformedError(
                f"the segment at {segment.address:#x} ends beyond the end of the file",
                offset=segment.offset,
                advice="the file is truncated or its headers are damaged",
            )
        if segment.type == elf64.PT_LOAD and segment.memory_size < segment.file_size:
            raise MalformedError(
                f"the segment at {segment.address:#x} is larger in the file than in memory",
                offset=segment.offset,
                advice="the program headers are damaged",
            )
        if segment.address + segment.memory_size > _ADDRESSES:
            raise MalformedError(
                f"the segment at {segment.address:#x} ends beyond the last address there is",
                offset=segment.offset,
                advice="the program headers are damaged",
            )
    return segments


def read_sections(source: ByteSource, header: Header) -> tuple[Section, ...]:
    """Read the section headers with their names; a file may have none."""
    if not header.section_count:
        return ()
    table = _table(source, header.sections_at, elf64.SECTION.size, header.section_count, "section headers")
    raw = list(elf64.SECTION.iter_unpack(table))
    names = _section_names(source, header, raw)
    make, size = tuple.__new__, source.size
    sections = tuple(
        make(Section, (at, name, *rest)) for at, (name, (_, *rest)) in enumerate(zip(names, raw, strict=True))
    )
    for _, _, kind, _, _, offset, extent, *_ in sections[1:]:
        if offset + extent > size and kind != elf64.SHT_NOBITS:
            section = next(s for s in sections[1:] if s.type != elf64.SHT_NOBITS and s.offset + s.size > size)
            raise MalformedError(
                f"section {section.name or section.number} ends beyond the end of the file",
                offset=section.offset,
                advice="the file is truncated or its headers are damaged",
            )
    return sections


def _section_names(source: ByteSource, header: Header, raw: list[tuple[int, ...]]) -> list[str]:
    """The name of each section, all of them empty where there is no table of names."""
    index = header.names_index
    if not index:
        return [""] * len(raw)
    if index >= len(raw) or raw[index][1] != elf64.SHT_STRTAB:
        what = "does not exist" if index >= len(raw) else "is no string table"
        raise MalformedError(f"section {index} for the names {what}", offset=62, advice="the header is damaged")
    _, _, _, _, offset, size, *_ = raw[index]
    data = source.read(offset, size)
    if len(data) * len(raw) < _FEW_NAMES and data.isascii():
        # As nearly always; and so one string is made of all, and names are parts of it.
        text, ends = data.decode("ascii"), [data.find(b"\0", name) for name, *_ in raw]
        if -1 not in ends:
            return [text[name:end] for (name, *_), end in zip(raw, ends, strict=True)]
    names = Strings(data, offset, "a section's name")
    return [names.at(name) for name, *_ in raw]
