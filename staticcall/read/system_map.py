"""Names from a `System.map`, or from what nm prints otherwise: lines of an address, a letter and a name."""

from __future__ import annotations

import re
from array import array
from itertools import islice
from operator import le
from pathlib import Path
from typing import Final

from staticcall.errors import MalformedError, UnsupportedError, about
from staticcall.model.symbols import SymbolTable
from staticcall.read.bare import Bare, check_names
from staticcall.read.inputs import open_input
from staticcall.read.listing import LETTERS, Listing
from staticcall.read.orc import named_by

# `nm -S` has a size behind the address; what a module has is behind a tab in /proc/kallsyms.
_LINE: Final = re.compile(
    rb"^([0-9a-fA-F]{8,16}) (?:[0-9a-fA-F]{8,16} )?([%s]) (\S+)(\t\[\S+\])?[ \t\r]*$" % re.escape(LETTERS), re.MULTILINE
)
# What is undefined has no address.
_NO_ADDRESS: Final = re.compile(rb"[ \t]*(?:[UwvC] \S+)?[ \t\r]*")
_ENDS: Final = bytes.maketrans(b"\n\t\r ", b"\0\0\0\0")
# Thirty times as large as any kernel's.
_LARGEST: Final = 1 << 28
# Debian ships a line of this instead, and the real file with the debug symbols.
_PLACEHOLDER: Final = b"The real System.map is in"


def read_system_map(path: Path, bare: Bare) -> SymbolTable:
    """The names in a file, for an image whose they are.

    Raises `MalformedError` for lines of another kind, and `UnsupportedError` where they are another image's.
    """
    with about(path), open_input(path) as (source, _):
        if source.size > _LARGEST:
            raise UnsupportedError(f"has {source.size:,} bytes, more than any System.map", advice="check the name")
        text = source.whole()
        source.check_unchanged()
        table = named_by(_listing(text), bare)
        check_names(bare, table)
        return table


def _listing(text: bytes) -> Listing:
    lines = [match for match in _LINE.finditer(text) if match[4] is None]
    if not lines or len(lines) < text.count(b"\n"):
        _check_lines(text)
    addresses = array("Q", (int(match[1], 16) for match in lines))
    names = array("I", (match.start(3) for match in lines))
    letters = b"".join([match[2] for match in lines])
    if addresses and not any(addresses):
        raise MalformedError(
            "has 0 for every address", advice="read /proc/kallsyms as root, or take the System.map of the build"
        )
    if not all(map(le, addresses, islice(addresses, 1, None))):
        order = sorted(range(len(addresses)), key=addresses.__getitem__)
        addresses = array("Q", map(addresses.__getitem__, order))
        names = array("I", map(names.__getitem__, order))
        letters = bytes(map(letters.__getitem__, order))
    initials = bytes(map(text.__getitem__, names))
    return Listing(addresses, letters, initials, names, text.translate(_ENDS) + b"\0")


def _check_lines(text: bytes) -> None:
    """Raise unless every line is one of a list of symbols."""
    if _PLACEHOLDER in text[:256]:
        raise UnsupportedError(
            "only says where the real System.map is", advice="take that, out of the package with debug symbols"
        )
    offset, some = 0, False
    for number, line in enumerate(text.split(b"\n"), 1):
        listed = _LINE.fullmatch(line)
        some |= listed is not None
        if listed is None and not _NO_ADDRESS.fullmatch(line):
            raise MalformedError(
                f"line {number} is not an address, a letter and a name",
                offset=offset,
                advice="give a System.map or what nm prints",
            )
        offset += len(line) + 1
    if not some:
        raise MalformedError("names nothing", advice="give a System.map or what nm prints")
