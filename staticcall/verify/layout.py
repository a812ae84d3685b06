"""Where a linked image keeps what, read with pyelftools.

Only the headers are parsed here, one by one; bulk tables (symbols, relocations) are read by their own
modules in one piece, since an object per entry would cost seconds. Of pyelftools the structures alone are
imported: its `ELFFile` pulls in DWARF support, which takes as long as a whole proof.

Sources: System V gABI, chapters 4 and 5.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any, NamedTuple

from elftools.common.utils import struct_parse
from elftools.elf.constants import P_FLAGS, SH_FLAGS, SHN_INDICES
from elftools.elf.structs import ELFStructs

from staticcall.errors import MalformedError, StaticcallError, UnsupportedError
from staticcall.verify.sound import check_headers
from staticcall.verify.source import Source, Span

_IDENT = b"\x7fELF\x02\x01"
_PN_XNUM = 0xFFFF
# More headers than a 16-bit count can say are possible in objects; in a linked image they are an attack.
_MOST_HEADERS = 0xFFFF
# Names may share their ends, so a small table has room for more of them than a memory.
_MOST_NAMES = 1 << 24


class Extent(NamedTuple):
    """Linked addresses from `start` up to, not including, `stop`."""

    start: int
    stop: int


class Section(NamedTuple):
    """One section header; `type` is pyelftools' name for it, or the number where it has none."""

    name: str
    type: str | int
    flags: int
    address: int
    body: Span
    link: int

    @property
    def allocated(self) -> bool:
        """Whether the section stands at its address in the running image."""
        return bool(self.flags & SH_FLAGS.SHF_ALLOC) and not self.flags & SH_FLAGS.SHF_TLS

    @property
    def extent(self) -> Extent:
        """The linked addresses that the section covers."""
        return Extent(self.address, self.address + self.body.size)


class Segment(NamedTuple):
    """One PT_LOAD header: linked address, the bytes of the file that go there, and the size in memory."""

    address: int
    body: Span
    memory: int
    executable: bool

    @property
    def end(self) -> int:
        """The linked address behind the last byte that comes from the file."""
        return self.address + self.body.size


class Layout(NamedTuple):
    """What the headers of a linked image say.

    `movable` tells whether a loader chooses the base address. `code` are the places where instructions may
    stand, `data` those where a pointer that the program writes may, `zeros` the memory that no bytes of the
    file go to; `headers` are parts of the file that no legal edit can touch.
    """

    movable: bool
    sections: tuple[Section, ...]
    segments: tuple[Segment, ...]
    dynamic: Span | None
    code: tuple[Extent, ...]
    data: tuple[Extent, ...]
    zeros: tuple[Extent, ...]
    headers: tuple[Span, ...]

    @property
    def kernel(self) -> bool:
        """Whether this is a kernel, which KASLR may load elsewhere although its type says that it is fixed."""
        return any(segment.address >> 63 for segment in self.segments)

    def offset_of(self, address: int, size: int = 1) -> int | None:
        """Return the file offset of `size` bytes at a linked address, None where the file has fewer."""
        for start, body, _, _ in self.segments:
            if start <= address and address + size <= start + body.size:
                return body.offset + address - start
        return None

    def room_at(self, address: int, most: int) -> int:
        """How many bytes, up to `most`, the file holds from a linked address on."""
        for segment in self.segments:
            if segment.address <= address < segment.end:
                return min(most, segment.end - address)
        return 0

    def is_zeros(self, address: int, size: int) -> bool:
        """Whether a key at these addresses is NULL at first because the file stores nothing there."""
        return _within(self.zeros, address, size)

    def is_code(self, address: int, size: int = 1) -> bool:
        """Whether instructions may stand at these addresses."""
        return _within(self.code, address, size)

    def is_data(self, address: int, size: int) -> bool:
        """Whether a key whose value is in the file may stand at these addresses."""
        return _within(self.data, address, size)


def _within(extents: tuple[Extent, ...], address: int, size: int) -> bool:
    for start, stop in extents:  # noqa: SIM110 - asked for thousands of places; any() takes twice as long
        if start <= address and address + size <= stop:
            return True
    return False


@contextmanager
def _parsing(source: Source) -> Iterator[None]:
    """Turn whatever pyelftools raises on a broken file into `MalformedError`."""
    try:
        yield
    except StaticcallError:
        raise
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise MalformedError(f"the ELF headers cannot be parsed: {reason}", path=source.path) from error


def read_layout(source: Source) -> Layout:
    """Read the headers.

    Raises `MalformedError` for what is not a sound ELF file, `UnsupportedError` for one that is not a linked
    64-bit x86 image.
    """
    head = source.read(0, min(source.size, 64))
    if head[:4] != _IDENT[:4]:
        raise MalformedError("not an ELF file", path=source.path, offset=0)
    if head[:6] != _IDENT:
        raise UnsupportedError("not a 64-bit little-endian ELF file", path=source.path, offset=4)
    with _parsing(source):
        structs = ELFStructs(little_endian=True, elfclass=64)
        structs.create_basic_structs()
        header = struct_parse(structs.Elf_Ehdr, BytesIO(head))
        if header["e_machine"] != "EM_X86_64":
            raise UnsupportedError(f"made for {header['e_machine']}, not for x86-64", path=source.path)
        if header["e_type"] not in ("ET_EXEC", "ET_DYN"):
            raise UnsupportedError(f"not a linked image ({header['e_type']})", path=source.path)
        structs.create_advanced_structs(header["e_type"], header["e_machine"], header["e_ident"]["EI_OSABI"])
        return _assemble(source, structs, header)


def _assemble(source: Source, structs: Any, header: Any) -> Layout:
    section_table, shdrs = _section_headers(source, structs, header)
    segment_table, phdrs = _program_headers(source, structs, header, shdrs)
    check_headers(source, header, shdrs, phdrs)
    sections = _name_sections(source, header, shdrs)
    loads = tuple(
        Segment(p["p_vaddr"], Span(p["p_offset"], p["p_filesz"]), p["p_memsz"], bool(p["p_flags"] & P_FLAGS.PF_X))
        for p in phdrs
        if p["p_type"] == "PT_LOAD" and p["p_filesz"]
    )
    for load in loads:
        if load.body.end > source.size:
            raise MalformedError("a segment runs past the end of the file", path=source.path, offset=load.body.offset)
    dynamics = [Span(p["p_offset"], p["p_filesz"]) for p in phdrs if p["p_type"] == "PT_DYNAMIC"]
    headers = (Span(0, header["e_ehsize"]), section_table, segment_table, *dynamics)
    code, data = _code_and_data(sections, loads)
    zeros = tuple(
        Extent(p["p_vaddr"] + p["p_filesz"], p["p_vaddr"] + p["p_memsz"]) for p in phdrs if p["p_type"] == "PT_LOAD"
    )
    return Layout(
        header["e_type"] == "ET_DYN",
        sections,
        loads,
        dynamics[0] if dynamics else None,
        code,
        data,
        zeros,
        tuple(span for span in headers if span.size),
    )


def _headers(source: Source, layout: Any, table: Span, count: int) -> list[Any]:
    if count > _MOST_HEADERS:
        raise UnsupportedError(f"{count} headers", path=source.path, offset=table.offset)
    if count and table.size != count * layout.sizeof():
        raise MalformedError("headers of an unknown size", path=source.path, offset=table.offset)
    stream = BytesIO(source.read(*table))
    return [struct_parse(layout, stream) for _ in range(count)]


def _section_headers(source: Source, structs: Any, header: Any) -> tuple[Span, list[Any]]:
    if not header["e_shoff"]:
        return Span(0, 0), []
    count = header["e_shnum"]
    if not count:
        first = _headers(source, structs.Elf_Shdr, Span(header["e_shoff"], header["e_shentsize"]), 1)
        count = first[0]["sh_size"]
    table = Span(header["e_shoff"], count * header["e_shentsize"])
    return table, _headers(source, structs.Elf_Shdr, table, count)


def _program_headers(source: Source, structs: Any, header: Any, shdrs: list[Any]) -> tuple[Span, list[Any]]:
    count = header["e_phnum"]
    if count == _PN_XNUM and shdrs:
        count = shdrs[0]["sh_info"]
    if not count:
        raise MalformedError("a linked image without program headers", path=source.path)
    table = Span(header["e_phoff"], count * header["e_phentsize"])
    return table, _headers(source, structs.Elf_Phdr, table, count)


def _name_sections(source: Source, header: Any, shdrs: list[Any]) -> tuple[Section, ...]:
    index = header["e_shstrndx"]
    if index == SHN_INDICES.SHN_XINDEX and shdrs:
        index = shdrs[0]["sh_link"]
    names = b"\0"
    if shdrs and index:
        if index >= len(shdrs) or shdrs[index]["sh_type"] != "SHT_STRTAB":
            raise MalformedError(f"section {index} for the names is no string table", path=source.path, offset=62)
        names = source.read(shdrs[index]["sh_offset"], shdrs[index]["sh_size"]) or names
        sizes = [names.find(b"\0", s["sh_name"]) - s["sh_name"] for s in shdrs]
        if min(sizes) < 0 or sum(sizes) > _MOST_NAMES:
            raise MalformedError("a section's name runs past the string table", path=source.path, offset=62)
    return tuple(
        Section(
            names[s["sh_name"] : max(names.find(b"\0", s["sh_name"]), 0)].decode("utf-8", "backslashreplace"),
            s["sh_type"],
            s["sh_flags"],
            s["sh_addr"],
            Span(s["sh_offset"], s["sh_size"]),
            s["sh_link"],
        )
        for s in shdrs
    )


def _code_and_data(
    sections: tuple[Section, ...], loads: tuple[Segment, ...]
) -> tuple[tuple[Extent, ...], tuple[Extent, ...]]:
    """Tell code from data: by sections where there are any, else by segments.

    A kernel's read-only data lies in an executable segment, so segments alone are the weaker answer.
    """
    if not sections:
        code = tuple(Extent(load.address, load.end) for load in loads if load.executable)
        return code, tuple(Extent(load.address, load.end) for load in loads if not load.executable)
    runnable = [load for load in loads if load.executable]
    bodies = [s for s in sections if s.type == "SHT_PROGBITS" and s.allocated and s.body.size]
    code = tuple(
        Extent(max(start, load.address), min(stop, load.end))
        for start, stop in (s.extent for s in bodies if s.flags & SH_FLAGS.SHF_EXECINSTR)
        for load in runnable
        if start < load.end and load.address < stop
    )
    return code, tuple(s.extent for s in bodies if not s.flags & SH_FLAGS.SHF_EXECINSTR)
