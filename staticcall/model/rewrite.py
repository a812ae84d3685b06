"""What becomes of a relocatable object, before it is written."""

from collections.abc import Mapping
from typing import NamedTuple

from staticcall.model.object import ObjectFile, RelocatedSite


class NewSection(NamedTuple):
    """A section to append; `link` and `info` are section numbers of the result."""

    name: str
    type: int
    flags: int
    link: int
    info: int
    alignment: int
    entry_size: int
    content: bytes


class Numbering(NamedTuple):
    """The symbol numbers of the result.

    Local symbols stand before global ones, so each new local takes the place of a global, which moves behind all
    others. `section_symbols` are the new locals' numbers by the section they stand for, `moved` maps the old number
    of every displaced symbol to its new one, `first_global` is where the globals now begin.
    """

    section_symbols: Mapping[int, int]
    moved: Mapping[int, int]
    first_global: int

    def new(self, number: int) -> int:
        """The new number of a symbol that the object had before."""
        return self.moved.get(number, number)


def number_symbols(file: ObjectFile, sections: tuple[int, ...]) -> Numbering:
    """The numbering after each of these sections got a symbol, as the kernel's own build tool makes them."""
    count = len(file.symbols)
    first = file.sections[file.symtab].info if file.symtab else 0
    displaced = min(len(sections), count - first)
    behind = first + len(sections) if displaced < len(sections) else count
    return Numbering(
        {section: first + i for i, section in enumerate(sections)},
        {first + i: behind + i for i in range(displaced)},
        first + len(sections),
    )


class Rewrite(NamedTuple):
    """The change of a whole object.

    `numbering` has the new section symbols, `undefined` names new undefined global symbols, which get the last
    numbers, `sections` are appended. `contents` are sections that change their size, by number; `patches` are bytes
    that change in place, by file offset. A module's signature goes with `strip_signature`.
    """

    numbering: Numbering
    undefined: tuple[str, ...] = ()
    sections: tuple[NewSection, ...] = ()
    contents: Mapping[int, bytes] = {}
    patches: Mapping[int, bytes] = {}
    strip_signature: bool = False


class Annotation(NamedTuple):
    """How an object gets its table: the sites of its records in their order, or why there is nothing to do.

    `indirect` counts calls and jumps through the GOT that get no record.
    """

    rewrite: Rewrite | None
    records: tuple[RelocatedSite, ...]
    indirect: int
    annotated: bool
