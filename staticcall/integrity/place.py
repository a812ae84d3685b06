"""Where an image is in a memory image: by what the core says of itself, else by a search for bytes that stay.

A kernel is moved by whole steps of 2 MiB (CONFIG_PHYSICAL_ALIGN is no smaller), in physical memory by others than in
virtual memory. In physical memory its parts lie as they do in virtual memory, so one byte sequence that nothing
patches, its build id, finds all. The variable phys_base then tells the virtual slide as well:

    physical = linked + slide - 0xffffffff80000000 + phys_base

A program is moved by whole pages; the core of a process lists its mappings.

Sources: Linux arch/x86/boot/compressed/kaslr.c, arch/x86/kernel/head_64.S (phys_base); Documentation/admin-guide/
kdump/vmcoreinfo.rst; fs/binfmt_elf.c (NT_FILE).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import islice
from struct import Struct
from typing import NamedTuple

from staticcall.abi import elf64, x86
from staticcall.errors import InputError
from staticcall.model.core import Core, Mapping
from staticcall.model.image import Image
from staticcall.model.integrity import Place

_STEP = 2 << 20
_KERNEL_MAP = 0xFFFF_FFFF_8000_0000
_KERNEL_SIZE = 1 << 30
_PAGE = 4096
_VMCOREINFO = b"VMCOREINFO"
_OFFSET = re.compile(rb"^KERNELOFFSET=([0-9a-f]{1,16})$", re.MULTILINE)
# So much physical memory is searched, in a second: 256 GiB.
_MOST_STEPS = 1 << 17
# Linux lets a process have 65,530 mappings unless its administrator says otherwise.
_MOST_MAPPINGS = 1 << 16
_FILES = Struct("<QQ")
_FILE = Struct("<QQQ")
_MOST_COPIES = 64
# So many places are named where there are several.
_FEW = 3
_ADVICE = "give the file that this memory runs, or say --slide"


class Anchor(NamedTuple):
    """Bytes of the image that nothing changes at run time, at a linked address."""

    address: int
    data: bytes


class Landmarks(NamedTuple):
    """What an image is recognized by. `phys_base` is the address of a kernel's variable of that name."""

    anchors: tuple[Anchor, ...]
    phys_base: int | None = None


class _Candidate(NamedTuple):
    """Where an image may be. Of those that are right the most `likely` ones count."""

    shift: int
    physical: bool
    origin: str
    likely: int = 0


def find_place(image: Image, marks: Landmarks, core: Core, slide: int | None = None) -> Place:
    """Find an image; raises `InputError` where the core does not hold it, or several of it.

    `slide` is what somebody says it is. A memory can hold copies that do not run, left over or put there to be found.
    """
    fallback: Iterable[_Candidate] = ()
    if slide is not None:
        searches = _said(marks, core, slide)
    elif image.kernel:
        searches = iter((_virtual(core), _physical(marks, core)))
    else:
        named, others = _mapped_files(image, core)
        fallback = named
        unmoved = [_Candidate(0, False, "not moved")]
        searches = iter((named, others, _areas(image, core)) if image.position_independent else (unmoved,))
    for candidates in searches:
        fitting = (one for one in candidates if _fits(core, marks, one))
        if one := _only(fitting):
            return _place(core, marks, one)
    # A process's core leaves out what its files have as well, headers by request also.
    if one := _only(one for one in fallback if _fits(core, marks, one) is None):
        return _place(core, marks, one._replace(origin=f"{one.origin}, by its name only"))
    if slide is not None:
        raise InputError(f"does not hold this image at a slide of {slide:#x}", advice="leave out --slide to search")
    raise InputError("does not hold the memory of this image", advice=_ADVICE)


def _only(candidates: Iterable[_Candidate]) -> _Candidate | None:
    """The most likely one, None where there is none; raises `InputError` where there are several."""
    found: dict[int, _Candidate] = {}
    for one in islice(candidates, _MOST_COPIES):
        found.setdefault(one.shift, one)
    # With very many of them there may be more that nobody looked at.
    most = max((one.likely for one in found.values()), default=0) if len(found) < _MOST_COPIES else 0
    best = [one for one in found.values() if one.likely >= most]
    if len(best) > 1:
        slides = [one.shift + _KERNEL_MAP * one.physical & x86.ADDRESS_MASK for one in best]
        few = ", ".join(map(hex, slides[:_FEW])) + (", ..." if len(slides) > _FEW else "")
        kind = "physical slides" if best[0].physical else "slides"
        raise InputError(f"holds this image {len(best)} times, at {kind} of {few}", advice="say --slide")
    return best[0] if best else None


def _fits(core: Core, marks: Landmarks, one: _Candidate) -> bool | None:
    """Whether the anchors are where they should be, None where the core leaves all of them out."""
    found = None
    for anchor in marks.anchors:
        data = core.read(anchor.address + one.shift & x86.ADDRESS_MASK, len(anchor.data), physical=one.physical)
        if data and data != anchor.data:
            return False
        found = found or bool(data) or None
    return found


def _place(core: Core, marks: Landmarks, one: _Candidate) -> Place:
    slide = _virtual_slide(core, marks, one.shift) if one.physical else one.shift & x86.ADDRESS_MASK
    return Place(one.physical, one.shift, slide, one.origin)


def _virtual_slide(core: Core, marks: Landmarks, shift: int) -> int | None:
    """The virtual slide of a kernel that was found in physical memory."""
    if marks.phys_base is None:
        return None
    data = core.read(marks.phys_base + shift & x86.ADDRESS_MASK, elf64.POINTER_SIZE, physical=True)
    if not data:
        return None
    slide = shift + _KERNEL_MAP - int.from_bytes(data, "little", signed=True)
    return slide if not slide % _STEP and 0 <= slide < _KERNEL_SIZE else None


def _said(marks: Landmarks, core: Core, slide: int) -> Iterator[Iterable[_Candidate]]:
    """In physical memory a slide is that of the virtual addresses where that can be told, else of the physical ones."""
    said = "as --slide says"
    yield [_Candidate(slide, False, said)]
    if marks.phys_base is not None:
        there = (one for one in _physical(marks, core) if _virtual_slide(core, marks, one.shift) == slide)
        yield (one._replace(origin=said) for one in there)
    yield [_Candidate(slide - _KERNEL_MAP, True, said)]


def _virtual(core: Core) -> Iterator[_Candidate]:
    for note in core.notes:
        match = _OFFSET.search(note.data) if note.name == _VMCOREINFO else None
        if match:
            yield _Candidate(int(match[1], 16), False, "VMCOREINFO")
            break
    for slide in range(0, _KERNEL_SIZE, _STEP):
        yield _Candidate(slide, False, "found in virtual memory" if slide else "not moved")


def _physical(marks: Landmarks, core: Core) -> Iterator[_Candidate]:
    """Where physical memory has what a kernel is recognized by; a virtual slide that can be one makes it likely."""
    first, data = marks.anchors[0]
    # What has no physical address is said to be at the last one.
    areas = [area for area in core.areas if not area.physical + area.file_size >> 52]
    if sum(area.file_size // _STEP for area in areas) > _MOST_STEPS:
        raise InputError("holds more physical memory than is searched", advice="give a core of virtual addresses")
    for area in areas:
        # Where the anchor could be: as far behind a step as it is linked.
        at = area.physical + (first - area.physical) % _STEP
        for address in range(at, area.physical + area.file_size, _STEP):
            # Most are none, and are told by a look at the file.
            offset = area.offset + address - area.physical
            if not data.startswith(core.source.read(offset, min(len(data), area.offset + area.file_size - offset))):
                continue
            one = _Candidate(address - first, True, "found in physical memory")
            if _fits(core, marks, one):
                yield one._replace(likely=_virtual_slide(core, marks, one.shift) is not None)


def _mapped_files(image: Image, core: Core) -> tuple[list[_Candidate], list[_Candidate]]:
    """Where NT_FILE has parts of a file of the image's name, and of others; the more of its segments the likelier."""
    loads = [segment for segment in image.segments if segment.type == elf64.PT_LOAD]
    found: tuple[dict[int, _Candidate], dict[int, _Candidate]] = ({}, {})
    parts: dict[tuple[str, int], int] = defaultdict(int)
    for one in _mappings(core):
        for segment in loads:
            if segment.offset & -_PAGE == one.file_offset:
                slide = one.start - (segment.address & -_PAGE)
                parts[one.path, slide] += 1
                candidate = _Candidate(slide, False, f"NT_FILE: {one.path}", parts[one.path, slide])
                found[one.path.rpartition("/")[2] != image.path.name][slide] = candidate
    return [*found[0].values()], [*found[1].values()]


def _areas(image: Image, core: Core) -> Iterator[_Candidate]:
    first = [segment.address & -_PAGE for segment in image.segments if segment.type == elf64.PT_LOAD][:1]
    for area in core.areas[:_MOST_MAPPINGS] if first else ():
        yield _Candidate(area.virtual - first[0], False, "found in virtual memory")


def _mappings(core: Core) -> Iterable[Mapping]:
    """What NT_FILE lists: count and page size, then start, end and offset in pages of each, then their paths."""
    for note in core.notes:
        if note.type != elf64.NT_FILE or len(note.data) < _FILES.size:
            continue
        count, page = _FILES.unpack_from(note.data)
        end = _FILES.size + count * _FILE.size
        if count > _MOST_MAPPINGS or end > len(note.data):
            continue
        paths = note.data[end:].split(b"\0")
        fields = _FILE.iter_unpack(note.data[_FILES.size : end])
        for (start, stop, offset), path in zip(fields, paths, strict=False):
            yield Mapping(start, stop, offset * page, path.decode("utf-8", "backslashreplace"))
        return
