"""The types of functions by address or name, out of DWARF."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from functools import cache
from typing import Final

from staticcall.abi import dwarf as abi
from staticcall.abi import elf64
from staticcall.errors import UnsupportedError
from staticcall.model.image import Image
from staticcall.model.types import (
    DEEPEST,
    MOST_NODES,
    NAME_PER_NODE,
    Array,
    Basic,
    BasicKind,
    CType,
    Enumeration,
    Function,
    Pointer,
    Prototype,
    Qualified,
    Tagged,
    Typedef,
    Void,
)
from staticcall.read.dwarf import SIGNED, Dwarf, Entry, ExhaustedError, Unit
from staticcall.read.dwarf_sections import read_dwarf
from staticcall.read.names import plain_name

_QUALIFIERS: Final = {
    abi.TAG_CONST: "const",
    abi.TAG_VOLATILE: "volatile",
    abi.TAG_RESTRICT: "restrict",
    abi.TAG_ATOMIC: "_Atomic",
}
_MARKS: Final = {abi.TAG_POINTER: "*", abi.TAG_REFERENCE: "&", abi.TAG_RVALUE_REFERENCE: "&&"}
_KINDS: Final = {abi.TAG_STRUCTURE: "struct", abi.TAG_CLASS: "struct", abi.TAG_UNION: "union"}
_TOO_LARGE: Final = "the DWARF data is larger than is read for this"
# Of a name that many units declare, this many declarations are read.
_FEW: Final = 4
_MOST_PLACES: Final = 64
# A definition leads to what it defines in one step, seldom in two.
_MOST_STEPS: Final = 4


class _UnknownError(Exception):
    """The type is one that C has not."""


class DwarfTypes:
    """The functions of an image by their addresses in DWARF, and by their names where they are only declared."""

    name = "DWARF"
    hint = ""

    def __init__(self, image: Image) -> None:
        self._find: _Finder | None = None
        try:
            data = read_dwarf(image)
            self._find = _Finder(data) if data is not None else None
        except ExhaustedError:
            self.hint = _TOO_LARGE
        except UnsupportedError as error:
            self.hint = error.what

    def type_of(self, name: str, address: int) -> Prototype | None:
        """The type of the function there, or with that name; None where DWARF does not say or does not agree."""
        plain = plain_name(name)
        if self._find is None or plain is None:
            return None
        try:
            types = self._find.prototypes(plain, address)
        except ExhaustedError:
            self.hint = _TOO_LARGE
            return None
        return types[0] if types and all(types[0].agrees(other) for other in types) else None

    def assembled(self, address: int) -> bool:
        """Whether DWARF has a function there that was written in assembly."""
        if self._find is None:
            return False
        try:
            return self._find.assembled(address)
        except ExhaustedError:
            return False


class _Finder:
    """Finds functions without reading what does not mention them."""

    def __init__(self, data: Dwarf) -> None:
        self._data = data
        self._starts = [unit.start for unit in data.units]
        self._signatures = {unit.signature: unit for unit in data.units if unit.signature is not None}

    def unit_at(self, offset: int) -> Unit:
        """The unit that an offset of `.debug_info` lies in."""
        position = bisect_right(self._starts, offset) - 1
        if position < 0:
            raise self._data.damaged("refers to a place outside of all units", offset)
        return self._data.units[position]

    def entry(self, reference: int) -> Entry:
        """The entry at an offset of `.debug_info`, or that a type unit of that signature is about."""
        if reference >= SIGNED:
            unit = self._signatures.get(reference - SIGNED)
            if unit is None:
                raise _UnknownError
            reference = unit.type_offset
        entry = self._data.entry(self.unit_at(reference), reference)
        if entry is None:
            raise self._data.damaged("is no entry, and something refers to it", reference)
        return entry

    def at(self, address: int) -> Iterator[Entry]:
        """The functions whose code begins at a linked address."""
        sections = self._data.sections
        needle = address.to_bytes(elf64.POINTER_SIZE, "little")
        units = self._around(_places(sections.info, needle))
        if sections.addresses:
            units |= self._by_base(_places(sections.addresses, needle), 1)
        found = 0
        for unit in sorted(units):
            for offset in self._data.walk(unit).functions:
                entry = self.entry(offset)
                if entry.number(abi.AT_LOW_PC) == address:
                    found += 1
                    if found > _MOST_PLACES:
                        raise ExhaustedError(f"at {offset:#x} of .debug_info")
                    yield entry

    def named(self, name: str) -> Iterator[Entry]:
        """Declarations of a function that others define, from a few of the units that have one."""
        sections = self._data.sections
        needle = name.encode() + b"\0"
        units = self._around(_places(sections.info, needle))
        for place in _places(sections.strings, needle):
            if place and sections.strings[place - 1]:
                continue  # the end of a longer name, which linkers seldom share
            offset = place.to_bytes(4, "little")
            units |= self._around(_places(sections.info, offset))
            if sections.string_offsets:
                units |= self._by_base(_places(sections.string_offsets, offset), 0)
        found = 0
        for unit in sorted(units):
            entries = [self.entry(offset) for offset in self._data.walk(unit).functions]
            own = [entry for entry in entries if _declares(entry, name)]
            yield from own
            found += bool(own)
            if found == _FEW:
                return

    def prototypes(self, name: str, address: int) -> list[Prototype]:
        """The types of the functions with this name that begin at an address, else of those declared with it."""
        self._data.begin()
        found = [entry for entry in self.at(address) if self.is_called(entry, name)] if address else []
        found = found or list(self.named(name))
        return [type_ for type_ in map(self.prototype, found) if type_ is not None]

    def is_called(self, entry: Entry, name: str) -> bool:
        """Whether a function has this name: others may share its code, and be of other types."""
        declared = self.declaration(entry)
        names = {e.text(attribute) for e in (entry, declared) for attribute in (abi.AT_NAME, abi.AT_LINKAGE_NAME)}
        return name in names or name.startswith("0x")

    def _around(self, places: Iterator[int]) -> set[Unit]:
        return {self.unit_at(place) for place in places} if self._starts else set()

    def _by_base(self, places: Iterator[int], which: int) -> set[Unit]:
        """The units whose part of a table the places lie in, by where the parts begin."""
        wanted = list(places)
        if not wanted:
            return set()
        by_base: dict[int, list[Unit]] = {}
        for unit in self._data.units:
            by_base.setdefault(self._data.bases(unit)[which], []).append(unit)
        bases = sorted(by_base)
        positions = (bisect_right(bases, place) - 1 for place in wanted)
        return {unit for position in positions if position >= 0 for unit in by_base[bases[position]]}

    def assembled(self, address: int) -> bool:
        """Whether a unit of an assembler's has a function that begins at an address."""
        self._data.begin()
        return any(self._by_assembler(entry.unit) for entry in self.at(address))

    def _by_assembler(self, unit: Unit) -> bool:
        top = self._data.entry(unit, unit.first)
        return top is None or top.number(abi.AT_LANGUAGE) in abi.ASSEMBLERS

    def prototype(self, entry: Entry) -> Prototype | None:
        """The type of a function, None where it is not one of C's."""
        if self._by_assembler(entry.unit):
            return None
        declared = self.declaration(entry)
        if not declared.text(abi.AT_NAME):
            return None
        try:
            type_ = Prototype(_Builder(self, self._data).function(declared, 0))
        except _UnknownError:
            return None
        # With -g1 or for line tables alone, compilers name functions and leave all types out.
        return None if type_.bare and not self._data.walk(declared.unit).typed else type_

    def declaration(self, entry: Entry) -> Entry:
        """Where the parameters are as the source has them: what an instance is a copy of."""
        for _ in range(_MOST_STEPS):
            origin = entry.number(abi.AT_ORIGIN) or entry.number(abi.AT_SPECIFICATION)
            if origin is None:
                break
            entry = self.entry(origin)
        return entry

    def scope_of(self, entry: Entry) -> str:
        """The names of the namespaces and classes around an entry, as C++ writes them."""
        scopes = self._data.walk(entry.unit).scopes
        around = [start for start, end in scopes if start < entry.offset < end]
        return "".join(f"{self.entry(start).text(abi.AT_NAME) or '{...}'}::" for start in around)


def _declares(entry: Entry, name: str) -> bool:
    symbol = entry.text(abi.AT_LINKAGE_NAME) or entry.text(abi.AT_NAME)
    return abi.AT_DECLARATION in entry.attributes and symbol == name


def _places(data: bytes, needle: bytes) -> Iterator[int]:
    place = data.find(needle)
    for _ in range(_MOST_PLACES):
        if place < 0:
            return
        yield place
        place = data.find(needle, place + 1)


class _Builder:
    """Builds one type; raises `MalformedError` where it is nested deeper or is larger than any that people write."""

    def __init__(self, find: _Finder, data: Dwarf) -> None:
        self._find = find
        self._data = data
        self._left = MOST_NODES
        self._language = cache(self._language_of)

    def _language_of(self, start: int) -> int:
        top = self._data.entry(unit := self._find.unit_at(start), unit.first)
        return (top.number(abi.AT_LANGUAGE) if top else None) or 0

    def function(self, entry: Entry, depth: int) -> Function:
        """The type of a function, out of its own entry or that of a type."""
        parameters: list[CType] = []
        variadic = False
        for child in self._data.children(entry):
            if child.tag == abi.TAG_PARAMETER:
                parameters.append(self._type(child, depth + 1))
            elif child.tag == abi.TAG_VARIADIC:
                variadic = True
        prototyped = abi.AT_PROTOTYPED in entry.attributes or self._language(entry.unit.start) not in abi.C_LANGUAGES
        if not prototyped:
            return Function(self._type(entry, depth + 1), (), prototyped=False)
        return Function(self._type(entry, depth + 1), tuple(parameters), variadic)

    def _type(self, entry: Entry, depth: int, alias: str = "") -> CType:
        """What the type attribute of an entry leads to: void without one."""
        reference = entry.number(abi.AT_TYPE)
        return Void() if reference is None else self._referred(reference, depth, alias)

    def _referred(self, reference: int, depth: int, alias: str) -> CType:
        entry = self._find.entry(reference)
        name = entry.text(abi.AT_NAME)
        self._left -= 1 + len(name) // NAME_PER_NODE
        if self._left < 0 or depth > DEEPEST:
            raise self._data.damaged("is a type that leads in circles or has no end", entry.offset)
        signature = entry.number(abi.AT_SIGNATURE)
        if signature is not None:
            return self._referred(signature, depth + 1, alias)
        tag = entry.tag
        if tag in _QUALIFIERS:
            return Qualified(_QUALIFIERS[tag], self._type(entry, depth + 1, alias))
        if tag in _MARKS:
            return Pointer(self._type(entry, depth + 1), _MARKS[tag])
        if tag == abi.TAG_TYPEDEF:
            return Typedef(name, self._type(entry, depth + 1, name))
        if tag == abi.TAG_FUNCTION_TYPE:
            return self.function(entry, depth + 1)
        if tag == abi.TAG_ARRAY:
            return self._array(entry, depth + 1)
        if tag == abi.TAG_BASE:
            return _basic(entry, name)
        if tag in _KINDS:
            return self._tagged(entry, name, alias)
        if tag == abi.TAG_ENUMERATION:
            return self._enumeration(entry, name, alias, depth)
        raise _UnknownError

    def _array(self, entry: Entry, depth: int) -> Array:
        element = self._type(entry, depth)
        counts: list[int | None] = []
        for child in self._data.children(entry):
            if child.tag == abi.TAG_SUBRANGE:
                last, count = child.number(abi.AT_UPPER_BOUND), child.number(abi.AT_COUNT)
                counts.append(count if last is None else last + 1)
        for count in reversed(counts):
            element = Array(element, count, abi.AT_VECTOR in entry.attributes)
        if not isinstance(element, Array):
            raise _UnknownError
        return element

    def _tagged(self, entry: Entry, name: str, alias: str) -> Tagged:
        kind = _KINDS[entry.tag]
        size = None if abi.AT_DECLARATION in entry.attributes else entry.number(abi.AT_BYTE_SIZE)
        if name:
            return Tagged(kind, self._qualified(entry, name), size)
        return Tagged(kind, "", size, alias, self._names_in(entry, abi.TAG_MEMBER))

    def _qualified(self, entry: Entry, name: str) -> str:
        return name if self._language(entry.unit.start) in abi.C_LANGUAGES else self._find.scope_of(entry) + name

    def _names_in(self, entry: Entry, tag: int) -> tuple[str, ...]:
        return tuple(child.text(abi.AT_NAME) for child in self._data.children(entry) if child.tag == tag)

    def _enumeration(self, entry: Entry, name: str, alias: str, depth: int) -> Enumeration:
        size = entry.number(abi.AT_BYTE_SIZE)
        signed: bool | None = None
        underlying = self._type(entry, depth + 1)
        encoding = entry.number(abi.AT_ENCODING)
        if isinstance(underlying, Basic):
            size = underlying.size if size is None else size
            signed = "unsigned" not in underlying.name
        elif encoding is not None:
            signed = encoding in abi.SIGNED_ENCODINGS
        if size is None:
            raise _UnknownError
        if name:
            return Enumeration(self._qualified(entry, name), size, signed)
        return Enumeration("", size, signed, alias, self._names_in(entry, abi.TAG_ENUMERATOR))


def _basic(entry: Entry, name: str) -> Basic:
    encoding, size = entry.number(abi.AT_ENCODING), entry.number(abi.AT_BYTE_SIZE)
    if encoding is None or size is None or not name:
        raise _UnknownError
    if encoding == abi.ENCODING_BOOLEAN:
        return Basic("_Bool", size, BasicKind.INTEGER)
    kind = BasicKind.INTEGER if encoding in abi.SIGNED_ENCODINGS | abi.UNSIGNED_ENCODINGS else BasicKind.OTHER
    return Basic(name, size, BasicKind.FLOAT if encoding == abi.ENCODING_FLOAT else kind)
