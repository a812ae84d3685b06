"""Which functions return nothing, by the image's own BTF type data.

`.BTF` is a header, an array of type records of varying size, and strings. A FUNC names a FUNC_PROTO, whose
`type` is the result's: 0 is void. Source: the kernel's documentation, bpf/btf.rst.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from staticcall.errors import MalformedError
from staticcall.model.image import Image
from staticcall.read.strings import Strings

_HEADER: Final = Struct("<HBBIIIII")
_TYPE: Final = Struct("<III")
_MAGIC: Final = 0xEB9F
_FUNC, _FUNC_PROTO = 12, 13
# What follows a type record: this many bytes, and this many for each of its members.
_FIXED: Final = {1: 4, 3: 12, 14: 4, 17: 4}
_PER_MEMBER: Final = {4: 12, 5: 12, 6: 8, 13: 8, 15: 12, 19: 12}
_KINDS: Final = 20
_DAMAGED: Final = "build the image again, or choose a target that needs no type data"


def functions_returning(image: Image) -> dict[str, bool]:
    """Map the name of every function that BTF knows to whether it returns a value; empty without BTF."""
    section = image.section_named((".BTF",))
    if section is None:
        return {}
    data = image.source.read(section.offset, section.size)
    if len(data) < _HEADER.size:
        raise MalformedError("the BTF data ends in its header", offset=section.offset, advice=_DAMAGED)
    magic, _, _, header, types_at, types_size, strings_at, strings_size = _HEADER.unpack_from(data)
    if magic != _MAGIC or header + max(types_at + types_size, strings_at + strings_size) > len(data):
        raise MalformedError("the BTF header is damaged", offset=section.offset, advice=_DAMAGED)
    strings_at += header
    strings = Strings(data[strings_at : strings_at + strings_size], section.offset + strings_at, "a BTF name")
    functions, results = _walk(data[header + types_at : header + types_at + types_size], section.offset)
    return {strings.at(name): results[prototype] != 0 for name, prototype in functions if prototype in results}


def _walk(types: bytes, where: int) -> tuple[list[tuple[int, int]], dict[int, int]]:
    """All (name offset, prototype id) pairs of functions, and the result type of every prototype."""
    functions: list[tuple[int, int]] = []
    results: dict[int, int] = {}
    position, number = 0, 1
    while position + _TYPE.size <= len(types):
        name, info, reference = _TYPE.unpack_from(types, position)
        kind, members = info >> 24 & 0x1F, info & 0xFFFF
        if not 0 < kind < _KINDS:
            raise MalformedError(f"BTF type {number} has the unknown kind {kind}", offset=where, advice=_DAMAGED)
        if kind == _FUNC:
            functions.append((name, reference))
        elif kind == _FUNC_PROTO:
            results[number] = reference
        position += _TYPE.size + _FIXED.get(kind, 0) + _PER_MEMBER.get(kind, 0) * members
        number += 1
    return functions, results
