"""DWARF, as far as types of functions need it: units, and the entries of one unit.

How long an entry is only the forms of its attributes tell. So units are walked from their start, but only those whose
bytes mention what is looked for. Nothing here is trusted: steps are counted, and a search that takes too many of them
ends without an answer.
Sources: DWARF 5, section 7.5, and DWARF 4 for units before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from struct import Struct
from typing import Final, NamedTuple

from staticcall.abi import dwarf as abi
from staticcall.errors import MalformedError

_SCOPES: Final = frozenset({abi.TAG_CLASS, abi.TAG_STRUCTURE, abi.TAG_UNION, abi.TAG_NAMESPACE})
_OF_INTEREST: Final = frozenset(
    {
        *(abi.AT_NAME, abi.AT_BYTE_SIZE, abi.AT_LOW_PC, abi.AT_LANGUAGE, abi.AT_CONST_VALUE, abi.AT_PROTOTYPED),
        *(abi.AT_UPPER_BOUND, abi.AT_ORIGIN, abi.AT_COUNT, abi.AT_DECLARATION, abi.AT_ENCODING, abi.AT_TYPE),
        *(abi.AT_SPECIFICATION, abi.AT_SIGNATURE, abi.AT_LINKAGE_NAME, abi.AT_STRINGS_BASE),
        *(abi.AT_ADDRESSES_BASE, abi.AT_VECTOR),
    }
)
# Some type of these is in every unit whose functions have types, as far as it has more than void f(void).
_TYPES: Final = frozenset({abi.TAG_BASE, abi.TAG_POINTER, abi.TAG_REFERENCE, abi.TAG_TYPEDEF, abi.TAG_ENUMERATION})
# Steps of a plan for skipping an entry that are no number of bytes.
_PAST_STRING, _PAST_LEB, _PAST_BLOCK, _PAST_BLOCK1, _PAST_BLOCK2, _PAST_BLOCK4, _PAST_INDIRECT = range(-7, 0)
_BLOCK_STEPS: Final = {0: _PAST_BLOCK, 1: _PAST_BLOCK1, 2: _PAST_BLOCK2, 4: _PAST_BLOCK4}
_BLOCK_SIZES: Final = {_PAST_BLOCK1: 1, _PAST_BLOCK2: 2, _PAST_BLOCK4: 4}

_LONG: Final = 0xFFFFFFFF
# References from here on are no offsets but the signatures of type units.
SIGNED: Final = 1 << 64
_ADDRESS: Final = Struct("<Q")
# An abbreviation of more attributes than that is no compiler's.
_MOST_ATTRIBUTES: Final = 256
_MOST_STEPS: Final = 2_000_000
# An entry that is read takes as long as so many that are walked over.
_ENTRY_STEPS: Final = 8
_LONGEST_NAME: Final = 1 << 16
_ADVICE: Final = "build the file again, or --force-type"


class ExhaustedError(Exception):
    """A search took more steps than a person would wait for."""


class Abbreviation(NamedTuple):
    """The shape of an entry: `skip` are the steps over its attributes, which are (attribute, form, constant)."""

    tag: int
    children: bool
    attributes: tuple[tuple[int, int, int], ...]
    skip: tuple[int, ...]


class Unit(NamedTuple):
    """One unit: where it is in `.debug_info`, what its forms depend on, and where its first entry is."""

    start: int
    end: int
    wide: int
    version: int
    abbreviations: int
    first: int
    signature: int | None
    type_offset: int


class Contents(NamedTuple):
    """Where the functions of a unit are, and the (start, end) of each scope that gives what is in it a longer name.

    Of scopes within each other the outer one comes first. `typed` tells whether the unit has any type.
    """

    functions: list[int]
    scopes: list[tuple[int, int]]
    typed: bool


class Entry(NamedTuple):
    """One entry, with those of its attributes that types need: numbers, names as bytes, references as offsets."""

    unit: Unit
    offset: int
    tag: int
    children: bool
    attributes: Mapping[int, int | bytes]
    end: int

    def number(self, attribute: int) -> int | None:
        """An attribute that is a number or reference, None without it."""
        value = self.attributes.get(attribute)
        return value if isinstance(value, int) else None

    def text(self, attribute: int) -> str:
        """An attribute that is a name, empty without it."""
        value = self.attributes.get(attribute, b"")
        return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else ""


class Sections(NamedTuple):
    """The content of `.debug_info` and what it refers to, relocated."""

    info: bytes
    abbrev: bytes
    strings: bytes
    line_strings: bytes
    string_offsets: bytes
    addresses: bytes


class Dwarf:
    """The entries of a file; raises `MalformedError` where they break the format."""

    def __init__(self, sections: Sections) -> None:
        self.sections: Final = sections
        self._steps = 0
        self._tables: dict[tuple[int, int], dict[int, Abbreviation]] = {}
        self._walked: dict[int, Contents] = {}
        self._bases: dict[int, tuple[int, int]] = {}
        self.units: Final = list(self._read_units())

    def damaged(self, what: str, offset: int) -> MalformedError:
        """The error that says so of a place in `.debug_info`."""
        return MalformedError(f"the DWARF data at {offset:#x} of .debug_info {what}", advice=_ADVICE)

    def _count(self, steps: int, offset: int) -> None:
        self._steps += steps
        if self._steps > _MOST_STEPS:
            raise ExhaustedError(f"at {offset:#x} of .debug_info")

    def begin(self) -> None:
        """Start to look for something else: steps are counted from here on."""
        self._steps = 0

    def _read_units(self) -> Iterator[Unit]:
        info, start = self.sections.info, 0
        while start < len(info):
            self._count(1, start)
            length, wide = self._fixed(start, 4), 4
            at = start + 4
            if length == _LONG:
                length, wide, at = self._fixed(at, 8), 8, at + 8
            end = at + length
            if end > len(info) or length < 7:
                raise self.damaged("is a unit that ends nowhere", start)
            version = self._fixed(at, 2)
            kind, signature, type_offset = abi.UNIT_COMPILE, None, 0
            if version >= 5:
                kind, size = self._fixed(at + 2, 1), self._fixed(at + 3, 1)
                abbreviations, at = self._fixed(at + 4, wide), at + 4 + wide
            else:
                abbreviations, size = self._fixed(at + 2, wide), self._fixed(at + 2 + wide, 1)
                at += 3 + wide
            if kind in (abi.UNIT_TYPE, abi.UNIT_SPLIT_TYPE):
                signature, type_offset = self._fixed(at, 8), self._fixed(at + 8, wide)
                at += 8 + wide
            elif kind in (abi.UNIT_SKELETON, abi.UNIT_SPLIT):
                at += 8
            if 2 <= version <= 5 and size == _ADDRESS.size:
                yield Unit(start, end, wide, version, abbreviations, at, signature, start + type_offset)
            start = end

    def _fixed(self, at: int, size: int) -> int:
        piece = self.sections.info[at : at + size]
        if len(piece) < size:
            raise self.damaged("ends inside of an entry", at)
        return int.from_bytes(piece, "little")

    def _leb(self, data: bytes, at: int, *, signed: bool = False) -> tuple[int, int]:
        found = abi.leb128(data, at, signed=signed)
        if found is None:
            raise self.damaged("has a number without an end", at)
        return found

    def _table(self, unit: Unit) -> dict[int, Abbreviation]:
        key = (unit.abbreviations, unit.wide)
        if key not in self._tables:
            self._tables[key] = self._read_table(unit)
        return self._tables[key]

    def _read_table(self, unit: Unit) -> dict[int, Abbreviation]:
        data, at = self.sections.abbrev, unit.abbreviations
        table: dict[int, Abbreviation] = {}
        while True:
            code, at = self._leb(data, at)
            if not code:
                return table
            tag, at = self._leb(data, at)
            children = data[at : at + 1] == b"\1"
            at += 1
            attributes: list[tuple[int, int, int]] = []
            while True:
                name, at = self._leb(data, at)
                form, at = self._leb(data, at)
                constant = 0
                if form == abi.FORM_IMPLICIT_CONST:
                    constant, at = self._leb(data, at, signed=True)
                if not name and not form:
                    break
                attributes.append((name, form, constant))
            self._count(1 + len(attributes), unit.start)
            if len(attributes) > _MOST_ATTRIBUTES:
                raise self.damaged("has more attributes than any", unit.start)
            table[code] = Abbreviation(tag, children, tuple(attributes), self._plan(attributes, unit))

    def _plan(self, attributes: list[tuple[int, int, int]], unit: Unit) -> tuple[int, ...]:
        """How to get over an entry's attributes: bytes together, and what has to be looked at one by one."""
        steps = [0]
        for _, form, _ in attributes:
            size = unit.wide if form in abi.OFFSET_FORMS else abi.FORM_SIZES.get(form)
            if form == abi.FORM_REF_ADDR and unit.version < 3:
                size = _ADDRESS.size
            if size is not None:
                if steps[-1] < 0:
                    steps.append(0)
                steps[-1] += size
            elif form == abi.FORM_STRING:
                steps.append(_PAST_STRING)
            elif form in abi.LEB_FORMS:
                steps.append(_PAST_LEB)
            elif form in abi.BLOCK_FORMS:
                steps.append(_BLOCK_STEPS[abi.BLOCK_FORMS[form]])
            elif form == abi.FORM_INDIRECT:
                steps.append(_PAST_INDIRECT)
            else:
                raise self.damaged(f"has an attribute of the unknown form {form:#x}", unit.start)
        return tuple(step for step in steps if step)

    def _past(self, step: int, at: int) -> int:
        """The place behind one attribute that has no fixed size."""
        info = self.sections.info
        if step == _PAST_LEB:
            while info[at] & 0x80:
                at += 1
            return at + 1
        if step == _PAST_STRING:
            end = info.find(b"\0", at)
            if end < 0:
                raise self.damaged("has a string without an end", at)
            return end + 1
        if step == _PAST_INDIRECT:
            raise self.damaged("has an indirect form, which no compiler writes", at)
        if step == _PAST_BLOCK:
            size, at = self._leb(info, at)
            return at + size
        size = _BLOCK_SIZES[step]
        return at + size + self._fixed(at, size)

    def walk(self, unit: Unit) -> Contents:
        """What is in a unit, without reading the entries."""
        if unit.start not in self._walked:
            try:
                self._walked[unit.start] = self._walk(unit)
            except IndexError:
                raise self.damaged("ends inside of an entry", unit.start) from None
        return self._walked[unit.start]

    def _walk(self, unit: Unit) -> Contents:
        info, table, at, end = self.sections.info, self._table(unit), unit.first, unit.end
        functions: list[int] = []
        scopes: list[tuple[int, int]] = []
        open_scopes: list[int] = []
        typed = False
        while at < end:
            start, code = at, info[at]
            at += 1
            if code & 0x80:
                code, at = self._leb(info, start)
            self._count(1, start)
            if not code:
                if open_scopes:
                    opened = open_scopes.pop()
                    if opened:
                        scopes.append((opened, at))
                continue
            abbreviation = table.get(code)
            if abbreviation is None:
                raise self.damaged(f"names abbreviation {code}, which does not exist", start)
            tag, children, _, skip = abbreviation
            for step in skip:
                self._steps += 1
                at = at + step if step > 0 else self._past(step, at)
            if tag == abi.TAG_SUBPROGRAM:
                functions.append(start)
            elif tag in _TYPES:
                typed = True
            if children:
                open_scopes.append(start if tag in _SCOPES else 0)
        if at != end:
            raise self.damaged("runs over the end of its unit", unit.start)
        return Contents(functions, sorted(scopes), typed)

    def entry(self, unit: Unit, offset: int) -> Entry | None:
        """The entry at an offset of a unit, None for the mark that ends a list of children."""
        if not unit.first <= offset < unit.end:
            raise self.damaged("refers to a place outside of its unit", offset)
        info = self.sections.info
        code, at = self._leb(info, offset)
        if not code:
            return None
        abbreviation = self._table(unit).get(code)
        if abbreviation is None:
            raise self.damaged(f"names abbreviation {code}, which does not exist", offset)
        self._count(_ENTRY_STEPS + len(abbreviation.attributes), offset)
        attributes: dict[int, int | bytes] = {}
        for name, form, constant in abbreviation.attributes:
            value, at = self._value(unit, form, constant, at)
            if name in _OF_INTEREST and value is not None:
                attributes[name] = value
        return Entry(unit, offset, abbreviation.tag, abbreviation.children, attributes, at)

    def _value(self, unit: Unit, form: int, constant: int, at: int) -> tuple[int | bytes | None, int]:
        """One attribute's value, None for what no type is made of, and the place behind it."""
        info = self.sections.info
        if form == abi.FORM_IMPLICIT_CONST:
            return constant, at
        if form == abi.FORM_SDATA:
            return self._leb(info, at, signed=True)
        if form in abi.LEB_FORMS:
            number, end = self._leb(info, at)
        elif form == abi.FORM_STRING:
            end = self._past(_PAST_STRING, at)
            return info[at : min(end - 1, at + _LONGEST_NAME)], end
        elif form in abi.BLOCK_FORMS:
            return None, self._past(_BLOCK_STEPS[abi.BLOCK_FORMS[form]], at)
        else:
            size = unit.wide if form in abi.OFFSET_FORMS else abi.FORM_SIZES.get(form)
            if size is None:
                raise self.damaged(f"has an attribute of the unknown form {form:#x}", at)
            if form == abi.FORM_REF_ADDR and unit.version < 3:
                size = _ADDRESS.size
            number, end = self._fixed(at, size) if size else 1, at + size
        return self._meaning(unit, form, number), end

    def _meaning(self, unit: Unit, form: int, number: int) -> int | bytes | None:
        """What a number in an entry stands for."""
        sections = self.sections
        if form in abi.FOREIGN_FORMS:
            return None
        if form == abi.FORM_REF_SIG8:
            return SIGNED + number
        if form == abi.FORM_STRP:
            return _text(sections.strings, number)
        if form == abi.FORM_LINE_STRP:
            return _text(sections.line_strings, number)
        if form in abi.STRING_INDEX_FORMS:
            at = self.bases(unit)[0] + number * unit.wide
            return _text(sections.strings, int.from_bytes(sections.string_offsets[at : at + unit.wide], "little"))
        if form in abi.ADDRESS_INDEX_FORMS:
            at = self.bases(unit)[1] + number * _ADDRESS.size
            piece = sections.addresses[at : at + _ADDRESS.size]
            return int.from_bytes(piece, "little") if len(piece) == _ADDRESS.size else None
        return unit.start + number if form in abi.IN_UNIT_FORMS else number

    def bases(self, unit: Unit) -> tuple[int, int]:
        """Where the unit's part of `.debug_str_offsets` and of `.debug_addr` begin."""
        if unit.start not in self._bases:
            # What a base is for may stand before it; names are not asked for here.
            self._bases[unit.start] = (0, 0)
            top = self.entry(unit, unit.first)
            strings, addresses = (
                (top.number(abi.AT_STRINGS_BASE), top.number(abi.AT_ADDRESSES_BASE)) if top else (None, None)
            )
            # Without a base, tables begin behind the header of the one and only one.
            self._bases[unit.start] = (strings if strings is not None else 8, addresses if addresses is not None else 8)
        return self._bases[unit.start]

    def children(self, entry: Entry) -> Iterator[Entry]:
        """The entries right below one; those below them are walked over."""
        if not entry.children:
            return
        at, depth = entry.end, 0
        while at < entry.unit.end:
            child = self.entry(entry.unit, at)
            if child is None:
                at += 1
                if not depth:
                    return
                depth -= 1
                continue
            if not depth:
                yield child
            depth += child.children
            at = child.end


def _text(strings: bytes, start: int) -> bytes | None:
    end = strings.find(b"\0", start, start + _LONGEST_NAME)
    return strings[start:end] if 0 <= start < len(strings) and end >= 0 else None
