"""What the reader hands on: a linked ELF image whose bytes stay in the file until somebody asks."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from itertools import compress
from pathlib import Path
from typing import NamedTuple, Protocol

from staticcall.abi import elf64
from staticcall.errors import MalformedError


class ByteSource(Protocol):
    """Random access to the bytes of one file."""

    @property
    def size(self) -> int:
        """The file's size in bytes when it was opened."""
        ...

    def read(self, offset: int, size: int) -> bytes:
        """Return exactly `size` bytes from `offset`; raises `MalformedError` when the file ends before."""
        ...

    def check_unchanged(self) -> None:
        """Raise `InputError` if the file was changed since it was opened."""
        ...


class Section(NamedTuple):
    """One section header, the name resolved."""

    number: int
    name: str
    type: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    entry_size: int

    @property
    def executable(self) -> bool:
        """Whether the section holds instructions that run from where they are linked."""
        return bool(self.flags & elf64.SHF_EXECINSTR and self.flags & elf64.SHF_ALLOC)

    def contains(self, address: int) -> bool:
        """Whether the linked address lies in this section."""
        return bool(self.flags & elf64.SHF_ALLOC) and self.address <= address < self.address + self.size


class Segment(NamedTuple):
    """One program header."""

    type: int
    flags: int
    offset: int
    address: int
    file_size: int
    memory_size: int


class Symbol(NamedTuple):
    """One entry of the symbol table."""

    name: str
    address: int
    size: int
    type: int
    binding: int
    section_index: int


class SymbolTable:
    """The symbol table as columns, never as 180,000 objects.

    Reading a kernel's table entry by entry takes seconds; a column costs milliseconds, and most questions
    are about a few names or a few addresses.
    """

    __slots__ = ("_functions", "_infos", "_names", "_section_indexes", "_sizes", "_strings", "_values")

    def __init__(
        self,
        strings: bytes,
        names: list[int],
        infos: bytes,
        section_indexes: list[int],
        values: list[int],
        sizes: list[int],
    ) -> None:
        self._strings = strings
        self._names = names
        self._infos = infos
        self._section_indexes = section_indexes
        self._values = values
        self._sizes = sizes
        self._functions: tuple[list[int], list[int]] | None = None

    def __len__(self) -> int:
        return len(self._names)

    def _name(self, offset: int) -> str:
        end = self._strings.find(b"\0", offset)
        if end < 0:
            raise MalformedError("a symbol's name runs past the string table")
        return self._strings[offset:end].decode("utf-8", "backslashreplace")

    def _symbol(self, index: int) -> Symbol:
        info = self._infos[index]
        return Symbol(
            self._name(self._names[index]),
            self._values[index],
            self._sizes[index],
            info & 0xF,
            info >> 4,
            self._section_indexes[index],
        )

    def _with_name_offsets(self, offsets: set[int]) -> Iterator[Symbol]:
        # compress() and map() keep the walk over the column in C.
        indexes = compress(range(len(self._names)), map(offsets.__contains__, self._names))
        return (self._symbol(i) for i in indexes)

    def starting_with(self, prefixes: Iterable[str]) -> list[Symbol]:
        """Every defined symbol whose name starts with one of the prefixes, in table order."""
        offsets: set[int] = set()
        for prefix in prefixes:
            needle = prefix.encode()
            position = self._strings.find(needle)
            while position >= 0:
                # Linkers share the tails of strings, so a name may start inside another: every
                # occurrence is a candidate, and the table's own offsets decide.
                offsets.add(position)
                position = self._strings.find(needle, position + 1)
        return [symbol for symbol in self._with_name_offsets(offsets) if symbol.section_index != elf64.SHN_UNDEF]

    def named(self, names: Iterable[str]) -> dict[str, list[Symbol]]:
        """Every defined symbol with one of these names; a name nobody has maps to an empty list."""
        found: dict[str, list[Symbol]] = {name: [] for name in names}
        offsets: set[int] = set()
        for name in found:
            needle = name.encode() + b"\0"
            position = self._strings.find(needle)
            while position >= 0:
                offsets.add(position)
                position = self._strings.find(needle, position + 1)
        for symbol in self._with_name_offsets(offsets):
            if symbol.name in found and symbol.section_index != elf64.SHN_UNDEF:
                found[symbol.name].append(symbol)
        return found

    def at(self, addresses: set[int]) -> dict[int, Symbol]:
        """The best symbol that starts at each address: functions first, then global ones, then by table order."""
        best: dict[int, tuple[int, int]] = {}
        infos, section_indexes = self._infos, self._section_indexes
        values = self._values
        for i in compress(range(len(values)), map(addresses.__contains__, values)):
            kind, binding = infos[i] & 0xF, infos[i] >> 4
            if section_indexes[i] == elf64.SHN_UNDEF or kind in (
                elf64.STT_SECTION,
                elf64.STT_FILE,
                elf64.STT_TLS,
            ):
                continue
            rank = 2 * (kind in (elf64.STT_FUNC, elf64.STT_GNU_IFUNC)) + (binding != elf64.STB_LOCAL)
            if values[i] not in best or rank > best[values[i]][0]:
                best[values[i]] = (rank, i)
        return {address: self._symbol(i) for address, (_, i) in best.items()}

    def containing(self, address: int) -> Symbol | None:
        """The function whose extent covers the address, or None."""
        if self._functions is None:
            pairs = sorted(
                (self._values[i], i)
                for i, info in enumerate(self._infos)
                if info & 0xF == elf64.STT_FUNC and self._sizes[i]
            )
            self._functions = ([value for value, _ in pairs], [i for _, i in pairs])
        starts, indexes = self._functions
        position = bisect_right(starts, address) - 1
        # Aliases and nested extents (a function's cold part, `__pfx_` symbols) stand next to each other.
        for nearby in range(position, max(position - 4, -1), -1):
            index = indexes[nearby]
            if starts[nearby] <= address < starts[nearby] + self._sizes[index]:
                return self._symbol(index)
        return None

    def function_names(self) -> list[str]:
        """The names of all defined functions, for suggestions after a misspelt one."""
        return [
            self._name(self._names[i])
            for i, info in enumerate(self._infos)
            if info & 0xF == elf64.STT_FUNC and self._section_indexes[i] != elf64.SHN_UNDEF
        ]


NO_SYMBOLS = SymbolTable(b"", [], b"", [], [], [])


class Relocation(NamedTuple):
    """A dynamic relocation of one 8-byte slot.

    `file_offset` is the entry's place in the file, or None for one packed in `.relr.dyn`, where the slot's
    own bytes are the value. `symbol` is the dynamic symbol's name, empty for a relative one.
    """

    type: int
    file_offset: int | None
    addend: int
    symbol: str


class Image:
    """A linked ELF64 x86-64 file: its tables in memory, everything else still in the file.

    Addresses are linked addresses, offsets are file offsets, both in bytes. Nothing here changes after it
    was built.
    """

    __slots__ = (
        "_load_starts",
        "_loads",
        "build_id",
        "elf_type",
        "path",
        "relocations",
        "sections",
        "segments",
        "source",
        "symbols",
    )

    def __init__(
        self,
        *,
        path: Path,
        source: ByteSource,
        elf_type: int,
        sections: tuple[Section, ...],
        segments: tuple[Segment, ...],
        symbols: SymbolTable,
        relocations: Mapping[int, Relocation],
        build_id: str | None,
    ) -> None:
        self.path = path
        self.source = source
        self.elf_type = elf_type
        self.sections = sections
        self.segments = segments
        self.symbols = symbols
        self.relocations = relocations
        self.build_id = build_id
        self._loads = sorted(
            (segment for segment in segments if segment.type == elf64.PT_LOAD and segment.file_size),
            key=lambda segment: segment.address,
        )
        self._load_starts = [segment.address for segment in self._loads]

    @property
    def kernel(self) -> bool:
        """Whether this is a kernel: x86-64 kernels, and nothing else, are linked in the upper half."""
        return any(segment.address >> 63 for segment in self._loads)

    @property
    def position_independent(self) -> bool:
        """Whether a loader chooses the base address (PIE or shared object)."""
        return self.elf_type == elf64.ET_DYN

    def load_at(self, address: int) -> Segment | None:
        """The loaded segment whose file bytes hold this address."""
        position = bisect_right(self._load_starts, address) - 1
        if position >= 0:
            segment = self._loads[position]
            if address < segment.address + segment.file_size:
                return segment
        return None

    def in_memory(self, address: int) -> bool:
        """Whether the address exists at run time, in the file or as zeros behind it."""
        return any(
            segment.type == elf64.PT_LOAD and segment.address <= address < segment.address + segment.memory_size
            for segment in self.segments
        )

    def offset_of(self, address: int, size: int = 1) -> int | None:
        """The file offset of `size` bytes at a linked address, or None where the file does not hold them."""
        segment = self.load_at(address)
        if segment is None or address + size > segment.address + segment.file_size:
            return None
        return segment.offset + address - segment.address

    def read_at(self, address: int, size: int) -> bytes:
        """Read `size` bytes at a linked address; raises `MalformedError` where the file does not hold them."""
        offset = self.offset_of(address, size)
        if offset is None:
            raise MalformedError(f"address {address:#x} ({size} bytes) lies outside of what the file loads")
        return self.source.read(offset, size)

    def section_at(self, address: int) -> Section | None:
        """The section that covers a linked address; sections that only exist in memory do not count."""
        for section in self.sections:
            if section.contains(address) and not section.flags & elf64.SHF_TLS:
                return section
        return None

    def section_named(self, names: Iterable[str]) -> Section | None:
        """The first section with one of these names, in the order of the names."""
        for name in names:
            for section in self.sections:
                if section.name == name:
                    return section
        return None
