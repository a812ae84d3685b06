"""From bytes to an `ObjectFile`: its headers and tables checked against its size."""

from __future__ import annotations

from itertools import pairwise
from operator import add, le

from staticcall.abi import archive, elf64
from staticcall.errors import MalformedError, UnsupportedError
from staticcall.model.image import ByteSource, Section
from staticcall.model.object import ObjectFile, ObjectSymbols
from staticcall.read.headers import read_header, read_sections

# A module's signature: PKCS#7 data, twelve bytes of which the last four are its size, and this.
# Source: include/linux/module_signature.h.
_SIGNATURE_MARK = b"~Module signature appended~\n"
_SIGNATURE_INFO_SIZE = 12
_DAMAGED = "the section headers are damaged"
_RELOCATION_SIZES = {elf64.SHT_RELA: elf64.RELA.size, elf64.SHT_REL: elf64.REL_SIZE}
_WITHOUT_BYTES = (elf64.SHT_NULL, elf64.SHT_NOBITS)
# What few objects have.
_UNUSUAL = frozenset({elf64.SHT_NULL, elf64.SHT_REL, elf64.SHT_SYMTAB_SHNDX})
_IS_LOCAL = bytes(info >> 4 == elf64.STB_LOCAL for info in range(256))


class BytesSource:
    """Bytes in memory as a `ByteSource`."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def read(self, offset: int, size: int) -> bytes:
        """Return exactly `size` bytes from `offset` on; raises `MalformedError` when the data ends before."""
        if offset < 0 or size < 0 or offset + size > self.size:
            raise MalformedError(
                f"{size} bytes are expected where the file has {max(self.size - offset, 0)}",
                offset=offset,
                advice="the file is truncated or its headers are wrong",
            )
        return self._data[offset : offset + size]

    def whole(self) -> bytes:
        """All bytes."""
        return self._data

    def check_unchanged(self) -> None:
        """Memory does not change."""


def is_object(data: bytes) -> bool:
    """Whether this begins like a relocatable ELF object, of whatever machine."""
    return data[:4] == elf64.MAGIC and data[16:18] == elf64.ET_REL.to_bytes(2, "little")


def is_archive(head: bytes) -> bool:
    """Whether a file that starts with these bytes (eight are enough) is an archive, of whatever format."""
    return head.startswith((archive.MAGIC, archive.THIN_MAGIC))


def parse_object(data: bytes) -> ObjectFile:
    """Read a relocatable x86-64 object from memory.

    Raises `MalformedError` where it breaks the format, `UnsupportedError` where it is no ELF64 x86-64 object.
    """
    source: ByteSource = BytesSource(data)
    header = read_header(source)
    if header.type != elf64.ET_REL:
        raise UnsupportedError("is no relocatable object", advice="give an .o or a .ko")
    if header.segment_count:
        raise UnsupportedError("is an object with program headers", advice="give one from a compiler or `ld -r`")
    sections = read_sections(source, header)
    _check_counts(sections, header.names_index)
    symtabs = [section.number for section in sections if section.type == elf64.SHT_SYMTAB]
    if len(symtabs) > 1:
        raise MalformedError(f"has {len(symtabs)} symbol tables", advice=_DAMAGED)
    symtab = symtabs[0] if symtabs else 0
    extended = _extended_of(sections, symtab)
    entries = _entries(sections, symtab)
    symbols = _symbols(source, sections, symtab, extended)
    _check_overlaps(sections, header.sections_at)
    end = len(data) - _signature_size(data)
    return ObjectFile(data, header.sections_at, header.names_index, sections, symtab, extended, symbols, end, entries)


def is_sound(data: bytes) -> bool | None:
    """What `parse_object` finds in order, in a fifth of the time: whether it has a symbol table.

    None where something is wrong or unusual, which `parse_object` is then to say. Raises `MalformedError` and
    `UnsupportedError` where the header says it.
    """
    header = read_header(BytesSource(data))
    at, count = header.sections_at, header.section_count
    if header.type != elf64.ET_REL or header.segment_count or not 0 < count < elf64.SHN_LORESERVE:
        return None
    if at + count * elf64.SECTION.size > len(data) or not 0 < header.names_index < count:
        return None
    table = elf64.SECTION.iter_unpack(data[at : at + count * elf64.SECTION.size])
    names, kinds, _, _, offsets, sizes, links, infos, _, units = zip(*table, strict=True)
    ends, used = [*map(add, offsets, sizes)], range(1, count)
    present = [number for number in used if kinds[number] != elf64.SHT_NOBITS]
    spans = [(offsets[number], ends[number]) for number in present if sizes[number]]
    spans += (0, elf64.HEADER.size), (at, at + count * elf64.SECTION.size)
    spans.sort()
    starts, stops = zip(*spans, strict=True)
    symtab = kinds.index(elf64.SHT_SYMTAB) if elf64.SHT_SYMTAB in kinds else 0
    tables = [number for number in used if kinds[number] == elf64.SHT_RELA]
    strings, last = header.names_index, ends[header.names_index] - 1
    sound = (
        not (sizes[0] or links[0] or not symtab or _UNUSUAL.intersection(kinds[1:]))
        and kinds.count(elf64.SHT_SYMTAB) == 1
        and max(map(ends.__getitem__, present)) <= len(data)
        and all(map(le, stops, starts[1:]))
        and kinds[strings] == elf64.SHT_STRTAB
        and max(names) < sizes[strings]
        and not data[last]
        and all(links[n] == symtab and 0 < infos[n] < count and units[n] == elf64.RELA.size for n in tables)
        and not any(sizes[number] % elf64.RELA.size for number in tables)
        and _has_sound_symbols(data, offsets[symtab], sizes[symtab], units[symtab], infos[symtab])
        and 0 < links[symtab] < count
        and kinds[links[symtab]] == elf64.SHT_STRTAB
        and not (sizes[links[symtab]] and data[offsets[links[symtab]]])
    )
    _signature_size(data)
    return True if sound else None


def _has_sound_symbols(data: bytes, offset: int, size: int, unit: int, local: int) -> bool:
    """Whether the local symbols come first, and are as many as it says."""
    if unit != elf64.SYMBOL.size or size % unit or local > size // unit:
        return False
    marks = data[offset + 4 : offset + size : unit].translate(_IS_LOCAL)
    return marks.count(1) == local and marks.find(0) in (-1, local)


def _check_counts(sections: tuple[Section, ...], names: int) -> None:
    """The otherwise unused section 0 counts the sections, and says where their names are, if the header cannot."""
    if not sections:
        return
    count = len(sections)
    wanted = (count if count >= elf64.SHN_LORESERVE else 0, names if names >= elf64.SHN_LORESERVE else 0)
    if (sections[0].size, sections[0].link) != wanted:
        raise MalformedError("section 0 does not say what the header does", offset=60, advice=_DAMAGED)


def _check_overlaps(sections: tuple[Section, ...], headers: int) -> None:
    """No byte of the file belongs to two sections, or to one and to a header."""
    spans = [
        (offset, offset + size, number)
        for number, _, kind, _, _, offset, size, *_ in sections
        if size and kind not in _WITHOUT_BYTES
    ]
    spans += (0, elf64.HEADER.size, 0), (headers, headers + len(sections) * elf64.SECTION.size, 0)
    spans.sort()
    before = 0
    for start, end, _ in spans:
        if start < before:
            one, other = next((one[2], other[2]) for one, other in pairwise(spans) if other[0] < one[1])
            raise _damaged(sections[other or one], "overlaps with what else is in the file")
        before = end


def _extended_of(sections: tuple[Section, ...], symtab: int) -> int:
    for section in sections:
        if section.type == elf64.SHT_SYMTAB_SHNDX and section.link == symtab:
            return section.number
    return 0


def _entries(sections: tuple[Section, ...], symtab: int) -> dict[int, list[Section]]:
    """The relocation sections with addends, by the section that they apply to, all of them checked."""
    found: dict[int, list[Section]] = {}
    for section in sections:
        size = _RELOCATION_SIZES.get(section.type)
        if size is None:
            continue
        if section.entry_size != size or section.size % size:
            raise _damaged(section, f"is no array of {size}-byte entries")
        if section.link != symtab:
            raise _damaged(section, "names no symbol table")
        if not 0 < section.info < len(sections):
            raise _damaged(section, f"applies to section {section.info}, which does not exist")
        if section.type == elf64.SHT_RELA:
            found.setdefault(section.info, []).append(section)
    return found


def _symbols(source: ByteSource, sections: tuple[Section, ...], symtab: int, extended: int) -> ObjectSymbols:
    if not symtab:
        return ObjectSymbols(b"", b"", b"")
    section = sections[symtab]
    if section.entry_size != elf64.SYMBOL.size or section.size % elf64.SYMBOL.size:
        raise _damaged(section, f"is no array of {elf64.SYMBOL.size}-byte entries")
    if section.info > section.size // elf64.SYMBOL.size:
        raise _damaged(section, f"has {section.info} local symbols, more than there are")
    if not 0 < section.link < len(sections) or sections[section.link].type != elf64.SHT_STRTAB:
        raise _damaged(section, "names no string table")
    strings = sections[section.link]
    wide = b""
    if extended:
        numbers = sections[extended]
        if numbers.size != section.size // elf64.SYMBOL.size * elf64.WORD.size:
            raise _damaged(numbers, "does not fit the symbol table")
        wide = source.read(numbers.offset, numbers.size)
    table = source.read(section.offset, section.size)
    marks = table[4 :: elf64.SYMBOL.size].translate(_IS_LOCAL)
    if marks.count(1) != section.info or marks.find(0) not in (-1, section.info):
        raise _damaged(section, "does not begin with its local symbols, as many as it says")
    names = source.read(strings.offset, strings.size)
    if names[:1] not in (b"", b"\0"):
        raise _damaged(strings, "gives a name to what has none")
    return ObjectSymbols(table, names, wide)


def _damaged(section: Section, what: str) -> MalformedError:
    return MalformedError(f"section {section.name or section.number} {what}", offset=section.offset, advice=_DAMAGED)


def _signature_size(data: bytes) -> int:
    """The size of what is appended to a signed module, 0 for all other files."""
    if not data.endswith(_SIGNATURE_MARK):
        return 0
    end = len(data) - len(_SIGNATURE_MARK)
    size = int.from_bytes(data[end - 4 : end], "big") + _SIGNATURE_INFO_SIZE + len(_SIGNATURE_MARK)
    if size > len(data):
        raise MalformedError("has a signature that is larger than the file", offset=end - 4, advice="sign it again")
    return size
