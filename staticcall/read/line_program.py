"""Line programs of DWARF, decoded all at once: numpy finds the opcodes of a million bytes and adds up what they do.

Where an opcode begins only those before it tell, and a kernel has millions of them: an interpreter takes ten seconds.
So the bytes are cut into blocks, and for each byte of all blocks at a time it is worked out, from the last byte of
the blocks to the first, where one would come out of the block who took it for an opcode. Then one step for each block
tells which byte is its first opcode, and all blocks are walked through at a time.
Nothing here is trusted: what is damaged has no lines, or lines of its own.
Source: DWARF 5, sections 6.2.2 and 6.2.5.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from staticcall.abi import dwarf as abi
from staticcall.abi import elf64
from staticcall.read.line_head import Program, Row, Shape, Wanted

_BLOCK: Final = 128
# More than the longest opcode; together with a block still a byte.
_LONGEST: Final = 120
_LONGEST_LEB: Final = 9
# Of those, that an addition takes.
_VALUE_BYTES: Final = 8
_MOST_LINES: Final = 1 << 32
# No sequence is longer: x86 calls reach no further.
_FARTHEST: Final = 1 << 31
_NOWHERE: Final = np.iinfo(np.intp).max
# A row is made every few bytes.
_MOST_BACK: Final = 256
_SET_ADDRESS: Final = len(abi.LINE_SET_ADDRESS)
_BYTES = npt.NDArray[np.uint8]
_MASK = npt.NDArray[np.bool_]
_PLACES = npt.NDArray[np.intp]
_NUMBERS = npt.NDArray[np.int64]
_SUMS = npt.NDArray[np.int32]


def rows_of(data: bytes, programs: Sequence[Program], wanted: Sequence[Sequence[Wanted]]) -> list[dict[int, Row]]:
    """For each of some programs of one shape the rows of those addresses wanted of it that it knows.

    A place that is wanted may be none where a sequence begins, but part of something else.
    """
    tape = _Tape(data, programs)
    found: list[dict[int, Row]] = [{} for _ in programs]
    everything = [one for own in wanted for one in own]
    owners = [number for number, own in enumerate(wanted) for _ in own]
    for one, number, row in zip(everything, owners, tape.rows(data, programs, owners, everything), strict=True):
        if row is not None:
            found[number].setdefault(one.address, row)
    return found


class _Tape:
    """Some programs one behind the other, each from the begin of a block on: `firsts` are the places."""

    def __init__(self, data: bytes, programs: Sequence[Program]) -> None:
        pieces: list[bytes] = []
        self.firsts: Final[list[int]] = []
        size = 0
        for program in programs:
            self.firsts.append(size)
            piece = data[program.start : program.end]
            pieces += (piece, bytes((abi.LINE_COPY,)) * (-len(piece) % _BLOCK))
            size += len(piece) + len(pieces[-1])
        pieces.append(bytes(_LONGEST))
        # Reading over the end reads zeros.
        self._bytes = np.frombuffer(b"".join(pieces), np.uint8)
        shape = programs[0].shape
        self._first = len(shape.arguments) + 1
        self._is_opcode = is_opcode = _opcodes(self._bytes, size, shape, self.firsts)
        extended = np.flatnonzero((self._bytes[:size] == 0) & is_opcode)
        self._ends = self._those(extended, abi.LINE_END)
        self._sets = self._those(extended, abi.LINE_SET_ADDRESS)
        # What is no opcode is 0 from here on, which moves on nothing.
        opcodes = self._bytes[:size] * is_opcode
        self._files = np.flatnonzero(opcodes == abi.LINE_FILE)
        self._addresses, self._lines = self._sums(opcodes, shape)

    def _those(self, places: _PLACES, code: bytes) -> _PLACES:
        """Where an extended opcode is a certain one."""
        chosen: _PLACES = places[(self._bytes[places + 1] == code[1]) & (self._bytes[places + 2] == code[2])]
        return chosen

    def _sums(self, opcodes: _BYTES, shape: Shape) -> tuple[_SUMS, _SUMS]:
        """How far the opcodes before each byte move on address and line, all programs together."""
        special = np.arange(256) - self._first
        special_addresses, special_lines = np.divmod(special, shape.line_range)
        special_lines += shape.line_base
        special_addresses[: self._first] = 0
        special_lines[: self._first] = 0
        special_addresses[abi.LINE_CONSTANT_ADDRESS] = (255 - self._first) // shape.line_range
        addresses = np.empty(len(opcodes) + 1, np.int32)
        lines = np.empty(len(opcodes) + 1, np.int32)
        addresses[0] = lines[0] = 0
        # Far faster than looking up indices.
        spelt = opcodes.tobytes()
        addresses[1:] = np.frombuffer(spelt.translate(special_addresses.astype(np.uint8).tobytes()), np.uint8)
        lines[1:] = np.frombuffer(spelt.translate(special_lines.astype(np.int8).tobytes()), np.int8)
        places = np.flatnonzero(opcodes == abi.LINE_ADVANCE_ADDRESS) + 1
        addresses[places] = _lebs(self._bytes, places, signed=False)
        places = np.flatnonzero(opcodes == abi.LINE_FIXED_ADDRESS) + 1
        addresses[places] = self._bytes[places] + self._bytes[places + 1] * np.int32(256)
        places = np.flatnonzero(opcodes == abi.LINE_ADVANCE_LINE) + 1
        lines[places] = _lebs(self._bytes, places, signed=True)
        # What overflows is damaged: neither code nor a source of 2 GiB has lines.
        return np.cumsum(addresses, out=addresses), np.cumsum(lines, out=lines)

    def _last_row(self, places: _PLACES) -> _PLACES:
        """The last opcode before each place that makes a row, -1 where it is far away."""
        found = np.full(len(places), -1)
        left = np.arange(len(places))
        for back in range(1, _MOST_BACK):
            left = left[places[left] >= back]
            tried = places[left] - back
            opcodes = self._bytes[tried]
            good = self._is_opcode[tried] & ((opcodes == abi.LINE_COPY) | (opcodes >= self._first))
            found[left[good]] = tried[good]
            left = left[~good]
            if not len(left):
                break
        return found

    def rows(
        self, data: bytes, programs: Sequence[Program], owners: Sequence[int], wanted: Sequence[Wanted]
    ) -> Iterator[Row | None]:
        """The row of each wanted address by the program that owns it, None where that does not know it."""
        firsts = np.array([self.firsts[number] for number in owners], np.intp)
        lasts = firsts + np.array([programs[number].end - programs[number].start for number in owners], np.intp)
        shifts = [self.firsts[number] - programs[number].start for number in owners]
        places = np.array([one.place + shift for one, shift in zip(wanted, shifts, strict=True)], np.intp)
        moves = [min(one.address - _address(data, one.place), _FARTHEST) for one in wanted]
        # A place may lie in a head, and then is none.
        inside = (places >= firsts) & (places < lasts)
        places = np.where(inside, places, firsts)
        # The opcode that goes on over the address, and the last row before it.
        over = np.searchsorted(self._addresses, self._addresses[places] + moves, "right") - 1
        rows = self._last_row(over)
        ends = np.minimum(_behind(self._ends, places), _behind(self._sets, places))
        # What begins with the program begins behind an end as well.
        starts = np.maximum(_before(self._ends, places), firsts)
        files = _before(self._files, rows)
        numbers = np.where(files >= starts, _lebs(self._bytes, np.maximum(files, 0) + 1, signed=False), 1)
        lines = 1 + self._lines[rows + 1] - self._lines[starts]
        known = inside & (_behind(self._sets, places - 1) == places)
        known &= (rows > places) & (over < ends) & (ends < lasts) & (lines > 0) & (lines < _MOST_LINES)
        for good, file, line in zip(known.tolist(), numbers.tolist(), lines.tolist(), strict=True):
            yield Row(file, line) if good else None


def _address(data: bytes, place: int) -> int:
    """The address that is set at a place."""
    return int.from_bytes(data[place + _SET_ADDRESS : place + _SET_ADDRESS + elf64.POINTER_SIZE], "little")


def _before(places: _PLACES, others: _PLACES) -> _PLACES:
    """The last of some ascending places before each of others, -1 where there is none."""
    if not len(places):
        return np.full(len(others), -1)
    numbers = np.searchsorted(places, others) - 1
    return np.where(numbers < 0, -1, places[numbers])


def _behind(places: _PLACES, others: _PLACES) -> _PLACES:
    """The first of some ascending places behind each of others, far away where there is none."""
    if not len(places):
        return np.full(len(others), _NOWHERE)
    numbers = np.searchsorted(places, others, "right")
    return np.where(numbers == len(places), _NOWHERE, places[np.minimum(numbers, len(places) - 1)])


def _lebs(data: _BYTES, places: _PLACES, *, signed: bool) -> _NUMBERS:
    """The LEB128 numbers at places, of those that are too long the first 56 bits."""
    pieces = data[places]
    values = (pieces & 0x7F).astype(np.int64)
    if signed:
        values[(pieces & 0xC0) == 0x40] -= 0x80
    left = np.flatnonzero(pieces >= 0x80)
    for number in range(1, _VALUE_BYTES):
        if not len(left):
            break
        more = data[places[left] + number].astype(np.int64)
        values[left] |= (more & 0x7F) << 7 * number
        if signed:
            values[left[(more & 0xC0) == 0x40]] -= 1 << 7 * (number + 1)
        left = left[more >= 0x80]
    return values


def _opcodes(data: _BYTES, size: int, shape: Shape, firsts: Sequence[int]) -> _MASK:
    """Which of the first `size` bytes, whole blocks, are opcodes; those at `firsts` are."""
    blocks = size // _BLOCK
    width = np.intp(blocks)
    columns = np.arange(blocks)
    # A row for each byte of the blocks, so that a byte's number grows by the blocks' with each byte on.
    lengths = np.ascontiguousarray(_lengths(data, size, shape).reshape(blocks, _BLOCK).T)
    # How far behind its block one comes out; twice as many rows, for who is out already.
    out = np.empty((2 * _BLOCK, blocks), np.uint8)
    out[_BLOCK:] = np.arange(_BLOCK, dtype=np.uint8)[:, None]
    every = out.reshape(-1)
    for row in range(_BLOCK - 1, -1, -1):
        every.take(lengths[row] * width + (columns + row * width), out=out[row], mode="clip")
    exits = out[:_BLOCK].tobytes()
    starts = {first // _BLOCK for first in firsts}
    entries = bytearray(blocks)
    entry = 0
    for block in range(blocks):
        entry = 0 if block in starts else entry
        entries[block] = entry
        entry = exits[entry * blocks + block]
    found = np.zeros(_BLOCK * blocks, np.bool_)
    places = np.frombuffer(entries, np.uint8) * width + columns
    steps = lengths.reshape(-1)
    while len(places):
        found[places] = True
        places += steps[places] * width
        places = places[places < len(found)]
    return np.ascontiguousarray(found.reshape(_BLOCK, blocks).T).reshape(-1)


def _lengths(data: _BYTES, size: int, shape: Shape) -> _BYTES:
    """For each of the first `size` bytes how long it is as an opcode, with its arguments."""
    opcodes = data[:size]
    table = bytes((1, *(count + 1 for count in shape.arguments))).ljust(256, b"\1")
    lengths = np.frombuffer(bytearray(opcodes.tobytes().translate(table)), np.uint8)
    longer = np.flatnonzero((lengths > 1) & (data[1 : size + 1] >= 0x80))
    for count in range(2, _LONGEST_LEB + 1):
        if not len(longer):
            break
        lengths[longer] += 1
        longer = longer[data[longer + count] >= 0x80]
    lengths[opcodes == abi.LINE_FIXED_ADDRESS] = 3
    extended = np.flatnonzero(opcodes == 0)
    lengths[extended] = np.minimum(data[extended + 1], _LONGEST - 2) + 2
    return lengths
