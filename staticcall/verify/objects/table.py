"""The new tables of an annotated object: their sections, and that they list every call and nothing else."""

from array import array
from collections.abc import Collection, Sequence
from operator import lt
from typing import NamedTuple

from staticcall.abi.static_call import RECORD_SIZE, TAIL_FLAG
from staticcall.errors import VerificationError
from staticcall.verify.objects import elf
from staticcall.verify.objects.calls import KEY, TRAMPOLINE, Calls
from staticcall.verify.objects.elf import Elf

_TABLE_FLAGS = elf.SHF_WRITE | elf.SHF_ALLOC
_TABLE_HEADER = (elf.SHT_PROGBITS, _TABLE_FLAGS, 0, 0, 0, 1, RECORD_SIZE)
# An entry for the site and one for the key.
_ENTRIES = 2 * elf.RELA.size
_KEY_FIELD = 4


class Table(NamedTuple):
    """One new table: its section, that of its relocations, and the group that both are in (0: none)."""

    section: int
    relocations: int
    group: int


# One record: whether its site returns, the site's section and offset, and the offset of its displacement. In
# this order they are sorted: all jumps, then all calls, each by section and offset.
Place = tuple[bool, int, int, int]


def find_tables(after: Elf, old_count: int, name: bytes, besides: Collection[int] = ()) -> list[Table]:
    """See that the sections behind the first `old_count` are tables with their relocations, and in their groups.

    Those in `besides` were judged already.
    """
    groups = _groups(after, old_count)
    new = [section for section in range(old_count, after.section_count) if section not in besides]
    tables: dict[int, int] = {}
    for section in new:
        target = after.infos[section] if after.types[section] == elf.SHT_RELA else section
        wanted = name if target == section else b".rela" + name
        known = old_count <= target < after.section_count and after.name(section) == wanted
        if not known or (target != section and target in tables):
            raise VerificationError(f"section {section} is no table of records", offset=after.offsets[section])
        if target != section:
            tables[target] = section
    found = []
    for section in new:
        if after.types[section] == elf.SHT_RELA:
            continue
        if section not in tables:
            raise VerificationError("a table without relocations", offset=after.offsets[section])
        table = Table(section, tables[section], groups.get(section, 0))
        if groups.get(table.relocations, 0) != table.group:
            raise VerificationError("a table and its relocations are in two groups", offset=after.offsets[section])
        _check_table(after, table)
        found.append(table)
    if len({table.group for table in found}) != len(found):
        raise VerificationError("two tables where one is enough")
    return found


def _groups(after: Elf, old_count: int) -> dict[int, int]:
    """The group of every section that is in one."""
    groups: dict[int, int] = {}
    if elf.SHT_GROUP not in after.types:
        return groups
    for group, kind in enumerate(after.types):
        if kind != elf.SHT_GROUP:
            continue
        if after.sizes[group] % elf.WORD.size:
            raise VerificationError("a group with half a member", offset=after.offsets[group])
        for member in elf.cells("I", after.content(group))[1:]:
            new = member >= old_count
            if new and (member in groups or member >= after.section_count or not after.flags[member] & elf.SHF_GROUP):
                raise VerificationError(f"a group with section {member}", offset=after.offsets[group])
            groups[member] = group
    return groups


def _check_table(after: Elf, table: Table) -> None:
    section, own = table.section, table.relocations
    offset, size = after.offsets[section], after.sizes[section]
    grouped = elf.SHF_GROUP if table.group else 0
    # A linker script keeps a kernel's table; that of a user program may say itself that it is wanted.
    retained = 0 if after.name(section).startswith(b".") else elf.SHF_GNU_RETAIN
    kind, flags, *rest = _header(after, section)
    if (kind, flags & ~retained, *rest) != (_TABLE_HEADER[0], _TABLE_FLAGS | grouped, *_TABLE_HEADER[2:]):
        raise VerificationError("the section of a table has a wrong header", offset=offset)
    if not size or size % RECORD_SIZE or after.data.count(0, offset, offset + size) != size:
        raise VerificationError("a table with other bytes than zeros for whole records", offset=offset)
    symbols = after.symbols.section if after.symbols else 0
    wanted = (elf.SHT_RELA, elf.SHF_INFO_LINK | grouped, 0, symbols, section, 8, elf.RELA.size)
    if _header(after, own) != wanted or after.offsets[own] % 8:
        raise VerificationError("the section of a table's relocations has a wrong header", offset=after.offsets[own])
    if after.sizes[own] * RECORD_SIZE != size * _ENTRIES:
        raise VerificationError("not two relocations for every record", offset=after.offsets[own])


def _header(after: Elf, section: int) -> tuple[int, ...]:
    return (
        after.types[section],
        after.flags[section],
        after.addresses[section],
        after.links[section],
        after.infos[section],
        after.alignments[section],
        after.entry_sizes[section],
    )


def check_records(calls: Calls, tables: Sequence[Table], *, module: bool) -> set[int]:
    """Judge every record of every table; returns the section symbols that they go through.

    `calls` is of the annotated file. Raises `VerificationError`.
    """
    reader = _Reader(calls, module=module)
    groups = _groups(calls.file, calls.file.section_count) if tables else {}
    recorded: set[tuple[int, int]] = set()
    for table in tables:
        places = reader.places(table)
        offset = calls.file.offsets[table.relocations]
        if not all(map(lt, places, places[1:])):
            raise VerificationError("records out of order, or two of one site", offset=offset)
        if groups and any(groups.get(section, 0) != table.group for _, section, _, _ in places):
            raise VerificationError("a record in another group than its site", offset=offset)
        fields = {(section, field) for _, section, _, field in places}
        if len(fields) != len(places) or not recorded.isdisjoint(fields):
            raise VerificationError("two records of one site", offset=offset)
        recorded |= fields
    for section, field, _, _ in calls.unrecorded(recorded):
        raise VerificationError(
            f"no record of the branch with its displacement at section {section} offset {field:#x}",
            offset=calls.file.offsets[section] + field,
        )
    return reader.through


class _Reader:
    """Reads records with what they lead to; remembers symbols, since few are named by many records."""

    def __init__(self, calls: Calls, *, module: bool) -> None:
        self._calls = calls
        self._file = calls.file
        self._module = module
        self._sections: dict[int, int] = {}
        self._names: dict[int, bytes] = {}

    @property
    def through(self) -> set[int]:
        """The section symbols that records went through."""
        return set(self._sections)

    def places(self, table: Table) -> list[Place]:
        """The table's records in their order, each with its site and key seen to belong together."""
        start, content = self._file.offsets[table.relocations], self._file.content(table.relocations)
        words, longs = elf.cells("I", content), elf.cells("Q", content)
        count = len(longs) // 6
        fields = array("Q", range(0, count * RECORD_SIZE, _KEY_FIELD))
        if longs[::3] != fields or words[2::6].count(elf.R_X86_64_PC32) != 2 * count:
            raise VerificationError("relocations that are not those of a table's fields", offset=start)
        addends = elf.cells("q", content)
        found = []
        try:
            for record in zip(words[3::12], addends[2::6], words[9::12], addends[5::6], strict=True):
                found.append(self._place(*record))
        except VerificationError as error:
            error.offset = start + len(found) * _ENTRIES
            raise
        return found

    def _place(self, symbol: int, offset: int, key: int, flags: int) -> Place:
        section = self._sections.get(symbol) or self._section_of(symbol)
        branch = self._calls.branch_at(section, offset)
        if branch is None:
            raise VerificationError(f"the record of section {section} offset {offset:#x} leads to no call or jump")
        field, tail, names = branch
        if flags != (TAIL_FLAG if tail else 0):
            raise VerificationError(f"the record of section {section} offset {offset:#x} has the flags {flags}")
        if (self._names.get(key) or self._name_of(key)) not in names:
            raise VerificationError(
                f"the record of section {section} offset {offset:#x} is of another key than its site"
            )
        return not tail, section, offset, field

    def _section_of(self, number: int) -> int:
        symbol = self._file.symbol(number)
        if symbol.type != elf.STT_SECTION or symbol.value or symbol.section not in self._calls.code:
            raise VerificationError(f"a record goes through symbol {number}, which is that of no section with code")
        self._sections[number] = symbol.section
        return symbol.section

    def _name_of(self, number: int) -> bytes:
        """The name of the call that a record's key symbol stands for."""
        name = self._names[number] = self._read_name(number)
        return name

    def _read_name(self, number: int) -> bytes:
        full = self._file.symbol_name(number)
        if full.startswith(KEY):
            table = self._file.symbols
            # What `ld -r` made may have a local key beside the global one, which is the one that is called.
            if table is not None and number < table.locals_ and self._file.has_symbol(full, number + 1):
                raise VerificationError(f"a record names symbol {number}, and a later one has its name")
            return full[len(KEY) :]
        name = self._calls.trampolines.get(number)
        if name is None or not self._module:
            raise VerificationError(f"a record names symbol {number}, which is no key")
        if self._file.has_symbol(KEY + name):
            raise VerificationError(
                f"a record names the trampoline {(TRAMPOLINE + name).decode()!r}, whose key is here"
            )
        return name
