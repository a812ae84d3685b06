"""Whether a kernel moves, and with it which of its pointers, by what it carries.

A kernel with CONFIG_RANDOMIZE_BASE (KASLR) is loaded anywhere, and its decompressor adds the distance to every slot
of a list. 64-bit kernels without it run where they are linked, wherever in physical memory that is. In this order:

    the image is position independent       its dynamic relocations are the list
    vmlinux.relocs                          that list, if the user names it
    bytes behind the ELF file               that list, in what a bzImage decompresses to
    .rela sections that are not loaded      --emit-relocs, which a build gives the linker for KASLR alone; the list
                                            is made of their R_X86_64_64
    kaslr_get_random_long, and so on        functions that are compiled with CONFIG_RANDOMIZE_BASE only
    IKCFG_ST in .rodata                     the kernel's configuration: CONFIG_IKCONFIG

A kernel may carry other kernels' configurations too, in an initramfs for one. So the one in another section proves
nothing, and neither does one of two.

The list is of words of four bytes, each a linked address without its upper half:

    0, 64-bit slots..., 0, [32-bit slots that the distance is taken from..., 0,] 32-bit slots...

with the part in brackets until 6.14. It is read from its end, so more zeros in front are never seen.

Sources: arch/x86/boot/compressed/misc.c (handle_relocations()), arch/x86/tools/relocs.c (emit_relocs()),
arch/x86/Makefile, arch/x86/lib/Makefile, kernel/configs.c.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from staticcall.abi import elf64
from staticcall.errors import MalformedError, about
from staticcall.model.image import Image, Section
from staticcall.model.moves import Motion, Moves, SlotList
from staticcall.read.headers import read_header
from staticcall.read.source import read_whole

_WORD: Final = 4
_LISTS: Final = (2, 3)
# Debian's have 1 MB; as numbers they take ten times that.
_MOST_LISTED: Final = 1 << 26
_UPPER_HALF: Final = 0xFFFF_FFFF_0000_0000
_CONFIG_MARK: Final = b"IKCFG_ST"
_CONFIG_END: Final = b"IKCFG_ED"
_CONFIG_SECTION: Final = ".rodata"
_CHUNK: Final = 1 << 20
_MOST_CONFIG: Final = 1 << 23
_RANDOMIZED: Final = b"CONFIG_RANDOMIZE_BASE=y"
_MACHINE: Final = b"CONFIG_X86_64=y"
_NO_EVIDENCE: Final = "nothing in the file says whether it moves"
_KASLR_FUNCTIONS: Final = ("kaslr_get_random_long", "kernel_randomize_memory")


def read_moves(image: Image, relocs: Path | None) -> Moves:
    """What is known of a kernel's place; `relocs` is its vmlinux.relocs where the user has one.

    Raises `MalformedError` where that file, or a relocation section of the image, cannot be one of this kernel.
    """
    if image.position_independent:
        return Moves(Motion.MOVES, "it is position independent", frozenset(image.relocations), tuple(_extents(image)))
    lists = [_by_file(image, relocs)] if relocs else []
    if not lists:
        lists = [moves for moves in (_by_tail(image), _by_kept_relocations(image)) if moves]
    # A build may have stripped all relocations but a few, and those still show that it made them.
    best = min(lists, key=_knows_nothing, default=None)
    # Symbols only ever say that it moves, so they come before a configuration that may be another kernel's.
    return best or _by_symbols(image) or _by_config(image) or Moves(Motion.UNKNOWN, _NO_EVIDENCE)


def _knows_nothing(moves: Moves) -> bool:
    return not moves.relocated


def _extents(image: Image) -> Iterator[range]:
    """Where the kernel is; what each processor has a copy of may be linked at 0."""
    return (range(load.address, load.address + load.memory_size) for load in image.segments if load.address >> 63)


def _by_kept_relocations(image: Image) -> Moves | None:
    kept = [s for s in image.sections if s.type == elf64.SHT_RELA and not s.flags & elf64.SHF_ALLOC]
    if not kept:
        return None
    relocated: set[int] = set()
    known = []
    for section in kept:
        target = image.sections[section.info] if section.info < len(image.sections) else section
        if target.flags & elf64.SHF_ALLOC and not target.executable and target.address:
            relocated.update(_slots_of(image, section))
            known.append(range(target.address, target.address + target.size))
    names = ", ".join(section.name for section in kept[:2]) + ("..." if kept[2:] else "")
    return Moves(Motion.MOVES, f"it was linked with --emit-relocs ({names})", frozenset(relocated), tuple(known))


def _slots_of(image: Image, section: Section) -> Iterator[int]:
    if section.size % elf64.RELA.size:
        raise MalformedError(
            f"{section.name} has {section.size} bytes, not a multiple of {elf64.RELA.size}", offset=section.offset
        )
    table = image.source.read(section.offset, section.size)
    places, types = elf64.column(table, "Q", 0, 3), elf64.column(table, "I", 2, 6)
    return (place for place, kind in zip(places, types, strict=True) if kind == elf64.R_X86_64_64)


def _by_file(image: Image, path: Path) -> Moves:
    with about(path):
        found = _listed(image, 0, read_whole(path))
        if found is None:
            raise MalformedError(
                "is no vmlinux.relocs of this kernel", advice="give what `relocs vmlinux` wrote for this very file"
            )
    relocated, own = frozenset(_addresses(found)), _by_tail(image)
    # Only the list in the image's own file can be changed with it, and only if it is the one that was named.
    listing = own.listing if own and own.relocated == relocated else None
    what = f"{path.name} lists what is relocated"
    return Moves(Motion.MOVES, what, relocated, tuple(_extents(image)), listing)


def _by_tail(image: Image) -> Moves | None:
    end = _end_of(image)
    if not 0 < image.source.size - end <= _MOST_LISTED:
        return None
    listing = _listed(image, end, image.source.read(end, image.source.size - end))
    if listing is None:
        return None
    what = "the list behind the ELF file says what is relocated"
    return Moves(Motion.MOVES, what, frozenset(_addresses(listing)), tuple(_extents(image)), listing)


def _end_of(image: Image) -> int:
    """The offset of the first byte behind all that the ELF headers know of."""
    header = read_header(image.source)
    ends = [
        header.sections_at + elf64.SECTION.size * len(image.sections),
        *(segment.offset + segment.file_size for segment in image.segments),
        *(section.offset + section.size for section in image.sections if section.type != elf64.SHT_NOBITS),
    ]
    return max(ends)


def _listed(image: Image, offset: int, data: bytes) -> SlotList | None:
    """The list that these bytes, at an offset of their file, are; None for bytes that are no list for this kernel."""
    if len(data) % _WORD or not _WORD * min(_LISTS) <= len(data) <= _MOST_LISTED or any(data[:_WORD]):
        return None
    words = elf64.column(data, "I", 0, 1)
    zeros = next((number for number, word in enumerate(words) if word), len(words))
    stops = [number for number, word in enumerate(words[zeros:], zeros) if not word]
    if len(stops) + 1 not in _LISTS:
        return None
    extents = list(_extents(image))
    lowest, highest = min(extent.start for extent in extents), max(extent.stop for extent in extents)
    used = [word for word in words if word]
    if used and not (lowest <= min(used) | _UPPER_HALF and max(used) | _UPPER_HALF < highest):
        return None
    found = SlotList(offset, data, zeros, stops[0] - zeros)
    slots = sorted(_addresses(found))
    read = [code for _, _, code in image.read_each(slots, elf64.POINTER_SIZE)]
    pointers = sum(code[_WORD:] == b"\xff\xff\xff\xff" for code in read)
    # Some are addresses in physical memory; in another kernel's list hardly any would be a pointer.
    return found if 2 * pointers >= len(slots) else None


def _addresses(listing: SlotList) -> Iterator[int]:
    words = elf64.column(listing.data, "I", 0, 1)[listing.zeros : listing.zeros + listing.slots]
    return (word | _UPPER_HALF for word in words)


def _by_config(image: Image) -> Moves | None:
    config = _config_of(image)
    if config is None or _MACHINE not in config:
        return None
    if _RANDOMIZED in config:
        return Moves(Motion.MOVES, "its configuration has CONFIG_RANDOMIZE_BASE")
    if _end_of(image) < image.source.size:
        return Moves(Motion.UNKNOWN, "what stands behind the ELF file may be a list of what is relocated")
    return Moves(Motion.STAYS, "its configuration has no CONFIG_RANDOMIZE_BASE")


def _config_of(image: Image) -> list[bytes] | None:
    """The lines of the configuration that a kernel carries, None without one, with two, or with a damaged one."""
    import zlib  # noqa: PLC0415 - seldom asked for

    marks = [(section.name, at) for section in image.sections if _is_data(section) for at in _marks(image, section)]
    if [name for name, _ in marks] != [_CONFIG_SECTION]:
        return None
    place = marks[0][1]
    packed = image.source.read(place, min(_CHUNK, image.source.size - place))
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16)
    try:
        text = unpacker.decompress(packed, _MOST_CONFIG)
    except zlib.error:
        return None
    return text.splitlines() if unpacker.eof and unpacker.unused_data.startswith(_CONFIG_END) else None


def _is_data(section: Section) -> bool:
    stored = section.type == elf64.SHT_PROGBITS and section.flags & elf64.SHF_ALLOC
    return bool(stored and not section.executable)


def _marks(image: Image, section: Section) -> Iterator[int]:
    """The offsets behind the marks of configurations in a section."""
    overlap, end = len(_CONFIG_MARK) - 1, section.offset + section.size
    for start in range(section.offset, end, _CHUNK):
        chunk = image.source.read(start, min(_CHUNK + overlap, end - start))
        at = chunk.find(_CONFIG_MARK)
        while at >= 0:
            yield start + at + len(_CONFIG_MARK)
            at = chunk.find(_CONFIG_MARK, at + 1)


def _by_symbols(image: Image) -> Moves | None:
    for name in _KASLR_FUNCTIONS:
        if image.symbols.named(name):
            return Moves(Motion.MOVES, f"it has {name}, which only kernels with CONFIG_RANDOMIZE_BASE have")
    return None
