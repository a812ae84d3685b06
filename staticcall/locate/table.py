"""Where the records are, and what they say."""

from collections.abc import Mapping
from typing import NamedTuple

from staticcall.abi import elf64, static_call
from staticcall.abi.x86 import ADDRESS_MASK
from staticcall.errors import MalformedError, UnsupportedError, UsageError
from staticcall.locate.lists import leads
from staticcall.model.image import Image, Placement
from staticcall.model.sites import Table
from staticcall.model.symbols import Symbol


class Record(NamedTuple):
    """One record of the table, its self-relative fields resolved to linked addresses, the flags apart.

    A site that a relocation shows and no record lists has none of a `number`.
    """

    address: int
    number: int | None
    key: int
    flags: int


def find_table(image: Image, symbols: Mapping[str, Symbol], wanted: str | None = None) -> Table | None:
    """Find the table by the user's word, its section, or the linker's start and stop symbols, in this order."""
    if wanted is not None and image.placement is not None:
        raise UsageError("--table is for linked images", advice="an object's table is found by its section")
    if wanted is not None:
        start, stop = _named_range(image, wanted)
        return _checked(image, Table(start, stop, "named by the user"))
    section = image.section_named(static_call.TABLE_SECTIONS)
    _check_one(image)
    if section is not None and section.flags & elf64.SHF_ALLOC and section.type != elf64.SHT_NOBITS:
        whole = Table(section.address, section.address + section.size, f"section {section.name}")
        pieces = _pieces(image, whole) or [(whole.start, 0)]
        (start, _), (end, size) = pieces[0], pieces[-1]
        return _checked(image, whole._replace(start=start, stop=end + size))
    if image.placement is not None:
        return None  # an object may name the ends of a table that only a linker makes
    first, last = symbols.get(static_call.TABLE_START), symbols.get(static_call.TABLE_STOP)
    if first and last:
        return _checked(image, Table(first.address, last.address, "start and stop symbols"))
    return None


def _check_one(image: Image) -> None:
    """See that a linked image has no two tables: no linker makes them, and half of the sites are no answer."""
    if image.placement is not None:
        return
    tables = [
        s for s in image.sections if s.name in static_call.TABLE_SECTIONS and s.size and s.flags & elf64.SHF_ALLOC
    ]
    if len(tables) > 1:
        raise UnsupportedError(
            f"has {len(tables)} tables of sites, {tables[0].name} and {tables[1].name}",
            offset=tables[1].offset,
            advice="link with one section, or say with --table which one to read",
        )


def _named_range(image: Image, wanted: str) -> tuple[int, int]:
    start, colon, stop = wanted.partition(":")
    if not colon or not start or not stop:
        raise UsageError(f"--table {wanted} is not START:STOP", advice="give two addresses in hex or two symbols")
    return _address(image, start), _address(image, stop)


def _address(image: Image, text: str) -> int:
    symbols = image.symbols.named(text)
    if symbols:
        return symbols[0].address
    try:
        address = int(text, 16)
    except ValueError:
        raise UsageError(f"--table names {text}, which is no symbol", advice="give an address in hex") from None
    if not 0 <= address <= ADDRESS_MASK:
        raise UsageError(f"--table names {text}, which is no address", advice="give an address in hex")
    return address


def _checked(image: Image, table: Table) -> Table:
    size = table.stop - table.start
    offset = image.offset_of(table.start)
    if size < 0 or size % static_call.RECORD_SIZE:
        raise MalformedError(
            f"the table ({table.origin}) has {size} bytes, not a multiple of {static_call.RECORD_SIZE}",
            offset=offset,
            advice="the table is damaged or --table names another place",
        )
    if size and any(image.offset_of(*piece) is None for piece in _pieces(image, table)):
        raise MalformedError(
            f"the table ({table.origin}) at {image.where(table.start)} lies outside of what the file loads",
            advice="the table's section or symbols are damaged",
        )
    return table


def _pieces(image: Image, table: Table) -> list[tuple[int, int]]:
    """Address and size of what the table is made of: an object has one for each section group, placed side by side."""
    if image.placement is None:
        return [(table.start, table.stop - table.start)]
    return [
        (s.address, s.size) for s in image.sections if s.address and s.size and s.name in static_call.TABLE_SECTIONS
    ]


def _led_to(placement: Placement, image: Image) -> list[int] | None:
    """What the fields of an object's records lead to, by their relocations alone; None where that is not so simple."""
    found: list[int] = []
    for section in image.sections:
        if section.address and section.size and section.name in static_call.TABLE_SECTIONS:
            piece = leads(placement, section)
            if piece is None:
                return None
            found += piece
    return found


def read_records(image: Image, table: Table) -> list[Record]:
    """Every record of the table, in order of the sites' addresses."""
    size = table.stop - table.start
    if not size:
        return []
    flags, no_flags = static_call.FLAG_MASK, static_call.NO_FLAGS
    found = _led_to(image.placement, image) if image.placement is not None else None
    if found is not None:
        pairs = enumerate(zip(found[0::2], found[1::2], strict=True))
        return sorted(Record(address, number, key & no_flags, key & flags) for number, (address, key) in pairs)
    fields = elf64.column(b"".join(image.read_at(*piece) for piece in _pieces(image, table)), "i", 0, 1)
    records = []
    place = table.start
    for number, (address, key) in enumerate(zip(fields[0::2], fields[1::2], strict=True)):
        key += place + 4  # noqa: PLW2901 - the field is relative to its own address
        records.append(Record(place + address, number, key & no_flags, key & flags))
        place += static_call.RECORD_SIZE
    records.sort()
    return records
