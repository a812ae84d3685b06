"""Whether a kernel runs elsewhere than it is linked, and which of its pointers move along."""

from typing import NamedTuple

from staticcall.model.form import Word


class Motion(Word):
    """What is known of a kernel's place."""

    MOVES = "moves"
    STAYS = "stays"
    UNKNOWN = "unknown"


class SlotList(NamedTuple):
    """The list of what is relocated, where it stands in the image's own file, up to its end.

    `offset` is in the file, `data` all of the list. It begins with `zeros` words of four bytes that are 0, at least
    one; then come those of the 64-bit slots, as many as `slots`.
    """

    offset: int
    data: bytes
    zeros: int
    slots: int


class Moves(NamedTuple):
    """The answer, and in words what it rests on.

    `relocated` are the linked addresses of the 8-byte slots that are relocated, all of those in the ranges `known`.
    `listing` is their list if it is part of the image's file, so that it can be changed together with a slot.
    """

    motion: Motion
    evidence: str
    relocated: frozenset[int] = frozenset()
    known: tuple[range, ...] = ()
    listing: SlotList | None = None

    def relocates(self, slot: int) -> bool | None:
        """Whether the kernel, when it moves, adds the distance to the slot at an address; None where no list says."""
        if not any(slot in extent for extent in self.known):
            return None
        return slot in self.relocated
