"""DWARF's numbers, as far as the types of functions and the source lines of sites need them.

`.debug_info` is a sequence of units, each a header and a tree of entries (DIEs). An entry is the number of an
abbreviation, which is in `.debug_abbrev` and says the entry's tag and the form of each attribute, and then the
attributes' values without anything between them.

Source: DWARF 5, sections 7.5 and 6.2 (line programs), with the GNU forms that linkers and `dwz` put in place of others.
"""

from __future__ import annotations

from typing import Final

TAG_ARRAY, TAG_CLASS, TAG_ENUMERATION, TAG_PARAMETER, TAG_MEMBER, TAG_POINTER = 0x01, 0x02, 0x04, 0x05, 0x0D, 0x0F
TAG_REFERENCE, TAG_STRUCTURE, TAG_FUNCTION_TYPE, TAG_TYPEDEF, TAG_UNION = 0x10, 0x13, 0x15, 0x16, 0x17
TAG_VARIADIC, TAG_SUBRANGE, TAG_BASE, TAG_CONST, TAG_ENUMERATOR, TAG_SUBPROGRAM = 0x18, 0x21, 0x24, 0x26, 0x28, 0x2E
TAG_VOLATILE, TAG_RESTRICT, TAG_NAMESPACE, TAG_RVALUE_REFERENCE, TAG_ATOMIC = 0x35, 0x37, 0x39, 0x42, 0x47

AT_NAME, AT_BYTE_SIZE, AT_LOW_PC, AT_LANGUAGE, AT_CONST_VALUE = 0x03, 0x0B, 0x11, 0x13, 0x1C
AT_PROTOTYPED, AT_UPPER_BOUND, AT_ORIGIN, AT_COUNT, AT_DECLARATION = 0x27, 0x2F, 0x31, 0x37, 0x3C
AT_ENCODING, AT_SPECIFICATION, AT_TYPE, AT_SIGNATURE, AT_LINKAGE_NAME = 0x3E, 0x47, 0x49, 0x69, 0x6E
AT_STRINGS_BASE, AT_ADDRESSES_BASE, AT_VECTOR = 0x72, 0x73, 0x2107

FORM_ADDRESS, FORM_BLOCK2, FORM_BLOCK4, FORM_DATA2, FORM_DATA4, FORM_DATA8 = 0x01, 0x03, 0x04, 0x05, 0x06, 0x07
FORM_STRING, FORM_BLOCK, FORM_BLOCK1, FORM_DATA1, FORM_FLAG, FORM_SDATA = 0x08, 0x09, 0x0A, 0x0B, 0x0C, 0x0D
FORM_STRP, FORM_UDATA, FORM_REF_ADDR, FORM_REF1, FORM_REF2, FORM_REF4 = 0x0E, 0x0F, 0x10, 0x11, 0x12, 0x13
FORM_REF8, FORM_REF_UDATA, FORM_INDIRECT, FORM_SEC_OFFSET, FORM_EXPRLOC = 0x14, 0x15, 0x16, 0x17, 0x18
FORM_FLAG_PRESENT, FORM_STRX, FORM_ADDRX, FORM_REF_SUP4, FORM_STRP_SUP = 0x19, 0x1A, 0x1B, 0x1C, 0x1D
FORM_DATA16, FORM_LINE_STRP, FORM_REF_SIG8, FORM_IMPLICIT_CONST, FORM_LOCLISTX = 0x1E, 0x1F, 0x20, 0x21, 0x22
FORM_RNGLISTX, FORM_REF_SUP8, FORM_STRX1, FORM_STRX2, FORM_STRX3, FORM_STRX4 = range(0x23, 0x29)
FORM_ADDRX1, FORM_ADDRX2, FORM_ADDRX3, FORM_ADDRX4 = range(0x29, 0x2D)
FORM_GNU_ADDR_INDEX, FORM_GNU_STR_INDEX, FORM_GNU_REF_ALT, FORM_GNU_STRP_ALT = 0x1F01, 0x1F02, 0x1F20, 0x1F21

# Sizes in bytes of the forms that have one; those without bytes have 0.
FORM_SIZES: Final = {
    **dict.fromkeys((FORM_FLAG_PRESENT, FORM_IMPLICIT_CONST), 0),
    **dict.fromkeys((FORM_DATA1, FORM_FLAG, FORM_REF1, FORM_STRX1, FORM_ADDRX1), 1),
    **dict.fromkeys((FORM_DATA2, FORM_REF2, FORM_STRX2, FORM_ADDRX2), 2),
    **dict.fromkeys((FORM_STRX3, FORM_ADDRX3), 3),
    **dict.fromkeys((FORM_DATA4, FORM_REF4, FORM_REF_SUP4, FORM_STRX4, FORM_ADDRX4), 4),
    **dict.fromkeys((FORM_ADDRESS, FORM_DATA8, FORM_REF8, FORM_REF_SIG8, FORM_REF_SUP8), 8),
    FORM_DATA16: 16,
}
# Those that are as large as an offset: 4 bytes, or 8 in a unit of 64-bit DWARF.
OFFSET_FORMS: Final = frozenset(
    {
        *(FORM_STRP, FORM_REF_ADDR, FORM_SEC_OFFSET, FORM_STRP_SUP, FORM_LINE_STRP),
        *(FORM_GNU_REF_ALT, FORM_GNU_STRP_ALT),
    }
)
LEB_FORMS: Final = frozenset(
    {
        *(FORM_SDATA, FORM_UDATA, FORM_REF_UDATA, FORM_STRX, FORM_ADDRX, FORM_LOCLISTX, FORM_RNGLISTX),
        *(FORM_GNU_ADDR_INDEX, FORM_GNU_STR_INDEX),
    }
)
# By the bytes of the length that comes first; 0 for a LEB128 one.
BLOCK_FORMS: Final = {FORM_BLOCK1: 1, FORM_BLOCK2: 2, FORM_BLOCK4: 4, FORM_BLOCK: 0, FORM_EXPRLOC: 0}
IN_UNIT_FORMS: Final = frozenset({FORM_REF1, FORM_REF2, FORM_REF4, FORM_REF8, FORM_REF_UDATA})
STRING_INDEX_FORMS: Final = frozenset({FORM_STRX, FORM_STRX1, FORM_STRX2, FORM_STRX3, FORM_STRX4})
ADDRESS_INDEX_FORMS: Final = frozenset({FORM_ADDRX, FORM_ADDRX1, FORM_ADDRX2, FORM_ADDRX3, FORM_ADDRX4})
# Those that lead to another file.
FOREIGN_FORMS: Final = frozenset(
    {
        *(FORM_REF_SUP4, FORM_STRP_SUP, FORM_REF_SUP8, FORM_GNU_ADDR_INDEX, FORM_GNU_STR_INDEX),
        *(FORM_GNU_REF_ALT, FORM_GNU_STRP_ALT),
    }
)

UNIT_COMPILE, UNIT_TYPE, UNIT_SKELETON, UNIT_SPLIT, UNIT_SPLIT_TYPE = 1, 2, 4, 5, 6

# What a base type holds.
ENCODING_BOOLEAN, ENCODING_FLOAT = 0x02, 0x04
SIGNED_ENCODINGS: Final = frozenset({0x05, 0x06})
UNSIGNED_ENCODINGS: Final = frozenset({0x02, 0x07, 0x08, 0x10})

# The versions of C, where `int f()` says nothing of parameters.
C_LANGUAGES: Final = frozenset({0x01, 0x02, 0x0C, 0x1D, 0x2C, 0x3E})
ASSEMBLERS: Final = frozenset({0x31, 0x8001})

# Line programs: standard opcodes from 1 on, each with the number of its LEB128 arguments; above them special opcodes,
# which move on both address and line and then emit a row, as LINE_COPY does without moving.
LINE_COPY, LINE_ADVANCE_ADDRESS, LINE_ADVANCE_LINE, LINE_FILE, LINE_COLUMN, LINE_STATEMENT = range(1, 7)
LINE_BLOCK, LINE_CONSTANT_ADDRESS, LINE_FIXED_ADDRESS, LINE_PROLOGUE, LINE_EPILOGUE, LINE_ISA = range(7, 13)
LINE_ARGUMENTS: Final = bytes((0, 1, 1, 1, 1, 0, 0, 0, 1, 0, 0, 1))
# Extended opcodes: a zero byte, how many bytes follow, the opcode, its argument.
LINE_END: Final = b"\x00\x01\x01"
LINE_SET_ADDRESS: Final = b"\x00\x09\x02"
LINE_DISCRIMINATOR = 4
# What the columns of a table of files or directories hold, from DWARF 5 on.
CONTENT_PATH, CONTENT_DIRECTORY = 1, 2


# A number of 64 bits has ten bytes at most, seven bits in each.
LONGEST_LEB: Final = 10


def leb128(data: bytes, at: int, *, signed: bool = False) -> tuple[int, int] | None:
    """The LEB128 number at a place and the place behind it (DWARF 5, 7.6); None where it has no end."""
    value = shift = 0
    for place in range(at, min(at + LONGEST_LEB, len(data))):
        byte = data[place]
        value |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            return value - ((1 << shift) if signed and byte & 0x40 else 0), place + 1
    return None
