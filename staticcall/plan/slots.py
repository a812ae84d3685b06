"""Refuses values that a key's slot would not keep, because whoever loads the image adds a distance to it, or does not.

A loader, or the kernel's own decompressor, adds the distance that an image was moved to every slot of a list. A slot
that was NULL when the list was made is not on it: a function there would stay where it was linked. A slot that was
not is on it: NULL there would become the distance. Both are called later.

Where relocations are kept in `.rela` sections, their symbol and addend go stale when a slot changes. Nobody reads
them: `relocs`, which makes the list of a kernel, takes only the places.
"""

from __future__ import annotations

from staticcall.errors import UnsafeError
from staticcall.model.image import Image
from staticcall.model.moves import Motion, Moves
from staticcall.model.sites import Key, Target


def kernel_slot_danger(key: Key, present: Target, target: Target, moves: Moves) -> UnsafeError | None:
    """What would happen to another target in the slot of a kernel that may move, None if nothing."""
    if moves.motion is Motion.STAYS:
        return None
    danger = _danger(key, present, target, relocated=moves.relocates(key.address))
    if danger is None:
        return None
    if moves.motion is Motion.MOVES:
        advice = "choose the initial target in the source, or --force kaslr-slot if it is always started with nokaslr"
    else:
        advice = "--relocs vmlinux.relocs to know, or --force kaslr-slot if this kernel never moves"
    return UnsafeError(f"{danger}; {moves.evidence}", code="kaslr-slot", advice=advice)


def program_slot_danger(image: Image, key: Key, present: Target, target: Target) -> UnsafeError | None:
    """What would happen to another target in the slot of a program or shared object, None if nothing."""
    if not image.position_independent:
        return None
    # The dynamic relocations are all there are: a loader has no other list.
    danger = _danger(key, present, target, relocated=key.address in image.relocations)
    if danger is None:
        return None
    return UnsafeError(danger, code="slot-relocation", advice="choose the initial target in the source")


def _danger(key: Key, present: Target, target: Target, *, relocated: bool | None) -> str | None:
    if target.address and not present.address:
        reason = "is NULL, so nothing relocates its slot and a function's address there stays unrelocated"
    elif target.address and relocated is False:
        reason = "has a slot that nothing relocates, so another function's address there stays unrelocated too"
    elif not target.address:
        reason = "is not NULL, so its slot is relocated and NULL there becomes the load address"
    else:
        return None
    return f"key {key.name} {reason}"
