"""Calls and jumps to trampolines in the code of an object, by its relocations.

A relocated field is the last part of a call, jmp or jcc, so its opcode stands right before it: no instruction
that only loads an address ends in one of these bytes there (the byte before a PC-relative field of such a one is
a ModRM with mod 0 and r/m 5). So a call is known without decoding all that stands before it.

Sources: Intel SDM volume 2, CALL, JMP, Jcc, section 2.1.5 on ModRM; tools/objtool/check.c, Linux 6.12, for what
counts as a site.
"""

import re
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet

from staticcall.abi.static_call import KEY_PREFIX, TRAMPOLINE_PREFIX
from staticcall.errors import MalformedError
from staticcall.verify.objects import elf
from staticcall.verify.objects.elf import Elf, Symbol

TRAMPOLINE = TRAMPOLINE_PREFIX.encode()
KEY = KEY_PREFIX.encode()
# Code that the kernel copies elsewhere before it runs.
_COPIED = b".altinstr_replacement"

# Segment overrides, address size, REX; then the opcode of a call, of a jmp or jcc, or of a short one.
_BRANCH = re.compile(
    rb"[\x26\x2e\x36\x3e\x64\x65\x67\x40-\x4f]{0,10}(?:(\xe8)|(\xe9|\x0f[\x80-\x8f])|(\xeb|[\x70-\x7f]))", re.DOTALL
)
_CALL, _JUMP, _SHORT = 1, 2, 3
_CALL_BYTE, _JMP_BYTE, _TWO_BYTES, _JCC = b"\xe8"[0], b"\xe9"[0], b"\x0f"[0], range(0x80, 0x90)

PC_RELATIVE = frozenset({elf.R_X86_64_PC32, elf.R_X86_64_PLT32})
# By the size of the displacement in bytes.
_TYPES = {1: frozenset({elf.R_X86_64_PC8}), 4: PC_RELATIVE}


# Offset in the relocated section, type, symbol, addend.
Relocation = tuple[int, int, int, int]


class Calls:
    """The static calls in one object, before anybody recorded them.

    `trampolines` leads from symbol numbers to names without the prefix. Raises `MalformedError` for tables
    that lead nowhere.
    """

    def __init__(self, file: Elf) -> None:
        self.file = file
        self.trampolines = dict(_trampolines(file))
        self.code = frozenset(
            i
            for i, flags in enumerate(file.flags)
            if flags & elf.SHF_EXECINSTR and file.types[i] != elf.SHT_NOBITS and file.name(i) != _COPIED
        )
        # By section and offset of the field; filled for those against the symbol of a trampoline.
        self.named: dict[tuple[int, int], Relocation] = {}
        if self.trampolines:
            self._find_named()
        self._all: dict[int, dict[int, Relocation]] = {}
        self._places: dict[tuple[int, int], list[bytes]] | None = None
        self._functions: dict[int, list[tuple[int, int]]] | None = None

    def _find_named(self) -> None:
        data, size, unpack = self.file.data, elf.RELA.size, elf.RELA.unpack_from
        wanted = elf.Wanted(self.trampolines)
        for table, section in self._tables():
            start = self.file.offsets[table]
            end = start + self.file.sizes[table]
            for entry, _ in wanted.entries(data, start + elf.SYMBOL_FIELD, end, size):
                found = unpack(data, start + entry * size)
                self.named[section, found[0]] = found

    def _tables(self) -> Iterator[tuple[int, int]]:
        """Every relocation table of executable code and the section it is for."""
        file = self.file
        for table in range(file.section_count):
            if file.types[table] == elf.SHT_RELA and file.infos[table] in self.code:
                if file.sizes[table] % elf.RELA.size:
                    raise MalformedError("a relocation table with half an entry", offset=file.offsets[table])
                yield table, file.infos[table]

    def branch_at(self, section: int, at: int) -> tuple[int, int, bool] | None:
        """Decode the direct branch at an offset of a section, with the prefixes that it starts with.

        Returns the offset of its displacement, how many bytes that has, and whether the branch is a jump.
        """
        start, size = self.file.offsets[section], self.file.sizes[section]
        if not 0 <= at < size:
            return None
        found = _BRANCH.match(self.file.data, start + at, start + size)
        if found is None:
            return None
        width = 1 if found.lastindex == _SHORT else 4
        field = found.end() - start
        if field + width > size:
            return None
        return field, width, found.lastindex != _CALL

    def names_reached(self, section: int, field: int, width: int) -> Sequence[bytes]:
        """The names, without prefix, of the trampolines that a branch leads to; aliases share a place."""
        named = self.named.get((section, field))
        if named is not None:
            _, kind, symbol, addend = named
            right = addend == -width and kind in _TYPES[width]
            return (self.trampolines[symbol],) if right else ()
        found = self._relocations_of(section).get(field)
        if found is None:
            start = self.file.offsets[section] + field
            displacement = int.from_bytes(self.file.view[start : start + width], "little", signed=True)
            return self._at(section, field + width + displacement)
        _, kind, number, addend = found
        if kind not in _TYPES[width]:
            return ()
        home = self.file.symbol(number)
        return self._at(home.section, home.value + addend + width)

    def unrecorded(self, recorded: AbstractSet[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        """Section and field of every branch that must have a record and has none.

        These are the calls anywhere, and the jumps inside of functions with a size, that have a relocation
        against a trampoline's name.
        """
        data, offsets = self.file.data, self.file.offsets
        for section, field in self.named.keys() - recorded:
            _, kind, _, addend = self.named[section, field]
            if kind not in PC_RELATIVE or addend != -4 or not 0 < field <= self.file.sizes[section] - 4:
                continue
            at = offsets[section] + field
            opcode = data[at - 1]
            if opcode == _CALL_BYTE:
                yield section, field
                continue
            jumps = opcode == _JMP_BYTE or (opcode in _JCC and field > 1 and data[at - 2] == _TWO_BYTES)
            if jumps and self._in_function(section, field - 1):
                yield section, field

    def _relocations_of(self, section: int) -> dict[int, Relocation]:
        """All relocations of a section by offset; only wanted where no trampoline is named."""
        if section not in self._all:
            self._all[section] = {
                found[0]: found
                for table, home in self._tables()
                if home == section
                for found in elf.RELA.iter_unpack(self.file.content(table))
            }
        return self._all[section]

    def _at(self, section: int, offset: int) -> Sequence[bytes]:
        if self._places is None:
            self._places = {}
            for number, name in self.trampolines.items():
                symbol = self.file.symbol(number)
                self._places.setdefault((symbol.section, symbol.value), []).append(name)
        return self._places.get((section, offset), ()) if section else ()

    def _in_function(self, section: int, at: int) -> bool:
        if self._functions is None:
            self._functions = {}
            for symbol in all_symbols(self.file):
                if symbol.type == elf.STT_FUNC and symbol.size:
                    self._functions.setdefault(symbol.section, []).append((symbol.value, symbol.value + symbol.size))
        return any(start <= at < end for start, end in self._functions.get(section, ()))


def all_symbols(file: Elf) -> Iterator[Symbol]:
    """Every symbol; for the rare questions that only a walk answers."""
    return map(file.symbol, range(file.symbols.total if file.symbols else 0))


def _trampolines(file: Elf) -> Iterator[tuple[int, bytes]]:
    """Every global symbol that is a trampoline: its number and its name without the prefix.

    Strings may share their tails, so a name may start anywhere in the table.
    """
    table = file.symbols
    if table is None:
        return
    data, stem = file.data, TRAMPOLINE
    starts = set()
    at = data.find(stem, table.strings, table.strings_end)
    while at >= 0:
        starts.add(at - table.strings)
        at = data.find(stem, at + 1, table.strings_end)
    if not starts:
        return
    first = table.start + table.locals_ * elf.SYMBOL.size
    for entry, _ in elf.Wanted(starts).entries(data, first, table.end, elf.SYMBOL.size):
        number = table.locals_ + entry
        symbol = file.symbol(number)
        if symbol.binding == elf.STB_GLOBAL and len(symbol.name) > len(stem):
            yield number, symbol.name[len(stem) :]
