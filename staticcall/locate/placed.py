"""Sites of an object that was placed like a linked image: what its relocations show joins what its table lists."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from staticcall.abi import static_call
from staticcall.locate.relocated import relocated_sites
from staticcall.locate.table import Record
from staticcall.locate.trampolines import base_name
from staticcall.model.image import Placement
from staticcall.model.sites import Site, Source
from staticcall.model.symbols import Symbol


def with_relocated(
    placement: Placement, records: Sequence[Record], symbols: Iterable[Symbol]
) -> tuple[list[Record], Mapping[int, Source]]:
    """Add the sites that only relocations show to the records, in order of addresses.

    A record that names a trampoline, as a module's may, gets the key of that name if the object knows it. Also gives
    what shows each site besides the table, by address: a relocation, or the displacement in the code alone.
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
    joined = [record._replace(key=owners.get(record.key, record.key)) for record in records]
    shown: dict[int, Source] = {}
    for site in relocated_sites(placement.file):
        address = placement.bases[site.section] + site.offset
        # Whoever made a table knew all sites; one that came in beside it, by `ld -r`, nobody updates at run time.
        vouched = site.entry is not None and (address in listed or not records)
        shown[address] = Source.RELOCATION if vouched else Source.SCAN
        if address not in listed:
            trampoline = placement.addresses[site.trampoline]
            flags = static_call.TAIL_FLAG if site.tail else 0
            joined.append(Record(address, None, owners.get(trampoline, trampoline), flags))
    joined.sort(key=_by_address)
    return joined, shown


def _by_address(record: Record) -> int:
    return record.address


def sources_of(site: Site, shown: Mapping[int, Source]) -> tuple[Source, ...]:
    """What a site of an object is known by; `shown` has what shows it besides the table, by address."""
    table = () if site.record is None else (Source.TABLE,)
    return (*table, shown[site.address]) if site.address in shown else table
