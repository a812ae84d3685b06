"""The writer of relocatable objects: it appends, and what was there stays where it was.

    ELF header          e_shoff, and the counts where sections were added
    old sections        byte for byte, but for patches and for symbol numbers that had to move
    contents that grew  symbol table, names, relocations, groups: as new copies
    new sections
    section headers     all of them, in the old order, the new ones behind

A section that moved leaves its old bytes behind as a gap. Nothing is parsed back into objects and written anew: that
is how meanings get lost (a symbol's name, for one, is no identity: `.LC0` occurs a hundred times).

Sources: System V gABI chapter 4; LLVM's extensions document for SHT_LLVM_ADDRSIG and call graph profiles.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import compress

from staticcall.abi import elf64
from staticcall.errors import MalformedError, UnsupportedError
from staticcall.model.image import Section
from staticcall.model.object import ObjectFile
from staticcall.model.rewrite import NewSection, Rewrite

_ALIGNMENT = 8
_MOST_ALIGNMENT = 4096  # of a table; no file needs to become larger for it
# Old call graph profiles: two symbol numbers and a weight. Newer ones have relocations, and eight bytes an entry.
_PROFILE_SIZE = 16
# The size of a relocation, by the type of its section.
_SYMBOL_NUMBERS = {elf64.SHT_RELA: elf64.RELA.size, elf64.SHT_REL: elf64.REL_SIZE}
# What may name the symbol table as its link and holds no symbol numbers that the writer would have to know.
_HANDLED = frozenset(
    {
        elf64.SHT_RELA,
        elf64.SHT_REL,
        elf64.SHT_GROUP,
        elf64.SHT_SYMTAB_SHNDX,
        elf64.SHT_LLVM_ADDRSIG,
        elf64.SHT_LLVM_CALL_GRAPH_PROFILE,
    }
)


def rewrite_object(file: ObjectFile, rewrite: Rewrite) -> bytearray:
    """The object with a rewrite applied to it.

    Raises `UnsupportedError` for sections whose symbol numbers it does not know how to change, `MalformedError` for
    damaged ones.
    """
    _check_end(file)
    return _Writer(file, rewrite).write()


def _check_end(file: ObjectFile) -> None:
    """What follows the last section, as a damaged signature does, belongs to nobody and cannot stay behind it."""
    headers = file.sections_at + len(file.sections) * elf64.SECTION.size
    if headers == file.end:
        return
    used = max(headers, *(s.offset + s.size for s in file.sections[1:] if s.type != elf64.SHT_NOBITS), 0)
    if file.data[used : file.end].strip(b"\0"):
        raise MalformedError(
            f"has {file.end - used} bytes behind its last section", offset=used, advice="the object is damaged"
        )


class _Writer:
    """One rewrite on its way: the output so far, and the section headers as they become."""

    def __init__(self, file: ObjectFile, rewrite: Rewrite) -> None:
        self._file = file
        self._rewrite = rewrite
        self._out = bytearray(file.data)
        count = len(file.sections)
        self._headers = bytearray(file.data[file.sections_at : file.sections_at + count * elf64.SECTION.size])
        self._contents = dict(rewrite.contents)
        self._appended: list[NewSection] = list(rewrite.sections)

    def write(self) -> bytearray:
        """The whole file."""
        for offset, data in self._rewrite.patches.items():
            self._out[offset : offset + len(data)] = data
        if self._rewrite.numbering.section_symbols or self._rewrite.undefined:
            self._check_numbers()
            if self._rewrite.numbering.moved:
                self._renumber()
            self._grow_symbols()
        names = self._grow_names()
        if self._rewrite.strip_signature:
            del self._out[self._file.end :]
        if self._contents or self._appended:
            for number, content in self._contents.items():
                self._move(number, content)
            for section, name in zip(self._appended, names, strict=True):
                self._append(section, name)
            self._finish()
        return self._out

    # ---- symbol numbers ----

    def _check_numbers(self) -> None:
        """What names a symbol that does not exist must not come to name a new one."""
        file, count = self._file, len(self._file.symbols)
        for section in file.sections:
            if section.link != file.symtab or section.number == file.symtab:
                continue
            highest = section.info if section.type == elf64.SHT_GROUP else 0
            if section.type in _SYMBOL_NUMBERS:
                size = _SYMBOL_NUMBERS[section.type]
                table = file.content(section)
                highest = max(elf64.column(table[: len(table) // size * size], "I", 3, size // 4), default=0)
            elif section.type == elf64.SHT_LLVM_ADDRSIG:
                highest = max(_uleb128s(file.content(section), section), default=0)
            if highest >= count:
                raise MalformedError(
                    f"section {section.name or section.number} names symbol {highest}, which does not exist",
                    offset=section.offset,
                    advice="the object is damaged",
                )

    def _renumber(self) -> None:
        """Let everything that holds symbol numbers follow the displaced globals."""
        file, moved = self._file, self._rewrite.numbering.moved
        for section in file.sections:
            if section.link != file.symtab or section.number == file.symtab:
                continue
            if section.type in (elf64.SHT_RELA, elf64.SHT_REL):
                self._renumber_relocations(section, moved)
            elif section.type == elf64.SHT_GROUP:
                # The group's name is the name of the symbol that its info says.
                self._set_header(section.number, 7, moved.get(section.info, section.info))
            elif section.type == elf64.SHT_LLVM_ADDRSIG:
                self._renumber_list(section, moved)
            elif section.type == elf64.SHT_LLVM_CALL_GRAPH_PROFILE:
                if section.entry_size == _PROFILE_SIZE:
                    self._renumber_profile(section, moved)
            elif section.type not in _HANDLED:
                raise UnsupportedError(
                    f"section {section.name or section.number} of type {section.type:#x} may hold symbol numbers",
                    offset=section.offset,
                    advice="remove it with objcopy, or compile without what makes it",
                )

    def _renumber_relocations(self, section: Section, moved: Mapping[int, int]) -> None:
        size = elf64.RELA.size if section.type == elf64.SHT_RELA else elf64.REL_SIZE
        content = self._contents.get(section.number)
        held = self._file.content(section) if content is None else content
        symbols = elf64.column(memoryview(held)[: len(held) // size * size], "I", 3, size // 4)
        out, base = (self._out, section.offset) if content is None else (bytearray(content), 0)
        for entry in compress(range(len(symbols)), map(moved.__contains__, symbols)):
            elf64.WORD.pack_into(out, base + entry * size + elf64.RELA_SYMBOL_OFFSET, moved[symbols[entry]])
        if content is not None:
            self._contents[section.number] = bytes(out)

    def _renumber_list(self, section: Section, moved: Mapping[int, int]) -> None:
        old = self._file.content(section)
        new = bytearray()  # joined pieces would take a hundred times the section's size
        for number in _uleb128s(old, section):
            new += _uleb128(moved.get(number, number))
        if len(new) == len(old):
            self._out[section.offset : section.offset + len(new)] = new
        else:
            self._contents[section.number] = bytes(new)

    def _renumber_profile(self, section: Section, moved: Mapping[int, int]) -> None:
        for entry in range(section.offset, section.offset + section.size - _PROFILE_SIZE + 1, _PROFILE_SIZE):
            for place in (entry, entry + elf64.WORD.size):
                (number,) = elf64.WORD.unpack_from(self._out, place)
                elf64.WORD.pack_into(self._out, place, moved.get(number, number))

    # ---- tables that grow ----

    def _grow_symbols(self) -> None:
        file, (locals_, moved, first_global) = self._file, self._rewrite.numbering
        size = elf64.SYMBOL.size
        table = bytearray(file.symbols.raw)
        table.extend(bytes(size * (len(locals_) + len(self._rewrite.undefined))))
        wide = self._wide_numbers(len(table) // size)
        old_wide = bytes(wide)
        for old, new in moved.items():
            table[new * size : new * size + size] = file.symbols.raw[old * size : old * size + size]
            if file.extended:
                wide[new * 4 : new * 4 + 4] = old_wide[old * 4 : old * 4 + 4]
        for section, number in locals_.items():
            narrow = section if section < elf64.SHN_LORESERVE else elf64.SHN_XINDEX
            info = elf64.STB_LOCAL << 4 | elf64.STT_SECTION
            elf64.SYMBOL.pack_into(table, number * size, 0, info, 0, narrow, 0, 0)
            if wide:
                elf64.WORD.pack_into(wide, number * 4, section if narrow == elf64.SHN_XINDEX else 0)
        number = len(file.symbols) + len(locals_)
        strings = bytearray()
        symtab = file.sections[file.symtab]
        names = file.sections[symtab.link]
        before = _ended(file.content(names))
        for name in self._rewrite.undefined:
            info = elf64.STB_GLOBAL << 4 | elf64.STT_NOTYPE
            elf64.SYMBOL.pack_into(table, number * size, len(before) + len(strings), info, 0, elf64.SHN_UNDEF, 0, 0)
            strings += name.encode() + b"\0"
            number += 1
        self._contents[file.symtab] = bytes(table)
        self._set_header(file.symtab, 7, first_global)
        if strings:
            self._contents[names.number] = before + bytes(strings)
        if wide:
            self._keep_wide(bytes(wide))

    def _wide_numbers(self, count: int) -> bytearray:
        """The 32-bit section numbers with room for `count` symbols; empty where 16 bits are enough."""
        file = self._file
        if file.extended:
            wide = bytearray(file.content(file.sections[file.extended]))
            wide.extend(bytes(count * elf64.WORD.size - len(wide)))
            return wide
        needed = any(section >= elf64.SHN_LORESERVE for section in self._rewrite.numbering.section_symbols)
        return bytearray(count * elf64.WORD.size if needed else 0)

    def _keep_wide(self, wide: bytes) -> None:
        if self._file.extended:
            self._contents[self._file.extended] = wide
            return
        kind, word = elf64.SHT_SYMTAB_SHNDX, elf64.WORD.size
        self._appended.append(NewSection(".symtab_shndx", kind, 0, self._file.symtab, 0, word, word, wide))

    def _grow_names(self) -> list[int]:
        """Add the new sections' names to the section names; returns where each of them begins."""
        if not self._appended:
            return []
        holder = self._file.sections[self._file.names_index]
        if not self._file.names_index:
            raise UnsupportedError("has no names for its sections", advice="give an object as a compiler makes it")
        names = bytearray(_ended(self._contents.get(holder.number, self._file.content(holder))))
        offsets: dict[str, int] = {}
        # Longer names first: `.rela.static_call_sites` ends with the name of its table.
        for name in sorted({section.name for section in self._appended}, key=len, reverse=True):
            longer = next((known for known in offsets if known.endswith(name)), None)
            if longer is None:
                offsets[name] = len(names)
                names += name.encode() + b"\0"
            else:
                offsets[name] = offsets[longer] + len(longer) - len(name)
        self._contents[holder.number] = bytes(names)
        return [offsets[section.name] for section in self._appended]

    # ---- the end of the file ----

    def _place(self, content: bytes, alignment: int) -> int:
        self._out.extend(bytes(-len(self._out) % max(alignment, 1)))
        offset = len(self._out)
        self._out += content
        return offset

    def _move(self, number: int, content: bytes) -> None:
        section = self._file.sections[number]
        if section.alignment > _MOST_ALIGNMENT or section.alignment & (section.alignment - 1):
            raise MalformedError(
                f"section {section.name or number} has an alignment of {section.alignment}",
                offset=section.offset,
                advice="the section headers are damaged",
            )
        offset = self._place(content, section.alignment)
        self._set_header(number, 4, offset)
        self._set_header(number, 5, len(content))

    def _append(self, section: NewSection, name: int) -> None:
        offset = self._place(section.content, section.alignment)
        self._headers += elf64.SECTION.pack(
            name,
            section.type,
            section.flags,
            0,
            offset,
            len(section.content),
            section.link,
            section.info,
            section.alignment,
            section.entry_size,
        )

    def _set_header(self, number: int, field: int, value: int) -> None:
        """Change one field of a section header, counted as in `elf64.SECTION`."""
        at = number * elf64.SECTION.size
        fields = list(elf64.SECTION.unpack_from(self._headers, at))
        fields[field] = value
        elf64.SECTION.pack_into(self._headers, at, *fields)

    def _finish(self) -> None:
        count = len(self._headers) // elf64.SECTION.size
        if count >= elf64.SHN_LORESERVE:
            self._set_header(0, 5, count)
        if self._file.names_index >= elf64.SHN_LORESERVE:
            self._set_header(0, 6, self._file.names_index)
        at = self._place(bytes(self._headers), _ALIGNMENT)
        fields = list(elf64.HEADER.unpack_from(self._out))
        fields[6] = at
        fields[12] = count if count < elf64.SHN_LORESERVE else 0
        elf64.HEADER.pack_into(self._out, 0, *fields)


def _ended(strings: bytes) -> bytes:
    """A string table that ends with the end of a string, also where it was empty."""
    return strings if strings.endswith(b"\0") else strings + b"\0"


def _uleb128(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _uleb128s(data: bytes, section: Section) -> Iterator[int]:
    number = shift = 0
    for byte in data:
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            yield number
            number = shift = 0
        elif shift > 63:
            raise _broken_list(section)
    if shift:
        raise _broken_list(section)


def _broken_list(section: Section) -> MalformedError:
    return MalformedError(
        f"section {section.name} is no list of symbol numbers", offset=section.offset, advice="compile again"
    )
