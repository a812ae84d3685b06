"""The sections with DWARF in them: unpacked where they are compressed, relocated where the file is an object."""

from __future__ import annotations

from struct import Struct
from typing import Final

from staticcall.abi import elf64
from staticcall.errors import MalformedError, UnsupportedError
from staticcall.model.image import ByteSource, Image, Placement, Section
from staticcall.read.dwarf import Dwarf, Sections

_NAMES: Final = (
    ".debug_info",
    ".debug_abbrev",
    ".debug_str",
    ".debug_line_str",
    ".debug_str_offsets",
    ".debug_addr",
)
# type, reserved, size, alignment
_COMPRESSED: Final = Struct("<IIQQ")
_ZLIB: Final = 1
# Type data shrinks to a third or fourth; what grows more than this is an attack on the memory.
_MOST_GROWTH: Final = 8
_ROOM: Final = 1 << 20
_WIDTHS: Final = {elf64.R_X86_64_64: 8, elf64.R_X86_64_32: 4}
_ADVICE: Final = "build the file again, or --force-type"


def read_dwarf(image: Image) -> Dwarf | None:
    """The DWARF data of an image, None where it has none.

    Raises `MalformedError` where it breaks its format, `UnsupportedError` for a compression that is not zlib.
    """
    if image.section_named(_NAMES[:1]) is None:
        return None
    # An object has a section for each type that is in a unit of its own.
    parts = ([section for section in image.sections if section.name == name] for name in _NAMES)
    return Dwarf(
        Sections(*(b"".join(content_of(image.source, s, image.placement) for s in sections) for sections in parts))
    )


def content_of(source: ByteSource, section: Section, placement: Placement | None) -> bytes:
    """The bytes of a section of debug data, unpacked, and relocated where the file is an object.

    Raises `MalformedError` where that cannot be, `UnsupportedError` for a compression that is not zlib.
    """
    if section.type == elf64.SHT_NOBITS:
        return b""
    content = source.read(section.offset, section.size)
    if section.flags & elf64.SHF_COMPRESSED:
        content = _unpacked(content, section)
    return content if placement is None else _relocated(placement, section, content)


def _unpacked(content: bytes, section: Section) -> bytes:
    import zlib  # noqa: PLC0415 - few files are compressed

    if len(content) < _COMPRESSED.size:
        raise _damaged(section, "ends in its header")
    method, _, size, _ = _COMPRESSED.unpack_from(content)
    if method != _ZLIB:
        raise UnsupportedError(
            f"section {section.name} is not compressed with zlib", advice="link it without, or --force-type"
        )
    if size > _MOST_GROWTH * len(content) + _ROOM:
        raise _damaged(section, "is larger than its compressed form can mean")
    try:
        unpacked = zlib.decompressobj().decompress(content[_COMPRESSED.size :], size)
    except zlib.error:
        unpacked = b""
    if len(unpacked) != size:
        raise _damaged(section, "does not unpack")
    return unpacked


def _relocated(placement: Placement, section: Section, content: bytes) -> bytes:
    """The content with the addresses that the parts of an object are pretended to have."""
    file, addresses = placement.file, placement.addresses
    done = bytearray(content)
    for own in file.relocations_by_target().get(section.number, ()):
        table = file.relocations(own)
        for place, kind, symbol, addend in zip(
            table.places(), table.types(), table.symbols(), table.addends(), strict=True
        ):
            width = _WIDTHS.get(kind, 0)
            if place + width > len(done) or symbol >= len(addresses):
                raise _damaged(section, "has a relocation that leads out of the file")
            value = addresses[symbol] + addend & (1 << 8 * width) - 1
            done[place : place + width] = value.to_bytes(width, "little")
    return bytes(done)


def _damaged(section: Section, what: str) -> MalformedError:
    return MalformedError(f"section {section.name} {what}", offset=section.offset, advice=_ADVICE)
