"""The keys: by name, by record, and where each keeps its target."""

from __future__ import annotations

from collections.abc import Iterable

from staticcall.abi import elf64, static_call
from staticcall.errors import MalformedError
from staticcall.locate.table import Record
from staticcall.model.image import Image, Symbol
from staticcall.model.sites import Key, Site, Slot, Trampoline


def locate_keys(
    image: Image,
    named: Iterable[Symbol],
    records: Iterable[Record],
    trampolines: dict[int, Trampoline],
    sites: Iterable[Site],
) -> dict[int, Key]:
    """Every key, by linked address: those among the named symbols, and those that only records know."""
    prefix = static_call.KEY_PREFIX
    symbols = {symbol.address: symbol.name for symbol in named if symbol.name.startswith(prefix)}
    addresses = {record.key for record in records}
    nameless = addresses - symbols.keys()
    if nameless:
        # The old generation gave the key the bare name; a record may also name a trampoline.
        symbols |= {address: symbol.name for address, symbol in image.symbols.at(nameless).items()}
    slots = {address: read_slot(image, address) for address in sorted(addresses | symbols.keys())}
    functions = image.symbols.at({slot.value for slot in slots.values() if slot.value and not slot.symbol})
    by_name = {trampoline.name: trampoline for trampoline in trampolines.values() if trampoline.name}
    by_site = _trampolines_by_site(trampolines, sites)
    keys: dict[int, Key] = {}
    for address, slot in slots.items():
        symbol = symbols.get(address, "")
        name = symbol.removeprefix(prefix) or f"{address:#x}"
        function = functions.get(slot.value)
        keys[address] = Key(
            name,
            symbol,
            address,
            slot,
            slot.symbol or (function.name if function else None),
            by_name.get(name) or by_site.get(address),
        )
    return keys


def _trampolines_by_site(trampolines: dict[int, Trampoline], sites: Iterable[Site]) -> dict[int, Trampoline]:
    """For trampolines without a name: the one that the first site of a key leads to."""
    nameless = {address: t for address, t in trampolines.items() if not t.name}
    found: dict[int, Trampoline] = {}
    if nameless:
        for site in sites:
            destination = site.instruction.destination
            if site.key is not None and destination in nameless:
                found.setdefault(site.key, nameless[destination])
    return found


def read_slot(image: Image, address: int) -> Slot:
    """Read `func`, the first eight bytes of a key.

    In a position-independent image the value is the addend of the slot's relocation, or with `.relr.dyn` the
    slot's own bytes. A slot that the file does not store (`.bss`) is 0 and cannot be edited.
    """
    relocation = image.relocations.get(address)
    offset = image.offset_of(address, elf64.POINTER_SIZE)
    if relocation is not None and relocation.file_offset is not None:
        if relocation.type == elf64.R_X86_64_RELATIVE:
            value = relocation.addend & 0xFFFFFFFFFFFFFFFF
            return Slot(relocation.file_offset + elf64.RELA_ADDEND_OFFSET, value, by_addend=True)
        return Slot(None, 0, symbol=relocation.symbol or f"relocation type {relocation.type}")
    if offset is None:
        if not image.in_memory(address):
            raise MalformedError(
                f"a record's key at {address:#x} lies outside of what the file loads",
                advice="the table is damaged or --table names another place",
            )
        return Slot(None, 0)
    value = elf64.POINTER.unpack(image.source.read(offset, elf64.POINTER_SIZE))[0]
    return Slot(offset, value)
