"""A memory image: an ELF core whose bytes stay in the file until somebody asks."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

from staticcall.model.image import ByteSource

# Neighbouring reads in address order are served from one large one.
_WINDOW = 1 << 17


class Area(NamedTuple):
    """Bytes of memory in the core, at a virtual and at a physical address; `memory_size` counts those left out too."""

    virtual: int
    physical: int
    offset: int
    file_size: int
    memory_size: int


class Note(NamedTuple):
    """One note of the core."""

    name: bytes
    type: int
    data: bytes


class Mapping(NamedTuple):
    """A part of a file in a process's memory: start, end, offset in the file in bytes, and its path."""

    start: int
    stop: int
    file_offset: int
    path: str


class _Space:
    """Areas by one of their addresses; where some overlap, that which starts first counts."""

    def __init__(self, areas: Iterable[tuple[int, Area]]) -> None:
        self._areas: list[tuple[int, Area]] = []
        stop = 0
        for start, area in sorted(areas, key=lambda one: (one[0], -one[1].file_size)):
            hidden = max(stop - start, 0)
            if hidden >= area.file_size:
                continue
            stop = start + area.file_size
            rest = area._replace(offset=area.offset + hidden, file_size=area.file_size - hidden) if hidden else area
            self._areas.append((start + hidden, rest))
        self._starts = [start for start, _ in self._areas]

    def at(self, address: int) -> tuple[int, Area] | None:
        """The last area that starts at the address or before."""
        position = bisect_right(self._starts, address) - 1
        return self._areas[position] if position >= 0 else None

    def pieced(self, source: ByteSource, address: int, size: int) -> bytes:
        """Bytes that may lie in several areas; none where one of them is missing."""
        pieces = []
        while size:
            place = self.at(address)
            if place is None or address >= place[0] + place[1].file_size:
                return b""
            count = min(size, place[0] + place[1].file_size - address)
            pieces.append(source.read(place[1].offset + address - place[0], count))
            address += count
            size -= count
        return b"".join(pieces)


class Core:
    """A memory image. Its headers and notes are in memory; what is asked for the first time is kept."""

    def __init__(self, source: ByteSource, areas: tuple[Area, ...], notes: tuple[Note, ...]) -> None:
        self.source = source
        self.areas = areas
        self.notes = notes
        self._virtual = _Space((area.virtual, area) for area in areas)
        extents = sorted((area.virtual, area.virtual + area.memory_size) for area in areas)
        self._memory_starts = [start for start, _ in extents]
        self._memory_stops = list(accumulate((stop for _, stop in extents), max))

    @cached_property
    def _physical(self) -> _Space:
        return _Space((area.physical, area) for area in self.areas)

    def read(self, address: int, size: int, *, physical: bool) -> bytes:
        """The bytes at an address, none where the core does not hold all of them."""
        return (self._physical if physical else self._virtual).pieced(self.source, address, size)

    def read_each(self, addresses: Iterable[int], size: int, *, physical: bool) -> Iterator[bytes]:
        """`size` bytes at each of many addresses, which should ascend; none where the core lacks some of them."""
        space = self._physical if physical else self._virtual
        start = stop = shift = window_start = window_stop = 0
        window = b""
        for address in addresses:
            if not (start <= address and address + size <= stop):
                place = space.at(address)
                if place is None or address + size > place[0] + place[1].file_size:
                    yield space.pieced(self.source, address, size)
                    continue
                start, stop = place[0], place[0] + place[1].file_size
                shift = place[1].offset - start
                window_start = window_stop = 0
            if not (window_start <= address and address + size <= window_stop):
                window_start, window_stop = address, max(min(address + _WINDOW, stop), address + size)
                window = self.source.read(address + shift, window_stop - window_start)
            at = address - window_start
            yield window[at : at + size]

    def mapped(self, address: int) -> bool:
        """Whether there was memory at a virtual address, in the core or not."""
        position = bisect_right(self._memory_starts, address) - 1
        return position >= 0 and address < self._memory_stops[position]
