"""A second opinion by LIEF: both files have the same structure, as a reader unlike all others here sees it.

It takes seconds and a gigabyte for a kernel, hence it is only run when it is asked for.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from staticcall.errors import MalformedError, VerificationError
from staticcall.verify.source import opened

if TYPE_CHECKING:
    import lief

# What a reader sees of one thing (a section, a symbol): made of plain values, so that it can be compared.
_Facts = tuple[object, ...]


def same_layout(original: Path, patched: Path) -> None:
    """Compare sections, segments, symbols and dynamic relocations, but for addends, of two linked images.

    Raises `VerificationError` at the first difference, `InputError` or `MalformedError` where LIEF cannot
    read a file.
    """
    before, after = _parse(original), _parse(patched)
    with warnings.catch_warnings():
        # A number that LIEF has no name for is a warning to it, and a fact like any other here.
        warnings.simplefilter("ignore", RuntimeWarning)
        for what, facts in _VIEWS.items():
            for i, (left, right) in enumerate(zip_longest(facts(before), facts(after))):
                if left != right:
                    raise VerificationError(
                        f"LIEF sees a different {what} number {i}: {_shown(left)}, then {_shown(right)}",
                        path=patched,
                    )


def _parse(path: Path) -> lief.ELF.Binary:
    # Imported here: it takes a third of a second.
    import lief  # noqa: PLC0415 - see the line above

    lief.logging.disable()
    with opened(path):  # LIEF itself would wait for ever on a pipe
        binary = lief.ELF.parse(str(path))
    if binary is None:
        raise MalformedError("LIEF cannot read it as an ELF file", path=path)
    return binary


def _shown(facts: _Facts | None) -> str:
    return "none" if facts is None else " ".join(hex(f) if isinstance(f, int) else str(f) for f in facts)


def _name(value: object) -> object:
    """A number's name in LIEF, which leaves those without one as they are."""
    return getattr(value, "name", value)


def _header(binary: lief.ELF.Binary) -> Iterable[_Facts]:
    header = binary.header
    yield (_name(header.file_type), _name(header.machine_type), header.entrypoint)


def _sections(binary: lief.ELF.Binary) -> Iterable[_Facts]:
    for s in binary.sections:
        yield (
            s.name,
            _name(s.type),
            int(s.flags),
            s.virtual_address,
            s.file_offset,
            s.size,
            s.alignment,
            s.link,
            s.information,
            s.entry_size,
        )


def _segments(binary: lief.ELF.Binary) -> Iterable[_Facts]:
    for s in binary.segments:
        yield (
            _name(s.type),
            int(s.flags),
            s.file_offset,
            s.virtual_address,
            s.physical_address,
            s.physical_size,
            s.virtual_size,
            s.alignment,
        )


def _symbols(binary: lief.ELF.Binary) -> Iterable[_Facts]:
    for s in binary.symbols:
        yield (s.name, s.value, s.size, _name(s.type), _name(s.binding), _name(s.visibility), s.shndx)


def _relocations(binary: lief.ELF.Binary) -> Iterable[_Facts]:
    for r in binary.dynamic_relocations:
        yield (r.address, _name(r.type), r.symbol.name if r.symbol else "")


_VIEWS: dict[str, Callable[[lief.ELF.Binary], Iterable[_Facts]]] = {
    "header": _header,
    "section": _sections,
    "segment": _segments,
    "symbol": _symbols,
    "dynamic relocation": _relocations,
}
