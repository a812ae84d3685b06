"""The code of an image, run by run."""

from collections.abc import Iterator
from typing import NamedTuple

from staticcall.abi import elf64
from staticcall.errors import MalformedError
from staticcall.model.image import Image

# Alternatives are linked where they never run; their displacements are fixed up when they are copied.
_NOT_RUN_IN_PLACE = (".altinstr_replacement",)


class Code(NamedTuple):
    """One run of executable bytes; `address` is linked, `offset` in the file, `alignment` as a site has it."""

    section: str
    alignment: int
    address: int
    offset: int
    data: bytes


def code_runs(image: Image) -> Iterator[Code]:
    """The executable sections, or the executable segments of a file without sections, in address order."""
    sections = [s for s in image.sections if s.executable and s.type != elf64.SHT_NOBITS]
    places = [
        (s.address, s.offset, s.size, s.name, image.alignment_known(s))
        for s in sections
        if s.name not in _NOT_RUN_IN_PLACE
    ]
    if not sections:
        places = [
            (s.address, s.offset, s.file_size, "", 0)
            for s in image.segments
            if s.type == elf64.PT_LOAD and s.flags & elf64.PF_X
        ]
    if sum(size for _, _, size, _, _ in places) > image.source.size:
        raise MalformedError("executable sections overlap", advice="the section headers are damaged")
    for address, offset, size, name, alignment in sorted(places):
        if size:
            yield Code(name, alignment, address, offset, image.source.read(offset, size))
