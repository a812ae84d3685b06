"""Which site or which static call somebody means.

0xffffffff8100d269   an address of a linked file, in hex: of a site, a key or trampoline, or of a byte inside
.text+0x1c4          the same by section and offset, as an object needs it
do_idle+0x95         the same by function and offset
might_resched        a static call, also as __SCK__might_resched or __SCT__might_resched
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from operator import attrgetter
from typing import Final

from staticcall.abi import elf64, static_call
from staticcall.errors import UsageError
from staticcall.model.image import Image
from staticcall.model.sites import Key, Located, Site
from staticcall.model.suggest import suggestion

_PREFIXES: Final = (
    *(static_call.KEY_PREFIX, static_call.OFFERED_KEY_PREFIX, static_call.OFFER_PREFIX),
    *static_call.TRAMPOLINE_PREFIXES,
)
# What compilers put in front of functions.
_PADDING: Final = ("__pfx_", "__cfi_")
# Bare digits from here on are an address, as other tools print them without 0x.
_BARE: Final = 8
_FEW: Final = 3


def meant_by(image: Image, located: Located, text: str) -> Site | Key:
    """The site or key that a question is about; raises `UsageError` with the nearest there are where there is none."""
    own = _named(located, text)
    if len(own) == 1:
        return own[0]
    if own:
        places = ", ".join(image.where(key.address) for key in own)
        raise UsageError(f"there are several keys {text}: {places}", advice="give one of these places")
    name, plus, offset = text.rpartition("+")
    number = _number(offset) if plus else None
    if plus and name and number is not None:
        return _at_offset(image, located, name, number)
    address = _address(text)
    if address is None:
        raise UsageError(f"there is no key {text}", advice=_advice(image, located, text))
    if image.placement is not None:
        raise UsageError(f"{text} is an address, and an object has none", advice="give section+offset")
    return _at(image, located, [address], text)


def _named(located: Located, text: str) -> list[Key]:
    """The keys of that name; with the prefix of a symbol only where no key has it in its name."""
    keys = [key for key in located.keys.values() if text in (key.name, key.symbol)]
    prefix = next((prefix for prefix in _PREFIXES if text.startswith(prefix)), None)
    if keys or prefix is None:
        return keys
    return [key for key in located.keys.values() if key.name == text.removeprefix(prefix)]


def _number(text: str) -> int | None:
    digits = text.removeprefix("0x")
    try:
        return int(digits, 16) if digits.isalnum() and len(digits) <= 16 else None
    except ValueError:
        return None


def _address(text: str) -> int | None:
    return _number(text) if text.startswith("0x") or len(text) >= _BARE else None


def _at_offset(image: Image, located: Located, name: str, offset: int) -> Site | Key:
    """What is in a section, or behind the begin of a function, at an offset; several may have one name."""
    starts = [s.address for s in image.sections if s.name == name and s.flags & elf64.SHF_ALLOC]
    starts += [symbol.address for symbol in image.symbols.named(name)]
    if not starts:
        functions = (function for function in image.symbols.function_names() if not function.startswith(_PADDING))
        names = [*(s.name for s in image.sections if s.executable), *functions]
        raise UsageError(f"there is no section and no function {name}", advice=suggestion(name, names))
    return _at(image, located, [start + offset for start in dict.fromkeys(starts)], f"{name}+{offset:#x}")


def _at(image: Image, located: Located, addresses: list[int], text: str) -> Site | Key:
    sites = sorted(located.sites, key=attrgetter("address"))
    found: list[Site | Key] = []
    for address in addresses:
        found += _covering(sites, address)
        found += (key for key in located.keys.values() if key.address <= address < key.address + elf64.POINTER_SIZE)
        found += (key for key in located.keys.values() if key.trampoline and _in_trampoline(key, address))
    if not found:
        advice = _near(image, sites, addresses[0])
        raise UsageError(f"there is no static call at {text}", advice=advice)
    if len({type(one) for one in found}) == 1 and len(set(map(attrgetter("address"), found))) > 1:
        places = ", ".join(image.where(one.address) for one in found[:_FEW])
        raise UsageError(f"{text} may be several: {places}", advice="give one of these places")
    return found[0]


def _in_trampoline(key: Key, address: int) -> bool:
    home = key.trampoline
    return home is not None and home.address <= address < home.address + static_call.TRAMPOLINE_SIZE


def _covering(sites: list[Site], address: int) -> Iterator[Site]:
    """The site whose instruction has the address among its bytes; where damaged tables have several, the last one."""
    position = bisect_right(sites, address, key=attrgetter("address"))
    for site in reversed(sites[max(position - _FEW, 0) : position]):
        if address < site.address + site.instruction.length:
            yield site
            return


def _near(image: Image, sites: list[Site], address: int) -> str:
    """The sites on both sides, or of the same function, as advice."""
    position = bisect_right(sites, address, key=attrgetter("address"))
    near = sites[max(position - 1, 0) : position + 1]
    function = image.symbols.containing(address)
    if function is not None:
        near = [s for s in near if function.address <= s.address < function.address + function.size] or near
    if not near:
        return "the file has no static calls"
    return f"the nearest {'are' if len(near) > 1 else 'is'} {' and '.join(site.where for site in near)}"


def _advice(image: Image, located: Located, text: str) -> str:
    """What to give instead of a name that is no key's: the sites of a function of that name, or a name like it."""
    symbols = [symbol for symbol in image.symbols.named(text) if symbol.type == elf64.STT_FUNC]
    for symbol in symbols:
        inside = [s for s in located.sites if symbol.address <= s.address < symbol.address + symbol.size]
        if inside:
            places = ", ".join(f"{text}+{site.address - symbol.address:#x}" for site in inside[:_FEW])
            more = f" and {len(inside) - _FEW} more" if len(inside) > _FEW else ""
            return f"it is a function with static calls at {places}{more}"
    if symbols:
        return "it is a function without static calls"
    bare = next((text.removeprefix(prefix) for prefix in _PREFIXES if text.startswith(prefix)), text)
    return suggestion(bare, (key.name for key in located.keys.values()))
