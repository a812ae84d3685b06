"""What the reader hands on: a linked ELF image whose bytes stay in the file until somebody asks."""

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple, Protocol

from staticcall.abi import elf64, module_layout
from staticcall.errors import MalformedError
from staticcall.model.symbols import SymbolTable

if TYPE_CHECKING:
    from pathlib import Path

    from staticcall.model.container import Layer
    from staticcall.model.object import ObjectFile
    from staticcall.model.placed_symbols import SymbolAddresses

# Small neighbouring reads in address order are served from one large one.
_WINDOW = 1 << 17
# In an object every read has relocations to apply.
_PLACED_WINDOW = 64


class ByteSource(Protocol):
    """Random access to the bytes of one file."""

    @property
    def size(self) -> int:
        """The file's size in bytes when it was opened."""
        ...

    def read(self, offset: int, size: int) -> bytes:
        """Return exactly `size` bytes from `offset`; raises `MalformedError` when the file ends before."""
        ...

    def whole(self) -> bytes:
        """All bytes, as they were at one moment."""
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
    Every base is a multiple of its section's alignment, and means nothing beyond that; but for the code of a module,
    in `predicted` by the numbers of its sections: their addresses are right modulo a page. `file` is the object.
    """

    file: "ObjectFile"
    bases: "array[int]"
    addresses: "SymbolAddresses"
    undefined: Mapping[int, int]
    end: int
    predicted: frozenset[int] = frozenset()


class NameSource(NamedTuple):
    """Where an image's names come from: `kind` is stable and kebab-case, `path` that of another file than its own.

    `symtab`, `dynsym`, `kallsyms`, `system-map`, `debug-file`, or `none`.
    """

    kind: str
    path: "Path | None" = None


NO_NAMES = NameSource("none")


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
        "layers",
        "name_source",
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
        layers: "tuple[Layer, ...]" = (),
        name_source: NameSource = NO_NAMES,
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
        # What the file is wrapped in; `source` has the bytes inside.
        self.layers = layers
        self.name_source = name_source
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
        most = _WINDOW if self.placement is None else max(size, _PLACED_WINDOW)
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
                window_start, window_stop = address, min(address + most, stop)
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
        """A section's alignment if that is all that is known of its address; 0 in a linked image, where it is final.

        Of a section of a module whose place in a page is predicted it is that of a page.
        """
        if self.placement is None:
            return 0
        if section.number in self.placement.predicted:
            return module_layout.PAGE
        alignment = section.alignment
        return alignment if alignment and not alignment & (alignment - 1) else 1

    def predicted(self, address: int) -> bool:
        """Whether a place in a module is known modulo a page, by what the kernel's loader does."""
        if self.placement is None or not self.placement.predicted:
            return False
        section = self.section_at(address)
        return section is not None and section.number in self.placement.predicted

    def section_named(self, names: Iterable[str]) -> Section | None:
        """The first section with one of these names, in the order of the names."""
        return next((section for name in names for section in self.sections if section.name == name), None)
