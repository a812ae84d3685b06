"""The names that a kernel carries for itself, found in an image that has no symbol table left.

CONFIG_KALLSYMS puts tables into `.rodata`, each aligned to eight bytes. Nothing points at them but code, so they are
found by what they must be:

    num_syms      a 32-bit count, or 64 bits of it until 4.19
    names         for each symbol the length of its name in one byte, from 6.1 on also in two, and that many codes
    markers       where each 256th symbol begins in names, 32 bits, or 64 until 4.19
    token_table   256 texts, each with a zero byte behind it: what the codes stand for; a name's first letter is nm's
    token_index   where each text begins in token_table, 16 bits
    offsets       where the symbols are, in ascending order, in one of four ways

The first five stand in this order. Three bytes for each symbol, its place by name, may stand between markers and texts
(6.2, 6.3, late 6.1). The addresses are before all of them until 6.3 and behind them since: as 64-bit addresses (until
4.5, and where they are not relative), as 32-bit offsets from a base in 64 bits behind them, without a sign or, for
kernels with absolute per-CPU symbols (until 6.14), with one: what is not negative is an address, all else is -1 -
offset away from the base. The newest kernels (7.2) have offsets from the offsets' own places and no base; with no
64-bit numbers left, they align tables to four bytes.

A table of texts whose index agrees is rare; counts, markers, names and addresses must all agree as well. Where more
than one reading does, there are no names, rather than wrong ones. Source: scripts/kallsyms.c and kernel/kallsyms.c,
Linux 4.4 to 7.2.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from functools import reduce
from itertools import accumulate, compress, count, islice
from operator import add, ge, invert, le, or_
from typing import Final, NamedTuple

from staticcall.abi import elf64
from staticcall.abi.x86 import ADDRESS_MASK
from staticcall.model.image import ByteSource, Section, Segment
from staticcall.read.listing import LETTERS, TEXT_LETTERS, Listing
from staticcall.read.spelling import LONGEST, Spelling

_ALIGNMENT: Final = 8
# Kernels whose tables have no 64-bit numbers any more align them to four bytes.
_UNITS: Final = (_ALIGNMENT, 4)
_TOKENS: Final = 256
_INDEX_SIZE: Final = 2 * _TOKENS
# Every character that a name has stands for itself, and every kernel's names have all digits.
_DIGITS: Final = b"".join(b"%d\0" % digit for digit in range(10))
_ZERO: Final = ord("0")
_CHUNK: Final = 256
# No kernel has more symbols.
# A kernel has one, and alphabets that look similar. Who wants to keep us busy may have many.
_MOST_TABLES: Final = 1024
# Of what agrees there is one; more than this are looked at no further.
_MOST_AGREEING: Final = 4
_MOST_WORK: Final = 1 << 23
# The letter of nm's is before a name, and a length of two bytes belongs to it.
_LONGEST: Final = LONGEST + 1 + 2
# With its share of all tables up to the texts.
_MOST_EACH: Final = _LONGEST + 8 + 4
_IS_NONE: Final = bytes(byte == 0 for byte in range(256))
_IS_SOME: Final = bytes(byte != 0 for byte in range(256))
_IS_TEXT: Final = bytes(byte in TEXT_LETTERS for byte in range(256))


class _Region(NamedTuple):
    """A part of the file that begins at a multiple of eight, and its linked address."""

    address: int
    data: bytes


class _Tokens(NamedTuple):
    """The texts, the offset where their table begins and that where their index ends, and how tables are aligned."""

    start: int
    end: int
    texts: list[bytes]
    unit: int


class _Names(NamedTuple):
    """Where the count is, and where the codes of each name begin and end."""

    at: int
    bodies: list[int]
    ends: list[int]


def read_kallsyms(source: ByteSource, sections: Sequence[Section], segments: Sequence[Segment]) -> Listing | None:
    """The names in the kernel's own tables; None where there are none, or no certain ones."""
    loads = [segment for segment in segments if segment.type == elf64.PT_LOAD]
    code = _code(sections, loads)
    for region in _regions(source, sections, loads):
        found = [
            listing
            for tokens in islice(_token_tables(region.data), _MOST_AGREEING)
            for listing in _listings(region, tokens, code)
        ]
        if found:
            return found[0] if len(found) == 1 else None
    return None


def _regions(source: ByteSource, sections: Sequence[Section], loads: Sequence[Segment]) -> Iterator[_Region]:
    """Where the tables may be: in read-only data; without section headers, anywhere."""
    stored = [s for s in sections if s.type == elf64.SHT_PROGBITS and s.flags & elf64.SHF_ALLOC and s.name == ".rodata"]
    places = [(s.address, s.offset, s.size) for s in stored] or [(s.address, s.offset, s.file_size) for s in loads]
    left = source.size  # parts that overlap are not read over and over
    for address, offset, size in places:
        skipped = -address % _ALIGNMENT
        if skipped < size <= left:
            left -= size
            yield _Region(address + skipped, source.read(offset + skipped, size - skipped))


def _aligned(offset: int, unit: int) -> int:
    return offset + unit - 1 & -unit


def _token_tables(data: bytes) -> Iterator[_Tokens]:
    """Every table of texts whose index agrees with it."""
    place = data.find(_DIGITS)
    for _ in range(_MOST_TABLES):
        if place < 0:
            return
        end = place
        for _ in range(_TOKENS - _ZERO):
            end = data.find(b"\0", end, place + (1 << 16)) + 1
            if not end:
                break
        for unit in _UNITS if end else ():
            at = _aligned(end, unit)
            if at + _INDEX_SIZE <= len(data):
                index = elf64.column(data[at : at + _INDEX_SIZE], "H", 0, 1)
                start = place - index[_ZERO]
                texts = data[start : end - 1].split(b"\0") if start >= 0 and not start % unit else []
                lengths = [len(text) + 1 for text in texts]
                if (
                    len(texts) == _TOKENS
                    and max(lengths) <= LONGEST + 1
                    and list(accumulate(lengths, initial=0))[:-1] == list(index)
                ):
                    yield _Tokens(start, at + _INDEX_SIZE, texts, unit)
        place = data.find(_DIGITS, place + 1)


def _listings(region: _Region, tokens: _Tokens, code: Sequence[range]) -> Iterator[Listing]:
    """Every way to read the tables around one of texts in which all agrees."""
    for names in islice(_name_tables(region.data, tokens.start, tokens.unit), _MOST_AGREEING):
        spelling = Spelling(region.data, names.bodies, names.ends, tokens.texts)
        if not spelling.complete or spelling.letters.translate(None, LETTERS):
            continue
        for addresses in _addresses(region, names, tokens):
            if _plausible(addresses, spelling.letters, code):
                yield Listing(addresses, spelling.letters, spelling.initials(), spelling.offsets(), spelling)


def _name_tables(data: bytes, stop: int, unit: int) -> Iterator[_Names]:
    """Every table of names in front of an offset whose count and markers agree with it."""
    left = _MOST_WORK
    for number in _counts(data, stop, unit):
        start = unit * (number + 1)
        symbols = int.from_bytes(data[start - unit : start], "little")
        if not 2 * symbols <= stop - start <= _MOST_EACH * (symbols + 1):
            continue
        for markers, width in _marker_tables(data, start, symbols, stop, unit):
            bodies, ends = _walk(data, start, markers, symbols, width)
            left -= len(bodies) + 1
            if len(ends) < symbols and any(body - end > 1 for body, end in zip(bodies, [start, *ends], strict=False)):
                bodies, ends = _walk(data, start, markers, symbols, width, one_byte=128)
                left -= len(bodies)
            if len(ends) == symbols and _aligned(ends[-1], unit) == markers and not any(data[ends[-1] : markers]):
                yield _Names(start - unit, bodies, ends)
            if left < 0:
                return


def _counts(data: bytes, stop: int, unit: int) -> Iterator[int]:
    """Numbers of the words that are no more than three bytes long, and not 0."""
    # Whole columns of bytes at once, as large integers: a kernel has half a million words there.
    low, high = (
        reduce(or_, (int.from_bytes(data[place:stop:unit], "little") for place in places))
        for places in (range(3), range(3, unit))
    )
    size = stop // unit
    fits = low.to_bytes(size, "little").translate(_IS_SOME), high.to_bytes(size, "little").translate(_IS_NONE)
    low, high = (int.from_bytes(column, "little") for column in fits)
    return compress(count(), (low & high).to_bytes(size, "little"))


def _marker_tables(data: bytes, start: int, symbols: int, stop: int, unit: int) -> Iterator[tuple[int, int]]:
    """Where the markers may begin for a count and names behind it, and how many bytes each has."""
    chunks = (symbols + _CHUNK - 1) // _CHUNK
    # A single marker is padded to eight bytes, so that its width does not matter.
    for width in (4, 8) if unit == 8 and chunks > 1 else (4,):
        behind = stop - _aligned(width * chunks, unit)
        for at in {behind, behind - _aligned(3 * symbols, unit)}:
            if start + 2 * symbols <= at <= start + _LONGEST * symbols + unit:
                first, second = data[at : at + width], data[at + width : at + 2 * width]
                if not any(first) and (
                    chunks == 1 or 2 * _CHUNK <= int.from_bytes(second, "little") <= _LONGEST * _CHUNK
                ):
                    yield at, width


def _walk(
    data: bytes, start: int, markers: int, symbols: int, width: int, one_byte: int = 127
) -> tuple[list[int], list[int]]:
    """Where the codes of each name begin, and where they end; fewer ends where that and the markers do not agree.

    A length of more than `one_byte` takes two: 127, or 128 in kernels before 6.1, which have nothing longer.
    """
    bodies: list[int] = []
    ends: list[int] = []
    begun, ended = bodies.append, ends.append
    place = start
    for first in range(0, symbols, _CHUNK):
        at = markers + first // _CHUNK * width
        if place - start != int.from_bytes(data[at : at + width], "little") or place >= markers:
            return bodies, ends
        for _ in range(min(_CHUNK, symbols - first)):
            length = data[place]
            place += 1
            if length > one_byte:
                length = length & 0x7F | data[place] << 7
                place += 1
            begun(place)
            place += length
            if not length or place > markers:
                return bodies, ends
            ended(place)
    return bodies, ends


def _addresses(region: _Region, names: _Names, tokens: _Tokens) -> Iterator[array[int]]:
    """Every way to read the addresses in which they ascend."""
    data, symbols = region.data, len(names.ends)
    narrow, wide = 4 * symbols, 8 * symbols
    if tokens.unit == _ALIGNMENT:
        # Behind the index, and before the count, where a base stands between.
        for at, base_at in (
            (tokens.end, _aligned(tokens.end + narrow, _ALIGNMENT)),
            (names.at - elf64.POINTER_SIZE - _aligned(narrow, _ALIGNMENT), names.at - elf64.POINTER_SIZE),
        ):
            if at >= 0 and base_at + elf64.POINTER_SIZE <= len(data):
                (base,) = elf64.POINTER.unpack_from(data, base_at)
                yield from _from_base(data[at : at + narrow], base)
        for at in (tokens.end, names.at - wide):
            if at >= 0 and at + wide <= len(data):
                yield from _ascending(elf64.column(data[at : at + wide], "Q", 0, 1), 0)
    if tokens.end + narrow <= len(data):
        offsets = elf64.column(data[tokens.end : tokens.end + narrow], "i", 0, 1)
        place = region.address + tokens.end
        places = range(place, place + narrow, 4)
        if all(map(le, map(add, offsets, places), map(add, islice(offsets, 1, None), places[1:]))):
            yield from _ascending(list(map(add, offsets, places)), 0)


def _from_base(offsets: bytes, base: int) -> Iterator[array[int]]:
    yield from _ascending(elf64.column(offsets, "I", 0, 1), base)
    # What is absolute comes first; all else falls from -1.
    signed = elf64.column(offsets, "i", 0, 1)
    absolute = next((number for number, offset in enumerate(signed) if offset < 0), len(signed))
    for first in _ascending(signed[:absolute], 0):
        if all(map(ge, signed[absolute:], signed[absolute + 1 :])):
            yield from (first + rest for rest in _ascending(list(map(invert, signed[absolute:])), base))


def _ascending(offsets: Sequence[int], base: int) -> Iterator[array[int]]:
    """The sums, if they are addresses and ascend."""
    if all(map(le, offsets, islice(offsets, 1, None))):
        if not offsets:
            yield array("Q")
        elif offsets[0] + base >= 0 and offsets[-1] + base <= ADDRESS_MASK:
            yield array("Q", map(base.__add__, offsets) if base else offsets)


def _plausible(addresses: array[int], letters: bytes, code: Sequence[range]) -> bool:
    """Whether the first and the last function are where code is."""
    functions = letters.translate(_IS_TEXT)
    first, last = functions.find(1), functions.rfind(1)
    return first >= 0 and all(
        any(part.start <= addresses[number] <= part.stop for part in code) for number in (first, last)
    )


def _code(sections: Sequence[Section], loads: Sequence[Segment]) -> list[range]:
    """Where instructions are: sections that run, or without headers segments that do."""
    found = [range(s.address, s.address + s.size) for s in sections if s.executable]
    return found or [range(s.address, s.address + s.memory_size) for s in loads if s.flags & elf64.PF_X]
