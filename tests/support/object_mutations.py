"""Damage to relocatable objects: one field at a time to each value that tells, and at random where it hurts.

    for name, content in hostile(path.read_bytes()):
        ...
    damaged(content, regions_of_object(content), [Mutation(...)])     (of tests.support.mutations)

Nothing here shares anything with the tool's own readers.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from tests.support.archives import packed
from tests.support.elf_edit import SECTION_SIZE, SYMBOL_SIZE, Elf, Fields, Layout, Span
from tests.support.elf_object import (
    SHF_ALLOC,
    SHF_EXECINSTR,
    SHT_GROUP,
    SHT_LLVM_ADDRSIG,
    SHT_RELA,
    SHT_STRTAB,
    SHT_SYMTAB,
    SHT_SYMTAB_SHNDX,
)

RELA_SIZE, HEADER_SIZE, WORD_SIZE = 24, 64, 4
SHT_LLVM_CALL_GRAPH_PROFILE = 0x6FFF4C09
SIGNATURE_MARK = b"~Module signature appended~\n"
_SHN_XINDEX = 0xFFFF
_TABLES = (".static_call_sites", "static_call_sites")

Case = tuple[str, bytes]


def _layout(fields: str) -> Layout:
    """Offsets and struct codes of fields that follow each other without gaps, written `name:code`."""
    found: dict[str, tuple[int, str]] = {}
    at = 0
    for field in fields.split():
        name, code = field.split(":")
        found[name] = (at, f"<{code}")
        at += struct.calcsize(f"<{code}")
    return MappingProxyType(found)


_HEADER: Final = _layout(
    "magic:I class:B data:B ident_version:B osabi:B padding:Q type:H machine:H version:I entry:Q phoff:Q shoff:Q"
    " flags:I ehsize:H phentsize:H phnum:H shentsize:H shnum:H shstrndx:H"
)
_SECTION: Final = _layout("name:I type:I flags:Q addr:Q offset:Q size:Q link:I info:I addralign:Q entsize:Q")
_SYMBOL: Final = _layout("name:I info:B other:B shndx:H value:Q size:Q")
_RELA: Final = _layout("offset:Q type:I symbol:I addend:Q")
_WORD: Final = _layout("word:I")
_ENTRIES: Final[Mapping[str, tuple[Layout, int]]] = MappingProxyType(
    {
        "symbols": (_SYMBOL, SYMBOL_SIZE),
        **dict.fromkeys(("relocations of code", "relocations of the table", "other relocations"), (_RELA, RELA_SIZE)),
        **dict.fromkeys(("group", "section numbers", "profile"), (_WORD, WORD_SIZE)),
    }
)

# What is damaged at random: the parts of an object by what they are for.
REGIONS: Final = (
    "header",
    "section headers",
    "symbols",
    "names",
    "section names",
    "section numbers",
    "group",
    "addrsig",
    "profile",
    "code",
    "relocations of code",
    "table",
    "relocations of the table",
    "other relocations",
    "file",
)


class Part(NamedTuple):
    """A section: its number, its header, and where its content is in the file."""

    number: int
    header: Fields
    span: Span


def parts_of(content: bytes | bytearray) -> Mapping[str, Part]:
    """The first section of a sound object for each thing that a section is for."""
    elf = Elf(content)
    found: dict[str, Part] = {}
    headers = _sections(elf)
    names = headers[_names_index(elf)]["offset"]
    for number, header in enumerate(headers):
        start = names + header["name"]
        name = elf.data[start : elf.data.index(0, start)].decode()
        for role in _roles(number, name, header, headers, _names_index(elf)):
            found.setdefault(role, Part(number, header, Span(header["offset"], header["size"])))
    return found


def edited(content: bytes, role: str, entry: int | None = None, **values: int) -> bytes:
    """A copy with these fields changed: of a section's header, or of one entry of it."""
    data = bytearray(content)
    part = parts_of(content)[role]
    fields = Fields(data, part.header.at, _SECTION)
    if entry is not None:
        layout, size = _ENTRIES[role]
        fields = Fields(data, part.span.offset + (entry % (part.span.size // size)) * size, layout)
    fields.update(values)
    return bytes(data)


def field_of(content: bytes, role: str, name: str, entry: int | None = None) -> int:
    """What a field holds that `edited` changes."""
    part = parts_of(content)[role]
    if entry is None:
        return part.header[name]
    layout, size = _ENTRIES[role]
    return Fields(bytearray(content), part.span.offset + (entry % (part.span.size // size)) * size, layout)[name]


def overwritten(content: bytes, role: str, piece: bytes, at: int = 0) -> bytes:
    """A copy with other bytes in a section; a negative place counts from its end."""
    data = bytearray(content)
    span = parts_of(content)[role].span
    start = span.offset + at + (span.size if at < 0 else 0)
    data[start : start + len(piece)] = piece
    return bytes(data)


def _sections(elf: Elf) -> list[Fields]:
    """All section headers, also those that the ELF header cannot count."""
    start = elf.header["shoff"]
    count = elf.header["shnum"] or Fields(elf.data, start, _SECTION)["size"]
    return [Fields(elf.data, start + i * SECTION_SIZE, _SECTION) for i in range(count)]


def _names_index(elf: Elf) -> int:
    index = elf.header["shstrndx"]
    return index if index != _SHN_XINDEX else Fields(elf.data, elf.header["shoff"], _SECTION)["link"]


def _roles(number: int, name: str, header: Fields, headers: list[Fields], names: int) -> Iterator[str]:
    kind = header["type"]
    if number == names:
        yield "section names"
    if kind == SHT_STRTAB and any(own["type"] == SHT_SYMTAB and own["link"] == number for own in headers):
        yield "names"
    plain = {
        SHT_SYMTAB: "symbols",
        SHT_SYMTAB_SHNDX: "section numbers",
        SHT_GROUP: "group",
        SHT_LLVM_ADDRSIG: "addrsig",
        SHT_LLVM_CALL_GRAPH_PROFILE: "profile",
    }
    if kind in plain:
        yield plain[kind]
    if kind == SHT_RELA and header["size"]:
        target = headers[header["info"]]
        if target["flags"] & SHF_EXECINSTR:
            yield "relocations of code"
        else:
            yield "other relocations" if not name.endswith(_TABLES) else "relocations of the table"
    if kind == 1 and header["size"]:
        if name in _TABLES:
            yield "table"
        elif header["flags"] & SHF_EXECINSTR:
            yield "code"
        elif header["flags"] & SHF_ALLOC:
            yield "data"


def regions_of_object(content: bytes) -> Mapping[str, Span]:
    """Where a sound object has what can be damaged at random."""
    elf = Elf(content)
    found = {role: part.span for role, part in parts_of(content).items()}
    headers = _sections(elf)
    found["header"] = Span(0, HEADER_SIZE)
    found["section headers"] = Span(elf.header["shoff"], len(headers) * SECTION_SIZE)
    found["file"] = Span(0, len(content))
    return found


# ---- one field at a time ----


def hostile(content: bytes) -> Iterator[Case]:
    """Every field of every header and of some entries of every table, set to each value that tells; named copies."""
    yield from _fields(content, "header", 0, _HEADER, _around(len(content), 64))
    parts = parts_of(content)
    for role, part in parts.items():
        header = part.header
        values = _around(len(content), len(content) - part.span.offset, part.span.size)
        values += [*(other.number for other in parts.values()), *range(20)]
        yield from _fields(content, f"header of {role}", header.at, _SECTION, values)
    for role, (layout, size) in _ENTRIES.items():
        if role in parts:
            yield from _entries(content, parts, role, size, layout)
    yield from _contents(content, parts)


def _around(*numbers: int) -> list[int]:
    return [near for number in numbers for near in (number - 1, number, number + 1, 2 * number)]


def _entries(content: bytes, parts: Mapping[str, Part], role: str, size: int, layout: Layout) -> Iterator[Case]:
    """The first entries of a table; of symbols one of each kind."""
    span = parts[role].span
    count = span.size // size
    numbers = _telling_symbols(content, parts, count) if role == "symbols" else range(min(count, 3))
    values = [*_around(count), *(part.number for part in parts.values()), len(content)]
    values += [near for other in ("names", "code") if other in parts for near in _around(parts[other].span.size)]
    for number in numbers:
        yield from _fields(content, f"{role}[{number}]", span.offset + number * size, layout, values)


def _telling_symbols(content: bytes, parts: Mapping[str, Part], count: int) -> list[int]:
    """The null symbol, and the first of each type and binding that is named as keys and trampolines are, or not."""
    data = bytearray(content)
    names = parts["names"].span.offset
    chosen: dict[tuple[int, bool], int] = {}
    for number in range(count):
        symbol = Fields(data, parts["symbols"].span.offset + number * SYMBOL_SIZE, _SYMBOL)
        named = content.startswith((b"__SCT__", b"__SCK__"), names + symbol["name"])
        chosen.setdefault((symbol["info"], named), number)
    return sorted({0, *chosen.values()})


def _fields(content: bytes, what: str, at: int, layout: Layout, values: Iterable[int]) -> Iterator[Case]:
    """Copies with one field of a structure changed, to what tells for its width and to `values`."""
    for name, (offset, code) in layout.items():
        bits = 8 * struct.calcsize(code)
        own = struct.unpack_from(code, content, at + offset)[0]
        top = (1 << bits) - 1
        telling = {
            0,
            1,
            2,
            top,
            top - 1,
            top >> 1,
            (top >> 1) + 1,
            own - 1,
            own + 1,
            own ^ 8,
            0xFF00,
            0xFFFF,
            1 << 20,
            1 << 31,
        }
        for value in sorted((telling | set(values)) - {own}):
            if 0 <= value <= top:
                data = bytearray(content)
                struct.pack_into(code, data, at + offset, value)
                yield f"{what} {name}={value:#x}", bytes(data)


def _contents(content: bytes, parts: Mapping[str, Part]) -> Iterator[Case]:
    """Tables without an end, and contents of others."""
    for role in ("names", "section names", "addrsig", "group", "symbols", "section numbers", "table", "profile"):
        if role in parts:
            span = parts[role].span
            for byte in (b"\0", b"A", b"\x80", b"\xff"):
                data = bytearray(content)
                data[span.offset : span.offset + span.size] = byte * span.size
                yield f"{role} all {byte!r}", bytes(data)
            data = bytearray(content)
            data[span.offset + span.size - 1] |= 0x80
            yield f"{role} without an end", bytes(data)
    for one in parts:
        for other in parts:
            if one != other:
                data = bytearray(content)
                header = Fields(data, parts[one].header.at, _SECTION)
                header["offset"], header["size"] = parts[other].span
                yield f"{one} where {other} is", bytes(data)


def truncated(content: bytes) -> Iterator[Case]:
    """Cut off at, before and behind every start and end of a section, and at some places between."""
    elf = Elf(content)
    ends = {len(content), elf.header["shoff"], *range(0, len(content), max(1, len(content) // 40))}
    for section in _sections(elf):
        ends.update((section["offset"], section["offset"] + section["size"]))
    for size in sorted({near for end in ends for near in (end - 1, end, end + 1) if 0 <= near < len(content)}):
        yield f"cut at {size:#x}", content[:size]


# ---- other objects of a sound one ----


def with_section(content: bytes, like: str, **values: int) -> bytes:
    """One more section at the end: the header of one that is there, but for these values."""
    elf = Elf(content)
    start, count = elf.header["shoff"], elf.header["shnum"]
    model = parts_of(content)[like].header.at
    data = elf.data + bytes(-len(elf.data) % 8)
    at = len(data)
    data += elf.data[start : start + count * SECTION_SIZE] + elf.data[model : model + SECTION_SIZE]
    Fields(data, at + count * SECTION_SIZE, _SECTION).update(values)
    changed = Elf(data)
    changed.header.update({"shoff": at, "shnum": count + 1})
    return bytes(changed.data)


def grown(content: bytes, role: str, more: bytes) -> bytes:
    """The same with more at the end of a section, which is at the end of the file now."""
    span = parts_of(content)[role].span
    at = len(content) + -len(content) % 16
    held = content[span.offset : span.offset + span.size] + more
    return edited(content + bytes(at - len(content)) + held, role, offset=at, size=len(held))


def with_names(content: bytes, piece: bytes, times: int, symbols: int) -> bytes:
    """So many global functions, whose names are ends of one that is as long as a piece repeated so many times."""
    first, code = parts_of(content)["names"].span.size, parts_of(content)["code"].number
    entry = struct.Struct("<IBBHQQ")
    entries = (entry.pack(first + i % times * len(piece), 0x12, 0, code, 0, 1) for i in range(symbols))
    return grown(grown(content, "names", piece * times + b"\0"), "symbols", b"".join(entries))


def with_wide_numbers(content: bytes) -> bytes:
    """The same object as if it had more sections than 16 bits can number: symbols say elsewhere where they are."""
    elf = Elf(content)
    symbols = parts_of(content)["symbols"]
    numbers = bytearray()
    for at in range(symbols.span.offset, symbols.span.offset + symbols.span.size, SYMBOL_SIZE):
        symbol = Fields(elf.data, at, _SYMBOL)
        wide = 0 < symbol["shndx"] < 0xFF00
        numbers += struct.pack("<I", symbol["shndx"] if wide else 0)
        symbol["shndx"] = _SHN_XINDEX if wide else symbol["shndx"]
    at = len(elf.data) + -len(elf.data) % 8
    data = bytes(elf.data) + bytes(at - len(elf.data)) + bytes(numbers)
    return with_section(
        data,
        "symbols",
        type=SHT_SYMTAB_SHNDX,
        offset=at,
        size=len(numbers),
        link=symbols.number,
        info=0,
        addralign=4,
        entsize=4,
    )


def signed(content: bytes, size: int = 99, said: int | None = None) -> bytes:
    """The object as a signed module: `size` bytes that stand for a signature, of which the trailer says `said`."""
    return content + b"S" * size + bytes(8) + struct.pack(">I", size if said is None else said) + SIGNATURE_MARK


def archived(*members: bytes) -> bytes:
    """An archive without an index of some objects."""
    return packed(*((b"%d.o/" % number, content) for number, content in enumerate(members)))
