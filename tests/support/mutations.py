"""Random damage to real files, where it hurts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Final, NamedTuple

from hypothesis import strategies as st

from tests.support.elf_edit import SECTION_SIZE, SEGMENT_SIZE, Elf, Span

HEADERS: Final = ("header", "program headers", "section headers")
# What the proof holds to be the same in both files, whatever is patched; then the places where it may differ.
FIXED: Final = (
    *HEADERS,
    *(".symtab", ".strtab", ".shstrtab", ".dynsym", ".dynstr", ".dynamic", ".note.gnu.build-id"),
    "static_call_sites",
)
LEGAL: Final = (".text", ".static_call.text", ".data", ".data.rel.ro", ".rela.dyn", ".relr.dyn")

# Ends of ranges, and what is one too many for each width.
_TELLING: Final = (0, 1, 7, 8, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_TELLING_WIDE: Final = (*_TELLING, (1 << 63) - 1, 1 << 63, (1 << 64) - 8, (1 << 64) - 1)
_STEPS: Final = (-4096, -64, -24, -8, -4, -1, 1, 4, 8, 16, 24, 64, 4096)


class Kind(Enum):
    """What is done at a place."""

    FLIP = "one bit"
    BYTE = "one byte"
    TELLING = "an aligned number, to one that tells"
    STEP = "an aligned number, by a little"
    COPY = "a piece from elsewhere in the region"
    CUT = "all that follows in the file is lost"
    GROW = "something is added at the end of the file"


class Mutation(NamedTuple):
    """One piece of damage; `place` and `value` are reduced to what the region and the kind allow."""

    region: str
    kind: Kind
    place: int
    value: int


def mutations(regions: Iterable[str] = (*FIXED, *LEGAL, "file")) -> st.SearchStrategy[list[Mutation]]:
    """A few mutations of one file; most files get only one or two, so that the damage goes unnoticed for long."""
    usual = [Kind.FLIP, Kind.BYTE, Kind.TELLING, Kind.STEP, Kind.COPY] * 3
    one = st.builds(
        Mutation,
        st.sampled_from(list(regions)),
        st.sampled_from([*usual, Kind.CUT, Kind.GROW]),
        st.integers(0, 1 << 20),
        st.integers(0, 1 << 20),
    )
    return st.lists(one, min_size=1, max_size=6)


def regions_of(content: bytes) -> Mapping[str, Span]:
    """Where a sound file has what can be damaged."""
    elf = Elf(content)
    header = elf.header
    found = {
        "file": Span(0, len(content)),
        "header": Span(0, 64),
        "program headers": Span(header["phoff"], header["phnum"] * SEGMENT_SIZE),
        "section headers": Span(header["shoff"], header["shnum"] * SECTION_SIZE),
    }
    for name in (*FIXED, *LEGAL):
        if name.startswith((".", "static")) and elf.has_section(name):
            found[name] = elf.span(name)
    return found


def damaged(content: bytes, regions: Mapping[str, Span], damage: Iterable[Mutation]) -> bytes:
    """The file after all mutations, one after the other; a region that it does not have stands for all of it."""
    data = bytearray(content)
    for mutation in damage:
        region = regions.get(mutation.region)
        _damage(data, region if region and region.size else regions["file"], mutation)
    return bytes(data)


def _damage(data: bytearray, region: Span, mutation: Mutation) -> None:
    at = region.offset + mutation.place % region.size
    value = mutation.value
    if mutation.kind is Kind.CUT:
        del data[at:]
    elif mutation.kind is Kind.GROW:
        data += bytes([value & 0xFF]) * (1 + mutation.place % 99)
    elif at < len(data):
        if mutation.kind is Kind.FLIP:
            data[at] ^= 1 << value % 8
        elif mutation.kind is Kind.BYTE:
            data[at] = value & 0xFF
        elif mutation.kind is Kind.COPY:
            size = (8, 16, 24, 56, 64)[value % 5]
            piece = data[region.offset + value % region.size :][: min(size, len(data) - at)]
            data[at : at + len(piece)] = piece
        else:
            _change_number(data, region.offset, at, mutation)


def _change_number(data: bytearray, start: int, at: int, mutation: Mutation) -> None:
    width = (1, 2, 4, 8)[mutation.value % 4]
    at -= (at - start) % width
    if at + width > len(data):
        return
    choice = mutation.value // 4
    if mutation.kind is Kind.TELLING:
        number = _TELLING_WIDE[choice % len(_TELLING_WIDE)]
    else:
        number = int.from_bytes(data[at : at + width], "little") + _STEPS[choice % len(_STEPS)]
    data[at : at + width] = (number & (1 << 8 * width) - 1).to_bytes(width, "little")
