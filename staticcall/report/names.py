"""Addresses, paths and numbers as people read them."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable
from pathlib import Path

from staticcall.model.image import Image
from staticcall.model.sites import Key, Site, TargetKind


def hexadecimal(address: int | None) -> str | None:
    """An address as the JSON forms have it; it does not fit a double."""
    return None if address is None else f"{address:#x}"


def shown(path: Path) -> str:
    """A path as text that any stream takes: what is no UTF-8 in it is spelt out."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def common_folder(folder: str, path: str) -> str:
    """The folder that another folder and a file are in, empty where they have none in common but `/`."""
    if folder.startswith("/") != path.startswith("/"):
        return ""
    return posixpath.commonpath((folder, posixpath.dirname(path))).rstrip("/")


def counted(count: int, noun: str) -> str:
    """So many of something, as `1,204 sites`; for nouns whose plural has an s."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def share(count: int, total: int) -> str:
    """What part of all that is, as `90.6 %`."""
    return f"{100 * count / total:.1f} %"


def share_line(name: str, count: int, total: int) -> str:
    """The same as a line of a report in plain text, with its name."""
    return f"  {name:<28}{count:>11,}  {100 * count / total:5.1f} %"


class Names:
    """Names for the addresses of one image, looked up together because a look-up walks the symbol table."""

    def __init__(self, image: Image, sites: Iterable[Site], keys: Iterable[Key]) -> None:
        self._symbols = image.symbols
        self._slots: dict[int, str] = {}
        wanted = {key.slot.value for key in keys}
        for site in sites:
            slot, destination = site.instruction.slot, site.instruction.destination
            if slot is not None:
                relocation = image.relocations.get(slot)
                self._slots[slot] = relocation.symbol if relocation is not None else ""
            elif destination is not None:
                wanted.add(destination)
        self._starts = image.names_at(wanted | self._slots.keys())

    def destination(self, site: Site) -> str | None:
        """Where a site's instruction leads: a symbol where there is one, else the address."""
        slot = site.instruction.slot
        if slot is not None:
            return self._slots[slot] or f"*{self._starts.get(slot) or hexadecimal(slot)}"
        address = site.instruction.destination
        return None if address is None else self._starts.get(address) or hexadecimal(address)

    def function(self, address: int) -> str | None:
        """The function an address lies in, as name+0x12."""
        return self._symbols.function_at(address)

    def function_of(self, key: Key) -> str | None:
        """What a key leads to: a symbol where there is one, else the address; None for NULL."""
        slot = key.slot
        if slot.definition:
            return None if slot.definition.kind is TargetKind.NULL else slot.definition.target
        if slot.symbol or slot.elsewhere or not slot.value:  # a kernel has a symbol at 0, the first of its per-CPU data
            return slot.symbol or None
        return self._starts.get(slot.value) or hexadecimal(slot.value)
