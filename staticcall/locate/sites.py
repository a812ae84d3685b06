"""From records to sites: the instruction at each record's address, decoded."""

from __future__ import annotations

from collections.abc import Sequence

from staticcall.abi import x86
from staticcall.errors import MalformedError
from staticcall.locate.table import Record
from staticcall.model.image import Image, Section
from staticcall.model.sites import Site, Source

_BY_TABLE = (Source.TABLE,)


def sites_of(image: Image, records: Sequence[Record]) -> tuple[Site, ...]:
    """Decode the site of every record; the result is in the records' order, that of the addresses.

    Raises `MalformedError` for a record that points outside of what the file loads.
    """
    decode = x86.decode
    sites: list[Site] = []
    start = stop = 0
    section = ""
    codes = image.read_each([record.address for record in records], x86.MAX_INSTRUCTION)
    for (address, number, key, flags), (_, offset, code) in zip(records, codes, strict=True):
        if offset < 0:
            raise MalformedError(
                f"record {number} points to {address:#x}, outside of what the file loads",
                advice="the table is damaged or --table names another place",
            )
        if not start <= address < stop:
            # Sites come by the thousand from the same few sections.
            start, stop, section = _extent(image.section_at(address), address)
        instruction = decode(code, address)
        code = code[: instruction.length]  # noqa: PLW2901 - what was read is what it may be at most
        sites.append(Site(number, address, offset, section, key, flags, instruction, code, _BY_TABLE))
    return tuple(sites)


def _extent(section: Section | None, address: int) -> tuple[int, int, str]:
    if section is None:
        return address, address + 1, ""
    return section.address, section.address + section.size, section.name
