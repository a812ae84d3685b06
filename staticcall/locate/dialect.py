"""Which bytes the code in this image uses for NULL and RET0, what its kernel accepts, and where its helpers are.

A kernel is asked itself first: it keeps its own xor in a constant, `xor5rax`, and its version in its banner. Only
where both are missing the latest form is assumed. Where the version leaves something open, further constants, the
trampolines and the kernel's messages are looked at; see `staticcall.abi.generations`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from staticcall.abi import elf64, generations, module_layout, static_call
from staticcall.abi.generations import Generation, Release, Signs
from staticcall.model.image import Image
from staticcall.model.sites import Dialect, Trampoline

# A kernel says so in its banner, a module in its `.modinfo`. Longer numbers are no release, and slow to convert.
_VERSION = re.compile(r"(?:Linux version |vermagic=)(\d{1,9})\.(\d{1,9})")
_BANNER = re.compile(rb"Linux version \d+\.\d+[^\0]*")
_BUILD = re.compile(rb" #\d")
_RODATA = ".rodata"


def read_dialect(
    image: Image, addresses: Mapping[str, int], trampolines: Iterable[Trampoline], *, jcc: bool = False
) -> Dialect:
    """Collect the evidence; `addresses` are those of what has one of the names concerned, by name.

    `jcc` says that conditional tails are known to be accepted.
    """
    banner = _banner(image, addresses.get(static_call.BANNER_SYMBOL)) or _vermagic(image)
    match = _VERSION.match(banner)
    release = (int(match[1]), int(match[2])) if match else None
    module = image.placement is not None
    known = image.kernel and (release is not None or not module)
    generation = _generation(image, addresses, trampolines, release, jcc=jcc) if known else generations.SOME_KERNEL
    return Dialect(
        kernel=image.kernel,
        release=release,
        banner=banner,
        nop=generation.nop,
        ret0=generation.xor,
        return_thunk=addresses.get(static_call.RETURN_THUNK),
        return0=addresses.get(static_call.RETURN0),
        plain_return=addresses.get(static_call.PLAIN_RETURN),
        nop_function=addresses.get(static_call.NOP_FUNCTION),
        module=image.kernel and module,
        generation=generation,
    )


def _banner(image: Image, address: int | None) -> str:
    offset = None if address is None else image.offset_of(address)
    if offset is None:
        # A module has its version elsewhere, and its strings are long to search.
        return _found_banner(image) if image.kernel and image.placement is None else ""
    size = min(static_call.BANNER_SIZE, image.source.size - offset)
    return image.source.read(offset, size).partition(b"\0")[0].decode("ascii", "replace").strip()


def _found_banner(image: Image) -> str:
    """The banner of a kernel that has lost its symbols: the one that counts the builds, if there are several."""
    found = [match[0] for strings in _strings(image) for match in _BANNER.finditer(strings)]
    best = next((banner for banner in found if _BUILD.search(banner)), found[0] if found else b"")
    return best[: static_call.BANNER_SIZE].decode("ascii", "replace").strip()


def _vermagic(image: Image) -> str:
    """What a module says of the kernel that it was built for."""
    section = image.section_named((static_call.MODULE_INFO_SECTION,)) if image.placement is not None else None
    if section is None:
        return ""
    found = module_layout.vermagic_of(image.source.read(section.offset, section.size))
    return f"vermagic={found}" if found else ""


def _generation(
    image: Image,
    addresses: Mapping[str, int],
    trampolines: Iterable[Trampoline],
    release: Release | None,
    *,
    jcc: bool,
) -> Generation:
    linked = image.placement is None
    jcc = jcc or static_call.PLAIN_RETURN in addresses
    if not linked and release is not None:
        jcc = release >= generations.JCC_IN_STABLE
    message = _has_message(image) if linked and generations.needs_message(release) else None
    places = dict(addresses)
    stems = [(name.encode(), (0,)) for name in generations.needs_symbols(release, message=message)]
    if stems:
        places.update((symbol.name, symbol.address) for symbol in image.symbols.matching(stems))
    constants = {
        name: image.read_at(places[name], size)
        for name, size in generations.CONSTANTS.items()
        if name in places and image.offset_of(places[name], size) is not None
    }
    found: Counter[bytes] = Counter()
    if generations.needs_signatures(release):
        found.update(trampoline.code[static_call.SIGNATURE_OFFSET :] for trampoline in trampolines)
    signatures = tuple(signature for signature, _ in found.most_common())
    nops = frozenset(places.keys() & {generations.NOPS_BY_PROCESSOR, generations.NOPS_FOR_ALL})
    return generations.generation_of(Signs(release, constants, signatures, message, nops, jcc))


def _has_message(image: Image) -> bool | None:
    """Whether the kernel's strings have what it says of a bad signature; None where it has no strings to search."""
    strings = list(_strings(image))
    return any(generations.SIGNATURE_MESSAGE in part for part in strings) if strings else None


def _strings(image: Image) -> Iterator[bytes]:
    """What holds a kernel's strings, as far as the file has it: a section, or all segments where there are none."""
    section = image.section_named((_RODATA,))
    if section and section.offset + section.size <= image.source.size:
        yield image.source.read(section.offset, section.size)
    if not image.sections:
        for segment in image.segments:
            if segment.type == elf64.PT_LOAD and segment.offset + segment.file_size <= image.source.size:
                yield image.source.read(segment.offset, segment.file_size)
