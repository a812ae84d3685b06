"""What a retargeted object may have more than its original: symbols, their names, relocations, at the end of each.

A section that grew stands elsewhere, and its old bytes are nobody's. New sections are relocations for sections that
had none.
"""

from typing import NamedTuple

from staticcall.errors import MalformedError, VerificationError
from staticcall.verify.objects import elf
from staticcall.verify.objects.elf import Elf, Symbols
from staticcall.verify.objects.structure import check_headers, shown

# Source: include/linux/module_signature.h: the signature, twelve bytes with its size at their end, and this.
_MARK = b"~Module signature appended~\n"
_INFO_SIZE = 12
_RELA = b".rela"


class Grown(NamedTuple):
    """The numbers of the new symbols, and the first of the new sections."""

    symbols: range
    sections: range


def is_signed(data: bytes) -> bool:
    """Whether a module's signature stands behind the object."""
    return data.endswith(_MARK)


def without_signature(data: bytes) -> bytes:
    """The object without the signature of a module; raises `MalformedError` for one larger than the file."""
    if not is_signed(data):
        return data
    end = len(data) - len(_MARK) - _INFO_SIZE
    size = int.from_bytes(data[end + _INFO_SIZE - 4 : end + _INFO_SIZE], "big")
    if not 0 <= size <= end:
        raise MalformedError("a signature larger than the file", offset=max(end, 0))
    return data[: end - size]


def check_grown(before: Elf, after: Elf) -> Grown:
    """See that nothing but the tables grew, and in the ways that they may.

    What stands in relocations, and in sections that kept their size, is the caller's to judge. Raises
    `VerificationError`.
    """
    check_headers(before, after)
    if before.infos != after.infos[: before.section_count]:
        raise VerificationError("the number of local symbols, or the signature of a group, changed")
    added = _check_symbols(before, after)
    names = {_new_name(before, after, section) for section in range(before.section_count, after.section_count)}
    symbols = before.symbols
    strings = before.links[symbols.section] if symbols else 0
    tables = (symbols.section, symbols.extended_section) if symbols else ()
    for section in range(1, before.section_count):
        if before.sizes[section] == after.sizes[section]:
            continue
        allowed: set[bytes] = set()
        if section == strings:
            allowed |= {after.symbol_name(number) for number in added}
        if section == before.names_index:
            allowed |= names
        grown = after.sizes[section] > before.sizes[section]
        if not grown or not (allowed or section in tables or before.types[section] == elf.SHT_RELA):
            raise VerificationError(f"the size of {shown(before, section)} changed")
        if before.types[section] == elf.SHT_STRTAB:
            more = bytes(after.content(section)[before.sizes[section] :])
            if set(more.split(b"\0")) - {b""} != allowed:
                raise VerificationError("names that nobody has", offset=after.offsets[section])
    _check_between(before, after)
    return Grown(added, range(before.section_count, after.section_count))


def _check_symbols(before: Elf, after: Elf) -> range:
    """The new symbols, which are undefined, global and of no type, and stand behind the old ones."""
    old, new = before.symbols, after.symbols
    if old is None or new is None:
        return range(0)
    if not after.data.startswith(before.view[old.start : old.end], new.start) or new.total < old.total:
        raise VerificationError("the symbol table lost or changed a symbol", offset=new.start)
    _check_extended(before, after, old, new)
    added = range(old.total, new.total)
    names: set[bytes] = set()
    for number in added:
        symbol = after.symbol(number)
        wanted = (elf.STB_GLOBAL << 4 | elf.STT_NOTYPE, 0, elf.SHN_UNDEF, 0, 0)
        if symbol[1:] != wanted or not symbol.name or symbol.name in names or before.has_symbol(symbol.name):
            raise VerificationError(
                f"symbol {number} is new, and none that names a function elsewhere",
                offset=new.start + number * elf.SYMBOL.size,
            )
        names.add(symbol.name)
    return added


def _check_extended(before: Elf, after: Elf, old: Symbols, new: Symbols) -> None:
    if not old.extended_section:
        return
    content = bytes(after.content(old.extended_section))
    size = old.total * elf.WORD.size
    if content[:size] != before.content(old.extended_section) or any(content[size:]):
        raise VerificationError("the section numbers of symbols changed", offset=new.extended)


def _new_name(before: Elf, after: Elf, section: int) -> bytes:
    """The name of a new section, which is the relocations of one that had none."""
    target = after.infos[section]
    table = after.symbols
    wanted = (elf.SHT_RELA, elf.SHF_INFO_LINK, 0, table.section if table else 0, 8, elf.RELA.size)
    found = (
        after.types[section],
        after.flags[section],
        after.addresses[section],
        after.links[section],
        after.alignments[section],
        after.entry_sizes[section],
    )
    had = any(k in (elf.SHT_RELA, elf.SHT_REL) and i == target for k, i in zip(before.types, before.infos, strict=True))
    if found != wanted or had or not 0 < target < before.section_count:
        raise VerificationError(f"section {section} is new", offset=after.offsets[section])
    if after.name(section) != _RELA + before.name(target):
        raise VerificationError(f"section {section} has a wrong name", offset=after.offsets[section])
    return after.name(section)


def _check_between(before: Elf, after: Elf) -> None:
    """Whatever belongs to no section is padding, was there before, or is the start of what moved from there."""
    expected: bytearray | None = None
    for start, end in _gaps(after):
        piece = after.data[start:end]
        if not piece.strip(b"\0") or before.data.startswith(piece, start):
            continue
        if expected is None:
            expected = _left_behind(before, after)
        if piece != expected[start:end].ljust(end - start, b"\0"):
            raise VerificationError("bytes that belong to no section", offset=start)


def _gaps(file: Elf) -> list[tuple[int, int]]:
    ends = [0, *(end for _, end in file.spans)]
    starts = [*(start for start, _ in file.spans), len(file.data)]
    return [(end, start) for end, start in zip(ends, starts, strict=True) if end < start]


def _left_behind(before: Elf, after: Elf) -> bytearray:
    """The original with every section that moved as it now starts."""
    data = bytearray(before.data)
    for section in range(1, before.section_count):
        start, size = before.offsets[section], before.sizes[section]
        if after.offsets[section] != start and before.types[section] != elf.SHT_NOBITS:
            data[start : start + size] = after.content(section)[:size]
    return data
