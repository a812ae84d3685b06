"""What the reader hands on: a linked ELF image whose bytes stay in the file until somebody asks."""

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from itertools import compress
from typing import TYPE_CHECKING, NamedTuple, Protocol

from staticcall.abi import elf64
from staticcall.errors import MalformedError

if TYPE_CHECKING:
    from pathlib import Path

    from staticcall.model.object import ObjectFile

# Small neighbouring reads in address order are served from one large one.
_WINDOW = 1 << 17


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
    info: int
    alignment: int
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
    """The symbol table as it is in the file, and never as 180,000 objects.

    Reading a kernel's table entry by entry takes seconds. Most questions are about a few names or a few
    addresses, so a whole column is walked inside C and only what fits becomes a `Symbol`.
    """

    __slots__ = ("_by_type", "_names", "_strings", "_table")

    def __init__(self, table: bytes, strings: bytes) -> None:
        self._table = table
        self._strings = strings
        # An entry is name(4) info(1) other(1) section(2) value(8) size(8): 6 words, 3 quads, 24 bytes.
        self._names = elf64.column(table, "I", 0, 6)
        self._by_type: dict[int, tuple[list[int], list[int]]] = {}

    def __len__(self) -> int:
        return len(self._names)

    def _symbols(self, numbers: Iterable[int]) -> Iterator[Symbol]:
        """The symbols with these numbers, undefined ones left out."""
        table, strings, size = self._table, self._strings, elf64.SYMBOL.size
        unpack = elf64.SYMBOL.unpack_from
        room = MOST_NAMES
        for number in numbers:
            name, info, _, section, value, extent = unpack(table, number * size)
            end = strings.find(b"\0", name)
            room -= end - name
            if end < 0 or room < 0:
                what = "runs past the string table" if end < 0 else "is longer than any name"
                raise MalformedError(f"a symbol's name {what}", advice="the symbol table is damaged")
            if section != elf64.SHN_UNDEF:
                text = strings[name:end].decode("utf-8", "backslashreplace")
                yield Symbol(text, value, extent, info & 0xF, info >> 4, section)

    def _starting_at(self, offsets: set[int]) -> list[Symbol]:
        # compress() and map() keep the walk over the column in C.
        return list(self._symbols(compress(range(len(self._names)), map(offsets.__contains__, self._names))))

    def _occurrences(self, needle: bytes) -> list[int]:
        places = []
        place = self._strings.find(needle)
        while place >= 0:
            places.append(place)
            place = self._strings.find(needle, place + 1)
        return places

    def named(self, name: str) -> list[Symbol]:
        """Every defined symbol of this name, in table order."""
        return self._starting_at(set(self._occurrences(name.encode() + b"\0")))

    def matching(self, stems: Iterable[tuple[bytes, tuple[int, ...]]]) -> list[Symbol]:
        """Every defined symbol whose name contains one of the stems at one of its offsets, in table order.

        A stem is a piece that some names share, and how many bytes of the name may stand before it. All
        stems together cost one walk over the table.
        """
        # Linkers share the tails of strings, so a name may start inside another: every occurrence is a
        # candidate, and the table's own offsets decide.
        offsets: set[int] = set()
        for stem, leads in stems:
            places = self._occurrences(stem)
            for lead in leads:
                offsets.update([place - lead for place in places])
        return self._starting_at(offsets)

    def at(self, addresses: set[int]) -> dict[int, Symbol]:
        """The best symbol that starts at each address: functions first, then global ones, then by table order."""
        if not addresses:
            return {}
        best: dict[int, tuple[int, Symbol]] = {}
        for symbol in self._symbols(self._numbers_at(addresses)):
            if symbol.address not in addresses or symbol.type in _NO_PLACES:
                continue
            rank = 2 * (symbol.type in _FUNCTIONS) + (symbol.binding != elf64.STB_LOCAL)
            if symbol.address not in best or rank > best[symbol.address][0]:
                best[symbol.address] = (rank, symbol)
        return {address: symbol for address, (_, symbol) in best.items()}

    def _numbers_at(self, addresses: set[int]) -> Iterable[int]:
        """Numbers of the symbols that may start at one of the addresses, few of them wrong."""
        size = elf64.SYMBOL.size
        if len(addresses) > _FEW:
            values = elf64.column(self._table, "Q", 1, 3)
            return compress(range(len(values)), map(addresses.__contains__, values))
        # For a few addresses whole columns of bytes are compared at once, as masks in large integers.
        fits = -1
        for place in range(3):
            wanted = bytes((address >> 8 * place) & 0xFF for address in addresses)
            mask = bytes(byte in wanted for byte in range(256))
            fits &= int.from_bytes(self._table[_VALUE_OFFSET + place :: size].translate(mask), "little")
        return compress(range(len(self)), fits.to_bytes(len(self), "little"))

    def names_at(self, addresses: Iterable[int]) -> dict[int, str]:
        """The name of the best symbol that starts at each address, see `at`; 0 is NULL and has none."""
        return {address: symbol.name for address, symbol in self.at(set(addresses) - {0}).items()}

    def _numbers_of(self, type_: int) -> Iterator[int]:
        infos = self._table[4 :: elf64.SYMBOL.size]
        return (number for number, info in enumerate(infos) if info & 0xF == type_)

    def containing(self, address: int, type_: int = elf64.STT_FUNC) -> Symbol | None:
        """The function, or the symbol of another type, whose extent covers the address, or None."""
        if type_ not in self._by_type:
            values = elf64.column(self._table, "Q", 1, 3)
            pairs = sorted((values[number], number) for number in self._numbers_of(type_))
            self._by_type[type_] = ([value for value, _ in pairs], [number for _, number in pairs])
        starts, numbers = self._by_type[type_]
        position = bisect_right(starts, address) - 1
        # Aliases and nested extents (a function's cold part, `__pfx_` symbols) stand next to each other.
        for nearby in range(position, max(position - 4, -1), -1):
            for symbol in self._symbols((numbers[nearby],)):
                if symbol.address <= address < symbol.address + symbol.size:
                    return symbol
        return None

    def function_names(self) -> list[str]:
        """The names of all defined functions, for suggestions after a misspelt one."""
        return [symbol.name for symbol in self._symbols(self._numbers_of(elf64.STT_FUNC))]


# Up to this many addresses the masks of bytes are selective.
_FEW = 32
_VALUE_OFFSET = 8
# Names share their ends, so many long ones fit in a small table: more than any file has, less than fills memory.
MOST_NAMES = 1 << 28
_NO_PLACES = frozenset({elf64.STT_SECTION, elf64.STT_FILE, elf64.STT_TLS})
_FUNCTIONS = frozenset({elf64.STT_FUNC, elf64.STT_GNU_IFUNC})

NO_SYMBOLS = SymbolTable(b"", b"")


class Relocation(NamedTuple):
    """A dynamic relocation of one 8-byte slot.

    `file_offset` is the entry's place in the file, or None for one packed in `.relr.dyn`, where the slot's
    own bytes are the value. `symbol` is the dynamic symbol's name, empty for a relative one.
    """

    type: int
    file_offset: int | None
    addend: int
    symbol: str


class Placement(NamedTuple):
    """Where the parts of a relocatable object are pretended to be, so that it can be read like a linked file.

    `bases` has the address of each section by its number, 0 for what is not loaded; `addresses` that of each symbol
    by its number, undefined ones included, which get places of their own. `end` is the first address behind all.
    Every base is a multiple of its section's alignment, and means nothing beyond that. `file` is the object.
    """

    file: "ObjectFile"
    bases: "array[int]"
    addresses: "array[int]"
    undefined: Mapping[int, int]
    end: int


class Image:
    """A linked ELF64 x86-64 file, or a relocatable object placed as if it were linked.

    Its tables are in memory, everything else is still in the file.

    Addresses are linked addresses, offsets are file offsets, both in bytes. Nothing here changes after it
    was built.
    """

    __slots__ = (
        "_load_starts",
        "_loads",
        "_places",
        "build_id",
        "elf_type",
        "path",
        "placement",
        "relocations",
        "sections",
        "segments",
        "source",
        "symbols",
    )

    def __init__(  # noqa: PLR0913 - the fields of one value, all by keyword
        self,
        *,
        path: "Path",
        source: ByteSource,
        elf_type: int,
        sections: tuple[Section, ...],
        segments: tuple[Segment, ...],
        symbols: SymbolTable,
        relocations: Mapping[int, Relocation],
        build_id: str | None,
        placement: "Placement | None" = None,
    ) -> None:
        self.path = path
        self.source = source
        self.elf_type = elf_type
        self.sections = sections
        self.segments = segments
        self.symbols = symbols
        self.relocations = relocations
        self.build_id = build_id
        self.placement = placement
        self._places = sorted(
            (section.address, section.number)
            for section in sections
            if section.flags & elf64.SHF_ALLOC and not section.flags & elf64.SHF_TLS and section.size
        )
        self._loads = sorted(
            (segment for segment in segments if segment.type == elf64.PT_LOAD and segment.file_size),
            key=lambda segment: segment.address,
        )
        self._load_starts = [segment.address for segment in self._loads]

    @property
    def kernel(self) -> bool:
        """Whether this is a kernel or a part of one: they, and nothing else, are linked in the upper half."""
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

    def read_each(self, addresses: Iterable[int], size: int) -> Iterator[tuple[int, int, bytes]]:
        """Read up to `size` bytes at each of many linked addresses; they should come in ascending order.

        Gives (address, file offset, bytes); fewer bytes where a segment's file part ends, none with offset
        -1 for an address that the file does not hold.
        """
        start = stop = delta = window_start = window_stop = 0
        window = b""
        for address in addresses:
            if not start <= address < stop:
                segment = self.load_at(address)
                if segment is None:
                    yield address, -1, b""
                    continue
                start, stop = segment.address, segment.address + segment.file_size
                delta = segment.offset - start
                window_start = window_stop = 0
            if not window_start <= address <= window_stop - size:
                window_start, window_stop = address, min(address + _WINDOW, stop)
                window = self.source.read(address + delta, window_stop - window_start)
            at = address - window_start
            yield address, address + delta, window[at : at + size]

    def in_file(self, offset: int, code: bytes) -> bytes:
        """Code as it is in the file, where an object's displacements are not filled in yet."""
        return code if self.placement is None else self.placement.file.data[offset : offset + len(code)]

    def where(self, address: int) -> str:
        """An address in words: section and offset in an object, where addresses are pretended."""
        if self.placement is None or not self._places:
            return f"{address:#x}"
        start, number = self._places[max(bisect_right(self._places, (address, len(self.sections))) - 1, 0)]
        return f"{self.sections[number].name}{address - start:+#x}"

    def names_at(self, addresses: Iterable[int]) -> dict[int, str]:
        """The name of the best symbol at each address; in an object whatever has no symbol is named by its section."""
        wanted = set(addresses) - {0}
        names = self.symbols.names_at(wanted)
        nameless = wanted - names.keys() if self.placement is not None else ()
        return names | {address: self.where(address) for address in nameless}

    def section_at(self, address: int) -> Section | None:
        """The section that covers a linked address; sections that only exist in memory do not count."""
        position = bisect_right(self._places, (address, len(self.sections))) - 1
        section = self.sections[self._places[position][1]] if position >= 0 else None
        return section if section and section.contains(address) else None

    def alignment_known(self, section: Section) -> int:
        """A section's alignment if that is all that is known of its address; 0 in a linked image, where it is final."""
        if self.placement is None:
            return 0
        alignment = section.alignment
        return alignment if alignment and not alignment & (alignment - 1) else 1

    def section_named(self, names: Iterable[str]) -> Section | None:
        """The first section with one of these names, in the order of the names."""
        return next((section for name in names for section in self.sections if section.name == name), None)
