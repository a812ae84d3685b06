"""ELF64 as this project needs it: layouts and numbers.

Sources: System V gABI, chapters 4 and 5; AMD64 psABI, chapter 4; the gABI's proposal for SHT_RELR.
All structures are little-endian, as every x86-64 file is.
"""

from __future__ import annotations

import sys
from array import array
from struct import Struct

MAGIC = b"\x7fELF"
CLASS_64 = 2
DATA_LITTLE = 1
EV_CURRENT = 1
EM_X86_64 = 62

ET_REL, ET_EXEC, ET_DYN = 1, 2, 3
TYPE_NAMES = {ET_REL: "REL", ET_EXEC: "EXEC", ET_DYN: "DYN"}

# e_ident, type, machine, version, entry, phoff, shoff, flags, ehsize, phentsize, phnum, shentsize, shnum, shstrndx
HEADER = Struct("<16sHHIQQQIHHHHHH")
# name, type, flags, addr, offset, size, link, info, addralign, entsize
SECTION = Struct("<IIQQQQIIQQ")
# type, flags, offset, vaddr, paddr, filesz, memsz, align
SEGMENT = Struct("<IIQQQQQQ")
# name, info, other, shndx, value, size
SYMBOL = Struct("<IBBHQQ")
# offset, info, addend
RELA = Struct("<QQq")
RELA_ADDEND_OFFSET = 16
DYNAMIC = Struct("<qQ")
NOTE = Struct("<III")
POINTER = Struct("<Q")
POINTER_SIZE = 8

SHN_UNDEF = 0
SHN_XINDEX = 0xFFFF
PN_XNUM = 0xFFFF

SHT_SYMTAB, SHT_STRTAB, SHT_NOTE, SHT_NOBITS, SHT_DYNSYM = 2, 3, 7, 8, 11
SHF_ALLOC, SHF_EXECINSTR, SHF_TLS = 0x2, 0x4, 0x400

PT_LOAD, PT_DYNAMIC, PT_NOTE = 1, 2, 4
PF_X = 1

STT_NOTYPE, STT_OBJECT, STT_FUNC, STT_SECTION, STT_FILE, STT_TLS, STT_GNU_IFUNC = 0, 1, 2, 3, 4, 6, 10
STB_LOCAL = 0

DT_NULL, DT_STRTAB, DT_SYMTAB, DT_RELA, DT_RELASZ, DT_STRSZ = 0, 5, 6, 7, 8, 10
DT_RELRSZ, DT_RELR = 35, 36

R_X86_64_64, R_X86_64_RELATIVE = 1, 8

NT_GNU_BUILD_ID = 3


def column(table: bytes, code: str, start: int, step: int) -> array[int]:
    """One field of every entry of a table, copied at once.

    `code` is an `array` type code (`I` 4 bytes, `Q` 8, `H` 2, `q` 8 signed), `start` and `step` count in
    units of it. The table's length must be a multiple of the unit.
    """
    cells = array(code)
    cells.frombytes(table)
    if sys.byteorder == "big":
        cells.byteswap()
    return cells[start::step]
