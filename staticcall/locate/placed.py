"""Sites of an object that was placed like a linked image: what its relocations show joins what its table lists."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from staticcall.abi import static_call, x86
from staticcall.locate.relocated import relocated_sites
from staticcall.locate.sites import sites_of
from staticcall.locate.table import Record
from staticcall.locate.trampolines import base_name
from staticcall.model.form import Form
from staticcall.model.image import Image, Placement
from staticcall.model.object import RelocatedSite
from staticcall.model.sites import Site, Source
from staticcall.model.symbols import Symbol

_OPCODES: Final = {Form.CALL: x86.CALL_REL32, Form.TAIL_JMP: x86.JMP_REL32}
_REACH: Final = 1 << 31


class Shown(NamedTuple):
    """What shows a site besides the table: a relocation, or the displacement in the code alone.

    `branch` is its instruction where that is a plain call or jump whose displacement the relocation says, else empty.
    """

    source: Source
    branch: bytes


_NOT_SHOWN: Final[tuple[Source | None, bytes]] = (None, b"")
# What a site is known by: what shows it, and whether no record does.
_SOURCES: Final[Mapping[tuple[Source | None, bool], tuple[Source, ...]]] = {
    (source, unlisted): (*(() if unlisted else (Source.TABLE,)), *((source,) if source else ()))
    for source in (None, Source.RELOCATION, Source.SCAN)
    for unlisted in (False, True)
}


def with_relocated(
    placement: Placement, records: Sequence[Record], symbols: Iterable[Symbol]
) -> tuple[list[Record], Mapping[int, Shown]]:
    """Add the sites that only relocations show to the records, in order of addresses.

    A record that names a trampoline, as a module's may, gets the key of that name if the object knows it. Also gives
    what shows each site besides the table, by address.
    """
    prefix = static_call.KEY_PREFIX
    symbols = tuple(symbols)
    keys = {symbol.name.removeprefix(prefix): symbol.address for symbol in symbols if symbol.name.startswith(prefix)}
    owners = {
        symbol.address: keys[name]
        for symbol in symbols
        if (name := base_name(symbol.name)) is not None and name in keys
    }
    listed = {record.address for record in records}
    joined = [record._replace(key=owners[record.key]) if record.key in owners else record for record in records]
    shown: dict[int, Shown] = {}
    for site in relocated_sites(placement.file):
        address = placement.bases[site.section] + site.offset
        # Whoever made a table knew all sites; one that came in beside it, by `ld -r`, nobody updates at run time.
        vouched = site.entry is not None and (address in listed or not records)
        trampoline = placement.addresses[site.trampoline]
        branch = _branch(site, address, trampoline)
        shown[address] = Shown(Source.RELOCATION if vouched else Source.SCAN, branch)
        if address not in listed:
            flags = static_call.TAIL_FLAG if site.tail else 0
            joined.append(Record(address, None, owners.get(trampoline, trampoline), flags))
    joined.sort(key=_by_address)
    return joined, shown


def _branch(site: RelocatedSite, address: int, trampoline: int) -> bytes:
    opcode = _OPCODES.get(site.form)
    displacement = trampoline - address - x86.BRANCH.size
    if opcode is None or site.opcode or site.entry is None or not -_REACH <= displacement < _REACH:
        return b""
    return x86.BRANCH.pack(opcode, displacement)


def _by_address(record: Record) -> int:
    return record.address


def placed_sites(image: Image, records: Sequence[Record], shown: Mapping[int, Shown]) -> tuple[Site, ...]:
    """Decode the site of every record, as `sites_of` does, with what it is known by.

    What a relocation says need not be read, which is most of the time that it takes.
    """
    others = iter(sites_of(image, [r for r in records if r.address not in shown or not shown[r.address].branch]))
    decode = x86.decode
    sites: list[Site] = []
    start = stop = delta = alignment = 0
    name = ""
    for address, number, key, flags in records:
        source, branch = shown.get(address, _NOT_SHOWN)
        known_by = _SOURCES[source, number is None]
        if not branch:
            sites.append(Site(*next(others)[:-1], known_by))
            continue
        if not start <= address < stop:
            section = image.section_at(address)
            if section is None:  # it is not loaded, or for each thread
                sites.append(Site(*sites_of(image, [Record(address, number, key, flags)])[0][:-1], known_by))
                continue
            start, stop, name = section.address, section.address + section.size, section.name
            delta, alignment = section.offset - start, image.alignment_known(section)
        instruction = decode(branch, address)
        at = address - start
        sites.append(
            Site(number, address, address + delta, name, at, alignment, key, flags, instruction, branch, known_by)
        )
    return tuple(sites)
