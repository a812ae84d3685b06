"""From an object's sites to the table that it shall have, record for record as the kernel's own build tool makes it.

    .static_call_sites          eight zero bytes a record
    .rela.static_call_sites     record + 0   R_X86_64_PC32   section symbol + offset of the site
                                record + 4   R_X86_64_PC32   __SCK__x + 0, or + 1 for a tail

All jmp and jcc records come first, then all calls, each in order of sections and offsets. `addr` goes through a
section symbol, since one that could be preempted or interposed may lead elsewhere. Source: tools/objtool/check.c,
create_static_call_sections(), Linux 6.12, measured on its output.

What objtool does not know: sites in a section group get a table of their own in that group, so that a linker
which drops the group drops their records too.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping

from staticcall.abi import elf64, static_call
from staticcall.errors import MalformedError, UnsupportedError
from staticcall.model.form import Form
from staticcall.model.image import Section
from staticcall.model.object import ObjectFile, RelocatedSite
from staticcall.model.rewrite import Annotation, NewSection, Numbering, Rewrite, number_symbols

KERNEL_TABLE = static_call.TABLE_SECTIONS[0]
_INDIRECT = frozenset({Form.INDIRECT_CALL, Form.INDIRECT_JMP})
_KEY_FIELD = 4


def plan_annotation(file: ObjectFile, sites: Iterable[RelocatedSite], *, section: str, module: bool) -> Annotation:
    """Plan the table named `section` for the sites of an object, which come in order of sections and offsets.

    With `module`, a site whose key has no symbol is recorded with its trampoline instead. No kernel accepts a call
    through the GOT, so its own table leaves those out. Raises `UnsupportedError` for a key without a symbol, and for
    a section of that name that is something else.
    """
    for known in file.sections:
        if known.name in static_call.TABLE_SECTIONS or (known.name == section and _is_table(file, known)):
            return Annotation(None, (), 0, annotated=True)
        if known.name == section:
            raise UnsupportedError(
                f"has a section {section} that is no table", offset=known.offset, advice="give another name"
            )
    everything = list(sites)
    recorded = everything
    if section == KERNEL_TABLE:
        recorded = [site for site in everything if site.form not in _INDIRECT]
    indirect = len(everything) - len(recorded)
    if not recorded:
        return Annotation(None, (), indirect, annotated=False)
    if file.signed:
        raise UnsupportedError("is a signed module without a table", advice="annotate the objects it is made of")
    recorded.sort(key=_calls_last)  # stable, so the order of sections and offsets stays
    named = file.symbols.section_symbols()
    homes = {site.section for site in recorded}
    for home in homes & named.keys():
        _check_base(file, home, named[home])
    lacking = tuple(sorted(homes - named.keys()))
    numbering = number_symbols(file, lacking)
    bases = {number: numbering.new(symbol) for number, symbol in named.items()} | dict(numbering.section_symbols)
    keys = _key_symbols(file, recorded, numbering, module=module)
    groups = _groups(file)
    tables: dict[int, list[RelocatedSite]] = {}
    for site in recorded:
        tables.setdefault(groups.get(site.section, 0), []).append(site)
    sections: list[NewSection] = []
    contents: dict[int, bytes] = {}
    for group, members in sorted(tables.items()):
        number = len(file.sections) + len(sections)
        sections += _table(file, section, number, members, bases, keys, grouped=bool(group))
        if group:
            own = (number, number + 1)
            contents[group] = file.content(file.sections[group]) + b"".join(map(elf64.WORD.pack, own))
    rewrite = Rewrite(numbering, sections=tuple(sections), contents=contents)
    return Annotation(rewrite, tuple(recorded), indirect, annotated=False)


def _is_table(file: ObjectFile, section: Section) -> bool:
    """Whether a section of the name that is asked for is a table: every field has a relocation, as all are relative."""
    fields = [
        kind
        for own in file.relocation_sections()
        if own.info == section.number
        for kind in file.relocations(own).types()
    ]
    return 0 < len(fields) * _KEY_FIELD == section.size and set(fields) <= {elf64.R_X86_64_PC32}


def _check_base(file: ObjectFile, section: int, number: int) -> None:
    """A section's symbol is its own; one that others could replace may lead elsewhere."""
    symbol = file.symbols.symbol(number)
    if symbol.binding != elf64.STB_LOCAL:
        where = file.sections[section]
        raise MalformedError(
            f"symbol {number} cannot stand for section {where.name}",
            offset=where.offset,
            advice="the object is damaged",
        )


def _calls_last(site: RelocatedSite) -> bool:
    return not site.tail


def _key_symbols(
    file: ObjectFile, sites: Iterable[RelocatedSite], numbering: Numbering, *, module: bool
) -> Mapping[int, int]:
    """The new number of the symbol that records name, by the trampoline's old number."""
    symbols = file.symbols
    names = symbols.endings(static_call.TRAMPOLINE_PREFIX.encode())
    # Of several the last: what is local to an object that was linked into this one comes first.
    keys = {name: number for number, name in symbols.endings(static_call.KEY_PREFIX.encode()).items()}
    found: dict[int, int] = {}
    for site in sites:
        if site.trampoline in found:
            continue
        key = keys.get(names[site.trampoline], site.trampoline if module else None)
        if key is None:
            where = file.sections[site.section]
            missing = static_call.KEY_PREFIX + names[site.trampoline].decode(errors="backslashreplace")
            raise UnsupportedError(
                f"has no symbol {missing} for the {site.form} at {where.name}+{site.offset:#x}",
                offset=where.offset + site.offset,
                advice="declare the key where it is called, or give --module if it is a module's",
            )
        found[site.trampoline] = numbering.new(key)
    return found


def _groups(file: ObjectFile) -> dict[int, int]:
    """The section group that each member belongs to, both by their numbers."""
    found: dict[int, int] = {}
    for section in file.sections:
        if section.type == elf64.SHT_GROUP:
            members = elf64.column(_words(file.content(section)), "I", 0, 1)[1:]
            whole = not section.size % elf64.WORD.size
            if not whole or not all(0 < member < len(file.sections) for member in members):
                raise MalformedError(
                    f"section group {section.number} has a member that does not exist",
                    offset=section.offset,
                    advice="the object is damaged",
                )
            found.update(dict.fromkeys(members, section.number))
    return found


def _words(content: bytes) -> bytes:
    return content[: len(content) // elf64.WORD.size * elf64.WORD.size]


def _table(
    file: ObjectFile,
    name: str,
    number: int,
    sites: list[RelocatedSite],
    bases: Mapping[int, int],
    keys: Mapping[int, int],
    *,
    grouped: bool,
) -> tuple[NewSection, NewSection]:
    """The table, which gets this section number, and its relocations, which get the next one."""
    kind = elf64.R_X86_64_PC32
    fields = array("Q")
    place = 0
    for site in sites:
        fields.extend((place, bases[site.section] << 32 | kind, site.offset))
        flag = static_call.TAIL_FLAG if site.tail else 0
        fields.extend((place + _KEY_FIELD, keys[site.trampoline] << 32 | kind, flag))
        place += static_call.RECORD_SIZE
    flags = elf64.SHF_GROUP if grouped else 0
    # Kernels' linker scripts keep their table; in user space --gc-sections would drop what only records refer to.
    retained = 0 if name.startswith(".") else elf64.SHF_GNU_RETAIN
    table = NewSection(
        name,
        elf64.SHT_PROGBITS,
        elf64.SHF_WRITE | elf64.SHF_ALLOC | retained | flags,
        0,
        0,
        1,
        static_call.RECORD_SIZE,
        bytes(place),
    )
    relocations = NewSection(
        f".rela{name}",
        elf64.SHT_RELA,
        elf64.SHF_INFO_LINK | flags,
        file.symtab,
        number,
        8,
        elf64.RELA.size,
        elf64.little_endian(fields),
    )
    return table, relocations
