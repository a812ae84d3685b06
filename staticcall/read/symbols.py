"""Where the names of a linked file come from: what the user names, then its own, then what lies where debuggers look.

    --system-map, --debug-file   always
    .symtab
    --debug-dir                  if it has a file with the same build id
    kallsyms                     a kernel's names for itself
    /usr/lib/debug               the same as --debug-dir, where nobody said otherwise; for programs .gnu_debuglink, too
    .dynsym

A separate debug file knows types and sizes, which kallsyms does not, so who names a folder of those gets them first.
"""

from __future__ import annotations

from pathlib import Path

from staticcall.abi import elf64
from staticcall.errors import UsageError
from staticcall.model.aids import NameAids
from staticcall.model.image import NO_NAMES, NameSource, Section
from staticcall.model.symbols import NO_SYMBOLS, SymbolTable
from staticcall.read.bare import Bare
from staticcall.read.elf_symbols import read_table

Names = tuple[SymbolTable, NameSource]


def read_symbols(path: Path, bare: Bare, aids: NameAids) -> Names:
    """The names of a linked file at `path`, and where they are from.

    Raises as the readers of each source do where it is one that the user named, or the file's own symbol table.
    """
    if aids.system_map is not None and aids.debug_file is not None:
        raise UsageError("--system-map and --debug-file both name everything", advice="give one of them")
    if aids.system_map is not None:
        from staticcall.read.system_map import read_system_map  # noqa: PLC0415 - only for --system-map

        return read_system_map(aids.system_map, bare), NameSource("system-map", aids.system_map)
    if aids.debug_file is not None:
        from staticcall.read.debug_file import read_debug_file  # noqa: PLC0415 - only for --debug-file

        return read_debug_file(aids.debug_file, bare), NameSource("debug-file", aids.debug_file)
    section = _table(bare, elf64.SHT_SYMTAB)
    if section is not None:
        return read_table(bare.source, bare.sections, section), NameSource("symtab")
    return _stripped(path, bare, aids)


def _stripped(path: Path, bare: Bare, aids: NameAids) -> Names:
    """The names of a file without a symbol table of its own."""
    from staticcall.read.debug_file import SYSTEM_DEBUG_DIR, find_debug_file, follow_debug_link  # noqa: PLC0415 - as above

    found = None if aids.debug_dir is None else find_debug_file(aids.debug_dir, bare)
    if found is None and bare.kernel:
        from staticcall.read.kallsyms import read_kallsyms  # noqa: PLC0415 - as above
        from staticcall.read.orc import named_by  # noqa: PLC0415 - as above

        listing = read_kallsyms(bare.source, bare.sections, bare.segments)
        if listing is not None:
            return named_by(listing, bare), NameSource("kallsyms")
    if found is None and aids.debug_dir is None:
        found = find_debug_file(SYSTEM_DEBUG_DIR, bare)
    if found is None:
        found = follow_debug_link(path, bare)
    if found is not None:
        return found[0], NameSource("debug-file", found[1])
    section = _table(bare, elf64.SHT_DYNSYM)
    if section is not None:
        return read_table(bare.source, bare.sections, section), NameSource("dynsym")
    return NO_SYMBOLS, NO_NAMES


def _table(bare: Bare, kind: int) -> Section | None:
    return next((section for section in bare.sections if section.type == kind and section.size), None)
