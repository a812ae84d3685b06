"""The few x86-64 instructions that a static call is ever made of.

    e8 rel32            call f
    2e e8 rel32         cs call f               a prefix that does nothing, see NO_EFFECT_PREFIXES
    ff 15 disp32        call *slot(%rip)
    e9 rel32            jmp f
    eb rel8             jmp f
    0f 80..8f rel32     jcc f
    70..7f rel8         jcc f
    ff 25 disp32        jmp *slot(%rip)
    c3                  ret

A displacement counts from the end of the instruction. Source: Intel SDM volume 2, CALL, JMP, Jcc, RET,
and section 2.1.1 on prefixes.
"""

from __future__ import annotations

from functools import cache
from struct import Struct
from typing import Final

from staticcall.abi.static_call import NOP5, RET0_FORMS, WARN_TRAP
from staticcall.model.form import Form, Instruction

CALL_REL32: Final = 0xE8
JMP_REL32: Final = 0xE9
JMP_REL8: Final = 0xEB
RET: Final = 0xC3
INT3: Final = 0xCC
TWO_BYTE: Final = 0x0F
JCC_REL32: Final = range(0x80, 0x90)
JCC_REL8: Final = range(0x70, 0x80)
GROUP5: Final = 0xFF
GROUP5_CALL_RIP: Final = 0x15
GROUP5_JMP_RIP: Final = 0x25

CALL_SIZE: Final = 5
JMP_SIZE: Final = 5
JCC_SIZE: Final = 6
REL32_SIZE: Final = 4

# Segment overrides, address size and REX: on a near call with rel32 none of them changes anything. Operand
# size (66) truncates the target, and f2 and f3 have meanings of their own (BND, REP), so they are left out.
NO_EFFECT_PREFIXES: Final = frozenset({0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x67, *range(0x40, 0x50)})

# All prefixes there are, those with an effect included; a byte of them before an opcode may belong to it.
ANY_PREFIXES: Final = NO_EFFECT_PREFIXES | {0x66, 0xF0, 0xF2, 0xF3}

MAX_INSTRUCTION: Final = 15
# Displacements wrap around the ends of the address space.
ADDRESS_MASK: Final = (1 << 64) - 1

_RET_PADDED: Final = bytes([RET, INT3, INT3, INT3, INT3])
# Opcode and displacement of a call or jmp without prefixes.
BRANCH: Final = Struct("<Bi")
_PLAIN_BRANCHES: Final = {CALL_REL32: Form.CALL, JMP_REL32: Form.TAIL_JMP}
# What a call site holds instead of a call. The xor begins with prefixes, so it is asked for before they are skipped.
_WHOLE: Final = {NOP5: Form.NOP, **dict.fromkeys(RET0_FORMS, Form.RET0), WARN_TRAP: Form.WARN_TRAP}


def _relative(code: bytes, at: int, width: int) -> int:
    return int.from_bytes(code[at : at + width], "little", signed=True)


def decode(code: bytes, address: int) -> Instruction:
    """Decode the instruction that starts at `address`.

    `code` holds its bytes and may hold more. Anything that a static call is not made of comes back as
    `Form.UNKNOWN` with the length of all bytes that a site may occupy.
    """
    if len(code) >= CALL_SIZE:
        first, displacement = BRANCH.unpack_from(code)
        form = _PLAIN_BRANCHES.get(first)
        if form is not None:  # nearly all there are, so first
            return Instruction(form, CALL_SIZE, 0, address + CALL_SIZE + displacement & ADDRESS_MASK)
    opcode = 0
    while (form := _WHOLE.get(code[opcode : opcode + CALL_SIZE])) is None:
        if opcode >= len(code) or code[opcode] not in NO_EFFECT_PREFIXES:
            return _decode_opcode(code, address, opcode) or Instruction(Form.UNKNOWN, min(5, len(code)), 0)
        opcode += 1
    return Instruction(form, opcode + CALL_SIZE, opcode)


def _decode_opcode(code: bytes, address: int, opcode: int) -> Instruction | None:
    rest = code[opcode:]
    if len(rest) < 1:
        return None
    first, second = rest[0], rest[1] if len(rest) > 1 else -1
    if first == RET and opcode == 0:
        return Instruction(Form.RET, 5 if code[:5] == _RET_PADDED else 1, 0)
    if first in (CALL_REL32, JMP_REL32):
        form = Form.TAIL_JMP if first == JMP_REL32 else Form.PREFIXED_CALL if opcode else Form.CALL
        return _branch(form, code, address, opcode, opcode_size=1)
    if first == TWO_BYTE and second in JCC_REL32:
        return _branch(Form.JCC, code, address, opcode, opcode_size=2)
    if first == JMP_REL8:
        return _branch(Form.SHORT_JMP, code, address, opcode, opcode_size=1, width=1)
    if first in JCC_REL8:
        return _branch(Form.JCC, code, address, opcode, opcode_size=1, width=1)
    if first == GROUP5 and second in (GROUP5_CALL_RIP, GROUP5_JMP_RIP):
        form = Form.INDIRECT_CALL if second == GROUP5_CALL_RIP else Form.INDIRECT_JMP
        branch = _branch(form, code, address, opcode, opcode_size=2)
        return branch and branch._replace(destination=None, slot=branch.destination)
    return None


def _branch(
    form: Form, code: bytes, address: int, opcode: int, *, opcode_size: int, width: int = REL32_SIZE
) -> Instruction | None:
    length = opcode + opcode_size + width
    if len(code) < length:
        return None
    destination = address + length + _relative(code, length - width, width)
    return Instruction(form, length, opcode, destination & ADDRESS_MASK)


def rel32(end: int, target: int) -> bytes:
    """The displacement from the end of an instruction to its target; raises `OverflowError` past 2 GiB."""
    return (target - end).to_bytes(REL32_SIZE, "little", signed=True)


def encode_call(address: int, target: int) -> bytes:
    """`call target` at `address`, 5 bytes; raises `OverflowError` past 2 GiB."""
    return bytes([CALL_REL32]) + rel32(address + CALL_SIZE, target)


def encode_jmp(address: int, target: int) -> bytes:
    """`jmp target` at `address`, 5 bytes; raises `OverflowError` past 2 GiB."""
    return bytes([JMP_REL32]) + rel32(address + JMP_SIZE, target)


def retarget(code: bytes, address: int, target: int) -> bytes:
    """The same call, jmp or jcc with rel32 (`code`, exactly one instruction) leading to another target.

    Prefixes, opcode and condition stay. Raises `OverflowError` past 2 GiB.
    """
    return code[:-REL32_SIZE] + rel32(address + len(code), target)


def placements(address: int, alignment: int, period: int) -> range:
    """Every address modulo `period` that a place may end up at, if only its section's alignment is known.

    Both are powers of two; an `alignment` of 0 says that the address is final.
    """
    if not alignment or alignment >= period:
        return range(address % period, address % period + 1)
    return range(address % alignment, period, alignment)


def crosses_anywhere(address: int, size: int, block: int, alignment: int) -> bool | None:
    """As `crosses`, over every placement that the alignment allows; None where it depends on the final address."""
    if not alignment:
        return crosses(address, size, block)
    alignment = min(alignment, block)
    return _crosses_anywhere(address % alignment, size, block, alignment)


@cache
def _crosses_anywhere(offset: int, size: int, block: int, alignment: int) -> bool | None:
    answers = {crosses(place, size, block) for place in placements(offset, alignment, block)}
    return answers.pop() if len(answers) == 1 else None


def crosses(address: int, size: int, block: int) -> bool:
    """Whether `size` bytes at `address` touch more than one aligned block of `block` bytes."""
    return address // block != (address + size - 1) // block
