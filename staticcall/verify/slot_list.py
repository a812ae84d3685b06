"""The list of what the decompressor relocates, behind a kernel's ELF file: what it gained and lost.

It is walked as the kernel walks it, from the end of the file to a word that is 0, two or three times: 32-bit slots,
until 6.14 slots that the distance is taken from, 64-bit slots. What stands in front of that is never read, and may
only be more zeros.

Source: arch/x86/boot/compressed/misc.c, handle_relocations(), Linux 5.10 to 6.14.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from typing import NamedTuple

from staticcall.errors import VerificationError
from staticcall.model.change import EditKind
from staticcall.verify.compare import Change
from staticcall.verify.layout import Layout
from staticcall.verify.scene import Slot
from staticcall.verify.source import Source, Span

_WORD = 4
# Debian's have 1 MB; as numbers they take ten times that.
_MOST = 1 << 26
# The words are addresses without their upper half.
_UPPER_HALF = 0xFFFFFFFF << 32


class Followed(NamedTuple):
    """Linked addresses of the 8-byte slots that are relocated from now on, and that are no more; where that is said."""

    gained: frozenset[int] = frozenset()
    lost: frozenset[int] = frozenset()
    change: Change | None = None

    @property
    def slots(self) -> frozenset[int]:
        """All of these."""
        return self.gained | self.lost


class _List(NamedTuple):
    """The words of a file's list: those of the 64-bit slots, and all behind the zero that ends these."""

    wide: list[int]
    rest: list[int]


def end_of(layout: Layout) -> int:
    """The offset of the first byte behind all that the headers know of."""
    stored = [section.body.end for section in layout.sections if section.type != "SHT_NOBITS"]
    return max((*stored, *(load.body.end for load in layout.segments), *(span.end for span in layout.headers)))


def read_followed(original: Source, patched: Source, layout: Layout) -> Followed:
    """Compare the lists behind two files of a kernel.

    Raises `VerificationError` where they differ otherwise than by whole 64-bit slots, each there once.
    """
    start = end_of(layout)
    size = original.size - start
    if not layout.kernel or not 2 * _WORD <= size <= _MOST or size % _WORD or patched.size < original.size:
        return Followed()
    before, after = original.read(start, size), patched.read(start, min(patched.size - start, _MOST))
    if before == after:
        return Followed()
    old, new = _walk(before), _walk(after)
    if old is None or new is None or old.rest != new.rest or len(after) % _WORD or not _is_of(old, layout):
        raise VerificationError("what stands behind the ELF file differs, and not as a list of slots", offset=start)
    gained, lost = set(new.wide) - set(old.wide), set(old.wide) - set(new.wide)
    if sorted([*new.wide, *lost]) != sorted([*old.wide, *gained]):
        raise VerificationError("the list of what is relocated has a slot twice", offset=start)
    if len(after) > len(before) and len(new.wide) + len(new.rest) + 1 < len(after) // _WORD:
        raise VerificationError("the list of what is relocated is longer than it has to be", offset=start)
    return Followed(_linked(gained), _linked(lost), _change(start, before, after))


def check_followed(followed: Followed, slots: Sequence[Slot]) -> None:
    """Hold the list against the slots that changed: it follows those that are NULL before or after, and no others.

    Raises `VerificationError`.
    """
    filled = {slot.address for slot in slots if not slot.before and slot.after}
    emptied = {slot.address for slot in slots if slot.before and not slot.after}
    for address in sorted((followed.gained - filled) | (followed.lost - emptied)):
        raise VerificationError(
            f"the list of what is relocated {'gained' if address in followed.gained else 'lost'} the slot at"
            f" {address:#x}, and no key there went to or from NULL",
            offset=followed.change.offset if followed.change else None,
        )


def _walk(data: bytes) -> _List | None:
    words = array("I", data[: len(data) // _WORD * _WORD])
    if sys.byteorder == "big":
        words.byteswap()
    stops = [at for at in reversed(range(len(words))) if not words[at]]
    used = next((at for at, word in enumerate(words) if word), len(words))
    # The zeros behind the first word that is not one: with two lists there is one of them, with three there are two.
    inner = [at for at in stops if at > used]
    if len(inner) not in (1, 2) or not used:
        return None
    stop = inner[-1]
    return _List(list(words[used:stop]), list(words[stop:]))


def _is_of(listed: _List, layout: Layout) -> bool:
    """Whether all places in a list are places of the kernel: other data behind it would be none."""
    loads = [load for load in layout.segments if load.address >= _UPPER_HALF]
    words = [word | _UPPER_HALF for word in (*listed.wide, *listed.rest) if word]
    if not loads or not words:
        return False
    highest = max(load.address + load.memory for load in loads)
    return min(load.address for load in loads) <= min(words) and max(words) < highest


def _linked(words: set[int]) -> frozenset[int]:
    return frozenset(word | _UPPER_HALF for word in words)


def _change(start: int, before: bytes, after: bytes) -> Change:
    """The bytes from the first word that differs to the last one, or to the end of the file that grew."""
    first = next(at for at in range(0, len(before), _WORD) if before[at : at + _WORD] != after[at : at + _WORD])
    stop = len(before)
    while len(before) == len(after) and before[stop - _WORD : stop] == after[stop - _WORD : stop]:
        stop -= _WORD
    last = stop if len(before) == len(after) else len(after)
    span = Span(start + first, stop - first)
    return Change(span.offset, before[first:stop], after[first:last], EditKind.RELOCATION, "", 0)
