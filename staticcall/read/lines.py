"""Source lines of addresses, by DWARF's line programs.

Neither `.debug_info` nor `.debug_aranges` is read: where a sequence of rows sets its address can be found by bytes, and
only the programs are decoded that have such a place near enough before an address that is asked for. What only looks
like such a place is noticed when its program is decoded.
Source: DWARF 5, section 6.2.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from operator import attrgetter
from typing import Final

from staticcall.abi import dwarf as abi
from staticcall.abi import elf64
from staticcall.errors import MalformedError, UnsupportedError
from staticcall.model.image import ByteSource, Image, Placement, Section
from staticcall.model.lines import SourceLine
from staticcall.read.dwarf_sections import content_of
from staticcall.read.headers import read_header, read_sections
from staticcall.read.inputs import open_input
from staticcall.read.line_files import Files, Strings
from staticcall.read.line_head import DamagedError, Program, Row, Shape, Wanted, read_program

_LINES: Final = ".debug_line"
# Of Debian's vmlinux one byte in seventeen is line programs, of other debug files fewer are.
_SHARE_OF_FILE: Final = 16
_OPCODE: Final = len(abi.LINE_SET_ADDRESS)
_LONG: Final = 0xFFFF_FFFF
# A kernel has a few thousand sequences; one for each function of a large program is still less.
_MOST_STARTS: Final = 1 << 21
# So many sequences may begin at one address, as copies of a function do that the linker joined.
_MOST_COPIES: Final = 4
_NO_ADDRESS: Final = -1
# Compilers use one shape of programs, or two.
_MOST_SHAPES: Final = 8
# A kernel has three thousand units, and the largest programs some ten thousands.
_MOST_UNITS: Final = 1 << 18
# Entries of tables of files that are passed over on the way to those wanted: 20,000 for all sites of a kernel.
_MOST_ENTRIES: Final = 1 << 20
# Bytes of programs that are decoded together.
_BATCH: Final = 1 << 20


def source_lines(image: Image, addresses: Collection[int]) -> dict[int, SourceLine]:
    """The place in the source of each linked address that DWARF of versions 2 to 5 knows.

    It is the file's own, or that of the debug file that the file's names are from. Paths are as the line programs have
    them: absolute, or relative to where the compiler ran. Of code that was inlined it is the innermost place. What is
    damaged, or of another kind, gives no lines and no error; only a file that cannot be read, or was changed
    meanwhile, raises `InputError`.
    """
    wanted = sorted(set(addresses))
    if not wanted:
        return {}
    try:
        if image.section_named((_LINES,)) is not None:
            return _lines(image.source, image.sections, image.placement, wanted)
        names = image.name_source
        if names.kind != "debug-file" or names.path is None:
            return {}
        # Its build id was compared when its names were read.
        with open_input(names.path) as (source, _):
            return _lines(source, read_sections(source, read_header(source)), None, wanted)
    except (MalformedError, UnsupportedError):
        return {}


def line_programs_size(image: Image) -> int:
    """How many bytes of line programs there are for an image; of a debug file it is what such files have of them."""
    own = [section.size for section in image.sections if section.name == _LINES]
    names = image.name_source
    if own or names.kind != "debug-file" or names.path is None:
        return sum(own)
    return names.path.stat().st_size // _SHARE_OF_FILE


def _lines(
    source: ByteSource, sections: Sequence[Section], placement: Placement | None, wanted: Sequence[int]
) -> dict[int, SourceLine]:
    def content(name: str) -> bytes:
        return b"".join(content_of(source, section, placement) for section in sections if section.name == name)

    data = content(_LINES)
    starts = _starts(data, wanted)
    if not starts:
        return {}
    strings = Strings(content(".debug_str"), content(".debug_line_str"))
    found: dict[int, SourceLine] = {}
    passed = 0
    for program, rows in _rows(data, starts):
        if passed > _MOST_ENTRIES:
            break
        if not rows:
            continue
        # One damaged program says nothing of the next.
        try:
            files = Files(data, program, strings)
        except DamagedError:
            # How far it was read is not known; an entry has a byte at least.
            passed += program.start - program.tables
            continue
        for address, row in rows.items():
            with suppress(DamagedError):
                found.setdefault(address, SourceLine(files.path(row.file), row.line))
        passed += files.passed
    return found


def _rows(data: bytes, starts: Sequence[Wanted]) -> Iterator[tuple[Program, dict[int, Row]]]:
    """The rows of addresses, by the programs that know them."""
    from staticcall.read.line_program import rows_of  # noqa: PLC0415 - imports numpy, 0.1 s

    together: dict[Shape, list[tuple[Program, Sequence[Wanted]]]] = {}
    for at, end, wide, own in _units(data, starts):
        with suppress(DamagedError):
            program = read_program(data, at, end, wide)
            if program.shape in together or len(together) < _MOST_SHAPES:
                together.setdefault(program.shape, []).append((program, own))
    for pairs in together.values():
        size, batch = 0, []
        for number, (program, own) in enumerate(pairs, 1):
            batch.append((program, own))
            size += program.end - program.start
            if size >= _BATCH or number == len(pairs):
                programs, wanted = zip(*batch, strict=True)
                yield from zip(programs, rows_of(data, programs, wanted), strict=True)
                size, batch = 0, []


def _starts(data: bytes, wanted: Sequence[int]) -> list[Wanted]:
    """The places that look as if a sequence began there, ascending, each with what it may be the nearest one to."""
    nearest = [_NO_ADDRESS] * len(wanted)
    places: list[list[int]] = [[] for _ in wanted]
    place = -1
    for _ in range(_MOST_STARTS):
        place = data.find(abi.LINE_SET_ADDRESS, place + 1)
        if place < 0:
            break
        address = int.from_bytes(data[place + _OPCODE : place + _OPCODE + elf64.POINTER_SIZE], "little")
        number = bisect_left(wanted, address)
        if number == len(wanted) or address < nearest[number]:
            continue
        if address > nearest[number]:
            nearest[number] = address
            places[number] = []
        if len(places[number]) < _MOST_COPIES:
            places[number].append(place)
    before: list[int] = []
    starts: list[Wanted] = []
    for address, own in zip(wanted, places, strict=True):
        before = own or before
        starts += (Wanted(address, place) for place in before)
    return sorted(starts, key=attrgetter("place", "address"))


def _units(data: bytes, starts: Sequence[Wanted]) -> Iterator[tuple[int, int, int, Sequence[Wanted]]]:
    """The units that have a start: where the version is, where the unit ends, the size of an offset, and the starts."""
    places = [start.place for start in starts]
    at = done = 0
    for _ in range(_MOST_UNITS):
        if at >= len(data) or done >= len(starts):
            return
        wide = 4
        length = int.from_bytes(data[at : at + 4], "little")
        at += 4
        if length == _LONG:
            wide, length = 8, int.from_bytes(data[at : at + 8], "little")
            at += 8
        end = at + length
        if end > len(data):
            return
        behind = bisect_left(places, end, done)
        if behind > done:
            yield at, end, wide, starts[done:behind]
        at, done = end, behind
