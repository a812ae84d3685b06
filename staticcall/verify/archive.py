"""The proof of archives (.a): a rewritten one is its original but for the contents of some files in it.

Read here once more, header by header with one pattern, and the index with its own; nothing is shared with the
reader and the writer. What the files' new contents are to be is proved elsewhere, object by object.

Source: ar(5) of System V; the index in 64 bits is that of IRIX and of LLVM.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

from staticcall.errors import MalformedError, VerificationError

_MAGIC = b"!<arch>\n"
# Name; date, user, group, mode; size.
_HEADER = re.compile(rb"(.{16})(.{32})((?=[0-9]+ *`)[0-9 ]{10})`\n", re.DOTALL)
# It starts where another ends, or where the table starts, behind the newline of its header.
_LONG_NAME = re.compile(rb"(?<=\n)([^\n]+)/\n")
# Big-endian numbers of an index, by its name.
_INDEXES = {b"/": struct.Struct(">I"), b"/SYM64/": struct.Struct(">Q")}


class Changed(NamedTuple):
    """A file in both archives with different contents; `number` counts all members, special ones too, from 0."""

    number: int
    name: str
    before: bytes
    after: bytes


class _Entry(NamedTuple):
    """One member: where its header starts, its name field without spaces, the rest of the header, its size field.

    `content` and `end` are offsets in the file; `padding` are the bytes between the content and the next header.
    """

    header: int
    field: bytes
    facts: bytes
    size: bytes
    content: int
    end: int
    padding: bytes


def same_archive(original: bytes, rewritten: bytes) -> list[Changed]:
    """The files that differ between two archives, in the archives' order, after seeing that nothing else does.

    Members have the same order, names and headers but for sizes; the table of long names is the same; the symbol
    index has the same symbols and leads to the same members. Raises `MalformedError` where the original is
    damaged, `VerificationError` for all that is wrong with the rewritten one.
    """
    before = _entries(original)
    places = _index(original, before)
    try:
        after = _entries(rewritten)
        new_places = _index(rewritten, after)
    except MalformedError as error:
        raise VerificationError(f"the rewritten archive {error.what}", offset=error.offset) from error
    if len(before) != len(after):
        raise VerificationError(f"the rewritten archive has {len(after)} members, the original {len(before)}")
    changed: list[Changed] = []
    names: dict[bytes, str] = {}  # many files may have one name
    for number, (old, new) in enumerate(zip(before, after, strict=True)):
        difference = _difference(number, old, new, original, rewritten)
        if difference:
            name = names.get(old.field) or names.setdefault(old.field, _name(original, before, old))
            changed.append(Changed(number, name, *difference))
    if places != new_places:
        raise VerificationError("the symbol index leads to other members", offset=after[0].content)
    return changed


def _entries(data: bytes) -> list[_Entry]:
    if not data.startswith(_MAGIC):
        raise MalformedError("does not start as an archive does", offset=0)
    entries = []
    at = len(_MAGIC)
    while at < len(data):
        header = _HEADER.match(data, at)
        if header is None:
            raise MalformedError("has no member's header where one is expected", offset=at)
        name, facts, size = header.groups()
        end = header.end() + int(size)
        if end > len(data):
            raise MalformedError("ends inside of a member", offset=at)
        following = end + end % 2  # all headers stand at even offsets
        entries.append(_Entry(at, name.rstrip(b" "), facts, size, header.end(), end, data[end:following]))
        at = following
    return entries


def _index(data: bytes, entries: list[_Entry]) -> tuple[int, ...]:
    """For each symbol of the index, in its order, the number of the member that it leads to."""
    number = _INDEXES.get(entries[0].field) if entries else None
    if number is None:
        return ()
    index = entries[0]
    content = memoryview(data)[index.content : index.end]
    room = len(content) // number.size - 1
    if room < 0 or number.unpack_from(content)[0] > room:
        raise MalformedError("has a symbol index that is too small for its symbols", offset=index.content)
    (count,) = number.unpack_from(content)
    members = {entry.header: i for i, entry in enumerate(entries)}
    table = content[number.size : number.size * (count + 1)]
    found = tuple(members.get(place, -1) for (place,) in number.iter_unpack(table))
    if -1 in found:
        raise MalformedError("has a symbol index that leads to no member", offset=index.content)
    return found


def _difference(number: int, old: _Entry, new: _Entry, original: bytes, rewritten: bytes) -> tuple[bytes, bytes] | None:
    """The two contents of a file where they are not the same; raises `VerificationError` where they have to be."""
    if (old.field, old.facts) != (new.field, new.facts):
        raise VerificationError(f"the header of member {number} is a different one", offset=new.header)
    before, after = original[old.content : old.end], rewritten[new.content : new.end]
    if before == after:
        if (old.size, old.padding) != (new.size, new.padding):
            raise VerificationError(f"the size or the padding of member {number} is not as it was", offset=new.header)
        return None
    if number == 0 and old.field in _INDEXES:
        _same_symbols(old, new, before, after)
        return None
    if old.field in (*_INDEXES, b"//"):
        raise VerificationError(f"member {number}, {old.field.decode()}, is a different one", offset=new.content)
    if new.size != b"%-10d" % len(after) or new.padding != b"\n"[: len(after) % 2]:
        raise VerificationError(f"the size or the padding of member {number} is wrong", offset=new.header)
    return before, after


def _same_symbols(old: _Entry, new: _Entry, before: bytes, after: bytes) -> None:
    """See that two indexes differ in nothing but the offsets of members."""
    width = _INDEXES[old.field].size
    names = width * (1 + int.from_bytes(before[:width], "big"))
    if (old.size, old.padding, before[:width], before[names:]) != (new.size, new.padding, after[:width], after[names:]):
        raise VerificationError("the symbol index has different symbols", offset=new.content)


def _name(data: bytes, entries: list[_Entry], entry: _Entry) -> str:
    """The name of a file, as an archive's header or its long names have it."""
    name = entry.field.rpartition(b"/")[0]
    if not name:
        table = next((entry for entry in entries[:2] if entry.field == b"//"), None)
        place = entry.field[1:]
        found = _LONG_NAME.match(data, table.content + int(place), table.end) if table and place.isdigit() else None
        if found is None:
            raise MalformedError("has a member without a name", offset=entry.header)
        name = found[1]
    return name.decode("utf-8", "backslashreplace")
