"""The shapes that an instruction at a site can have: all of a site that an object's annotation needs."""

from enum import StrEnum
from typing import NamedTuple


class Word(StrEnum):
    """A closed set of words. Hashed as the strings they are: an enum's own way costs a Python call each time."""

    __hash__ = str.__hash__


class Form(Word):
    """The shapes an instruction at a site can have; the values are part of the public JSON."""

    CALL = "call"
    PREFIXED_CALL = "prefixed_call"
    INDIRECT_CALL = "indirect_call"
    TAIL_JMP = "tail_jmp"
    INDIRECT_JMP = "indirect_jmp"
    JCC = "jcc"
    SHORT_JMP = "short_jmp"
    NOP = "nop"
    RET = "ret"
    RET0 = "ret0"
    WARN_TRAP = "warn_trap"
    UNKNOWN = "unknown"


class Instruction(NamedTuple):
    """One decoded instruction.

    `opcode` is the opcode's offset from the first byte, so the number of prefixes; `destination` is where a
    direct branch leads; `slot` is the address that an indirect one reads its destination from.
    """

    form: Form
    length: int
    opcode: int
    destination: int | None = None
    slot: int | None = None
