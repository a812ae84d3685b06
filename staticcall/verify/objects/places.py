"""Where an object's static calls are: sites, trampolines and the slots of keys, each by section and offset.

Sites are known by the records of a table. Without one they are known by their relocations against trampolines, as
for a table that is still to be made.
"""

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from staticcall.abi.static_call import FLAG_MASK, RECORD_SIZE, TABLE_SECTIONS, TAIL_FLAG
from staticcall.errors import MalformedError
from staticcall.verify.objects import elf
from staticcall.verify.objects.calls import KEY, TRAMPOLINE, Calls
from staticcall.verify.objects.elf import Elf, Symbol

Place = tuple[int, int]
KEY_FIELD = 4
_TABLES = tuple(name.encode() for name in TABLE_SECTIONS)


class Site(NamedTuple):
    """A site: the name of its call, and whether it is a jump."""

    name: bytes
    tail: bool


class Places(NamedTuple):
    """All places of static calls; `trampolines` and `slots` lead from names to places and hold what is defined."""

    sites: dict[Place, Site]
    trampolines: dict[bytes, Place]
    slots: dict[bytes, Place]


def find_places(file: Elf) -> Places:
    """Find every place in an object; raises `MalformedError` for records that lead nowhere.

    A name that is defined twice, as local ones may be in combined objects, is left out.
    """
    trampolines: list[tuple[bytes, Place]] = []
    slots: list[tuple[bytes, Place]] = []
    for symbol in named_symbols(file, b"__SC"):
        if symbol.section == elf.SHN_UNDEF:
            continue
        place = (symbol.section, symbol.value)
        if symbol.name.startswith(TRAMPOLINE):
            trampolines.append((symbol.name[len(TRAMPOLINE) :], place))
        elif symbol.name.startswith(KEY):
            slots.append((symbol.name[len(KEY) :], place))
    return Places(_sites(file), _single(trampolines), _single(slots))


def _single(found: list[tuple[bytes, Place]]) -> dict[bytes, Place]:
    times = Counter(name for name, _ in found)
    return {name: place for name, place in found if times[name] == 1}


def named_symbols(file: Elf, stem: bytes) -> Iterator[Symbol]:
    """Every symbol whose name starts with a stem."""
    table = file.symbols
    if table is None:
        return
    starts = set()
    at = file.data.find(stem, table.strings, table.strings_end)
    while at >= 0:
        starts.add(at - table.strings)
        at = file.data.find(stem, at + 1, table.strings_end)
    room = table.room
    for number, _ in elf.Wanted(starts).entries(file.data, table.start, table.end, elf.SYMBOL.size):
        symbol = file.symbol(number)
        room -= len(symbol.name)
        if room < 0:
            raise MalformedError("names that are longer than any name", offset=table.strings)
        yield symbol


def tables_of(file: Elf) -> list[int]:
    """The numbers of the sections that hold records."""
    allocated = (
        i
        for i, (kind, flags) in enumerate(zip(file.types, file.flags, strict=True))
        if kind == elf.SHT_PROGBITS and flags & elf.SHF_ALLOC
    )
    return [i for i in allocated if file.name(i) in _TABLES]


def _sites(file: Elf) -> dict[Place, Site]:
    tables = tables_of(file)
    if tables:
        return {place: site for table in tables for place, site in _recorded(file, table)}
    calls = Calls(file, got=True)
    found = {
        (section, opcode): Site(calls.trampolines[calls.named[section, field][2]], kind.tail)
        for section, field, opcode, kind in calls.unrecorded(frozenset())
    }
    return found | dict(_through_sections(file, calls))


def _through_sections(file: Elf, calls: Calls) -> Iterator[tuple[Place, Site]]:
    """The sites whose relocation leads to a trampoline by its section's symbol and an offset."""
    homes = {file.symbol(number).section for number in calls.trampolines} - {elf.SHN_UNDEF}
    bases = [
        n for n in range(file.symbol_count) if (s := file.symbol(n)).type == elf.STT_SECTION and s.section in homes
    ]
    for section, field in calls.relocated_by(bases) if bases else ():
        for opcode in (field - 1, field - 2):
            branch = calls.branch_at(section, opcode)
            if branch is not None and branch[0] == field and len(branch[2]) == 1:
                yield (section, opcode), Site(branch[2][0], branch[1])
                break


def _recorded(file: Elf, table: int) -> Iterator[tuple[Place, Site]]:
    fields: dict[int, tuple[int, int, int, int]] = {}
    for own, kind in enumerate(file.types):
        if kind == elf.SHT_RELA and file.infos[own] == table:
            if file.sizes[own] % elf.RELA.size:
                raise MalformedError("a relocation table with half an entry", offset=file.offsets[own])
            fields.update((entry[0], entry) for entry in elf.RELA.iter_unpack(file.content(own)))
    for at in range(0, file.sizes[table] - RECORD_SIZE + 1, RECORD_SIZE):
        address, key = fields.get(at), fields.get(at + KEY_FIELD)
        if address is None or key is None or not address[1] == key[1] == elf.R_X86_64_PC32:
            raise MalformedError("a record without its two relocations", offset=file.offsets[table] + at)
        base = file.symbol(address[2])
        name = file.symbol_name(key[2])
        for prefix in (KEY, TRAMPOLINE):
            if name.startswith(prefix) and not key[3] & ~FLAG_MASK:
                yield (base.section, base.value + address[3]), Site(name[len(prefix) :], bool(key[3] & TAIL_FLAG))
                break
        else:
            raise MalformedError("a record that names no key", offset=file.offsets[table] + at)
