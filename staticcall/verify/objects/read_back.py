"""A second opinion by LIEF: it reads an object as our own reader does.

LIEF writes relocatable objects wrongly, since then a relocation's symbol is looked for by its name; what it reads are
the numbers (both measured with LIEF 1.0). It takes a third of a second to import.
"""

from __future__ import annotations

import warnings
from array import array
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from staticcall.errors import MalformedError, VerificationError, about
from staticcall.verify.objects import elf
from staticcall.verify.source import opened

if TYPE_CHECKING:
    import lief

# In LIEF's numbers of types the upper bits say the machine.
_TYPE_MASK = (1 << 27) - 1
_SECTION_TYPE_MASK = (1 << 32) - 1
_STRINGS = "utf-8"
_MOST_NAMES = 1 << 26
_MOST_COPIES = 1 << 29

# Made of plain values, so that what two readers see can be compared.
_Facts = tuple[object, ...]


def reads_back(path: Path) -> None:
    """Compare sections with their contents, symbols, and relocations with their symbols, as both readers see them.

    Raises `VerificationError` at the first difference, `MalformedError` where either cannot read the file.
    """
    with about(path):
        with opened(path) as source:
            data = source.read(0, source.size)
        own = elf.read(data)
        if not own.header[elf.SHNUM]:
            return  # more sections than the header can count, of which LIEF sees none
        _check_names(own)
        other = _parse(data)
        views = (
            ("relocation", _once(_relocations(own)), _once(_lief_relocations(other))),
            ("symbol", _symbols(own), _lief_symbols(other)),
            ("section", _sections(own), _lief_sections(other)),
        )
        with warnings.catch_warnings():
            # A number that LIEF has no name for is a warning to it, and a fact like any other here.
            warnings.simplefilter("ignore", RuntimeWarning)
            for what, ours, theirs in views:
                for number, (here, there) in enumerate(zip_longest(ours, theirs)):
                    if here != there:
                        raise VerificationError(
                            f"LIEF sees {what} number {number} as {_shown(there)}, not {_shown(here)}"
                        )


def _check_names(own: elf.Elf) -> None:
    """See that there are not more bytes of names than any file has: those that share their ends could be any number.

    LIEF copies the name of every section and symbol, and of every relocation's symbol once more when it is asked.
    Raises `MalformedError`.
    """
    names = array("Q")
    room = _MOST_NAMES - sum(len(own.name(section)) for section in range(own.section_count))
    for number in range(own.symbol_count):
        names.append(len(own.symbol_name(number)))
        room -= names[-1]
        if room < 0:
            break
    copies = 0
    for table, kind in enumerate(own.types):
        if kind in (elf.SHT_RELA, elf.SHT_REL):
            size = elf.RELA.size if kind == elf.SHT_RELA else elf.REL.size
            numbers = elf.cells("I", own.content(table)[: own.sizes[table] // size * size])[3 :: size // 4]
            copies += sum(names[number] for number in numbers if number < len(names))
    if room < 0 or copies > _MOST_COPIES:
        raise MalformedError("names that are longer than any name")


def _parse(data: bytes) -> lief.ELF.Binary:
    # Imported here: it takes a third of a second.
    import lief  # noqa: PLC0415 - see the line above

    lief.logging.disable()
    binary = lief.ELF.parse(data)
    if binary is None:
        raise MalformedError("LIEF cannot read it as an ELF file")
    return binary


def _shown(facts: _Facts | None) -> str:
    if facts is None:
        return "none"
    return " ".join(f"{len(f)} bytes" if isinstance(f, bytes) else str(f) for f in facts)


def _text(name: bytes) -> str:
    return name.decode(_STRINGS, errors="replace")


def _lief_text(name: str | bytes) -> str:
    """A name, which LIEF gives as bytes where it is no UTF-8."""
    return name if isinstance(name, str) else _text(name)


def _sections(file: elf.Elf) -> Iterator[_Facts]:
    for i, kind in enumerate(file.types):
        empty = kind in (elf.SHT_NULL, elf.SHT_NOBITS)
        content = b"" if empty else bytes(file.content(i))
        yield (
            _text(file.name(i)),
            kind,
            file.flags[i],
            file.offsets[i],
            file.sizes[i],
            file.links[i],
            file.infos[i],
            file.alignments[i],
            file.entry_sizes[i],
            content,
        )


def _lief_sections(binary: lief.ELF.Binary) -> Iterator[_Facts]:
    for s in binary.sections:
        kind = int(s.type) & _SECTION_TYPE_MASK
        empty = kind in (elf.SHT_NULL, elf.SHT_NOBITS)
        yield (
            _lief_text(s.name),
            kind,
            int(s.flags),
            s.file_offset,
            s.size,
            s.link,
            s.information,
            s.alignment,
            s.entry_size,
            b"" if empty else bytes(s.content),
        )


def _symbols(file: elf.Elf) -> Iterator[_Facts]:
    for number in range(file.symbol_count):
        symbol = file.symbol(number)
        yield (_text(symbol.name), symbol.info, symbol.other, symbol.value, symbol.size)


def _lief_symbols(binary: lief.ELF.Binary) -> Iterator[_Facts]:
    for s in binary.symbols:
        yield (_lief_text(s.name), s.information, s.other, s.value, s.size)


def _relocations(file: elf.Elf) -> Iterator[_Facts]:
    for table, kind in enumerate(file.types):
        if kind not in (elf.SHT_RELA, elf.SHT_REL):
            continue
        if file.infos[table] >= file.section_count:
            raise MalformedError(f"relocations of section {file.infos[table]}, which does not exist")
        section = _text(file.name(file.infos[table]))
        layout = elf.RELA if kind == elf.SHT_RELA else elf.REL
        if file.sizes[table] % layout.size:
            raise MalformedError("a relocation table with half an entry", offset=file.offsets[table])
        for offset, type_, number, *addend in layout.iter_unpack(file.content(table)):
            symbol = file.symbol(number)
            yield (section, offset, type_ & _TYPE_MASK, sum(addend), number, _text(symbol.name), symbol.value)


def _once(relocations: Iterator[_Facts]) -> Iterator[_Facts]:
    """Leave out what is the same as what came before, of which LIEF keeps one: linkers empty several for one place."""
    before = None
    for facts in relocations:
        if facts != before:
            yield facts
        before = facts


def _lief_relocations(binary: lief.ELF.Binary) -> Iterator[_Facts]:
    for r in binary.object_relocations:
        section, symbol = r.section, r.symbol
        name, value = (_lief_text(symbol.name), symbol.value) if symbol else ("", 0)
        where = _lief_text(section.name) if section else ""
        yield (where, r.address, int(r.type) & _TYPE_MASK, r.addend, r.info, name, value)
