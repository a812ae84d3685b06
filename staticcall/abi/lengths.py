"""How long an x86-64 instruction is: its length in bytes and nothing else about it.

For telling whether a byte in front of an opcode is a prefix of it or the end of the instruction before.
Lengths are those of 64-bit mode on an Intel processor, where two manuals differ: see `d` below.

An instruction gets the length that its opcode's row in the map gives it, also where a field of it (the reg
field of a group, a prefix in front of VEX) is reserved: the processor fetches as much before it raises #UD.
Opcodes that the maps leave empty in 64-bit mode are no instructions. Neither are those of APX (REX2, EVEX map 4),
which no assembler of today's distributions makes.

Source: Intel SDM volume 2, sections 2.1 to 2.3 and 2.7 (format, REX, VEX, EVEX) and appendix A (opcode maps);
AMD64 manual volume 3, appendix A (3DNow, SSE4a), and volume 6 (XOP).
"""

from __future__ import annotations

from typing import Final

_MOST_BYTES: Final = 15

# One character for each opcode, sixteen to a row. Lower case: operands without modrm; upper case: with it.
#   .     nothing follows                  M     modrm, with SIB and displacement as it asks for
#   b     8 bits                           B     modrm, 8 bits
#   w     16 bits                          Z     modrm, 16 or 32 bits
#   e     24 bits (enter)                  T U   modrm, and for reg 0 and 1 (test) as B and Z
#   z     16 (with 66) or 32 bits          Q     modrm, 2 x 8 bits with 66 or f2 (extrq, insertq)
#   v     the same, 64 with REX.W          C     modrm that is a register whatever its mod says (mov cr, dr)
#   o     64 or (with 67) 32 bits (moffs)  -     no instruction in 64-bit mode
#   d     32 bits whatever the prefixes: near branches. With 66 an AMD processor takes 16; Intel's takes 32,
#         and so does the decoder of the Linux kernel.
#   p 6 7 2  prefixes: without a say in the length, 66, 67, f2          r R  REX without and with W
#   f x y X 8  what leads to another map: 0f, c4 and c5 (VEX), 62 (EVEX), 8f (pop or XOP)
_ONE_BYTE_MAP: Final = (
    "MMMMbz--MMMMbz-f"  # 00
    "MMMMbz--MMMMbz--"
    "MMMMbzp-MMMMbzp-"  # 20
    "MMMMbzp-MMMMbzp-"
    "rrrrrrrrRRRRRRRR"  # 40
    "................"
    "--XMpp67zZbB...."  # 60
    "bbbbbbbbbbbbbbbb"
    "BZ-BMMMMMMMMMMM8"  # 80
    "..........-....."
    "oooo....bz......"  # a0
    "bbbbbbbbvvvvvvvv"
    "BBw.xyBZe.w..b-."  # c0
    "MMMM---.MMMMMMMM"
    "bbbbbbbbdd-b...."  # e0
    "p.2p..TU......MM"
)
_TWO_BYTE_MAP: Final = (
    "MMMM-.....-.-M.B"  # 0f 00; 0f 0f is 3DNow, whose last byte is its opcode
    "MMMMMMMMMMMMMMMM"
    "CCCC----MMMMMMMM"  # 0f 20
    "......-.M-B-----"  # 0f 38 and 0f 3a: a map each, whose rows are all alike
    "MMMMMMMMMMMMMMMM"  # 0f 40
    "MMMMMMMMMMMMMMMM"
    "MMMMMMMMMMMMMMMM"  # 0f 60
    "BBBBMMM.QM--MMMM"
    "dddddddddddddddd"  # 0f 80
    "MMMMMMMMMMMMMMMM"
    "...MBMMM...MBMMM"  # 0f a0
    "MMMMMMMMMMBMMMMM"
    "MMBMBBBM........"  # 0f c0
    "MMMMMMMMMMMMMMMM"
    "MMMMMMMMMMMMMMMM"  # 0f e0
    "MMMMMMMMMMMMMMMM"
)

# What the prefixes have said so far, as bits; REX.W is forgotten when another prefix follows.
_OPERAND, _WIDE, _ADDRESS, _REPNE = 1, 2, 4, 8
# A kind, in one byte: _MODRM with the number of an immediate, or _LEADS with a number, or _PREFIX with the bits above.
_MODRM, _LEADS, _INVALID, _PREFIX = 0x20, 0x40, 0x60, 0x80

_NOTHING, _BYTE, _WORD, _ENTER, _DWORD, _Z, _V, _OFFSET, _TEST_BYTE, _TEST_Z, _TWO_BYTES, _REGISTER = range(12)
_KINDS: Final = {
    **dict(zip(".bwedzvo", range(_OFFSET + 1), strict=True)),
    **dict(zip("MBZTUQC", (_MODRM | n for n in (_NOTHING, _BYTE, _Z, *range(_TEST_BYTE, _REGISTER + 1))), strict=True)),
    **dict(zip("fxyX8", range(_LEADS, _LEADS + 5), strict=True)),
    **dict(zip("p672rR", (_PREFIX | n for n in (0, _OPERAND, _ADDRESS, _REPNE, 0, _WIDE)), strict=True)),
    "-": _INVALID,
}
_ESCAPE, _VEX3, _VEX2, _EVEX, _XOP = range(_LEADS, _LEADS + 5)
_POP: Final = _MODRM

_ONE_BYTE: Final = bytes(map(_KINDS.__getitem__, _ONE_BYTE_MAP))
_TWO_BYTE: Final = bytes(map(_KINDS.__getitem__, _TWO_BYTE_MAP))
_THIRD_MAPS: Final = {0x38: bytes([_MODRM]) * 256, 0x3A: bytes([_MODRM | _BYTE]) * 256}


def _vector_kind(opcode: int) -> int:
    """The kind of an opcode of map 1 behind VEX or EVEX: all have modrm, but for vzeroupper (77)."""
    kind = _TWO_BYTE[opcode]
    if opcode == 0x77:
        return _NOTHING
    return kind & (_MODRM | _BYTE) if kind < _LEADS and kind & _MODRM else _INVALID


# By the map number in the prefix.
_VECTOR: Final = {1: bytes(map(_vector_kind, range(256))), 2: _THIRD_MAPS[0x38], 3: _THIRD_MAPS[0x3A]}
_EVEX_MAPS: Final = {**_VECTOR, 5: _THIRD_MAPS[0x38], 6: _THIRD_MAPS[0x38]}
_XOP_MAPS: Final = {8: _THIRD_MAPS[0x3A], 9: _THIRD_MAPS[0x38], 10: bytes([_MODRM | _DWORD]) * 256}


def _immediates(state: int) -> bytes:
    """The size of every immediate under these prefixes."""
    z = 2 if state & (_OPERAND | _WIDE) == _OPERAND else 4
    v = 8 if state & _WIDE else z
    offset = 4 if state & _ADDRESS else 8
    return bytes([0, 1, 2, 3, 4, z, v, offset, 1, z, 2 if state & (_OPERAND | _REPNE) else 0, 0])


_IMMEDIATES: Final = tuple(map(_immediates, range(16)))


def _operand(modrm: int) -> int:
    """The size of modrm, SIB and displacement, but for the displacement that a SIB without base has."""
    mod, rm = modrm >> 6, modrm & 7
    if mod == 3:
        return 1
    displacement = (4 if rm == 5 else 0, 1, 4)[mod]
    return 1 + (rm == 4) + displacement


_OPERANDS: Final = bytes(map(_operand, range(256)))


def instruction_length(code: bytes, at: int = 0) -> int | None:
    """The length in bytes of the instruction that starts at `code[at]`, prefixes included.

    None where the bytes are no instruction of 64-bit mode, or `code` ends inside of it. `at` is not negative.
    """
    here, state = at, 0
    try:
        kind = _ONE_BYTE[code[here]]
        while kind >= _PREFIX:
            state = state & ~_WIDE | kind & ~_PREFIX
            here += 1
            if here - at == _MOST_BYTES:
                return None
            kind = _ONE_BYTE[code[here]]
        if kind >= _LEADS:
            here, kind = _follow(code, here, kind)
            if kind == _INVALID:
                return None
        here += 1
        if kind >= _MODRM:
            modrm = code[here]
            kind -= _MODRM
            if kind == _REGISTER:
                here += 1
            else:
                here += _OPERANDS[modrm]
                if modrm & 0xC7 == 4 and code[here - 1] & 7 == 5:
                    here += 4
                if modrm & 0x30 and _TEST_BYTE <= kind <= _TEST_Z:
                    kind = _NOTHING
        here += _IMMEDIATES[state][kind]
    except IndexError:
        return None
    return here - at if here <= len(code) and here - at <= _MOST_BYTES else None


def _follow(code: bytes, here: int, kind: int) -> tuple[int, int]:
    """Go to the map that the opcode at `here` leads to; returns the last opcode's place and kind."""
    second = code[here + 1]
    if kind == _ESCAPE:
        table = _THIRD_MAPS.get(second)
        return (here + 1, _TWO_BYTE[second]) if table is None else (here + 2, table[code[here + 2]])
    if kind == _VEX2:
        return here + 2, _VECTOR[1][code[here + 2]]
    if kind == _EVEX:
        # Two bits are fixed; APX gives them a meaning.
        table = _EVEX_MAPS.get(second & 15) if code[here + 2] & 4 else None
        return (here + 4, table[code[here + 4]]) if table else (here, _INVALID)
    if kind in (_VEX3, _XOP):
        number = second & 31
        if kind == _XOP and number < 8:
            return here, _POP
        table = (_XOP_MAPS if kind == _XOP else _VECTOR).get(number)
        return (here + 3, table[code[here + 3]]) if table else (here, _INVALID)
    return here, _INVALID
