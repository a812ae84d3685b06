"""Build ids in notes: which ones changed, and whether every copy of one did.

Source: System V gABI, chapter 5, "Note Section"; GNU's NT_GNU_BUILD_ID is type 3 of the name GNU.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from staticcall.errors import VerificationError

# Sizes of name and description, and the type; name and description are padded to four bytes.
_HEADER: Final = struct.Struct("<III")
_BUILD_ID: Final = 3
_NAME: Final = b"GNU\0"
# A section of notes has some hundred bytes.
MOST_NOTES: Final = 1 << 20


class NewId(NamedTuple):
    """A build id that is another one now: its offset in the file, and what it was and is."""

    offset: int
    before: bytes
    after: bytes


def ids_in(notes: bytes) -> Iterator[tuple[int, int]]:
    """Where in a run of notes build ids are: offset and size of each."""
    at = 0
    while at + _HEADER.size <= len(notes):
        name, size, kind = _HEADER.unpack_from(notes, at)
        name_at = at + _HEADER.size
        start = name_at + -(-name // 4) * 4
        if start + size > len(notes):
            return
        if kind == _BUILD_ID and size and notes[name_at : name_at + name] == _NAME:
            yield start, size
        at = start + -(-size // 4) * 4


def new_ids(pairs: Iterable[NewId]) -> tuple[NewId, ...]:
    """Those build ids that changed; raises `VerificationError` where the copies of one became different ones."""
    pairs = sorted(pairs)
    became: dict[bytes, bytes] = {}
    for pair in pairs:
        if became.setdefault(pair.before, pair.after) != pair.after:
            raise VerificationError("two notes with the same build id have different ones now", offset=pair.offset)
    return tuple(pair for pair in pairs if pair.before != pair.after)


def remarks(ids: Iterable[NewId]) -> tuple[str, ...]:
    """What to say about new build ids, a line each."""
    seen = dict.fromkeys((pair.before.hex(), pair.after.hex()) for pair in ids)
    return tuple(f"the build id was {before} and is {after}" for before, after in seen)
