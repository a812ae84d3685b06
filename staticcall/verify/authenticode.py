"""A boot image before and after it was signed: the certificate table is new, and what says where it is.

Source: Microsoft's PE Format, "The Attribute Certificate Table".
"""

from __future__ import annotations

from struct import Struct, error
from typing import Final, NamedTuple

from staticcall.errors import VerificationError

_WORD, _PAIR, _HALF = Struct("<I"), Struct("<II"), Struct("<H")
# The size with its header, the revision, the type.
_ENTRY: Final = Struct("<IHH")
_REVISION, _PKCS_SIGNED_DATA = 0x200, 2
_HEADER_AT, _OPTIONAL, _CHECKSUM = 60, 24, 64
_CERTIFICATES: Final = {0x10B: 128, 0x20B: 144}
_ALIGNMENT: Final = 8
_NOTHING = "nothing was published"


class _Fields(NamedTuple):
    """File offsets of the two fields that signing writes, and the table that the second one tells of."""

    checksum: int
    certificates: int
    start: int
    size: int


def check_signed_image(unsigned: bytes, signed: bytes) -> None:
    """See that a signed PE file is an unsigned one with a certificate table at its end, and nothing else.

    Raises `VerificationError`. Whether the signature holds is for who has the certificate to say.
    """
    try:
        old, new = _fields(unsigned), _fields(signed)
    except (error, KeyError, IndexError) as failure:
        raise VerificationError("is no PE file after the signing command", advice=_NOTHING) from failure
    if old.size or not new.size:
        raise VerificationError("is not signed after the signing command", advice=_NOTHING)
    body = _blank(signed[: new.start], new)
    wanted = _blank(unsigned, old)
    gap = body[len(wanted) :]
    if old[:2] != new[:2] or not body.startswith(wanted) or any(gap) or len(gap) >= _ALIGNMENT:
        raise VerificationError("was changed otherwise by the signing command", advice=_NOTHING)
    if new.start + new.size != len(signed):
        raise VerificationError("has something behind its signature", offset=new.start + new.size, advice=_NOTHING)
    _check_table(signed[new.start :], new.start)


def _fields(data: bytes) -> _Fields:
    (header,) = _WORD.unpack_from(data, _HEADER_AT)
    optional = header + _OPTIONAL
    entry = optional + _CERTIFICATES[_HALF.unpack_from(data, optional)[0]]
    return _Fields(optional + _CHECKSUM, entry, *_PAIR.unpack_from(data, entry))


def _blank(data: bytes, fields: _Fields) -> bytes:
    result = bytearray(data)
    _WORD.pack_into(result, fields.checksum, 0)
    _PAIR.pack_into(result, fields.certificates, 0, 0)
    return bytes(result)


def _check_table(table: bytes, start: int) -> None:
    at = 0
    while at < len(table):
        size, revision, kind = _ENTRY.unpack_from(table.ljust(at + _ENTRY.size, b"\0"), at)
        if size <= _ENTRY.size or at + size > len(table) or (revision, kind) != (_REVISION, _PKCS_SIGNED_DATA):
            raise VerificationError("has a certificate table that is not in order", offset=start + at)
        at += -(-size // _ALIGNMENT) * _ALIGNMENT
