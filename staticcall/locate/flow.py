"""What functions are called with: the registers at calls, followed through a function in one pass.

Only what compilers make of constant arguments is understood:

    48 c7 c7 imm32   mov $x,%rdi           48 8d 3d disp32   lea x(%rip),%rdi
    bf imm32         mov $x,%edi           48 8b 3d disp32   mov x(%rip),%rdi
    31 ff            xor %edi,%edi         48 8b 78 disp8    mov 8(%rax),%rdi
    48 89 d7         mov %rdx,%rdi         48 0f 44 fa       cmove %rdx,%rdi

Forward jumps carry their registers to where they lead, and where paths meet a register has the values of both; after
a backward jump a value may be missing. What is not understood makes its register unknown.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from staticcall.abi import x86
from staticcall.abi.lengths import instruction_length
from staticcall.model.form import Form, Instruction, Word

_RAX, _RCX, _RDX, _RSI, _RDI = 0, 1, 2, 6, 7
# The registers of the first arguments, in their order, and those that a call does not keep. Source: AMD64 psABI, 3.2.
ARGUMENTS: Final = (_RDI, _RSI, _RDX, _RCX)
_CLOBBERED: Final = (_RAX, _RCX, _RDX, _RSI, _RDI, 8, 9, 10, 11)
_KEPT: Final = (3, 5, 12, 13, 14, 15)
# More values than this are as good as unknown ones.
_MOST_VALUES: Final = 32

_LEA, _LOAD, _STORE, _MOVE_IMMEDIATE, _POP = 0x8D, 0x8B, 0x89, 0xC7, range(0x58, 0x60)
_SHORT_IMMEDIATE: Final = range(0xB8, 0xC0)
_XOR: Final = (0x31, 0x33)
_CONDITIONAL_MOVE: Final = range(0x40, 0x50)
# Two operands, the first changed: the register (reg) or, at the even and odd places before, the other one (rm).
_CHANGES_REG: Final = frozenset({0x03, 0x0B, 0x13, 0x1B, 0x23, 0x2B, 0x63, 0x69, 0x6B, 0x8A})
_CHANGES_RM: Final = frozenset({0x01, 0x09, 0x11, 0x19, 0x21, 0x29, 0x81, 0x83, 0x88, 0xC1, 0xD1, 0xD3, 0xF7})
_TWO_BYTE_CHANGES: Final = frozenset({0xAF, 0xB6, 0xB7, 0xBE, 0xBF, 0xBC, 0xBD, 0xB8})
_RIP_RELATIVE: Final = 5
# Up to so many bytes after a function's start (those of endbr64) a call is the profiler's: __fentry__.
_PROFILED: Final = 4
# What branches begin with; the compiler puts no prefix in front of one, but for those of the padding.
_BRANCHING: Final = frozenset(
    {x86.CALL_REL32, x86.JMP_REL32, x86.JMP_REL8, x86.RET, x86.TWO_BYTE, x86.GROUP5, *x86.JCC_REL8}
    | (x86.NO_EFFECT_PREFIXES - {*range(0x40, 0x50)})
)
_ANY: Final = Instruction(Form.UNKNOWN, 0, 0)
_ENDING: Final = frozenset({Form.TAIL_JMP, Form.SHORT_JMP, Form.INDIRECT_JMP, Form.RET})


class Kind(Word):
    """What is known of a value."""

    CONSTANT = "constant"
    LOADED = "loaded"
    FIELD = "field"
    ARGUMENT = "argument"
    UNKNOWN = "unknown"


class Value(NamedTuple):
    """A value in a register.

    CONSTANT: `number` itself. LOADED: what is in memory at `number`. FIELD: what is `offset` bytes behind where the
    pointer at `number` leads. ARGUMENT: the function's own argument `number`, counted from 0.
    """

    kind: Kind
    number: int = 0
    offset: int = 0


Values = frozenset[Value]
UNKNOWN: Final[Values] = frozenset({Value(Kind.UNKNOWN)})
_Registers = list[Values]


class Call(NamedTuple):
    """A call or jump, and what the argument registers hold by then.

    `start` is that of the function around. `near` are the addresses that instructions since the last call may name,
    relative to themselves or as they are: of variables and functions, or of constants where the compiler put those
    aside; many are none. `kept` are the constants in registers that calls keep.
    """

    address: int
    start: int
    destination: int
    arguments: tuple[Values, ...]
    near: frozenset[int]
    kept: frozenset[int]


def follow(code: bytes, address: int) -> Iterator[Call]:
    """Every direct call, and every direct jump, of one function whose code is at `address`."""
    registers = [UNKNOWN] * 16
    for number, register in enumerate(ARGUMENTS):
        registers[register] = frozenset({Value(Kind.ARGUMENT, number)})
    waiting: dict[int, _Registers] = {}
    near: set[int] = set()
    reached = True
    at = 0
    while at < len(code):
        length = instruction_length(code, at)
        if length is None:
            return
        here = address + at
        if here in waiting:
            arriving = waiting.pop(here)
            registers = _merged(registers, arriving) if reached else arriving
            reached = True
        elif not reached:
            # Only a backward or indirect jump leads here, or nothing does.
            registers, reached = [UNKNOWN] * 16, True
        branches = code[at] in _BRANCHING
        instruction = x86.decode(code[at : at + length], here) if branches else _ANY
        destination = instruction.destination
        if destination is not None:
            arguments = tuple(registers[number] for number in ARGUMENTS)
            kept = {value.number for number in _KEPT for value in registers[number] if value.kind is Kind.CONSTANT}
            yield Call(here, address, destination, arguments, frozenset(near), frozenset(kept))
        if destination is not None and here < destination < address + len(code):
            waiting[destination] = _merged(waiting.get(destination, registers), registers)
        reached = not _ends(code, at, instruction.form)
        if at <= _PROFILED and instruction.form is Form.CALL:
            # The profiler's hook at the entry keeps every register.
            at += length
            continue
        if instruction.form is Form.CALL:
            near.clear()
        elif destination is None and length > x86.REL32_SIZE:
            last = int.from_bytes(code[at + length - x86.REL32_SIZE : at + length], "little", signed=True)
            near |= {here + length + last & x86.ADDRESS_MASK, last & x86.ADDRESS_MASK}
        _step(registers, code, at, length, here)
        at += length


def _ends(code: bytes, at: int, form: Form) -> bool:
    """Whether the next instruction is not what runs next."""
    return form in _ENDING or code[at] == x86.INT3


def _merged(one: _Registers, other: _Registers) -> _Registers:
    return [a if a == b else a | b if len(a | b) <= _MOST_VALUES else UNKNOWN for a, b in zip(one, other, strict=True)]


def _step(registers: _Registers, code: bytes, at: int, length: int, here: int) -> None:
    """What one instruction does to the registers."""
    rex = code[at] if code[at] in range(0x40, 0x50) else 0
    place = at + bool(rex)
    opcode = code[place]
    end = here + length
    if opcode == x86.CALL_REL32 or (opcode == x86.GROUP5 and code[place + 1] >> 3 & 7 == 2):
        for register in _CLOBBERED:
            registers[register] = UNKNOWN
    elif opcode in _SHORT_IMMEDIATE:
        number = int.from_bytes(code[place + 1 : at + length], "little")
        registers[opcode & 7 | (rex & 1) << 3] = frozenset({Value(Kind.CONSTANT, number)})
    elif opcode in _POP:
        registers[opcode & 7 | (rex & 1) << 3] = UNKNOWN
    elif opcode == x86.TWO_BYTE:
        _step_two_byte(registers, code, place, rex)
    elif place + 1 < at + length:
        _step_operands(registers, code[place : at + length], rex, end)


def _step_two_byte(registers: _Registers, code: bytes, place: int, rex: int) -> None:
    second = code[place + 1]
    if second not in _CONDITIONAL_MOVE and second not in _TWO_BYTE_CHANGES:
        return
    modrm = code[place + 2]
    reg, rm = _reg(modrm, rex), _rm(modrm, rex)
    moved = registers[rm] if second in _CONDITIONAL_MOVE and modrm >> 6 == 3 else UNKNOWN
    registers[reg] = registers[reg] | moved if second in _CONDITIONAL_MOVE else UNKNOWN


def _step_operands(registers: _Registers, code: bytes, rex: int, end: int) -> None:
    """An instruction with modrm; `code` starts at its opcode, `end` is the address behind it."""
    opcode, modrm = code[0], code[1]
    reg, rm, direct = _reg(modrm, rex), _rm(modrm, rex), modrm >> 6 == 3
    wide = bool(rex & 8)
    if opcode == _MOVE_IMMEDIATE and direct:
        number = int.from_bytes(code[2:6], "little", signed=wide) & x86.ADDRESS_MASK
        registers[rm] = frozenset({Value(Kind.CONSTANT, number)})
    elif opcode in _XOR and direct and reg == rm:
        registers[rm] = frozenset({Value(Kind.CONSTANT, 0)})
    elif opcode in (_LEA, _LOAD) and not direct:
        registers[reg] = _addressed(registers, code, modrm, rm, end, load=opcode == _LOAD) if wide else UNKNOWN
    elif opcode == _LOAD:
        registers[reg] = registers[rm] if wide else UNKNOWN
    elif opcode == _STORE:
        if direct:
            registers[rm] = registers[reg] if wide else UNKNOWN
    elif opcode in _CHANGES_REG:
        registers[reg] = UNKNOWN
    elif direct and (opcode in _CHANGES_RM or opcode in _XOR):
        registers[rm] = UNKNOWN


def _addressed(registers: _Registers, code: bytes, modrm: int, rm: int, end: int, *, load: bool) -> Values:
    """The value of lea or mov from memory, where its address is that of a variable or of a field behind one."""
    mode = modrm >> 6
    if mode == 0 and modrm & 7 == _RIP_RELATIVE:
        address = end + int.from_bytes(code[2:6], "little", signed=True) & x86.ADDRESS_MASK
        return frozenset({Value(Kind.LOADED if load else Kind.CONSTANT, address)})
    if not load or modrm & 7 == 4:
        return UNKNOWN
    offset = int.from_bytes(code[2 : 2 + (0, 1, 4)[mode]], "little", signed=True)
    return frozenset(_field(value, offset) for value in registers[rm])


def _field(base: Value, offset: int) -> Value:
    if base.kind is Kind.LOADED:
        return Value(Kind.FIELD, base.number, offset)
    if base.kind is Kind.CONSTANT:
        return Value(Kind.LOADED, base.number + offset & x86.ADDRESS_MASK)
    return Value(Kind.UNKNOWN)


def _reg(modrm: int, rex: int) -> int:
    return modrm >> 3 & 7 | (rex & 4) << 1


def _rm(modrm: int, rex: int) -> int:
    return modrm & 7 | (rex & 1) << 3


def constants(values: Iterable[Value]) -> frozenset[int]:
    """The constants among some values."""
    return frozenset(value.number for value in values if value.kind is Kind.CONSTANT)
