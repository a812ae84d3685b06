"""Where the kernel's loader puts the code of a module, as far as cache lines are concerned.

A module stays a relocatable object until it is loaded. Then the loader puts its sections one behind the other, in
the order of their headers, in a pass for each kind; code is the first kind:

    memory of the module's code       all sections that are loaded and executable, but for those of the next line
    memory of its code for init       those of them whose names begin with `.init`, and with `.exit` where the kernel
                                      cannot unload modules

Each section starts at the next multiple of its alignment, and both memories start with a page of their own. So the
place of every instruction in its page is known beforehand. Up to 6.3 a memory held code and data, the code first;
since then each kind has its own. Architectures may ask for room before a section, which x86-64 does not.

Sources: kernel/module/main.c (before 5.19 kernel/module.c), layout_sections(), module_get_offset_and_type() or
get_offset(), and move_module(); arch/x86/kernel/module.c, module_alloc(), and mm/execmem.c for the pages;
include/linux/vermagic.h. Linux 5.10 to 6.12.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from staticcall.abi import elf64

# What modpost gives to a module; without it the kernel loads nothing, and a link may still move everything.
THIS_MODULE: Final = ".gnu.linkonce.this_module"
PAGE: Final = 4096

INIT_PREFIX: Final = ".init"
EXIT_PREFIX: Final = ".exit"
# Whether the kernel can unload modules, as they say it of the kernel that they were built for.
_UNLOADS: Final = "mod_unload"
_VERMAGIC: Final = b"vermagic="
_CODE: Final = elf64.SHF_ALLOC | elf64.SHF_EXECINSTR


def vermagic_of(modinfo: bytes) -> str:
    """What a module says of the kernel that it was built for, by the contents of its `.modinfo`; empty if nothing."""
    found = next((entry for entry in modinfo.split(b"\0") if entry.startswith(_VERMAGIC)), b"")
    return found[len(_VERMAGIC) :].decode("ascii", "replace")


class CodeSection(NamedTuple):
    """What the loader looks at in a section's header."""

    number: int
    name: str
    flags: int
    size: int
    alignment: int


def places_in_page(sections: Iterable[CodeSection], vermagic: str) -> Mapping[int, int]:
    """Where in a page each section of code begins when the module is loaded, in bytes, by the section's number.

    `sections` are those of a final module in order of their headers, `vermagic` is what its `.modinfo` says. What
    cannot be foretold is missing: sections of init and exit where the kernel cannot unload modules, since then it
    depends on its version whether the latter are loaded, and whatever follows a section with a damaged alignment.
    """
    unloads = _UNLOADS in vermagic.split()
    places: dict[int, int] = {}
    ends: dict[bool, int | None] = {False: 0, True: 0 if unloads else None}
    for section in sections:
        if section.flags & _CODE != _CODE:
            continue
        init = section.name.startswith(INIT_PREFIX) or (not unloads and section.name.startswith(EXIT_PREFIX))
        end, alignment = ends[init], section.alignment or 1
        if end is None or alignment & (alignment - 1):
            ends[init] = None
            continue
        start = end + -end % alignment
        places[section.number] = start % PAGE
        ends[init] = start + section.size
    return places
