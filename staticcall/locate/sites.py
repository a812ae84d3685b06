"""From records to sites: the instruction at each record's address, decoded."""

from __future__ import annotations

from collections.abc import Iterable

from staticcall.abi import x86
from staticcall.errors import MalformedError
from staticcall.locate.table import Record
from staticcall.model.image import Image
from staticcall.model.sites import Site, Source

_BY_TABLE = (Source.TABLE,)


def sites_of(image: Image, records: Iterable[Record]) -> tuple[Site, ...]:
    """Decode the site of every record; the result is in the records' order.

    Raises `MalformedError` for a record that points outside of what the file loads.
    """
    decode = x86.decode
    numbered = sorted(enumerate(records), key=lambda pair: pair[1].address)
    sites: list[tuple[int, Site]] = []
    start = stop = delta = 0
    section = ""
    for number, record in numbered:
        address = record.address
        if not start <= address < stop:
            # Sites come by the thousand from the same few sections.
            start, stop, delta, section = _surroundings(image, number, address)
        offset = address + delta
        size = min(x86.MAX_INSTRUCTION, stop - address)
        code = image.source.read(offset, size)
        instruction = decode(code, address)
        sites.append(
            (
                number,
                Site(
                    number,
                    address,
                    offset,
                    section,
                    record.key,
                    record.flags,
                    instruction,
                    code[: instruction.length],
                    _BY_TABLE,
                ),
            )
        )
    sites.sort(key=lambda pair: pair[0])
    return tuple(site for _, site in sites)


def _surroundings(image: Image, number: int, address: int) -> tuple[int, int, int, str]:
    """The run of bytes around an address: its linked start and end, offset minus address, its section."""
    segment = image.load_at(address)
    if segment is None:
        raise MalformedError(
            f"record {number} points to {address:#x}, outside of what the file loads",
            advice="the table is damaged or --table names another place",
        )
    delta = segment.offset - segment.address
    section = image.section_at(address)
    stop = segment.address + segment.file_size
    if section is None:
        later = (s.address for s in image.sections if s.address > address and s.contains(s.address))
        return address, min(stop, *later, stop), delta, ""
    return section.address, min(section.address + section.size, stop), delta, section.name
