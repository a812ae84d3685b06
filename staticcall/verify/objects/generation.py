"""Whether the kernel that a module was built for accepts what stands at its sites when it loads the module.

What it accepts depends on its generation; see `staticcall.abi.generations`. A module says for which kernel it is in its
`.modinfo`; where nothing does, nothing is judged. Relocations lie behind the bytes that are looked at, or there are
none, so what is in the file is what the kernel sees.
"""

from __future__ import annotations

import re

from staticcall.abi.generations import JCC_IN_STABLE, Generation, Signs, generation_of
from staticcall.abi.static_call import MODULE_INFO_SECTION
from staticcall.errors import VerificationError
from staticcall.verify.objects import elf
from staticcall.verify.objects.elf import Elf
from staticcall.verify.objects.places import Place, Places

_VERMAGIC = re.compile(rb"(?:^|\0)vermagic=(\d{1,9})\.(\d{1,9})")
_LOOKED_AT = 5


def check_accepted(before: Elf, after: Elf, places: Places) -> None:
    """Raise `VerificationError` for the first site of the patched module that its kernel rejects."""
    generation = _generation(before)
    if generation is None:
        return
    for place, (name, tail) in places.sites.items():
        code = _code(after, place)
        if generation.accepts(code, tail=tail):
            continue
        section, offset = place
        was = generation.accepts(_code(before, place), tail=tail)
        raise VerificationError(
            f"the {'tail ' if tail else ''}site at {after.name(section).decode(errors='replace')}+{offset:#x} of"
            f" {name.decode(errors='replace')} holds {code.hex()}, which its kernel does not accept:"
            f" {generation.outcome('when the module is loaded')}{'' if was else '; the original has it already'}",
            offset=after.offsets[section] + offset,
        )


def _generation(file: Elf) -> Generation | None:
    for section in range(file.section_count):
        if file.types[section] == elf.SHT_PROGBITS and file.name(section) == MODULE_INFO_SECTION.encode():
            found = _VERMAGIC.search(file.content(section))
            if not found:
                return None
            release = int(found[1]), int(found[2])
            return generation_of(Signs(release, {}, jcc=release >= JCC_IN_STABLE))
    return None


def _code(file: Elf, place: Place) -> bytes:
    section, offset = place
    return bytes(file.content(section)[offset : offset + _LOOKED_AT])
