"""BTF, the type data that kernels and their modules carry: its records by number, its functions by name.

`.BTF` is a header, an array of type records of varying size, numbered from 1, and strings. A FUNC names a FUNC_PROTO,
which names the types of result and parameters; 0 is void. That of a module goes on where its base ends: its first
number is the one after the base's last, its first string stands behind all of the base's. The base is the `.BTF` of
the kernel, or the module's own `.BTF.base`, which has as much of it as the module needs (Linux 6.11 and later, modules
built on their own). Source: the kernel's documentation, bpf/btf.rst.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from typing import Final

from staticcall.abi import elf64
from staticcall.errors import InputError, MalformedError
from staticcall.read.strings import Strings

_HEADER: Final = Struct("<HBBIIIII")
_MAGIC: Final = 0xEB9F
INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF = range(1, 9)
VOLATILE, CONST, RESTRICT, FUNC, FUNC_PROTO, VAR, DATASEC, FLOAT = range(9, 17)
DECL_TAG, TYPE_TAG, ENUM64 = range(17, 20)
# Words of a record: its name; kind, flag and number of members; a size or type; then so many, and so many per member.
RECORD: Final = 3
_FIXED: Final = {INT: 1, ARRAY: 3, VAR: 1, DECL_TAG: 1}
_PER_MEMBER: Final = {STRUCT: 3, UNION: 3, ENUM: 2, FUNC_PROTO: 2, DATASEC: 3, ENUM64: 3}
_LENGTHS: Final = [RECORD + _FIXED.get(kind, 0) for kind in range(ENUM64 + 1)]
_EACH: Final = [_PER_MEMBER.get(kind, 0) for kind in range(ENUM64 + 1)]
# Those whose third word is a type's number.
_REFER: Final = frozenset({PTR, TYPEDEF, VOLATILE, CONST, RESTRICT, FUNC, FUNC_PROTO, VAR, DECL_TAG, TYPE_TAG})
_ADVICE: Final = "build the file again, or --force-type"


class Btf:
    """The type data of one file, on top of its base's.

    `data` is the section's content and `where` its offset in the file. Raises `MalformedError` where it breaks the
    format.
    """

    def __init__(self, data: bytes, where: int, base: Btf | None = None) -> None:
        self._where = where
        self._base = base
        if len(data) < _HEADER.size:
            raise self.damaged("the BTF data ends in its header")
        magic, _, _, header, types_at, types_size, strings_at, strings_size = _HEADER.unpack_from(data)
        if magic != _MAGIC or types_size % elf64.WORD.size:
            raise self.damaged("the BTF header is damaged")
        if header + max(types_at + types_size, strings_at + strings_size) > len(data):
            raise self.damaged("the BTF data ends before what its header says")
        types_at, strings_at = types_at + header, strings_at + header
        self._text = data[strings_at : strings_at + strings_size]
        self._strings = Strings(self._text, where + strings_at, "a BTF name")
        self._first: int = base.end if base else 1
        self._first_string: int = base.end_of_strings if base else 0
        self.end_of_strings: int = self._first_string + strings_size
        self._words = elf64.column(data[types_at : types_at + types_size], "I", 0, 1)
        self._functions: dict[int, list[int]] = {}
        self._places = self._walk()
        self.end: int = self._first + len(self._places)

    def damaged(self, what: str) -> MalformedError:
        """The error that says so of this data."""
        return MalformedError(what, offset=self._where, advice=_ADVICE)

    def _walk(self) -> list[int]:
        """Find where each record begins, and the functions among them."""
        words, functions = self._words, self._functions
        places: list[int] = []
        append = places.append
        position, last = 0, len(words) - RECORD
        while position <= last:
            info = words[position + 1]
            kind = info >> 24 & 0x1F
            if not 0 < kind <= ENUM64:
                raise self.damaged(f"BTF type {self._first + len(places)} has the unknown kind {kind}")
            if kind == FUNC:
                functions.setdefault(words[position], []).append(words[position + 2])
            append(position)
            position += _LENGTHS[kind] + _EACH[kind] * (info & 0xFFFF)
        if position != len(words):
            raise self.damaged("the last BTF type is cut off")
        return places

    def check_base(self) -> None:
        """Raise `InputError` unless names and types go on where those of the base end."""
        words = self._words
        for place in self._places:
            name, info, reference = words[place : place + RECORD]
            if not self._starts_string(name) or (info >> 24 & 0x1F in _REFER and reference >= self.end):
                raise InputError(
                    "has other type data than the kernel that this module was built for",
                    advice="give the vmlinux of the module's own build",
                )

    def _starts_string(self, name: int) -> bool:
        part, start = self._part_with(name)
        text = part._text
        return start < len(text) and (not start or not text[start - 1])

    def _part_with(self, name: int) -> tuple[Btf, int]:
        """Whose string a name is, and where it begins there."""
        part = self
        while part._base is not None and name < part._first_string:
            part = part._base
        return part, name - part._first_string

    def _parts(self) -> Iterator[Btf]:
        part: Btf | None = self
        while part is not None:
            yield part
            part = part._base

    def functions(self, name: str) -> list[int]:
        """The number of the type of every function of this name in the file itself."""
        needle = name.encode() + b"\0"
        offsets = []
        for part in self._parts():
            start = part._text.find(needle)
            while start >= 0:
                offsets.append(start + part._first_string)
                start = part._text.find(needle, start + 1)
        return [number for offset in offsets for number in self._functions.get(offset, ())]

    def record(self, number: int) -> tuple[int, str, int, int]:
        """Kind, name, third word and number of members of a type; raises `MalformedError` where there is none.

        A set `kind_flag`, bit 31 of the second word, is bit 16 of the last of these.
        """
        part, place = self._place(number)
        name, info, value = part._words[place : place + RECORD]
        return info >> 24 & 0x1F, self.name(name), value, info & 0xFFFF | (info >> 31) << 16

    def more(self, number: int) -> list[int]:
        """The words of a type behind its first three."""
        part, place = self._place(number)
        info = part._words[place + 1]
        kind = info >> 24 & 0x1F
        return part._words[place + RECORD : place + _LENGTHS[kind] + _EACH[kind] * (info & 0xFFFF)].tolist()

    def _place(self, number: int) -> tuple[Btf, int]:
        for part in self._parts():
            if part._first <= number < part.end:
                return part, part._places[number - part._first]
        raise self.damaged(f"BTF type {number} does not exist")

    def name(self, offset: int) -> str:
        """The string at an offset; raises `MalformedError` where there is none."""
        part, start = self._part_with(offset)
        return part._strings.at(start)
