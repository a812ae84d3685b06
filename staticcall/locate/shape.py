"""The table of static calls by its shape alone, for an image that names it nowhere.

A record is two fields of 32 bits, each relative to its own address. The first leads to an instruction in code, the
second, its two flags removed, to an aligned key in data. Other tables have records of which that is true as well, but
not what a static call makes of it:

    the instruction branches to a trampoline, and the trampoline goes where the key's `func` says    unpatched
    the instruction branches to `func`                                                               patched
    the instruction is the nop, the xor or the return that stands for what `func` says               patched

The table is a run of records in which nearly all are so, from the first that is to the last. A record of
`.static_call_tramp_key`, which stands behind, leads to a trampoline itself and so to no site.

All fields of all data are looked at, together: a few machine instructions for each, then more for the few that are
left. Nothing is guessed: where two runs, or one with many doubtful records, might be the table, none is. Two fields
of another table may happen to lead to a call and to a key, so a few of those do not count beside a long run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from staticcall.abi import elf64, static_call, x86
from staticcall.errors import MalformedError
from staticcall.locate.code import code_runs
from staticcall.model.image import Image
from staticcall.model.sites import Finding, Severity, Table

ORIGIN = "shape"

_Words = npt.NDArray[np.uint32]
_Wide = npt.NDArray[np.uint64]
_Mask = npt.NDArray[np.bool_]
_Bytes = npt.NDArray[np.uint8]

_FIELD = 4
_LOW = (1 << 32) - 1
# The largest sections of a kernel, which hold no such table.
_NO_TABLES = (".BTF", ".orc_unwind", ".orc_unwind_ip")
# Of ten records that stand together so many have to be certain.
_CERTAIN_OF_TEN = 8
# How many pairs of fields next to each other may look like records by chance, and how many times as many the table has.
_BY_CHANCE = 4
_MANY_MORE = 32
_MOST_RUNS = 1 << 10
# Records that are looked at together: what bounds the memory.
_AT_ONCE = 1 << 18
# Sections nearer to each other than this are one extent at first.
_NEAR = 1 << 16
_MOST_EXTENTS = 16
# Pieces of data, each of which is looked through by itself; no image has as many.
_MOST_PIECES = 1 << 12

# Of the prefixes that a call may have one is looked through.
_PREFIXES = sorted(x86.NO_EFFECT_PREFIXES)
_FIRST = np.zeros(256, dtype=bool)
_FIRST[
    [x86.CALL_REL32, x86.JMP_REL32, x86.TWO_BYTE, x86.RET, *_PREFIXES, *(form[0] for form in static_call.RET0_FORMS)]
] = True


class _Extent(NamedTuple):
    """Linked addresses from `start` up to, not including, `stop`."""

    start: int
    stop: int


class _Run(NamedTuple):
    """Bytes of the file and the linked address of the first one."""

    address: int
    data: _Bytes


class _Found(NamedTuple):
    """A run of records: its extent, how many there are, how many are certain, and how many lead to a function."""

    extent: _Extent
    records: int
    certain: int
    branches: int

    @property
    def good(self) -> bool:
        """Whether nearly all records are certain."""
        return self.certain * 10 >= self.records * _CERTAIN_OF_TEN

    def beside(self, other: _Found) -> bool:
        """Whether another one is so much smaller that it has come about by chance."""
        return other.certain <= _BY_CHANCE and self.certain >= _MANY_MORE * other.certain


def table_by_shape(image: Image) -> tuple[Table | None, tuple[Finding, ...]]:
    """Find the table in a linked image; a finding says why there is none where something looks like one.

    Raises `MalformedError` where the headers are damaged.
    """
    pieces = len(image.sections) or len(image.segments)
    if pieces > _MOST_PIECES:
        message = f"nothing names the table of sites, and {pieces} pieces are too many to look for it"
        return None, (Finding("ambiguous-table", Severity.WARNING, f"{message}; --table says where it is", None),)
    shape = _Shape(image)
    found = [table for run in _data_runs(image) for table in shape.tables_in(run) if table.branches]
    found.sort(key=lambda table: (-table.certain, table.extent))
    if not found:
        return None, ()
    if found[0].good and all(found[0].beside(other) for other in found[1:]):
        return Table(*found[0].extent, ORIGIN), ()
    places = ", ".join(f"{start:#x}:{stop:#x}" for (start, stop), *_ in found[:4])
    what = "several places look" if len(found) > 1 else "a place with doubtful records looks"
    message = f"{what} like the table of sites, and nothing names it: {places}; --table says where it is"
    return None, (Finding("ambiguous-table", Severity.WARNING, message, found[0].extent.start),)


class _Memory:
    """Bytes by linked address, asked for by many addresses at once; where two runs overlap, the later one counts."""

    def __init__(self, runs: Iterable[_Run], zeros: Sequence[_Extent] = ()) -> None:
        runs = sorted((run for run in runs if len(run.data)), key=lambda run: run.address)
        sizes = np.array([len(run.data) for run in runs], dtype=np.int64)
        self._starts = np.array([run.address for run in runs], dtype=np.uint64)
        self._sizes = sizes
        self._places = np.cumsum(sizes) - sizes
        self._bytes = np.concatenate([run.data for run in runs]) if runs else np.zeros(0, np.uint8)
        filled = [_Extent(run.address, run.address + len(run.data)) for run in runs]
        self._zeros = np.array(_joined(zeros, 0), dtype=np.uint64).reshape(-1, 2)
        extents = _joined([*filled, *zeros], _NEAR)
        # Each costs a look at every word.
        self._extents = extents if len(extents) <= _MOST_EXTENTS else [_Extent(extents[0].start, extents[-1].stop)]

    def near(self, addresses: _Words) -> _Mask:
        """Which addresses, of which the lower halves are given, may lie in here."""
        found = np.zeros(len(addresses), dtype=bool)
        for start, stop in self._extents:
            found |= addresses - np.uint32(start & _LOW) < np.uint32(min(stop - start, _LOW))
        return found

    def at(self, addresses: _Wide, width: int, least: int = 0) -> tuple[_Bytes, _Mask]:
        """The bytes at each address, a row of `width` for each, and which addresses have so many.

        With `least` so many are enough at the end of what there is, and zeros stand for the rest, as for all unknown.
        """
        rows = np.zeros((len(addresses), width), dtype=np.uint8)
        known = np.zeros(len(addresses), dtype=bool)
        numbers = np.searchsorted(self._starts, addresses, side="right") - 1
        asked = np.flatnonzero(numbers >= 0)
        numbers = numbers[asked]
        room = self._sizes[numbers] - (least or width)
        places = addresses[asked] - self._starts[numbers]
        inside = (room >= 0) & (places <= np.maximum(room, 0).astype(np.uint64))
        asked, numbers = asked[inside], numbers[inside]
        at = places[inside].astype(np.int64)[:, None] + np.arange(width)
        data = self._bytes.take(self._places[numbers][:, None] + at, mode="clip") if len(asked) else rows[:0]
        rows[asked] = np.where(at < self._sizes[numbers][:, None], data, 0)
        known[asked] = True
        numbers = np.searchsorted(self._zeros[:, 0], addresses, side="right") - 1
        asked = np.flatnonzero(numbers >= 0)
        known[asked] |= addresses[asked] < self._zeros[numbers[asked], 1]
        return rows, known


def _joined(extents: Iterable[_Extent], gap: int) -> list[_Extent]:
    """The extents in order, those no farther from each other than `gap` as one."""
    joined: list[_Extent] = []
    for start, stop in sorted(extents):
        if joined and start <= joined[-1].stop + gap:
            joined[-1] = _Extent(joined[-1].start, max(stop, joined[-1].stop))
        else:
            joined.append(_Extent(start, stop))
    return joined


class _Shape:
    """What is asked of each run of data: which of its words are records."""

    def __init__(self, image: Image) -> None:
        self.image = image
        self.code = _Memory(_Run(run.address, np.frombuffer(run.data, np.uint8)) for run in code_runs(image))
        self.data = _Memory(_data_runs(image, _NO_TABLES if image.sections else ()), tuple(_zeros(image)))

    def tables_in(self, run: _Run) -> Iterator[_Found]:
        """Every run of records that has a certain one."""
        lead = -run.address % _FIELD
        words = np.frombuffer(
            run.data[lead:].tobytes(), "<u4", (len(run.data) - lead) // _FIELD if lead < len(run.data) else 0
        )
        if len(words) < 2:
            return
        start = run.address + lead
        resolved = words + (np.arange(len(words), dtype=np.uint32) * np.uint32(_FIELD) + np.uint32(start & _LOW))
        # Keys are aligned to 8 bytes, and the flags are below.
        keys = (resolved[1:] & np.uint32(4) == 0) & self.data.near(resolved[1:] & np.uint32(~3 & _LOW))
        likely = np.flatnonzero(self.code.near(resolved[:-1]) & keys)
        del resolved, keys
        for phase in (0, 1):
            yield from self._runs_of(start, words, likely[likely & 1 == phase])

    def _runs_of(self, start: int, words: _Words, likely: npt.NDArray[np.intp]) -> Iterator[_Found]:
        certain, branches, homes = self._judged(start, words, likely)
        if not branches.any():
            return
        numbers = np.cumsum(np.diff(likely, prepend=likely[:1]) != 2)
        groups, sizes = np.unique(numbers[certain], return_counts=True)
        # Of runs without number, which only a file made for it has, the longest are enough to say no.
        for number in groups[np.argsort(-sizes, kind="stable")][:_MOST_RUNS].tolist():
            own = np.arange(*np.searchsorted(numbers, (number, number + 1)))
            sites = np.uint64(start) + likely[own].astype(np.uint64) * np.uint64(_FIELD) + _signed(words[likely[own]])
            good = certain[own] & ~self._trampolines(homes[own], sites)
            if not (good & branches[own]).any():
                continue
            kept = np.flatnonzero(good)
            first, last = int(kept[0]), int(kept[-1])
            ends = start + _FIELD * int(likely[own[first]]), start + _FIELD * int(likely[own[last]])
            extent = _Extent(ends[0], ends[1] + static_call.RECORD_SIZE)
            yield _Found(extent, last - first + 1, len(kept), int((good & branches[own]).sum()))

    def _trampolines(self, homes: _Wide, sites: _Wide) -> _Mask:
        """Which sites are trampolines themselves: signed, or between those that other records lead to."""
        code, _ = self.code.at(sites, static_call.TRAMPOLINE_SIZE)
        signed = _signatures(code)
        homes = homes[homes > 0]
        if not len(homes):
            return signed
        among: _Mask = (sites >= homes.min()) & (sites <= homes.max())
        return signed | among

    def _judged(self, start: int, words: _Words, likely: npt.NDArray[np.intp]) -> tuple[_Mask, _Mask, _Wide]:
        """Of each record whether it is certain, whether it branches, and which trampoline it leads to or 0."""
        certain = np.zeros(len(likely), dtype=bool)
        branches = certain.copy()
        homes = np.zeros(len(likely), dtype=np.uint64)
        for first in range(0, len(likely), _AT_ONCE):
            part = likely[first : first + _AT_ONCE]
            places = np.uint64(start) + part.astype(np.uint64) * np.uint64(_FIELD)
            sites = places + _signed(words[part])
            keys = (places + np.uint64(_FIELD) + _signed(words[part + 1])) & np.uint64(-4 & x86.ADDRESS_MASK)
            code, known = self.code.at(sites, 1)
            left = np.flatnonzero(known & _FIRST[code[:, 0]])
            if len(left):
                answer = self._sites(sites[left], keys[left])
                certain[first + left], branches[first + left], homes[first + left] = answer
        return certain, branches, homes

    def _sites(self, sites: _Wide, keys: _Wide) -> tuple[_Mask, _Mask, _Wide]:
        """The same, for addresses of sites and of keys."""
        code, known = self.code.at(sites, x86.JCC_SIZE, x86.JMP_SIZE)
        funcs, stored = self._funcs(keys)
        known &= stored
        plain = np.isin(code[:, 0], (x86.CALL_REL32, x86.JMP_REL32))
        jcc = (code[:, 0] == x86.TWO_BYTE) & (code[:, 1] & 0xF0 == x86.JCC_REL32.start)
        prefixed = np.isin(code[:, 0], _PREFIXES) & np.isin(code[:, 1], (x86.CALL_REL32, x86.JMP_REL32))
        longer = jcc | prefixed
        ends = sites + np.where(longer, np.uint64(x86.JCC_SIZE), np.uint64(x86.JMP_SIZE))
        destinations = ends + np.where(longer, _field(code, 2), _field(code, 1))
        leads = known & (plain | longer)
        by_home, sure = self._agrees(destinations, keys, funcs)
        by_home &= leads
        direct = leads & (funcs == destinations) & (funcs != 0)
        stands = np.zeros(len(sites), dtype=bool)
        for form in (static_call.NOP5, static_call.RET_SITE):
            stands |= _starts(code, form) & (funcs == 0)
        for form in static_call.RET0_FORMS:
            stands |= _starts(code, form) & (funcs != 0)
        stands |= leads & (funcs == 0) & self._returns(destinations)
        return by_home | direct | known & stands, by_home & sure | direct, np.where(by_home, destinations, np.uint64(0))

    def _agrees(self, homes: _Wide, keys: _Wide, funcs: _Wide) -> tuple[_Mask, _Mask]:
        """Where a trampoline is that goes where its key says, see `locate/trampolines.py`, and which are one for sure.

        What returns may be anything, unless it is signed.
        """
        code, known = self.code.at(homes, static_call.TRAMPOLINE_SIZE)
        onward = homes + np.uint64(x86.JMP_SIZE) + _field(code, 1)
        jumps = (code[:, 0] == x86.JMP_REL32) | ((code[:, 0] == x86.CALL_REL32) & (code[:, 5] == x86.RET))
        to_func = jumps & (onward == funcs) & (funcs != 0)
        returns = (code[:, 0] == x86.RET) | (jumps & self._returns(onward))
        returns &= funcs == 0
        indirect = _starts(code, static_call.INDIRECT_TRAMPOLINE)
        indirect &= homes + np.uint64(x86.JCC_SIZE) + _field(code, 2) == keys
        return known & (to_func | returns | indirect), to_func | indirect | _signatures(code)

    def _returns(self, addresses: _Wide) -> _Mask:
        code, known = self.code.at(addresses, 1)
        known &= code[:, 0] == x86.RET
        return known

    def _funcs(self, keys: _Wide) -> tuple[_Wide, _Mask]:
        """What each key leads to at first, and which keys there are."""
        rows, known = self.data.at(keys, elf64.POINTER_SIZE)
        funcs = rows.view("<u8").reshape(-1).astype(np.uint64)
        if self.image.relocations:
            for number, key in enumerate(keys.tolist()):
                relocation = self.image.relocations.get(key)
                if relocation is not None and relocation.file_offset is not None:
                    funcs[number] = relocation.addend & x86.ADDRESS_MASK
        return funcs, known


def _signed(fields: _Words) -> _Wide:
    return fields.view(np.int32).astype(np.int64).view(np.uint64)


def _starts(code: _Bytes, form: bytes, at: int = 0) -> _Mask:
    """Which rows have these bytes at an offset."""
    found: _Mask = (code[:, at : at + len(form)] == np.frombuffer(form, np.uint8)).all(axis=1)
    return found


def _signatures(code: _Bytes) -> _Mask:
    """Which rows of eight bytes are signed as trampolines are."""
    found = _starts(code, static_call.INDIRECT_SIGNATURE, static_call.INDIRECT_SIGNATURE_OFFSET)
    found &= _starts(code, static_call.INDIRECT_TRAMPOLINE)
    for signature in static_call.SIGNATURES:
        found |= _starts(code, signature, static_call.SIGNATURE_OFFSET)
    return found


def _field(code: _Bytes, at: int) -> _Wide:
    """The displacement at an offset of each row."""
    return _signed(np.ascontiguousarray(code[:, at : at + _FIELD]).view("<u4").reshape(-1))


def _data_runs(image: Image, without: tuple[str, ...] = _NO_TABLES) -> Iterator[_Run]:
    """The data that the file stores: by sections, or of a file without them by segments, code included."""
    places = [
        (s.address, s.offset, s.size)
        for s in image.sections
        if s.flags & elf64.SHF_ALLOC
        and not s.flags & (elf64.SHF_EXECINSTR | elf64.SHF_TLS)
        and s.type != elf64.SHT_NOBITS
        and s.name not in without
    ]
    if not image.sections:
        places = [(s.address, s.offset, s.file_size) for s in image.segments if s.type == elf64.PT_LOAD]
    if sum(size for _, _, size in places) > image.source.size:
        raise MalformedError("sections overlap", advice="the section headers are damaged")
    for address, offset, size in places:
        yield _Run(address, np.frombuffer(image.source.read(offset, size), np.uint8))


def _zeros(image: Image) -> Iterator[_Extent]:
    """Memory that the file does not store."""
    for segment in image.segments:
        if segment.type == elf64.PT_LOAD and segment.memory_size > segment.file_size:
            yield _Extent(segment.address + segment.file_size, segment.address + segment.memory_size)
