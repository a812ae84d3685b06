"""Relocation entries of two files, compared and looked up.

A table of the patched file is the original's, entry by entry, with some of them changed and perhaps more at its
end. An R_X86_64_NONE entry means nothing, so one may come to stand for another place.
"""

from collections.abc import Collection, Iterator, Mapping
from itertools import compress
from typing import NamedTuple

from staticcall.errors import MalformedError, VerificationError
from staticcall.verify.objects import elf
from staticcall.verify.objects.elf import Elf

# Offset in the relocated section, type, symbol, addend.
Entry = tuple[int, int, int, int]

# Entries that are compared at once; where they differ, one by one.
_BLOCK = 256


class ChangedEntry(NamedTuple):
    """An entry that differs: the section that it relocates, and what it was, if it was there, and is."""

    section: int
    before: Entry | None
    after: Entry
    offset: int

    def places(self) -> Iterator[int]:
        """The offsets in the section that something happens to: NONE entries do nothing anywhere."""
        for entry in (self.before, self.after):
            if entry is not None and entry[1] != elf.R_X86_64_NONE:
                yield entry[0]

    @property
    def emptied_wrongly(self) -> bool:
        """Whether it became a NONE entry, and not for the place that it was for, or with something new in it."""
        if self.after[1] != elf.R_X86_64_NONE:
            return False
        if self.before is None or self.before[1] == elf.R_X86_64_NONE:
            return True
        return self.after[0] != self.before[0] or self.after[2:] not in ((0, 0), self.before[2:])


def changed_entries(before: Elf, after: Elf) -> list[ChangedEntry]:
    """Every relocation entry that differs, in all SHT_RELA tables.

    Raises `VerificationError` for tables that lost entries, `MalformedError` for half an entry.
    """
    found: list[ChangedEntry] = []
    for table, kind in enumerate(before.types):
        if kind != elf.SHT_RELA:
            continue
        old, new = before.content(table), after.content(table)
        if len(old) % elf.RELA.size or len(new) % elf.RELA.size:
            raise MalformedError("a relocation table with half an entry", offset=before.offsets[table])
        if len(new) < len(old):
            raise VerificationError("a relocation table became shorter", offset=after.offsets[table])
        if not after.data.startswith(old, after.offsets[table]) or len(new) > len(old):
            found += _changed(before.infos[table], old, new, after.offsets[table])
    for table in range(before.section_count, after.section_count):
        if after.types[table] == elf.SHT_RELA:
            new = after.content(table)
            if len(new) % elf.RELA.size:
                raise MalformedError("a relocation table with half an entry", offset=after.offsets[table])
            found += _changed(after.infos[table], after.view[:0], new, after.offsets[table])
    return found


def _changed(section: int, old: memoryview, new: memoryview, home: int) -> Iterator[ChangedEntry]:
    """The entries for a section that differ or were added; `home` is the new table's file offset."""
    size = elf.RELA.size
    for start in range(0, len(old), _BLOCK * size):
        left, right = bytes(old[start : start + _BLOCK * size]), bytes(new[start : start + _BLOCK * size])
        if left == right[: len(left)]:
            continue
        pairs = zip(elf.RELA.iter_unpack(left), elf.RELA.iter_unpack(right), strict=False)
        for number, (was, now) in enumerate(pairs):
            if was != now:
                yield ChangedEntry(section, was, now, home + start + number * size)
    for at in range(len(old), len(new), size):
        yield ChangedEntry(section, None, elf.RELA.unpack_from(new, at), home + at)


def entries_at(file: Elf, wanted: Mapping[int, Collection[int]]) -> dict[tuple[int, int], Entry]:
    """Find the entries, but for NONE ones, at offsets of sections.

    Raises `MalformedError` where two of them are at one place.
    """
    found: dict[tuple[int, int], Entry] = {}
    for table, kind in enumerate(file.types):
        section = file.infos[table]
        offsets = wanted.get(section)
        if kind != elf.SHT_RELA or not offsets:
            continue
        content = file.content(table)
        places = elf.cells("Q", content)[::3]
        for number in compress(range(len(places)), map(offsets.__contains__, places)):
            entry = elf.RELA.unpack_from(content, number * elf.RELA.size)
            if entry[1] == elf.R_X86_64_NONE:
                continue
            if (section, entry[0]) in found:
                raise MalformedError("two relocations of one place", offset=file.offsets[table])
            found[section, entry[0]] = entry
    return found
