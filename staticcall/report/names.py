"""Addresses as people read them."""

from __future__ import annotations

from staticcall.model.image import Image
from staticcall.model.sites import Located, Site


def hexadecimal(address: int | None) -> str | None:
    """An address as the JSON forms have it; it does not fit a double."""
    return None if address is None else f"{address:#x}"


class Names:
    """Names for the addresses of one image, looked up together because a look-up walks the symbol table."""

    def __init__(self, image: Image, located: Located, sites: tuple[Site, ...]) -> None:
        self._symbols = image.symbols
        self._trampolines = {
            address: trampoline.name for address, trampoline in located.trampolines.items() if trampoline.name
        }
        self._slots = {}
        for site in sites:
            slot = site.instruction.slot
            if slot is not None:
                relocation = image.relocations.get(slot)
                self._slots[slot] = relocation.symbol if relocation is not None else ""
        others = {site.instruction.destination for site in sites} | self._slots.keys()
        wanted = {address for address in others if address is not None}
        self._starts = {address: symbol.name for address, symbol in image.symbols.at(wanted).items()}

    def destination(self, site: Site) -> str | None:
        """Where a site's instruction leads: a symbol where there is one, else the address."""
        slot = site.instruction.slot
        if slot is not None:
            return self._slots[slot] or f"*{self._starts.get(slot, hexadecimal(slot))}"
        address = site.instruction.destination
        return None if address is None else self._starts.get(address) or hexadecimal(address)

    def function(self, address: int) -> str | None:
        """The function an address lies in, as name+0x12."""
        symbol = self._symbols.containing(address)
        return f"{symbol.name}+{address - symbol.address:#x}" if symbol else None
