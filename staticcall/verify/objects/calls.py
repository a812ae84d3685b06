"""Calls and jumps to trampolines in the code of an object, by its relocations.

A relocated field is the last part of a call, jmp or jcc, so its opcode stands right before it: no instruction
that only loads an address ends in one of these bytes there (the byte before a PC-relative field of such a one is
a ModRM with mod 0 and r/m 5). So a call is known without decoding all that stands before it.

Sources: Intel SDM volume 2, CALL, JMP, Jcc, section 2.1.5 on ModRM; tools/objtool/check.c, Linux 6.12, for what
counts as a site.
"""

from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from collections.abc import Set as AbstractSet
from itertools import accumulate, compress
from typing import NamedTuple

from staticcall.abi.static_call import KEY_PREFIX, TRAMPOLINE_PREFIX
from staticcall.errors import MalformedError
from staticcall.verify.objects import elf
from staticcall.verify.objects.elf import Elf

TRAMPOLINE = TRAMPOLINE_PREFIX.encode()
KEY = KEY_PREFIX.encode()
# Code that the kernel copies elsewhere before it runs.
_COPIED = b".altinstr_replacement"

_PC_RELATIVE = frozenset({elf.R_X86_64_PC32, elf.R_X86_64_PLT32})
_GOT = frozenset({elf.R_X86_64_GOTPCREL, elf.R_X86_64_GOTPCRELX, elf.R_X86_64_REX_GOTPCRELX})


class Kind(NamedTuple):
    """A kind of branch: its displacement's size in bytes, whether it is a jump, its relocations' types.

    `got` is for those through the GOT.
    """

    width: int
    tail: bool
    types: frozenset[int]
    got: bool = False


# The opcodes of the two that nearly all sites have, and whether they are jumps.
_PLAIN = {b"\xe8"[0]: False, b"\xe9"[0]: True}
_CALL, _JUMP = Kind(4, False, _PC_RELATIVE), Kind(4, True, _PC_RELATIVE)
_SHORT = Kind(1, True, frozenset({elf.R_X86_64_PC8}))
_GOT_CALL, _GOT_JUMP = Kind(4, False, _GOT, got=True), Kind(4, True, _GOT, got=True)
# Opcodes whose displacement of 32 bits follows.
_LONG_OPCODES = {
    b"\xe8": _CALL,
    b"\xe9": _JUMP,
    **{b"\x0f" + bytes([condition]): _JUMP for condition in range(0x80, 0x90)},
    b"\xff\x15": _GOT_CALL,
    b"\xff\x25": _GOT_JUMP,
}
_OPCODES = {**_LONG_OPCODES, b"\xeb": _SHORT, **{bytes([condition]): _SHORT for condition in range(0x70, 0x80)}}
# Any prefixes, as objtool takes them; a branch with all that it may have is not longer than an instruction may be.
_PREFIXES = frozenset(b"\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3") | frozenset(range(0x40, 0x50))
_MOST_PREFIXES = 10

_IS_FUNCTION = bytes(info & 0xF == elf.STT_FUNC for info in range(256))

# Offset in the relocated section, type, symbol, addend.
Relocation = tuple[int, int, int, int]


class Calls:
    """The static calls in one object, before anybody recorded them.

    `trampolines` leads from symbol numbers to names without the prefix. With `got`, calls and jumps through
    the GOT are among them, which a linker may make direct ones. Raises `MalformedError` for tables that lead
    nowhere.
    """

    def __init__(self, file: Elf, *, got: bool = False) -> None:
        self.file = file
        self._got = got
        self.trampolines = _trampolines(file)
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
        self._functions: dict[int, tuple[Sequence[int], Sequence[int]]] | None = None

    def _find_named(self) -> None:
        data, size, unpack = self.file.data, elf.RELA.size, elf.RELA.unpack_from
        wanted = elf.Wanted(self.trampolines)
        for table, section in self._tables():
            start = self.file.offsets[table]
            end = start + self.file.sizes[table]
            for entry, _ in wanted.entries(data, start + elf.SYMBOL_FIELD, end, size):
                found = unpack(data, start + entry * size)
                if found[0] >= self.file.sizes[section]:
                    raise MalformedError("a relocation outside of its section", offset=start + entry * size)
                self.named[section, found[0]] = found

    def relocated_by(self, symbols: Collection[int]) -> Iterator[tuple[int, int]]:
        """Section and offset of every field in code whose relocation names one of these symbols."""
        wanted = elf.Wanted(symbols)
        for table, section in self._tables():
            start = self.file.offsets[table]
            end = start + self.file.sizes[table]
            for entry, _ in wanted.entries(self.file.data, start + elf.SYMBOL_FIELD, end, elf.RELA.size):
                yield section, elf.RELA.unpack_from(self.file.data, start + entry * elf.RELA.size)[0]

    def _tables(self) -> Iterator[tuple[int, int]]:
        """Every relocation table of executable code and the section it is for."""
        file = self.file
        for table in range(file.section_count):
            if file.types[table] == elf.SHT_RELA and file.infos[table] in self.code:
                if file.sizes[table] % elf.RELA.size:
                    raise MalformedError("a relocation table with half an entry", offset=file.offsets[table])
                yield table, file.infos[table]

    def branch_at(self, section: int, at: int) -> tuple[int, bool, Sequence[bytes]] | None:
        """Decode the branch at an offset of a section, with the prefixes that it starts with.

        Returns the offset of its displacement, whether it is a jump, and the names, without prefix, of the
        trampolines that it leads to (aliases share a place); None where there is no branch.
        """
        named = self.named.get((section, at + 1))
        if named is not None and at >= 0 and named[1] in _PC_RELATIVE and named[3] == -4:
            tail = _PLAIN.get(self.file.data[self.file.offsets[section] + at])
            if tail is not None:  # nearly all there are, so without further ado
                return at + 1, tail, (self.trampolines[named[2]],)
        return self._decoded(section, at)

    def _decoded(self, section: int, at: int) -> tuple[int, bool, Sequence[bytes]] | None:
        start, size = self.file.offsets[section], self.file.sizes[section]
        if not 0 <= at < size:
            return None
        data, opcode = self.file.data, start + at
        while data[opcode] in _PREFIXES and opcode < start + min(at + _MOST_PREFIXES, size - 1):
            opcode += 1
        for length in (1, 2):
            kind = _OPCODES.get(bytes(data[opcode : opcode + length]))
            field = opcode + length - start
            if kind is not None:
                break
        if kind is None or field + kind.width > size or kind.got > self._got:
            return None
        return field, kind.tail, self._names_reached(section, field, kind)

    def _names_reached(self, section: int, field: int, kind: Kind) -> Sequence[bytes]:
        named = self.named.get((section, field))
        if named is not None:
            right = named[1] in kind.types and named[3] == -kind.width
            return (self.trampolines[named[2]],) if right else ()
        if kind.got:
            return ()
        found = self._relocations_of(section).get(field)
        if found is None:
            start = self.file.offsets[section] + field
            displacement = int.from_bytes(self.file.view[start : start + kind.width], "little", signed=True)
            return self._at(section, field + kind.width + displacement)
        _, type_, number, addend = found
        if type_ not in kind.types:
            return ()
        home = self.file.symbol(number)
        return self._at(home.section, home.value + addend + kind.width)

    def unrecorded(self, recorded: AbstractSet[tuple[int, int]]) -> Iterator[tuple[int, int, int, Kind]]:
        """Section, field, opcode's offset and kind of every branch that must have a record and has none.

        These are the calls anywhere, and the jumps inside of functions with a size, that have a relocation
        against a trampoline's name.
        """
        for section, field in self.named.keys() - recorded:
            found = self._branch_before(section, field)
            if found is not None and (not found[1].tail or self._in_function(section, found[0])):
                yield section, field, *found

    def _branch_before(self, section: int, field: int) -> tuple[int, Kind] | None:
        _, type_, _, addend = self.named[section, field]
        start = self.file.offsets[section]
        if field > self.file.sizes[section] - 4:
            return None
        opcode = bytes(self.file.data[start + max(field - 2, 0) : start + field])
        if opcode not in _LONG_OPCODES:
            opcode = opcode[-1:]
        kind = _LONG_OPCODES.get(opcode)
        if kind is None or kind.got > self._got or type_ not in kind.types or addend != -kind.width:
            return None
        return field - len(opcode), kind

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
            self._functions = _functions(self.file)
        starts, ends = self._functions.get(section, ((), ()))
        nearest = bisect_right(starts, at) - 1
        return nearest >= 0 and at < ends[nearest]


def _functions(file: Elf) -> dict[int, tuple[Sequence[int], Sequence[int]]]:
    """By section, the starts of all functions with a size, and the farthest end up to each: they may overlap."""
    table = file.symbols
    extents: dict[int, list[tuple[int, int]]] = {}
    if table is None:
        return {}
    symbols = file.view[table.start : table.end]
    marks = file.data[table.start + elf.INFO_FIELD : table.end : elf.SYMBOL.size].translate(_IS_FUNCTION)
    quads, halves = elf.cells("Q", symbols), elf.cells("H", symbols)
    columns = zip(range(len(marks)), halves[3::12], quads[1::3], quads[2::3], strict=True)
    for number, section, value, extent in compress(columns, marks):
        if section == elf.SHN_XINDEX:
            section = file.symbol(number).section  # noqa: PLW2901 - the field has no room for it
        if extent:
            extents.setdefault(section, []).append((value, value + extent))
    for pairs in extents.values():
        pairs.sort()
    return {
        section: ([start for start, _ in pairs], list(accumulate((end for _, end in pairs), max)))
        for section, pairs in extents.items()
    }


def _trampolines(file: Elf) -> dict[int, bytes]:
    """Find every global symbol that is a trampoline: its number and its name without the prefix.

    Strings may share their tails, so a name may start anywhere in the table.
    """
    table = file.symbols
    found: dict[int, bytes] = {}
    if table is None:
        return found
    data, stem = file.data, TRAMPOLINE
    starts = set()
    at = data.find(stem, table.strings, table.strings_end)
    while at >= 0:
        starts.add(at - table.strings)
        at = data.find(stem, at + 1, table.strings_end)
    if not starts:
        return found
    first = table.start + table.locals_ * elf.SYMBOL.size
    room = table.room
    for entry, name in elf.Wanted(starts).entries(data, first, table.end, elf.SYMBOL.size):
        start = table.strings + name + len(stem)
        if data[start] and data[first + entry * elf.SYMBOL.size + elf.INFO_FIELD] >> 4 == elf.STB_GLOBAL:
            found[table.locals_ + entry] = bytes(data[start : data.index(0, start)])
            room -= len(found[table.locals_ + entry])
            if room < 0:
                raise MalformedError("names that are longer than any name", offset=table.strings)
    return found
