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

ET_REL, ET_EXEC, ET_DYN, ET_CORE = 1, 2, 3, 4
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
# The symbol's number is the upper half of info.
RELA_SYMBOL_OFFSET = 12
REL_SIZE = 16
WORD = Struct("<I")
DYNAMIC = Struct("<qQ")
NOTE = Struct("<III")
POINTER = Struct("<Q")
POINTER_SIZE = 8

SHN_UNDEF = 0
SHN_LORESERVE = 0xFF00
SHN_ABS = 0xFFF1
SHN_COMMON = 0xFFF2
SHN_XINDEX = 0xFFFF
PN_XNUM = 0xFFFF

SHT_NULL, SHT_PROGBITS, SHT_SYMTAB, SHT_STRTAB, SHT_RELA, SHT_NOTE, SHT_NOBITS = 0, 1, 2, 3, 4, 7, 8
SHT_REL, SHT_DYNSYM, SHT_GROUP, SHT_SYMTAB_SHNDX = 9, 11, 17, 18
SHT_LLVM_ADDRSIG, SHT_LLVM_CALL_GRAPH_PROFILE = 0x6FFF4C03, 0x6FFF4C09
SHF_WRITE, SHF_ALLOC, SHF_EXECINSTR, SHF_INFO_LINK, SHF_GROUP, SHF_TLS = 0x1, 0x2, 0x4, 0x40, 0x200, 0x400
SHF_COMPRESSED, SHF_GNU_RETAIN = 0x800, 0x200000

PT_LOAD, PT_DYNAMIC, PT_NOTE = 1, 2, 4
PF_X = 1

STT_NOTYPE, STT_OBJECT, STT_FUNC, STT_SECTION, STT_FILE, STT_TLS, STT_GNU_IFUNC = 0, 1, 2, 3, 4, 6, 10
STB_LOCAL, STB_GLOBAL, STB_WEAK = 0, 1, 2

DT_NULL, DT_STRTAB, DT_SYMTAB, DT_RELA, DT_RELASZ, DT_STRSZ = 0, 5, 6, 7, 8, 10
DT_RELRSZ, DT_RELR = 35, 36

R_X86_64_NONE, R_X86_64_64, R_X86_64_PC32, R_X86_64_PLT32, R_X86_64_RELATIVE = 0, 1, 2, 4, 8
R_X86_64_GOTPCREL, R_X86_64_32, R_X86_64_32S, R_X86_64_PC8 = 9, 10, 11, 15
R_X86_64_PC64, R_X86_64_GOTPCRELX, R_X86_64_REX_GOTPCRELX = 24, 41, 42

NT_GNU_BUILD_ID = 3
# Notes of cores, all named CORE: the auxiliary vector, and which files are mapped where.
NT_AUXV, NT_FILE = 6, 0x46494C45


def column(table: bytes | bytearray | memoryview, code: str, start: int, step: int) -> array[int]:
    """One field of every entry of a table, copied at once.

    `code` is an `array` type code (`I` 4 bytes, `Q` 8, `H` 2, `q` 8 signed), `start` and `step` count in
    units of it. The table's length must be a multiple of the unit.
    """
    cells = array(code)
    cells.frombytes(table)
    if sys.byteorder == "big":
        cells.byteswap()
    return cells[start::step]


def little_endian(cells: array[int]) -> bytes:
    """The bytes of an array as they stand in a file; the way back from `column`."""
    if sys.byteorder == "big":
        cells = cells[:]
        cells.byteswap()
    return cells.tobytes()
