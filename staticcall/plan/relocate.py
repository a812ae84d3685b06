"""From edits of a placed object to edits of its relocations.

The planner reckons with the addresses that an object's parts are pretended to have. Here each edit goes back to what
the object has instead of addresses:

    call, jmp or jcc        the opcode, a displacement of zeros, R_X86_64_PLT32 or PC32 to the target, addend -4
    nop, xor, ret           the bytes, and R_X86_64_NONE where a relocation was
    func of a key           eight zero bytes, and R_X86_64_64 to the target; R_X86_64_NONE for NULL
    record of a pinned site the symbols and addends of the two relocations of the donor's record

A relocation that is missing is added at the end of its section. Under a relocation there are zeros: the kernel's
module loader insists on that (arch/x86/kernel/module.c, __write_relocate_add()).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import compress, pairwise
from typing import Final, NamedTuple

from staticcall.abi import elf64, static_call, x86
from staticcall.errors import MalformedError, UnsafeError, UnsupportedError
from staticcall.model.change import Edit, EditKind, KeyChange, Plan
from staticcall.model.image import Image, Placement, Section
from staticcall.model.object import Relocations
from staticcall.model.rewrite import NewSection, Rewrite, number_symbols
from staticcall.plan.wishes import UNKNOWN_ROOM

_PLT_TYPES: Final = frozenset({elf64.R_X86_64_PLT32})
_BRANCH_TYPES: Final = _PLT_TYPES | {elf64.R_X86_64_PC32}
_HALF_RECORD: Final = static_call.RECORD_SIZE // 2
_DAMAGED: Final = "the object is damaged"
_NO_TYPES: Final = frozenset({elf64.STT_SECTION, elf64.STT_FILE, elf64.STT_TLS})


class _Entry(NamedTuple):
    """A relocation that is there: its file offset, its bytes, and its type."""

    file_offset: int
    content: bytes
    type: int


class _Wanted(NamedTuple):
    """What one edit comes down to: the section, the bytes there, and the relocation of the field that needs one.

    `start` counts from the section, as `field` does, which is where the displacement or pointer is. `kept` lists the
    types that a relocation of the field may go on to have.
    """

    edit: Edit
    section: Section
    start: int
    code: bytes
    field: int
    symbol: tuple[int, int] | None
    kept: frozenset[int] = frozenset()


def relocate(image: Image, plan: Plan, *, strip_signature: bool) -> tuple[Rewrite, tuple[Edit, ...]]:
    """Turn a plan for a placed object into its rewrite, and into the edits of the bytes that were there before.

    Raises `UnsafeError` for a target that no relocation of this object can name.
    """
    assert image.placement is not None, "only objects are placed"
    file = image.placement.file
    slots = [_slot(image, change) for change in plan.changes]
    resolve = _Resolver(image.placement, plan.undefined, _named(image, plan.changes, slots))
    wanted = [_wanted(image, edit, resolve) for edit in plan.edits if edit.kind is not EditKind.RECORD]
    records = [(edit.key, _fields(image, edit)) for edit in plan.edits if edit.kind is EditKind.RECORD]
    _check_defined(image.placement, {edit.key for edit in plan.edits})
    fields = [place for _, pairs in records for pair in pairs for place in pair]
    tables, entries = _entries(image.placement, [*((one.section, one.field) for one in wanted), *slots, *fields])
    for section, field in slots:
        _check_slot(section, field, entries.get((section.number, field)))
    copies = (_copied(entries, key, *pair) for key, pairs in records for pair in pairs)
    # A donor of the same key differs in its site alone.
    edits = [edit for edit in copies if edit.new != edit.old]
    added: dict[int, list[bytes]] = defaultdict(list)
    for one in wanted:
        edits += _code_edits(image.placement, one)
        entry = entries.get((one.section.number, one.field))
        content = _relocation(one, entry)
        if entry is None:
            if content is not None:
                added[one.section.number].append(content)
            continue
        new = content or elf64.RELA.pack(one.field, elf64.R_X86_64_NONE, 0)
        if new != entry.content:
            edits.append(Edit(entry.file_offset, entry.content, new, EditKind.RELOCATION, one.edit.key, None))
    edits.sort(key=_by_offset)
    for edit, following in pairwise(edits):
        if edit.file_offset + len(edit.old) > following.file_offset:
            raise MalformedError(
                f"places of {edit.key} and {following.key} overlap", offset=following.file_offset, advice=_DAMAGED
            )
    contents, sections = _grown(image.placement, tables, added)
    return (
        Rewrite(
            number_symbols(file, ()),
            plan.undefined,
            sections,
            _patched(file.sections, contents, edits),
            {edit.file_offset: edit.new for edit in edits},
            strip_signature,
        ),
        tuple(edits),
    )


# One of the two fields of a record: its section and the offset there.
_Field = tuple[Section, int]


def _fields(image: Image, edit: Edit) -> tuple[tuple[_Field, _Field], tuple[_Field, _Field]]:
    """The two fields of a record that changes, each with that of the record which it becomes a copy of."""
    assert edit.address is not None, "a placed object has addresses"
    assert edit.destination is not None, "a record becomes a copy of another one"
    places: list[_Field] = []
    for address in (edit.address, edit.destination):
        section = image.section_at(address)
        assert section is not None, "the records were read from sections"
        places += [(section, address - section.address), (section, address - section.address + _HALF_RECORD)]
    site, key, donors_site, donors_key = places
    return (site, donors_site), (key, donors_key)


def _copied(entries: Mapping[tuple[int, int], _Entry], key: str, own: _Field, donor: _Field) -> Edit:
    """The edit of one field's relocation; as the field is relative to itself, its symbol and addend say all."""
    to_own, to_donor = (entries.get((section.number, at)) for section, at in (own, donor))
    if to_own is None or to_donor is None:
        section, at = own if to_own is None else donor
        raise MalformedError(f"no relocation for the record at {section.name}+{at:#x}", advice=_DAMAGED)
    place, _, _ = elf64.RELA.unpack(to_own.content)
    _, info, addend = elf64.RELA.unpack(to_donor.content)
    new = elf64.RELA.pack(place, info, addend)
    return Edit(to_own.file_offset, to_own.content, new, EditKind.RECORD, key, None)


def layout_edits(before: bytes, after: bytes | bytearray, end: int) -> Iterable[Edit]:
    """The edits beside those of the plan: the ELF header, and what stands behind the old file's end at `end`."""
    header = elf64.HEADER.size
    if before[:header] != after[:header]:
        yield Edit(0, before[:header], bytes(after[:header]), EditKind.LAYOUT, "", None)
    if before[end:] != after[end:]:
        yield Edit(end, before[end:], bytes(after[end:]), EditKind.LAYOUT, "", None)


# A symbol's number and what is added to it, by the key that leads there and the address that it leads to.
_Named = Mapping[tuple[str, int], tuple[int, int]]


def _named(image: Image, changes: Iterable[KeyChange], slots: Iterable[tuple[Section, int]]) -> _Named:
    """The symbols by which keys are told or known to lead to their targets.

    Others may stand at the same place, and a linker may lead them elsewhere: a weak one, or one that is interposed.
    """
    assert image.placement is not None, "only objects are placed"
    file = image.placement.file
    bound: dict[tuple[Section, int], KeyChange] = {}
    found: dict[tuple[str, int], tuple[int, int]] = {}
    for change, slot in zip(changes, slots, strict=True):
        address = change.after.address
        if change.before.address == address:
            bound[slot] = change
            continue
        for number, rest in file.symbols.endings(change.after.name.encode()).items():
            if not rest and image.placement.addresses[number] == address:
                found[change.key.name, address] = number, 0
    _, entries = _entries(image.placement, bound)
    for (section, field), change in bound.items():
        entry = entries.get((section.number, field))
        if entry is not None and entry.type == elf64.R_X86_64_64:
            _, info, addend = elf64.RELA.unpack(entry.content)
            number = info >> 32
            # The PLT entry of a symbol that others see stands for its start alone.
            if not addend or file.symbols.binding(number) == elf64.STB_LOCAL:
                found[change.key.name, change.after.address] = number, addend
    return found


class _Resolver:
    """Which symbol and addend say an address."""

    def __init__(self, placement: Placement, unknown: tuple[str, ...], named: _Named) -> None:
        self._placement = placement
        self._told = named
        symbols = placement.file.symbols
        count = len(symbols)
        self._outside = {address: number for number, address in placement.undefined.items()}
        self._outside |= {placement.end + UNKNOWN_ROOM * i: count + i for i in range(len(unknown))}
        self._named: dict[tuple[int, int], tuple[int, int]] | None = None

    def __call__(self, address: int, section: Section | None, key: str) -> tuple[int, int]:
        """The symbol's number and the addend; `section` is the one that the address lies in."""
        told = self._told.get((key, address))
        if told is not None:
            return told
        number = self._outside.get(address)
        if number is not None:
            return number, 0
        if section is not None:
            offset = address - section.address
            if self._named is None:
                self._named = self._best_symbols()
            found = self._named.get((section.number, offset))
            if found is not None:
                return found[1], 0
            base = self._placement.file.symbols.section_symbols().get(section.number)
            if base is not None:
                return base, offset
        raise UnsafeError(
            f"no symbol says where key {key} shall lead",
            code="target-without-symbol",
            advice="name a function of the object, or one of another object",
        )

    def _best_symbols(self) -> dict[tuple[int, int], tuple[int, int]]:
        """The symbol of each place, functions and global ones first, as (rank, number)."""
        symbols = self._placement.file.symbols
        best: dict[tuple[int, int], tuple[int, int]] = {}
        # Whether there is a name is all there is to know of names, which may be long.
        entries = zip(symbols.sections(), elf64.SYMBOL.iter_unpack(symbols.raw), strict=True)
        for number, (section, (name, info, _, _, value, _)) in enumerate(entries):
            kind, binding = info & 0xF, info >> 4
            if not section or not name or kind in _NO_TYPES:
                continue
            rank = 2 * (kind == elf64.STT_FUNC) + (binding == elf64.STB_GLOBAL)
            place = (section, value)
            if place not in best or rank > best[place][0]:
                best[place] = (rank, number)
        return best


def _check_defined(placement: Placement, keys: set[str]) -> None:
    """What leads elsewhere does so at its key, its trampoline and its sites; one place alone is not enough."""
    symbols = placement.file.symbols
    for prefix in (static_call.KEY_PREFIX, static_call.TRAMPOLINE_PREFIX):
        found = (symbols.symbol(number) for number in symbols.endings(prefix.encode()))
        if missing := keys - {symbol.name.removeprefix(prefix) for symbol in found if symbol.section}:
            raise UnsupportedError(
                f"{prefix}{min(missing)} is not defined here", advice="patch the object that defines it"
            )


def _slot(image: Image, change: KeyChange) -> tuple[Section, int]:
    """Where the pointer of a key is: its section and the offset there."""
    section = image.section_at(change.key.address)
    if section is None:
        raise UnsupportedError(f"key {change.key.name} is in no section", advice=_DAMAGED)
    return section, change.key.address - section.address


def _check_slot(section: Section, offset: int, entry: _Entry | None) -> None:
    if entry is not None and entry.type not in (elf64.R_X86_64_NONE, elf64.R_X86_64_64):
        raise UnsupportedError(
            f"the key at {section.name}+{offset:#x} has a relocation of type {entry.type}",
            offset=entry.file_offset,
            advice="a key is a pointer of 64 bits",
        )


def _wanted(image: Image, edit: Edit, resolve: _Resolver) -> _Wanted:
    assert edit.address is not None, "a placed object has addresses"
    section = image.section_at(edit.address)
    if section is None:
        raise MalformedError(f"a place of key {edit.key} lies in no section", advice=_DAMAGED)
    start = edit.address - section.address
    if section.type == elf64.SHT_NOBITS or start + len(edit.old) > section.size:
        raise UnsupportedError(
            f"section {section.name} has no bytes for what is to be at {start:#x}",
            offset=section.offset,
            advice=_DAMAGED,
        )
    if edit.kind is EditKind.KEY:
        target = int.from_bytes(edit.new, "little")
        symbol = resolve(target, image.section_at(target), edit.key) if target else None
        return _Wanted(edit, section, start, bytes(len(edit.new)), start, symbol)
    field = start + len(edit.new) - x86.REL32_SIZE
    if edit.destination is None:
        return _Wanted(edit, section, start, edit.new, start + len(edit.old) - x86.REL32_SIZE, None)
    home = image.section_at(edit.destination)
    symbol = resolve(edit.destination, home, edit.key)
    # What another shared object may define is reached by PLT32 alone; a kernel takes both for the same.
    kept = _BRANCH_TYPES if home is not None or image.kernel else _PLT_TYPES
    return _Wanted(edit, section, start, edit.new[: -x86.REL32_SIZE] + bytes(x86.REL32_SIZE), field, symbol, kept)


def _code_edits(placement: Placement, one: _Wanted) -> Iterable[Edit]:
    offset = one.section.offset + one.start
    old = placement.file.data[offset : offset + len(one.code)]
    if old != one.code:
        yield Edit(offset, old, one.code, one.edit.kind, one.edit.key, None, one.edit.form)


def _relocation(one: _Wanted, entry: _Entry | None) -> bytes | None:
    """The relocation of the field, None where it needs none."""
    if one.symbol is None:
        return None
    number, addend = one.symbol
    if one.edit.kind is EditKind.KEY:
        kind = elf64.R_X86_64_64
    else:
        kind = entry.type if entry and entry.type in one.kept else elf64.R_X86_64_PLT32
        addend -= x86.REL32_SIZE
    return elf64.RELA.pack(one.field, number << 32 | kind, addend)


def _entries(
    placement: Placement, wanted: Iterable[tuple[Section, int]]
) -> tuple[Mapping[int, Relocations], Mapping[tuple[int, int], _Entry]]:
    """The last relocation section of each section that is edited, and the relocations of all fields concerned."""
    fields: dict[int, set[int]] = defaultdict(set)
    for home, field in wanted:
        fields[home.number].add(field)
    tables: dict[int, Relocations] = {}
    found: dict[tuple[int, int], _Entry] = {}
    file = placement.file
    for section in file.relocation_sections():
        if section.info in fields:
            table = tables[section.info] = file.relocations(section)
            places = table.places()
            for number in compress(range(table.count), map(fields[section.info].__contains__, places)):
                offset, kind = table.offset + number * elf64.RELA.size, table.entry(number)[1]
                place = section.info, places[number]
                if place in found and elf64.R_X86_64_NONE not in (kind, found[place].type):
                    raise MalformedError("two relocations of one place", offset=offset, advice=_DAMAGED)
                if place not in found or kind != elf64.R_X86_64_NONE:
                    found[place] = _Entry(offset, file.data[offset : offset + elf64.RELA.size], kind)
    return tables, found


def _grown(
    placement: Placement, tables: Mapping[int, Relocations], added: Mapping[int, list[bytes]]
) -> tuple[dict[int, bytes], tuple[NewSection, ...]]:
    """The relocation sections that get more entries, by number, and those that a section gets as its first."""
    file = placement.file
    contents: dict[int, bytes] = {}
    sections: list[NewSection] = []
    for number, entries in sorted(added.items()):
        more = b"".join(entries)
        if number in tables:
            own = file.sections[tables[number].section]
            contents[own.number] = file.content(own) + more
        else:
            target, kind, flags = file.sections[number], elf64.SHT_RELA, elf64.SHF_INFO_LINK
            if target.flags & elf64.SHF_GROUP:
                raise UnsupportedError(
                    f"section {target.name} is in a section group and has no relocations yet",
                    offset=target.offset,
                    advice="choose the initial target in the source",
                )
            name = f".rela{target.name}"
            sections.append(NewSection(name, kind, flags, file.symtab, number, 8, elf64.RELA.size, more))
    return contents, tuple(sections)


def _patched(sections: tuple[Section, ...], contents: dict[int, bytes], edits: Iterable[Edit]) -> dict[int, bytes]:
    """The grown contents with the edits in them; where they were, the old bytes are a gap that follows too."""
    for number, content in contents.items():
        section, patched = sections[number], bytearray(content)
        for edit in edits:
            at = edit.file_offset - section.offset
            if 0 <= at < section.size:
                patched[at : at + len(edit.new)] = edit.new
        contents[number] = bytes(patched)
    return contents


def _by_offset(edit: Edit) -> int:
    return edit.file_offset
