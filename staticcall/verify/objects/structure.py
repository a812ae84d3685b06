"""The old sections of an annotated object: all there, in their places, with what they had.

New local symbols displace as many globals to the end of the table, so what holds symbol numbers must follow
(`renumbered`); the section names grow by those of the new sections. All else is as it was.
"""

from collections.abc import Sequence
from itertools import compress
from operator import ne

from staticcall.errors import VerificationError
from staticcall.verify.objects import elf
from staticcall.verify.objects.elf import Elf, Symbols, Wanted
from staticcall.verify.objects.renumbered import Renumbering, check_numbers

# What may differ between two headers because there are more sections.
_COUNTED = (elf.SHOFF, elf.SHNUM, elf.SHSTRNDX)


def check_structure(before: Elf, after: Elf) -> Renumbering:
    """See that every old section is still there and has what it had.

    The sections behind the old ones, and what groups and tables gained, are the caller's to judge. Raises
    `VerificationError`, `MalformedError` where the original is broken.
    """
    check_headers(before, after)
    renumbering = _check_symbols(before, after)
    _check_sizes(before, after)
    _check_contents(before, after, renumbering)
    check_between(before, after)
    return renumbering


def check_headers(before: Elf, after: Elf) -> None:
    """Compare the ELF headers and, but for offsets and sizes, the headers of the old sections.

    The `info` of the symbol table and of groups is left to others. Raises `VerificationError`.
    """
    _check_header(before, after)
    _check_section_headers(before, after)


def _check_header(before: Elf, after: Elf) -> None:
    for i, (old, new) in enumerate(zip(before.header, after.header, strict=True)):
        if old != new and i not in _COUNTED:
            raise VerificationError(f"field {i} of the ELF header changed from {old} to {new}", offset=0)
    extended = after.section_count >= elf.SHN_LORESERVE
    stored = (0, after.section_count) if extended else (after.section_count, 0)
    if (after.header[elf.SHNUM], after.sizes[0]) != stored:
        raise VerificationError("the number of sections is stored in a wrong way", offset=60)
    extended = after.names_index >= elf.SHN_LORESERVE
    stored = (elf.SHN_XINDEX, after.names_index) if extended else (after.names_index, 0)
    if (after.header[elf.SHSTRNDX], after.links[0]) != stored or after.names_index != before.names_index:
        raise VerificationError("another section has the names of the sections", offset=62)


def _check_section_headers(before: Elf, after: Elf) -> None:
    """Compare what no section may change; names are the same if their table's old content is."""
    count = before.section_count
    if after.section_count < count:
        raise VerificationError(f"{count - after.section_count} sections are gone")
    same = {
        "name": (before.names, after.names),
        "type": (before.types, after.types),
        "flags": (before.flags, after.flags),
        "address": (before.addresses, after.addresses),
        "alignment": (before.alignments, after.alignments),
        "entry size": (before.entry_sizes, after.entry_sizes),
    }
    for what, (old, new) in same.items():
        if old != new[:count]:
            raise _changed(before, what, next(compress(range(count), map(ne, old, new))))
    if before.links[1:] != after.links[1:count]:
        raise _changed(before, "link", _differing(before.links, after.links)[0])
    if (before.offsets[0], before.infos[0]) != (after.offsets[0], after.infos[0]):
        raise _changed(before, "offset or info", 0)
    if before.infos != after.infos[:count]:
        for i in _differing(before.infos, after.infos):
            if before.types[i] not in (elf.SHT_SYMTAB, elf.SHT_GROUP):
                raise _changed(before, "info", i)
    if before.offsets != after.offsets[:count]:
        for i in _differing(before.offsets, after.offsets):
            if after.alignments[i] > 1 and after.offsets[i] % after.alignments[i]:
                raise VerificationError(f"{shown(before, i)} is not aligned", offset=after.offsets[i])


def _differing(old: Sequence[int], new: Sequence[int]) -> list[int]:
    """The sections, but for section 0, whose values differ."""
    return [i for i in compress(range(len(old)), map(ne, old, new)) if i]


def _changed(before: Elf, what: str, section: int) -> VerificationError:
    return VerificationError(f"the {what} of {shown(before, section)} changed")


def shown(before: Elf, section: int) -> str:
    """A section for a person."""
    return f"section {section} ({before.name(section).decode(errors='replace')})"


def _check_symbols(before: Elf, after: Elf) -> Renumbering:
    old, new = before.symbols, after.symbols
    if old is None or new is None:
        return Renumbering(range(0), {}, Wanted(()))
    added = new.total - old.total
    if added < 0 or new.locals_ != old.locals_ + added:
        raise VerificationError("the symbol table changed otherwise than by new local symbols", offset=new.start)
    _check_kept(before, after, elf.SYMBOL.size, old.start, new.start, old, added)
    moved = _displaced(before, after, old, new) if added else {}
    if old.extended_section:
        size = elf.WORD.size
        _check_kept(before, after, size, old.extended, new.extended, old, added)
        for number, home in moved.items():
            section = before.view[old.extended + number * size :][:size]
            if not after.data.startswith(section, new.extended + home * size):
                raise VerificationError(f"symbol {number} is in another section", offset=new.extended + home * size)
    return Renumbering(range(old.locals_, new.locals_), moved, Wanted(moved))


def _check_kept(before: Elf, after: Elf, size: int, start: int, home: int, old: Symbols, added: int) -> None:
    """Compare the entries of a table by symbol that no new local displaced; `size` is an entry's."""
    for begin, end in ((0, old.locals_), (old.locals_ + added, old.total)):
        piece = before.view[start + begin * size : start + end * size] if begin < end else b""
        if not after.data.startswith(piece, home + begin * size):
            raise VerificationError(
                f"symbols {begin} to {end - 1} are not those of the original", offset=home + begin * size
            )


def _displaced(before: Elf, after: Elf, old: Symbols, new: Symbols) -> dict[int, int]:
    """Find the globals whose numbers went to new locals, in whatever order they stand at the end."""
    size = elf.SYMBOL.size
    displaced = min(new.total - old.total, old.total - old.locals_)
    numbers: dict[bytes, list[int]] = {}
    for number in range(old.locals_ + displaced - 1, old.locals_ - 1, -1):
        numbers.setdefault(bytes(before.view[old.start + number * size :][:size]), []).append(number)
    moved = {}
    for home in range(new.total - displaced, new.total):
        found = numbers.get(bytes(after.view[new.start + home * size :][:size]))
        if not found:
            raise VerificationError(f"symbol {home} is none of the original", offset=new.start + home * size)
        moved[found.pop()] = home
    return moved


def _check_sizes(before: Elf, after: Elf) -> None:
    if before.sizes == after.sizes[: before.section_count]:
        return
    own = before.symbols
    for i in _differing(before.sizes, after.sizes):
        kind = before.types[i]
        grown = i == before.names_index or (kind == elf.SHT_GROUP and _only_new_members(before, after, i))
        by_symbols = own is not None and i in (own.section, own.extended_section)  # judged with the symbols
        if by_symbols or kind == elf.SHT_LLVM_ADDRSIG or (grown and after.sizes[i] > before.sizes[i]):
            continue
        raise _changed(before, "size", i)


def _only_new_members(before: Elf, after: Elf, group: int) -> bool:
    """Whether a group gained none of the old sections."""
    gained = after.content(group)[before.sizes[group] :]
    return len(gained) % elf.WORD.size == 0 and all(n >= before.section_count for n in elf.cells("I", gained))


def _check_contents(before: Elf, after: Elf, renumbering: Renumbering) -> None:
    """Compare the contents; what holds symbol numbers is left to `check_numbers` where any moved."""
    view, holds = before.view, after.data.startswith
    own = before.symbols
    done = () if own is None else (own.section, own.extended_section)
    moved = renumbering.moved
    if moved and own is not None:
        _check_numbered(before, own)
    in_place = not moved and holds(view[elf.HEADER.size :], elf.HEADER.size)
    columns = zip(before.types, before.offsets, before.sizes, after.offsets, strict=False)
    for i, (kind, offset, size, home) in enumerate(columns):
        if (in_place and offset == home) or holds(view[offset : offset + size], home) or kind == elf.SHT_NOBITS:
            if kind not in elf.WITH_SYMBOL_NUMBERS or not (moved or before.infos[i] != after.infos[i]):
                continue
        elif i == 0 or i in done:
            continue
        if not check_numbers(before, after, i, renumbering):
            raise VerificationError(f"{shown(before, i)} has another content", offset=first_other(before, after, i))


def _check_numbered(before: Elf, own: Symbols) -> None:
    """Whatever says that it is about the symbols is known to hold their numbers, or not to."""
    known = elf.WITH_SYMBOL_NUMBERS | {elf.SHT_NULL, elf.SHT_SYMTAB_SHNDX}
    for section, (kind, link) in enumerate(zip(before.types, before.links, strict=True)):
        if link == own.section and kind not in known:
            raise VerificationError(f"{shown(before, section)} may hold symbol numbers, and symbols moved")


def first_other(before: Elf, after: Elf, section: int) -> int:
    """Find the file offset in `after` of the first byte of a section that differs."""
    old, new = bytes(before.content(section)), bytes(after.content(section))
    at = next((i for i, pair in enumerate(zip(old, new, strict=False)) if pair[0] != pair[1]), len(old))
    return after.offsets[section] + at


def check_between(before: Elf, after: Elf) -> None:
    """See that whatever belongs to no section is padding, or was there before; raises `VerificationError`."""
    reach = 0
    for start, end in after.spans:
        if reach < start:
            piece = after.data[reach:start]
            if piece.strip(b"\0") and piece != before.data[reach:start].ljust(start - reach, b"\0"):
                raise VerificationError("bytes that belong to no section", offset=reach)
        reach = end
    if reach != len(after.data):
        raise VerificationError("bytes behind the last section", offset=reach)
