"""The symbol table of an ELF file, column by column."""

from __future__ import annotations

from staticcall.abi import elf64
from staticcall.errors import MalformedError
from staticcall.model.image import ByteSource, Section
from staticcall.model.symbols import SymbolTable


def read_table(source: ByteSource, sections: tuple[Section, ...], section: Section) -> SymbolTable:
    """The symbols in one section, and the strings that it names. Raises `MalformedError` for what is no table."""
    if section.entry_size != elf64.SYMBOL.size or section.size % elf64.SYMBOL.size:
        raise MalformedError(
            f"symbol table {section.name} is no array of {elf64.SYMBOL.size}-byte entries",
            offset=section.offset,
            advice="the section header is damaged",
        )
    if section.link >= len(sections) or sections[section.link].type != elf64.SHT_STRTAB:
        raise MalformedError(
            f"symbol table {section.name} names no string table",
            offset=section.offset,
            advice="the section header is damaged",
        )
    table = source.read(section.offset, section.size)
    strings = sections[section.link]
    return SymbolTable(table, source.read(strings.offset, strings.size))
