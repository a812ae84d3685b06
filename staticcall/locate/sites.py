"""From records to sites: the instruction at each record's address, decoded."""

from __future__ import annotations

from collections.abc import Sequence

from staticcall.abi import x86
from staticcall.errors import MalformedError
from staticcall.locate.table import Record
from staticcall.model.image import Image
from staticcall.model.sites import Site, Source

_BY_TABLE = (Source.TABLE,)


def sites_of(image: Image, records: Sequence[Record]) -> tuple[Site, ...]:
    """Decode the site of every record; the result is in the records' order, that of the addresses.

    Raises `MalformedError` for a record that points outside of what the file loads.
    """
    decode = x86.decode
    sites: list[Site] = []
    start = stop = alignment = 0
    section = ""
    codes = image.read_each([record.address for record in records], x86.MAX_INSTRUCTION)
    for (address, number, key, flags), (_, offset, code) in zip(records, codes, strict=True):
        if offset < 0:
            raise MalformedError(
                f"record {number} points to {image.where(address)}, outside of what the file loads",
                advice="the table is damaged or --table names another place",
            )
        if not start <= address < stop:
            # Sites come by the thousand from the same few sections.
            start, stop, section, alignment = _extent(image, address)
        instruction = decode(code, address)
        code = code[: instruction.length]  # noqa: PLW2901 - what was read is what it may be at most
        at = address - start
        sites.append(Site(number, address, offset, section, at, alignment, key, flags, instruction, code, _BY_TABLE))
    return tuple(sites)


def _extent(image: Image, address: int) -> tuple[int, int, str, int]:
    """Start, end and name of the section around an address, and its alignment where that is all that is known.

    Of a file without sections it is the segment, which has no name.
    """
    segment = None if image.sections else image.load_at(address)
    if segment is not None:
        return segment.address, segment.address + segment.file_size, "", 0
    section = image.section_at(address)
    if section is None:
        return 0, 0, "", 0
    return section.address, section.address + section.size, section.name, image.alignment_known(section)
