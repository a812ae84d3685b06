"""A new archive (.a) from an old one: some members get other contents, the symbol index follows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from struct import Struct
from typing import Final

from staticcall.abi import archive
from staticcall.errors import MalformedError, UnsupportedError
from staticcall.model.archive import Member, MemberKind

# The `struct` code of a number in the symbol index, and its size in bytes.
_NUMBERS: Final = {MemberKind.INDEX: ("I", 4), MemberKind.INDEX64: ("Q", 8)}
_DAMAGED: Final = "make the index again with ranlib"


def rebuild(data: bytes, members: Sequence[Member], replaced: Mapping[int, bytes]) -> bytes:
    """The archive `data` with new contents for those of its `members` whose positions are keys of `replaced`.

    Only files can be replaced. Headers stay but for the sizes; the symbol index keeps its names, since new contents
    are to define the symbols that the old ones did, and says where their members are now. With nothing replaced the
    result is `data`.

    Raises `MalformedError` where the index is damaged, `UnsupportedError` where a size or an offset does not fit
    any more.
    """
    moved = _places(members, replaced)
    view = memoryview(data)
    pieces: list[bytes | memoryview] = [archive.MAGIC]
    for number, member in enumerate(members):
        content = replaced.get(number)
        if content is not None and content != member.content(data):
            assert member.kind is MemberKind.MEMBER
            header = bytearray(view[member.header : member.offset])
            header[archive.SIZE_FIELD] = b"%-10d" % len(content)
            pieces += (bytes(header), content, archive.PADDING[: len(content) & 1])
        elif member.kind in _NUMBERS:
            index = _index(data, member, moved)
            pieces += (view[member.header : member.offset], index, view[member.offset + len(index) : member.end])
        else:
            pieces.append(view[member.header : member.end])
    return b"".join(pieces)


def _places(members: Sequence[Member], replaced: Mapping[int, bytes]) -> dict[int, int]:
    """Where each header will be, by where it is."""
    moved = {}
    at = len(archive.MAGIC)
    for number, member in enumerate(members):
        moved[member.header] = at
        size = len(replaced[number]) if number in replaced else member.size
        if size > archive.LARGEST_MEMBER:
            raise UnsupportedError(f"member {member.name} becomes larger than a member can be")
        at += archive.HEADER_SIZE + size + (size & 1)
    return moved


def _index(data: bytes, index: Member, moved: Mapping[int, int]) -> bytes:
    """The numbers at the start of a symbol index: how many symbols, and the new place of the member of each."""
    code, width = _NUMBERS[index.kind]
    count = int.from_bytes(data[index.offset : index.offset + width], "big")
    if width * (1 + count) > index.size:
        raise MalformedError(
            f"the symbol index has no room for its {count} symbols", offset=index.offset, advice=_DAMAGED
        )
    offsets = Struct(f">{count}{code}")
    try:
        places = [moved[place] for place in offsets.unpack_from(data, index.offset + width)]
    except KeyError as missing:
        raise MalformedError(
            f"the symbol index leads to {missing.args[0]:#x}, where no member is", offset=index.offset, advice=_DAMAGED
        ) from None
    if max(places, default=0) >> 8 * width:
        raise UnsupportedError(
            "becomes too large for its symbol index", advice="give an archive with a 64-bit index (/SYM64/)"
        )
    return count.to_bytes(width, "big") + offsets.pack(*places)
