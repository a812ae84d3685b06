"""Pinned sites: what the table does not list any more, and the undo file still knows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from staticcall.abi import elf64, static_call
from staticcall.errors import MalformedError
from staticcall.locate.sites import sites_of
from staticcall.locate.table import Record
from staticcall.model.change import Edit, EditKind
from staticcall.model.image import Image, Placement
from staticcall.model.object import Relocations
from staticcall.model.sites import Located, Site, Source

_SIZE: Final = static_call.RECORD_SIZE
_HALF: Final = _SIZE // 2
_MISFIT: Final = "has an edit of a record where the patched file has none"
_ADVICE: Final = "give the file that --edits wrote when this file was patched"
_ADDRESSES: Final = 1 << 64


def without_repeats(located: Located) -> tuple[Site, ...]:
    """The sites, each once: one that is pinned leaves its place in the table to a repetition of another one."""
    if not any(finding.code == "duplicate-record" for finding in located.findings):
        return located.sites
    once = {(site.address, site.key, site.flags): site for site in reversed(located.sites)}
    return tuple(reversed(once.values()))


def pinned_sites(image: Image, located: Located, edits: Iterable[Edit]) -> tuple[Site, ...]:
    """The sites whose records were replaced by these edits, and that have no other one, in order of addresses.

    Raises `MalformedError` for edits that are not of this image's table.
    """
    records = [edit for edit in edits if edit.kind is EditKind.RECORD]
    table = located.table
    if not records:
        return ()
    if table is None:
        raise MalformedError(_MISFIT, advice=_ADVICE)
    owners = {key.trampoline.address: key.address for key in located.keys.values() if key.trampoline}
    if image.placement is not None:
        found = _relocated(image.placement, records)
    else:
        places = range(table.start, table.stop, _SIZE)
        found = [_linked(edit, places) for edit in records]
    listed = {(site.address, site.key) for site in located.sites if site.record is not None}
    wanted = []
    for address, key in found:
        if image.offset_of(address) is None:
            raise MalformedError(_MISFIT, advice=_ADVICE)
        own = owners.get(key & static_call.NO_FLAGS, key & static_call.NO_FLAGS)
        if (address, own) not in listed:
            wanted.append(Record(address, None, own, key & static_call.FLAG_MASK))
    sites = sites_of(image, sorted(set(wanted), key=_by_address))
    return tuple(site._replace(sources=(Source.EDITS,)) for site in sites)


def _by_address(record: Record) -> int:
    return record.address


class _Old(NamedTuple):
    """What a record listed: the site's address and the key's, with the flags."""

    site: int
    key: int


def _linked(edit: Edit, places: range) -> _Old:
    if edit.address is None or edit.address not in places or len(edit.old) != _SIZE:
        raise MalformedError(_MISFIT, offset=edit.file_offset, advice=_ADVICE)
    to_site, to_key = static_call.RECORD.unpack(edit.old)
    return _Old((edit.address + to_site) % _ADDRESSES, (edit.address + _HALF + to_key) % _ADDRESSES)


def _relocated(placement: Placement, edits: Iterable[Edit]) -> list[_Old]:
    """In an object an edit is one of a record's two relocations; the other may be what it was."""
    file = placement.file
    tables = [
        file.relocations(section)
        for section in file.relocation_sections()
        if file.sections[section.info].name in static_call.TABLE_SECTIONS
    ]
    old: dict[tuple[int, int], int] = {}
    for edit in edits:
        own = next((table for table in tables if _holds(table, edit.file_offset)), None)
        if own is None or len(edit.old) != elf64.RELA.size:
            raise MalformedError(_MISFIT, offset=edit.file_offset, advice=_ADVICE)
        place, info, addend = elf64.RELA.unpack(edit.old)
        old[own.target, place] = _leads_to(placement, info >> 32, addend)
    present = {
        (table.target, place): _leads_to(placement, symbol, addend)
        for table in tables
        for place, symbol, addend in zip(table.places(), table.symbols(), table.addends(), strict=True)
    }
    whole = present | old
    starts = {(target, place - place % _SIZE) for target, place in old}
    try:
        return [_Old(whole[target, start], whole[target, start + _HALF]) for target, start in starts]
    except KeyError:
        raise MalformedError(_MISFIT, advice=_ADVICE) from None


def _holds(table: Relocations, offset: int) -> bool:
    number, rest = divmod(offset - table.offset, elf64.RELA.size)
    return 0 <= number < table.count and not rest


def _leads_to(placement: Placement, symbol: int, addend: int) -> int:
    if symbol >= len(placement.addresses):
        raise MalformedError(_MISFIT, advice=_ADVICE)
    return (placement.addresses[symbol] + addend) % _ADDRESSES
