"""The keys: by name, by record, and where each keeps its target."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from staticcall.abi import elf64, static_call
from staticcall.errors import MalformedError
from staticcall.locate.table import Record
from staticcall.locate.trampolines import base_name
from staticcall.model.image import Image, Relocation
from staticcall.model.sites import Key, Site, Slot, Trampoline
from staticcall.model.symbols import Symbol

_NO_PAIRS: Mapping[int, int] = {}


def locate_keys(
    image: Image,
    named: Iterable[Symbol],
    records: Iterable[Record],
    trampolines: dict[int, Trampoline],
    sites: Iterable[Site],
    pairs: Mapping[int, int] = _NO_PAIRS,
) -> dict[int, Key]:
    """Every key, by linked address: those among the named symbols, and those that only records know.

    `pairs` give trampolines to keys that have no name, see `staticcall.locate.nameless`.
    """
    prefix = static_call.KEY_PREFIX
    symbols = {symbol.address: symbol.name for symbol in named if symbol.name.startswith(prefix)}
    addresses = {record.key for record in records} | pairs.keys()
    nameless = addresses - symbols.keys()
    if nameless:
        # The old generation gave the key the bare name; a record may also name a trampoline.
        symbols |= image.symbols.names_at(nameless)
    slots = read_slots(image, sorted(addresses | symbols.keys()))
    names = {address: _base_name(symbols.get(address, "")) or image.where(address) for address in slots}
    homes = _trampolines_of(names, trampolines, sites, pairs)
    for address, home in homes.items():
        if not symbols.get(address) and home.name:
            names[address] = home.name  # a kernel may keep the names of its code alone
    return {
        address: Key(names[address], symbols.get(address, ""), address, slot, homes.get(address))
        for address, slot in slots.items()
    }


def _base_name(symbol: str) -> str:
    """The static call's name in the symbol that a record names: the key's, or the trampoline's where that is all."""
    return base_name(symbol) or symbol.removeprefix(static_call.KEY_PREFIX)


def _trampolines_of(
    names: Mapping[int, str], trampolines: dict[int, Trampoline], sites: Iterable[Site], pairs: Mapping[int, int]
) -> dict[int, Trampoline]:
    """Which trampoline is whose: by name, and where that is missing or not unique by where a key's first site leads."""
    keys, homes = Counter(names.values()), Counter(trampoline.name for trampoline in trampolines.values())
    by_name = {t.name: t for t in trampolines.values() if keys[t.name] == homes[t.name] == 1}
    found = {address: by_name[name] for address, name in names.items() if name in by_name}
    found = {key: trampolines[home] for key, home in pairs.items()} | found
    others = {address: t for address, t in trampolines.items() if t.name not in by_name}
    if others and len(found) < len(names):
        for site in sites:
            trampoline = others.get(site.instruction.destination or 0)
            if site.key is not None and trampoline and trampoline.name in ("", names[site.key]):
                found.setdefault(site.key, trampoline)
    return found


def read_slots(image: Image, addresses: Iterable[int]) -> dict[int, Slot]:
    """Read `func`, the first eight bytes of each key, for linked addresses in ascending order.

    In a position-independent image the value is the addend of the slot's relocation, or with `.relr.dyn` the
    slot's own bytes. A slot that the file does not store (`.bss`) is 0 and cannot be edited.
    """
    slots: dict[int, Slot] = {}
    unpack = elf64.POINTER.unpack
    undefined = set() if image.placement is None else set(image.placement.undefined.values())
    offers = _offers(image)
    for address, offset, code in image.read_each(addresses, elf64.POINTER_SIZE):
        if address in undefined:
            slots[address] = Slot(None, 0, elsewhere=True)
            continue
        relocation = image.relocations.get(address)
        if relocation is not None and relocation.file_offset is not None:
            slots[address] = _relocated_slot(relocation, relocation.file_offset)
        elif len(code) == elf64.POINTER_SIZE:
            (value,) = unpack(code)
            slots[address] = Slot(None, 0, symbol=offers[value]) if value in offers else Slot(offset, value)
        elif image.in_memory(address):
            slots[address] = Slot(None, 0)
        else:
            raise MalformedError(
                f"a record's key at {image.where(address)} lies outside of what the file loads",
                advice="the table is damaged or --table names another place",
            )
    return slots


def _offers(image: Image) -> Mapping[int, str]:
    """What an object uses of shared objects that offer static calls: names by address. Run time finds them."""
    if image.placement is None:
        return {}
    symbols, undefined = image.placement.file.symbols, image.placement.undefined
    numbers = symbols.endings(static_call.OFFER_PREFIX.encode())
    return {undefined[number]: symbols.symbol(number).name for number in numbers if number in undefined}


def _relocated_slot(relocation: Relocation, entry_offset: int) -> Slot:
    if relocation.type == elf64.R_X86_64_RELATIVE:
        value = relocation.addend & 0xFFFFFFFFFFFFFFFF
        return Slot(entry_offset + elf64.RELA_ADDEND_OFFSET, value, by_addend=True)
    return Slot(None, 0, symbol=relocation.symbol or f"relocation type {relocation.type}")
