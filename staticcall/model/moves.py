"""Whether a kernel runs elsewhere than it is linked, and which of its pointers move along."""

from typing import NamedTuple

from staticcall.model.form import Word


class Motion(Word):
    """What is known of a kernel's place."""

    MOVES = "moves"
    STAYS = "stays"
    UNKNOWN = "unknown"


class Moves(NamedTuple):
    """The answer, and in words what it rests on.

    `relocated` are the linked addresses of the 8-byte slots that are relocated, all of those in the ranges `known`.
    """

    motion: Motion
    evidence: str
    relocated: frozenset[int] = frozenset()
    known: tuple[range, ...] = ()

    def relocates(self, slot: int) -> bool | None:
        """Whether the kernel, when it moves, adds the distance to the slot at an address; None where no list says."""
        if not any(slot in extent for extent in self.known):
            return None
        return slot in self.relocated
