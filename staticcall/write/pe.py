"""The PE file that a boot image is too: its certificate table, its checksum, its size in memory."""

from __future__ import annotations

from typing import NamedTuple

from staticcall.abi import bzimage as abi
from staticcall.errors import MalformedError, UnsupportedError

_ADVICE = "the file is damaged"


class Pe(NamedTuple):
    """File offsets of what may change: the checksum, the size in memory, the certificates' entry, section headers.

    `certificates` is None where there are too few directories for it.
    """

    checksum: int
    image_size: int
    certificates: int | None
    sections: range


def pe_of(data: bytes | bytearray) -> Pe | None:
    """The PE headers of a boot image, None without any.

    Raises `MalformedError` where they are not all in front of the setup header, or overlap.
    """
    if not data.startswith(abi.DOS_MAGIC):
        return None
    header = _word(data, abi.PE_AT)
    if data[header : header + len(abi.PE_MAGIC)] != abi.PE_MAGIC:
        return None
    optional = header + abi.PE_OPTIONAL
    counted = abi.OPTIONAL_DIRECTORIES.get(_half(data, optional))
    if counted is None:
        raise MalformedError("the PE header of the bzImage is of no known kind", offset=optional, advice=_ADVICE)
    entry = optional + counted + abi.WORD.size + abi.CERTIFICATES * abi.DIRECTORY.size
    first = optional + _half(data, header + abi.PE_OPTIONAL_SIZE)
    behind = first + _half(data, header + abi.PE_SECTIONS) * abi.PE_SECTION_SIZE
    known = _word(data, optional + counted) > abi.CERTIFICATES
    directories = entry + abi.DIRECTORY.size if known else optional + counted + abi.WORD.size
    if max(behind, directories) > abi.SETUP_SECTORS or first < directories:
        raise MalformedError("the PE headers run into each other or the setup header", offset=header, advice=_ADVICE)
    return Pe(
        optional + abi.OPTIONAL_CHECKSUM,
        optional + abi.OPTIONAL_IMAGE_SIZE,
        entry if known else None,
        range(first, behind, abi.PE_SECTION_SIZE),
    )


def pe_signature(data: bytes | bytearray) -> range | None:
    """Where the certificates of a signed boot image are in the file, None for one that is not signed.

    Raises `MalformedError` where they are said to be outside of it, or in the code that they are to sign.
    """
    pe = pe_of(data)
    if pe is None or pe.certificates is None:
        return None
    offset, size = abi.DIRECTORY.unpack_from(data, pe.certificates)
    if not offset and not size:
        return None
    if offset + size > len(data) or offset < abi.code_of(data)[1]:
        raise MalformedError(
            f"the PE certificate table of {size} bytes at {offset:#x} is not behind the code, or not in the file",
            offset=pe.certificates,
            advice=_ADVICE,
        )
    return range(offset, offset + size)


def without_signature(data: bytes | bytearray, pe: Pe, signature: range) -> bytearray:
    """A signed file without its certificates; the checksum stays.

    Raises `UnsupportedError` where something follows them, which nobody knows the meaning of.
    """
    if signature.stop != len(data):
        raise UnsupportedError(
            f"has {len(data) - signature.stop} bytes of something else behind its PE signature",
            offset=signature.stop,
            advice="remove the signature with the tool that made it",
        )
    assert pe.certificates is not None, "they were found by it"
    result = bytearray(data[: signature.start])
    abi.DIRECTORY.pack_into(result, pe.certificates, 0, 0)
    return result


def blank(data: bytes | bytearray | memoryview, pe: Pe | None) -> bytearray:
    """These bytes as they were before somebody signed them: no checksum, no certificates."""
    result = bytearray(data)
    if pe is not None:
        abi.WORD.pack_into(result, pe.checksum, 0)
        if pe.certificates is not None:
            abi.DIRECTORY.pack_into(result, pe.certificates, 0, 0)
    return result


def grow_in_memory(data: bytearray, pe: Pe, bytes_more: int) -> None:
    """Give the image more memory behind its last section, as a loader of EFI applications understands it.

    Raises `MalformedError` for sizes that no memory has.
    """
    fields = [pe.image_size]
    if pe.sections:
        # The first word of a section's place is its size.
        place = abi.PE_SECTION_PLACE.size - abi.DIRECTORY.size
        fields.append(place + max(pe.sections, key=lambda at: sum(abi.PE_SECTION_PLACE.unpack_from(data, at))))
    for field in fields:
        size = _word(data, field) + bytes_more
        if size >> 32:
            raise MalformedError("the PE header gives more memory than there is", offset=field, advice=_ADVICE)
        abi.WORD.pack_into(data, field, size)


def _word(data: bytes | bytearray, offset: int) -> int:
    return int.from_bytes(_exactly(data, offset, abi.WORD.size), "little")


def _half(data: bytes | bytearray, offset: int) -> int:
    return int.from_bytes(_exactly(data, offset, abi.HALF.size), "little")


def _exactly(data: bytes | bytearray, offset: int, size: int) -> bytes | bytearray:
    found = data[offset : offset + size]
    if len(found) != size:
        raise MalformedError("the PE headers run past the end of the file", offset=offset, advice=_ADVICE)
    return found
