"""Refuses values that a key's slot would not keep, because whoever loads the image adds a distance to it, or does not.

A loader, or the kernel's own decompressor, adds the distance that an image was moved to every slot of a list. A slot
that was NULL when the list was made is not on it: a function there would stay where it was linked. A slot that was
not is on it: NULL there would become the distance. Both are called later.

Where a kernel's file has the list itself, as what a bzImage decompresses to has, the list is changed with the slot
(see `read.moves` for its form). It keeps its size if an entry goes, by one more zero in front, which nobody reads; a
new entry takes such a zero away again, or makes the file four bytes longer.

Where relocations are kept in `.rela` sections, their symbol and addend go stale when a slot changes. Nobody reads
them: `relocs`, which makes the list of a kernel, takes only the places.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable

from staticcall.abi import elf64
from staticcall.errors import UnsafeError
from staticcall.model.change import Edit, EditKind
from staticcall.model.image import Image
from staticcall.model.moves import Motion, Moves, SlotList
from staticcall.model.sites import Key, Target

_LOWER_HALF = 0xFFFF_FFFF


def kernel_slot_danger(key: Key, present: Target, target: Target, moves: Moves) -> UnsafeError | None:
    """What would happen to another target in the slot of a kernel that may move, None if nothing."""
    if moves.motion is Motion.STAYS:
        return None
    relocated = moves.relocates(key.address)
    danger = _danger(key, present, target, relocated=relocated)
    if danger is None or (moves.listing and _follows(present.address, target.address, relocated=relocated)):
        return None
    if moves.motion is Motion.MOVES:
        advice = "patch its vmlinuz, whose list follows, or --force kaslr-slot if it is always started with nokaslr"
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


def _follows(before: int, after: int, *, relocated: bool | None) -> bool:
    """Whether a list can follow a slot: it gains a function and is not on it, or it loses one and is."""
    return relocated is not None and relocated is bool(before) and bool(before) is not bool(after)


def list_edits(moves: Moves, edits: Iterable[Edit]) -> list[Edit]:
    """What has to be changed in the list that an image carries, given the edits of its keys' slots; one edit or none.

    Raises `UnsafeError` for a list that has a slot twice.
    """
    if moves.listing is None:
        return []
    gained: list[int] = []
    lost: list[int] = []
    for edit in edits:
        if edit.kind is EditKind.KEY and edit.address is not None:
            before, after = (elf64.POINTER.unpack(value)[0] for value in (edit.old, edit.new))
            if _follows(before, after, relocated=moves.relocates(edit.address)):
                (gained if after else lost).append(edit.address)
    return [_list_edit(moves.listing, gained, lost)] if gained or lost else []


def _list_edit(listing: SlotList, gained: Iterable[int], lost: Iterable[int]) -> Edit:
    """The words of the list from the first one that differs to the last one, or to the end of a list that grows."""
    words = elf64.column(listing.data, "I", 0, 1).tolist()
    slots = words[listing.zeros : listing.zeros + listing.slots]
    for address in lost:
        if slots.count(address & _LOWER_HALF) != 1:
            raise UnsafeError(
                f"the list of what is relocated has the slot at {address:#x} more than once",
                code="kaslr-slot",
                advice="the list is damaged",
            )
        slots.remove(address & _LOWER_HALF)
    for address in gained:
        # As relocs sorts them; nobody depends on it.
        insort(slots, address & _LOWER_HALF)
    zeros = max(listing.zeros + listing.slots - len(slots), 1)
    changed = [0] * zeros + slots + words[listing.zeros + listing.slots :]
    first = next(at for at, (old, new) in enumerate(zip(words, changed, strict=False)) if old != new)
    stop = len(words)
    while len(changed) == len(words) and words[stop - 1] == changed[stop - 1]:
        stop -= 1
    last = stop if len(changed) == len(words) else len(changed)
    size = elf64.WORD.size
    new = b"".join(map(elf64.WORD.pack, changed[first:last]))
    return Edit(
        listing.offset + first * size, listing.data[first * size : stop * size], new, EditKind.RELOCATION, "", None
    )
