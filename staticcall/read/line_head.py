"""The heads of line programs, and what is asked of a program.

Source: DWARF 5, section 6.2.4, and DWARF 4 for the heads before it.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from staticcall.abi import dwarf as abi
from staticcall.abi import elf64

# The largest of a kernel has 0.3 MB; a larger one is none that a compiler made of one source.
_LARGEST: Final = 1 << 22
# As many standard opcodes as DWARF 2 had.
_FEWEST: Final = 9
# A special opcode moves the line on by less.
_MOST_SPECIAL: Final = 128


class DamagedError(Exception):
    """The data is no line program, or one of a kind that is not read."""


class Shape(NamedTuple):
    """What the opcodes of a program mean; `arguments` are their numbers, from opcode 1 on."""

    line_base: int
    line_range: int
    arguments: bytes


class Program(NamedTuple):
    """One line program: where it is in `.debug_line` and what its head says."""

    version: int
    wide: int
    tables: int
    start: int
    end: int
    shape: Shape


class Wanted(NamedTuple):
    """An address, and the place of the LINE_SET_ADDRESS whose sequence may know it."""

    address: int
    place: int


class Row(NamedTuple):
    """The number of a file and a line in it."""

    file: int
    line: int


def read_program(data: bytes, at: int, end: int, wide: int) -> Program:
    """The head of the unit of `.debug_line` whose version is at `at`; raises `DamagedError`."""
    version = int.from_bytes(data[at : at + 2], "little")
    at += 2
    if version >= 5:
        if data[at : at + 2] != bytes((elf64.POINTER_SIZE, 0)):
            raise DamagedError
        at += 2
    start = at + wide + int.from_bytes(data[at : at + wide], "little")
    at += wide
    head = data[at : at + 6]
    if version < 4:
        head = head[:1] + b"\1" + head[1:5]
    if not 2 <= version <= 5 or len(head) < 6 or not at < start <= end or end - at > _LARGEST:
        raise DamagedError
    instruction, operations, _, base, line_range, first = head
    at += 6 if version >= 4 else 5
    arguments = data[at : at + first - 1] if first else b""
    usual = arguments[: len(abi.LINE_ARGUMENTS)]
    if (
        (instruction, operations) != (1, 1)
        or not line_range
        or usual != abi.LINE_ARGUMENTS[: len(usual)]
        or len(usual) < _FEWEST
        or max(arguments) > 1
    ):
        raise DamagedError
    line_base = base - ((base & 0x80) << 1)
    if line_base + line_range > _MOST_SPECIAL:
        raise DamagedError
    shape = Shape(line_base, line_range, arguments)
    return Program(version, wide, at + len(arguments), start, end, shape)
